//! A sparse autoencoder (SAE) becomes one GGUF file: weights, hook point, labels.
//!
//! ```text
//! cfg.json, sae_weights.safetensors ─► saelens ─┐
//! Neuronpedia's labels              ─► labels  ─┴─► convert ─► schema ─► sae-*.gguf
//! sae-*.gguf                        ─► schema ─► file: SaeFile, which the runtime reads
//! what the runtime measured on pictures ─► baseline ─► a copy of sae-*.gguf
//! ```
//!
//! This module knows how SAEs are stored, and nothing of what computes with them.

mod baseline;
mod convert;
mod file;
mod labels;
mod norm_factor;
mod saelens;
mod schema;

pub use baseline::Baseline;
pub use convert::{SaeOptions, convert};
pub use file::SaeFile;
pub use schema::{Architecture, NormalizeActivations, SaeMeta};
