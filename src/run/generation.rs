//! A run's text, from logits to tokens to characters, and what is left of a run at its end.

use std::time::{Duration, Instant};

use super::hooks::Trace;
use super::logits::TokenLogProbs;
use super::options::RunOptions;
use crate::llama::{Model, Sampler, Special};
use crate::{Error, Result};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so.
    End,
    /// The limit was reached.
    Length,
    /// It was cancelled.
    Interrupted,
    /// The caller, which got the text as it came, had enough.
    Caller,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// The generated text.
    pub text: String,
    /// The generated ids, without the one that ended the text.
    pub token_ids: Vec<i32>,
    /// How likely each of them was; empty where that was not asked for.
    pub log_probs: Vec<TokenLogProbs>,
    /// Why it ended.
    pub stop: Stop,
    /// Logits after the prompt's last row, `[n_vocab]`; empty where not kept.
    pub logits: Vec<f32>,
    /// What the hooks saw.
    pub trace: Trace,
    /// The rows of the prompt that were remembered, at least up to the lowest place that was edited there
    /// ([`PromptStore`](crate::PromptStore)).
    pub n_remembered: usize,
    /// The prompt's time.
    pub prompt_time: Duration,
    /// The generation's time; runs side by side have it in common.
    pub generate_time: Duration,
}

/// What a run has generated so far.
pub(super) struct Generation {
    max_tokens: usize,
    sampler: Sampler,
    next: Option<i32>, // the token that follows; none before the first
    top_log_probs: Option<usize>,
    next_log_probs: Option<TokenLogProbs>,
    text: StreamedText,
    token_ids: Vec<i32>,
    log_probs: Vec<TokenLogProbs>,
    pub(super) stop: Option<Stop>,
    logits: Vec<f32>, // [n_vocab], after the prompt; empty where not kept
    n_remembered: usize,
    prompt_time: Duration,
    started: Instant,
}

impl Generation {
    /// Begins behind a prompt that took `prompt_time`, and of which so many rows were remembered.
    pub(super) fn new(
        model: &Model,
        options: &RunOptions,
        n_remembered: usize,
        prompt_time: Duration,
    ) -> Self {
        Self {
            max_tokens: options.max_tokens,
            sampler: Sampler::new(model, options.sampling),
            next: None,
            top_log_probs: options.top_log_probs,
            next_log_probs: None,
            text: StreamedText::default(),
            token_ids: Vec::new(),
            log_probs: Vec::new(),
            stop: (options.max_tokens == 0).then_some(Stop::Length),
            logits: Vec::new(),
            n_remembered,
            prompt_time,
            started: Instant::now(),
        }
    }

    pub(super) fn keep_logits(&mut self, logits: &[f32]) {
        self.logits = logits.to_vec();
    }

    /// Says that all prompts are read, from where on the time counts.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = now;
    }

    /// Looks at the logits of a row, `[n_vocab]`, and chooses the token that follows.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Result<()> {
        if has_nan(logits) {
            return Err(self.not_numbers());
        }
        if self.stop.is_none() {
            let id = self.sampler.sample(logits)?;
            self.next = Some(id);
            let log_probs = |n_top| TokenLogProbs::new(logits, id, n_top);
            self.next_log_probs = self.top_log_probs.map(log_probs);
        }
        Ok(())
    }

    /// Takes the next token into the text, or stops; gives the token, where the model goes on, and the
    /// characters that are new.
    pub(super) fn take_next(
        &mut self,
        model: &Model,
        is_full: bool,
    ) -> Result<(Option<i32>, String)> {
        let id = self.next.expect("it was chosen after the last row");
        if model.is_end(id) {
            self.stop = Some(Stop::End);
            return Ok((None, String::new()));
        }
        self.token_ids.push(id);
        self.log_probs.extend(self.next_log_probs.take());
        model.append_piece(id, Special::Hide, &mut self.text.bytes)?;
        if self.token_ids.len() == self.max_tokens {
            self.stop = Some(Stop::Length);
        } else if is_full {
            log::warn!("the text ends here because the context is full");
            self.stop = Some(Stop::Length);
        }
        Ok((Some(id), self.text.take_new()))
    }

    /// How likely the last token was, if that is asked for.
    pub(super) fn last_log_probs(&self) -> Option<&TokenLogProbs> {
        self.log_probs.last()
    }

    /// The characters that are left at the end: U+FFFD for one that was only begun.
    pub(super) fn take_rest(&mut self) -> String {
        self.text.take_rest()
    }

    /// What the run gave.
    pub(super) fn finish(self, trace: Trace) -> Run {
        Run {
            text: String::from_utf8_lossy(&self.text.bytes).into_owned(),
            token_ids: self.token_ids,
            log_probs: self.log_probs,
            stop: self.stop.expect("it has stopped"),
            logits: self.logits,
            trace,
            n_remembered: self.n_remembered,
            prompt_time: self.prompt_time,
            generate_time: self.started.elapsed(),
        }
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

/// Generated bytes, handed out in whole characters: a character may span several tokens.
#[derive(Default)]
struct StreamedText {
    bytes: Vec<u8>,
    n_shown: usize,
}

impl StreamedText {
    /// Hands out what is new, with U+FFFD for bytes that form no character; one that is only begun at the
    /// end waits.
    fn take_new(&mut self) -> String {
        let mut new = String::new();
        for chunk in self.bytes[self.n_shown..].utf8_chunks() {
            new.push_str(chunk.valid());
            self.n_shown += chunk.valid().len();
            let is_last = self.n_shown + chunk.invalid().len() == self.bytes.len();
            // Without a length, the error is that the bytes end.
            let is_wrong = |error: std::str::Utf8Error| error.error_len().is_some();
            if is_last && !str::from_utf8(chunk.invalid()).is_err_and(is_wrong) {
                break;
            }
            new.push('\u{fffd}');
            self.n_shown += chunk.invalid().len();
        }
        new
    }

    fn take_rest(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.bytes[self.n_shown..]).into_owned();
        self.n_shown = self.bytes.len();
        rest
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
            shown.push(text.take_new());
        }
        shown.push(text.take_rest());
        (shown, String::from_utf8_lossy(&text.bytes).into_owned())
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
