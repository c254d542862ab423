//! What the files of Qwen2-VL's, Qwen2.5-VL's and Qwen3-VL's vision encoders and projectors must hold.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp`, `clip_graph_qwen2vl::build` in
//! `tools/mtmd/models/qwen2vl.cpp` and `clip_graph_qwen3vl::build` in `qwen3vl.cpp`, as llama-cpp-sys-2 0.1.161 carries
//! them.

use gguf_tools::gguf::{Gguf, Value};

use super::blocks::BLOCK_COUNT;
use super::header::{
    COMMON_KEYS, FFN_WIDTH, IMAGE_SIZE, MAX_BLOCKS, MAX_FFN_WIDTH, MAX_I32, MAX_PIXELS, MIN_PIXELS,
    PATCH_SIZE, PROJECTION, PictureViews, VisionShape, WIDTH, WINDOW_PATTERN, check_turned_heads,
};
use super::other::without_sound;
use super::tensors::Unchecked;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, Role, broken};
use crate::picture::{ImagePrep, Resizing, Sides};
use crate::prompt::ImageAttention;
use crate::{Error, Result};

pub(super) const IMAGE_PREPS: &[ImagePrep] = &[ImagePrep::Resize];

/// Patches a side that become one row; the graphs have it written into them.
const MERGE: u32 = 2;
/// 14 and 16 are in use.
const MAX_PATCH_SIZE: u32 = 64;
/// Image rows of a picture, at most: llama.cpp's own limit for these types (`clip.cpp`). Attention's work grows with
/// their square, and so does the mask of Qwen2.5-VL's windows, which takes 1 GiB here.
const MAX_ROWS: u64 = 4096;
/// Position embeddings a side: 48 are in use.
const MAX_POSITIONS: u32 = 256;

const KEYS: &[Key] = &[
    Key::optional("clip.has_audio_encoder", Kind::Flag),
    Key::optional("clip.has_gen_audio_encoder", Kind::Flag),
    Key::required(IMAGE_SIZE, Kind::Count(1, MAX_PATCH_SIZE * MAX_POSITIONS)),
    Key::required(PATCH_SIZE, Kind::Count(1, MAX_PATCH_SIZE)),
    // The first converters wrote 0, and the later ones the language model's width for Qwen2-VL; tensors say it.
    Key::required(FFN_WIDTH, Kind::Count(0, MAX_FFN_WIDTH)),
    Key::optional("clip.vision.spatial_merge_size", Kind::Count(MERGE, MERGE)),
    Key::optional(MIN_PIXELS, Kind::Count(1, MAX_I32)),
    Key::optional(MAX_PIXELS, Kind::Count(1, MAX_I32)),
];

/// The encoder's function in its blocks, without which llama.cpp would compute another.
const QUICK_GELU: &[Key] = &[
    Key::optional("clip.use_gelu", Kind::False),
    Key::optional("clip.use_silu", Kind::False),
    // llama.cpp would part the picture.
    Key::optional(WINDOW_PATTERN, Kind::Count(0, 0)),
];
const SILU: &[Key] = &[
    Key::optional("clip.use_gelu", Kind::False),
    Key::required("clip.use_silu", Kind::True),
    Key::required(WINDOW_PATTERN, Kind::Count(1, MAX_BLOCKS)),
    // llama.cpp has it written into it.
    Key::optional("clip.vision.window_size", Kind::Count(112, 112)),
];
const TANH_GELU: &[Key] = &[
    Key::required("clip.use_gelu", Kind::True),
    Key::optional("clip.use_silu", Kind::False),
    Key::optional(WINDOW_PATTERN, Kind::Count(0, 0)),
];

