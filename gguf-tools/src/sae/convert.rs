//! Converts an SAE as it was published to this project's GGUF.

use std::path::{Path, PathBuf};

use super::labels;
use super::meta::SaeMeta;
use super::published::{self, NormFactor, Published};
use super::recognize;
use super::schema::{
    self, LOG_SPARSITY, MATRIX_TYPES, SCREEN_ERROR, SCREEN_NORM, W_ENC_SCREEN, W_SKIP,
};
use super::source::{FeatureMatrix, Source, norm};
use crate::gguf::{Overwrite, TensorType, TensorWriter};
use crate::output_dir::OutputDir;
use crate::progress::{Meter, Progress};
use crate::{Error, Result};

/// What the labels of the smallest SAE may take.
const FREE_LABEL_BYTES: u64 = 8 << 20;

/// How [`convert`] writes.
#[derive(Clone, Debug)]
pub struct SaeOptions {
    /// Of encoder and decoder: f32, f16 or q8_0.
    pub weight_type: TensorType,
    /// The factor that brings activations to the norm that the SAE was trained on, where its
    /// configuration asks for one.
    pub norm_factor: Option<f32>,
    /// The hook point, whatever the files say: `blocks.12.hook_resid_post`.
    pub hook_name: Option<String>,
    /// Neuronpedia's labels; where two files label a feature, the first one counts.
    pub labels: Vec<PathBuf>,
    /// What to do where the target exists.
    pub overwrite: Overwrite,
}

/// What [`convert`] has written.
#[derive(Clone, Debug)]
pub struct ConvertedSae {
    /// What the file says about the SAE.
    pub meta: SaeMeta,
    /// What was read and decided, in lines for people.
    pub report: Vec<String>,
}

/// Converts the SAE at `source`, a folder in one of the formats of [`Format`](super::Format) or a
/// file of one, to the GGUF file `target`, whose folder is made if need be. `progress` gets bytes of
/// weights read.
///
/// Weights pass through in blocks, whatever the SAE's size.
///
/// # Errors
/// A source of another format, incomplete or malformed, or with numbers that are not finite; a norm factor that
/// is missing, superfluous or not positive; labels that do not fit; everything that writing can meet;
/// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) where `progress` asks for it. Nothing is left
/// behind then.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &SaeOptions,
    progress: Progress,
) -> Result<ConvertedSae> {
    convert_published(source, target, options, None, progress)
}

/// As [`convert`], of an SAE that SAELens' table knows as `published`.
///
/// # Errors
/// As [`convert`].
pub fn convert_published(
    source: &Path,
    target: &Path,
    options: &SaeOptions,
    published: Option<Published>,
    progress: Progress,
) -> Result<ConvertedSae> {
    let (sae, _unpacked) = recognize::open(source, options.hook_name.as_deref())?;
    let d_out = sae.output.as_ref().map_or(sae.d_in, |output| output.d_out);
    let weight_type = weight_type(options.weight_type, &[sae.d_in, d_out])?;
    let published = published.or_else(|| Published::find(&sae));
    let norm_factor = published::choose_norm_factor(&sae, source, options.norm_factor, published)?;
    let (is_centred, centring_said) = published::choose_centring(&sae, published);
    // Labels are held and encoded several times, and what is longer than the weights is none.
    let max_label_bytes = sae.w_dec.tensor.n_bytes().saturating_add(FREE_LABEL_BYTES);
    let labels = labels::read(&options.labels, &sae, max_label_bytes)?;

    let meta = SaeMeta {
        architecture: sae.architecture,
        d_in: sae.d_in,
        d_out,
        d_sae: sae.d_sae,
        hook_name: sae.hook_name.clone(),
        hook_names_out: sae
            .output
            .as_ref()
            .map_or_else(Vec::new, |output| output.hook_names.clone()),
        apply_b_dec_to_input: sae.apply_b_dec_to_input,
        normalize_activations: sae.normalize_activations,
        is_centred,
        norm_factor: norm_factor.map(|factor| factor.value),
        source_format: Some(sae.format.name().to_owned()),
        model_name: sae.model_name.clone(),
        release: published.map(|sae| sae.release.to_owned()),
        id: published.map(|sae| sae.id.to_owned()),
        labels: labels.texts,
        labels_source: labels.source,
    };
    // A screen reads fewer bytes than the encoder does.
    let is_screened =
        weight_type != TensorType::Q8_0 && TensorType::Q8_0.row_bytes(sae.d_in).is_some();
    let mut optional = Vec::new();
    let w_skip = sae
        .output
        .as_ref()
        .and_then(|output| output.w_skip.as_ref());
    if w_skip.is_some() {
        optional.push(W_SKIP);
    }
    if is_screened {
        optional.extend([W_ENC_SCREEN, SCREEN_ERROR, SCREEN_NORM]);
    }
    if sae.log_sparsity.is_some() {
        optional.push(LOG_SPARSITY);
    }
    let _out_dir = OutputDir::create(target.parent().unwrap_or(Path::new("")))?;
    let mut writer = schema::begin(target, options.overwrite, &meta, weight_type, &optional)?;
    let n_readings = 1 + u64::from(is_screened);
    let mut meter = Meter::new(
        progress,
        n_readings * sae.w_enc.tensor.n_bytes()
            + sae.w_dec.tensor.n_bytes()
            + w_skip.map_or(0, |w_skip| w_skip.tensor.n_bytes()),
    );
    let screened = is_screened.then_some(weight_type);
    write_tensors(
        &sae,
        meta.norm_factor.unwrap_or(1.0),
        screened,
        &mut writer,
        &mut meter,
    )?;
    writer.finish()?;
    Ok(ConvertedSae {
        report: report(&meta, norm_factor, centring_said, options),
        meta,
    })
}

