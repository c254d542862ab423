//! A sparse autoencoder (SAE) at run time: features of rows, decoder directions, labels.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use gguf_tools::sae::{Architecture, Baseline, NormalizeActivations, SaeFile, SaeMeta};

use crate::Result;
use crate::activations::Activations;
use crate::encoder::{Encoder, EncoderOptions};
use crate::hook_point::HookPoint;
use crate::labels;
use crate::steering::{DecoderDirection, FeatureReader, Intervention, Steering};

/// Whether nothing has to be done to rows, since the weights take them as they are.
fn is_folded(normalize: NormalizeActivations) -> bool {
    match normalize {
        NormalizeActivations::None | NormalizeActivations::ExpectedAverageOnlyIn => true,
        NormalizeActivations::ConstantNormRescale | NormalizeActivations::LayerNorm => false,
    }
}

/// What a row is brought to for an SAE that normalises each row: `(x − mean) / (deviation + epsilon)`
/// (`_setup_activation_normalization` in SAELens' `saes/sae.py`, 6.54).
struct Normalised {
    mean: f64,
    deviation: f64,
    epsilon: f64,
}

impl Normalised {
    fn of(normalize: NormalizeActivations, row: &[f32]) -> Self {
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
fn normalize_row(normalize: NormalizeActivations, row: &mut [f32]) {
    if is_folded(normalize) {
        return;
    }
    let normalised = Normalised::of(normalize, row);
    let factor = 1.0 / (normalised.deviation + normalised.epsilon);
    for x in row {
        *x = ((f64::from(*x) - normalised.mean) * factor) as f32;
    }
}

/// An SAE, ready to encode.
pub struct Sae {
    file: SaeFile,
    hook_point: HookPoint,
    encoder: Encoder,
    b_dec: Vec<f32>, // [d_in]; empty where it is not subtracted from the input
    baseline: Option<Baseline>,
    decoder_bias: Vec<f32>, // [d_in], for reconstructions; empty until the first
    decoder_rows: HashMap<usize, Vec<f32>>, // of features that reconstructions needed
    inputs: Vec<f32>,       // [n_rows, d_in], reused
}

impl Sae {
    /// Makes an SAE of a checked file. Its encoder runs on the first device if there is one and it is wanted,
    /// else on the processor, with the file's screen if it has one.
    ///
    /// # Errors
    /// An unsupported hook point, or a file that cannot be read.
    pub fn new(file: SaeFile, options: EncoderOptions) -> Result<Self> {
        let hook_point = HookPoint::parse(&file.meta.hook_name)?;
        let encoder = Encoder::new(&file, options)?;
        let b_dec = if file.meta.apply_b_dec_to_input {
            file.b_dec()?
        } else {
            Vec::new()
        };
        Ok(Self {
            baseline: file.baseline()?,
            file,
            hook_point,
            encoder,
            b_dec,
            decoder_bias: Vec::new(),
            decoder_rows: HashMap::new(),
            inputs: Vec::new(),
        })
    }

    /// What the file says about the SAE.
    pub fn meta(&self) -> &SaeMeta {
        &self.file.meta
    }

    /// The file it was read from.
    pub fn file(&self) -> &SaeFile {
        &self.file
    }

    /// What its features usually do on pictures, where the file says so.
    pub fn baseline(&self) -> Option<&Baseline> {
        self.baseline.as_ref()
    }

    /// Where in the model it reads.
    pub fn hook_point(&self) -> HookPoint {
        self.hook_point
    }

    /// What a feature's `h` must exceed to be active, `[d_sae]`: zeros for a ReLU and for top-k.
    pub fn threshold(&self) -> &[f32] {
        self.encoder.threshold()
    }

    /// Appends the active features of `rows`, `[n_rows, d_in]`, to `out`:
    /// `h = (x − b_dec) · W_enc + b_enc` with `x` normalised as the SAE was trained, active where
    /// `h > threshold`, and of these the `k` largest with a top-k SAE (`SAELens`, `saes/*_sae.py`).
    ///
    /// # Errors
    /// When ggml fails.
    pub fn encode(&mut self, rows: &[f32], out: &mut Activations) -> Result<()> {
        let normalize = self.file.meta.normalize_activations;
        if self.b_dec.is_empty() && is_folded(normalize) {
            return self.encoder.encode(rows, out);
        }
        self.inputs.clear();
        self.inputs.extend_from_slice(rows);
        for row in self.inputs.chunks_exact_mut(self.file.meta.d_in) {
            normalize_row(normalize, row);
            for (x, b) in row.iter_mut().zip(&self.b_dec) {
                *x -= b;
            }
        }
        self.encoder.encode(&self.inputs, out)
    }

    /// Replaces `row`, whose active features are the row `row_idx` of `activations`, by the SAE's
    /// reconstruction: `b_dec + Σ a · W_dec`, with the row's normalisation undone (`SAELens`,
    /// `saes/sae.py`). Decoder rows that were read are kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such row in `activations`.
    pub fn reconstruct(
        &mut self,
        activations: &Activations,
        row_idx: usize,
        row: &mut [f32],
    ) -> Result<()> {
        let normalised = Normalised::of(self.meta().normalize_activations, row);
        if self.decoder_bias.is_empty() {
            self.decoder_bias = self.file.b_dec()?;
        }
        row.copy_from_slice(&self.decoder_bias);
        for (feature, activation) in activations.row(row_idx) {
            let direction = match self.decoder_rows.entry(feature) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let mut direction = vec![0.0; row.len()];
                    self.file.decoder_row(feature, &mut direction)?;
                    place.insert(direction)
                }
            };
            for (x, value) in row.iter_mut().zip(direction) {
                *x += activation * *value;
            }
        }
        if !is_folded(self.meta().normalize_activations) {
            for x in row {
                *x = (f64::from(*x) * normalised.deviation + normalised.mean) as f32;
            }
        }
        Ok(())
    }

