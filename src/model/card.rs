//! What the weights alone say of a feature: its directions, its neighbours, the tokens that it moves.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use gguf_tools::gguf::Gguf;
use gguf_tools::sae::Architecture;
use serde::Serialize;

use super::hooked_model::HookedModel;
use super::neuronpedia::NeuronpediaSource;
use crate::llama::{Matrix, MatrixProduct, Model};
use crate::{
    Error, ErrorKind, FeatureId, FeatureName, HookPoint, Result, RowProduct, Sae, Site, Token,
};

/// A feature by its weights alone; as JSON, names here are an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureCard {
    /// Its name, with the SAE's id where it is one of several.
    pub feature: FeatureName,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// Where its SAE reads.
    pub hook_point: String,
    /// Where it writes, if its SAE is a transcoder: one place, or several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hook_points_out: Vec<String>,
    /// What its `h` must exceed; only with the architecture `jumprelu`.
    pub threshold: Option<f32>,
    /// `b_enc[feature]`.
    pub encoder_bias: f32,
    /// `‖W_enc[:, feature]‖`.
    pub encoder_norm: f32,
    /// `‖W_dec[feature]‖`.
    pub decoder_norm: f32,
    /// Its usual activation, where the SAE's file says it ([`Sae::usual`]).
    pub usual: Option<f32>,
    /// Its page on Neuronpedia, where the SAE is known there.
    pub neuronpedia: Option<String>,
    /// The features of its SAE whose decoder directions are most like its own, itself left out.
    pub neighbours: Vec<Neighbour>,
    /// What its direction does to the next token; none if its SAE's features are not added to the residual stream as they
    /// are. What the feed-forward part gives is; of a cross-layer transcoder, it is what the feature adds at all places.
    pub tokens: Option<TokenEffects>,
}

/// A feature beside another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its name.
    pub feature: FeatureName,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// The cosine of the two decoder directions; 0 where one of them is zero.
    pub cosine: f32,
}

/// What a direction of the residual stream does to the logits straight through the unembedding, past the blocks
/// between (the logit lens).
///
/// The logits are `W_U · (g ⊙ d/‖d‖)`, minus their mean over the vocabulary: `d` is the decoder row, `g` the final
/// norm's weight (Gemma's with its 1 added; a layer norm subtracts the mean of `d` first), `W_U` the output matrix, or
/// the embedding where that is shared. So Neuronpedia has them: `SAEDashboard` takes unit-length rows (`fold_W_dec_norm`) times the `W_U` of
/// `TransformerLens`, which has the norm folded in and, unless logits are capped, is centred. The norm's division,
/// a cap on logits and the embedding's scale change no ranking and are left out.
///
/// Tokens that no text has, special and unused ones, are left out too, but count for the mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenEffects {
    /// Those with the largest logits, largest first.
    pub promoted: Vec<TokenEffect>,
    /// Those with the smallest logits, smallest first.
    pub suppressed: Vec<TokenEffect>,
}

/// What a direction does to a token's logit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenEffect {
    /// The token.
    pub id: i32,
    /// Its text, with what space it has; of part of a character, the replacement character.
    pub text: String,
    /// Its logit above the mean.
    pub logit: f32,
}

/// Directions that are taken to logits together: of a large vocabulary, each takes a megabyte.
const DIRECTIONS_AT_ONCE: usize = 16;

/// What turns rows of the residual stream into logits.
pub(super) struct Unembedding {
    norm_weight: Vec<f32>, // [d_model]
    is_layer_norm: bool,   // which subtracts a row's mean
    matrix: Arc<Matrix>,   // [n_vocab, d_model]
}

impl Unembedding {
    /// That of a model's file, or of one of its shards; the matrix stays there.
    pub(super) fn open(path: &Path, model: &Model) -> Result<Self> {
        let gguf = Gguf::open_with_shards(path)?;
        let (d_model, n_vocab) = (model.d_model() as u64, model.n_vocab() as u64);
        let name = match gguf.tensor("output.weight") {
            Some(_) => "output.weight",
            None => "token_embd.weight",
        };
        let matrix = gguf.require_tensor(name, &[d_model, n_vocab])?;
        let norm_weight = gguf.require_tensor("output_norm.weight", &[d_model])?;
        Ok(Self {
            norm_weight: gguf.read_f32(norm_weight)?,
            is_layer_norm: gguf.tensor("output_norm.bias").is_some(),
            matrix: Matrix::load(&gguf.paths()[matrix.shard_idx], matrix, false)?,
        })
    }
}

