//! The pieces of a prompt, each the rows of a graph: read, or remembered.

use std::ops::Range;
use std::sync::Arc;

use super::Engine;
use crate::llama::{Output, OutputRow, Pass, Reach};
use crate::prompt::Prompt;
use crate::run::logits::TokenLogProbs;
use crate::run::reading::{Goal, Reading};
use crate::run::remembered::{Piece, PieceKey, PromptStore};
use crate::{CancelFlag, HookPoint, Result};

/// Where a run edits the rows of its prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct PromptEdits {
    /// The first row that it edits.
    pub(super) first_row: usize,
    /// The lowest place where it edits.
    pub(super) lowest: HookPoint,
}

impl Engine {
    /// Reads the next piece of a run's prompt, or what is not remembered of it, and tells how many rows it has.
    /// The logits behind a prompt whose end is remembered come with it.
    pub(super) fn read_piece(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        reading: &mut Reading,
        cancel: &CancelFlag,
    ) -> Result<usize> {
        let n_ubatch = self.forward.context.n_ubatch();
        let Some(piece) = reading.next_piece(prompt, n_ubatch) else {
            return Ok(0);
        };
        let (rows, output) = piece;
        let end = reading.n_rows + rows.n_rows();
        reading.key = reading.key.map(|key| key.then(&rows, output));
        let store = self.store_of(sequence);
        let known = reading
            .key
            .and_then(|key| self.known_piece(&key, store.as_ref()));
        let pass = match reading.key {
            Some(_) => self.shared_pass(sequence, reading.goal, end, known.as_deref()),
            None => self.prompt_pass(reading.goal),
        };
        self.forward.set_pass(pass);
        let (replayed, recorded) = match pass {
            Pass::Hooked {
                replayed, recorded, ..
            } => (replayed, recorded),
            Pass::Unhooked => (Reach::Nothing, Reach::Nothing),
        };
        if let Some(known) = known.filter(|_| replayed > Reach::Nothing) {
            if output == Output::LastRow && replayed == Reach::End {
                self.active(sequence).end_of_prompt = Some(Arc::clone(&known));
            }
            self.active(sequence).n_remembered += rows.n_rows();
            self.forward.context.replay(Arc::clone(&known.graph));
        }
        let n_rows = self
            .forward
            .decode_piece(sequence, prompt, reading, piece, cancel)?;
        if let Some(key) = reading.key.filter(|_| recorded > Reach::Nothing) {
            self.keep_piece(key, output, recorded, store.as_ref());
        }
        self.score_piece(sequence, prompt, end - n_rows..end, output);
        Ok(n_rows)
    }

    /// Says how likely the tokens behind the rows of a piece that was just read were, if that is asked for.
    fn score_piece(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        rows: Range<usize>,
        output: Output,
    ) {
        let active = self.slots[sequence].as_mut().expect("it is there");
        let Some(n_top) = active.request.options.prompt_log_probs else {
            return;
        };
        let predictions = &mut active.prompt_log_probs;
        self.forward.each_prediction(
            prompt.tokens(),
            rows,
            output,
            &mut |position, id, logits| {
                predictions[position] = Some(TokenLogProbs::new(logits, id, n_top));
            },
        );
    }

    /// Where a run's prompt is kept, besides with others of this batch.
    fn store_of(&mut self, sequence: usize) -> Option<PromptStore> {
        let store = self.model.options().prompt_store.clone();
        let request = &self.slots[sequence].as_ref().expect("it is there").request;
        store.filter(|_| self.may_remember(std::slice::from_ref(request)))
    }

    fn known_piece(&self, key: &PieceKey, store: Option<&PromptStore>) -> Option<Arc<Piece>> {
        let of_batch = self
            .batch
            .pieces
            .as_ref()
            .and_then(|pieces| pieces.get(key));
        let found = of_batch.cloned();
        found.or_else(|| store.and_then(|store| store.get(key)))
    }

    fn keep_piece(
        &mut self,
        key: PieceKey,
        output: Output,
        recorded: Reach,
        store: Option<&PromptStore>,
    ) {
        let context = &mut self.forward.context;
        let Some(graph) = context.take_recording() else {
            return;
        };
        let piece = Arc::new(Piece {
            graph: Arc::new(graph),
            logits: match (output, recorded) {
                (Output::LastRow, Reach::End) => context.logits(OutputRow::Last).to_vec(),
                _ => Vec::new(),
            },
        });
        if let Some(store) = store {
            store.put(key, Arc::clone(&piece));
        }
        if let Some(pieces) = &mut self.batch.pieces {
            pieces.insert(key, piece);
        }
    }

    /// How much is computed of a prompt that is not shared.
    fn prompt_pass(&mut self, goal: Goal) -> Pass {
        match goal {
            Goal::Logits => self.pass(),
            Goal::Rows(_) => Pass::up_to(self.computed(goal)),
        }
    }

    /// How far a run with this goal computes its prompt.
    fn computed(&mut self, goal: Goal) -> Reach {
        let top = self.forward.context.hook().sites.len().checked_sub(1);
        match (goal, top) {
            (Goal::Rows(_), Some(top)) => Reach::Node(top),
            (Goal::Rows(_), None) | (Goal::Logits, _) => Reach::End,
        }
    }

    /// How much is computed of a piece that ends before the row `end`, of which this much is known: what is
    /// above the place to which it is known, or where the run edits.
    fn shared_pass(
        &mut self,
        sequence: usize,
        goal: Goal,
        end: usize,
        known: Option<&Piece>,
    ) -> Pass {
        let computed = self.computed(goal);
        let edits = self.active(sequence).prompt_edits;
        let edits = edits.filter(|edits| edits.first_row < end);
        let unedited = match edits {
            None => computed,
            Some(edits) => {
                let split = self.stream_below(Some(edits.lowest));
                split.map_or(Reach::Nothing, Reach::Node).min(computed)
            }
        };
        let sites = &self.forward.context.hook().sites;
        let splits = |site: usize| sites[site].parts_graph || Reach::Node(site) == computed;
        let is_known = |reach: Reach| {
            let Some(known) = known else { return false };
            let (n_sites, is_enough) = match reach {
                Reach::Nothing => return false,
                Reach::Node(site) => (site + 1, splits(site)),
                Reach::End => (sites.len(), known.graph.is_whole),
            };
            is_enough
                && sites[..n_sites]
                    .iter()
                    .all(|site| known.graph.node(&site.hooked.node).is_some())
        };
        let places = (0..sites.len()).map(Reach::Node).chain([Reach::End]);
        let mut places = places.rev().filter(|reach| *reach <= unedited);
        let replayed = places.find(|&reach| is_known(reach));
        let replayed = replayed.unwrap_or(Reach::Nothing);
        Pass::Hooked {
            replayed,
            recorded: match unedited > replayed {
                true => unedited,
                false => Reach::Nothing,
            },
            computed,
        }
    }
}
