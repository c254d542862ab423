//! What the file of a projector and its vision encoder must hold, and what llama.cpp has to read in
//! it otherwise than it stands there.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_llava::build` in
//! `tools/mtmd/models/llava.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

mod blocks;
mod tensors;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gguf_tools::gguf::{Edits, Gguf, Value};

use self::blocks::{BLOCK_COUNT, Blocks, FEATURE_LAYER};
use self::tensors::Sizes;
use super::rules::{Key, Kind, broken, wrong_role};
use crate::{Error, Result};

/// The shape of a vision encoder's input and output.
#[derive(Clone, Debug)]
pub(crate) struct VisionShape {
    /// Pixels a side.
    pub(crate) image_size: u32,
    /// Patches a side.
    pub(crate) grid: usize,
    /// What llama.cpp has to read in the file otherwise than it stands there.
    pub(crate) edits: Edits,
}

/// Pixels a side: encoders of LLaVA models take 224 to 448.
const MAX_IMAGE_SIZE: u32 = 1024;
/// Patches a side: 16 to 32 are in use. Attention's work grows with their fourth power.
const MAX_GRID: u32 = 64;
/// Scores of one block's attention, all heads together: 2 GiB in f32.
const MAX_ATTENTION_SCORES: u64 = 1 << 29;
/// The widest encoder in use has 3200, and 12800 in its feed-forward parts.
const MAX_WIDTH: u32 = 1 << 14;
const MAX_FFN_WIDTH: u32 = 1 << 16;
/// The deepest encoder in use has 48; llama.cpp aborts where its graph has no room for more nodes.
const MAX_BLOCKS: u32 = 128;
const MAX_I32: u32 = i32::MAX as u32;

const TYPE: &str = "clip.projector_type";
const HAS_PROJECTOR: &str = "clip.has_llava_projector";
const IMAGE_SIZE: &str = "clip.vision.image_size";
const PATCH_SIZE: &str = "clip.vision.patch_size";
const WIDTH: &str = "clip.vision.embedding_length";
const FFN_WIDTH: &str = "clip.vision.feed_forward_length";
const HEAD_COUNT: &str = "clip.vision.attention.head_count";
const PINPOINTS: &str = "clip.vision.image_grid_pinpoints";
const MERGE_TYPE: &str = "clip.vision.mm_patch_merge_type";