/// The card of a feature, with `top` neighbours and as many tokens each way.
pub(super) fn of(model: &HookedModel, feature: FeatureId, top: usize) -> Result<FeatureCard> {
    let sae = &model.saes()[feature.sae];
    let index = feature.index;
    let direction = sae.decoder_direction(index)?;
    let unit = unit(&direction.row, direction.norm);
    let adds_to_stream =
        |output: &HookPoint| matches!(output.site(), Site::ResidPost | Site::MlpOut);
    let tokens = sae.outputs().iter().all(adds_to_stream).then(|| {
        let d_out = sae.meta().d_out;
        let mut added = unit[..d_out].to_vec();
        for others in unit[d_out..].chunks_exact(d_out) {
            for (x, other) in added.iter_mut().zip(others) {
                *x += other;
            }
        }
        token_effects(model, &added, top)
    });
    let square = |x: &f32| f64::from(*x).powi(2);
    let encoder_norm = sae.encoder_row(index)?.iter().map(square).sum::<f64>();
    let named = |index| {
        let feature = FeatureId { index, ..feature };
        let label = model.saes().label(feature).map(str::to_owned);
        (model.saes().shown(feature), label)
    };
    let neighbour = |(index, cosine)| {
        let (feature, label) = named(index);
        Neighbour {
            feature,
            label,
            cosine,
        }
    };
    let nearest = nearest(sae, &unit, model.options().threads, top.saturating_add(1))?;
    let others = nearest.into_iter().filter(|(other, _)| *other != index);
    let (feature, label) = named(index);
    Ok(FeatureCard {
        feature,
        label,
        hook_point: sae.hook_point().to_string(),
        hook_points_out: match sae.meta().is_transcoder() {
            true => sae.outputs().iter().map(HookPoint::to_string).collect(),
            false => Vec::new(),
        },
        threshold: match sae.meta().architecture {
            Architecture::JumpRelu => Some(sae.threshold()[index]),
            Architecture::Standard | Architecture::TopK { .. } => None,
        },
        encoder_bias: sae.b_enc()[index],
        encoder_norm: encoder_norm.sqrt() as f32,
        decoder_norm: direction.norm,
        usual: direction.usual,
        neuronpedia: NeuronpediaSource::of(sae)
            .and_then(|source| source.address())
            .map(|address| format!("{address}/{index}")),
        neighbours: others.take(top).map(neighbour).collect(),
        tokens: tokens.transpose()?,
    })
}

/// The features whose decoder directions have the largest cosines with `unit`, `[decoder_width]`, and those.
pub(super) fn nearest(
    sae: &Sae,
    unit: &[f32],
    threads: usize,
    top: usize,
) -> Result<Vec<(usize, f32)>> {
    let Some(file) = sae.file() else {
        let what = "directions are compared in an SAE's file, and this SAE has none";
        return Err(Error::new(ErrorKind::Unsupported, what));
    };
    let decoder = Matrix::load(file.path(), file.w_dec(), false)?;
    let products = multiply(&decoder, unit, threads)?;
    let norms = sae.decoder_norm().iter();
    // Rounding of what the decoder is stored in may lead past 1.
    let cosine = |(product, norm): (f32, &f32)| (product * inverse_or_zero(*norm)).clamp(-1.0, 1.0);
    let cosines = products.into_iter().zip(norms).map(cosine);
    Ok(first(cosines.enumerate().collect(), top, |a, b| {
        b.total_cmp(&a)
    }))
}

