//! Editors that metrics take: what records the rows that a transcoder is to reconstruct, and what puts a reconstruction in
//! their place.

use std::sync::{Arc, Mutex, PoisonError};

use crate::llama::Edited;
use crate::run::{Editor, EditorAt};
use crate::{Activations, Decoder, Encoder, Result, Sae, Token};

/// The rows that a transcoder is to reconstruct, `[n_rows, d_out]`; none with other SAEs, of which they are those that it
/// reads.
pub(super) type Targets = Arc<Mutex<Vec<f32>>>;

/// Keeps the rows where a transcoder writes.
pub(super) struct Recorder(Targets);

impl Recorder {
    /// The editor of a transcoder, and what it will have seen; none for other SAEs.
    pub(super) fn of(sae: &Sae) -> (Option<EditorAt>, Targets) {
        let targets = Targets::default();
        let place = sae.outputs()[0];
        let editor = sae.meta().is_transcoder().then(|| EditorAt {
            read: place,
            write: place,
            editor: Box::new(Self(Arc::clone(&targets))),
        });
        (editor, targets)
    }
}

impl Editor for Recorder {
    fn read(&mut self, rows: &[f32], _: &[Token]) -> Result<()> {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.extend_from_slice(rows);
        Ok(())
    }

    fn write(&mut self, _: &mut [f32], _: &[Token]) -> Result<Edited> {
        Ok(Edited::No)
    }
}

/// Puts something in the place of rows, to see how much the model loses.
pub(super) struct Substitute {
    pub(super) substitution: Substitution,
    /// Tokens whose rows stay.
    pub(super) except: Vec<i32>,
}

pub(super) enum Substitution {
    /// The SAE's reconstruction.
    Reconstruction(Box<Reconstruction>),
    Zeros,
}

pub(super) struct Reconstruction {
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) rows: Vec<f32>, // that were read last, [n_rows, d_in]
    pub(super) activations: Activations, // of these
}

impl Editor for Substitute {
    fn read(&mut self, rows: &[f32], _: &[Token]) -> Result<()> {
        let Substitution::Reconstruction(with) = &mut self.substitution else {
            return Ok(());
        };
        with.rows.clear();
        with.rows.extend_from_slice(rows);
        with.activations.clear();
        with.encoder.encode(rows, &mut with.activations)
    }

    fn write(&mut self, rows: &mut [f32], tokens: &[Token]) -> Result<Edited> {
        let width = rows.len() / tokens.len();
        for (row_idx, (row, token)) in rows.chunks_exact_mut(width).zip(tokens).enumerate() {
            if token.id.is_some_and(|id| self.except.contains(&id)) {
                continue;
            }
            match &mut self.substitution {
                Substitution::Reconstruction(with) => {
                    let d_in = with.rows.len() / tokens.len();
                    let read = &with.rows[row_idx * d_in..][..d_in];
                    with.decoder
                        .reconstruct(&with.activations, row_idx, read, row)?;
                }
                Substitution::Zeros => row.fill(0.0),
            }
        }
        Ok(Edited::Yes)
    }
}
