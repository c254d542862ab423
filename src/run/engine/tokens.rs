//! Generating the tokens of runs.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Engine, Finished, OnStep, Phase, Step};
use crate::Result;
use crate::llama::OutputRow;
use crate::run::generation::Stop;

impl Engine {
    /// Computes a token for each run that goes on.
    pub(super) fn generate(
        &mut self,
        on_step: OnStep<'_>,
        finished: &mut Vec<Finished>,
    ) -> Result<()> {
        let mut next = Vec::new(); // sequences with their tokens
        for sequence in 0..self.slots.len() {
            let active = self.slots[sequence].as_ref();
            if !active.is_some_and(|active| matches!(active.phase, Phase::Tokens(_))) {
                continue;
            }
            match self.take_next(sequence, on_step) {
                Ok(Some(id)) => next.push((sequence, id)),
                Ok(None) => self.finish(sequence, on_step, finished),
                Err(error) => self.fail(sequence, error, finished)?,
            }
        }
        while !next.is_empty() && !self.decode(&next, on_step, finished)? {
            next.retain(|&(sequence, _)| self.slots[sequence].is_some());
        }
        for (row_idx, &(sequence, _)) in next.iter().enumerate() {
            let active = self.slots[sequence].as_mut().expect("it goes on");
            let Phase::Tokens(generation) = &mut active.phase else {
                unreachable!("its prompt was read");
            };
            let logits = self.forward.context.logits(OutputRow::Index(row_idx));
            if let Err(error) = generation.sample(logits) {
                self.fail(sequence, error, finished)?;
            }
        }
        Ok(())
    }

    /// Decodes a token for each of these sequences. False says that runs have ended in it, by being cancelled
    /// or by an error of theirs, and that it is as if the others' had not been decoded.
    fn decode(
        &mut self,
        next: &[(usize, i32)],
        on_step: OnStep<'_>,
        finished: &mut Vec<Finished>,
    ) -> Result<bool> {
        let (sequences, ids): (Vec<_>, Vec<_>) = next.iter().copied().unzip();
        let mut marks = Vec::new();
        let mut flags = Vec::new();
        for &sequence in &sequences {
            marks.push(self.forward.context.hook().n_rows(sequence));
            flags.push(self.active(sequence).request.options.cancel.clone());
        }
        let flags_of_decode = flags.iter().cloned();
        let Err(error) = self
            .forward
            .decode_generated(&sequences, &ids, flags_of_decode)
        else {
            return Ok(true);
        };
        let culprit = self.forward.context.hook().take_culprit();
        for (&sequence, n_rows) in sequences.iter().zip(marks) {
            self.forward.context.drop_unfinished(sequence)?;
            self.forward.context.hook().truncate(sequence, n_rows);
        }
        if error.is_interrupted() {
            for (&sequence, flag) in sequences.iter().zip(&flags) {
                if flag.is_cancelled() {
                    self.generation(sequence).stop = Some(Stop::Interrupted);
                    self.finish(sequence, on_step, finished);
                }
            }
            return Ok(false);
        }
        let culprit = culprit.filter(|culprit| sequences.contains(culprit));
        match culprit {
            Some(culprit) => self.fail(culprit, error, finished).map(|()| false),
            None => Err(error),
        }
    }

    /// Takes a run's next token into its text; none where it stops.
    fn take_next(&mut self, sequence: usize, on_step: OnStep<'_>) -> Result<Option<i32>> {
        let is_full = self.forward.context.is_full(sequence);
        let is_cancelled = self.active(sequence).request.options.cancel.is_cancelled();
        let model = Arc::clone(&self.model);
        let generation = self.generation(sequence);
        if generation.stop.is_some() {
            return Ok(None);
        }
        if is_cancelled {
            generation.stop = Some(Stop::Interrupted);
            return Ok(None);
        }
        let (id, text) = generation.take_next(model.language_model(), is_full)?;
        if let Some(id) = id
            && self.show(sequence, Some(id), &text, on_step).is_break()
        {
            self.generation(sequence).stop.get_or_insert(Stop::Caller);
        }
        Ok(id.filter(|_| self.generation(sequence).stop.is_none()))
    }

    /// Hands a step to the caller.
    fn show(
        &mut self,
        sequence: usize,
        id: Option<i32>,
        text: &str,
        on_step: OnStep<'_>,
    ) -> ControlFlow<()> {
        let active = self.slots[sequence].as_mut().expect("it is there");
        let trace = &self.forward.context.hook().sequences[sequence].trace;
        let n_rows = trace.tokens.len();
        let new_rows = std::mem::replace(&mut active.n_shown, n_rows)..n_rows;
        let log_probs = match &active.phase {
            Phase::Tokens(generation) => id.and_then(|_| generation.last_log_probs()),
            Phase::Prompt { .. } => None,
        };
        let step = Step {
            id,
            text,
            log_probs,
            trace,
            new_rows,
        };
        on_step(active.id, step)
    }

    /// Ends a run that has stopped.
    fn finish(&mut self, sequence: usize, on_step: OnStep<'_>, finished: &mut Vec<Finished>) {
        let rest = self.generation(sequence).take_rest();
        if !rest.is_empty() {
            let _ = self.show(sequence, None, &rest, on_step); // it has ended
        }
        let active = self.slots[sequence].take().expect("it is there");
        let Phase::Tokens(generation) = active.phase else {
            unreachable!("its prompt was read");
        };
        let trace = self.forward.context.hook().take_trace(sequence);
        finished.push((
            active.id,
            Ok(generation.finish(trace, active.prompt_log_probs)),
        ));
    }
}