/// The keys that are read of a vision encoder with an `mlp` projector.
const KEYS: &[Key] = &[
    Key::optional("general.name", Kind::Text),
    Key::optional("general.description", Kind::Text),
    Key::optional(TYPE, Kind::Text),
    Key::optional("clip.vision.projector_type", Kind::Text),
    Key::optional(HAS_PROJECTOR, Kind::Flag),
    Key::required("clip.has_vision_encoder", Kind::True),
    Key::optional("clip.has_audio_encoder", Kind::False),
    Key::optional("clip.has_gen_audio_encoder", Kind::False),
    Key::optional("clip.use_gelu", Kind::Flag),
    Key::optional("clip.use_silu", Kind::Flag),
    Key::optional("clip.minicpmv_version", Kind::Int),
    Key::optional("clip.minicpmv_query_num", Kind::Count(0, MAX_I32)),
    Key::required(IMAGE_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(PATCH_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(WIDTH, Kind::Count(1, MAX_WIDTH)),
    Key::required(FFN_WIDTH, Kind::Count(1, MAX_FFN_WIDTH)),
    Key::required(BLOCK_COUNT, Kind::Count(1, MAX_BLOCKS)),
    Key::optional(FEATURE_LAYER, Kind::Ints),
    Key::required("clip.vision.projection_dim", Kind::Count(0, MAX_I32)),
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

/// Checks a projector's file, for a language model of this width.
pub(super) fn check(path: &Path, d_model: u64) -> Result<VisionShape> {
    let file = Gguf::open(path)?;
    let architecture = file.require_str("general.architecture")?;
    if architecture != "clip" {
        return Err(wrong_role(path, "a projector (mmproj)", architecture));
    }
    let mut edits = Edits::default();
    let has_projector = file.get(HAS_PROJECTOR) == Some(&Value::Bool(true));
    if file.get(TYPE).is_none() && has_projector {
        // The first files, of 2023: there was no other type.
        edits.set(TYPE, "mlp");
    } else {
        check_type(&file)?;
    }
    for key in KEYS {
        key.check(&file, architecture)?;
    }
    check_tiles(&file)?;
    let sizes = Sizes::read(&file)?;
    let blocks = Blocks::read(&file, sizes.width)?;
    tensors::check(&file, &sizes, blocks.n_held, d_model)?;

    let mut decisions = Vec::from_iter(blocks.decision());
    if blocks.n_run != blocks.n_run_unasked {
        edits.set(FEATURE_LAYER, vec![blocks.n_run as i32]);
    }
    for name in tensors::POST_NORM {
        if file.tensor(name).is_some() {
            edits.leave_out(name); // llama.cpp applies what it finds
            decisions.push(format!(
                "`{name}` is left out, since LLaVA reads in front of it"
            ));
        }
    }
    say_once(path, &decisions);
    Ok(VisionShape {
        image_size: sizes.image,
        grid: sizes.grid as usize,
        edits,
    })
}

fn check_type(file: &Gguf) -> Result<()> {
    let projector = file.require_str(TYPE)?;
    if projector == "mlp" {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the projector in `{}` is of type `{projector}`, and only `mlp` is supported",
        file.path().display()
    ))
    .with_hint("use the projector of a LLaVA model, made by `llava-sae-cpp convert`"))
}

/// Refuses models that see a picture in tiles (`anyres` in LLaVA's `llava/mm_utils.py`).
fn check_tiles(file: &Gguf) -> Result<()> {
    const ASPECT_RATIO: &str = "clip.vision.image_aspect_ratio";
    let starts_with = |key, start| match file.get(key) {
        Some(Value::String(text)) => text.starts_with(start),
        _ => false,
    };
    let newline = ["v.image_newline", "model.image_newline"]
        .into_iter()
        .find(|name| file.tensor(name).is_some());
    let sign = if file.get(PINPOINTS).is_some() {
        PINPOINTS
    } else if starts_with(MERGE_TYPE, "spatial") {
        MERGE_TYPE
    } else if starts_with(ASPECT_RATIO, "anyres") {
        ASPECT_RATIO
    } else if let Some(newline) = newline {
        newline
    } else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "`{}` is the projector of a LLaVA-1.6 (LLaVA-NeXT) model, as `{sign}` shows: such a model sees a picture in tiles, which is not supported yet",
        file.path().display()
    ))
    .with_hint("use a LLaVA-1.5 model"))
}

impl Sizes {
    /// Reads them from a header whose keys have passed.
    fn read(file: &Gguf) -> Result<Self> {
        let [image, patch] = [file.require_u32(IMAGE_SIZE)?, file.require_u32(PATCH_SIZE)?];
        let [width, d_ffn] = [file.require_u32(WIDTH)?, file.require_u32(FFN_WIDTH)?];
        let n_heads = file.require_u32(HEAD_COUNT)?;
        let grid = image / patch;
        if grid * patch != image || !(1..=MAX_GRID).contains(&grid) {
            return Err(broken(
                file,
                format!(
                    "`{IMAGE_SIZE}` {image} must be 1 to {MAX_GRID} times `{PATCH_SIZE}` {patch}"
                ),
            ));
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
        // Where these are there, they have to be what follows from the others.
        Key::optional(
            "clip.vision.attention.head_count_kv",
            Kind::Count(n_heads, n_heads),
        )
        .check(file, "")?;
        let d_head = width / n_heads;
        Key::optional(
            "clip.vision.attention.head_dim",
            Kind::Count(d_head, d_head),
        )
        .check(file, "")?;
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
        Ok(Self {
            image,
            patch,
            grid,
            width,
            d_ffn,
        })
    }
}

/// Logs what was decided about a file, once a process, since sessions side by side check it again.
fn say_once(path: &Path, decisions: &[String]) {
    static SAID: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    if decisions.is_empty() {
        return;
    }
    let mut said = SAID
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if said.get_or_insert_default().insert(path.to_owned()) {
        log::warn!("`{}`: {}", path.display(), decisions.join("; "));
    }
}
