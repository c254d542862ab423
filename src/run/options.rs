//! What a run does.

use std::sync::Arc;

use super::cancel::CancelFlag;
use super::hooks::Keep;
use super::reading::Goal;
use crate::llama::Sampling;
use crate::steering::Steering;
use crate::{Error, Kinds, Result};

/// OpenAI's API has as many.
const MAX_LOG_PROBS: usize = 20;

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
    /// Says how likely each generated token was, and this many most likely ones, 20 at most; none says nothing, and
    /// costs nothing.
    pub top_log_probs: Option<usize>,
    /// Says how likely each of the prompt's text tokens was, and this many most likely ones, 20 at most. Nothing of the
    /// prompt is remembered then, and it is read in graphs of 64 rows, which may sum in another order.
    pub prompt_log_probs: Option<usize>,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// Stops the run from elsewhere: in a prompt within a node's time on the processor, and within an
    /// ubatch's on a device.
    pub cancel: CancelFlag,
}

impl RunOptions {
    /// Checks what a run does not depend on a prompt for.
    ///
    /// # Errors
    /// As [`Sampling::check`]; more log-probabilities than there may be; a stop string without characters.
    pub fn check(&self) -> Result<()> {
        for (name, n) in [
            ("top_log_probs", self.top_log_probs),
            ("prompt_log_probs", self.prompt_log_probs),
        ] {
            if let Some(n) = n.filter(|&n| n > MAX_LOG_PROBS) {
                let what = format!("`{name}` is {n}, and has to be {MAX_LOG_PROBS} at most");
                return Err(Error::invalid(what));
            }
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::invalid("a string in `stop` is empty"));
        }
        self.sampling.check()
    }

    pub(super) fn goal(&self) -> Goal {
        if self.max_tokens > 0 || self.keep.logits || self.prompt_log_probs.is_some() {
            Goal::Logits
        } else if self.keep.residuals {
            Goal::Rows(Kinds::ALL)
        } else {
            Goal::Rows(self.keep.features)
        }
    }

    pub(super) fn reads_rows(&self) -> bool {
        self.keep.residuals || self.keep.features != Kinds::NONE
    }
}
