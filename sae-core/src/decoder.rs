//! The decoder of an SAE: active features back to rows.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::activations::Activations;
use crate::normalization::is_folded;
use crate::product::dot;
use crate::sae::Sae;
use crate::{Error, ErrorKind, Result};

/// Decodes with one SAE, and keeps the decoder rows that it has read.
pub struct Decoder {
    sae: Arc<Sae>,
    rows: HashMap<usize, Vec<f32>>, // of features that were needed, [d_out]
    w_skip: Option<Vec<f32>>,       // [d_out, d_in]
}

impl Decoder {
    /// A decoder of this SAE.
    ///
    /// # Errors
    /// A cross-layer transcoder, of which one layer reconstructs nothing; a file that cannot be read.
    pub fn new(sae: Arc<Sae>) -> Result<Self> {
        if sae.outputs().len() > 1 {
            let what = "what a cross-layer transcoder reconstructs is a sum over the features of several layers, and this is one layer's";
            return Err(Error::new(ErrorKind::Unsupported, what).with_hint(
                "its features can be read and steered; use a transcoder of one layer for the rest",
            ));
        }
        Ok(Self {
            w_skip: sae.w_skip()?,
            sae,
            rows: HashMap::new(),
        })
    }

    /// The SAE's reconstruction into `out`, `[d_out]`, from `row`, `[d_in]`, whose active features are the row `row_idx`
    /// of `activations`: `b_dec + Σ a · W_dec`, with the row's normalisation undone (`SAELens`, `saes/sae.py`); of a
    /// transcoder with a skip connection, `W_skip · row` is added (`saes/transcoder.py`).
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
        row: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        out.copy_from_slice(self.sae.b_dec());
        for (feature, activation) in activations.row(row_idx) {
            let direction = match self.rows.entry(feature) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.sae.decoder_row(feature)?),
            };
            for (x, value) in out.iter_mut().zip(direction) {
                *x += activation * *value;
            }
        }
        if let Some(w_skip) = &self.w_skip {
            let products = w_skip.chunks_exact(row.len()).map(|skip| dot(row, skip));
            for (x, product) in out.iter_mut().zip(products) {
                *x += product;
            }
        }
        if !is_folded(self.sae.meta()) {
            let normalised = self.sae.normalised(row);
            for x in out {
                *x = (f64::from(*x) * normalised.deviation + normalised.mean) as f32;
            }
        }
        Ok(())
    }
}
