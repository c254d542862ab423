//! How texts are to be generated: members that requests have in common.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::serve::app::App;
use crate::serve::refusal::Refusal;
use crate::steering::Steering;
use crate::{CancelFlag, Keep, Prompt, Request, RunOptions, Sampling, saved_set};

/// The most answers to one request.
const MAX_ANSWERS: usize = 128;

/// Declares a request of one text, with members of its own in front of those that say how texts are generated.
macro_rules! text_request {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        pub(crate) struct $name {
            $($own)*
            /// The most tokens to generate; without it, as many as there is room for, and at our own endpoints 128.
            max_tokens: Option<usize>,
            /// 0, as without it, takes the most likely token each time.
            temperature: Option<f32>,
            /// With a temperature: the most likely tokens that have this probability together (0.95).
            top_p: Option<f32>,
            /// With a temperature: so many most likely tokens (40); 0 for all.
            top_k: Option<usize>,
            /// With a temperature: tokens at least this likely, as a share of the likeliest (0.05).
            min_p: Option<f32>,
            /// With a temperature: the same number gives the same text.
            seed: Option<i64>,
            /// What a token's logit is lowered by for each time that it was generated.
            frequency_penalty: Option<f32>,
            /// What a token's logit is lowered by if it was generated.
            presence_penalty: Option<f32>,
            /// The text ends before the first of these.
            stop: Option<$crate::serve::generation::Texts>,
        }

        impl $name {
            /// How a text is to be generated, without more.
            pub(crate) fn one_text(&self) -> $crate::serve::generation::Generation<'_> {
                let default = $crate::Sampling::default();
                // Clients send seeds of any size; llama.cpp takes the largest for "any".
                let seed = self.seed.map_or(0, |seed| seed as u64 % u64::from(u32::MAX));
                $crate::serve::generation::Generation {
                    max_tokens: self.max_tokens,
                    sampling: $crate::Sampling {
                        temperature: self.temperature.unwrap_or(default.temperature),
                        seed: seed as u32,
                        top_k: self.top_k.unwrap_or(default.top_k),
                        top_p: self.top_p.unwrap_or(default.top_p),
                        min_p: self.min_p.unwrap_or(default.min_p),
                        frequency_penalty: self.frequency_penalty.unwrap_or_default(),
                        presence_penalty: self.presence_penalty.unwrap_or_default(),
                    },
                    top_log_probs: None,
                    prompt_log_probs: None,
                    stop: self.stop.clone().map(Into::into).unwrap_or_default(),
                    n: 1,
                    steering: None,
                }
            }
        }
    };
}
pub(super) use text_request;

/// A text or several.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Texts {
    One(String),
    Several(Vec<String>),
}

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        match texts {
            Texts::One(text) => vec![text],
            Texts::Several(texts) => texts,
        }
    }
}

/// How texts are to be generated.
pub(crate) struct Generation<'a> {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) top_log_probs: Option<usize>,
    pub(crate) prompt_log_probs: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) n: usize,
    pub(crate) steering: Option<&'a RawValue>,
}

impl Generation<'_> {
    /// The requests of all answers to these prompts, one prompt's behind the other's.
    pub(crate) fn requests(
        &self,
        app: &App,
        prompts: &[Arc<Prompt>],
        keep: Keep,
    ) -> Result<Vec<Request>, Refusal> {
        self.check_number(prompts.len())?;
        let mut requests = Vec::new();
        for prompt in prompts {
            let steering = self.steering.map(|set| steering(app, set, &**prompt));
            let steering = steering.transpose()?.flatten();
            let room = app.runs.room_behind(prompt);
            for answer in 0..self.n {
                let seed = u64::from(self.sampling.seed) + answer as u64;
                let options = RunOptions {
                    steering: steering.clone(),
                    keep,
                    max_tokens: self.max_tokens.map_or(room, |wanted| wanted.min(room)),
                    sampling: Sampling {
                        seed: (seed % u64::from(u32::MAX)) as u32,
                        ..self.sampling
                    },
                    top_log_probs: self.top_log_probs,
                    prompt_log_probs: self.prompt_log_probs,
                    stop: self.stop.clone(),
                    cancel: CancelFlag::default(),
                };
                options.check().map_err(Refusal::of_its_member)?;
                requests.push(Request::new(Arc::clone(prompt), options));
            }
        }
        Ok(requests)
    }

    /// Refuses more answers than a request has, or none.
    pub(crate) fn check_number(&self, n_prompts: usize) -> Result<(), Refusal> {
        let n_answers = self.n.saturating_mul(n_prompts);
        if !(1..=MAX_ANSWERS).contains(&n_answers) {
            let what =
                format!("{n_answers} answers are asked for: a request has 1 to {MAX_ANSWERS}");
            return Err(Refusal::about("n", what));
        }
        Ok(())
    }
}

/// The interventions of a saved set; none of an empty one.
///
/// # Errors
/// Where there is a prompt, also positions that it does not have.
pub(crate) fn steering<'a>(
    app: &App,
    set: &RawValue,
    prompt: impl Into<Option<&'a Prompt>>,
) -> Result<Option<Arc<Steering>>, Refusal> {
    const SHOWN: &str = "steering";
    if matches!(set.get().trim(), "[]" | "null") {
        return Ok(None);
    }
    let steering = || {
        let entries = saved_set::parse(set.get().as_bytes(), SHOWN)?;
        let interventions = saved_set::interventions(&entries, SHOWN, app.model.saes())?;
        let steering = app.model.steering(interventions)?;
        if let Some(prompt) = prompt.into() {
            steering.placed(prompt.tokens())?;
        }
        Ok(Some(steering))
    };
    steering().map_err(|error: crate::Error| Refusal::from(error).of(SHOWN))
}