/// Checks such a file, for a language model of this width, `n_deepstack` of whose blocks take in image rows too.
pub(super) fn check(
    file: &Gguf,
    projector: ProjectorType,
    d_model: u64,
    n_deepstack: usize,
) -> Result<VisionShape> {
    let own_keys = match projector {
        ProjectorType::Qwen2Vl => QUICK_GELU,
        ProjectorType::Qwen25Vl => SILU,
        _ => TANH_GELU,
    };
    for key in COMMON_KEYS.iter().chain(KEYS).chain(own_keys) {
        key.check(file, "clip")?;
    }
    let resizing = resizing(file, projector, check_turned_heads(file)?)?;
    let edits = without_sound(file);
    check_tensors(file, projector, d_model, n_deepstack)?;
    Ok(VisionShape {
        projector,
        views: PictureViews::Whole(resizing),
        attention: ImageAttention::Causal,
        image_preps: IMAGE_PREPS,
        edits,
    })
}

/// How pictures are scaled. llama.cpp's converter leaves the limits out: without them, they are those of the
/// published checkpoints' `preprocessor_config.json`.
fn resizing(file: &Gguf, projector: ProjectorType, n_heads: u32) -> Result<Resizing> {
    let published = match projector {
        ProjectorType::Qwen3Vl => [65_536, 16_777_216],
        _ => [3_136, 12_845_056],
    };
    let number = |key, published| match file.get(key) {
        Some(&Value::U32(n)) => u64::from(n),
        _ => published,
    };
    let pixels = [
        number(MIN_PIXELS, published[0]),
        number(MAX_PIXELS, published[1]),
    ];
    let patch_size = file.require_u32(PATCH_SIZE)?;
    let most_pixels = MAX_ROWS * u64::from(MERGE * patch_size).pow(2);
    if pixels[0] > pixels[1].min(most_pixels) {
        let what = format!(
            "`{MIN_PIXELS}` {} is more than `{MAX_PIXELS}` {}, or than the {most_pixels} pixels that are encoded at most",
            pixels[0], pixels[1]
        );
        return Err(broken(file, what));
    }
    Ok(Resizing {
        patch_size,
        merge: MERGE,
        n_heads,
        sides: Sides::Near {
            pixels,
            most_pixels,
        },
    })
}

fn check_tensors(
    file: &Gguf,
    projector: ProjectorType,
    d_model: u64,
    n_deepstack: usize,
) -> Result<()> {
    let [width, patch] = [
        u64::from(file.require_u32(WIDTH)?),
        u64::from(file.require_u32(PATCH_SIZE)?),
    ];
    let merged = width * u64::from(MERGE).pow(2);
    let mut unchecked = Unchecked::of(file);
    unchecked.check_rows("mm.2.weight", 1, d_model)?;
    let kernel = [patch, patch, 3, width];
    unchecked.one("v.patch_embd.weight", Role::Kernel, &kernel)?;
    unchecked.one("v.patch_embd.weight.1", Role::Kernel, &kernel)?;
    for block_idx in 0..file.require_u32(BLOCK_COUNT)? {
        check_block(&mut unchecked, file, projector, width, block_idx)?;
    }
    match projector {
        ProjectorType::Qwen25Vl => unchecked.one("v.post_ln.weight", Role::Vector, &[width])?,
        _ => unchecked.norm("v.post_ln", width)?,
    }
    if projector == ProjectorType::Qwen3Vl {
        unchecked.one("v.patch_embd.bias", Role::Vector, &[width])?;
        check_positions(&mut unchecked, file, width)?;
        check_deepstack(&mut unchecked, file, merged, d_model, n_deepstack)?;
    }
    let n_hidden = unchecked.dim("mm.0.weight", 1)?;
    unchecked.linear("mm.0", merged, n_hidden)?;
    unchecked.linear("mm.2", n_hidden, d_model)?;
    // The graph with windows reads the width here.
    let projection = u64::from(file.require_u32(PROJECTION)?);
    if projector == ProjectorType::Qwen25Vl && projection != d_model {
        let what =
            format!("key `{PROJECTION}` must be the {d_model} of the rows, got {projection}");
        return Err(broken(file, what));
    }
    for tensor in file
        .tensors()
        .iter()
        .filter(|t| super::other::is_of_sound(t))
    {
        unchecked.leave_out(&tensor.name);
    }
    unchecked.finish("a projector of this type")
}

