//! The windows of Gemma 3's and Gemma 4's blocks.

use super::super::checks::{MAX_SIZE, expect, in_range, positive};
use super::super::rope::RawRope;
use super::{RawText, TextConfig};

/// The window of Gemma 3's and Gemma 4's blocks.
#[derive(Debug)]
pub(crate) struct Window {
    /// In tokens.
    pub(crate) length: usize,
    /// Of the blocks that have it.
    pub(crate) rope_theta: f32,
    /// The blocks that have it.
    pub(crate) blocks: Vec<bool>, // [n_layers]
}

/// Of transformers' Gemma 3 and of llama.cpp's.
const DEFAULT_WINDOW_PATTERN: usize = 6;

/// Which blocks have a window, where every `pattern`th has none.
fn window_blocks(pattern: usize, n_layers: usize) -> Vec<bool> {
    (1..=n_layers).map(|n| !n.is_multiple_of(pattern)).collect()
}

impl RawText {
    /// The windows of Gemma 3: each block but every sixth has one, unless the config says otherwise.
    pub(super) fn window(
        &self,
        length: usize,
        rope: Option<RawRope>,
        n_layers: usize,
    ) -> std::result::Result<Option<Window>, String> {
        const SLIDING: &str = "sliding_attention";
        in_range("text_config.sliding_window", length, MAX_SIZE)?;
        let pattern = self.sliding_window_pattern.or(self.saved_window_pattern);
        let pattern = pattern.unwrap_or(DEFAULT_WINDOW_PATTERN);
        in_range("text_config.sliding_window_pattern", pattern, MAX_SIZE)?;
        let blocks = match &self.layer_types {
            None => window_blocks(pattern, n_layers),
            Some(types) if types.len() == n_layers => {
                for layer_type in types {
                    let known = &[SLIDING, "full_attention"];
                    expect(
                        &Some(layer_type.clone()),
                        "text_config.layer_types",
                        "",
                        known,
                    )?;
                }
                types.iter().map(|name| name == SLIDING).collect()
            }
            Some(types) => {
                return Err(format!(
                    "`text_config.layer_types` has {} entries, expected {n_layers}",
                    types.len()
                ));
            }
        };
        let rope = rope.unwrap_or_default();
        rope.check_type(&["default"])?;
        let rope_theta = self.rope_local_base_freq.or(rope.rope_theta);
        let rope_theta = rope_theta.unwrap_or(10_000.0);
        positive("text_config.rope_local_base_freq", rope_theta)?;
        Ok(blocks.contains(&true).then_some(Window {
            length,
            rope_theta,
            blocks,
        }))
    }
}

impl Window {
    /// Whether its blocks are those that llama.cpp expects of a file that says nothing about them.
    pub(crate) fn is_default(&self) -> bool {
        self.blocks == window_blocks(DEFAULT_WINDOW_PATTERN, self.blocks.len())
    }
}

impl TextConfig {
    /// Whether a block sees no further back than the window.
    pub(crate) fn has_window(&self, block_idx: usize) -> bool {
        self.window
            .as_ref()
            .is_some_and(|window| window.blocks[block_idx])
    }
}
