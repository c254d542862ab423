//! What is steered, and how texts are generated: what raw texts and chats have in common.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::wire::malformed;
use crate::serve::app::{App, Place};
use crate::serve::prepare::Prepared;
use crate::serve::refusal::Refusal;
use crate::serve::runs::{Event, RunEvents};
use crate::serve::stream::{self, Events, Gone};
use crate::steering::{Change, Intervention, Positions, Steering, Target, Units, Vector};
use crate::{
    FeatureId, HookPoint, HookedModel, Kinds, Request, Run, RunOptions, Sampling, Token,
    TokenLogProbs,
};

/// The most candidates whose probabilities are told.
const MAX_LOG_PROBS: usize = 10;

/// What is generated behind a prompt, and how it is steered.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SteerRequest<P> {
    /// What the model goes on with.
    pub(super) prompt: P,
    model: String,
    #[serde(alias = "steer_method")]
    steer_method: SteerMethod,
    /// Whether vectors are brought to length 1 first; decoder rows are.
    #[serde(alias = "normalize_steering")]
    normalize_steering: bool,
    /// Which texts are wanted, each once.
    types: Vec<SteerType>,
    /// Features to steer by: either these or `vectors`.
    features: Option<Vec<SteerFeature>>,
    vectors: Option<Vec<SteerVector>>,
    #[serde(alias = "n_completion_tokens")]
    n_completion_tokens: usize,
    temperature: f32,
    /// All strengths are multiplied by it.
    #[serde(alias = "strength_multiplier")]
    strength_multiplier: f32,
    #[serde(alias = "freq_penalty")]
    freq_penalty: f32,
    seed: f64,
    /// Whether the answer comes as server-sent events, each with all that is there so far.
    stream: Option<bool>,
    /// How many candidates are told for each generated token, 10 at most; 0 tells nothing.
    #[serde(alias = "n_logprobs")]
    n_logprobs: Option<usize>,
    /// Whether 429 is wanted at once where all places are taken, and not 503.
    #[serde(default, alias = "fail_if_busy")]
    fail_if_busy: bool,
    /// Whether a chat's special tokens are steered too; chats have to say it.
    #[serde(alias = "steer_special_tokens")]
    pub(super) steer_special_tokens: Option<bool>,
    /// Not done here.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(super) reads: Option<Vec<Value>>,
}

/// How rows are changed along a direction, with the strength `c`.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum SteerMethod {
    /// `c` times the direction is added.
    SimpleAdditive,
    /// The part along the direction is multiplied by `c`.
    OrthogonalDecomp,
    /// The projection is held to `c` at most.
    ProjectionCap,
}

/// Which text is wanted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum SteerType {
    /// The steered one.
    Steered,
    /// The one without steering.
    Default,
}

/// A feature, and how strongly it is steered.
#[derive(Deserialize, ToSchema)]
struct SteerFeature {
    model: String,
    source: String,
    index: usize,
    strength: f32,
}

/// A vector, where it is added, and how strongly.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SteerVector {
    #[serde(alias = "steering_vector")]
    steering_vector: Vec<f32>,
    strength: f32,
    /// A hook point, such as `blocks.12.hook_resid_post`.
    hook: String,
}

/// A text as far as it is generated.
pub(super) struct Output {
    pub(super) r#type: SteerType,
    pub(super) text: String,
    /// Of each token; none where they are not asked for.
    pub(super) log_probs: Vec<LogProb>,
}

/// How likely a generated token was.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogProb {
    token: String,
    logprob: f64,
    top_logprobs: Vec<Candidate>,
}

/// How likely a token would have been.
#[derive(Clone, Serialize, ToSchema)]
struct Candidate {
    token: String,
    logprob: f64,
}

impl<P> SteerRequest<P> {
    /// Takes a place, and refuses what cannot be had of any prompt.
    pub(super) fn take_place(&self, app: &App) -> Result<Place, Refusal> {
        let place = app.take_place().map_err(|mut refusal| {
            if self.fail_if_busy {
                refusal.status = StatusCode::TOO_MANY_REQUESTS;
            }
            refusal
        })?;
        self.check(app)?;
        Ok(place)
    }

    fn check(&self, app: &App) -> Result<(), Refusal> {
        let twice = |(i, one): (usize, &SteerType)| self.types[..i].contains(one);
        if self.types.is_empty() || self.types.iter().enumerate().any(twice) {
            let what = "`types` has to name `STEERED`, `DEFAULT` or both, each once";
            return Err(malformed("types", what));
        }
        if self.n_completion_tokens == 0 {
            let what = "`nCompletionTokens` is 0, and has to be 1 or more";
            return Err(malformed("nCompletionTokens", what));
        }
        if let Some(n) = self.n_logprobs.filter(|&n| n > MAX_LOG_PROBS) {
            let what = format!("`nLogprobs` is {n}, and has to be {MAX_LOG_PROBS} at most");
            return Err(malformed("nLogprobs", what));
        }
        let is_steered = self.types.contains(&SteerType::Steered);
        match (&self.features, &self.vectors) {
            (Some(_), Some(_)) => Err(Refusal::bad("give `features` or `vectors`, not both")),
            (None, None) if is_steered => Err(Refusal::bad(
                "there is nothing to steer by: give `features` or `vectors`",
            )),
            _ => app.names.check_model(&self.model),
        }
    }