    /// How long a decoder direction is in the units of `row`: SAELens decodes to a normalised row and
    /// undoes the normalisation then (`run_time_activation_norm_fn_out` in its `saes/sae.py`).
    pub(crate) fn decoder_scale(&self, row: &[f32]) -> f32 {
        let Normalised { deviation, .. } = Normalised::of(self.meta().normalize_activations, row);
        deviation as f32
    }

    /// Prepares interventions on features of this SAE.
    ///
    /// # Errors
    /// A feature that the SAE does not have, and those of [`Steering::new`].
    pub fn steering(&self, interventions: Vec<Intervention>) -> Result<Steering> {
        Steering::new(
            interventions,
            self.meta().d_in,
            |feature| self.decoder_direction(feature),
            |feature| self.feature_reader(feature),
        )
    }

    /// The direction `W_dec[feature]`.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn decoder_direction(&self, feature: usize) -> Result<DecoderDirection> {
        self.check_feature(feature)?;
        let mut row = vec![0.0; self.meta().d_in];
        self.file.decoder_row(feature, &mut row)?;
        let norm = self.file.decoder_norm()?[feature];
        Ok(DecoderDirection { row, norm })
    }

    /// What gives the activation of one feature, by itself; none where features depend on each other
    /// (top-k) or on the row's size (normalised rows). It computes in f32 on the encoder's row
    /// as stored, as [`Sae::encode`] does with a screen; without one, that lets ggml round rows to the
    /// type of the weights, and the two differ by that rounding.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn feature_reader(&self, feature: usize) -> Result<Option<FeatureReader>> {
        self.check_feature(feature)?;
        let meta = self.meta();
        let is_alone = match meta.architecture {
            Architecture::Standard | Architecture::JumpRelu => {
                is_folded(meta.normalize_activations)
            }
            Architecture::TopK { .. } => false,
        };
        if !is_alone {
            return Ok(None);
        }
        let mut encoder_row = vec![0.0; self.meta().d_in];
        self.file.encoder_row(feature, &mut encoder_row)?;
        // (x − b_dec)·W_enc + b_enc = x·W_enc + (b_enc − b_dec·W_enc); nothing is subtracted where
        // `b_dec` is empty.
        let products = encoder_row.iter().zip(&self.b_dec);
        let offset: f64 = products.map(|(&w, &b)| f64::from(w) * f64::from(b)).sum();
        Ok(Some(FeatureReader {
            encoder_row,
            bias: (f64::from(self.encoder.b_enc()[feature]) - offset) as f32,
            threshold: self.threshold()[feature],
        }))
    }

    /// A feature's label, where it has one.
    pub fn label(&self, feature: usize) -> Option<&str> {
        let label = self.meta().labels.get(feature)?;
        (!label.is_empty()).then_some(label)
    }

    /// The feature that `name` means: an index, a label, or a text that is part of exactly one
    /// label (in upper or lower case).
    ///
    /// # Errors
    /// An index out of range, a text that no label holds, or one that several hold.
    pub fn find_feature(&self, name: &str) -> Result<usize> {
        labels::find_feature(name, self.meta().d_sae, self.labels())
    }

    /// Features that have a label, with it.
    fn labels(&self) -> impl Iterator<Item = (usize, &str)> + Clone {
        let labels = self.meta().labels.iter().map(String::as_str).enumerate();
        labels.filter(|(_, label)| !label.is_empty())
    }

    fn check_feature(&self, feature: usize) -> Result<()> {
        let d_sae = self.meta().d_sae;
        if feature < d_sae {
            return Ok(());
        }
        Err(labels::no_feature(&feature.to_string(), d_sae))
    }
}
