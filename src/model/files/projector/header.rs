//! What the headers of vision encoders with projectors hold, of whatever type.

use gguf_tools::gguf::{Edits, Gguf, Value};

use super::blocks::{BLOCK_COUNT, FEATURE_LAYER};
use super::tensors::Sizes;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, broken};
use crate::picture::{Cutting, ImagePrep, Resizing, Tiling};
use crate::prompt::ImageAttention;
use crate::{Error, Result};

/// The shape of a vision encoder's input and output.
#[derive(Clone, Debug)]
pub(crate) struct VisionShape {
    /// What stands between the encoder and the language model.
    pub(crate) projector: ProjectorType,
    /// What the encoder takes of a picture.
    pub(crate) views: PictureViews,
    /// What image rows see of one another in the language model.
    pub(crate) attention: ImageAttention,
    /// The ways in which pictures may be prepared, the usual one first.
    pub(crate) image_preps: &'static [ImagePrep],
    /// What llama.cpp has to read in the file otherwise than it stands there.
    pub(crate) edits: Edits,
}

/// What an encoder takes of a picture.
#[derive(Clone, Debug)]
pub(crate) enum PictureViews {
    /// Squares.
    Squares {
        /// Pixels a side.
        image_size: u32,
        /// Image rows a side, of one view.
        grid: usize,
        /// How pictures are cut into tiles, if they are.
        tiling: Option<Tiling>,
    },
    /// Squares with text between them, and an overview.
    Cut {
        /// Pixels a side of each.
        image_size: u32,
        /// Image rows a side of each.
        grid: usize,
        /// The share of a side that whole patches cover.
        covered: f32,
        /// How pictures are cut.
        cutting: Cutting,
    },
    /// The whole picture, with sides of its own.
    Whole(Resizing),
}

/// Pixels a side: encoders of LLaVA models take 224 to 448.
pub(super) const MAX_IMAGE_SIZE: u32 = 1024;
/// Patches a side: 16 to 32 are in use. Attention's work grows with their fourth power.
pub(super) const MAX_GRID: u32 = 64;
/// Scores of one block's attention, all heads together: 2 GiB in f32.
pub(crate) const MAX_ATTENTION_SCORES: u64 = 1 << 29;
/// The widest encoder in use has 3200, and 12800 in its feed-forward parts.
pub(super) const MAX_WIDTH: u32 = 1 << 14;
pub(super) const MAX_FFN_WIDTH: u32 = 1 << 16;
/// The deepest encoder in use has 48; llama.cpp aborts where its graph has no room for more nodes.
pub(super) const MAX_BLOCKS: u32 = 128;
pub(super) const MAX_I32: u32 = i32::MAX as u32;

pub(super) const TYPE: &str = "clip.projector_type";
pub(super) const HAS_PROJECTOR: &str = "clip.has_llava_projector";
pub(super) const IMAGE_SIZE: &str = "clip.vision.image_size";
pub(super) const PATCH_SIZE: &str = "clip.vision.patch_size";
pub(super) const WIDTH: &str = "clip.vision.embedding_length";
pub(super) const FFN_WIDTH: &str = "clip.vision.feed_forward_length";
pub(super) const PROJECTION: &str = "clip.vision.projection_dim";
pub(super) const HEAD_COUNT: &str = "clip.vision.attention.head_count";
/// Patches a side that become one image row.
pub(super) const SCALE_FACTOR: &str = "clip.vision.projector.scale_factor";
/// The longest side that pictures are scaled to before they are cut.
pub(super) const LONGEST_EDGE: &str = "clip.vision.preproc_image_size";
/// The fewest pixels of a picture and the most, where pictures have sides of their own.
pub(super) const MIN_PIXELS: &str = "clip.vision.image_min_pixels";
pub(super) const MAX_PIXELS: &str = "clip.vision.image_max_pixels";
pub(super) const WINDOW_PATTERN: &str = "clip.vision.n_wa_pattern";
pub(super) const PINPOINTS: &str = "clip.vision.image_grid_pinpoints";
pub(super) const MERGE_TYPE: &str = "clip.vision.mm_patch_merge_type";

/// The keys that are read of vision encoders alike.
pub(super) const COMMON_KEYS: &[Key] = &[
    Key::optional("general.name", Kind::Text),
    Key::optional("general.description", Kind::Text),
    Key::optional(TYPE, Kind::Text),
    Key::optional("clip.vision.projector_type", Kind::Text),
    Key::required("clip.has_vision_encoder", Kind::True),
    Key::optional("clip.minicpmv_version", Kind::Int),
    Key::optional("clip.minicpmv_query_num", Kind::Count(0, MAX_I32)),
    Key::required(WIDTH, Kind::Count(1, MAX_WIDTH)),
    Key::required(BLOCK_COUNT, Kind::Count(1, MAX_BLOCKS)),
    Key::optional(FEATURE_LAYER, Kind::Ints),
    Key::required(PROJECTION, Kind::Count(0, MAX_I32)),
    Key::required(HEAD_COUNT, Kind::Count(1, MAX_WIDTH)),
    Key::required(
        "clip.vision.attention.layer_norm_epsilon",
        Kind::Positive(1.0),
    ),
    Key::required("clip.vision.image_mean", Kind::Three),
    Key::required("clip.vision.image_std", Kind::ThreePositive),
    Key::optional(PINPOINTS, Kind::Ints),
    Key::optional(MERGE_TYPE, Kind::Text),
];

