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
mod reading;
mod recorded;
mod score;
mod shortcuts;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use crate::Kinds;
use crate::llama::Sampling;
use crate::steering::Steering;

pub use cancel::CancelFlag;
pub use engine::{Engine, Finished, Request, RunId, Step};
pub(crate) use forward::Forward;
pub use hooks::{Editor, EditorAt, Keep, SaeTrace, Trace};
pub(crate) use hooks::{HookedSite, Hooks};
use reading::Goal;
pub use recorded::{PromptKey, RecordedPrompt};
pub use shortcuts::TryShortcuts;
pub(crate) use shortcuts::{Shortcuts, distance};

/// What a run does.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Interventions, if any.
    pub steering: Option<Arc<Steering>>,
    /// What is kept.
    pub keep: Keep,
    /// Tokens to generate, at most; 0 stops after the prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Stops the run from elsewhere: in a prompt within a node's time on the processor, and within an
    /// ubatch's on a device.
    pub cancel: CancelFlag,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so.
    End,
    /// The limit was reached.
    Length,
    /// It was cancelled.
    Interrupted,
    /// The caller, which got the text as it came, had enough.
    Caller,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// The generated text.
    pub text: String,
    /// The generated ids, without the one that ended the text.
    pub token_ids: Vec<i32>,
    /// Why it ended.
    pub stop: Stop,
    /// Logits after the prompt's last row, `[n_vocab]`; empty where not kept.
    pub logits: Vec<f32>,
    /// What the hooks saw.
    pub trace: Trace,
    /// The prompt's time.
    pub prompt_time: Duration,
    /// The generation's time; runs side by side have it in common.
    pub generate_time: Duration,
}

impl RunOptions {
    fn goal(&self) -> Goal {
        if self.max_tokens > 0 || self.keep.logits {
            Goal::Logits
        } else if self.keep.residuals {
            Goal::Rows(Kinds::ALL)
        } else {
            Goal::Rows(self.keep.features)
        }
    }

    fn reads_rows(&self) -> bool {
        self.keep.residuals || self.keep.features != Kinds::NONE
    }
}
