//! The hooks' work: copies rows out, computes features, applies interventions.

use std::collections::HashMap;

use super::cursor::{Cursor, Row};
use crate::llama::{Edited, HookedNode, RowHook};
use crate::steering::{Edit, Encoded, Steering, Watched};
use crate::{Activations, Encoder, FeatureId, HookPoint, Kinds, Result, ShownRows, Token};

/// What a run keeps. Nothing is computed that is not kept: without tokens to generate, and without
/// logits, the model stops at the highest hook, and behind the last row whose features are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The kinds of rows whose active features are kept; special tokens are kept with the prompt's text.
    pub features: Kinds,
    /// The rows themselves, before and after interventions.
    pub residuals: bool,
    /// The logits after the prompt's last row.
    pub logits: bool,
}

impl Keep {
    /// All of it.
    pub const ALL: Self = Self {
        features: Kinds::ALL,
        residuals: true,
        logits: true,
    };
}

/// What the hooks saw of a run.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// What each row is that the model computed.
    pub tokens: Vec<Token>,
    /// What each SAE saw, in the model's order.
    pub saes: Vec<SaeTrace>,
}

impl Trace {
    fn of(n_saes: usize) -> Self {
        Self {
            tokens: Vec::new(),
            saes: vec![SaeTrace::default(); n_saes],
        }
    }
}

/// What was seen where an SAE reads.
#[derive(Clone, Debug, Default)]
pub struct SaeTrace {
    /// The active features of each row **before** interventions there; rows that are not kept have none.
    pub activations: Activations,
    /// The rows before interventions there, `[n_rows, d_in]`; empty where not kept.
    pub residuals: Vec<f32>,
    /// The rows after interventions there, `[n_rows, d_in]`; empty where not kept, or where the run has no
    /// interventions.
    pub steered_residuals: Vec<f32>,
}

/// Edits rows at a hook point: what interventions cannot express, such as another network's output.
pub trait Editor: Send {
    /// Sees the rows at the place that is read, `[n_rows, width]`, before any edit there.
    ///
    /// # Errors
    /// An error ends the run.
    fn read(&mut self, rows: &[f32], tokens: &[Token]) -> Result<()> {
        let _ = (rows, tokens);
        Ok(())
    }

    /// Edits the rows at the place that is written, `[n_rows, width]`, behind the run's interventions.
    ///
    /// # Errors
    /// An error ends the run.
    fn write(&mut self, rows: &mut [f32], tokens: &[Token]) -> Result<Edited>;
}

/// An editor with the places that it reads and writes.
pub struct EditorAt {
    /// Where rows are read.
    pub read: HookPoint,
    /// Where rows are written; the same place, or one that the model computes later.
    pub write: HookPoint,
    /// What edits.
    pub editor: Box<dyn Editor>,
}

/// A place that is hooked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HookedSite {
    pub(crate) hook_point: HookPoint,
    pub(crate) hooked: HookedNode,
    /// Whether everything above depends on its rows alone.
    pub(crate) parts_graph: bool,
    /// Which rows come there; only edits are done where it is not all.
    pub(crate) shown_rows: ShownRows,
    /// The SAEs that read there.
    pub(crate) saes: Vec<usize>,
}

/// The hooks of a context.
pub(crate) struct Hooks {
    encoders: Vec<Encoder>,            // of each SAE
    pub(crate) sites: Vec<HookedSite>, // in the order in which the model computes them
    pub(crate) cursor: Cursor,
    pub(crate) sequences: Vec<Sequence>,
    culprit: Option<usize>,    // the sequence whose interventions have failed
    encoded: Vec<Activations>, // for each SAE, of the rows at hand, where interventions need them and they are not kept
}

/// What the hooks do for one sequence, and what they saw.
#[derive(Default)]
pub(crate) struct Sequence {
    keep: Keep,
    steering: Option<Steering>,
    editors: Vec<EditorAt>,
    /// What edits above ask of hooks below: the activations of features in the rows at hand, `[n_rows]`.
    watched: HashMap<FeatureId, Vec<f32>>,
    pub(crate) trace: Trace,
}

