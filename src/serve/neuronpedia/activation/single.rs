//! `POST /v1/activation/single` and `…/single-batch`: one feature in all rows, or their products with a vector.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Results, only, queries, several};
use crate::HookPoint;
use crate::serve::app::App;
use crate::serve::neuronpedia::reading::{self, Seen};
use crate::serve::neuronpedia::wire::{Form, Prompt, malformed};
use crate::serve::refusal::Refusal;
use crate::steering::Vector;

queries! {
    /// Where a feature is active: `source` and `index`, or how far rows go along a vector: `vector` and `hook`.
    SingleQuery, SingleRequest, SingleBatchRequest {
        model: String,
        /// The SAE.
        source: Option<String>,
        /// The feature, a number as text.
        index: Option<String>,
        /// As many numbers as the rows at `hook` have.
        vector: Option<Vec<f32>>,
        /// A hook point, such as `blocks.12.hook_resid_post`.
        hook: Option<String>,
    }
}

/// What is active in a prompt.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Single {
    activation: Values,
    /// As many as there are values: of a feature, without the beginning of the sequence.
    tokens: Vec<String>,
    tokens_is_special: Vec<bool>,
}

/// A number for each token.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Values {
    values: Vec<f32>,
    max_value: f32,
    max_value_index: usize,
}

/// Where one feature is active in a prompt.
#[utoipa::path(
    post,
    path = "/v1/activation/single",
    tag = "Neuronpedia",
    request_body = SingleRequest,
    responses((status = 200, body = Single))
)]
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Form(request): Form<SingleRequest>,
) -> Result<Json<Single>, Refusal> {
    let (prompts, query) = request.split();
    only(&app, query.answer(&app, prompts)).await
}

/// Where one feature is active in several prompts.
#[utoipa::path(
    post,
    path = "/v1/activation/single-batch",
    tag = "Neuronpedia",
    request_body = SingleBatchRequest,
    responses((status = 200, body = Results<Single>))
)]
pub(crate) async fn many(
    State(app): State<Arc<App>>,
    Form(request): Form<SingleBatchRequest>,
) -> Result<Json<Results<Single>>, Refusal> {
    let (prompts, query) = request.split();
    several(&app, query.answer(&app, prompts)).await
}

impl SingleQuery {
    async fn answer(self, app: &Arc<App>, prompts: Vec<Prompt>) -> Result<Vec<Single>, Refusal> {
        app.names.check_model(&self.model)?;
        match (self.source, self.index, self.vector, self.hook) {
            (Some(source), Some(index), None, None) => {
                of_feature(app, prompts, &source, &index).await
            }
            (None, None, Some(vector), Some(hook)) => {
                let vector = Vector::new("vector", HookPoint::parse(&hook)?, vector)?;
                let seen = reading::products(app, prompts, &vector).await?;
                let answers = seen.into_iter();
                answers
                    .map(|(seen, products)| single(&seen, 0, products))
                    .collect()
            }
            _ => Err(Refusal::bad(
                "a feature is given by `source` and `index`, or a vector by `vector` and `hook`, and not both",
            )),
        }
    }
}

async fn of_feature(
    app: &Arc<App>,
    prompts: Vec<Prompt>,
    source: &str,
    index: &str,
) -> Result<Vec<Single>, Refusal> {
    let source = app.names.source(source)?;
    let index = index.parse().map_err(|_| {
        let what = format!("`index` is `{index}`, and has to be a feature's number");
        malformed("index", what)
    })?;
    let norm = app.model.saes()[source.sae].decoder_direction(index)?.norm;
    let seen = reading::features(app, prompts).await?;
    let of_prompt = |seen: &Seen| {
        let activations = seen.activations(source);
        let value = |(i, row): (usize, &reading::Row)| match row.is_bos {
            true => 0.0,
            false => activations.get(i, index) * norm,
        };
        let n_bos = seen.n_bos();
        let rows = seen.rows.iter().enumerate().skip(n_bos);
        single(seen, n_bos, rows.map(value).collect())
    };
    reading::answers(&seen, of_prompt)
}

/// The answer for a prompt without its first `n_left_out` rows.
fn single(seen: &Seen, n_left_out: usize, values: Vec<f32>) -> Result<Single, Refusal> {
    let largest = values.iter().copied().enumerate();
    // The first of equals.
    let largest = largest.reduce(|a, b| if b.1 > a.1 { b } else { a });
    let (max_value_index, max_value) =
        largest.ok_or_else(|| Refusal::about("prompt", "the prompt is empty"))?;
    let rows = &seen.rows[n_left_out..];
    Ok(Single {
        activation: Values {
            values,
            max_value,
            max_value_index,
        },
        tokens: rows.iter().map(|row| row.text.clone()).collect(),
        tokens_is_special: rows.iter().map(|row| row.is_special).collect(),
    })
}