    /// Asks for the texts, and gives the answer that `form` makes of them: whole, or as events, each with what is there
    /// so far.
    pub(super) async fn answer<A: Serialize + Send + Sync>(
        &self,
        app: &Arc<App>,
        place: Place,
        prepared: &Prepared,
        form: impl Fn(&[Output]) -> A + Send + 'static,
    ) -> Result<Response, Refusal> {
        let request = |&one: &SteerType| {
            let options = self.options(app, prepared, one)?;
            options.check()?;
            Ok(Request::new(Arc::clone(&prepared.prompt), options))
        };
        let requests = self.types.iter().map(request);
        let requests = requests.collect::<Result<_, Refusal>>()?;
        let runs = app.runs.ask(requests);
        let mut texts = Texts {
            app: Arc::clone(app),
            outputs: self.types.iter().copied().map(Output::new).collect(),
            form,
        };
        if self.stream == Some(true) {
            return Ok(stream::answer(|events| async move {
                let done = texts.write(runs, &events).await;
                drop(place);
                done
            }));
        }
        for (i, run) in runs.end().await?.iter().enumerate() {
            texts.end(i, run);
        }
        Ok(Json(texts.formed()).into_response())
    }

    fn options(
        &self,
        app: &App,
        prepared: &Prepared,
        one: SteerType,
    ) -> Result<RunOptions, Refusal> {
        let steering = match one {
            SteerType::Steered => self.steering(app, prepared)?,
            SteerType::Default => None,
        };
        let room = app.runs.room_behind(&prepared.prompt);
        Ok(RunOptions {
            steering,
            max_tokens: self.n_completion_tokens.min(room),
            sampling: Sampling {
                temperature: self.temperature,
                seed: (self.seed as i64).rem_euclid(u32::MAX.into()) as u32,
                frequency_penalty: self.freq_penalty,
                // All tokens may be chosen.
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                ..Sampling::default()
            },
            top_log_probs: self.n_logprobs.filter(|&n| n > 0),
            ..RunOptions::default()
        })
    }

    fn steering(&self, app: &App, prepared: &Prepared) -> Result<Option<Arc<Steering>>, Refusal> {
        let mut interventions = Vec::new();
        for feature in self.features.iter().flatten() {
            app.names.check_model(&feature.model)?;
            let source = app.names.source(&feature.source)?;
            let feature_id = FeatureId {
                sae: source.sae,
                index: feature.index,
            };
            let change = self.change(feature.strength, Change::steer);
            interventions.push(self.intervention(feature_id.into(), change, Units::Unit));
        }
        for (i, vector) in self.vectors.iter().flatten().enumerate() {
            let hook_point = HookPoint::parse(&vector.hook)?;
            let values = vector.steering_vector.clone();
            let target = Vector::new(&format!("vectors[{i}]"), hook_point, values)?;
            let change = self.change(vector.strength, Change::vector);
            let units = match self.normalize_steering {
                true => Units::Unit,
                false => Units::Raw,
            };
            interventions.push(self.intervention(target.into(), change, units));
        }
        if interventions.is_empty() {
            return Ok(None);
        }
        let steering = app.model.steering(interventions)?;
        steering.placed(prepared.prompt.tokens())?;
        Ok(Some(steering))
    }

    fn change(&self, strength: f32, add: fn(f32) -> Change) -> Change {
        let number = strength * self.strength_multiplier;
        match self.steer_method {
            SteerMethod::SimpleAdditive => add(number),
            SteerMethod::OrthogonalDecomp => Change::project(number),
            SteerMethod::ProjectionCap => Change::cap(number),
        }
    }

    fn intervention(&self, target: Target, change: Change, units: Units) -> Intervention {
        let kinds = Kinds {
            special: self.steer_special_tokens != Some(false),
            ..Kinds::ALL
        };
        Intervention {
            units,
            ..Intervention::new(target, change).at(Positions::of(kinds))
        }
    }
}

/// The texts of a request as they come, and what makes answers of them.
struct Texts<F> {
    app: Arc<App>,
    outputs: Vec<Output>,
    form: F,
}

impl<A: Serialize + Send + Sync, F: Fn(&[Output]) -> A + Send> Texts<F> {
    fn formed(&self) -> A {
        (self.form)(&self.outputs)
    }

    fn end(&mut self, i: usize, run: &Run) {
        let output = &mut self.outputs[i];
        output.text.clone_from(&run.text);
        let log_probs = run.token_ids.iter().zip(&run.log_probs);
        let log_probs = log_probs.map(|(&id, of)| LogProb::new(&self.app.model, id, of));
        output.log_probs = log_probs.collect();
    }

    async fn write(&mut self, mut runs: RunEvents, events: &Events) -> Result<(), Gone> {
        while let Some((i, event)) = runs.next().await {
            match event {
                Event::Prompt(_) => {}
                Event::Text {
                    id,
                    text,
                    log_probs,
                } => {
                    let output = &mut self.outputs[i];
                    output.text.push_str(&text);
                    let of_token = id.zip(log_probs);
                    let of_token = of_token.map(|(id, of)| LogProb::new(&self.app.model, id, &of));
                    output.log_probs.extend(of_token);
                    if !text.is_empty() {
                        let answer = self.formed();
                        events.json(&answer).await?;
                    }
                }
                Event::End(Ok(run)) => self.end(i, &run),
                Event::End(Err(error)) => {
                    let error = json!({"error": Refusal::from(error).message});
                    return events.json(&error).await;
                }
            }
        }
        let answer = self.formed();
        events.json(&answer).await
    }
}

impl Output {
    fn new(one: SteerType) -> Self {
        Self {
            r#type: one,
            text: String::new(),
            log_probs: Vec::new(),
        }
    }
}

impl LogProb {
    fn new(model: &HookedModel, id: i32, log_probs: &TokenLogProbs) -> Self {
        let text = |id| model.token_text(Token::text(id)).unwrap_or_default();
        let candidate = |&(id, logprob): &(i32, f64)| Candidate {
            token: text(id),
            logprob,
        };
        Self {
            token: text(id),
            logprob: log_probs.log_prob,
            top_logprobs: log_probs.top.iter().map(candidate).collect(),
        }
    }
}