fn check_block(
    unchecked: &mut Unchecked,
    file: &Gguf,
    projector: ProjectorType,
    width: u64,
    block_idx: u32,
) -> Result<()> {
    let name = |part: &str| format!("v.blk.{block_idx}.{part}");
    match projector {
        ProjectorType::Qwen3Vl => unchecked.linear(&name("attn_qkv"), width, 3 * width)?,
        _ => {
            for part in ["attn_q", "attn_k", "attn_v"] {
                unchecked.linear(&name(part), width, width)?;
            }
        }
    }
    unchecked.linear(&name("attn_out"), width, width)?;
    for norm in ["ln1", "ln2"].map(name) {
        match projector {
            ProjectorType::Qwen25Vl => {
                unchecked.one(&format!("{norm}.weight"), Role::Vector, &[width])?;
            }
            _ => unchecked.norm(&norm, width)?,
        }
    }
    // The first files have the two names exchanged, which llama.cpp sees as it is seen here.
    let down = file.tensor(&name("ffn_down.weight"));
    let is_swapped = projector != ProjectorType::Qwen3Vl
        && down.is_some_and(|down| down.dims.first() == Some(&width));
    let [up, down] = match is_swapped {
        true => ["ffn_down", "ffn_up"].map(name),
        false => ["ffn_up", "ffn_down"].map(name),
    };
    let d_ffn = unchecked.dim(&format!("{up}.weight"), 1)?;
    if d_ffn == width && projector != ProjectorType::Qwen3Vl {
        let what = format!("`{up}` makes rows of {width}: llama.cpp would take it for `{down}`");
        return Err(broken(file, what));
    }
    unchecked.linear(&up, width, d_ffn)?;
    unchecked.linear(&down, d_ffn, width)?;
    if projector == ProjectorType::Qwen25Vl {
        unchecked.linear(&name("ffn_gate"), width, d_ffn)?;
    }
    Ok(())
}

/// The position embeddings of a square of patches, between which others are interpolated.
fn check_positions(unchecked: &mut Unchecked, file: &Gguf, width: u64) -> Result<()> {
    const NAME: &str = "v.position_embd.weight";
    let n_positions = unchecked.dim(NAME, 1)?;
    let side = n_positions.isqrt();
    if side * side != n_positions || side > u64::from(MAX_POSITIONS) {
        let what = format!(
            "tensor `{NAME}` must be of a square of up to {MAX_POSITIONS} patches a side, but has {n_positions}"
        );
        return Err(broken(file, what));
    }
    unchecked.one(NAME, Role::Vector, &[width, n_positions])
}

/// What makes the rows that the language model's first blocks take in (deepstack).
fn check_deepstack(
    unchecked: &mut Unchecked,
    file: &Gguf,
    merged: u64,
    d_model: u64,
    n_deepstack: usize,
) -> Result<()> {
    let mut n_found = 0;
    for block_idx in 0..file.require_u32(BLOCK_COUNT)? {
        let name = |part| format!("v.deepstack.{block_idx}.{part}");
        if file.tensor(&name("fc1.weight")).is_none() {
            continue;
        }
        n_found += 1;
        unchecked.norm(&name("norm"), merged)?;
        let n_hidden = unchecked.dim(&name("fc1.weight"), 1)?;
        unchecked.linear(&name("fc1"), merged, n_hidden)?;
        unchecked.linear(&name("fc2"), n_hidden, d_model)?;
    }
    if n_found == n_deepstack {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the projector makes rows for {n_found} blocks (deepstack), and the model takes them in {n_deepstack}: `{}` belongs to another model",
        file.path().display()
    ))
    .with_hint("convert model and projector from the same checkpoint"))
}
