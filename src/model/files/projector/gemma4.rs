//! What the file of Gemma 4's vision encoder and projector must hold.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_gemma4v::build` in
//! `tools/mtmd/models/gemma4v.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Gguf, Value};

use super::blocks::BLOCK_COUNT;
use super::header::{
    COMMON_KEYS, FFN_WIDTH, HAS_PROJECTOR, HEAD_COUNT, IMAGE_SIZE, MAX_FFN_WIDTH, MAX_I32,
    MAX_IMAGE_SIZE, MAX_PIXELS, MIN_PIXELS, PATCH_SIZE, PictureViews, SCALE_FACTOR, VisionShape,
    WIDTH, WINDOW_PATTERN, check_turned_heads, u32_or,
};
use super::other::{is_of_sound, without_sound};
use super::say_once;
use super::tensors::Unchecked;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, Role, broken};
use crate::picture::{ImagePrep, Resizing, Sides};
use crate::prompt::ImageAttention;
use crate::{Error, ErrorKind, Result};

pub(super) const IMAGE_PREPS: &[ImagePrep] = &[ImagePrep::Resize];

/// 16 is in use.
const MAX_PATCH_SIZE: u32 = 32;
/// Patches a side that are averaged: 3 in use, which llama.cpp takes where the key is missing. It counts pixels in 32 bits.
const DEFAULT_POOL: u32 = 3;
const MAX_POOL: u32 = 8;
/// Image rows of a picture, at most, as transformers takes them (`_SUPPORTED_SOFT_TOKENS` in
/// `image_processing_gemma4.py`), and its default, since llama.cpp's converter leaves them out.
const MAX_ROWS: [u32; 5] = [70, 140, 280, 560, 1120];
const PUBLISHED_ROWS: u32 = 280;

const GELU: &str = "clip.use_gelu";
const POSITIONS: &str = "v.position_embd.weight";

