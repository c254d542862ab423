//! `POST /v1/activation/topk-by-token` and `…/topk-by-token-batch`: each token's most active features.

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

const DEFAULT_TOP: usize = 5;

queries! {
    /// Which features of an SAE are most active at each token.
    TopkQuery, TopkRequest, TopkBatchRequest {
        model: String,
        /// The SAE.
        source: String,
        /// How many for each token; 5 where nothing is said.
        #[serde(alias = "top_k")]
        top_k: Option<usize>,
        /// Whether the beginning of the sequence is left out.
        #[serde(alias = "ignore_bos")]
        ignore_bos: bool,
    }
}

/// The features that are most active at each token of a prompt.
#[derive(Serialize, ToSchema)]
pub(crate) struct Topk {
    results: Vec<TokenFeatures>,
    tokens: Vec<String>,
}

/// A token's most active features.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TokenFeatures {
    /// Its place in the prompt, the beginning of the sequence counted.
    token_position: usize,
    token: String,
    is_special: bool,
    /// Those that are active, the most active first.
    top_features: Vec<TokenFeature>,
}

/// A feature at a token.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TokenFeature {
    feature_index: usize,
    activation_value: f32,
}

/// The features that are most active at each token of a prompt.
#[utoipa::path(
    post,
    path = "/v1/activation/topk-by-token",
    tag = "Neuronpedia",
    request_body = TopkRequest,
    responses((status = 200, body = Topk))
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Form(request): Form<TopkRequest>,
) -> Result<Json<Topk>, Refusal> {
    let (prompts, query) = request.split();
    only(&app, query.answer(&app, prompts)).await
}

/// The features that are most active at each token of several prompts.
#[utoipa::path(
    post,
    path = "/v1/activation/topk-by-token-batch",
    tag = "Neuronpedia",
    request_body = TopkBatchRequest,
    responses((status = 200, body = Results<Topk>))
)]
pub(crate) async fn many(
    State(app): State<Arc<App>>,
    Form(request): Form<TopkBatchRequest>,
) -> Result<Json<Results<Topk>>, Refusal> {
    let (prompts, query) = request.split();
    several(&app, query.answer(&app, prompts)).await
}

impl TopkQuery {
    async fn answer(self, app: &Arc<App>, prompts: Vec<Prompt>) -> Result<Vec<Topk>, Refusal> {
        app.names.check_model(&self.model)?;
        let source = app.names.source(&self.source)?;
        let seen = reading::features(app, prompts).await?;
        let top = self.top_k.unwrap_or(DEFAULT_TOP).max(1);
        let of_prompt = |seen: &Seen| {
            let n_left_out = match self.ignore_bos {
                true => seen.n_bos(),
                false => 0,
            };
            let rows = seen.rows.iter().enumerate().skip(n_left_out);
            let results = rows.map(|(token_position, row)| TokenFeatures {
                token_position,
                token: row.text.clone(),
                is_special: row.is_special,
                top_features: most_active(app, source, seen, token_position, top),
            });
            let results: Vec<_> = results.collect();
            Topk {
                tokens: results.iter().map(|result| result.token.clone()).collect(),
                results,
            }
        };
        Ok(reading::answers(&seen, of_prompt))
    }
}

fn most_active(
    app: &App,
    source: &Source,
    seen: &Seen,
    row_idx: usize,
    top: usize,
) -> Vec<TokenFeature> {
    let norms = decoder_norms(app, source);
    let active = seen.activations(source).row(row_idx);
    let feature = |(feature_index, activation)| TokenFeature {
        feature_index,
        activation_value: activation * norms[feature_index],
    };
    let mut active: Vec<_> = active.map(feature).collect();
    active.sort_by(|a, b| b.activation_value.total_cmp(&a.activation_value));
    active.truncate(top);
    active
}
