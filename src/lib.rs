//! Features of a sparse autoencoder (SAE) in a vision-language model, and steering by them, on
//! llama.cpp.
//!
//! ```text
//! picture ─► picture: square RGB    ─► llama::Vision: image rows, class row put right ─┐
//! text    ─► chat template, token ids ─────────────────────────────────────────────────┤
//!                                                                                      ▼
//!            session.rs: Prompt ─► llama::Context::decode ─► graph node l_out-L ─► hook:
//!                 rows [n_rows, d_model] ─► Sae::encode ─► active features of each row
//!                                        └► Steering::apply ─► rows written back, graph goes on
//!            ─► logits ─► sampler ─► token ─► the same way again
//! ```
//!
//! ```no_run
//! use llava_sae_cpp::{Keep, Picture, PromptForm, RunOptions, Sampling, Session, SessionOptions, demo};
//!
//! let mut session = Session::open(&demo::files()?, SessionOptions::default())?;
//! let image = session.encode_image(&Picture::open("dog.png".as_ref())?)?;
//! let prompt = session.prompt("Describe the image.", PromptForm::Chat, Some(&image))?;
//! let options = RunOptions {
//!     steering: None,
//!     keep: Keep::default(),
//!     max_tokens: 48,
//!     sampling: Sampling::Greedy,
//! };
//! println!("{}", session.run(&prompt, options, &mut |_| {})?.text);
//! # Ok::<(), llava_sae_cpp::Error>(())
//! ```
//!
//! The library prints nothing; warnings and llama.cpp's messages go to the `log` crate.

mod activations;
mod control_vector;
mod decoder;
pub mod demo;
mod encoder;
mod error;
pub mod features;
mod fingerprint;
mod hook_point;
mod image_cache;
mod image_encoder;
mod labels;
pub mod llama;
mod logits;
mod memory;
pub mod metrics;
mod model_files;
mod picture;
pub mod probe;
mod prompt;
mod run;
mod sae;
pub mod scan;
mod session;
mod shortcuts;
pub mod steering;
mod sweep;
mod tap;
mod tokens;

pub use activations::Activations;
pub use encoder::EncoderOptions;
pub use error::{Error, Result};
pub use hook_point::HookPoint;
pub use image_cache::ImageCache;
pub use llama::{FlashAttention, KvType, Sampling, VisionGraph};
pub use model_files::ModelFiles;
pub use picture::{ImagePrep, Picture};
pub use prompt::{ImageEmbeddings, Prompt, PromptForm};
pub use run::{Run, RunOptions, Stop};
pub use sae::Sae;
pub use session::{Session, SessionOptions};
pub use shortcuts::TryShortcuts;
pub use sweep::{ScoredRun, Sweep};
pub use tap::{Keep, Trace};
pub use tokens::{Token, TokenKind};
