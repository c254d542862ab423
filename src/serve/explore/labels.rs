//! `GET /api/labels`: features by words in their labels.

use std::num::NonZeroUsize;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::request::top;
use crate::FeatureId;
use crate::labels::Matching;
use crate::serve::app::App;
use crate::serve::refusal::Refusal;

/// What is searched for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Search {
    /// Words, or parts of words, in upper or lower case.
    #[serde(default)]
    q: String,
    /// How labels match: `contains` (each word, or as a part of one), `prefix` (the label begins so) or `fuzzy` (each
    /// word but for a typing error or two); without it `contains`, and `fuzzy` where that finds nothing.
    #[param(value_type = Option<String>)]
    r#match: Option<Matching>,
    /// How many features to list (50).
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1000)]
    top: Option<NonZeroUsize>,
}

/// The features whose labels match.
#[derive(Serialize, ToSchema)]
pub(crate) struct Found {
    /// How they match: `contains`, `prefix` or `fuzzy`.
    #[schema(value_type = String)]
    matching: Matching,
    /// Best match first.
    labels: Vec<Labelled>,
    n_found: usize,
}

/// A feature with its label.
#[derive(Serialize, ToSchema)]
struct Labelled {
    #[schema(value_type = Object)]
    feature: crate::FeatureName,
    label: Option<String>,
    /// Its usual activation, where the SAE's file says it.
    usual: Option<f32>,
}

/// The features whose labels match a text.
#[utoipa::path(
    get,
    path = "/api/labels",
    tag = "ours",
    params(Search),
    responses((status = 200, body = Found))
)]
pub(crate) async fn search(
    State(app): State<Arc<App>>,
    query: Result<Query<Search>, QueryRejection>,
) -> Result<Json<Found>, Refusal> {
    let Query(Search {
        q,
        r#match: matching,
        top: given,
    }) = query?;
    let top = top(given, 50)?;
    let found = app.compute(move |app, _| app.model.saes().search_labels(&q, matching));
    let found = found.await.map_err(|refusal| refusal.of("q"))?;
    let saes = app.model.saes();
    let labelled = |&feature: &FeatureId| Labelled {
        feature: saes.shown(feature),
        label: saes.label(feature).map(str::to_owned),
        usual: saes.usual(feature),
    };
    Ok(Json(Found {
        matching: found.matching,
        labels: found.features.iter().take(top).map(labelled).collect(),
        n_found: found.features.len(),
    }))
}
