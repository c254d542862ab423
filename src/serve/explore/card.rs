//! `GET /api/features/{feature}`: what the weights say of a feature.

use std::num::NonZeroUsize;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::request::top;
use crate::FeatureCard;
use crate::serve::app::App;
use crate::serve::refusal::Refusal;

/// How much of it.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HowMuch {
    /// How many neighbours, and tokens each way (10).
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1000)]
    top: Option<NonZeroUsize>,
}

/// What the weights say of a feature: its norms, its neighbours, the tokens that it promotes and suppresses.
#[utoipa::path(
    get,
    path = "/api/features/{feature}",
    tag = "ours",
    params(("feature" = String, Path, description = "An index, a label, or `SAE/FEATURE`"), HowMuch),
    responses((status = 200, body = Object))
)]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<HowMuch>, QueryRejection>,
) -> Result<Json<FeatureCard>, Refusal> {
    let Path(name) = name?;
    let Query(HowMuch { top: given }) = query?;
    let top = top(given, 10)?;
    let feature = app.model.find_feature(&name);
    let feature = feature.map_err(Refusal::of_address)?;
    let _place = app.take_place()?;
    let card = app.compute(move |app, _| app.model.feature_card(feature, top));
    Ok(Json(card.await?))
}
