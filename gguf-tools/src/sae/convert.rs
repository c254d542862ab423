//! Converts an SAE as it was published to this project's GGUF.

use std::path::{Path, PathBuf};

use super::labels;
use super::norm_factor::{self, Published};
use super::saelens::{self, SaeLens};
use super::schema::{self, LOG_SPARSITY, MATRIX_TYPES, SaeMeta};
use crate::gguf::{Overwrite, TensorType, TensorWriter};
use crate::output_dir::OutputDir;
use crate::progress::{Meter, Progress};
use crate::weights::StoredTensor;
use crate::{Error, Result};

/// Values of a matrix in memory at once: 64 MiB as f32. With the bytes of the source that they come
/// from, a conversion takes about twice that.
const BLOCK_VALUES: usize = 16 << 20;

/// Rows of `W_enc` that are transposed together, so that each store fills a cache line.
const TRANSPOSED_ROWS: usize = 16;

/// How far a fine-tuning factor may be from 1 to count as none (`torch.allclose`, to which SAELens
/// leaves this).
const ONES_TOLERANCE: f32 = 1e-5;

/// How [`convert`] writes.
#[derive(Clone, Debug)]
pub struct SaeOptions {
    /// Of encoder and decoder: f32, f16 or q8_0.
    pub weight_type: TensorType,
    /// The factor that brings activations to the norm that the SAE was trained on, where its
    /// configuration asks for one.
    pub norm_factor: Option<f32>,
    /// Neuronpedia's labels; where two files label a feature, the first one counts.
    pub labels: Vec<PathBuf>,
    /// What to do where the target exists.
    pub overwrite: Overwrite,
}

/// Converts the SAE at `source`, a SAELens folder or its `cfg.json` or weights, to the GGUF file
/// `target`, whose folder is made if need be, and returns what that says of it. `progress` gets bytes
/// of weights read.
///
/// Weights pass through in blocks, whatever the SAE's size.
///
/// # Errors
/// A source of another format, incomplete or malformed, or with numbers that are not finite; a norm
/// factor that is missing, superfluous or not positive; labels that do not fit; everything that
/// writing can meet; [`Error::Interrupted`] where `progress` asks for it. Nothing is left behind
/// then.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &SaeOptions,
    progress: Progress,
) -> Result<SaeMeta> {
    let Format::SaeLens(dir) = recognize(source)?;
    let sae = SaeLens::open(&dir)?;
    let weight_type = weight_type(options.weight_type, sae.d_in)?;
    let published = Published::find(&sae);
    let norm_factor = norm_factor::choose(&sae, &dir, options.norm_factor, published)?;
    let labels = labels::read(&options.labels, sae.d_sae)?;

    let meta = SaeMeta {
        architecture: sae.architecture,
        d_in: sae.d_in,
        d_sae: sae.d_sae,
        hook_name: sae.hook_name.clone(),
        apply_b_dec_to_input: sae.apply_b_dec_to_input,
        normalize_activations: sae.normalize_activations,
        norm_factor,
        model_name: sae.model_name.clone(),
        release: published.map(|sae| sae.release.to_owned()),
        id: published.map(|sae| sae.hook_name.to_owned()),
        labels: labels.texts,
        labels_source: labels.source,
    };
    let optional: &[&str] = if sae.log_sparsity.is_some() {
        &[LOG_SPARSITY]
    } else {
        &[]
    };
    let _out_dir = OutputDir::create(target.parent().unwrap_or(Path::new("")))?;
    let mut writer = schema::begin(target, options.overwrite, &meta, weight_type, optional)?;
    let mut meter = Meter::new(progress, sae.w_enc.n_bytes() + sae.w_dec.n_bytes());
    write_tensors(&sae, norm_factor.unwrap_or(1.0), &mut writer, &mut meter)?;
    writer.finish()?;
    Ok(meta)
}

/// How an SAE is stored.
enum Format {
    /// A folder with `cfg.json` and `sae_weights.safetensors`.
    SaeLens(PathBuf),
}

/// Files by which other formats are known.
const FOREIGN_FILES: [(&str, &str); 5] = [
    ("params.npz", "Gemma Scope"),
    ("params.safetensors", "Gemma Scope 2"),
    ("sae.safetensors", "EleutherAI sparsify"),
    ("hyperparams.json", "Llama Scope"),
    ("ae.pt", "dictionary_learning"),
];

