//! How many blocks of a vision encoder stand in front of the projector.

use gguf_tools::gguf::{Array, Gguf, Value};

use crate::Result;
use crate::model::files::rules::broken;

pub(super) const BLOCK_COUNT: &str = "clip.vision.block_count";
pub(super) const FEATURE_LAYER: &str = "clip.vision.feature_layer";

/// Width and depth of OpenAI's and LAION's CLIP encoders: B, L, H, g, bigG.
const CLIPS: [(u32, u32); 5] = [(768, 12), (1024, 24), (1280, 32), (1408, 40), (1664, 48)];

/// The encoder's blocks, and how many of them stand in front of the projector.
pub(super) struct Blocks {
    /// Whose tensors are in the file.
    pub(super) n_held: u32,
    /// That the checkpoint runs.
    pub(super) n_run: u32,
    /// That llama.cpp runs of the file as it is (`clip_graph_llava::build` in `llava.cpp`).
    pub(super) n_run_unasked: u32,
    /// Whether `n_run` is not in the file.
    is_worked_out: bool,
}

impl Blocks {
    /// Reads them from a file whose keys have passed.
    pub(super) fn read(file: &Gguf, width: u32) -> Result<Self> {
        let n_blocks = file.require_u32(BLOCK_COUNT)?;
        let Some(Value::Array(Array::I32(layers))) = file.get(FEATURE_LAYER) else {
            return Ok(Self::worked_out(n_blocks, n_held(file), width));
        };
        // llama.cpp counts from the first block, takes what is negative for nothing, and puts the rows
        // behind several blocks side by side.
        let only = match layers[..] {
            [layer] => u32::try_from(layer).ok(),
            _ => None,
        };
        match only.filter(|only| (1..=n_blocks).contains(only)) {
            Some(n_run) => Ok(Self {
                n_held: n_blocks,
                n_run,
                n_run_unasked: n_run,
                is_worked_out: false,
            }),
            None => Err(broken(
                file,
                format!(
                    "key `{FEATURE_LAYER}` must be one of the {n_blocks} blocks, counted from 1, got {:?}",
                    &layers[..layers.len().min(8)]
                ),
            )),
        }
    }

    /// LLaVA reads after the last block but one of its checkpoint (`vision_feature_layer` is -2). The
    /// converters that wrote no feature layer left the last one out, or did not count it, so all that
    /// they counted are run; but a file that counts all blocks of a known CLIP has one too many.
    fn worked_out(n_blocks: u32, n_held: u32, width: u32) -> Self {
        let is_whole_clip = n_held == n_blocks && CLIPS.contains(&(width, n_blocks));
        Self {
            n_held: n_held.clamp(n_blocks, n_blocks + 1),
            n_run: n_blocks - u32::from(is_whole_clip),
            n_run_unasked: n_blocks - 1,
            is_worked_out: true,
        }
    }

    /// What was worked out, for the user.
    pub(super) fn decision(&self) -> Option<String> {
        let Self { n_held, n_run, .. } = self;
        self.is_worked_out.then(|| {
            format!(
                "there is no key `{FEATURE_LAYER}`: {n_run} of its {n_held} blocks are run, as in LLaVA's checkpoint"
            )
        })
    }
}

/// The number of blocks that the file has tensors of.
fn n_held(file: &Gguf) -> u32 {
    let block_idx = |name: &str| -> Option<u32> {
        let (block_idx, _) = name.strip_prefix("v.blk.")?.split_once('.')?;
        block_idx.parse().ok()
    };
    let names = file.tensors().iter().map(|tensor| &tensor.name);
    let last = names.filter_map(|name| block_idx(name)).max();
    last.map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    #[test]
    fn without_a_feature_layer_all_but_the_checkpoints_last_block_are_run() {
        let check = |width, n_blocks, n_held, expected| {
            let blocks = Blocks::worked_out(n_blocks, n_held, width);
            assert_eq!(
                (blocks.n_run, blocks.n_held),
                expected,
                "{n_blocks} of {width}"
            );
        };
        // CLIP-L without its last block, with it and not counting it, and whole.
        check(1024, 23, 23, (23, 23));
        check(1024, 23, 24, (23, 24));
        check(1024, 24, 24, (23, 24));
        // Others: B and H, and one of another size.
        check(768, 11, 11, (11, 11));
        check(768, 12, 12, (11, 12));
        check(1280, 31, 31, (31, 31));
        check(64, 24, 24, (24, 24));
        check(64, 3, 9, (3, 4)); // the others are refused by name
    }
}
