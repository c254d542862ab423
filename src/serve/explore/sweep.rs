//! `POST /api/sweep`: a feature at several strengths.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::unbounded_channel;

use super::events::{self, Timings};
use super::request::{DEFAULT_TOKENS, asked};
use crate::report::sweep::{Drawn, Point, Report};
use crate::serve::app::{App, Place};
use crate::serve::body::Body;
use crate::serve::generation::{Generation, text_request};
use crate::serve::prepare::CancelOnDrop;
use crate::serve::refusal::Refusal;
use crate::serve::stream::{self, Events, Gone};
use crate::steering::{Change, Intervention, Kind, Positions, Steering, Targets, Units};
use crate::{Error, FeatureId, FeatureName, Keep, Prompt, Result, RunOptions, Step, Sweep};

/// The most strengths.
pub(super) const MAX_STRENGTHS: usize = 32;

text_request! {
    /// A prompt, and a feature whose strengths are compared.
    SweepRequest {
        /// A chat; images are parts of messages, as `data:` URLs.
        #[schema(value_type = Option<Vec<Object>>)]
        messages: Option<Box<RawValue>>,
        /// A text as it stands, instead of a chat.
        prompt: Option<String>,
        /// An index or a label.
        #[schema(value_type = Object)]
        feature: FeatureName,
        /// Up to 32 numbers.
        strengths: Vec<f32>,
        /// What the numbers are of: an intervention on features that takes one (`steer`).
        kind: Option<String>,
        /// The unit of strengths: `raw` as without it, `unit`, or `usual`, the feature's usual activation.
        #[schema(value_type = Option<String>)]
        units: Option<Units>,
        /// The positions that are changed (`all`).
        at: Option<String>,
        /// A word that texts may hold, in upper or lower case.
        word: Option<String>,
    }
}

type Frame<'a> = events::Frame<NewText, Swept<'a>>;

/// New characters of a run.
#[derive(Serialize)]
struct NewText {
    strength: Option<f32>, // none for the original
    run: usize,            // 0 for the original, and the others behind it
    text: String,
}

/// What came of all strengths.
#[derive(Serialize)]
struct Swept<'a> {
    kind: &'static str,
    #[serde(flatten)]
    report: Drawn<'a>,
    timings: Timings,
}

/// The texts of a feature's strengths, as events: `text` of any of them as it comes, and `done`.
#[utoipa::path(
    post,
    path = "/api/sweep",
    tag = "ours",
    request_body = SweepRequest,
    responses((status = 200, content_type = "text/event-stream", body = String))
)]
pub(crate) async fn sweep(
    State(app): State<Arc<App>>,
    body: Body<SweepRequest>,
) -> std::result::Result<Response, Refusal> {
    let place = app.take_place()?;
    let request = body.known()?;
    request.check()?;
    let asked = asked(request.messages.as_deref(), request.prompt.as_deref())?;
    let prepared = app.prepare(asked).await?;
    let plan = request.plan(&app)?;
    let generation = Generation {
        max_tokens: Some(request.max_tokens.unwrap_or(DEFAULT_TOKENS)),
        ..request.one_text()
    };
    let prompts = std::slice::from_ref(&prepared.prompt);
    let mut requests = generation.requests(&app, prompts, Keep::default())?;
    let options = requests.remove(0).options;
    let writer = Writer {
        shown_prompt: match prepared.messages {
            Some(messages) => {
                let text = app.compute(move |app, _| app.model.chat_text(&messages));
                text.await?
            }
            None => request.prompt.unwrap_or_default(),
        },
        steerings: plan
            .steerings(&app, &request.strengths, &prepared.prompt)
            .await?,
        plan,
        strengths: request.strengths,
        word: request.word,
        prompt: prepared.prompt,
        app,
        _place: place,
    };
    Ok(stream::answer(|events| writer.write(options, events)))
}

/// What is done to a feature.
#[derive(Clone)]
struct Plan {
    feature: FeatureId,
    kind: &'static Kind,
    units: Units,
    at: Positions,
}

impl SweepRequest {
    fn check(&self) -> std::result::Result<(), Refusal> {
        let n_strengths = self.strengths.len();
        if !(1..=MAX_STRENGTHS).contains(&n_strengths) {
            let what =
                format!("{n_strengths} strengths are given: a sweep has 1 to {MAX_STRENGTHS}");
            return Err(Refusal::about("strengths", what));
        }
        if !self.strengths.iter().all(|strength| strength.is_finite()) {
            let what = "a strength is too large for a 32-bit number";
            return Err(Refusal::about("strengths", what));
        }
        if self.max_tokens == Some(0) {
            let what = "a sweep that generates no tokens has no texts to compare: give `max_tokens` from 1 up";
            return Err(Refusal::about("max_tokens", what));
        }
        Ok(())
    }

