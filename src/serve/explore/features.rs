//! `POST /api/features`: the features of a prompt.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::request::asked;
use crate::serve::app::App;
use crate::serve::body::Body;
use crate::serve::generation::steering;
use crate::serve::refusal::Refusal;
use crate::serve::sae::SaeRequest;
use crate::{Request, RunOptions};

/// A prompt, and what to give back of its features.
#[derive(Deserialize, ToSchema)]
pub(crate) struct FeaturesRequest {
    /// A chat; images are parts of messages, as `data:` URLs.
    #[schema(value_type = Option<Vec<Object>>)]
    messages: Option<Box<RawValue>>,
    /// A text as it stands, instead of a chat.
    prompt: Option<String>,
    /// Interventions below the SAEs that are read: a saved set, or the list in one.
    #[schema(value_type = Option<Vec<Object>>)]
    steering: Option<Box<RawValue>>,
    sae: Option<SaeRequest>,
}

/// The features of a prompt; nothing is generated.
#[utoipa::path(
    post,
    path = "/api/features",
    tag = "ours",
    request_body = FeaturesRequest,
    responses((status = 200, body = Object))
)]
pub(crate) async fn look(
    State(app): State<Arc<App>>,
    body: Body<FeaturesRequest>,
) -> Result<Json<Box<RawValue>>, Refusal> {
    let _place = app.take_place()?;
    let request = body.known()?;
    let asked = asked(request.messages.as_deref(), request.prompt.as_deref())?;
    let prepared = app.prepare(asked).await?;
    let sae = request.sae.unwrap_or_default();
    let wanted = sae.check(&app, &prepared)?;
    if wanted.are_of_text() {
        let what = "nothing is generated here: ask `/v1/chat/completions` with `sae` for features of generated text";
        return Err(Refusal::about("sae.over", what));
    }
    let set = request.steering.as_deref();
    let steering = set.map(|set| steering(&app, set, &*prepared.prompt));
    let options = RunOptions {
        steering: steering.transpose()?.flatten(),
        keep: wanted.keep(),
        ..RunOptions::default()
    };
    let request = Request::new(Arc::clone(&prepared.prompt), options);
    let mut runs = app.runs.ask(vec![request]).end().await?;
    Ok(Json(wanted.answer(&app, runs.remove(0).trace).await?))
}
