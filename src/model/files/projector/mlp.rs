//! What the file of LLaVA's vision encoder (CLIP) and projector must hold, and what llama.cpp has to read in it
//! otherwise than it stands there.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_llava::build` in
//! `tools/mtmd/models/llava.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Edits, Gguf};

use super::blocks::{Blocks, FEATURE_LAYER};
use super::header::{
    MERGE_TYPE, PINPOINTS, PictureViews, TYPE, VisionShape, check_keys_of_squares,
};
use super::say_once;
use super::tensors::{self, Sizes};
use super::tiles;
use crate::Result;
use crate::llama::ProjectorType;
use crate::picture::ImagePrep;
use crate::prompt::ImageAttention;

/// Checks such a file, for a language model of this width.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<VisionShape> {
    let mut edits = Edits::default();
    if file.get(TYPE).is_none() {
        edits.set(TYPE, "mlp"); // the first files, of 2023
    }
    check_keys_of_squares(file, &[])?;
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
    let tiling = tiles::read(file, &sizes)?;
    if file.get(PINPOINTS).is_some() {
        edits.remove(PINPOINTS); // it gets tiles one by one, and must not cut them again
    }
    if let Some(tiling) = tiling.as_ref().filter(|_| file.get(MERGE_TYPE).is_none()) {
        decisions.push(format!(
            "there is no key `{MERGE_TYPE}`: tiles are put together as `{}`",
            tiling.merge.name()
        ));
    }
    say_once(file.path(), &decisions);
    Ok(VisionShape {
        projector: ProjectorType::Mlp,
        views: PictureViews::Squares {
            image_size: sizes.image,
            grid: sizes.grid as usize,
            tiling,
        },
        attention: ImageAttention::Causal,
        image_preps: image_preps(file),
        edits,
    })
}

/// The ways in which pictures may be prepared for the model of a file.
pub(super) fn image_preps(file: &Gguf) -> &'static [ImagePrep] {
    match tiles::sign(file) {
        Some(_) => &[ImagePrep::Tiles],
        None => &[ImagePrep::Crop, ImagePrep::Pad],
    }
}
