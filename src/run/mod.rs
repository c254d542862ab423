//! Runs: what they do and give, how their rows go through a context, and what is said of their text.
//!
//! ```text
//! Request ─► Engine: admits, and steps for all runs ─► Forward: rows to a context ─► Hooks: SAEs, edits
//!                    └► Generation: logits to text                       └► Trace
//! ```

mod cancel;
mod cursor;
mod engine;
mod forward;
mod generation;
mod hooks;
pub(crate) mod logits;
mod options;
mod reading;
mod remembered;
mod score;
mod shortcuts;
mod streamed_text;
mod trial;

pub use cancel::CancelFlag;
pub use engine::{Engine, Finished, Request, RunId, Step};
pub(crate) use forward::Forward;
pub use generation::{Run, Stop};
pub use hooks::{Editor, EditorAt, Keep, SaeTrace, Trace};
pub(crate) use hooks::{HookedSite, Hooks};
pub use logits::TokenLogProbs;
pub use options::RunOptions;
pub(crate) use remembered::PieceKey;
pub use remembered::PromptStore;
pub(crate) use score::{Scored, is_scored_as_read};
pub use shortcuts::TryShortcuts;
pub(crate) use shortcuts::{Shortcuts, distance};
