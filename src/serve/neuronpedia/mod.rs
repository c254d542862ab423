//! Neuronpedia's endpoints, as its inference server (`apps/inference` in its repository) has them and its clients
//! speak them, with images: a chat's `content` may be OpenAI's parts, and a prompt whose features are asked for may be
//! such a chat. Numbers are in Neuronpedia's units: decoder rows of length 1.

mod activation;
mod capabilities;
mod chat;
mod completion;
mod names;
mod reading;
mod steer;
mod util;
mod wire;

pub(super) use names::Names;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::app::App;
use super::refusal::Refusal;

/// Where these endpoints are, and nothing else.
const PREFIXES: [&str; 5] = [
    "/v1/capabilities",
    "/v1/steer/",
    "/v1/activation/",
    "/v1/tokenize",
    "/v1/util/",
];

/// What `/openapi.json` says of them.
#[derive(OpenApi)]
#[openapi(paths(
    capabilities::tell,
    completion::complete,
    chat::complete,
    activation::single::one,
    activation::single::many,
    activation::all::one,
    activation::all::many,
    activation::topk::one,
    activation::topk::many,
    activation::source::many,
    util::tokenize,
    util::sae_vector,
    util::nearest_features,
))]
pub(super) struct Paths;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/capabilities", get(capabilities::tell))
        .route("/v1/steer/completion", post(completion::complete))
        .route("/v1/steer/completion-chat", post(chat::complete))
        .route("/v1/activation/single", post(activation::single::one))
        .route(
            "/v1/activation/single-batch",
            post(activation::single::many),
        )
        .route("/v1/activation/all", post(activation::all::one))
        .route("/v1/activation/all-batch", post(activation::all::many))
        .route("/v1/activation/topk-by-token", post(activation::topk::one))
        .route(
            "/v1/activation/topk-by-token-batch",
            post(activation::topk::many),
        )
        .route("/v1/activation/source", post(activation::source::many))
        .route("/v1/tokenize", post(util::tokenize))
        .route("/v1/util/sae-vector", post(util::sae_vector))
        .route(
            "/v1/util/sae-topk-by-decoder-cossim",
            post(util::nearest_features),
        )
}

/// What these endpoints take and answer.
#[derive(OpenApi)]
#[openapi(paths(
    capabilities::tell,
    completion::complete,
    chat::complete,
    activation::single::one,
    activation::single::many,
    activation::all::one,
    activation::all::many,
    activation::topk::one,
    activation::topk::many,
    activation::source::many,
    util::tokenize,
    util::sae_vector,
    util::nearest_features,
))]
pub(super) struct Documentation;

/// Gives refusals below these paths Neuronpedia's form, whoever refuses.
pub(super) async fn refuse_in_own_form(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_own = PREFIXES.iter().any(|prefix| path.starts_with(prefix));
    let mut response = next.run(request).await;
    if is_own && let Some(refusal) = response.extensions().get::<Refusal>() {
        let body = body_of(refusal).to_string();
        *response.body_mut() = Body::from(body);
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
    }
    response
}

/// A sentence; of a malformed request, what FastAPI says of one.
fn body_of(refusal: &Refusal) -> Value {
    if refusal.status != StatusCode::UNPROCESSABLE_ENTITY {
        return json!({"error": refusal.message});
    }
    let (kind, place) = match wire::missing_member(&refusal.message) {
        Some(member) => ("missing", vec![Value::from(member)]),
        None => (
            "value_error",
            wire::place(refusal.param.as_deref().unwrap_or_default()),
        ),
    };
    let place: Vec<Value> = std::iter::once("body".into()).chain(place).collect();
    json!({"detail": [{"type": kind, "loc": place, "msg": refusal.message}]})
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    use super::{Documentation, PREFIXES};

    #[test]
    fn all_is_described() {
        let described = Documentation::openapi();
        assert_eq!(described.paths.paths.len(), 13);
        for path in described.paths.paths.keys() {
            assert!(
                PREFIXES.iter().any(|prefix| path.starts_with(prefix)),
                "{path}"
            );
        }
        // Requests of texts and of chats are described apart.
        let schemas = described.components.expect("schemas").schemas;
        let requests = schemas
            .keys()
            .filter(|name| name.starts_with("SteerRequest"));
        assert_eq!(requests.count(), 2, "{:?}", schemas.keys());
    }
}
