//! What the file of InternVL's vision encoder (InternViT) and projector must hold.
//!
//! The tables mirror `clip_model_loader` in `tools/mtmd/clip.cpp` and `clip_graph_internvl::build` in
//! `tools/mtmd/models/internvl.cpp`, as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Edits, Gguf, Value};

use super::blocks::BLOCK_COUNT;
use super::header::{
    HAS_PROJECTOR, MAX_GRID, PictureViews, SCALE_FACTOR, VisionShape, WIDTH, check_keys_of_squares,
    u32_or,
};
use super::tensors::{Sizes, Unchecked};
use crate::Result;
use crate::llama::ProjectorType;
use crate::model::files::rules::{Key, Kind, Role, broken};
use crate::picture::{Cutting, ImagePrep};
use crate::prompt::ImageAttention;

/// Tiles of a picture: 12 at most in published checkpoints.
const MAX_TILES: u32 = 64;
const MIN_TILES_KEY: &str = "clip.vision.preproc_min_tiles";
const MAX_TILES_KEY: &str = "clip.vision.preproc_max_tiles";
/// What llama.cpp takes where the first files say nothing, which is what published checkpoints have.
const PUBLISHED_TILES: [u32; 2] = [1, 12];

const OWN_KEYS: &[Key] = &[
    // InternViT's GELU; without it, llama.cpp would compute CLIP's.
    Key::required("clip.use_gelu", Kind::True),
    Key::required(SCALE_FACTOR, Kind::Count(1, MAX_GRID)),
    Key::optional(MIN_TILES_KEY, Kind::Count(1, MAX_TILES)),
    Key::optional(MAX_TILES_KEY, Kind::Count(1, MAX_TILES)),
    Key::optional(HAS_PROJECTOR, Kind::False),
];

pub(super) const IMAGE_PREPS: &[ImagePrep] = &[ImagePrep::Tiles];

/// Whether a file is of the largest encoder, InternViT-6B, by which llama.cpp tells that norms are RMS norms. It was
/// not compared.
pub(super) fn is_largest(file: &Gguf) -> bool {
    file.get(WIDTH) == Some(&Value::U32(3200)) && file.get(BLOCK_COUNT) == Some(&Value::U32(45))
}

/// Checks such a file, for a language model of this width.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<VisionShape> {
    check_keys_of_squares(file, OWN_KEYS)?;
    let sizes = Sizes::read(file)?;
    let scale_factor = file.require_u32(SCALE_FACTOR)?;
    let grid = sizes.merged_grid(file, scale_factor, "laid side by side")?;
    let n_tiles = [
        u32_or(file, MIN_TILES_KEY, PUBLISHED_TILES[0])?,
        u32_or(file, MAX_TILES_KEY, PUBLISHED_TILES[1])?,
    ];
    if n_tiles[0] > n_tiles[1] {
        let [least, most] = n_tiles;
        let what = format!("`{MIN_TILES_KEY}` {least} is more than `{MAX_TILES_KEY}` {most}");
        return Err(broken(file, what));
    }
    check_tensors(file, &sizes, scale_factor, d_model)?;
    Ok(VisionShape {
        projector: ProjectorType::InternVl,
        views: PictureViews::Cut {
            image_size: sizes.image,
            grid,
            covered: 1.0,
            cutting: Cutting::Shape(n_tiles),
        },
        attention: ImageAttention::Causal,
        image_preps: IMAGE_PREPS,
        edits: Edits::default(),
    })
}

fn check_tensors(file: &Gguf, sizes: &Sizes, scale_factor: u32, d_model: u64) -> Result<()> {
    let [width, patch] = [sizes.width, sizes.patch].map(u64::from);
    let n_blocks = file.require_u32(BLOCK_COUNT)?;
    let mut unchecked = Unchecked::of(file);
    unchecked.check_rows("mm.model.mlp.3.weight", 1, d_model)?;
    let kernel = [patch, patch, 3, width];
    unchecked.one("v.patch_embd.weight", Role::Kernel, &kernel)?;
    unchecked.one("v.patch_embd.bias", Role::Vector, &[width])?;
    unchecked.one("v.class_embd", Role::Vector, &[width])?;
    let n_positions = u64::from(sizes.grid).pow(2) + 1;
    unchecked.one(
        "v.position_embd.weight",
        Role::Vector,
        &[width, n_positions],
    )?;
    unchecked.blocks(sizes, n_blocks)?;
    for block_idx in 0..n_blocks {
        for part in ["ls1", "ls2"] {
            let name = format!("v.blk.{block_idx}.{part}.weight");
            unchecked.one(&name, Role::Vector, &[width])?;
        }
    }
    let merged = width * u64::from(scale_factor).pow(2);
    unchecked.norm("mm.model.mlp.0", merged)?;
    let n_hidden = unchecked.dim("mm.model.mlp.1.weight", 1)?;
    unchecked.linear("mm.model.mlp.1", merged, n_hidden)?;
    unchecked.linear("mm.model.mlp.3", n_hidden, d_model)?;
    unchecked.finish("an InternVL projector")
}
