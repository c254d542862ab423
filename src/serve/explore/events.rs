//! The events of our streams.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::serve::refusal::{ErrorBody, Refusal};

/// An event; `done`, with what came of it all, or `error` is the last.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Frame<Text, Done> {
    /// The features of the prompt.
    Sae {
        sae: Box<RawValue>,
    },
    /// New characters of a run.
    Text(Text),
    Done(Done),
    Error(ErrorBody),
}

impl<Text, Done> Frame<Text, Done> {
    pub(super) fn error(error: impl Into<Refusal>) -> Self {
        Self::Error(error.into().body())
    }
}
