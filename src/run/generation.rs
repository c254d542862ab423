//! A run's text, from logits to tokens to characters, and what is left of a run at its end.

use std::time::{Duration, Instant};

use super::hooks::Trace;
use super::logits::TokenLogProbs;
use super::options::RunOptions;
use super::streamed_text::StreamedText;
use crate::llama::{Model, Sampler, Special};
use crate::{Error, Result};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so.
    End,
    /// One of the run's stop strings came ([`RunOptions::stop`]).
    StopString,
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
    /// The generated text, up to a stop string.
    pub text: String,
    /// The generated ids, without the one that ended the text; those of a stop string are among them.
    pub token_ids: Vec<i32>,
    /// How likely each of them was; empty where that was not asked for.
    pub log_probs: Vec<TokenLogProbs>,
    /// The token that ended the text, if one did, and how likely it was, if that was asked for.
    pub end: Option<(i32, Option<TokenLogProbs>)>,
    /// How likely each text token of the prompt was, by its row; none for the first one and for image rows. Empty where
    /// that was not asked for.
    pub prompt_log_probs: Vec<Option<TokenLogProbs>>,
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
    end: Option<(i32, Option<TokenLogProbs>)>,
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
            text: StreamedText::new(options.stop.clone()),
            token_ids: Vec::new(),
            log_probs: Vec::new(),
            end: None,
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
            self.end = Some((id, self.next_log_probs.take()));
            return Ok((None, String::new()));
        }
        self.token_ids.push(id);
        self.log_probs.extend(self.next_log_probs.take());
        let n_before = self.text.bytes.len();
        model.append_piece(id, Special::Hide, &mut self.text.bytes)?;
        if self.text.cut_at_stop(n_before) {
            self.stop = Some(Stop::StopString);
        } else if self.token_ids.len() == self.max_tokens {
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
    pub(super) fn finish(self, trace: Trace, prompt_log_probs: Vec<Option<TokenLogProbs>>) -> Run {
        Run {
            text: String::from_utf8_lossy(&self.text.bytes).into_owned(),
            token_ids: self.token_ids,
            log_probs: self.log_probs,
            end: self.end,
            prompt_log_probs,
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

#[cfg(test)]
mod tests {
    use super::has_nan;

    #[test]
    fn one_logit_that_is_no_number_is_seen() {
        let mut logits = vec![f32::INFINITY; 1000];
        assert!(!has_nan(&logits));
        logits[999] = f32::NAN;
        assert!(has_nan(&logits));
    }
}
