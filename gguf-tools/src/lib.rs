//! Converts checkpoints of LLaVA and Gemma 3 and sparse autoencoders (SAEs) to GGUF, without llama.cpp.
//!
//! ```text
//! Hugging Face folder          ─► llava ─► model-*.gguf (arch gemma, …), mmproj-*.gguf (arch clip)
//! an SAE of any format, labels ─► sae   ─► sae-*.gguf   (arch sae)
//! any GGUF file                ─► show  ─► metadata and tensors, as text or JSON
//! ```
//!
//! This crate knows file formats and nothing of running a model: no C, no `unsafe`.

#![forbid(unsafe_code)]

pub mod error;
pub mod gguf;
mod input_file;
mod json_file;
pub mod json_text;
pub mod llava;
pub mod new_dir;
pub mod new_file;
pub mod output_dir;
pub mod progress;
pub mod sae;
pub mod terminal;
pub mod vector_file;
mod weights;

pub use error::{Error, ErrorKind, Result};
pub use progress::Progress;
