//! What a piece of a prompt depends on.

use std::collections::BTreeSet;

use crate::llama::{self, Output, Rows};
use crate::{HookPoint, SessionOptions};

/// What a piece of a prompt depends on, as a hash: the model, how it computes, the places whose rows are kept,
/// and all rows up to the piece's last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PieceKey(blake3::Hash);

/// Values that are hashed at once.
const BLOCK: usize = 1024;

impl PieceKey {
    /// The key of a prompt's beginning, for the language model of this fingerprint.
    pub(crate) fn new(
        fingerprint: &blake3::Hash,
        options: &SessionOptions,
        places: &BTreeSet<HookPoint>,
    ) -> Self {
        let mut hasher = Hasher(blake3::Hasher::new());
        hasher.add(fingerprint.as_bytes());
        let computed_by = llama::computed_by(options.gpu_layers != 0);
        for text in [
            env!("CARGO_PKG_VERSION"),
            llama::BINDINGS_VERSION,
            &computed_by,
            options.kv_type.name(),
            options.flash_attention.name(),
        ] {
            hasher.add(text.as_bytes());
        }
        let numbers = [
            options.n_ubatch as u64,
            options.gpu_layers as u64,
            u64::from(options.repack),
            // Flash attention of a single row behind 512 or more is summed by threads (`ops.cpp` in ggml-cpu).
            options.threads as u64,
        ];
        hasher.add(&numbers.map(u64::to_le_bytes).concat());
        for place in places {
            hasher.add(place.to_string().as_bytes());
        }
        Self(hasher.0.finalize())
    }

    /// The key of what comes next, these rows with these logits.
    pub(crate) fn then(&self, rows: &Rows<'_>, output: Output) -> Self {
        let mut hasher = Hasher(blake3::Hasher::new());
        hasher.add(self.0.as_bytes());
        hasher.add(match output {
            Output::None => b"none",
            Output::LastRow => b"last row",
            Output::EveryRow => b"every row",
        });
        match rows {
            Rows::Tokens(ids) => {
                hasher.add(b"text");
                hasher.add_all(ids, |id| id.to_le_bytes());
            }
            Rows::Embeddings(image) => {
                hasher.add(match image.is_causal {
                    true => b"image",
                    false => b"image whose rows see one another",
                });
                let numbers = [image.width as u64, image.n_positions as u64];
                hasher.add(&numbers.map(u64::to_le_bytes).concat());
                hasher.add_all(image.values, |value| value.to_le_bytes());
                hasher.add_all(image.positions.as_flattened(), |number| {
                    number.to_le_bytes()
                });
            }
        }
        Self(hasher.0.finalize())
    }

    pub(super) fn hash(&self) -> &blake3::Hash {
        &self.0
    }
}

/// Parts of variable length, each with its length.
struct Hasher(blake3::Hasher);

impl Hasher {
    fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn add_all<T: Copy>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; 4]) {
        self.0.update(&(values.len() as u64).to_le_bytes());
        let mut bytes = Vec::with_capacity(4 * BLOCK);
        for block in values.chunks(BLOCK) {
            bytes.clear();
            bytes.extend(block.iter().copied().flat_map(&to_bytes));
            self.0.update(&bytes);
        }
    }
}
