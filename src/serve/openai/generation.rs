//! How texts are to be generated: members that requests have in common.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::serve::app::App;
use crate::serve::prepare::Prepared;
use crate::serve::refusal::Refusal;
use crate::serve::runs::RunEvents;
use crate::steering::Steering;
use crate::{Keep, Request, RunOptions, Sampling, saved_set};

/// The most answers to one request.
const MAX_ANSWERS: usize = 16;

/// Declares a request that generates, with members of its own in front of those that all have.
macro_rules! generating_request {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        pub(crate) struct $name {
            $($own)*
            /// Any: there is one model, and answers name it.
            #[expect(dead_code, reason = "clients send it")]
            model: Option<String>,
            /// The most tokens to generate; without it, as many as there is room for.
            max_tokens: Option<usize>,
            /// 0, as without it, takes the most likely token each time.
            temperature: Option<f32>,
            /// For temperatures above 0: the same number gives the same text.
            seed: Option<i64>,
            /// The number of answers, each with a seed of its own: that of the request and those behind it.
            n: Option<usize>,
            /// Whether the answer comes as server-sent events.
            stream: Option<bool>,
            stream_options: Option<$crate::serve::openai::generation::StreamOptions>,
            /// Interventions: a saved set, or the list in one.
            #[schema(value_type = Option<Vec<Object>>)]
            steering: Option<Box<serde_json::value::RawValue>>,
        }

        impl $name {
            pub(crate) fn generation(&self) -> $crate::serve::openai::generation::Generation<'_> {
                $crate::serve::openai::generation::Generation {
                    max_tokens: self.max_tokens,
                    temperature: self.temperature,
                    seed: self.seed,
                    n: self.n,
                    steering: self.steering.as_deref(),
                }
            }

            /// Whether a stream is to end with the numbers of tokens.
            fn includes_usage(&self) -> bool {
                self.stream_options.is_some_and(|options| options.include_usage == Some(true))
            }
        }
    };
}
pub(super) use generating_request;

/// How a stream comes.
#[derive(Clone, Copy, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// Whether it ends with the numbers of tokens.
    pub(super) include_usage: Option<bool>,
}

/// How texts are to be generated.
pub(crate) struct Generation<'a> {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) n: Option<usize>,
    pub(crate) steering: Option<&'a RawValue>,
}

impl Generation<'_> {
    /// Asks for the runs of all answers.
    pub(crate) fn start(
        &self,
        app: &App,
        prepared: &Prepared,
        keep: Keep,
    ) -> Result<RunEvents, Refusal> {
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_ANSWERS).contains(&n) {
            let what = format!("`n` is {n}: a request has 1 to {MAX_ANSWERS} answers");
            return Err(Refusal::about("n", what));
        }
        let steering = self.steering.map(|set| steering(app, set, prepared));
        let steering = steering.transpose()?.flatten();
        let request = |i| {
            let options = RunOptions {
                steering: steering.clone(),
                keep,
                max_tokens: self.max_tokens(app, prepared),
                sampling: self.sampling(i)?,
                ..RunOptions::default()
            };
            Ok(Request::new(Arc::clone(&prepared.prompt), options))
        };
        let requests = (0..n).map(request).collect::<Result<_, Refusal>>()?;
        Ok(app.runs.ask(requests))
    }

    fn max_tokens(&self, app: &App, prepared: &Prepared) -> usize {
        let room = app.runs.capacity() - prepared.prompt.tokens().len();
        self.max_tokens.map_or(room, |wanted| wanted.min(room))
    }

    fn sampling(&self, answer: usize) -> Result<Sampling, Refusal> {
        let temperature = self.temperature.unwrap_or(0.0);
        if !temperature.is_finite() || temperature < 0.0 {
            let what = "a temperature is a number from 0 up";
            return Err(Refusal::about("temperature", what));
        }
        // Clients send numbers of any size; llama.cpp takes the largest for "any".
        let seed =
            (self.seed.unwrap_or(0) as u64).wrapping_add(answer as u64) % u64::from(u32::MAX);
        Ok(Sampling {
            temperature,
            seed: seed as u32,
            ..Sampling::default()
        })
    }
}

/// The interventions of a saved set; none of an empty one.
pub(crate) fn steering(
    app: &App,
    set: &RawValue,
    prepared: &Prepared,
) -> Result<Option<Arc<Steering>>, Refusal> {
    const SHOWN: &str = "steering";
    if matches!(set.get().trim(), "[]" | "null") {
        return Ok(None);
    }
    let steering = || {
        let entries = saved_set::parse(set.get().as_bytes(), SHOWN)?;
        let interventions = saved_set::interventions(&entries, SHOWN, app.model.saes())?;
        let steering = app.model.steering(interventions)?;
        steering.placed(prepared.prompt.tokens())?;
        Ok(Some(steering))
    };
    steering().map_err(|error: crate::Error| Refusal::from(error).of(SHOWN))
}