const KEYS: &[Key] = &[
    Key::optional("clip.has_audio_encoder", Kind::Flag),
    Key::optional("clip.has_gen_audio_encoder", Kind::Flag),
    Key::optional(HAS_PROJECTOR, Kind::False),
    Key::optional(GELU, Kind::Flag),
    Key::optional("clip.use_silu", Kind::False),
    Key::required(IMAGE_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(PATCH_SIZE, Kind::Count(1, MAX_PATCH_SIZE)),
    Key::required(FFN_WIDTH, Kind::Count(1, MAX_FFN_WIDTH)),
    Key::optional(SCALE_FACTOR, Kind::Count(1, MAX_POOL)),
    Key::optional(MIN_PIXELS, Kind::Count(0, MAX_I32)),
    Key::optional(MAX_PIXELS, Kind::Count(1, MAX_I32)),
    // llama.cpp would part the picture.
    Key::optional(WINDOW_PATTERN, Kind::Count(0, 0)),
];

/// Checks such a file, for a language model's file of this width.
pub(super) fn check(file: &Gguf, model: &Gguf, d_model: u64) -> Result<VisionShape> {
    for key in COMMON_KEYS.iter().chain(KEYS) {
        key.check(file, "clip")?;
    }
    let sizes = Sizes::read(file)?;
    let n_heads = check_turned_heads(file)?;
    check_tensors(file, &sizes, d_model)?;
    if file.get(GELU) != Some(&Value::Bool(true)) {
        let decision = format!(
            "without `{GELU}`, llama.cpp computes another GELU: its blocks are computed with the tanh GELU, as all Gemma 4 are"
        );
        say_once(file.path(), &[decision]);
    }
    Ok(VisionShape {
        projector: ProjectorType::Gemma4,
        views: PictureViews::Whole(Resizing {
            patch_size: sizes.patch,
            merge: sizes.pool,
            n_heads,
            sides: Sides::Filling {
                max_rows: sizes.max_rows,
            },
        }),
        attention: attention(file, model)?,
        image_preps: IMAGE_PREPS,
        edits: without_sound(file),
    })
}

/// What image rows see. No key says it (`use_bidirectional_attention` of transformers): in published models, those with
/// per-layer embeddings are causal, and image rows have the padding token's, which llama.cpp takes to be the first.
fn attention(file: &Gguf, model: &Gguf) -> Result<ImageAttention> {
    const PADDING: &str = "tokenizer.ggml.padding_token_id";
    let number = |key| match model.get(key) {
        Some(&Value::U32(n)) => n,
        _ => 0,
    };
    if number("gemma4.embedding_length_per_layer_input") == 0 {
        return Ok(ImageAttention::Bidirectional);
    }
    match number(PADDING) {
        0 => Ok(ImageAttention::Causal),
        id => {
            let what = format!(
                "`{PADDING}` is {id} in the model for `{}`: image rows would have the per-layer embedding of that token, and llama.cpp gives them that of token 0",
                file.path().display()
            );
            let error = Error::new(ErrorKind::Unsupported, what);
            Err(error.with_hint("use a model whose padding is token 0, as in published ones"))
        }
    }
}

/// Sizes that pictures are scaled by.
struct Sizes {
    patch: u32,
    pool: u32,
    max_rows: u32,
}

impl Sizes {
    fn read(file: &Gguf) -> Result<Self> {
        let patch = file.require_u32(PATCH_SIZE)?;
        let pool = u32_or(file, SCALE_FACTOR, DEFAULT_POOL)?;
        let row_pixels = (patch * pool).pow(2);
        let max_rows = u32_or(file, MAX_PIXELS, PUBLISHED_ROWS * row_pixels)? / row_pixels;
        if !MAX_ROWS.contains(&max_rows) {
            let what = format!(
                "key `{MAX_PIXELS}` must be {row_pixels} pixels times one of {MAX_ROWS:?} image rows, got {max_rows} rows"
            );
            return Err(broken(file, what));
        }
        Ok(Self {
            patch,
            pool,
            max_rows,
        })
    }
}

fn check_tensors(file: &Gguf, sizes: &Sizes, d_model: u64) -> Result<()> {
    let [width, n_heads, d_ffn] = [WIDTH, HEAD_COUNT, FFN_WIDTH].map(|key| file.require_u32(key));
    let [width, n_heads, d_ffn] = [width?, n_heads?, d_ffn?].map(u64::from);
    let patch = u64::from(sizes.patch);
    let mut unchecked = Unchecked::of(file);
    let kernel = [patch, patch, 3, width];
    unchecked.one("v.patch_embd.weight", Role::Kernel, &kernel)?;
    let n_positions = unchecked.dim(POSITIONS, 1)?;
    let longest = u64::from(sizes.max_rows * sizes.pool);
    if n_positions < longest {
        let what = format!(
            "tensor `{POSITIONS}` is for {n_positions} patches a side, and a picture may have {longest}"
        );
        return Err(broken(file, what));
    }
    unchecked.one(POSITIONS, Role::Matrix, &[width, n_positions, 2])?;
    for block_idx in 0..file.require_u32(BLOCK_COUNT)? {
        let name = |part: &str| format!("v.blk.{block_idx}.{part}");
        for (part, n) in [
            ("ln1", width),
            ("attn_post_norm", width),
            ("ln2", width),
            ("ffn_post_norm", width),
            ("attn_q_norm", width / n_heads),
            ("attn_k_norm", width / n_heads),
        ] {
            unchecked.one(&name(&format!("{part}.weight")), Role::Vector, &[n])?;
        }
        for (part, n_in, n_out) in [
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_out", width, width),
            ("ffn_gate", width, d_ffn),
            ("ffn_up", width, d_ffn),
            ("ffn_down", d_ffn, width),
        ] {
            unchecked.clipped(&name(part), n_in, n_out)?;
        }
    }
    unchecked.check_rows("mm.input_projection.weight", 1, d_model)?;
    unchecked.clipped("mm.input_projection", width, d_model)?;
    // llama.cpp ignores one without the other.
    if ["v.std_bias", "v.std_scale"]
        .iter()
        .any(|name| file.tensor(name).is_some())
    {
        unchecked.one("v.std_bias", Role::Vector, &[width])?;
        unchecked.one("v.std_scale", Role::Vector, &[width])?;
    }
    for tensor in file.tensors().iter().filter(|tensor| is_of_sound(tensor)) {
        unchecked.leave_out(&tensor.name);
    }
    unchecked.finish("a Gemma 4 projector")
}

impl Unchecked<'_> {
    /// A matrix, and the limits of what it takes and gives, where there are some.
    fn clipped(&mut self, name: &str, n_in: u64, n_out: u64) -> Result<()> {
        self.one(&format!("{name}.weight"), Role::Matrix, &[n_in, n_out])?;
        for limit in ["input_min", "input_max", "output_min", "output_max"] {
            let name = format!("{name}.{limit}");
            if self.has(&name) {
                self.one(&name, Role::Vector, &[1])?;
            }
        }
        Ok(())
    }
}
