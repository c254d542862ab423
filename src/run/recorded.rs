//! Prompts that were read once, as values.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::llama::RecordedGraphs;
use crate::prompt::{Prompt, Segment};
use crate::{HookPoint, SessionOptions, llama};

/// What a recorded prompt depends on: the model, how it computes, the place, and the prompt's rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PromptKey(blake3::Hash);

impl PromptKey {
    /// The key of `prompt`, recorded below `below` by the language model of this fingerprint.
    pub(crate) fn new(
        fingerprint: &blake3::Hash,
        options: &SessionOptions,
        below: HookPoint,
        prompt: &Prompt,
    ) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(fingerprint.as_bytes());
        let computed_by = llama::computed_by(options.gpu_layers != 0);
        for text in [
            env!("CARGO_PKG_VERSION"),
            llama::BINDINGS_VERSION,
            &computed_by,
            options.kv_type.name(),
            options.flash_attention.name(),
            &below.to_string(),
        ] {
            add(text.as_bytes());
        }
        let numbers = [
            options.n_ubatch as u64,
            options.gpu_layers as u64,
            u64::from(options.repack),
        ];
        add(&numbers.map(u64::to_le_bytes).concat());
        for segment in prompt.segments() {
            match segment {
                Segment::Text(ids) => {
                    add(b"text");
                    add(&ids
                        .iter()
                        .flat_map(|id| id.to_le_bytes())
                        .collect::<Vec<_>>());
                }
                Segment::Image(chunk) => {
                    let rows = chunk.embeddings();
                    add(match rows.is_causal {
                        true => b"image",
                        false => b"image whose rows see one another",
                    });
                    add(&(rows.width as u64).to_le_bytes());
                    add(&rows
                        .values
                        .iter()
                        .flat_map(|x| x.to_le_bytes())
                        .collect::<Vec<_>>());
                    add(&(rows.n_positions as u64).to_le_bytes());
                    add(&rows
                        .positions
                        .iter()
                        .flatten()
                        .flat_map(|i| i.to_le_bytes())
                        .collect::<Vec<_>>());
                }
            }
        }
        Self(hasher.finalize())
    }
}

impl fmt::Display for PromptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PromptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PromptKey({self})")
    }
}

/// A prompt that a model has read: what its blocks below a place of the residual stream have given, which
/// runs of it need not compute again. Any engine of the same model and options takes it.
#[derive(Clone, Debug)]
pub struct RecordedPrompt {
    pub(super) key: PromptKey,
    pub(super) below: HookPoint,
    pub(super) places: BTreeSet<HookPoint>, // whose rows it holds
    pub(super) graphs: Arc<RecordedGraphs>,
}

impl RecordedPrompt {
    /// What it depends on.
    pub fn key(&self) -> PromptKey {
        self.key
    }

    /// The place from which on runs compute; they edit nothing below.
    pub fn below(&self) -> HookPoint {
        self.below
    }

    /// The memory that it takes.
    pub fn n_bytes(&self) -> usize {
        self.graphs.n_bytes()
    }
}
