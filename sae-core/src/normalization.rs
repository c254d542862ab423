//! What rows are brought to before an encoder, for SAEs that were trained on normalised rows.

use gguf_tools::sae::{NormalizeActivations, SaeMeta};

/// Whether the weights take rows as they are, so that nothing has to be done to them.
pub(crate) fn is_folded(meta: &SaeMeta) -> bool {
    !meta.is_centred && !is_rescaled(meta)
}

/// Whether each row is divided by its own size.
pub(crate) fn is_rescaled(meta: &SaeMeta) -> bool {
    match meta.normalize_activations {
        NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => false,
        NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm => true,
    }
}

/// What a row is brought to for an SAE that normalises each row: `(x − mean) / (deviation + epsilon)`
/// (`_setup_activation_normalization` in SAELens' `saes/sae.py`, 6.54), and for one that reads centred rows, which
/// `TransformerLens` makes (`center_writing_weights`), with that mean.
pub(crate) struct Normalised {
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
    epsilon: f64,
}

impl Normalised {
    pub(crate) fn of(meta: &SaeMeta, row: &[f32]) -> Self {
        let n = row.len() as f64;
        let sum_of =
            |value: &dyn Fn(f64) -> f64| -> f64 { row.iter().map(|&x| value(f64::from(x))).sum() };
        let is_layer_norm = meta.normalize_activations == NormalizeActivations::LayerNorm;
        let mean = match meta.is_centred || is_layer_norm {
            true => mean(row),
            false => 0.0,
        };
        match meta.normalize_activations {
            NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => Self {
                mean,
                deviation: 1.0,
                epsilon: 0.0,
            },
            NormalizeActivations::ConstantNormRescale => Self {
                mean,
                deviation: (sum_of(&|x| (x - mean) * (x - mean)) / n).sqrt(),
                epsilon: 0.0,
            },
            NormalizeActivations::LayerNorm => Self {
                mean,
                // As torch's `std`, of a sample.
                deviation: (sum_of(&|x| (x - mean).powi(2)) / (n - 1.0)).sqrt(),
                epsilon: 1e-5,
            },
        }
    }
}

/// The mean of a row.
pub(crate) fn mean(row: &[f32]) -> f64 {
    row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64
}

/// Brings a row to what the SAE was trained on.
pub(crate) fn normalize_row(meta: &SaeMeta, row: &mut [f32]) {
    if is_folded(meta) {
        return;
    }
    let normalised = Normalised::of(meta, row);
    let factor = 1.0 / (normalised.deviation + normalised.epsilon);
    for x in row {
        *x = ((f64::from(*x) - normalised.mean) * factor) as f32;
    }
}
