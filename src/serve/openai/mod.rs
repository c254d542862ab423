//! OpenAI's endpoints, as its clients and llama-server's speak them, with two members more: `steering`, a saved set of
//! interventions, and `sae`, which features to give back.

mod chat;
pub(super) mod generation;
mod models;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::app::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/chat/completions", post(chat::complete))
}
