//! Features of a sparse autoencoder (SAE) in a vision-language model, and steering by them, on
//! llama.cpp.
//!
//! ```text
//! picture ─► picture: square RGB    ─► llama::Vision: image rows, class row put right ─┐
//! text    ─► chat template, token ids ─────────────────────────────────────────────────┤
//!                                                                                      ▼
//!            run: Prompt ─► llama::Context::decode ─► graph node l_out-L ─► hook:
//!                 rows [n_rows, d_model] ─► Sae::encode ─► active features of each row
//!                                        └► Steering::apply ─► rows written back, graph goes on
//!            ─► logits ─► sampler ─► token ─► the same way again
//! ```
//!
//! ```no_run
//! use llava_sae_cpp::{Picture, PromptForm, RunOptions, Session, SessionOptions, demo};
//!
//! let mut session = Session::open(&demo::files()?, SessionOptions::default())?;
//! let image = session.encode_image(&Picture::open("dog.png".as_ref())?)?;
//! let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[&image])?;
//! let options = RunOptions {
//!     max_tokens: 48,
//!     ..RunOptions::default()
//! };
//! println!("{}", session.run(&prompt, options)?.text);
//! # Ok::<(), llava_sae_cpp::Error>(())
//! ```
//!
//! The library prints nothing, but for the command line in [`cli`]; warnings and llama.cpp's messages go to
//! the `log` crate.

// The command line uses the library by this name, as its other users do.
extern crate self as llava_sae_cpp;

pub mod cli;
pub mod demo;
mod error;
mod file_cache;
pub mod llama;
mod model;
mod picture;
pub mod probe;
mod prompt;
pub mod report;
mod run;
#[cfg(feature = "serve")]
pub mod serve;
mod study;

pub use error::{Error, ErrorKind, Result};
pub use llama::{FlashAttention, KvType, Sampling, VisionGraph};
pub use model::{
    EncoderOptions, EncoderWeights, EngineSize, FeatureCard, HookedModel, ModelFiles, Neighbour,
    NeuronpediaSource, Session, SessionOptions, TokenEffect, TokenEffects, neuronpedia_addresses,
};
pub use picture::{ImageCache, ImagePrep, Picture};
pub use prompt::chat;
pub use prompt::{
    Grid, ImageAttention, ImageChunk, ImageEmbeddings, Prompt, PromptForm, RowPositions, Segment,
};
pub use run::{
    CancelFlag, Editor, EditorAt, Engine, Finished, Keep, PromptStore, Request, Run, RunId,
    RunOptions, SaeTrace, Step, Stop, TokenLogProbs, Trace, TryShortcuts,
};
pub use sae_core::labels::holds_word;
pub use sae_core::{
    Activations, Decoder, Encoder, FeatureId, FeatureName, GraphNode, HookPoint, Kinds, MatrixRows,
    Place, Positions, RowProduct, RowSet, Sae, SaeArrays, SaeSet, ShownRows, Site, Token,
    TokenKind, labels, rank, saved_set, steering,
};
pub use study::{
    ScoredRun, Sweep, baseline, compare, explain, metrics, pictures, random_control, reproduce,
};
#[cfg(feature = "scan")]
pub use study::{gallery, scan};
