//! Reading the prompts of runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Engine, Finished, Phase};
use crate::Result;
use crate::llama::{OutputRow, Pass};
use crate::run::generation::Generation;
use crate::run::hooks::Keep;
use crate::run::options::RunOptions;
use crate::run::reading::Goal;

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
            true => Pass::WHOLE,
            false => Pass::Unhooked,
        }
    }

    /// Reads a run's prompt until it has ended, or `n_rows` rows or more of it were read, and tells how many
    /// were. Behind it, the run's first token is chosen.
    fn read_prompt(&mut self, sequence: usize, n_rows: usize) -> Result<usize> {
        let start = Instant::now();
        let active = self.active(sequence);
        let Phase::Prompt { reading, time } = &active.phase else {
            unreachable!("its prompt was not read");
        };
        let (mut reading, time) = (reading.clone(), *time);
        let prompt = Arc::clone(&active.request.prompt);
        let cancel = active.request.options.cancel.clone();
        let mut n_read = 0;
        while n_read < n_rows && !reading.is_done() {
            n_read += self.read_piece(sequence, &prompt, &mut reading, &cancel)?;
        }
        let phase = match reading.is_done() {
            true => {
                let generation = self.begin_generation(sequence, time + start.elapsed())?;
                Phase::Tokens(Box::new(generation))
            }
            false => Phase::Prompt {
                reading,
                time: time + start.elapsed(),
            },
        };
        self.active(sequence).phase = phase;
        Ok(n_read)
    }

    /// How far a run's prompt is computed.
    pub(super) fn goal(&self, options: &RunOptions) -> Goal {
        match options.goal() {
            Goal::Rows(_) if self.batch.is_whole && options.reads_rows() => Goal::Logits,
            goal => goal,
        }
    }

    /// Begins a run's text behind its prompt, which took `prompt_time`.
    fn begin_generation(&mut self, sequence: usize, prompt_time: Duration) -> Result<Generation> {
        let active = self.active(sequence);
        let options = active.request.options.clone();
        let end_of_prompt = active.end_of_prompt.take();
        let n_remembered = active.n_remembered;
        if n_remembered > 0 {
            let n_rows = active.request.prompt.tokens().len();
            log::debug!("{n_remembered} of the prompt's {n_rows} rows were remembered");
        }
        let model = self.model.language_model();
        let mut generation = Generation::new(model, &options, n_remembered, prompt_time);
        let context = &mut self.forward.context;
        if !self.batch.is_hooked {
            // The hooks have done their part, and saw nothing that is kept.
            context
                .hook()
                .begin(sequence, Keep::default(), None, Vec::new());
        }
        if options.goal() == Goal::Logits {
            let logits = match &end_of_prompt {
                Some(piece) => &piece.logits[..],
                None => context.logits(OutputRow::Last),
            };
            if options.keep.logits {
                generation.keep_logits(logits);
            }
            generation.sample(logits)?;
        }
        if let Some(vector) = &mut self.batch.vector
            && !vector.is_set
        {
            context.set_control_vector(vector.layer, &vector.values)?;
            vector.is_set = true;
        }
        Ok(generation)
    }
}