fn recognize(source: &Path) -> Result<Format> {
    let hint = format!(
        "a SAELens folder is read: `{}` with `{}`",
        saelens::CONFIG_FILE,
        saelens::WEIGHTS_FILE
    );
    let kind = std::fs::metadata(source).map_err(Error::io("read", source))?;
    let is_saelens_file = [saelens::CONFIG_FILE, saelens::WEIGHTS_FILE]
        .iter()
        .any(|file| source.ends_with(file));
    let dir = match source.parent() {
        _ if kind.is_dir() => source.to_owned(),
        Some(parent) if is_saelens_file => Path::new(".").join(parent),
        _ => {
            return Err(Error::invalid(format!(
                "`{}` is not a SAELens folder, nor a file of one",
                source.display()
            ))
            .with_hint(hint));
        }
    };
    if dir.join(saelens::WEIGHTS_FILE).exists() {
        return Ok(Format::SaeLens(dir));
    }
    let foreign = FOREIGN_FILES
        .iter()
        .find(|(file, _)| dir.join(file).exists());
    Err(match foreign {
        Some((file, name)) => Error::invalid(format!(
            "`{}` has the form of {name} (`{file}`), which is not supported",
            dir.display()
        )),
        None => Error::invalid(format!(
            "`{}` has no file `{}`",
            dir.display(),
            saelens::WEIGHTS_FILE
        )),
    }
    .with_hint(hint))
}

/// The number type of the matrices: q8_0 has blocks of 32 numbers, and rows that they do not fill
/// stay f16.
fn weight_type(wanted: TensorType, d_in: usize) -> Result<TensorType> {
    if !MATRIX_TYPES.contains(&wanted) {
        return Err(
            Error::invalid(format!("an SAE cannot be stored as {}", wanted.name()))
                .with_hint("use f32, f16 or q8_0"),
        );
    }
    if wanted.row_bytes(d_in).is_some() {
        return Ok(wanted);
    }
    log::warn!(
        "the SAE is stored as f16: its rows of {d_in} numbers do not fit {}",
        wanted.name()
    );
    Ok(TensorType::F16)
}

