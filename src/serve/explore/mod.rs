//! Our own endpoints: what SAEs see of a prompt, what is known of features, and what interventions change.

mod card;
mod compare;
mod events;
mod examples;
mod features;
mod interventions;
mod labels;
mod model;
mod request;
mod status;
mod sweep;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use utoipa::OpenApi;

use super::app::App;

/// What `/openapi.json` says of them.
#[derive(OpenApi)]
#[openapi(paths(
    model::describe,
    status::tell,
    examples::picture,
    labels::search,
    card::show,
    features::look,
    interventions::resolve,
    compare::compare,
    sweep::sweep,
))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/model", get(model::describe))
        .route("/api/status", get(status::tell))
        .route("/api/examples/{name}", get(examples::picture))
        .route("/api/labels", get(labels::search))
        .route("/api/features/{feature}", get(card::show))
        .route("/api/features", post(features::look))
        .route("/api/interventions", post(interventions::resolve))
        .route("/api/compare", post(compare::compare))
        .route("/api/sweep", post(sweep::sweep))
}
