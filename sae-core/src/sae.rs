//! A sparse autoencoder (SAE): what it is, its directions and its labels, immutable and shared.

use std::path::Path;

use gguf_tools::sae::{Architecture, Baseline, SaeFile, SaeMeta};

use crate::feature::{DecoderDirection, FeatureReader};
use crate::hook_point::HookPoint;
use crate::labels;
use crate::normalization::{Normalised, is_rescaled, mean};
use crate::{Error, Result};

/// An SAE's weights in memory.
#[derive(Clone, Debug)]
pub struct SaeArrays {
    /// What it is.
    pub meta: SaeMeta,
    /// Row `i` is the encoder direction of feature `i`, `[d_sae, d_in]`.
    pub w_enc: Vec<f32>,
    /// Row `i` is the decoder direction of feature `i`, `[d_sae, d_in]`; of a transcoder `[d_sae, decoder_width]`
    /// ([`SaeMeta::decoder_width`]).
    pub w_dec: Vec<f32>,
    /// The encoder's bias, `[d_sae]`.
    pub b_enc: Vec<f32>,
    /// The decoder's bias, `[d_in]`; of a transcoder `[d_out]`.
    pub b_dec: Vec<f32>,
    /// Where each feature becomes active, `[d_sae]`; only with the architecture `jumprelu`.
    pub threshold: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Weights {
    File(Box<SaeFile>),
    Arrays { w_enc: Vec<f32>, w_dec: Vec<f32> },
}

/// An SAE. It is never changed, so any number of threads can share one; what computes with it is an
/// [`Encoder`](crate::Encoder) or a [`Decoder`](crate::Decoder).
#[derive(Debug)]
pub struct Sae {
    id: String,
    meta: SaeMeta,
    weights: Weights,
    hook_point: HookPoint,
    outputs: Vec<HookPoint>, // where features write, one at least
    b_enc: Vec<f32>,         // [d_sae]
    b_dec: Vec<f32>,         // [d_out]
    threshold: Vec<f32>,     // [d_sae]; zeros for a ReLU
    decoder_norm: Vec<f32>,  // [d_sae]
    baseline: Option<Baseline>,
}

impl Sae {
    /// Opens an SAE's GGUF file; its matrices stay there.
    ///
    /// # Errors
    /// As [`SaeFile::open`], and an unsupported hook point.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(SaeFile::open(path)?)
    }

    /// Makes an SAE from a checked file.
    ///
    /// # Errors
    /// An unsupported hook point, or a file that cannot be read.
    pub fn from_file(file: SaeFile) -> Result<Self> {
        let stem = file.path().file_stem().unwrap_or_default();
        Ok(Self {
            id: match &file.meta.id {
                Some(id) => id.clone(),
                None => stem.to_string_lossy().into_owned(),
            },
            hook_point: HookPoint::parse(&file.meta.hook_name)?,
            outputs: outputs(&file.meta)?,
            b_enc: file.b_enc()?,
            b_dec: file.b_dec()?,
            threshold: positive(file.threshold()?, file.meta.d_sae),
            decoder_norm: file.decoder_norm()?,
            baseline: file.baseline()?,
            meta: file.meta.clone(),
            weights: Weights::File(Box::new(file)),
        })
    }

