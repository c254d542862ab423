//! A feature: how it is named, what steering adds of it, and how it is read in a row.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::product::dot;

/// A feature of one of a model's SAEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureId {
    /// The SAE, by its place in the [`SaeSet`](crate::SaeSet).
    pub sae: usize,
    /// The feature's index in it, below `d_sae`.
    pub index: usize,
}

impl FeatureId {
    /// A feature of the only SAE.
    pub const fn of_only(index: usize) -> Self {
        Self { sae: 0, index }
    }
}

/// A feature as it is written: an index if there is one SAE, else `SAE_ID/INDEX`. Where names are read, a label
/// is one too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "`feature` must be an index or a label")]
pub enum FeatureName {
    /// An index.
    Index(usize),
    /// A name.
    Name(String),
}

impl FeatureName {
    /// The name of a feature, with its SAE's id where it is one of several.
    pub fn new(sae: Option<&str>, index: usize) -> Self {
        match sae {
            None => Self::Index(index),
            Some(sae) => Self::Name(format!("{sae}/{index}")),
        }
    }
}

impl fmt::Display for FeatureName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A feature's row of the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderDirection {
    /// `W_dec[feature]`, `[d_in]`.
    pub row: Vec<f32>,
    /// Its length, `‖W_dec[feature]‖`.
    pub norm: f32,
    /// The feature's usual activation ([`Sae::usual`](crate::Sae::usual)).
    pub usual: Option<f32>,
}

/// What an SAE's encoder says about a feature in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// The activation `a(x)`.
    pub activation: f32,
    /// How long `W_dec[feature]` is in the row's own units: 1, unless the SAE normalises each row.
    pub decoder_scale: f32,
}

/// What gives a feature's activation in a row, for an SAE whose features do not depend on each
/// other.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureReader {
    /// `W_enc[:, feature]`, `[d_in]`.
    pub encoder_row: Vec<f32>,
    /// `b_enc[feature]`, minus `b_dec · W_enc[:, feature]` if the SAE subtracts `b_dec` from rows.
    pub bias: f32,
    /// What `h` must exceed; 0 for a ReLU.
    pub threshold: f32,
}

impl FeatureReader {
    /// The activation in `row`, `[d_in]`: `h = row · W_enc[:, feature] + bias` where that is above
    /// the threshold, else 0 (`SAELens`, `saes/*_sae.py`).
    pub fn activation(&self, row: &[f32]) -> f32 {
        let h = dot(row, &self.encoder_row) + self.bias;
        if h > self.threshold { h } else { 0.0 }
    }
}
