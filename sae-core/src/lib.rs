//! Sparse autoencoders (SAEs) of language models: features of rows, and steering by them.
//!
//! ```text
//! a file or arrays ─► Sae ─► Encoder: rows [n_rows, d_in] ─► Activations ─► rank
//!                        ├─► Decoder: Activations          ─► reconstructed rows
//!                        └─► Steering: rows ─► rows, at some Positions, as a saved set says
//! ```
//!
//! Nothing here knows a runtime, and there is no C: a runtime brings its own products of rows
//! ([`RowProduct`]), and [`Encoder::in_memory`] does without one.

#![forbid(unsafe_code)]

mod activations;
mod decoder;
mod encoder;
mod feature;
mod hook_point;
pub mod labels;
mod normalization;
mod positions;
mod product;
pub mod rank;
mod sae;
mod sae_set;
pub mod saved_set;
pub mod steering;
mod token;

pub use activations::Activations;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use feature::{FeatureId, FeatureName};
pub use gguf_tools::{Error, ErrorKind, Result};
pub use hook_point::{GraphNode, HookPoint, ShownRows, Site};
pub use positions::{Place, Positions, RowSet};
pub use product::{InMemory, MatrixRows, RowProduct};
pub use sae::{Sae, SaeArrays};
pub use sae_set::SaeSet;
pub use token::{Kinds, Token, TokenKind};
