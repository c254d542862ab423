//! What the file of Idefics3's and SmolVLM's vision encoder (SigLIP) and projector must hold.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_siglip::build` in
//! `tools/mtmd/models/siglip.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Edits, Gguf};

use super::blocks::BLOCK_COUNT;
use super::header::{
    HAS_PROJECTOR, LONGEST_EDGE, MAX_GRID, PictureViews, SCALE_FACTOR, VisionShape,
    check_keys_of_squares, u32_or,
};
use super::tensors::{Sizes, Unchecked};
use crate::Result;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, Role, broken};
use crate::picture::{Cutting, ImagePrep};
use crate::prompt::ImageAttention;

/// transformers' own limit (`MAX_IMAGE_SIZE` in `image_processing_idefics3.py`).
const MAX_LONGEST_EDGE: u32 = 4096;
/// The most tiles along a side: 4 in published models, whose vocabularies have tokens for 6.
const MAX_TILES: u32 = 8;
/// A side of the picture by a tile's, in all published checkpoints; the first files do not say it.
const PUBLISHED_TILES: u32 = 4;

const OWN_KEYS: &[Key] = &[
    // SigLIP's GELU; without it, llama.cpp would compute CLIP's.
    Key::required("clip.use_gelu", Kind::True),
    // llama.cpp ends the process at 1.
    Key::required(SCALE_FACTOR, Kind::Count(2, MAX_GRID)),
    Key::optional(LONGEST_EDGE, Kind::Count(1, MAX_LONGEST_EDGE)),
    Key::optional(HAS_PROJECTOR, Kind::False),
];

pub(super) const IMAGE_PREPS: &[ImagePrep] = &[ImagePrep::Tiles];

/// Checks such a file, for a language model of this width.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<VisionShape> {
    check_keys_of_squares(file, OWN_KEYS)?;
    // SmolVLM's larger ones have 27 patches of 14 in 384 pixels.
    let sizes = Sizes::read_with_rest(file)?;
    let scale_factor = file.require_u32(SCALE_FACTOR)?;
    let grid = sizes.merged_grid(file, scale_factor, "laid side by side")?;
    let longest_edge = u32_or(file, LONGEST_EDGE, PUBLISHED_TILES * sizes.image)?;
    if longest_edge.div_ceil(sizes.image) > MAX_TILES {
        let image = sizes.image;
        let what = format!(
            "`{LONGEST_EDGE}` {longest_edge} cuts a side into more than {MAX_TILES} tiles of {image}"
        );
        return Err(broken(file, what));
    }
    let [width, patch] = [sizes.width, sizes.patch].map(u64::from);
    let mut unchecked = Unchecked::of(file);
    unchecked.siglip(&sizes, file.require_u32(BLOCK_COUNT)?)?;
    unchecked.check_rows("mm.model.fc.weight", 1, d_model)?;
    let merged = width * u64::from(scale_factor).pow(2);
    unchecked.one("mm.model.fc.weight", Role::Matrix, &[merged, d_model])?;
    unchecked.finish("an Idefics3 projector")?;
    // It gets tiles one by one, and must not cut them again.
    let mut edits = Edits::default();
    edits.set(LONGEST_EDGE, sizes.image);
    Ok(VisionShape {
        projector: ProjectorType::Idefics3,
        views: PictureViews::Cut {
            image_size: sizes.image,
            grid,
            covered: (u64::from(sizes.grid) * patch) as f32 / sizes.image as f32,
            cutting: Cutting::Edge(longest_edge),
        },
        attention: ImageAttention::Causal,
        image_preps: IMAGE_PREPS,
        edits,
    })
}