fn report(
    meta: &SaeMeta,
    norm_factor: Option<NormFactor>,
    centring_said: &str,
    options: &SaeOptions,
) -> Vec<String> {
    let said_by = if options.hook_name.is_some() {
        "as given"
    } else {
        "from the SAE's files"
    };
    let normalisation = match norm_factor {
        Some(NormFactor { value, source }) => {
            format!("norm factor {value} {source}, folded into the weights")
        }
        None => format!(
            "normalisation of activations: {}",
            meta.normalize_activations.name()
        ),
    };
    let mut lines = vec![
        format!("read {meta}"),
        format!(
            "{} inputs × {} features; hook point {said_by}; {normalisation}",
            meta.d_in, meta.d_sae
        ),
    ];
    // Nothing to others, whose streams nothing centres.
    let has_layer_norms = |name: &str| name.starts_with("gpt2") || name.starts_with("pythia");
    let rows = match (meta.is_centred, meta.model_name.as_deref()) {
        (true, _) => Some("less their mean"),
        (false, Some(name)) if has_layer_norms(name) => Some("as they are"),
        (false, _) => None,
    };
    if let Some(rows) = rows {
        lines.push(format!("rows are read {rows}, {centring_said}"));
    }
    if !options.labels.is_empty() {
        let n_labels = meta.labels.iter().filter(|label| !label.is_empty()).count();
        lines.push(format!(
            "labels of {n_labels} features, from `{}`",
            meta.labels_source.as_deref().unwrap_or_default()
        ));
    }
    lines
}

/// The number type of the matrices: q8_0 has blocks of 32 numbers, and rows that they do not fill
/// stay f16.
fn weight_type(wanted: TensorType, widths: &[usize]) -> Result<TensorType> {
    if !MATRIX_TYPES.contains(&wanted) {
        return Err(
            Error::invalid(format!("an SAE cannot be stored as {}", wanted.name()))
                .with_hint("use f32, f16 or q8_0"),
        );
    }
    let is_odd = |width: &&usize| wanted.row_bytes(**width).is_none();
    let Some(width) = widths.iter().find(is_odd) else {
        return Ok(wanted);
    };
    log::warn!(
        "the SAE is stored as f16: the blocks of {} do not divide its rows of {width} numbers",
        wanted.name()
    );
    Ok(TensorType::F16)
}

