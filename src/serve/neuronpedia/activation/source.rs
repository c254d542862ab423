//! `POST /v1/activation/source`: all active features of an SAE in some prompts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Results;
use crate::serve::app::App;
use crate::serve::neuronpedia::reading::{self, Seen, decoder_norms};
use crate::serve::neuronpedia::wire::{Form, Prompt};
use crate::serve::refusal::Refusal;

/// Which features of an SAE are active.
#[derive(Deserialize, ToSchema)]
pub(crate) struct SourceRequest {
    /// What the model reads: 1 to 4 of them.
    prompts: Vec<Prompt>,
    model: String,
    /// The SAE.
    source: String,
}

/// The active features of a prompt.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActiveFeatures {
    tokens: Vec<String>,
    /// By feature: where it is active and how much, the beginning of the sequence left out.
    #[schema(value_type = BTreeMap<String, Vec<(usize, f32)>>)]
    active_features: BTreeMap<usize, Vec<(usize, f32)>>,
}

/// All active features of an SAE in some prompts.
#[utoipa::path(
    post,
    path = "/v1/activation/source",
    tag = "Neuronpedia",
    request_body = SourceRequest,
    responses((status = 200, body = Results<ActiveFeatures>))
)]
pub(crate) async fn many(
    State(app): State<Arc<App>>,
    Form(request): Form<SourceRequest>,
) -> Result<Json<Results<ActiveFeatures>>, Refusal> {
    let _place = app.take_place()?;
    app.names.check_model(&request.model)?;
    let source = app.names.source(&request.source)?;
    let seen = reading::features(&app, request.prompts).await?;
    let norms = decoder_norms(&app, source);
    let of_prompt = |seen: &Seen| {
        let activations = seen.activations(source);
        let mut active_features = BTreeMap::<usize, Vec<_>>::new();
        for row_idx in seen.n_bos()..seen.rows.len() {
            for (index, activation) in activations.row(row_idx) {
                let of_feature = active_features.entry(index).or_default();
                of_feature.push((row_idx, activation * norms[index]));
            }
        }
        ActiveFeatures {
            tokens: seen.texts(),
            active_features,
        }
    };
    let results = reading::answers(&seen, of_prompt);
    Ok(Json(Results { results }))
}
