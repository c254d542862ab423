//! The events of our streams.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::Run;
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

/// How long it took, as the command line says it: the prompts' times are summed, and texts are generated at once.
#[derive(Serialize)]
pub(super) struct Timings {
    prompt_ms: f64,
    generate_ms: f64,
    generated_tokens: usize,
}

impl Timings {
    pub(super) fn of<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Self {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let generate = runs.clone().map(|run| run.generate_time).max();
        Self {
            prompt_ms: milliseconds(runs.clone().map(|run| run.prompt_time).sum()),
            generate_ms: milliseconds(generate.unwrap_or_default()),
            generated_tokens: runs.map(|run| run.token_ids.len()).sum(),
        }
    }
}
