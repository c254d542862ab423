//! Runs of a prompt: rows announced, decoded, seen by the hook, and the text that follows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::decoder::{Decoder, Goal};
use crate::hook_point::Site;
use crate::llama::{
    Context, GraphNode, Model, Output, OutputRow, Pass, Rows, Sampler, Sampling, Special,
};
use crate::logits::log_prob;
use crate::prompt::{Prompt, Segment};
use crate::shortcuts::{Shortcut, Shortcuts};
use crate::steering::Steering;
use crate::tap::{Keep, Sequence, Substitute, Tap, Trace};
use crate::tokens::{Positions, Token};
use crate::{Error, Result};

/// What a run does.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Interventions, if any.
    pub steering: Option<&'a Steering>,
    /// What is kept.
    pub keep: Keep,
    /// Tokens to generate, at most; 0 stops after the prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so.
    End,
    /// The limit was reached.
    Length,
    /// The user asked to stop.
    Interrupted,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// The generated text.
    pub text: String,
    /// The generated ids, without the one that ended the text.
    pub token_ids: Vec<i32>,
    /// Why it ended.
    pub stop: Stop,
    /// Logits after the prompt's last row, `[n_vocab]`; empty where not kept.
    pub logits: Vec<f32>,
    /// What the hook saw.
    pub trace: Trace,
    /// The prompt's time.
    pub prompt_time: Duration,
    /// The generation's time; runs side by side have it in common.
    pub generate_time: Duration,
}

/// What runs of prompts need.
pub(crate) struct Runner<'a> {
    pub(crate) context: &'a mut Context<Tap>,
    /// The node that the context's hook is on.
    pub(crate) node: &'a GraphNode,
    pub(crate) model: &'a Model,
    pub(crate) interrupt: &'a AtomicBool,
    /// Whether prompts share the blocks below the hook.
    pub(crate) share_prompts: bool,
    pub(crate) shortcuts: &'a mut Shortcuts,
}

