//! What answers of OpenAI's endpoints hold.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use utoipa::ToSchema;

use crate::serve::app::App;
use crate::{Run, Stop};

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// An id that no other answer of this server has.
fn id(prefix: &str) -> String {
    static N_ANSWERS: AtomicU64 = AtomicU64::new(0);
    let n = N_ANSWERS.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = now.map_or(0, |now| now.as_nanos());
    let hash = blake3::hash(&[&nanoseconds.to_le_bytes()[..], &n.to_le_bytes()].concat());
    format!("{prefix}-{}", &hash.to_hex()[..24])
}

/// What is the same in all parts of an answer.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    /// That of a new answer, whose id begins with `prefix`.
    pub(super) fn new(prefix: &str, object: &'static str, app: &App) -> Self {
        Self {
            id: id(prefix),
            object,
            created: seconds(SystemTime::now()),
            model: app.shown.model.clone(),
        }
    }
}

/// Why a text ended, in OpenAI's words.
pub(super) fn finish_reason(stop: Stop) -> &'static str {
    match stop {
        Stop::Length => "length",
        Stop::End | Stop::StopString | Stop::Interrupted | Stop::Caller => "stop",
    }
}

/// How many tokens there were; a prompt's image rows are some of them.
#[derive(Clone, Copy, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) total_tokens: usize,
}

impl Usage {
    pub(super) fn of<'a>(prompt_tokens: usize, runs: impl IntoIterator<Item = &'a Run>) -> Self {
        let tokens = runs.into_iter().map(|run| run.token_ids.len());
        let completion_tokens: usize = tokens.sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
    }
}

/// How long a run took, under llama-server's names.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(super) struct Timings {
    /// Rows of the prompt that were not computed again.
    cache_n: usize,
    /// The others.
    prompt_n: usize,
    prompt_ms: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: f64,
}

impl Timings {
    pub(super) fn of(n_prompt: usize, run: &Run) -> Self {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let predicted_n = run.token_ids.len();
        let seconds = run.generate_time.as_secs_f64().max(1e-9);
        Self {
            cache_n: run.n_remembered,
            prompt_n: n_prompt - run.n_remembered,
            prompt_ms: milliseconds(run.prompt_time),
            predicted_n,
            predicted_ms: milliseconds(run.generate_time),
            predicted_per_second: predicted_n as f64 / seconds,
        }
    }
}
