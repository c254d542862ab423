//! OpenAI's endpoints, as its clients and llama-server's speak them, with two members more: `steering`, a saved set of
//! interventions, and `sae`, which features to give back.

mod chat;
mod completions;
mod models;
mod request;
mod streamed;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use utoipa::OpenApi;

use super::app::App;

/// What `/openapi.json` says of them.
#[derive(OpenApi)]
#[openapi(paths(models::list, chat::complete, completions::complete))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
}
