//! `sae` in requests and answers: the features that are asked for, and those that were found.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::rank::{Over, Pool};
use crate::report::features::{Order, Ranking, Report, Seen};
use crate::serve::app::App;
use crate::serve::prepare::Prepared;
use crate::serve::refusal::Refusal;
use crate::serve::runs::Event;
use crate::{
    CancelFlag, Error, FeatureName, HookedModel, Keep, Kinds, Picture, Prompt, Result, SaeSet,
    Trace,
};

/// The most features of each SAE that are drawn.
pub(super) const MAX_HEAT_MAPS: usize = 100;

/// Which features to give back.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct SaeRequest {
    /// How many of each SAE (20).
    #[schema(value_type = Option<usize>, minimum = 1)]
    top: Option<NonZeroUsize>,
    /// The positions that are pooled, as the command line's `--over` has them; `image`, or `prompt` where there is no
    /// image.
    over: Option<String>,
    /// How activations at several positions become one score: `max`, as without it, `sum`, `mean` or `count`.
    #[schema(value_type = Option<String>)]
    pool: Option<Pool>,
    /// What features are ordered by: `lift`, as without it for maxima over the image and an SAE with a baseline, or
    /// `activation`.
    #[schema(value_type = Option<String>)]
    rank: Option<Order>,
    /// Features to leave out, by indices or labels.
    #[schema(value_type = Vec<Object>)]
    exclude: Vec<FeatureName>,
    /// Whether to leave out features that are active nearly everywhere.
    exclude_always_on: bool,
    /// Whether to give all active features of each position too.
    per_token: bool,
    /// Whether to draw each feature over the picture.
    heatmap: bool,
}

/// The features that are asked for of a prompt.
pub(crate) struct Wanted {
    prompt: Arc<Prompt>,
    pictures: Arc<[Picture]>,
    ranking: Ranking,
    over: String,
    top: usize,
    per_token: bool,
    heatmap: bool,
}

/// The features of a prompt.
#[derive(Serialize)]
struct Answer {
    /// The positions that were pooled.
    over: String,
    ranked_by: Order,
    #[serde(flatten)]
    report: Report,
    #[serde(flatten)]
    per_token: Option<PerToken>,
}

/// The active features of each position.
#[derive(Serialize)]
struct PerToken {
    activations: Vec<Vec<(FeatureName, f32)>>, // [n_positions]
    labels: BTreeMap<String, String>,          // of all features in them
}

impl SaeRequest {
    /// Checks it for a prompt.
    pub(crate) fn check(
        &self,
        app: &App,
        prepared: &Prepared,
    ) -> std::result::Result<Wanted, Refusal> {
        let of = |member: &'static str| move |error: Error| Refusal::from(error).of(member);
        let model = &app.model;
        let top = self.top.map_or(20, NonZeroUsize::get);
        if self.heatmap && top > MAX_HEAT_MAPS {
            let what = format!("{top} features are too many to draw: at most {MAX_HEAT_MAPS} are");
            return Err(Refusal::about("sae.top", what));
        }
        let over = self.over.clone().unwrap_or_else(|| {
            let default = match prepared.pictures.is_empty() {
                false => "image",
                true => "prompt",
            };
            default.to_owned()
        });
        let excluded = self.exclude.iter();
        let excluded = excluded.map(|name| model.find_feature(&name.to_string()));
        let excluded = excluded.collect::<Result<_>>();
        let mut ranking = Ranking {
            over: Over::parse(&over).map_err(of("sae.over"))?,
            pool: self.pool.unwrap_or(Pool::Max),
            order: self.rank,
            excluded: excluded.map_err(of("sae.exclude"))?,
            excludes_always_on: self.exclude_always_on,
        };
        for sae in model.saes() {
            ranking.has_lift(sae).map_err(of("sae.rank"))?;
        }
        let prepared_for = ranking.prepare(model, &prepared.prompt);
        prepared_for.map_err(of("sae.over"))?;
        Ok(Wanted {
            prompt: Arc::clone(&prepared.prompt),
            pictures: Arc::clone(&prepared.pictures),
            ranking,
            over,
            top,
            per_token: self.per_token,
            heatmap: self.heatmap,
        })
    }
}

