//! `GET /openapi.json`: what there is to ask for.

use std::sync::LazyLock;

use axum::Json;
use utoipa::Modify;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

use super::refusal::ErrorBody;
use super::{explore, neuronpedia, openai};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "llava-sae-cpp",
        description = "A vision-language model with the features of sparse autoencoders, and steering by them",
    ),
    paths(health),
    components(schemas(ErrorBody)),
    modifiers(&Keys),
    security((), ("bearer" = []), ("secret" = [])),
)]
struct Document;

/// Whether the server is there.
#[utoipa::path(get, path = "/health", responses((status = 200, body = Object)))]
pub(super) async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({"status": "ok"}))
}

/// How a key is sent.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("bearer", bearer);
        let secret = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-SECRET-KEY")));
        components.add_security_scheme("secret", secret);
    }
}

/// The document, in which every operation may end with a refusal.
pub(super) async fn document() -> Json<&'static utoipa::openapi::OpenApi> {
    static WHOLE: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(whole);
    Json(&WHOLE)
}

fn whole() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    document.merge(openai::Paths::openapi());
    document.merge(explore::Paths::openapi());
    document.merge(neuronpedia::Paths::openapi());
    add_refusals(&mut document, "ErrorBody");
    document
}

/// Says that every operation may end with a refusal of this schema, but those that say how else.
pub(super) fn add_refusals(document: &mut utoipa::openapi::OpenApi, schema: &str) {
    let refusal = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .build();
    let refusal = ResponseBuilder::new()
        .description("Why there is no answer")
        .content("application/json", refusal)
        .build();
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            let default = || RefOr::T(refusal.clone());
            responses
                .entry("default".to_owned())
                .or_insert_with(default);
        }
    }
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    use super::{explore, neuronpedia, openai};

    /// A schema's name is a type's, and modules may have types of the same name: one would stand for both.
    #[test]
    fn schemas_have_names_of_their_own() {
        let groups = [
            openai::Paths::openapi(),
            explore::Paths::openapi(),
            neuronpedia::Paths::openapi(),
        ];
        let schemas = groups.map(|group| group.components.expect("schemas").schemas);
        for (i, one) in schemas.iter().enumerate() {
            for (name, schema) in schemas[..i].iter().flatten() {
                assert!(one.get(name).is_none_or(|other| other == schema), "{name}");
            }
        }
    }
}
