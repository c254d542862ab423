//! `GET /v1/models`: the one that is served.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::wire::seconds;
use crate::serve::app::App;

#[derive(Serialize, ToSchema)]
pub(crate) struct Models {
    object: &'static str,
    data: [Model; 1],
}

#[derive(Serialize, ToSchema)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

/// The model that is served.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = Models)))]
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Models> {
    Json(Models {
        object: "list",
        data: [Model {
            id: app.shown.model.clone(),
            object: "model",
            created: seconds(app.started_at),
            owned_by: "llava-sae-cpp",
        }],
    })
}