impl Runner<'_> {
    /// Runs `prompt` once for each of `options`: as sequences of their own, one prompt after the other,
    /// and generates their tokens side by side. `on_text` gets a run's index and its text as it comes,
    /// in whole characters.
    pub(crate) fn run(
        &mut self,
        prompt: &Prompt,
        options: &[RunOptions<'_>],
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Run>> {
        let Some((layer, vector, unsteered)) = self.in_graph(prompt, options)? else {
            return self.run_hooked(prompt, options, on_text);
        };
        self.context.set_control_vector(layer, vector)?;
        let runs = self.run_hooked(prompt, &[unsteered], on_text);
        self.context.set_control_vector(layer, &[])?;
        runs
    }

    /// The layer and the vector of a run that llama.cpp's control vector does alone, and its options
    /// without the steering: nothing reads rows at the hook, and the same is added to every row.
    fn in_graph<'o>(
        &mut self,
        prompt: &Prompt,
        options: &[RunOptions<'o>],
    ) -> Result<Option<(usize, &'o [f32], RunOptions<'o>)>> {
        let [run] = options else { return Ok(None) };
        let hook_point = self.context.hook().sae.hook_point();
        // llama.cpp has none for layer 0.
        let is_possible = hook_point.site() == Site::ResidPost && hook_point.layer() > 0;
        let is_taken = self.context.has_control_vector();
        if !is_possible || is_taken || run.reads_rows() || run.goal() != Goal::Logits {
            return Ok(None);
        }
        let Some((steering, vector)) = run.steering.and_then(|s| Some((s, s.constant()?))) else {
            return Ok(None);
        };
        let layer = hook_point.layer();
        let is_taken = self.takes(
            Shortcut::ControlVector,
            prompt,
            Some((steering, layer, vector)),
        )?;
        let steering = None;
        Ok(is_taken.then_some((layer, vector, RunOptions { steering, ..*run })))
    }

    fn run_hooked(
        &mut self,
        prompt: &Prompt,
        options: &[RunOptions<'_>],
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Run>> {
        let (model, interrupt) = (self.model, self.interrupt);
        let stops = |run: &RunOptions<'_>| run.goal() != Goal::Logits && run.reads_rows();
        let is_whole =
            options.iter().any(stops) && !self.takes(Shortcut::StopAtHook, prompt, None)?;
        let goal = |run: &RunOptions<'_>| match is_whole && stops(run) {
            true => Goal::Logits,
            false => run.goal(),
        };
        let shares_prompts = self.shares_prompts(prompt, options)?;
        let mut decoder = Decoder::start(self.context, self.node, options);
        decoder.shares_prompts = shares_prompts;
        let mut generations = Vec::new();
        for (sequence, options) in options.iter().enumerate() {
            let start = Instant::now();
            decoder.decode_prompt(sequence, prompt, goal(options))?;
            let prompt_time = start.elapsed();
            let mut generation = Generation {
                max_tokens: options.max_tokens,
                next: None,
                sampler: Sampler::new(model, options.sampling),
                text: StreamedText::default(),
                token_ids: Vec::new(),
                stop: (options.max_tokens == 0).then_some(Stop::Length),
                logits: Vec::new(),
                prompt_time,
            };
            if options.goal() == Goal::Logits {
                if options.keep.logits {
                    generation.logits = decoder.context.logits(OutputRow::Last).to_vec();
                }
                generation.sample(decoder.context, OutputRow::Last)?;
            }
            generations.push(generation);
        }
        decoder.end_prompts();
        let start = Instant::now();
        let (mut sequences, mut ids) = (Vec::new(), Vec::new());
        loop {
            sequences.clear();
            ids.clear();
            for (sequence, generation) in generations.iter_mut().enumerate() {
                if generation.stop.is_some() {
                    continue;
                }
                if interrupt.load(Ordering::Relaxed) {
                    generation.stop = Some(Stop::Interrupted);
                    continue;
                }
                let is_full = decoder.context.is_full(sequence);
                generation.take_next(model, is_full, &mut |text| on_text(sequence, text))?;
                if generation.stop.is_none() {
                    sequences.push(sequence);
                    ids.extend(generation.next);
                }
            }
            if sequences.is_empty() {
                break;
            }
            match decoder.decode_generated(&sequences, &ids) {
                // The next round sees the interruption too.
                Err(Error::Interrupted) => continue,
                other => other?,
            }
            for (row_idx, &sequence) in sequences.iter().enumerate() {
                generations[sequence].sample(decoder.context, OutputRow::Index(row_idx))?;
            }
        }
        let generate_time = start.elapsed();
        let runs = generations.into_iter().enumerate();
        let runs = runs.map(|(sequence, generation)| Run {
            text: generation.text.finish(&mut |text| on_text(sequence, text)),
            token_ids: generation.token_ids,
            stop: generation
                .stop
                .expect("the loop ends when all have stopped"),
            logits: generation.logits,
            trace: decoder.take_trace(sequence),
            prompt_time: generation.prompt_time,
            generate_time,
        });
        Ok(runs.collect())
    }

    /// Whether the prompts of these runs share the blocks below the hook.
    fn shares_prompts(&mut self, prompt: &Prompt, options: &[RunOptions<'_>]) -> Result<bool> {
        let is_possible = self.share_prompts
            && can_share(self.context)
            && options.len() > 1
            && options.iter().all(|run| run.goal() == Goal::Logits);
        Ok(is_possible && self.takes(Shortcut::SharedPrompts, prompt, None)?)
    }
}

/// Whether sequences of the same tokens can share the blocks below the hook: above a place in the
/// stream, everything depends on the stream alone.
pub(crate) fn can_share(context: &mut Context<Tap>) -> bool {
    context.hook().sae.hook_point().site() == Site::ResidPost
}

/// What a sequence has generated so far.
struct Generation {
    max_tokens: usize,
    sampler: Sampler,
    next: Option<i32>, // the token that follows; none before the first
    text: StreamedText,
    token_ids: Vec<i32>,
    stop: Option<Stop>,
    logits: Vec<f32>, // [n_vocab], after the prompt; empty where not kept
    prompt_time: Duration,
}

impl Generation {
    /// Looks at the logits of a row, and chooses the token that follows.
    fn sample(&mut self, context: &mut Context<Tap>, row: OutputRow) -> Result<()> {
        if has_nan(context.logits(row)) {
            return Err(self.not_numbers());
        }
        if self.stop.is_none() {
            self.next = Some(self.sampler.sample(context, row)?);
        }
        Ok(())
    }

    /// Takes the next token into the text, or stops.
    fn take_next(
        &mut self,
        model: &Model,
        is_full: bool,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let id = self.next.expect("it was chosen after the last row");
        if model.is_end(id) {
            self.stop = Some(Stop::End);
            return Ok(());
        }
        self.token_ids.push(id);
        model.append_piece(id, Special::Hide, &mut self.text.bytes)?;
        self.text.show(on_text);
        if self.token_ids.len() == self.max_tokens {
            self.stop = Some(Stop::Length);
        } else if is_full {
            log::warn!("the text ends here because the context is full");
            self.stop = Some(Stop::Length);
        }
        Ok(())
    }

    /// The error of logits that are no numbers, with the text that they end.
    fn not_numbers(&self) -> Error {
        let after = match self.token_ids.len() {
            0 => String::new(),
            n => {
                let text = String::from_utf8_lossy(&self.text.bytes);
                format!(" after {n} generated tokens, `{}`", text.escape_debug())
            }
        };
        Error::invalid(format!("the model's logits are not numbers{after}"))
            .with_hint("use smaller strengths; without interventions, convert the model again")
    }
}

fn has_nan(logits: &[f32]) -> bool {
    // Without an early exit within a part, so that the compiler uses vectors.
    let has_nan = |part: &[f32]| part.iter().fold(false, |any, x| any | x.is_nan());
    logits.chunks(256).any(has_nan)
}

impl RunOptions<'_> {
    pub(crate) fn goal(&self) -> Goal {
        if self.max_tokens > 0 || self.keep.logits {
            Goal::Logits
        } else if self.keep.residuals {
            Goal::Rows(Positions::ALL)
        } else {
            Goal::Rows(self.keep.features)
        }
    }

    fn reads_rows(&self) -> bool {
        self.keep.residuals || self.keep.features != Positions::NONE
    }

    /// Whether the hook has something to do.
    pub(crate) fn is_hooked(&self) -> bool {
        self.steering.is_some() || self.reads_rows() || self.goal() != Goal::Logits
    }
}

/// Decodes `ids` as generated tokens behind the first `n_prompt` rows of a context's first
/// `n_sequences` sequences, of which the first has no interventions and the others have those of the
/// last run. `on_logits` gets, for each id but the first, the sequence, the id's index, and the logits
/// that it is chosen from there, `[n_vocab]`; those of the first sequence come before the others'.
pub(crate) fn replay(
    decoder: &mut Decoder<'_>,
    n_prompt: usize,
    n_sequences: usize,
    ids: &[i32],
    on_logits: &mut dyn FnMut(usize, usize, &[f32]),
) -> Result<()> {
    for sequence in 0..n_sequences {
        decoder.context.truncate(sequence, n_prompt)?;
    }
    let Some((_, inputs)) = ids.split_last() else {
        return Ok(());
    };
    for (i, chunk) in inputs.chunks(REPLAYED_AT_ONCE).enumerate() {
        for sequence in 0..n_sequences {
            decoder.set_pass(match sequence {
                0 if n_sequences == 1 => Pass::Unhooked,
                _ if !decoder.shares_prompts => Pass::Whole,
                0 => Pass::Recorded,
                _ => Pass::Replayed,
            });
            let tokens = chunk.iter().map(|&id| Token::generated(id));
            decoder.decode(sequence, tokens, Rows::Tokens(chunk), Output::EveryRow)?;
            for row_idx in 0..chunk.len() {
                let logits = decoder.context.logits(OutputRow::Index(row_idx));
                on_logits(sequence, i * REPLAYED_AT_ONCE + row_idx + 1, logits);
            }
        }
    }
    Ok(())
}

/// The cross-entropy of each text token of `prompt` behind another row than those of the tokens
/// `except`, in nats, with `substitute` at the hook.
pub(crate) fn cross_entropies(
    context: &mut Context<Tap>,
    node: &GraphNode,
    prompt: &Prompt,
    substitute: Option<Substitute>,
    except: &[i32],
) -> Result<Vec<f64>> {
    let mut decoder = Decoder::start(context, node, &[]);
    decoder.set_pass(match substitute {
        Some(_) => Pass::Whole,
        None => Pass::Unhooked,
    });
    decoder.context.hook().sequences.push(Sequence {
        keep: Keep::default(),
        steering: None,
        substitute,
        trace: Trace::default(),
    });
    let d_model = decoder.context.d_model();
    let tokens = prompt.tokens();
    let mut losses = Vec::new();
    let mut position = 0;
    // What the last row of a piece, and with text each row, says of the token that follows.
    let mut score = |context: &mut Context<Tap>, row: OutputRow, position: usize| {
        let is_excluded = tokens[position].id.is_some_and(|id| except.contains(&id));
        let next = tokens.get(position + 1).and_then(|token| token.id);
        if let Some(next) = next.filter(|_| !is_excluded) {
            losses.push(-log_prob(context.logits(row), next));
        }
    };
    for segment in prompt.segments() {
        match segment {
            Segment::Text(ids) => {
                for chunk in ids.chunks(REPLAYED_AT_ONCE) {
                    let chunk_tokens = tokens[position..][..chunk.len()].iter().copied();
                    decoder.decode(0, chunk_tokens, Rows::Tokens(chunk), Output::EveryRow)?;
                    for row_idx in 0..chunk.len() {
                        score(decoder.context, OutputRow::Index(row_idx), position);
                        position += 1;
                    }
                }
            }
            Segment::Image(rows) => {
                let n_rows = rows.len() / d_model;
                let tokens = std::iter::repeat_n(Token::image(), n_rows);
                decoder.decode(0, tokens, Rows::Embeddings(rows), Output::LastRow)?;
                position += n_rows;
                score(decoder.context, OutputRow::Last, position - 1);
            }
        }
    }
    Ok(losses)
}

/// Bounds the memory for logits, of which a large vocabulary has a megabyte a row.
const REPLAYED_AT_ONCE: usize = 64;

/// Generated bytes, handed out in whole characters: a character may span several tokens.
#[derive(Default)]
struct StreamedText {
    bytes: Vec<u8>,
    n_shown: usize,
}

impl StreamedText {
    /// Hands out what is new, with U+FFFD for bytes that form no character; one that is only begun at the
    /// end waits.
    fn show(&mut self, on_text: &mut dyn FnMut(&str)) {
        for chunk in self.bytes[self.n_shown..].utf8_chunks() {
            if !chunk.valid().is_empty() {
                on_text(chunk.valid());
                self.n_shown += chunk.valid().len();
            }
            let is_last = self.n_shown + chunk.invalid().len() == self.bytes.len();
            // Without a length, the error is that the bytes end.
            let is_wrong = |error: std::str::Utf8Error| error.error_len().is_some();
            if is_last && !str::from_utf8(chunk.invalid()).is_err_and(is_wrong) {
                break;
            }
            on_text("\u{fffd}");
            self.n_shown += chunk.invalid().len();
        }
    }

    fn finish(self, on_text: &mut dyn FnMut(&str)) -> String {
        let rest = String::from_utf8_lossy(&self.bytes[self.n_shown..]);
        if !rest.is_empty() {
            on_text(&rest);
        }
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{StreamedText, has_nan};

    /// What is shown of `pieces` as they come, and the whole at the end.
    fn stream(pieces: &[&[u8]]) -> (Vec<String>, String) {
        let mut text = StreamedText::default();
        let mut shown = Vec::new();
        for piece in pieces {
            text.bytes.extend_from_slice(piece);
            let mut new = String::new();
            text.show(&mut |text| new.push_str(text));
            shown.push(new);
        }
        let mut rest = String::new();
        let whole = text.finish(&mut |text| rest.push_str(text));
        shown.push(rest);
        (shown, whole)
    }

    #[test]
    fn bytes_that_form_no_character_do_not_stop_the_stream() {
        let (shown, whole) = stream(&[b"a", b"\xff", b"b", b"\xe2\x96", b"\x81", b"c\xc3"]);
        assert_eq!(shown, ["a", "\u{fffd}", "b", "", "▁", "c", "\u{fffd}"]);
        assert_eq!(whole, "a\u{fffd}b▁c\u{fffd}");
        // A character that is begun and not gone on with.
        let (shown, _) = stream(&[b"\xf0\x9f", b"x"]);
        assert_eq!(shown, ["", "\u{fffd}x", ""]);
    }

    proptest! {
        #[test]
        fn the_stream_is_the_text(bytes: Vec<u8>, ends in proptest::collection::vec(0_usize..40, 0..6)) {
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for end in ends {
                let (piece, others) = rest.split_at(end.min(rest.len()));
                pieces.push(piece);
                rest = others;
            }
            pieces.push(rest);
            let (shown, whole) = stream(&pieces);
            prop_assert_eq!(shown.concat(), String::from_utf8_lossy(&bytes));
            prop_assert_eq!(shown.concat(), whole);
        }
    }

    #[test]
    fn one_logit_that_is_no_number_is_seen() {
        let mut logits = vec![f32::INFINITY; 1000];
        assert!(!has_nan(&logits));
        logits[999] = f32::NAN;
        assert!(has_nan(&logits));
    }
}
