//! Answers that come as events, of chats and of texts alike.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::wire::{Timings, Usage, finish_reason};
use crate::TokenLogProbs;
use crate::serve::app::{App, Place};
use crate::serve::refusal::Refusal;
use crate::serve::runs::{Event, RunEvents};
use crate::serve::sae::Wanted;
use crate::serve::stream::{Events, Gone};

/// An answer that comes as events.
pub(super) struct Streamed {
    pub(super) app: Arc<App>,
    pub(super) n_prompt: Vec<usize>, // tokens of each prompt
    pub(super) n: usize,             // answers to each
    pub(super) wanted: Option<Wanted>,
    /// Whether it ends with the numbers of tokens.
    pub(super) includes_usage: bool,
    /// It is given back when all has gone.
    pub(super) _place: Place,
}

/// What is new of one of the answers.
pub(super) struct Part {
    pub(super) index: usize,
    /// Whether nothing came of it before.
    pub(super) is_first: bool,
    pub(super) text: Option<String>,
    pub(super) token: Option<(i32, TokenLogProbs)>,
    pub(super) finish_reason: Option<&'static str>,
}

/// What is said beside a part.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) usage: Option<Usage>,
    pub(super) timings: Option<Timings>,
    pub(super) sae: Option<Box<RawValue>>,
}

impl Streamed {
    /// Writes the runs' events as chunks, of which `chunk` makes one of a part and what is beside it.
    pub(super) async fn write<C: Serialize>(
        mut self,
        mut runs: RunEvents,
        events: Events,
        chunk: impl Fn(Option<Part>, Beside) -> C,
    ) -> Result<(), Gone> {
        let mut usage = Usage::of(self.n_prompt.iter().sum(), []);
        let mut has_begun = vec![false; self.n * self.n_prompt.len()]; // of each answer
        while let Some((index, mut event)) = runs.next().await {
            let mut beside = Beside::default();
            if index == 0 {
                match Wanted::answer_at(&mut self.wanted, &mut event, &self.app).await {
                    Ok(answer) => beside.sae = answer,
                    Err(refusal) => return events.json(&refusal.body()).await,
                }
            }
            let mut part = Part {
                index,
                is_first: !has_begun[index],
                text: None,
                token: None,
                finish_reason: None,
            };
            match event {
                Event::Text {
                    id,
                    text,
                    log_probs,
                } if !text.is_empty() || log_probs.is_some() => {
                    part.text = Some(text);
                    part.token = id.zip(log_probs);
                }
                Event::Prompt(_) if beside.sae.is_some() => {}
                Event::Prompt(_) | Event::Text { .. } => continue,
                Event::End(Ok(run)) => {
                    usage += Usage::of(0, [&run]);
                    beside.timings = Some(Timings::of(self.n_prompt[index / self.n], &run));
                    part.finish_reason = Some(finish_reason(run.stop));
                }
                Event::End(Err(error)) => return events.json(&Refusal::from(error).body()).await,
            }
            has_begun[index] = true;
            events.json(&chunk(Some(part), beside)).await?;
        }
        if self.includes_usage {
            let beside = Beside {
                usage: Some(usage),
                ..Beside::default()
            };
            events.json(&chunk(None, beside)).await?;
        }
        events.text("[DONE]").await
    }
}
