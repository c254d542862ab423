//! `GET /api/examples/{name}`: the demo's pictures.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::demo::PICTURES;
use crate::serve::refusal::Refusal;

/// A picture to begin with.
#[derive(Serialize, ToSchema)]
pub(super) struct Example {
    name: &'static str,
    /// Where it is, on this server.
    url: String,
}

/// All of them.
pub(super) fn all() -> Vec<Example> {
    let example = |&(name, _): &(&'static str, _)| Example {
        name,
        url: format!("/api/examples/{name}.png"),
    };
    PICTURES.iter().map(example).collect()
}

/// A picture to begin with, as `/api/model` lists them.
#[utoipa::path(
    get,
    path = "/api/examples/{name}",
    tag = "ours",
    params(("name" = String, Path, description = "A name, and `.png`")),
    responses((status = 200, content_type = "image/png", body = Vec<u8>))
)]
pub(crate) async fn picture(
    file: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, Refusal> {
    let Path(file) = file?;
    let name = file.strip_suffix(".png");
    let found = PICTURES.iter().find(|(known, _)| Some(*known) == name);
    let (_, png) = found.ok_or_else(|| {
        let what = format!("there is no example `{file}`: `/api/model` lists them");
        Refusal::new(StatusCode::NOT_FOUND, "not_found", what)
    })?;
    Ok(([(header::CONTENT_TYPE, "image/png")], *png))
}
