//! Reading the prompts of runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, Finished, Phase};
use crate::Result;
use crate::llama::{OutputRow, Pass};
use crate::run::generation::Generation;
use crate::run::reading::{Goal, Reading};

impl Engine {
    /// Reads prompts that were not read, the oldest run's first, up to `n_rows` rows of them, or one graph.
    pub(super) fn read_prompts(
        &mut self,
        n_rows: usize,
        finished: &mut Vec<Finished>,
    ) -> Result<()> {
        let mut waiting: Vec<usize> = (0..self.slots.len()).collect();
        waiting.retain(|&sequence| {
            let active = self.slots[sequence].as_ref();
            active.is_some_and(|active| matches!(active.phase, Phase::Prompt { .. }))
        });
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.sort_by_key(|&sequence| self.slots[sequence].as_ref().map(|active| active.id));
        let mut rest = n_rows;
        let mut were_read = Vec::new();
        for sequence in waiting {
            if rest == 0 {
                break;
            }
            match self.read_prompt(sequence, rest) {
                Ok(n_read) => {
                    rest = rest.saturating_sub(n_read);
                    were_read.push(sequence);
                }
                Err(error) => self.fail(sequence, error, finished)?,
            }
        }
        // A prompt that failed leaves a pass of its own too.
        self.forward.set_pass(self.pass());
        let now = Instant::now();
        for sequence in were_read {
            if let Phase::Tokens(generation) = &mut self.active(sequence).phase {
                generation.start(now);
            }
        }
        Ok(())
    }

    /// The pass of generated tokens, and of prompts that share nothing.
    pub(super) fn pass(&self) -> Pass {
        match self.batch.is_hooked {
            true => Pass::Whole,
            false => Pass::Unhooked,
        }
    }

    /// Reads a run's prompt until it has ended, or `n_rows` rows or more of it were read, and tells how many
    /// were. Behind it, the run's first token is chosen.
    fn read_prompt(&mut self, sequence: usize, n_rows: usize) -> Result<usize> {
        let start = Instant::now();
        let active = self.active(sequence);
        let Phase::Prompt { reading, time } = &mut active.phase else {
            unreachable!("its prompt was not read");
        };
        let (reading, time) = (reading.take(), *time);
        let prompt = Arc::clone(&active.request.prompt);
        let cancel = active.request.options.cancel.clone();
        let mut reading = match reading {
            Some(reading) => reading,
            None => Reading::new(&prompt, self.goal(sequence)),
        };
        let pass = self.prompt_pass(sequence, reading.goal);
        self.forward.set_pass(pass);
        // What is recorded or replayed is so in one go.
        let n_rows = match pass {
            Pass::Recorded(_) | Pass::Replayed(_) => usize::MAX,
            Pass::Unhooked | Pass::Whole | Pass::UpTo(_) => n_rows,
        };
        let mut n_read = 0;
        while n_read < n_rows && !reading.is_done() {
            n_read += self
                .forward
                .decode_piece(sequence, &prompt, &mut reading, &cancel)?;
        }
        if let Pass::Recorded(_) = pass {
            self.batch.recorded = Some(Arc::new(self.forward.context.take_recording()));
        }
        let phase = match reading.is_done() {
            true => Phase::Tokens(self.begin_generation(sequence, time + start.elapsed())?),
            false => Phase::Prompt {
                reading: Some(reading),
                time: time + start.elapsed(),
            },
        };
        self.active(sequence).phase = phase;
        Ok(n_read)
    }

    /// How far a run's prompt is computed.
    fn goal(&mut self, sequence: usize) -> Goal {
        let is_whole = self.batch.is_whole;
        let options = &self.active(sequence).request.options;
        match options.goal() {
            Goal::Rows(_) if is_whole && options.reads_rows() => Goal::Logits,
            goal => goal,
        }
    }

    /// How much is computed of the graphs of a run's prompt.
    fn prompt_pass(&mut self, sequence: usize, goal: Goal) -> Pass {
        let recorded = self.active(sequence).request.recorded.clone();
        let hooks = self.forward.context.hook();
        let top = hooks.sites.len().checked_sub(1);
        let split = match &recorded {
            Some(recorded) => hooks.site(recorded.below),
            None => self.batch.shared_below,
        };
        let replayed = match recorded {
            Some(recorded) => Some(Arc::clone(&recorded.graphs)),
            None => self.batch.recorded.clone(),
        };
        match (goal, split, replayed) {
            (Goal::Rows(_), ..) => top.map_or(Pass::Whole, Pass::UpTo),
            (Goal::Logits, None, _) => self.pass(),
            (Goal::Logits, Some(split), None) => Pass::Recorded(split),
            (Goal::Logits, Some(split), Some(graphs)) => {
                self.forward.context.replay(graphs);
                Pass::Replayed(split)
            }
        }
    }

    /// Begins a run's text behind its prompt, which took `prompt_time`.
    fn begin_generation(&mut self, sequence: usize, prompt_time: Duration) -> Result<Generation> {
        let options = self.active(sequence).request.options.clone();
        let mut generation = Generation::new(self.model.language_model(), &options, prompt_time);
        if options.goal() == Goal::Logits {
            let context = &mut self.forward.context;
            if options.keep.logits {
                generation.keep_logits(context.logits(OutputRow::Last));
            }
            generation.sample(context, OutputRow::Last)?;
        }
        Ok(generation)
    }
}