impl Hooks {
    /// Hooks for `n_sequences` with these encoders; the places are set when runs are known.
    pub(crate) fn new(encoders: Vec<Encoder>, n_sequences: usize) -> Self {
        Self {
            encoded: vec![Activations::default(); encoders.len()],
            encoders,
            sites: Vec::new(),
            cursor: Cursor::default(),
            culprit: None,
            sequences: std::iter::repeat_with(Sequence::default)
                .take(n_sequences)
                .collect(),
        }
    }

    /// Begins a run in a sequence.
    pub(crate) fn begin(
        &mut self,
        sequence: usize,
        keep: Keep,
        steering: Option<Steering>,
        editors: Vec<EditorAt>,
    ) {
        self.sequences[sequence] = Sequence {
            keep,
            steering,
            editors,
            watched: HashMap::new(),
            trace: Trace::of(self.encoders.len()),
        };
    }

    /// The sequence whose interventions or editors have failed in the last decode, if any did.
    pub(crate) fn take_culprit(&mut self) -> Option<usize> {
        self.culprit.take()
    }

    /// The rows that were seen of a sequence.
    pub(crate) fn n_rows(&self, sequence: usize) -> usize {
        self.sequences[sequence].trace.tokens.len()
    }

    /// What was seen of a sequence.
    pub(crate) fn take_trace(&mut self, sequence: usize) -> Trace {
        let empty = Trace::of(self.encoders.len());
        std::mem::replace(&mut self.sequences[sequence].trace, empty)
    }

    /// Forgets what was seen of a sequence behind its first `n_rows`.
    pub(crate) fn truncate(&mut self, sequence: usize, n_rows: usize) {
        let trace = &mut self.sequences[sequence].trace;
        trace.tokens.truncate(n_rows);
        for (trace, encoder) in trace.saes.iter_mut().zip(&self.encoders) {
            let d_in = encoder.sae().meta().d_in;
            trace.activations.truncate(n_rows);
            trace.residuals.truncate(n_rows * d_in);
            trace.steered_residuals.truncate(n_rows * d_in);
        }
    }
}

impl RowHook for Hooks {
    fn on_rows(&mut self, site_idx: usize, rows: &mut [f32]) -> Result<Edited> {
        let site = &self.sites[site_idx];
        let width = site.hooked.width;
        let n_rows = rows.len() / width;
        let submitted = match site.shown_rows {
            ShownRows::All => self.cursor.advance(site_idx, n_rows)?,
            ShownRows::Output => self.cursor.last(n_rows)?,
        };
        let mut edited = Edited::No;
        let mut rest = rows;
        let is_alike = |a: &Row, b: &Row| a.sequence == b.sequence && a.token.kind == b.token.kind;
        for group in submitted.chunk_by(is_alike) {
            let (rows, others) = rest.split_at_mut(group.len() * width);
            rest = others;
            let sequence = &mut self.sequences[group[0].sequence];
            let tokens: Vec<Token> = group.iter().map(|row| row.token).collect();
            let prompt_idx = group[0].prompt_idx; // the others follow
            if site_idx == 0 {
                sequence.trace.tokens.extend(&tokens);
            }
            let (encoders, encoded) = (&mut self.encoders, &mut self.encoded);
            match sequence.on_rows(site, encoders, encoded, prompt_idx, &tokens, rows) {
                Ok(Edited::Yes) => edited = Edited::Yes,
                Ok(Edited::No) => {}
                Err(error) => {
                    self.culprit = Some(group[0].sequence);
                    return Err(error);
                }
            }
        }
        Ok(edited)
    }
}

