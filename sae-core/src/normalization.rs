//! What rows are brought to before an encoder, for SAEs that were trained on normalised rows.

use gguf_tools::sae::NormalizeActivations;

/// Whether the weights take rows as they are, so that nothing has to be done to them.
pub(crate) fn is_folded(normalize: NormalizeActivations) -> bool {
    match normalize {
        NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => true,
        NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm => false,
    }
}

/// What a row is brought to for an SAE that normalises each row: `(x − mean) / (deviation + epsilon)`
/// (`_setup_activation_normalization` in SAELens' `saes/sae.py`, 6.54).
pub(crate) struct Normalised {
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
    epsilon: f64,
}

impl Normalised {
    pub(crate) fn of(normalize: NormalizeActivations, row: &[f32]) -> Self {
        let n = row.len() as f64;
        let sum_of =
            |value: &dyn Fn(f64) -> f64| -> f64 { row.iter().map(|&x| value(f64::from(x))).sum() };
        match normalize {
            NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => Self {
                mean: 0.0,
                deviation: 1.0,
                epsilon: 0.0,
            },
            NormalizeActivations::ConstantNormRescale => Self {
                mean: 0.0,
                deviation: (sum_of(&|x| x * x) / n).sqrt(),
                epsilon: 0.0,
            },
            NormalizeActivations::LayerNorm => {
                let mean = sum_of(&|x| x) / n;
                Self {
                    mean,
                    // As torch's `std`, of a sample.
                    deviation: (sum_of(&|x| (x - mean).powi(2)) / (n - 1.0)).sqrt(),
                    epsilon: 1e-5,
                }
            }
        }
    }
}

/// Brings a row to what the SAE was trained on.
pub(crate) fn normalize_row(normalize: NormalizeActivations, row: &mut [f32]) {
    if is_folded(normalize) {
        return;
    }
    let normalised = Normalised::of(normalize, row);
    let factor = 1.0 / (normalised.deviation + normalised.epsilon);
    for x in row {
        *x = ((f64::from(*x) - normalised.mean) * factor) as f32;
    }
}
