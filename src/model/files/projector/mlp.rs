//! What the file of LLaVA's vision encoder (CLIP) and projector must hold, and what llama.cpp has to read in it
//! otherwise than it stands there.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_llava::build` in
//! `tools/mtmd/models/llava.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Edits, Gguf, Value};

use super::blocks::{Blocks, FEATURE_LAYER};
use super::header::{KEYS, MERGE_TYPE, PINPOINTS, TYPE, VisionShape};
use super::say_once;
use super::tensors::{self, Sizes};
use crate::llama::ProjectorType;
use crate::{Error, Result};

/// Checks such a file, for a language model of this width.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<VisionShape> {
    let mut edits = Edits::default();
    if file.get(TYPE).is_none() {
        edits.set(TYPE, "mlp"); // the first files, of 2023
    }
    for key in KEYS {
        key.check(file, "clip")?;
    }
    check_tiles(file)?;
    let sizes = Sizes::read(file)?;
    let blocks = Blocks::read(file, sizes.width)?;
    tensors::check(file, &sizes, blocks.n_held, d_model)?;

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
    say_once(file.path(), &decisions);
    Ok(VisionShape {
        projector: ProjectorType::Mlp,
        image_size: sizes.image,
        grid: sizes.grid as usize,
        edits,
    })
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
