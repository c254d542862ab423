//! An SAE as it was published, whatever its format: what every reader gives and [`super::convert`]
//! writes.

use super::meta::{Architecture, NormalizeActivations};
use crate::weights::{OpenTensor, StoredTensor};
use crate::{Error, Result};

/// Values of a matrix in memory at once: 64 MiB as f32. With the bytes of the source that they come
/// from, a conversion takes about twice that.
const BLOCK_VALUES: usize = 16 << 20;

/// Rows of a matrix with features in columns that are transposed together, so that each store fills
/// a cache line.
const TRANSPOSED_ROWS: usize = 16;

/// A published SAE: metadata and vectors in memory, matrices in their files.
///
/// It computes `h = factor ⊙ ((x − b_dec)·W_enc) + b_enc` with `x` normalised as it says.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) format: Format,
    pub(super) architecture: Architecture,
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
    pub(super) hook_name: String,
    /// What it writes elsewhere, if it is a transcoder.
    pub(super) output: Option<Output>,
    pub(super) apply_b_dec_to_input: bool,
    pub(super) normalize_activations: NormalizeActivations,
    /// Whether the rows that it was trained on had their mean subtracted, where the files say it.
    pub(super) is_centred: Option<bool>,
    /// The factor that the files give for it; most give none.
    pub(super) norm_factor: Option<f32>,
    pub(super) model_name: Option<String>,
    pub(super) w_enc: FeatureMatrix,
    pub(super) w_dec: FeatureMatrix,
    /// `[d_sae]`, or nothing: factors on the encoder's rows.
    pub(super) encoder_factors: Vec<f32>,
    /// `[d_sae]`, or nothing: factors on the decoder's rows.
    pub(super) decoder_factors: Vec<f32>,
    /// Whether activations are those of decoder rows of unit length (`rescale_acts_by_decoder_norm`).
    pub(super) rescale_by_decoder_norm: bool,
    /// `[d_sae]`.
    pub(super) b_enc: Vec<f32>,
    /// `[d_in]`, or of a transcoder `[d_out]`.
    pub(super) b_dec: Vec<f32>,
    /// `[d_sae]`, with architecture `jumprelu`.
    pub(super) threshold: Option<Vec<f32>>,
    /// `[d_sae]`: log10 of how often each feature was active in training.
    pub(super) log_sparsity: Option<Vec<f32>>,
}

/// Where a transcoder writes.
#[derive(Debug)]
pub(super) struct Output {
    /// The places: several of a cross-layer transcoder, whose decoder has what a feature writes at all of them side by
    /// side.
    pub(super) hook_names: Vec<String>,
    pub(super) d_out: usize,
    /// What it adds of the row that it reads, `[d_out, d_in]` with the outputs as features.
    pub(super) w_skip: Option<FeatureMatrix>,
}

/// How an SAE is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `cfg.json` and `sae_weights.safetensors`.
    SaeLens,
    /// `params.npz`, no configuration.
    GemmaScope,
    /// `config.json` and `params.safetensors`.
    GemmaScope2,
    /// `cfg.json` and `sae.safetensors`.
    Sparsify,
    /// `hyperparams.json` and `checkpoints/final.safetensors`.
    LlamaScope,
    /// `config.json` and `sae_weights.safetensors`.
    OpenMoss,
    /// `layer_N.safetensors`, one file for each block.
    CircuitTracer,
}

impl Format {
    /// What its makers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SaeLens => "SAELens",
            Self::GemmaScope => "Gemma Scope",
            Self::GemmaScope2 => "Gemma Scope 2",
            Self::Sparsify => "sparsify",
            Self::LlamaScope => "Llama Scope",
            Self::OpenMoss => "OpenMOSS",
            Self::CircuitTracer => "circuit-tracer",
        }
    }
}

/// Where a stored matrix has its features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[d_sae, d_in]`.
    FeaturesInRows,
    /// `[d_in, d_sae]`.
    FeaturesInColumns,
}

/// A stored matrix of `n_features` vectors of length `d_in`.
#[derive(Debug)]
pub(super) struct FeatureMatrix {
    pub(super) tensor: StoredTensor,
    layout: Layout,
    n_features: usize,
    d_in: usize,
    n_skipped: usize, // values in front of each feature's, with features in rows
}

impl FeatureMatrix {
    /// A matrix for `[d_sae, d_in]`.
    ///
    /// # Errors
    /// A tensor of another shape or number type.
    pub(super) fn new(
        tensor: StoredTensor,
        layout: Layout,
        [d_sae, d_in]: [usize; 2],
    ) -> Result<Self> {
        tensor.check(&match layout {
            Layout::FeaturesInRows => [d_sae, d_in],
            Layout::FeaturesInColumns => [d_in, d_sae],
        })?;
        Ok(Self {
            tensor,
            layout,
            n_features: d_sae,
            d_in,
            n_skipped: 0,
        })
    }

    /// A matrix of `[d_sae, n_parts, d_part]`, of which each feature has the parts from `first_part` on, side by side.
    ///
    /// # Errors
    /// A tensor of another shape or number type, or of fewer parts.
    pub(super) fn of_parts(tensor: StoredTensor, d_sae: usize, first_part: usize) -> Result<Self> {
        let (n_parts, d_part) = match tensor.shape() {
            &[n_features, n_parts, d_part] if n_features == d_sae && n_parts > first_part => {
                (n_parts, d_part)
            }
            shape => {
                return Err(Error::invalid(format!(
                    "{} has shape {shape:?}, expected [{d_sae}, more than {first_part}, d_out]",
                    tensor.describe()
                )));
            }
        };
        tensor.check(&[d_sae, n_parts, d_part])?;
        Ok(Self {
            tensor,
            layout: Layout::FeaturesInRows,
            n_features: d_sae,
            d_in: (n_parts - first_part) * d_part,
            n_skipped: first_part * d_part,
        })
    }