impl Wanted {
    /// Whether generated positions are among those that are pooled, so that the answer has to wait for the text.
    pub(crate) fn are_of_text(&self) -> bool {
        self.ranking.over.kinds().generated
    }

    /// What a run has to keep.
    pub(crate) fn keep(&self) -> Keep {
        let shown = Kinds {
            image: true,
            prompt: self.per_token,
            special: self.per_token,
            generated: false,
        };
        Keep {
            features: self.ranking.over.kinds().or(shown),
            ..Keep::default()
        }
    }

    /// The answer of whoever waits for one, if this event of the run has what it takes: the prompt's, or where generated
    /// positions are pooled, the end.
    pub(crate) async fn answer_at(
        waiting: &mut Option<Self>,
        event: &mut Event,
        app: &Arc<App>,
    ) -> std::result::Result<Option<Box<RawValue>>, Refusal> {
        let are_of_text = waiting.as_ref().is_some_and(Self::are_of_text);
        let trace = match event {
            Event::Prompt(trace) if !are_of_text => trace,
            Event::End(Ok(run)) => &mut run.trace,
            _ => return Ok(None),
        };
        Self::answer_of(waiting.take(), trace, app).await
    }

    /// The answer of whoever waits for one, of what a run has kept.
    pub(crate) async fn answer_of(
        waiting: Option<Self>,
        trace: &mut Trace,
        app: &Arc<App>,
    ) -> std::result::Result<Option<Box<RawValue>>, Refusal> {
        match waiting {
            Some(wanted) => wanted.answer(app, std::mem::take(trace)).await.map(Some),
            None => Ok(None),
        }
    }

    /// What a run that has kept it gives, as JSON.
    pub(crate) async fn answer(
        self,
        app: &Arc<App>,
        mut trace: Trace,
    ) -> std::result::Result<Box<RawValue>, Refusal> {
        if !self.are_of_text() {
            trace.tokens.truncate(self.prompt.tokens().len());
        }
        let answer = app.compute(move |app, cancel| self.answer_now(&app.model, &trace, cancel));
        answer.await
    }

    fn answer_now(
        &self,
        model: &HookedModel,
        trace: &Trace,
        cancel: &CancelFlag,
    ) -> Result<Box<RawValue>> {
        let saes = model.saes();
        let seen = Seen::new(saes, &self.prompt, &self.pictures, trace, &self.ranking)?;
        let mut report = seen.report(model, self.top);
        if self.heatmap {
            for (listed, feature) in report.features.iter_mut().zip(seen.listed(self.top)) {
                if cancel.is_cancelled() {
                    return Err(Error::interrupted());
                }
                let view = seen.strongest_view(feature);
                let png = view.and_then(|view| seen.heat_map(view, feature));
                listed.heatmap =
                    png.map(|png| format!("data:image/png;base64,{}", STANDARD.encode(png)));
            }
        }
        let lifts = saes.iter().map(|sae| self.ranking.has_lift(sae));
        let has_lift = lifts.collect::<Result<Vec<_>>>()?.contains(&true);
        let answer = Answer {
            over: self.over.clone(),
            ranked_by: match has_lift {
                true => Order::Lift,
                false => Order::Activation,
            },
            report,
            per_token: self.per_token.then(|| PerToken::of(trace, saes)),
        };
        let json = serde_json::value::to_raw_value(&answer);
        Ok(json.expect("an answer is plain data"))
    }
}

impl PerToken {
    fn of(trace: &Trace, saes: &SaeSet) -> Self {
        let mut labels = BTreeMap::new();
        let mut row = |position| {
            let of_saes = trace.saes.iter().enumerate();
            let active = of_saes.flat_map(|(sae, seen)| {
                let row = seen.activations.row(position);
                row.map(move |(index, value)| (crate::FeatureId { sae, index }, value))
            });
            let named = active.map(|(feature, value)| {
                let name = saes.shown(feature);
                if let Some(label) = saes.label(feature) {
                    labels.insert(name.to_string(), label.to_owned());
                }
                (name, value)
            });
            named.collect()
        };
        Self {
            activations: (0..trace.tokens.len()).map(&mut row).collect(),
            labels,
        }
    }
}