impl Sequence {
    /// Takes rows of one kind at a place, of which the first is the row `prompt_idx` of the prompt, unless they
    /// were generated.
    fn on_rows(
        &mut self,
        site: &HookedSite,
        encoders: &mut [Encoder],
        encoded: &mut [Activations],
        prompt_idx: usize,
        tokens: &[Token],
        rows: &mut [f32],
    ) -> Result<Edited> {
        let kind = tokens[0].kind;
        let keep = self.keep;
        let steers = self.steering.is_some();
        let is_here =
            |one: &&Watched| one.hook_point == site.hook_point && one.kinds.contain_some(kind);
        let watched = self.steering.iter().flat_map(|steering| steering.watched());
        let watched: Vec<Watched> = watched.filter(is_here).cloned().collect();
        let edits = self.steering.as_mut().map(Steering::edits_mut);
        let mut edit = edits.and_then(|edits| {
            edits
                .iter_mut()
                .find(|edit| edit.hook_point() == site.hook_point)
        });
        for editor in &mut self.editors {
            if editor.read == site.hook_point {
                editor.editor.read(rows, tokens)?;
            }
        }
        // Rows are encoded once, whether their features are kept, needed below, or both.
        let is_kept = keep.features.contain_some(kind);
        let mut first_row_idx = 0;
        for &sae in &site.saes {
            let trace = &mut self.trace.saes[sae];
            if keep.residuals {
                trace.residuals.extend_from_slice(rows);
            }
            first_row_idx = match is_kept {
                true => trace.activations.n_rows(),
                false => 0,
            };
            let activations = if is_kept {
                &mut trace.activations
            } else {
                trace.activations.push_empty_rows(tokens.len());
                encoded[sae].clear();
                &mut encoded[sae]
            };
            let is_needed = |edit: &&mut Edit| edit.needs_encoder(sae, kind);
            let asks = |one: &Watched| one.feature.sae == sae && one.reader.is_none();
            if is_kept || edit.as_ref().is_some_and(is_needed) || watched.iter().any(asks) {
                encoders[sae].encode(rows, activations)?;
            }
        }
        let traces = &self.trace.saes;
        let activations = |sae: usize| match is_kept {
            true => &traces[sae].activations,
            false => &encoded[sae],
        };
        for Watched {
            feature, reader, ..
        } in watched
        {
            let row_idxs = first_row_idx..first_row_idx + tokens.len();
            let values: Vec<f32> = match reader {
                Some(reader) => rows
                    .chunks_exact(site.hooked.width)
                    .map(|row| reader.activation(row))
                    .collect(),
                None => row_idxs
                    .map(|row_idx| activations(feature.sae).get(row_idx, feature.index))
                    .collect(),
            };
            self.watched.insert(feature, values);
        }
        let mut edited = Edited::No;
        if let Some(edit) = &mut edit {
            let asked = site.saes.iter().copied();
            let asked: Vec<usize> = asked.filter(|&sae| edit.needs_encoder(sae, kind)).collect();
            let mut scales = vec![1.0; encoders.len()];
            let row_of_token = tokens.iter().zip(rows.chunks_exact_mut(site.hooked.width));
            let watched = &self.watched;
            for (i, (&token, row)) in row_of_token.enumerate() {
                for &sae in &asked {
                    scales[sae] = encoders[sae].sae().decoder_scale(row);
                }
                let encoded = |feature: FeatureId| match site.saes.contains(&feature.sae) {
                    true => Encoded {
                        activation: activations(feature.sae).get(first_row_idx + i, feature.index),
                        decoder_scale: scales[feature.sae],
                    },
                    // The same rows, as the hook below saw them in this ubatch, or the last of them.
                    false => {
                        let seen = &watched[&feature];
                        Encoded {
                            activation: seen[seen.len() - tokens.len() + i],
                            decoder_scale: 1.0,
                        }
                    }
                };
                if edit.apply(prompt_idx + i, token, row, encoded)? {
                    edited = Edited::Yes;
                }
            }
        }
        for editor in &mut self.editors {
            if editor.write == site.hook_point && editor.editor.write(rows, tokens)? == Edited::Yes
            {
                edited = Edited::Yes;
            }
        }
        if keep.residuals && steers {
            for &sae in &site.saes {
                let trace = &mut self.trace.saes[sae];
                trace.steered_residuals.extend_from_slice(rows);
            }
        }
        Ok(edited)
    }
}