    /// Makes an SAE from arrays; `id` names it if its `meta` does not.
    ///
    /// # Errors
    /// An unsupported hook point, arrays of other sizes than `meta` says, numbers that are not finite.
    pub fn from_arrays(arrays: SaeArrays, id: &str) -> Result<Self> {
        let SaeArrays {
            meta,
            w_enc,
            w_dec,
            b_enc,
            b_dec,
            threshold,
        } = arrays;
        let (d_in, d_sae, width) = (meta.d_in, meta.d_sae, meta.decoder_width());
        let given = threshold.as_deref().unwrap_or(&[]);
        let n_thresholds = match meta.architecture {
            Architecture::JumpRelu => d_sae,
            Architecture::Standard | Architecture::TopK { .. } => 0,
        };
        for (name, values, n_values) in [
            ("W_enc", &w_enc[..], d_sae * d_in),
            ("W_dec", &w_dec, d_sae * width),
            ("b_enc", &b_enc, d_sae),
            ("b_dec", &b_dec, meta.d_out),
            ("threshold", given, n_thresholds),
        ] {
            if values.len() != n_values {
                return Err(Error::invalid(format!(
                    "`{name}` has {} values, expected {n_values} for {d_sae} features on rows of {d_in}",
                    values.len()
                )));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::invalid(format!(
                    "`{name}` holds {value}, expected finite numbers"
                )));
            }
        }
        if d_in == 0 || d_sae == 0 || width == 0 {
            return Err(Error::invalid(
                "an SAE must have at least one feature and one input",
            ));
        }
        let square = |x: &f32| f64::from(*x).powi(2);
        let norm = |row: &[f32]| row.iter().map(square).sum::<f64>().sqrt() as f32;
        Ok(Self {
            id: meta.id.clone().unwrap_or_else(|| id.to_owned()),
            hook_point: HookPoint::parse(&meta.hook_name)?,
            outputs: outputs(&meta)?,
            decoder_norm: w_dec.chunks_exact(width).map(norm).collect(),
            threshold: positive(threshold, d_sae),
            b_enc,
            b_dec,
            baseline: None,
            meta,
            weights: Weights::Arrays { w_enc, w_dec },
        })
    }

    /// Its name among several: the id in its file, else the file's name without its extension.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the file says about the SAE.
    pub fn meta(&self) -> &SaeMeta {
        &self.meta
    }

    /// The file it was read from, if there is one.
    pub fn file(&self) -> Option<&SaeFile> {
        match &self.weights {
            Weights::File(file) => Some(file),
            Weights::Arrays { .. } => None,
        }
    }

    /// What its features usually do on pictures, if the file says so.
    pub fn baseline(&self) -> Option<&Baseline> {
        self.baseline.as_ref()
    }

    /// What a feature's activation usually is where it is active ([`Baseline::usual`]); 0 where no picture of the
    /// baseline activates it. None where the file does not say it.
    ///
    /// # Panics
    /// When there is no such feature.
    pub fn usual(&self, feature: usize) -> Option<f32> {
        let usual = self.baseline.as_ref()?.usual.as_ref()?;
        Some(usual[feature])
    }

    /// Where in the model it reads.
    pub fn hook_point(&self) -> HookPoint {
        self.hook_point
    }

    /// Where in the model its features write, by rising ones: where it reads, unless it is a transcoder; several places
    /// of a cross-layer transcoder.
    pub fn outputs(&self) -> &[HookPoint] {
        &self.outputs
    }

    /// The encoder's bias, `[d_sae]`.
    pub fn b_enc(&self) -> &[f32] {
        &self.b_enc
    }

    /// The decoder's bias, `[d_out]`; of a cross-layer transcoder that of its first place.
    pub fn b_dec(&self) -> &[f32] {
        &self.b_dec
    }

    /// What a feature's `h` must exceed to be active, `[d_sae]`: zeros for a ReLU and for top-k.
    ///
    /// `JumpReLU` (Rajamanoharan et al. 2024, eq. 3) keeps h where h > threshold; a ReLU is the same with a
    /// threshold of 0. `SAELens` applies the ReLU before the threshold.
    pub fn threshold(&self) -> &[f32] {
        &self.threshold
    }

    /// The length of each decoder row, `‖W_dec[feature]‖`, `[d_sae]`.
    pub fn decoder_norm(&self) -> &[f32] {
        &self.decoder_norm
    }

    /// All of `W_enc` in f32, `[d_sae, d_in]`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn w_enc(&self) -> Result<Vec<f32>> {
        match &self.weights {
            Weights::Arrays { w_enc, .. } => Ok(w_enc.clone()),
            Weights::File(file) => {
                let mut w_enc = vec![0.0; self.meta.d_sae * self.meta.d_in];
                for (feature, row) in w_enc.chunks_exact_mut(self.meta.d_in).enumerate() {
                    file.encoder_row(feature, row)?;
                }
                Ok(w_enc)
            }
        }
    }

    /// `W_enc[:, feature]`, `[d_in]`.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn encoder_row(&self, feature: usize) -> Result<Vec<f32>> {
        self.row(
            feature,
            self.meta.d_in,
            |file, row| file.encoder_row(feature, row),
            |weights| weights.0,
        )
    }

    /// `W_dec[feature]`, `[d_out]`; of a cross-layer transcoder what it writes at all places, side by side.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn decoder_row(&self, feature: usize) -> Result<Vec<f32>> {
        self.row(
            feature,
            self.meta.decoder_width(),
            |file, row| file.decoder_row(feature, row),
            |weights| weights.1,
        )
    }

    fn row(
        &self,
        feature: usize,
        width: usize,
        read: impl FnOnce(&SaeFile, &mut [f32]) -> Result<()>,
        choose: impl for<'a> FnOnce((&'a [f32], &'a [f32])) -> &'a [f32],
    ) -> Result<Vec<f32>> {
        self.check_feature(feature)?;
        match &self.weights {
            Weights::File(file) => {
                let mut row = vec![0.0; width];
                read(file, &mut row)?;
                Ok(row)
            }
            Weights::Arrays { w_enc, w_dec } => {
                Ok(choose((w_enc, w_dec))[feature * width..][..width].to_vec())
            }
        }
    }

    /// The direction `W_dec[feature]` with its length.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn decoder_direction(&self, feature: usize) -> Result<DecoderDirection> {
        Ok(DecoderDirection {
            row: self.decoder_row(feature)?,
            norm: self.decoder_norm[feature],
            usual: self.usual(feature),
        })
    }

    /// The part of a feature's direction that it writes at one of [`Sae::outputs`]; its length is that of the whole.
    ///
    /// # Errors
    /// As [`Sae::decoder_direction`].
    ///
    /// # Panics
    /// When its features do not write there.
    pub fn decoder_direction_at(
        &self,
        feature: usize,
        output: HookPoint,
    ) -> Result<DecoderDirection> {
        let place = self.outputs.iter().position(|one| *one == output);
        let place = place.expect("one of its outputs");
        let whole = self.decoder_direction(feature)?;
        let row = whole.row[place * self.meta.d_out..][..self.meta.d_out].to_vec();
        Ok(DecoderDirection { row, ..whole })
    }

    /// What a transcoder adds of the row that it reads to its reconstruction, `[d_out, d_in]`, where it does.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn w_skip(&self) -> Result<Option<Vec<f32>>> {
        let Some(file) = self.file().filter(|file| file.w_skip().is_some()) else {
            return Ok(None);
        };
        let mut w_skip = vec![0.0; self.meta.d_out * self.meta.d_in];
        for (idx, row) in w_skip.chunks_exact_mut(self.meta.d_in).enumerate() {
            file.skip_row(idx, row)?;
        }
        Ok(Some(w_skip))
    }

    /// What gives the activation of one feature without the others'; none if features depend on each other
    /// (top-k) or on the row's size (normalised rows). It computes in f32 on the encoder's row as stored, as
    /// [`Encoder::encode`](crate::Encoder::encode) does with a screen; without one, a runtime may round rows to
    /// the type of the weights, and the two differ by that rounding.
    ///
    /// # Errors
    /// A feature that the SAE does not have, or a file that cannot be read.
    pub fn feature_reader(&self, feature: usize) -> Result<Option<FeatureReader>> {
        self.check_feature(feature)?;
        let is_alone = match self.meta.architecture {
            Architecture::Standard | Architecture::JumpRelu => !is_rescaled(&self.meta),
            Architecture::TopK { .. } => false,
        };
        if !is_alone {
            return Ok(None);
        }
        let mut encoder_row = self.encoder_row(feature)?;
        // (x − b_dec)·W_enc + b_enc = x·W_enc + (b_enc − b_dec·W_enc).
        let products = encoder_row.iter().zip(self.subtracted());
        let offset: f64 = products.map(|(&w, &b)| f64::from(w) * f64::from(b)).sum();
        if self.meta.is_centred {
            // (x − mean(x))·w = x·(w − mean(w)).
            let mean = mean(&encoder_row) as f32;
            encoder_row.iter_mut().for_each(|w| *w -= mean);
        }
        Ok(Some(FeatureReader {
            encoder_row,
            bias: (f64::from(self.b_enc[feature]) - offset) as f32,
            threshold: self.threshold[feature],
        }))
    }

    /// What is subtracted from rows before the encoder, `[d_in]`; empty where nothing is.
    pub(crate) fn subtracted(&self) -> &[f32] {
        match self.meta.apply_b_dec_to_input {
            true => &self.b_dec,
            false => &[],
        }
    }

    /// What a row is brought to before the encoder.
    pub(crate) fn normalised(&self, row: &[f32]) -> Normalised {
        Normalised::of(&self.meta, row)
    }

    /// What `row` has that is nothing to an SAE of centred rows: its mean, or 0 with others.
    pub fn ignored_mean(&self, row: &[f32]) -> f32 {
        match self.meta.is_centred {
            true => mean(row) as f32,
            false => 0.0,
        }
    }

    /// How long a decoder direction is in the units of `row`: `SAELens` decodes to a normalised row and
    /// undoes the normalisation then (`run_time_activation_norm_fn_out` in its `saes/sae.py`).
    pub fn decoder_scale(&self, row: &[f32]) -> f32 {
        self.normalised(row).deviation as f32
    }

    /// A feature's label, where it has one.
    pub fn label(&self, feature: usize) -> Option<&str> {
        let label = self.meta.labels.get(feature)?;
        (!label.is_empty()).then_some(label)
    }

    /// The feature that `name` means: an index, a label, or a text that is part of exactly one
    /// label (in upper or lower case).
    ///
    /// # Errors
    /// An index out of range, a text that no label holds, or one that several hold.
    pub fn find_feature(&self, name: &str) -> Result<usize> {
        labels::find_feature(name, self.meta.d_sae, self.labels())
    }

    /// Features that have a label, with it.
    pub fn labels(&self) -> impl Iterator<Item = (usize, &str)> + Clone {
        let labels = self.meta.labels.iter().map(String::as_str).enumerate();
        labels.filter(|(_, label)| !label.is_empty())
    }

    pub(crate) fn check_feature(&self, feature: usize) -> Result<()> {
        let d_sae = self.meta.d_sae;
        if feature < d_sae {
            return Ok(());
        }
        Err(labels::no_feature(&feature.to_string(), d_sae))
    }
}