/// Those of an encoder of squares besides.
const KEYS_OF_SQUARES: &[Key] = &[
    Key::optional(HAS_PROJECTOR, Kind::Flag),
    Key::optional("clip.has_audio_encoder", Kind::False),
    Key::optional("clip.has_gen_audio_encoder", Kind::False),
    Key::optional("clip.use_gelu", Kind::Flag),
    Key::optional("clip.use_silu", Kind::Flag),
    Key::required(IMAGE_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(PATCH_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(FFN_WIDTH, Kind::Count(1, MAX_FFN_WIDTH)),
];

/// Checks the keys of an encoder of squares, and those that a family has of its own.
pub(super) fn check_keys_of_squares(file: &Gguf, own: &[Key]) -> Result<()> {
    let mut keys = COMMON_KEYS.iter().chain(KEYS_OF_SQUARES).chain(own);
    keys.try_for_each(|key| key.check(file, "clip"))
}

/// The number of a key that has passed, or `default` where it is missing.
pub(super) fn u32_or(file: &Gguf, key: &str, default: u32) -> Result<u32> {
    match file.get(key) {
        Some(_) => file.require_u32(key),
        None => Ok(default),
    }
}

/// Checks the keys that follow from the width and the number of heads, where they are there.
pub(super) fn check_head_keys(file: &Gguf, width: u32, n_heads: u32) -> Result<()> {
    for (name, expected) in [
        ("clip.vision.attention.head_count_kv", n_heads),
        ("clip.vision.attention.head_dim", width / n_heads),
    ] {
        Key::optional(name, Kind::Count(expected, expected)).check(file, "clip")?;
    }
    Ok(())
}

/// The number of heads, which rotary positions in two directions part into four.
pub(super) fn check_turned_heads(file: &Gguf) -> Result<u32> {
    let [width, n_heads] = [file.require_u32(WIDTH)?, file.require_u32(HEAD_COUNT)?];
    if !width.is_multiple_of(4 * n_heads) {
        let what = format!(
            "it asks for {n_heads} attention heads (`{HEAD_COUNT}`) of a width of {width}, whose parts must be multiples of 4"
        );
        return Err(broken(file, what));
    }
    check_head_keys(file, width, n_heads)?;
    Ok(n_heads)
}

impl Sizes {
    /// Reads them from a header whose keys have passed.
    pub(super) fn read(file: &Gguf) -> Result<Self> {
        let sizes = Self::read_with_rest(file)?;
        match sizes.grid * sizes.patch == sizes.image {
            true => Ok(sizes),
            false => Err(sizes.no_grid(file)),
        }
    }

    /// Image rows a side, where `scale_factor` patches a side become one of them; `how` says by what.
    pub(super) fn merged_grid(&self, file: &Gguf, scale_factor: u32, how: &str) -> Result<usize> {
        let grid = self.grid;
        if grid.is_multiple_of(scale_factor) {
            return Ok((grid / scale_factor) as usize);
        }
        let what = format!("{grid} patches a side cannot be {how} by {scale_factor}");
        Err(broken(file, what))
    }

    fn no_grid(&self, file: &Gguf) -> Error {
        let [image, patch] = [self.image, self.patch];
        let what =
            format!("`{IMAGE_SIZE}` {image} must be 1 to {MAX_GRID} times `{PATCH_SIZE}` {patch}");
        broken(file, what)
    }

    /// Reads them where whole patches need not cover all of a picture.
    pub(super) fn read_with_rest(file: &Gguf) -> Result<Self> {
        let [image, patch] = [file.require_u32(IMAGE_SIZE)?, file.require_u32(PATCH_SIZE)?];
        let [width, d_ffn] = [file.require_u32(WIDTH)?, file.require_u32(FFN_WIDTH)?];
        let n_heads = file.require_u32(HEAD_COUNT)?;
        let grid = image / patch;
        let sizes = Self {
            image,
            patch,
            grid,
            width,
            d_ffn,
        };
        if !(1..=MAX_GRID).contains(&grid) {
            return Err(sizes.no_grid(file));
        }
        let n_scores = (u64::from(grid).pow(2) + 1).pow(2) * u64::from(n_heads);
        if !width.is_multiple_of(n_heads) || n_scores > MAX_ATTENTION_SCORES {
            return Err(broken(
                file,
                format!(
                    "it asks for {n_heads} attention heads (`{HEAD_COUNT}`) of a width of {width}, over {grid} × {grid} patches"
                ),
            ));
        }
        check_head_keys(file, width, n_heads)?;
        if width == d_ffn {
            return Err(broken(
                file,
                format!(
                    "`{FFN_WIDTH}` is `{WIDTH}`, {width}: llama.cpp would take `ffn_up` for `ffn_down`"
                ),
            ));
        }
        let is_set = |key| file.get(key) == Some(&Value::Bool(true));
        if is_set("clip.use_gelu") && is_set("clip.use_silu") {
            return Err(broken(
                file,
                "`clip.use_gelu` and `clip.use_silu` cannot both be true",
            ));
        }
        Ok(sizes)
    }
}
