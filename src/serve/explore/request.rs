//! What requests to our endpoints have in common.

use std::num::NonZeroUsize;

use axum::extract::rejection::{PathRejection, QueryRejection};
use serde_json::value::RawValue;

use crate::serve::body::Body;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;

/// The tokens that are generated where nothing is said.
pub(super) const DEFAULT_TOKENS: usize = 128;

/// The longest list that is given of what is searched for, or known of a feature.
pub(super) const MAX_TOP: usize = 1000;

impl<T> Body<T> {
    /// The request, where all of its members are known: nobody else's clients come here.
    pub(super) fn known(self) -> Result<T, Refusal> {
        match self.ignored.first() {
            None => Ok(self.value),
            Some(member) => {
                let what = format!("`{member}` is not known here: leave it out");
                Err(Refusal::about(member, what))
            }
        }
    }
}

/// The prompt: a chat, or a text as it stands.
pub(super) fn asked(messages: Option<&RawValue>, prompt: Option<&str>) -> Result<Asked, Refusal> {
    match (messages, prompt) {
        (Some(messages), None) => Ok(Asked::Messages(messages.get().as_bytes().to_vec())),
        (None, Some(text)) => Ok(Asked::Raw(text.to_owned())),
        (None, None) => Err(Refusal::about(
            "messages",
            "there is no prompt: give a chat as `messages`, or a text as `prompt`",
        )),
        (Some(_), Some(_)) => Err(Refusal::about(
            "prompt",
            "both `messages` and `prompt` are given: keep one of the two",
        )),
    }
}

/// The length of a list, of which `default` is given where nothing is said.
pub(super) fn top(given: Option<NonZeroUsize>, default: usize) -> Result<usize, Refusal> {
    let top = given.map_or(default, NonZeroUsize::get);
    if top > MAX_TOP {
        let what = format!("`top` is {top}: lists have {MAX_TOP} entries at most");
        return Err(Refusal::about("top", what));
    }
    Ok(top)
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl From<PathRejection> for Refusal {
    fn from(rejection: PathRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}
