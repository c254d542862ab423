//! The hook's work: copies rows out, computes features, applies interventions.

use crate::Result;
use crate::activations::Activations;
use crate::llama::{Edited, RowHook};
use crate::sae::Sae;
use crate::steering::{Encoded, Steering};
use crate::tokens::{Cursor, Positions, Row, Token};

/// What a run keeps. Nothing is computed that is not kept: without tokens to generate, and without
/// logits, the model stops at the hook, and behind the last row whose features are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The kinds of rows whose active features are kept; special tokens are kept with the prompt's text.
    pub features: Positions,
    /// The rows themselves, before and after interventions.
    pub residuals: bool,
    /// The logits after the prompt's last row.
    pub logits: bool,
}

/// What the hook saw.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// What each row is that the model computed.
    pub tokens: Vec<Token>,
    /// The active features of each row **before** interventions; rows that are not kept have none.
    pub activations: Activations,
    /// The rows before interventions, `[n_rows, d_in]` of the SAE; empty where not kept.
    pub residuals: Vec<f32>,
    /// The rows after interventions, `[n_rows, d_in]`; empty where not kept or not steered.
    pub steered_residuals: Vec<f32>,
}

/// The hook: copies rows out, computes features, applies interventions.
pub(crate) struct Tap {
    pub(crate) sae: Sae,
    pub(crate) cursor: Cursor,
    pub(crate) sequences: Vec<Sequence>,
    encoded: Activations, // of the rows at hand, where interventions need them and they are not kept
}

/// What the hook does for one sequence, and what it saw.
pub(crate) struct Sequence {
    pub(crate) keep: Keep,
    pub(crate) steering: Option<Steering>,
    pub(crate) substitute: Option<Substitute>,
    pub(crate) trace: Trace,
}

/// What stands in for rows at the hook, to see how much the model loses.
#[derive(Clone, Debug)]
pub(crate) struct Substitute {
    pub(crate) with: Substituted,
    /// Tokens whose rows stay.
    pub(crate) except: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Substituted {
    /// The SAE's reconstruction.
    Reconstruction,
    Zeros,
}

impl Substitute {
    fn apply(
        &self,
        sae: &mut Sae,
        encoded: &mut Activations,
        submitted: &[Row],
        rows: &mut [f32],
    ) -> Result<()> {
        if self.with == Substituted::Reconstruction {
            encoded.clear();
            sae.encode(rows, encoded)?;
        }
        let rows = rows.chunks_exact_mut(sae.meta().d_in);
        for (row_idx, (row, Row { token, .. })) in rows.zip(submitted).enumerate() {
            if token.id.is_some_and(|id| self.except.contains(&id)) {
                continue;
            }
            match self.with {
                Substituted::Reconstruction => sae.reconstruct(encoded, row_idx, row)?,
                Substituted::Zeros => row.fill(0.0),
            }
        }
        Ok(())
    }
}

impl Tap {
    pub(crate) fn new(sae: Sae) -> Self {
        Self {
            sae,
            cursor: Cursor::default(),
            sequences: Vec::new(),
            encoded: Activations::default(),
        }
    }
}

impl RowHook for Tap {
    fn on_rows(&mut self, rows: &mut [f32]) -> Result<Edited> {
        let d_in = self.sae.meta().d_in;
        let submitted = self.cursor.advance(rows.len() / d_in)?;
        let mut edited = Edited::No;
        let mut rest = rows;
        let is_alike = |a: &Row, b: &Row| a.sequence == b.sequence && a.token.kind == b.token.kind;
        for group in submitted.chunk_by(is_alike) {
            let (rows, others) = rest.split_at_mut(group.len() * d_in);
            rest = others;
            let sequence = &mut self.sequences[group[0].sequence];
            if sequence.on_rows(&mut self.sae, &mut self.encoded, group, rows)? == Edited::Yes {
                edited = Edited::Yes;
            }
        }
        Ok(edited)
    }
}

impl Sequence {
    /// Takes rows of one kind.
    fn on_rows(
        &mut self,
        sae: &mut Sae,
        encoded: &mut Activations,
        submitted: &[Row],
        rows: &mut [f32],
    ) -> Result<Edited> {
        let d_in = sae.meta().d_in;
        let kind = submitted[0].token.kind;
        self.trace
            .tokens
            .extend(submitted.iter().map(|row| row.token));
        if self.keep.residuals {
            self.trace.residuals.extend_from_slice(rows);
        }
        if let Some(substitute) = &self.substitute {
            substitute.apply(sae, encoded, submitted, rows)?;
            return Ok(Edited::Yes);
        }
        // Rows are encoded once, whether their features are kept, needed below, or both.
        let is_kept = self.keep.features.contain_some(kind);
        let activations = if is_kept {
            &mut self.trace.activations
        } else {
            self.trace.activations.push_empty_rows(submitted.len());
            encoded.clear();
            encoded
        };
        let first_row_idx = activations.n_rows();
        let steering = self.steering.as_mut();
        let needs_encoder = steering
            .as_ref()
            .is_some_and(|steering| steering.needs_encoder(kind));
        if is_kept || needs_encoder {
            sae.encode(rows, activations)?;
        }
        let Some(steering) = steering else {
            return Ok(Edited::No);
        };
        let mut edited = Edited::No;
        let rows_of_tokens = submitted.iter().zip(rows.chunks_exact_mut(d_in));
        for (row_idx, (submitted, row)) in (first_row_idx..).zip(rows_of_tokens) {
            let decoder_scale = if needs_encoder {
                sae.decoder_scale(row)
            } else {
                1.0
            };
            let encoded = |feature| Encoded {
                activation: activations.get(row_idx, feature),
                decoder_scale,
            };
            if steering.apply(submitted.token, row, encoded)? {
                edited = Edited::Yes;
            }
        }
        if self.keep.residuals {
            self.trace.steered_residuals.extend_from_slice(rows);
        }
        Ok(edited)
    }
}
