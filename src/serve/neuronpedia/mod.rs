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
use serde::Serialize;
use serde_json::Value;
use utoipa::{Modify, OpenApi, ToSchema};

use super::app::App;
use super::openapi;
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
#[openapi(
    paths(
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
    ),
    components(schemas(Problem)),
    modifiers(&Problems),
)]
pub(super) struct Paths;

struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        openapi::add_refusals(document, "Problem");
    }
}

/// Why there is no answer.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Problem {
    Refused {
        /// What failed, why, and what to do.
        error: String,
    },
    /// As FastAPI has it.
    Malformed { detail: [Malformed; 1] },
}

/// What is wrong with a request's form.
#[derive(Serialize, ToSchema)]
struct Malformed {
    /// `missing` or `value_error`.
    r#type: &'static str,
    /// Where: `body`, and the names and indices that lead there.
    loc: Vec<Value>,
    msg: String,
}

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

/// Gives refusals below these paths Neuronpedia's form, whoever refuses.
pub(super) async fn refuse_in_own_form(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_own = PREFIXES.iter().any(|prefix| path.starts_with(prefix));
    let mut response = next.run(request).await;
    if is_own && let Some(refusal) = response.extensions().get::<Refusal>() {
        let problem = serde_json::to_string(&Problem::of(refusal)).expect("plain data");
        *response.body_mut() = Body::from(problem);
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
    }
    response
}

impl Problem {
    fn of(refusal: &Refusal) -> Self {
        let msg = refusal.message.clone();
        if refusal.status != StatusCode::UNPROCESSABLE_ENTITY {
            return Self::Refused { error: msg };
        }
        let (kind, place) = match wire::missing_member(&msg) {
            Some(member) => ("missing", vec![member.into()]),
            None => {
                let path = refusal.param.as_deref().unwrap_or_default();
                ("value_error", wire::place(path))
            }
        };
        let detail = Malformed {
            r#type: kind,
            loc: std::iter::once("body".into()).chain(place).collect(),
            msg,
        };
        Self::Malformed { detail: [detail] }
    }
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    use super::{PREFIXES, Paths};

    #[test]
    fn all_is_described() {
        let described = Paths::openapi();
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