/// Writes all tensors in the schema's order, with the norm factor `s` and all others folded in, and a
/// screen where the type is given that the encoder is stored as.
///
/// The SAE was trained on `s·x`: `h = (s·x - b_dec)·W_enc + b_enc`, and its reconstruction of `x` is
/// `(a·W_dec + b_dec) / s`. So `W_enc·s`, `W_dec/s` and `b_dec/s` do the same to `x` itself, and
/// `b_enc`, thresholds and activations stay (`fold_activation_norm_scaling_factor` in SAELens'
/// `saes/sae.py`). A fine-tuned SAE decodes `a·scaling_factor`, which goes into the rows of `W_dec`.
///
/// With `rescale_acts_by_decoder_norm`, `h` is multiplied by the norm of the decoder's row before the
/// largest are chosen, and the activation is divided by it before it is decoded: both go into the
/// weights (`fold_W_dec_norm` in SAELens' `saes/topk_sae.py`).
fn write_tensors(
    sae: &Source,
    s: f32,
    screened: Option<TensorType>,
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<()> {
    let norms = if sae.rescale_by_decoder_norm {
        sae.w_dec.norms()?
    } else {
        Vec::new()
    };
    let factor = |factors: &[f32], feature: usize| factors.get(feature).copied().unwrap_or(1.0);
    // After folding `s`, as SAELens has them; a row of zeros keeps its length.
    let norm_of = |feature: usize| match factor(&norms, feature) / s {
        _ if norms.is_empty() => 1.0,
        norm => norm.max(1e-8),
    };
    let encoder_factor =
        |feature: usize| factor(&sae.encoder_factors, feature) * s * norm_of(feature);
    let decoder_factor =
        |feature: usize| factor(&sae.decoder_factors, feature) / s / norm_of(feature);
    write_matrix(&sae.w_enc, encoder_factor, s, writer, meter)?;
    let decoder_norms = write_matrix(&sae.w_dec, decoder_factor, s, writer, meter)?;
    let b_enc: Vec<f32> = sae
        .b_enc
        .iter()
        .enumerate()
        .map(|(feature, bias)| bias * norm_of(feature))
        .collect();
    check_scaled("`b_enc`", &b_enc, s)?;
    writer.write_f32(&b_enc)?;
    let b_dec: Vec<f32> = sae.b_dec.iter().map(|value| value / s).collect();
    check_scaled("`b_dec`", &b_dec, s)?;
    writer.write_f32(&b_dec)?;
    writer.write_f32(&decoder_norms)?;
    if let Some(threshold) = &sae.threshold {
        writer.write_f32(threshold)?;
    }
    if let Some(w_skip) = sae
        .output
        .as_ref()
        .and_then(|output| output.w_skip.as_ref())
    {
        write_matrix(w_skip, |_| 1.0, s, writer, meter)?;
    }
    if let Some(stored_type) = screened {
        write_screen(&sae.w_enc, encoder_factor, stored_type, writer, meter)?;
    }
    if let Some(log_sparsity) = &sae.log_sparsity {
        writer.write_f32(log_sparsity)?;
    }
    Ok(())
}

/// Writes the encoder in q8_0, how far each row is from the one stored as `stored_type`, and the
/// lengths of the rows.
fn write_screen(
    encoder: &FeatureMatrix,
    factor: impl Fn(usize) -> f32,
    stored_type: TensorType,
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<()> {
    let (mut errors, mut norms) = (Vec::new(), Vec::new());
    let mut screened = vec![0.0; encoder.d_in()];
    let mut bytes = Vec::new();
    let mut blocks = encoder.blocks()?;
    while let Some(block) = blocks.next()? {
        for (idx, row) in block.rows.chunks_exact_mut(encoder.d_in()).enumerate() {
            let factor = factor(block.first_feature + idx);
            row.iter_mut().for_each(|value| *value *= factor);
            bytes.clear();
            stored_type.quantize(row, &mut bytes);
            stored_type.dequantize(&bytes, row);
            bytes.clear();
            TensorType::Q8_0.quantize(row, &mut bytes);
            TensorType::Q8_0.dequantize(&bytes, &mut screened);
            norms.push(norm(&screened));
            for (rounded, value) in screened.iter_mut().zip(&*row) {
                *rounded -= value;
            }
            errors.push(norm(&screened));
        }
        writer.write_f32(block.rows)?;
        meter.advance(block.n_bytes)?;
    }
    writer.write_f32(&errors)?;
    writer.write_f32(&norms)
}

/// Writes a matrix with each feature's row times its factor; returns the rows' L2 norms, `[d_sae]`.
fn write_matrix(
    matrix: &FeatureMatrix,
    factor: impl Fn(usize) -> f32,
    s: f32,
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<Vec<f32>> {
    let tensor = matrix.tensor.describe();
    let mut norms = Vec::new();
    let mut blocks = matrix.blocks()?;
    while let Some(block) = blocks.next()? {
        for (idx, row) in block.rows.chunks_exact_mut(matrix.d_in()).enumerate() {
            let factor = factor(block.first_feature + idx);
            row.iter_mut().for_each(|value| *value *= factor);
            norms.push(norm(row));
        }
        check_scaled(&tensor, block.rows, s)?;
        check_scaled(&tensor, &norms[block.first_feature..], s)?;
        writer.write_f32(block.rows)?;
        meter.advance(block.n_bytes)?;
    }
    Ok(norms)
}

/// Checks what the numbers of `tensor` have become; they were finite.
fn check_scaled(tensor: &str, values: &[f32], s: f32) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(if s == 1.0 {
        Error::invalid(format!("{tensor} has numbers too large for f32"))
            .with_hint("the file is damaged, or its training diverged")
    } else {
        Error::invalid(format!(
            "the norm factor {s:e} makes numbers of {tensor} too large for f32"
        ))
        .with_hint("check the norm factor")
    })
}
