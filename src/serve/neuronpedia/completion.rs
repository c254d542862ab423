//! `POST /v1/steer/completion`: a text that is gone on with, steered and not.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::steer::{LogProb, Output, SteerRequest, SteerType};
use super::wire::Form;
use crate::serve::app::App;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;

/// What was generated behind a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct SteeredTexts {
    /// In the order in which they were asked for.
    outputs: Vec<SteeredText>,
}

/// A text, without the prompt.
#[derive(Serialize, ToSchema)]
struct SteeredText {
    r#type: SteerType,
    output: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<LogProb>,
}

/// Goes on with a text, steered and not, side by side.
#[utoipa::path(
    post,
    path = "/v1/steer/completion",
    tag = "Neuronpedia",
    request_body = SteerRequest<String>,
    responses((status = 200, body = SteeredTexts))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    Form(request): Form<SteerRequest<String>>,
) -> Result<Response, Refusal> {
    let place = request.take_place(&app)?;
    let prepared = app.prepare(Asked::Raw(request.prompt.clone())).await?;
    let output = |output: &Output| SteeredText {
        r#type: output.r#type,
        output: output.text.clone(),
        logprobs: output.log_probs.clone(),
    };
    let form = move |outputs: &[Output]| SteeredTexts {
        outputs: outputs.iter().map(output).collect(),
    };
    request.answer(&app, place, &prepared, form).await
}
