//! What the file of Gemma 3's vision encoder (SigLIP) and projector must hold.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_siglip::build` in
//! `tools/mtmd/models/siglip.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Edits, Gguf};

use super::blocks::BLOCK_COUNT;
use super::header::{
    HAS_PROJECTOR, MAX_GRID, PictureViews, SCALE_FACTOR, VisionShape, check_keys_of_squares, u32_or,
};
use super::tensors::{Sizes, Unchecked};
use crate::Result;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, Role};
use crate::picture::ImagePrep;
use crate::prompt::ImageAttention;

/// What llama.cpp takes where the key is missing.
const DEFAULT_SCALE_FACTOR: u32 = 4;

const OWN_KEYS: &[Key] = &[
    // SigLIP's GELU; without it, llama.cpp would compute CLIP's.
    Key::required("clip.use_gelu", Kind::True),
    Key::optional(SCALE_FACTOR, Kind::Count(1, MAX_GRID)),
    Key::optional(HAS_PROJECTOR, Kind::False),
];

pub(super) const IMAGE_PREPS: &[ImagePrep] = &[ImagePrep::Stretch];

/// Checks such a file, for a language model of this width.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<VisionShape> {
    check_keys_of_squares(file, OWN_KEYS)?;
    let sizes = Sizes::read(file)?;
    let scale_factor = u32_or(file, SCALE_FACTOR, DEFAULT_SCALE_FACTOR)?;
    let grid = sizes.merged_grid(file, scale_factor, "averaged")?;
    let width = u64::from(sizes.width);
    let mut unchecked = Unchecked::of(file);
    unchecked.siglip(&sizes, file.require_u32(BLOCK_COUNT)?)?;
    unchecked.check_rows("mm.input_projection.weight", 0, d_model)?;
    // It is turned, which ggml does with floats only.
    unchecked.one(
        "mm.input_projection.weight",
        Role::Kernel,
        &[d_model, width],
    )?;
    unchecked.one("mm.soft_emb_norm.weight", Role::Vector, &[width])?;
    unchecked.finish("a Gemma 3 projector")?;
    Ok(VisionShape {
        projector: ProjectorType::Gemma3,
        views: PictureViews::Squares {
            image_size: sizes.image,
            grid,
            tiling: None,
        },
        attention: ImageAttention::Bidirectional,
        image_preps: IMAGE_PREPS,
        edits: Edits::default(),
    })
}
