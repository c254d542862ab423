//! The decoder of an SAE: active features back to rows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::Result;
use crate::activations::Activations;
use crate::normalization::is_folded;
use crate::sae::Sae;

/// Decodes with one SAE, and keeps the decoder rows that it has read.
pub struct Decoder {
    sae: Arc<Sae>,
    rows: HashMap<usize, Vec<f32>>, // of features that were needed, [d_in]
}

impl Decoder {
    /// A decoder of this SAE.
    pub fn new(sae: Arc<Sae>) -> Self {
        Self {
            sae,
            rows: HashMap::new(),
        }
    }

    /// Replaces `row`, `[d_in]`, whose active features are the row `row_idx` of `activations`, by the SAE's
    /// reconstruction: `b_dec + Σ a · W_dec`, with the row's normalisation undone (`SAELens`,
    /// `saes/sae.py`).
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
        let normalised = self.sae.normalised(row);
        row.copy_from_slice(self.sae.b_dec());
        for (feature, activation) in activations.row(row_idx) {
            let direction = match self.rows.entry(feature) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.sae.decoder_row(feature)?),
            };
            for (x, value) in row.iter_mut().zip(direction) {
                *x += activation * *value;
            }
        }
        if !is_folded(self.sae.meta()) {
            for x in row {
                *x = (f64::from(*x) * normalised.deviation + normalised.mean) as f32;
            }
        }
        Ok(())
    }
}
