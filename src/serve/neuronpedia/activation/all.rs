//! `POST /v1/activation/all` and `…/all-batch`: the features that are most active in a prompt.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Results, only, queries, several};
use crate::serve::app::App;
use crate::serve::neuronpedia::names::Source;
use crate::serve::neuronpedia::reading::{self, Seen, decoder_norms};
use crate::serve::neuronpedia::wire::{Form, Prompt};
use crate::serve::refusal::Refusal;

/// As many as are given where nothing is said, and at most.
const DEFAULT_RESULTS: usize = 25;
pub(in crate::serve::neuronpedia) const MAX_RESULTS: usize = 1000;

queries! {
    /// Which features are most active, of which SAEs.
    AllQuery, AllRequest, AllBatchRequest {
        model: String,
        /// A set of SAEs.
        #[serde(alias = "source_set")]
        source_set: String,
        /// Those of the set that are asked; all if there are none.
        #[serde(alias = "selected_sources")]
        selected_sources: Vec<String>,
        /// Features are sorted by the sum of their activations at these tokens; if there are none, by the largest.
        #[serde(alias = "sort_by_token_indexes")]
        sort_by_token_indexes: Vec<usize>,
        /// Whether the beginning of the sequence counts as inactive.
        #[serde(alias = "ignore_bos")]
        ignore_bos: bool,
        /// How many are given, 1000 at most; 25 where nothing is said.
        #[serde(alias = "num_results")]
        num_results: Option<usize>,
    }
}

/// The features that are most active in a prompt.
#[derive(Serialize, ToSchema)]
pub(crate) struct All {
    activations: Vec<ActiveFeature>,
    tokens: Vec<String>,
}

/// A feature that is active somewhere in a prompt.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ActiveFeature {
    source: String,
    index: usize,
    /// One for each token.
    values: Vec<f32>,
    /// Of the tokens by which it is sorted; 0 without such.
    sum_values: f32,
    max_value: f32,
    max_value_index: usize,
}

/// The features that are most active in a prompt.
#[utoipa::path(
    post,
    path = "/v1/activation/all",
    tag = "Neuronpedia",
    request_body = AllRequest,
    responses((status = 200, body = All))
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Form(request): Form<AllRequest>,
) -> Result<Json<All>, Refusal> {
    let (prompts, query) = request.split();
    only(&app, query.answer(&app, prompts)).await
}

/// The features that are most active in each of several prompts.
#[utoipa::path(
    post,
    path = "/v1/activation/all-batch",
    tag = "Neuronpedia",
    request_body = AllBatchRequest,
    responses((status = 200, body = Results<All>))
)]
pub(crate) async fn many(
    State(app): State<Arc<App>>,
    Form(request): Form<AllBatchRequest>,
) -> Result<Json<Results<All>>, Refusal> {
    let (prompts, query) = request.split();
    several(&app, query.answer(&app, prompts)).await
}

impl AllQuery {
    async fn answer(self, app: &Arc<App>, prompts: Vec<Prompt>) -> Result<Vec<All>, Refusal> {
        app.names.check_model(&self.model)?;
        let sources = app
            .names
            .sources_of_set(&self.source_set, &self.selected_sources)?;
        let seen = reading::features(app, prompts).await?;
        let of_prompt = |seen: &Seen| {
            let counts = self.counts(seen)?;
            Ok(All {
                activations: self.most_active(app, &sources, seen, &counts),
                tokens: seen.texts(),
            })
        };
        reading::answers(&seen, of_prompt)
    }

    /// How often each row counts in the sums, `[n_rows]`.
    fn counts(&self, seen: &Seen) -> Result<Vec<f64>, Refusal> {
        let n_rows = seen.rows.len();
        let mut counts = vec![0.0; n_rows];
        for &index in &self.sort_by_token_indexes {
            let count = counts.get_mut(index).ok_or_else(|| {
                let what = format!(
                    "there is no token {index} to sort by: the prompt has {n_rows}, counted from 0"
                );
                Refusal::about("sortByTokenIndexes", what)
            })?;
            *count += 1.0;
        }
        Ok(counts)
    }

    fn most_active(
        &self,
        app: &App,
        sources: &[&Source],
        seen: &Seen,
        counts: &[f64],
    ) -> Vec<ActiveFeature> {
        let n_left_out = match self.ignore_bos {
            true => seen.n_bos(),
            false => 0,
        };
        let mut features = Vec::new();
        for &source in sources {
            let of_source = peaks(app, source, seen, counts, n_left_out);
            features.extend(
                of_source
                    .into_iter()
                    .map(|(index, peak)| (source, index, peak)),
            );
        }
        let key = |peak: &Peak| match self.sort_by_token_indexes.is_empty() {
            true => f64::from(peak.max),
            false => peak.sum,
        };
        // Of equals, the earlier source's come first, and then smaller indices.
        features.sort_by(|a, b| key(&b.2).total_cmp(&key(&a.2)));
        let n_results = self.num_results.unwrap_or(DEFAULT_RESULTS);
        features.truncate(n_results.min(MAX_RESULTS));
        let feature = |(source, index, peak): (&Source, usize, Peak)| {
            let (activations, norms) = (seen.activations(source), decoder_norms(app, source));
            let value = |row_idx| match row_idx < n_left_out {
                true => 0.0,
                false => activations.get(row_idx, index) * norms[index],
            };
            ActiveFeature {
                source: source.name.clone(),
                index,
                values: (0..seen.rows.len()).map(value).collect(),
                sum_values: peak.sum as f32,
                max_value: peak.max,
                max_value_index: peak.row_idx,
            }
        };
        features.into_iter().map(feature).collect()
    }
}

/// Where a feature is most active, and the sum that it may be sorted by.
#[derive(Default)]
struct Peak {
    max: f32,
    row_idx: usize,
    sum: f64,
}

/// Those of the features that are active behind the first `n_left_out` rows.
fn peaks(
    app: &App,
    source: &Source,
    seen: &Seen,
    counts: &[f64],
    n_left_out: usize,
) -> BTreeMap<usize, Peak> {
    let (activations, norms) = (seen.activations(source), decoder_norms(app, source));
    let mut peaks = BTreeMap::<usize, Peak>::new();
    for (row_idx, count) in counts.iter().enumerate().skip(n_left_out) {
        for (index, activation) in activations.row(row_idx) {
            let value = activation * norms[index];
            let peak = peaks.entry(index).or_default();
            if value > peak.max {
                (peak.max, peak.row_idx) = (value, row_idx);
            }
            peak.sum += count * f64::from(value);
        }
    }
    peaks
}
