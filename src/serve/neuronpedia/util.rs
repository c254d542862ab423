//! `POST /v1/tokenize` and `POST /v1/util/…`: what is known without a run.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::wire::Form;
use crate::llama::AddBos;
use crate::serve::app::App;
use crate::serve::refusal::Refusal;
use crate::steering::Vector;
use crate::{CancelFlag, Token};

/// The most neighbours that are given.
const MAX_NEIGHBOURS: usize = 128;

/// A text to be cut into tokens.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TokenizeRequest {
    text: String,
    model: String,
    /// Whether the vocabulary's token for the beginning of a sequence goes in front; where nothing is said, as in
    /// other requests' prompts.
    #[serde(alias = "prepend_bos")]
    prepend_bos: Option<bool>,
}

/// A text's tokens.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tokens {
    tokens: Vec<i32>,
    token_strings: Vec<String>,
    /// Whether the token for the beginning of a sequence was put in front.
    prepend_bos: bool,
}

/// Cuts a text into tokens.
#[utoipa::path(
    post,
    path = "/v1/tokenize",
    tag = "Neuronpedia",
    request_body = TokenizeRequest,
    responses((status = 200, body = Tokens))
)]
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    Form(request): Form<TokenizeRequest>,
) -> Result<Json<Tokens>, Refusal> {
    let _place = app.take_place()?;
    app.names.check_model(&request.model)?;
    let cut = move |app: &App, cancel: &CancelFlag| tokens(app, &request, cancel);
    app.compute(cut).await.map(Json)
}

fn tokens(app: &App, request: &TokenizeRequest, cancel: &CancelFlag) -> crate::Result<Tokens> {
    let (model, text) = (app.model.language_model(), &request.text);
    let plain = app.model.tokenize(text, AddBos::No, cancel)?;
    let bos = match request.prepend_bos {
        Some(prepend) => model.bos().filter(|_| prepend),
        None => model.added_bos().filter(|_| !model.begins_with_bos(text)),
    };
    let tokens: Vec<i32> = bos.into_iter().chain(plain).collect();
    let string = |&id: &i32| app.model.token_text(Token::text(id)).unwrap_or_default();
    Ok(Tokens {
        token_strings: tokens.iter().map(string).collect(),
        tokens,
        prepend_bos: bos.is_some(),
    })
}

/// A feature of an SAE.
#[derive(Clone, Deserialize, Serialize, ToSchema)]
pub(super) struct Feature {
    model: String,
    source: String,
    index: usize,
}

/// What a feature reads.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SaeVector {
    /// The encoder's column of the feature, times its decoder row's length.
    vector: Vec<f32>,
    hook_name: String,
}

/// The direction by which a feature is read, and where: Neuronpedia's server gives the encoder's, too.
#[utoipa::path(
    post,
    path = "/v1/util/sae-vector",
    tag = "Neuronpedia",
    request_body = Feature,
    responses((status = 200, body = SaeVector))
)]
pub(crate) async fn sae_vector(
    State(app): State<Arc<App>>,
    Form(feature): Form<Feature>,
) -> Result<Json<SaeVector>, Refusal> {
    let _place = app.take_place()?;
    app.names.check_model(&feature.model)?;
    let source = app.names.source(&feature.source)?;
    let sae = &app.model.saes()[source.sae];
    let mut vector = sae.encoder_row(feature.index)?;
    let norm = sae.decoder_norm()[feature.index];
    vector.iter_mut().for_each(|x| *x *= norm);
    Ok(Json(SaeVector {
        vector,
        hook_name: sae.meta().hook_name.clone(),
    }))
}

/// The features of an SAE that are like a feature, or like a vector.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NearestRequest {
    model: String,
    /// The SAE.
    source: String,
    /// How many; 1 to 128 are given.
    #[serde(alias = "num_results")]
    num_results: usize,
    /// A feature of that SAE.
    feature: Option<Feature>,
    /// As many numbers as the SAE's rows have.
    vector: Option<Vec<f32>>,
}

/// The features whose decoder directions are nearest.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Nearest {
    /// The feature that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<Feature>,
    topk_decoder_cossim_features: Vec<Similar>,
}

/// A feature, and how like the one that was asked about it is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Similar {
    feature: Feature,
    cosine_similarity: f32,
}

/// The features whose decoder directions have the largest cosines with a feature's, which is the first of them, or
/// with a vector.
#[utoipa::path(
    post,
    path = "/v1/util/sae-topk-by-decoder-cossim",
    tag = "Neuronpedia",
    request_body = NearestRequest,
    responses((status = 200, body = Nearest))
)]
pub(crate) async fn nearest_features(
    State(app): State<Arc<App>>,
    Form(request): Form<NearestRequest>,
) -> Result<Json<Nearest>, Refusal> {
    let _place = app.take_place()?;
    app.names.check_model(&request.model)?;
    let source = app.names.source(&request.source)?;
    let (sae_idx, sae) = (source.sae, &app.model.saes()[source.sae]);
    let values = match (&request.feature, request.vector) {
        (Some(feature), None) => {
            app.names.check_model(&feature.model)?;
            if app.names.source(&feature.source)?.sae != sae_idx {
                let what = "the feature is of another `source` than it is to be compared with";
                return Err(Refusal::about("feature", what));
            }
            sae.decoder_row(feature.index)?
        }
        (None, Some(vector)) => vector,
        _ => {
            let what = "either `feature` or `vector` has to be given, and not both";
            return Err(Refusal::bad(what));
        }
    };
    let vector = Vector::new("vector", sae.outputs()[0], values)?;
    let top = request.num_results.clamp(1, MAX_NEIGHBOURS);
    let found = app.compute(move |app, _| app.model.nearest_features(sae_idx, &vector, top));
    let similar = |(index, cosine_similarity)| Similar {
        feature: Feature {
            model: request.model.clone(),
            source: request.source.clone(),
            index,
        },
        cosine_similarity,
    };
    Ok(Json(Nearest {
        topk_decoder_cossim_features: found.await?.into_iter().map(similar).collect(),
        feature: request.feature,
    }))
}
