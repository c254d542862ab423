//! A sparse autoencoder (SAE) becomes one GGUF file: weights, hook point, labels.
//!
//! ```text
//! a folder ─► recognize ─► saelens, gemma_scope, sparsify, … ─► Source ────────┐
//! Neuronpedia's labels ─► labels ───────────────────────────────────────────────┴─► convert ─► sae-*.gguf
//! sae-*.gguf ─► schema ─► file: SaeFile, which the runtime reads; verify, once for a new file
//! what the runtime measured on pictures ─► baseline ─► a copy of sae-*.gguf
//! ```
//!
//! This module knows how SAEs are stored, and nothing of what computes with them.

mod baseline;
mod circuit_tracer;
mod convert;
mod file;
mod gemma_scope;
mod labels;
mod meta;
mod npz;
mod openmoss;
mod published;
mod recognize;
mod saelens;
mod schema;
mod source;
mod sparsify;
mod tensor_file;
mod verify;

pub use baseline::Baseline;
pub use convert::{ConvertedSae, SaeOptions, convert, convert_published};
pub use file::{EncoderScreen, SaeFile};
pub use meta::{Architecture, NormalizeActivations, SaeMeta};
pub use published::Published;
pub use recognize::{files_of, files_of_block};
pub use source::Format;