/// The tokens that adding `unit` to the residual stream moves most.
fn token_effects(model: &HookedModel, unit: &[f32], top: usize) -> Result<TokenEffects> {
    let logits = centred_logits(model, unit)?;
    let language_model = model.language_model();
    let unused: HashSet<i32> = language_model.unused_tokens().into_iter().collect();
    let logits = language_model.token_ids().zip(logits);
    let logits = logits.filter(|(id, _)| !unused.contains(id) && !language_model.is_special(*id));
    let logits: Vec<_> = logits.collect();
    let effect = |(id, logit)| TokenEffect {
        id,
        text: model.token_text(Token::text(id)).unwrap_or_default(),
        logit,
    };
    let effects = |chosen: Vec<_>| chosen.into_iter().map(effect).collect();
    Ok(TokenEffects {
        promoted: effects(first(logits.clone(), top, |a, b| b.total_cmp(&a))),
        suppressed: effects(first(logits, top, |a, b| a.total_cmp(&b))),
    })
}

/// What the decoder rows of these features do to the logit of the token `id`, as [`TokenEffects`] has it of unit-length
/// rows.
pub(super) fn direct_logits(
    model: &HookedModel,
    features: &[FeatureId],
    id: i32,
) -> Result<Vec<f32>> {
    let id = usize::try_from(id).expect("ids are not negative");
    let mut found = Vec::new();
    for features in features.chunks(DIRECTIONS_AT_ONCE) {
        let mut directions = Vec::new();
        for feature in features {
            directions.extend(
                model.saes()[feature.sae]
                    .decoder_direction(feature.index)?
                    .row,
            );
        }
        let logits = centred_logits(model, &directions)?;
        let of_each = logits.chunks_exact(logits.len() / features.len());
        found.extend(of_each.map(|logits| logits[id]));
    }
    Ok(found)
}

/// What each of `directions`, `[n, d_model]`, does to the logits, minus the mean of that: `[n, n_vocab]`.
fn centred_logits(model: &HookedModel, directions: &[f32]) -> Result<Vec<f32>> {
    let Unembedding {
        norm_weight,
        is_layer_norm,
        matrix,
    } = model.unembedding()?;
    let scaled = directions
        .chunks_exact(norm_weight.len())
        .flat_map(|direction| {
            let sum: f64 = direction.iter().copied().map(f64::from).sum();
            let mean = match is_layer_norm {
                true => (sum / direction.len() as f64) as f32,
                false => 0.0,
            };
            let weights = direction.iter().zip(norm_weight);
            weights.map(move |(x, weight)| (x - mean) * weight)
        });
    let scaled: Vec<f32> = scaled.collect();
    let mut logits = multiply(matrix, &scaled, model.options().threads)?;
    let n_vocab = logits.len() / (directions.len() / norm_weight.len());
    for logits in logits.chunks_exact_mut(n_vocab) {
        let sum: f64 = logits.iter().copied().map(f64::from).sum();
        let mean = (sum / n_vocab as f64) as f32;
        for logit in logits {
            *logit -= mean;
        }
    }
    Ok(logits)
}

/// The products of each of `rows` with all rows of `matrix`.
fn multiply(matrix: &Arc<Matrix>, rows: &[f32], threads: usize) -> Result<Vec<f32>> {
    let mut product = MatrixProduct::new(Arc::clone(matrix), threads)?;
    Ok(product.apply(rows)?.to_vec())
}

/// A vector of length `norm` brought to length 1; zeros stay.
pub(super) fn unit(vector: &[f32], norm: f32) -> Vec<f32> {
    let inverse = inverse_or_zero(norm);
    vector.iter().map(|x| x * inverse).collect()
}

fn inverse_or_zero(norm: f32) -> f32 {
    match norm > 0.0 {
        true => norm.recip(),
        false => 0.0,
    }
}

/// The first `top` by their values' order, and then by their indices.
fn first<T: Ord + Copy>(
    mut all: Vec<(T, f32)>,
    top: usize,
    order: impl Fn(f32, f32) -> Ordering,
) -> Vec<(T, f32)> {
    all.sort_unstable_by(|a, b| order(a.1, b.1).then(a.0.cmp(&b.0)));
    all.truncate(top);
    all
}
