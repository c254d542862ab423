//! What a model says of given tokens: logits behind a prompt, and cross-entropies of a prompt's text.

use std::ops::Range;
use std::sync::Arc;

use super::engine::{Engine, Request};
use super::forward::Forward;
use super::hooks::Trace;
use super::reading::{Reading, SCORED_AT_ONCE};
use crate::llama::{Extent, Output, OutputRow, Pass, Reach, RecordedGraph, Rows};
use crate::prompt::{Prompt, Segment};
use crate::run::logits::Distribution;
use crate::{CancelFlag, Result, Token};

/// Whether a prompt's rows are the same to the bit where it is scored as where a run reads it, which takes more of
/// its text at once: on the processor, flash attention sums graphs of fewer than 64 rows in another order
/// (`ggml_fa_tile_config` in ggml-cpu, 0.1.161).
pub(crate) fn is_scored_as_read(prompt: &Prompt) -> bool {
    prompt.segments().iter().all(|segment| match segment {
        Segment::Text(ids) => {
            ids.len() <= SCORED_AT_ONCE || ids.len().is_multiple_of(SCORED_AT_ONCE)
        }
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
            let mut below = None;
            for sequence in 0..n_sequences {
                let pass = match (sequence, split) {
                    (0, _) if n_sequences == 1 => Pass::Unhooked,
                    (_, None) => Pass::WHOLE,
                    (0, Some(split)) => Pass::recorded(Reach::Node(split)),
                    (_, Some(split)) => forward.pass_above(split, below.clone()),
                };
                forward.set_pass(pass);
                let tokens = chunk.iter().map(|&id| (0, Token::generated(id)));
                forward.decode(sequence, tokens, Rows::Tokens(chunk), Output::EveryRow)?;
                if sequence == 0 && split.is_some() {
                    below = forward.context.take_recording().map(Arc::new);
                }
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
        requests.iter_mut().try_for_each(Request::prepare)?;
        self.hook_all(&requests)?;
        let split = self.shared_place(&requests)?;
        let mut below = Vec::new();
        let scored = requests.into_iter().map(|request| {
            self.forward.context.clear();
            self.forward.score(request, except, split, &mut below)
        });
        scored.collect()
    }
}

impl Forward {
    /// The rows of a text that are scored in one graph: the context keeps the logits of one.
    fn n_scored_at_once(&self) -> usize {
        SCORED_AT_ONCE.min(self.context.n_ubatch())
    }

    /// Hands out what the rows of a prompt that were decoded last, with this output, say of the text that follows
    /// them: each text token's position, its id, and the logits that it is chosen from, `[n_vocab]`.
    pub(super) fn each_prediction(
        &mut self,
        tokens: &[Token],
        rows: Range<usize>,
        output: Output,
        on_logits: &mut dyn FnMut(usize, i32, &[f32]),
    ) {
        let with_logits = match output {
            Output::EveryRow => rows.clone(),
            Output::LastRow => rows.end - 1..rows.end,
            Output::None => return,
        };
        for row in with_logits {
            if let Some(id) = tokens.get(row + 1).and_then(|token| token.id) {
                let logits = self.context.logits(OutputRow::Index(row - rows.start));
                on_logits(row + 1, id, logits);
            }
        }
    }

    /// The pass above the hooked node `split` of a graph that is known below it, and a whole one where it is not.
    fn pass_above(&mut self, split: usize, known: Option<Arc<RecordedGraph>>) -> Pass {
        let Some(graph) = known else {
            return Pass::WHOLE;
        };
        self.context.replay(graph);
        Pass::replayed(Reach::Node(split))
    }

    /// Scores the prompt of a request. What the first of several passes gives below the hooked node `split` goes into
    /// `below`, a graph after the other, and the others begin there.
    fn score(
        &mut self,
        request: Request,
        except: &[i32],
        split: Option<usize>,
        below: &mut Vec<Option<Arc<RecordedGraph>>>,
    ) -> Result<Scored> {
        let is_first = below.is_empty();
        let Request {
            prompt,
            options,
            editors,
            ..
        } = request;
        let steering = options.steering.as_deref().cloned();
        let hooks = self.context.hook();
        hooks.begin(0, options.keep, steering, editors);
        let tokens = prompt.tokens();
        let mut losses = Vec::new();
        let mut reading = Reading::scoring(&prompt);
        let n_ubatch = self.context.n_ubatch();
        let mut graph_idx = 0;
        while let Some(piece) = reading.next_piece(&prompt, n_ubatch) {
            let known = below.get(graph_idx).cloned().flatten();
            let pass = match split {
                None => Pass::WHOLE,
                Some(split) if is_first => Pass::recorded(Reach::Node(split)),
                Some(split) => self.pass_above(split, known),
            };
            self.set_pass(pass);
            let (start, output) = (reading.n_rows, piece.1);
            self.decode_piece(0, &prompt, &mut reading, piece, &options.cancel)?;
            if is_first {
                below.push(self.context.take_recording().map(Arc::new));
            }
            graph_idx += 1;
            let rows = start..reading.n_rows;
            self.each_prediction(tokens, rows, output, &mut |position, id, logits| {
                let behind = tokens[position - 1].id;
                if !behind.is_some_and(|behind| except.contains(&behind)) {
                    losses.push(-Distribution::new(logits).log_prob(id));
                }
            });
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
    use crate::llama::{Edited, Pass, Reach, SPOILED};
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
            SPOILED.set(Some(Pass::replayed(Reach::Node(0))));
            let [same, spoiled] = losses(&mut sharing, at);
            SPOILED.set(None);
            assert_eq!(same, original, "{place}");
            assert_eq!(spoiled != edited, shares, "{place}");
        }
    }
}