/// Where features write.
fn outputs(meta: &SaeMeta) -> Result<Vec<HookPoint>> {
    let read = HookPoint::parse(&meta.hook_name)?;
    if !meta.is_transcoder() {
        return Ok(vec![read]);
    }
    let written = meta
        .hook_names_out
        .iter()
        .map(|name| HookPoint::parse(name));
    let written: Vec<HookPoint> = written.collect::<Result<_>>()?;
    // What a feature writes depends on what the model has computed by then.
    let in_order = std::iter::once(read).chain(written.iter().copied());
    if let Some(place) = in_order
        .collect::<Vec<_>>()
        .windows(2)
        .find(|pair| pair[0] >= pair[1])
        .map(|pair| pair[1])
    {
        return Err(Error::invalid(format!(
            "the transcoder reads `{read}` and writes `{place}`, which the model does not compute after it, in this order"
        ))
        .with_hint("use a transcoder that writes behind the place that it reads"));
    }
    Ok(written)
}

/// Thresholds as they work behind a ReLU; zeros where there are none.
fn positive(threshold: Option<Vec<f32>>, d_sae: usize) -> Vec<f32> {
    match threshold {
        Some(threshold) => threshold.into_iter().map(|t| t.max(0.0)).collect(),
        None => vec![0.0; d_sae],
    }
}