    fn plan(&self, app: &App) -> std::result::Result<Plan, Refusal> {
        let of = |member: &'static str| move |error: Error| Refusal::from(error).of(member);
        let name = self.kind.as_deref().unwrap_or("steer");
        let kind = Kind::named(name).ok_or_else(|| {
            let what = format!("unknown kind `{name}`: `/api/model` lists them");
            Refusal::about("kind", what)
        })?;
        let feature = app.model.find_feature(&self.feature.to_string());
        let feature = feature.map_err(of("feature"))?;
        let at = self.at.as_deref().map(Positions::parse);
        let at = at.unwrap_or(Ok(Positions::ALL)).map_err(of("at"))?;
        Change::new(kind, self.strengths.first().copied()).map_err(of("kind"))?;
        if kind.targets == Targets::Vectors {
            let what = format!("`{name}` is about vectors: a sweep is of a feature");
            return Err(Refusal::about("kind", what));
        }
        Ok(Plan {
            feature,
            kind,
            units: self.units.unwrap_or_default(),
            at,
        })
    }
}

impl Plan {
    /// One for each strength, which may take a look at the whole vocabulary.
    async fn steerings(
        &self,
        app: &Arc<App>,
        strengths: &[f32],
        prompt: &Arc<Prompt>,
    ) -> std::result::Result<Vec<Arc<Steering>>, Refusal> {
        let (plan, strengths, prompt) = (self.clone(), strengths.to_vec(), Arc::clone(prompt));
        let steerings = app.compute(move |app, _| {
            let steering = |strength| {
                app.model.steering(vec![Intervention {
                    units: plan.units,
                    at: plan.at.clone(),
                    ..Intervention::new(plan.feature, Change::new(plan.kind, Some(strength))?)
                }])
            };
            let steerings: Vec<_> = strengths.into_iter().map(steering).collect::<Result<_>>()?;
            steerings[0].placed(prompt.tokens())?;
            Ok(steerings)
        });
        steerings.await.map_err(|refusal| refusal.of("at"))
    }
}

struct Writer {
    steerings: Vec<Arc<Steering>>, // one for each strength
    shown_prompt: String,
    plan: Plan,
    strengths: Vec<f32>,
    word: Option<String>,
    prompt: Arc<Prompt>,
    app: Arc<App>,
    _place: Place,
}

impl Writer {
    async fn write(self, options: RunOptions, events: Events) -> std::result::Result<(), Gone> {
        let _guard = CancelOnDrop(options.cancel.clone());
        let (sender, mut texts) = unbounded_channel();
        let (prompt, steerings) = (Arc::clone(&self.prompt), self.steerings.clone());
        let swept = self.app.studies.run(move |session| {
            let on_step = &mut |run, step: Step<'_>| {
                // Where nobody listens, the sweep is cancelled.
                let _ = sender.send((run, step.text.to_owned()));
                ControlFlow::Continue(())
            };
            session.sweep_with(&prompt, &steerings, &options, on_step)
        });
        let pass_on = async {
            while let Some((run, text)) = texts.recv().await {
                if !text.is_empty() {
                    let before = usize::checked_sub(run, 1);
                    let strength = before.map(|i| self.strengths[i]);
                    let text = NewText {
                        strength,
                        run,
                        text,
                    };
                    events.json(&Frame::Text(text)).await?;
                }
            }
            Ok(())
        };
        let (passed_on, swept) = tokio::join!(pass_on, swept);
        passed_on?;
        let swept = match swept {
            Ok(swept) => swept,
            Err(error) => return events.json(&Frame::error(error)).await,
        };
        let report = self.report(&swept);
        let runs = std::iter::once(&swept.original).chain(&swept.steered);
        let swept = Swept {
            kind: self.plan.kind.name,
            report: report.drawn(),
            timings: Timings::of(runs.map(|scored| &scored.run)),
        };
        events.json(&Frame::Done(swept)).await
    }

    fn report(&self, swept: &Sweep) -> Report {
        let (saes, feature) = (self.app.model.saes(), self.plan.feature);
        let word = self.word.as_deref();
        Report {
            model: self.app.shown.model.clone(),
            sae: self.app.shown.sae.clone(),
            prompt: self.shown_prompt.clone(),
            image: None,
            images: Vec::new(),
            feature: saes.shown(feature),
            label: saes.label(feature).map(str::to_owned),
            units: self.plan.units,
            at: self.plan.at.to_string(),
            word: self.word.clone(),
            original: Point::new(0.0, &swept.original, word),
            steered: Point::of_each(&self.strengths, &swept.steered, word),
            control: None,
        }
    }
}
