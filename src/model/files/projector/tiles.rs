//! How a projector's file says that its model sees pictures in tiles, as LLaVA-1.6 (LLaVA-NeXT) does.
//!
//! The keys are those of LLaVA's own configuration (`convert_image_encoder_to_gguf.py` in llama.cpp), which knows
//! more ways than transformers does.

use gguf_tools::gguf::{Array, Gguf, Value};

use super::header::{MERGE_TYPE, PINPOINTS};
use super::tensors::Sizes;
use crate::model::files::rules::broken;
use crate::picture::{Merge, Tiling};
use crate::{Error, Result};

const ASPECT_RATIO: &str = "clip.vision.image_aspect_ratio";
/// What stands behind each row of patches: as llama.cpp reads it, and as LLaVA calls it.
pub(super) const NEWLINES: [&str; 2] = ["v.image_newline", "model.image_newline"];

/// The most resolutions, tiles in one, and patches of all its tiles: published models have up to 36 resolutions of
/// up to 36 tiles, and 2304 patches in four. A picture of that many takes 1 GiB of rows of 4096.
const MAX_RESOLUTIONS: usize = 256;
const MAX_TILES: u32 = 64;
const MAX_PATCHES: u32 = 1 << 16;

/// What shows that a file is of such a model, if anything does.
pub(super) fn sign(file: &Gguf) -> Option<&'static str> {
    let starts_with = |key, start| file.str(key).is_some_and(|text| text.starts_with(start));
    if file.get(PINPOINTS).is_some() {
        Some(PINPOINTS)
    } else if starts_with(MERGE_TYPE, "spatial") {
        Some(MERGE_TYPE)
    } else if starts_with(ASPECT_RATIO, "anyres") {
        Some(ASPECT_RATIO)
    } else {
        NEWLINES
            .into_iter()
            .find(|name| file.tensor(name).is_some())
    }
}

/// Reads it from a file whose keys and tensors have passed; none where a picture is seen in one view.
pub(super) fn read(file: &Gguf, sizes: &Sizes) -> Result<Option<Tiling>> {
    let Some(sign) = sign(file) else {
        return Ok(None);
    };
    match file.str(ASPECT_RATIO) {
        None | Some("anyres") => {}
        Some(other) => {
            return Err(unsupported(
                file,
                &format!("key `{ASPECT_RATIO}` is `{other}`, and only `anyres` is known"),
            ));
        }
    }
    let Some(Value::Array(Array::I32(pinpoints))) = file.get(PINPOINTS) else {
        return Err(unsupported(
            file,
            &format!("there is `{sign}`, but no key `{PINPOINTS}` for the sizes of its pictures"),
        ));
    };
    Ok(Some(Tiling {
        resolutions: resolutions(file, pinpoints, sizes)?,
        merge: merge(file)?,
    }))
}

/// Pairs of height and width, as transformers reads the same numbers in a checkpoint's configuration.
fn resolutions(file: &Gguf, pinpoints: &[i32], sizes: &Sizes) -> Result<Vec<[u32; 2]>> {
    let (pairs, rest) = pinpoints.as_chunks::<2>();
    if !rest.is_empty() || !(1..=MAX_RESOLUTIONS).contains(&pairs.len()) {
        let n = pinpoints.len();
        return Err(broken(
            file,
            format!("key `{PINPOINTS}` must be 1 to {MAX_RESOLUTIONS} pairs, got {n} numbers"),
        ));
    }
    let resolution = |pair: &[i32; 2]| {
        let tiles = |&length: &i32| {
            let length = u32::try_from(length).ok()?;
            let n_tiles = length / sizes.image;
            (n_tiles > 0 && length.is_multiple_of(sizes.image)).then_some(n_tiles)
        };
        let n_tiles = tiles(&pair[0])?.checked_mul(tiles(&pair[1])?)?;
        let most = MAX_TILES.min(MAX_PATCHES / sizes.grid.pow(2));
        (n_tiles <= most).then_some(pair.map(i32::unsigned_abs))
    };
    let resolution = |pair| {
        resolution(pair).ok_or_else(|| {
            let size = sizes.image;
            broken(
                file,
                format!(
                    "key `{PINPOINTS}` has {pair:?}, expected multiples of `clip.vision.image_size` {size} that make up \
                     {MAX_TILES} tiles and {MAX_PATCHES} patches at most"
                ),
            )
        })
    };
    pairs.iter().map(resolution).collect()
}

/// A file without the key is of a checkpoint in transformers' words, which has a newline and no such setting, or of
/// one that LLaVA takes to be `flat`.
fn merge(file: &Gguf) -> Result<Merge> {
    let newline = NEWLINES.into_iter().find_map(|name| file.tensor(name));
    match (file.str(MERGE_TYPE), newline) {
        (None | Some("spatial_unpad"), Some(newline)) => {
            let row = file.read_f32(newline)?;
            match row.iter().all(|value| value.is_finite()) {
                true => Ok(Merge::SpatialUnpad(row)),
                false => Err(broken(
                    file,
                    format!("`{}` holds what is no number", newline.name),
                )),
            }
        }
        (Some("spatial_unpad"), None) => Err(broken(
            file,
            format!(
                "key `{MERGE_TYPE}` is `spatial_unpad`, and there is no tensor `{}`",
                NEWLINES[0]
            ),
        )),
        (Some("spatial"), _) => Ok(Merge::Spatial),
        (None | Some("flat"), _) => Ok(Merge::Flat),
        (Some(other), _) => Err(unsupported(
            file,
            &format!(
                "key `{MERGE_TYPE}` is `{other}`, and only `spatial_unpad`, `spatial` and `flat` are known"
            ),
        )),
    }
}

fn unsupported(file: &Gguf, why: &str) -> Error {
    Error::invalid(format!(
        "`{}` is the projector of a LLaVA-1.6 (LLaVA-NeXT) model that cannot be run as it was trained: {why}",
        file.path().display()
    ))
    .with_hint("convert model and projector from the checkpoint")
}