    /// The length of each feature's vector.
    pub(super) fn d_in(&self) -> usize {
        self.d_in
    }

    /// Starts to read it, some features at a time.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn blocks(&self) -> Result<FeatureBlocks<'_>> {
        let block_features = (BLOCK_VALUES / self.d_in.max(1)).clamp(1, self.n_features.max(1));
        Ok(FeatureBlocks {
            matrix: self,
            open: self.tensor.open()?,
            block_features,
            next_feature: 0,
            columns: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// The L2 norm of each feature's vector, `[d_sae]`.
    ///
    /// # Errors
    /// The operating system's, and numbers that are not finite.
    pub(super) fn norms(&self) -> Result<Vec<f32>> {
        let mut norms = Vec::with_capacity(self.n_features);
        let mut blocks = self.blocks()?;
        while let Some(block) = blocks.next()? {
            norms.extend(block.rows.chunks_exact(self.d_in).map(norm));
        }
        Ok(norms)
    }
}

/// The L2 norm of a row.
pub(super) fn norm(row: &[f32]) -> f32 {
    let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    square.sqrt() as f32
}

/// A matrix that is being read.
pub(super) struct FeatureBlocks<'a> {
    matrix: &'a FeatureMatrix,
    open: OpenTensor<'a>,
    block_features: usize,
    next_feature: usize,
    columns: Vec<f32>, // [TRANSPOSED_ROWS, n_features] of one block, reused
    rows: Vec<f32>,    // [n_features, d_in] of one block, reused
}

/// Some features of a matrix.
pub(super) struct FeatureBlock<'a> {
    pub(super) first_feature: usize,
    /// `[n_features, d_in]`; the caller may change them.
    pub(super) rows: &'a mut [f32],
    /// Bytes that they take in the source.
    pub(super) n_bytes: u64,
}

impl FeatureBlocks<'_> {
    /// The next features, all numbers finite, and `None` after the last.
    ///
    /// # Errors
    /// The operating system's, and a number that is NaN or infinite.
    pub(super) fn next(&mut self) -> Result<Option<FeatureBlock<'_>>> {
        let d_in = self.matrix.d_in;
        let first_feature = self.next_feature;
        let n_features = self
            .block_features
            .min(self.matrix.n_features - first_feature);
        if n_features == 0 {
            return Ok(None);
        }
        self.next_feature += n_features;
        self.rows.resize(n_features * d_in, 0.0);
        let n_bytes = match self.matrix.layout {
            Layout::FeaturesInRows if self.matrix.n_skipped == 0 => {
                self.open.read_at(first_feature * d_in, &mut self.rows)?
            }
            Layout::FeaturesInRows => self.read_parts(first_feature)?,
            Layout::FeaturesInColumns => self.read_columns(first_feature, n_features)?,
        };
        if let Some(idx) = self.rows.iter().position(|value| !value.is_finite()) {
            let feature = first_feature + idx / d_in;
            let place = format!("feature {feature}");
            return Err(self.matrix.tensor.not_finite(self.rows[idx], &place));
        }
        Ok(Some(FeatureBlock {
            first_feature,
            rows: &mut self.rows,
            n_bytes,
        }))
    }

    /// Fills `rows` with the ends of some rows.
    fn read_parts(&mut self, first_feature: usize) -> Result<u64> {
        let FeatureMatrix {
            d_in, n_skipped, ..
        } = *self.matrix;
        let mut n_bytes = 0;
        for (idx, row) in self.rows.chunks_exact_mut(d_in).enumerate() {
            let start = (first_feature + idx) * (n_skipped + d_in) + n_skipped;
            n_bytes += self.open.read_at(start, row)?;
        }
        Ok(n_bytes)
    }

    /// Fills `rows` with the transpose of some columns.
    fn read_columns(&mut self, first_feature: usize, n_features: usize) -> Result<u64> {
        let (d_in, d_sae) = (self.matrix.d_in, self.matrix.n_features);
        self.columns.resize(TRANSPOSED_ROWS * n_features, 0.0);
        let mut n_bytes = 0;
        for first_row in (0..d_in).step_by(TRANSPOSED_ROWS) {
            let n_rows = TRANSPOSED_ROWS.min(d_in - first_row);
            let columns = &mut self.columns[..n_rows * n_features];
            for (row_idx, row) in columns.chunks_exact_mut(n_features).enumerate() {
                let start = (first_row + row_idx) * d_sae + first_feature;
                n_bytes += self.open.read_at(start, row)?;
            }
            for (feature, row) in self.rows.chunks_exact_mut(d_in).enumerate() {
                for (row_idx, value) in row[first_row..first_row + n_rows].iter_mut().enumerate() {
                    *value = columns[row_idx * n_features + feature];
                }
            }
        }
        Ok(n_bytes)
    }
}

/// The width and the number of features, by the shape of the decoder.
///
/// # Errors
/// A tensor that is no matrix.
pub(super) fn decoder_shape(w_dec: &StoredTensor, layout: Layout) -> Result<[usize; 2]> {
    let (expected, shape) = match (layout, w_dec.shape()) {
        (Layout::FeaturesInRows, &[d_sae, d_in]) => return Ok([d_sae, d_in]),
        (Layout::FeaturesInColumns, &[d_in, d_sae]) => return Ok([d_sae, d_in]),
        (Layout::FeaturesInRows, shape) => ("[d_sae, d_in]", shape),
        (Layout::FeaturesInColumns, shape) => ("[d_in, d_sae]", shape),
    };
    Err(Error::invalid(format!(
        "{} has shape {shape:?}, expected {expected}",
        w_dec.describe()
    )))
}
