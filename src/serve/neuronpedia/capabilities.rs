//! `GET /v1/capabilities`: what there is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::activation::all::MAX_RESULTS;
use crate::llama;
use crate::serve::app::App;

/// What this server can be asked; unlike other answers in snake case, as Neuronpedia's server has it.
#[derive(Serialize, ToSchema)]
pub(crate) struct Capabilities {
    model: String,
    backend: &'static str,
    device: &'static str,
    max_concurrent_requests: usize,
    /// A request's tokens, generated ones among them.
    max_tokens: usize,
    /// A prompt's.
    token_limit: usize,
    activation_token_limit: usize,
    max_num_results: usize,
    /// Where rows can be seen and changed.
    capture_points: [&'static str; 5],
    num_layers: usize,
    sae_sets: Vec<String>,
    /// The SAEs, which Neuronpedia's server does not list.
    sources: Vec<String>,
    endpoints: BTreeMap<&'static str, bool>,
}

/// What this server can be asked.
#[utoipa::path(
    get,
    path = "/v1/capabilities",
    tag = "Neuronpedia",
    responses((status = 200, body = Capabilities))
)]
pub(crate) async fn tell(State(app): State<Arc<App>>) -> Json<Capabilities> {
    let model = &app.model;
    let sources = app.names.sources();
    let has_saes = !sources.is_empty();
    let capacity = app.runs.capacity();
    // A prompt leaves room for a token.
    let token_limit = capacity - 1;
    Json(Capabilities {
        model: app.shown.model.clone(),
        backend: "llama.cpp",
        device: match llama::has_gpu() && model.options().use_gpu() {
            true => "gpu",
            false => "cpu",
        },
        max_concurrent_requests: app.parallel,
        max_tokens: capacity,
        token_limit,
        activation_token_limit: token_limit,
        max_num_results: MAX_RESULTS,
        capture_points: ["attn_out", "mlp_out", "resid_post", "resid_pre", "z"],
        num_layers: model.language_model().n_layers(),
        sae_sets: app.names.sets().into_iter().map(str::to_owned).collect(),
        sources: sources.iter().map(|source| source.name.clone()).collect(),
        endpoints: BTreeMap::from([
            ("tokenize", true),
            ("activation_single", true),
            ("activation_all", has_saes),
            ("activation_source", has_saes),
            ("activation_topk_by_token", has_saes),
            ("activation_raw", false),
            ("activation_attention", false),
            ("dfa", false),
            ("steer_completion", true),
            ("steer_completion_chat", true),
            ("lens_logit", false),
            ("lens_jacobian", false),
            ("neurons", false),
        ]),
    })
}
