//! What a model says of given tokens: logits behind a prompt, and cross-entropies of a prompt's text.

use std::sync::Arc;

use super::engine::Engine;
use super::forward::Forward;
use super::hooks::{EditorAt, Keep};
use crate::llama::{Extent, Output, OutputRow, Pass, Rows};
use crate::prompt::{Prompt, Segment};
use crate::run::logits::Distribution;
use crate::{CancelFlag, Result, Token};

/// Bounds the memory for logits, of which a large vocabulary has a megabyte a row.
const AT_ONCE: usize = 64;

impl Engine {
    /// Decodes `ids` as generated tokens behind the beginning, `kept`, of the first `n_sequences` sequences
    /// that the last [`Engine::run`] left, of which the first has no interventions. `on_logits` gets, for each
    /// id but the first, the sequence, the id's index, and the logits that it is chosen from there,
    /// `[n_vocab]`; those of the first sequence come before the others'.
    pub(crate) fn replay(
        &mut self,
        kept: Extent,
        n_sequences: usize,
        ids: &[i32],
        cancel: &CancelFlag,
        on_logits: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let split = self.shared_below();
        let forward = &mut self.forward;
        forward.context.watch([cancel.clone()]);
        for sequence in 0..n_sequences {
            forward.context.truncate(sequence, kept)?;
        }
        let Some((_, inputs)) = ids.split_last() else {
            return Ok(());
        };
        let n_at_once = forward.n_scored_at_once();
        for (i, chunk) in inputs.chunks(n_at_once).enumerate() {
            for sequence in 0..n_sequences {
                if sequence == 1 && split.is_some() {
                    let recorded = forward.context.take_recording();
                    forward.context.replay(Arc::new(recorded));
                }
                forward.set_pass(match (sequence, split) {
                    (0, _) if n_sequences == 1 => Pass::Unhooked,
                    (_, None) => Pass::Whole,
                    (0, Some(split)) => Pass::Recorded(split),
                    (_, Some(split)) => Pass::Replayed(split),
                });
                let tokens = chunk.iter().map(|&id| (0, Token::generated(id)));
                forward.decode(sequence, tokens, Rows::Tokens(chunk), Output::EveryRow)?;
                for row_idx in 0..chunk.len() {
                    let logits = forward.context.logits(OutputRow::Index(row_idx));
                    on_logits(sequence, i * n_at_once + row_idx + 1, logits);
                }
            }
        }
        Ok(())
    }

    /// The cross-entropy of each text token of `prompt` behind another row than those of the tokens
    /// `except`, in nats, with `editors` at work.
    pub(crate) fn cross_entropies(
        &mut self,
        prompt: &Prompt,
        editors: Vec<EditorAt>,
        except: &[i32],
        cancel: &CancelFlag,
    ) -> Result<Vec<f64>> {
        let is_hooked = !editors.is_empty();
        self.hook_editors(&editors)?;
        let forward = &mut self.forward;
        forward.context.clear();
        forward.context.watch([cancel.clone()]);
        forward
            .context
            .hook()
            .begin(0, Keep::default(), None, editors);
        forward.set_pass(match is_hooked {
            true => Pass::Whole,
            false => Pass::Unhooked,
        });
        let tokens = prompt.tokens();
        let mut losses = Vec::new();
        let mut position = 0;
        // What a row says of the token that follows.
        let mut score = |logits: &[f32], position: usize| {
            let is_excluded = tokens[position].id.is_some_and(|id| except.contains(&id));
            let next = tokens.get(position + 1).and_then(|token| token.id);
            if let Some(next) = next.filter(|_| !is_excluded) {
                losses.push(-Distribution::new(logits).log_prob(next));
            }
        };
        for segment in prompt.segments() {
            match segment {
                Segment::Text(ids) => {
                    for chunk in ids.chunks(forward.n_scored_at_once()) {
                        let chunk_tokens = tokens.iter().copied().enumerate();
                        let chunk_tokens = chunk_tokens.skip(position).take(chunk.len());
                        forward.decode(0, chunk_tokens, Rows::Tokens(chunk), Output::EveryRow)?;
                        for row_idx in 0..chunk.len() {
                            score(forward.context.logits(OutputRow::Index(row_idx)), position);
                            position += 1;
                        }
                    }
                }
                Segment::Image(_) => {
                    let rows = segment.rows();
                    let tokens = tokens.iter().copied().enumerate();
                    let tokens = tokens.skip(position).take(rows.n_rows());
                    forward.decode(0, tokens, rows, Output::LastRow)?;
                    position += rows.n_rows();
                    score(forward.context.logits(OutputRow::Last), position - 1);
                }
            }
        }
        Ok(losses)
    }
}

impl Forward {
    /// The rows of a text that are scored in one graph: the context keeps the logits of one.
    fn n_scored_at_once(&self) -> usize {
        AT_ONCE.min(self.context.n_ubatch())
    }
}
