//! What a model says of given tokens: logits behind a prompt, and cross-entropies of a prompt's text.

use std::sync::Arc;

use super::engine::{Engine, Request};
use super::forward::Forward;
use super::hooks::Trace;
use crate::llama::{Extent, Output, OutputRow, Pass, Rows};
use crate::prompt::{Prompt, Segment};
use crate::run::logits::Distribution;
use crate::{CancelFlag, Result, Token};

/// Bounds the memory for logits, of which a large vocabulary has a megabyte a row.
const AT_ONCE: usize = 64;

/// Whether a prompt's rows are the same to the bit where it is scored as where a run reads it, which takes more of
/// its text at once: on the processor, flash attention sums graphs of fewer than 64 rows in another order
/// (`ggml_fa_tile_config` in ggml-cpu, 0.1.161).
pub(crate) fn is_scored_as_read(prompt: &Prompt) -> bool {
    prompt.segments().iter().all(|segment| match segment {
        Segment::Text(ids) => ids.len() <= AT_ONCE || ids.len().is_multiple_of(AT_ONCE),
        Segment::Image(_) => true,
    })
}

/// What a model says of a prompt's text.
pub(crate) struct Scored {
    /// The cross-entropy of each text token that is scored, in nats.
    pub(crate) losses: Vec<f64>,
    /// What the hooks saw meanwhile.
    pub(crate) trace: Trace,
}

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

    /// Scores a prompt under each of these requests of it, in their order and one after another, with what
    /// is below all edits computed once. Tokens behind rows of `except` are not scored.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub(crate) fn score(
        &mut self,
        mut requests: Vec<Request>,
        except: &[i32],
    ) -> Result<Vec<Scored>> {
        requests.iter_mut().try_for_each(Request::place)?;
        self.hook_all(&requests)?;
        let split = self.shared_place(&requests)?;
        let mut all = Vec::new();
        for request in requests {
            let forward = &mut self.forward;
            forward.context.clear();
            forward.set_pass(match (split, all.is_empty()) {
                (None, _) => Pass::Whole,
                (Some(split), true) => Pass::Recorded(split),
                (Some(split), false) => Pass::Replayed(split),
            });
            all.push(forward.score(request, except)?);
            if split.is_some() && all.len() == 1 {
                let recorded = forward.context.take_recording();
                forward.context.replay(Arc::new(recorded));
            }
        }
        Ok(all)
    }
}

impl Forward {
    /// The rows of a text that are scored in one graph: the context keeps the logits of one.
    fn n_scored_at_once(&self) -> usize {
        AT_ONCE.min(self.context.n_ubatch())
    }

    fn score(&mut self, request: Request, except: &[i32]) -> Result<Scored> {
        let Request {
            prompt,
            options,
            editors,
            ..
        } = request;
        let steering = options.steering.as_deref().cloned();
        let hooks = self.context.hook();
        hooks.begin(0, options.keep, steering, editors);
        self.context.watch([options.cancel]);
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
                    for chunk in ids.chunks(self.n_scored_at_once()) {
                        let chunk_tokens = tokens.iter().copied().enumerate();
                        let chunk_tokens = chunk_tokens.skip(position).take(chunk.len());
                        self.decode(0, chunk_tokens, Rows::Tokens(chunk), Output::EveryRow)?;
                        for row_idx in 0..chunk.len() {
                            score(self.context.logits(OutputRow::Index(row_idx)), position);
                            position += 1;
                        }
                    }
                }
                Segment::Image(_) => {
                    let rows = segment.rows();
                    let tokens = tokens.iter().copied().enumerate();
                    let tokens = tokens.skip(position).take(rows.n_rows());
                    self.decode(0, tokens, rows, Output::LastRow)?;
                    position += rows.n_rows();
                    score(self.context.logits(OutputRow::Last), position - 1);
                }
            }
        }
        Ok(Scored {
            losses,
            trace: self.context.hook().take_trace(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Editor, EditorAt};
    use crate::llama::{Edited, Pass, SPOILED};
    use crate::{
        HookPoint, Keep, PromptForm, Request, Result, RunOptions, Session, SessionOptions, Token,
        demo,
    };

    struct Halve;

    impl Editor for Halve {
        fn write(&mut self, rows: &mut [f32], _: &[Token]) -> Result<Edited> {
            rows.iter_mut().for_each(|x| *x *= 0.5);
            Ok(Edited::Yes)
        }
    }

    /// What the model loses in all as it is and with rows halved at `place`.
    fn losses(session: &mut Session, place: HookPoint) -> [f64; 2] {
        let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
        let prompt = Arc::new(prompt.expect("known characters"));
        let options = RunOptions {
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            ..RunOptions::default()
        };
        let plain = Request::new(Arc::clone(&prompt), options.clone());
        let mut edited = Request::new(Arc::clone(&prompt), options);
        edited.editors.push(EditorAt {
            read: place,
            write: place,
            editor: Box::new(Halve),
        });
        let engine = session.engine_for(&prompt, 0, 1).expect("there is memory");
        let scored = engine.score(vec![plain, edited], &[]);
        let scored = scored.expect("the prompt is scored");
        assert_eq!(scored[0].losses.len(), prompt.tokens().len() - 1);
        [0, 1].map(|i: usize| scored[i].losses.iter().sum())
    }

    /// What is below the edit is computed in the first pass only: what spoils a replay spoils the second.
    #[test]
    fn edits_are_scored_from_what_is_below_them() {
        let open = |share_prompts| {
            let options = SessionOptions {
                threads: 1,
                gpu_layers: 0,
                share_prompts,
                ..SessionOptions::default()
            };
            Session::open(&demo::files().expect("the demo"), options).expect("it loads")
        };
        let (mut sharing, mut whole) = (open(true), open(false));
        for (place, shares) in [
            ("blocks.1.hook_resid_post", true),
            ("blocks.2.hook_mlp_out", true),
            ("blocks.1.attn.hook_z", true),
            ("blocks.0.hook_attn_out", false),
        ] {
            let at = HookPoint::parse(place).expect("a hook point");
            let [original, edited] = losses(&mut sharing, at);
            assert_eq!([original, edited], losses(&mut whole, at), "{place}");
            assert!(original != edited, "{place}");
            SPOILED.set(Some(Pass::Replayed(0)));
            let [same, spoiled] = losses(&mut sharing, at);
            SPOILED.set(None);
            assert_eq!(same, original, "{place}");
            assert_eq!(spoiled != edited, shares, "{place}");
        }
    }
}