/// Writes all tensors in the schema's order, with the norm factor `s` folded in.
///
/// The SAE was trained on `s·x`: `h = (s·x - b_dec)·W_enc + b_enc`, and its reconstruction of `x` is
/// `(a·W_dec + b_dec) / s`. So `W_enc·s`, `W_dec/s` and `b_dec/s` do the same to `x` itself, and
/// `b_enc`, thresholds and activations stay (`fold_activation_norm_scaling_factor` in SAELens'
/// `saes/sae.py`). A fine-tuned SAE decodes `a·scaling_factor`, which goes into the rows of `W_dec`.
fn write_tensors(
    sae: &SaeLens,
    s: f32,
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<()> {
    let scaling = scaling_factors(sae)?;
    write_transposed(&sae.w_enc, [sae.d_in, sae.d_sae], s, writer, meter)?;
    let decoder_norm = write_decoder(
        &sae.w_dec,
        [sae.d_sae, sae.d_in],
        s,
        &scaling,
        writer,
        meter,
    )?;
    writer.write_f32(&sae.b_enc.read_all()?)?;
    let mut b_dec = sae.b_dec.read_all()?;
    b_dec.iter_mut().for_each(|value| *value /= s);
    check_scaled(&sae.b_dec, &b_dec, s)?;
    writer.write_f32(&b_dec)?;
    writer.write_f32(&decoder_norm)?;
    if let Some(threshold) = &sae.threshold {
        writer.write_f32(&threshold.read_all()?)?;
    }
    if let Some(log_sparsity) = &sae.log_sparsity {
        writer.write_f32(log_sparsity)?;
    }
    Ok(())
}

/// The factor on each decoder row; empty where there is none. SAELens used to write a tensor of
/// ones, which says nothing.
fn scaling_factors(sae: &SaeLens) -> Result<Vec<f32>> {
    let Some(tensor) = &sae.scaling_factor else {
        return Ok(Vec::new());
    };
    let factors = tensor.read_all()?;
    if factors
        .iter()
        .all(|factor| (factor - 1.0).abs() <= ONES_TOLERANCE)
    {
        return Ok(Vec::new());
    }
    if !sae.finetuning_scaling_factor {
        return Err(Error::invalid(format!(
            "{} holds factors other than 1, but `finetuning_scaling_factor` is false in `{}`",
            tensor.describe(),
            saelens::CONFIG_FILE
        )));
    }
    Ok(factors)
}

/// Writes the transpose of `tensor`, `[d_in, d_sae]`, times `s`: a block of columns at a time
/// becomes rows.
fn write_transposed(
    tensor: &StoredTensor,
    [d_in, d_sae]: [usize; 2],
    s: f32,
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<()> {
    let n_block = block_rows(d_in).min(d_sae);
    let mut values = vec![0.0; TRANSPOSED_ROWS * n_block]; // [TRANSPOSED_ROWS, n_features]
    let mut rows = vec![0.0; n_block * d_in]; // [n_features, d_in]
    let mut open = tensor.open()?;
    for first_feature in (0..d_sae).step_by(n_block) {
        let n_features = n_block.min(d_sae - first_feature);
        for first_row in (0..d_in).step_by(TRANSPOSED_ROWS) {
            let n_rows = TRANSPOSED_ROWS.min(d_in - first_row);
            let mut n_bytes = 0;
            for (row_idx, row) in values.chunks_exact_mut(n_features).take(n_rows).enumerate() {
                n_bytes += open.read_at((first_row + row_idx) * d_sae + first_feature, row)?;
                check_features(tensor, row, 1, first_feature)?;
            }
            for (feature, row) in rows.chunks_exact_mut(d_in).take(n_features).enumerate() {
                for (row_idx, value) in row[first_row..first_row + n_rows].iter_mut().enumerate() {
                    *value = values[row_idx * n_features + feature] * s;
                }
            }
            meter.advance(n_bytes)?;
        }
        let rows = &rows[..n_features * d_in];
        check_scaled(tensor, rows, s)?;
        writer.write_f32(rows)?;
    }
    Ok(())
}

/// Writes `tensor`, `[d_sae, d_in]`, with each row times its factor and divided by `s`; returns the
/// rows' L2 norms, `[d_sae]`.
fn write_decoder(
    tensor: &StoredTensor,
    [d_sae, d_in]: [usize; 2],
    s: f32,
    scaling: &[f32],
    writer: &mut TensorWriter,
    meter: &mut Meter,
) -> Result<Vec<f32>> {
    let n_block = block_rows(d_in).min(d_sae);
    let mut rows = vec![0.0; n_block * d_in]; // [n_features, d_in]
    let mut norms = Vec::with_capacity(d_sae);
    let mut open = tensor.open()?;
    for first_feature in (0..d_sae).step_by(n_block) {
        let n_features = n_block.min(d_sae - first_feature);
        let rows = &mut rows[..n_features * d_in];
        let n_bytes = open.read_at(first_feature * d_in, rows)?;
        check_features(tensor, rows, d_in, first_feature)?;
        for (feature, row) in (first_feature..).zip(rows.chunks_exact_mut(d_in)) {
            let factor = scaling.get(feature).copied().unwrap_or(1.0);
            row.iter_mut()
                .for_each(|value| *value = *value * factor / s);
            let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
            norms.push(square.sqrt() as f32);
        }
        check_scaled(tensor, rows, s)?;
        check_scaled(tensor, &norms[first_feature..], s)?;
        writer.write_f32(rows)?;
        meter.advance(n_bytes)?;
    }
    Ok(norms)
}

fn block_rows(d_in: usize) -> usize {
    (BLOCK_VALUES / d_in.max(1)).max(1)
}

/// Checks what was read of `tensor`: `values_per_feature` for each feature from `first_feature` on.
fn check_features(
    tensor: &StoredTensor,
    values: &[f32],
    values_per_feature: usize,
    first_feature: usize,
) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(idx) => {
            let feature = first_feature + idx / values_per_feature;
            Err(tensor.not_finite(values[idx], &format!("feature {feature}")))
        }
    }
}

/// Checks what `tensor`'s numbers have become; they were finite.
fn check_scaled(tensor: &StoredTensor, values: &[f32], s: f32) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    let tensor = tensor.describe();
    Err(if s == 1.0 {
        Error::invalid(format!("{tensor} has numbers too large for f32"))
            .with_hint("the file is damaged, or its training diverged")
    } else {
        Error::invalid(format!(
            "the norm factor {s:e} makes numbers of {tensor} too large for f32"
        ))
        .with_hint("check `--norm-factor`")
    })
}
