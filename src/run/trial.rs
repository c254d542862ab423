//! What runs leave out ([`Shortcut`]), tried against the whole graph where another device than the processor computes.
//!
//! The shortcuts rest on how llama.cpp computes graphs, which was proved on the processor; backends of
//! devices reorder and fuse nodes. So there, once a session and before it is first taken, each goes both
//! ways with the beginning of the prompt.

use std::sync::Arc;

use super::engine::Engine;
use super::hooks::Keep;
use super::reading::{Goal, Reading};
use super::shortcuts::{Shortcut, distance};
use crate::llama::{OutputRow, Pass, Reach};
use crate::prompt::Prompt;
use crate::steering::Steering;
use crate::{CancelFlag, Kinds, Result};

/// Tokens of a prompt that shortcuts are tried with.
const TRIED: usize = 8;
/// How far both ways may be apart, as a part of the numbers' spread: devices compute in f16 and add in
/// other orders, some thousandths; what is left out wrongly changes tenths.
const TOLERANCE: f64 = 1e-2;

impl Engine {
    /// Whether `shortcut` may be taken with `prompt`. Where that is not known, both ways are tried; for a
    /// control vector, with this steering, and for shared prompts, to the highest hooked place of the residual
    /// stream and to the end. The context is cleared then.
    pub(super) fn takes(
        &mut self,
        shortcut: Shortcut,
        prompt: &Prompt,
        steering: Option<(&Steering, usize, &[f32])>,
    ) -> Result<bool> {
        let known = self.model.shortcuts().known()[shortcut as usize];
        if let Some(holds) = known {
            return Ok(holds);
        }
        let n_tokens = TRIED.min(self.capacity() - 1);
        let Some(prompt) = prompt.beginning(n_tokens) else {
            return Ok(false);
        };
        let (quick, whole) = match shortcut {
            Shortcut::SharedPrompts => {
                let whole = self.logits_beside(&prompt, Reach::Nothing)?;
                let split = self.stream_below(None).map(Reach::Node);
                let reaches: Vec<Reach> = split.into_iter().chain([Reach::End]).collect();
                let mut quick = Vec::new();
                for &reach in &reaches {
                    quick.extend(self.logits_beside(&prompt, reach)?);
                }
                (quick, whole.repeat(reaches.len()))
            }
            Shortcut::StopAtHook => (
                self.rows(&prompt, Goal::Rows(Kinds::ALL))?,
                self.rows(&prompt, Goal::Logits)?,
            ),
            Shortcut::ControlVector => {
                let Some((steering, layer, vector)) = steering else {
                    return Ok(false);
                };
                let plain = self.logits(&prompt, None)?;
                let whole = self.logits(&prompt, Some(steering))?;
                self.forward.context.set_control_vector(layer, vector)?;
                let quick = self.logits(&prompt, None);
                self.forward.context.set_control_vector(layer, &[])?;
                if distance(&whole, &plain) < 10.0 * TOLERANCE {
                    return Ok(false); // too little to tell: a stronger one will
                }
                (quick?, whole)
            }
        };
        let distance = distance(&quick, &whole);
        let holds = distance <= TOLERANCE; // and not where it is no number
        self.model.shortcuts().known()[shortcut as usize] = Some(holds);
        if !holds {
            let what = match shortcut {
                Shortcut::SharedPrompts => "prompts are read whole",
                Shortcut::StopAtHook => "the model does not stop at the hook",
                Shortcut::ControlVector => "additions are made by the callback",
            };
            log::warn!("{what}: here a shortcut gives different numbers ({distance:.1e} apart)");
        }
        Ok(holds)
    }

    /// The rows at the hooks where SAEs read, computed as far as `goal` says.
    fn rows(&mut self, prompt: &Prompt, goal: Goal) -> Result<Vec<f32>> {
        let keep = Keep {
            residuals: true,
            ..Keep::default()
        };
        let top = self.forward.context.hook().sites.len().checked_sub(1);
        let pass = match goal {
            Goal::Rows(_) => Pass::up_to(top.map_or(Reach::End, Reach::Node)),
            Goal::Logits => Pass::WHOLE,
        };
        self.start(&[(keep, None)]);
        self.decode_tried(0, prompt, goal, pass)?;
        let trace = self.forward.context.hook().take_trace(0);
        let rows = trace.saes.into_iter().flat_map(|sae| sae.residuals);
        Ok(rows.collect())
    }

    fn logits(&mut self, prompt: &Prompt, steering: Option<&Steering>) -> Result<Vec<f32>> {
        let pass = match steering {
            Some(_) => Pass::WHOLE,
            None => Pass::Unhooked,
        };
        self.start(&[(Keep::default(), steering)]);
        self.decode_tried(0, prompt, Goal::Logits, pass)?;
        Ok(self.forward.context.logits(OutputRow::Last).to_vec())
    }

    /// The logits of a token behind a prompt in a second sequence, for which it was read by the first one as far
    /// as `replayed`. Where there is room for one sequence only, the prompt is decoded again in an empty cache.
    fn logits_beside(&mut self, prompt: &Prompt, replayed: Reach) -> Result<Vec<f32>> {
        let second = 1.min(self.n_sequences() - 1);
        self.start(&[(Keep::default(), None); 2][..=second]);
        let mut recorded = Vec::new();
        for sequence in [0, second] {
            if second == 0 {
                self.forward.context.clear();
            }
            let mut reading = Reading::new(prompt, Goal::Logits, None);
            let mut known = std::mem::take(&mut recorded).into_iter().flatten();
            let n_ubatch = self.forward.context.n_ubatch();
            while let Some(piece) = reading.next_piece(prompt, n_ubatch) {
                let pass = match (replayed, known.next()) {
                    (Reach::Nothing, _) => Pass::Unhooked,
                    (_, None) => Pass::recorded(Reach::End),
                    (_, Some(graph)) => {
                        self.forward.context.replay(Arc::new(graph));
                        Pass::replayed(replayed)
                    }
                };
                self.forward.set_pass(pass);
                let never = CancelFlag::default();
                self.forward
                    .decode_piece(sequence, prompt, &mut reading, piece, &never)?;
                recorded.push(self.forward.context.take_recording());
            }
        }
        self.forward.set_pass(Pass::Unhooked);
        let last = prompt.tokens().last().and_then(|token| token.id);
        let last = last.expect("a prompt ends with text");
        let sequences: Vec<usize> = (0..=second).collect();
        let ids = vec![last; sequences.len()];
        self.forward.decode_generated(&sequences, &ids, [])?;
        let logits = self.forward.context.logits(OutputRow::Index(second));
        Ok(logits.to_vec())
    }

    /// Begins sequences that do this.
    fn start(&mut self, sequences: &[(Keep, Option<&Steering>)]) {
        self.forward.context.clear();
        let hooks = self.forward.context.hook();
        for (sequence, &(keep, steering)) in sequences.iter().enumerate() {
            hooks.begin(sequence, keep, steering.cloned(), Vec::new());
        }
    }

    fn decode_tried(
        &mut self,
        sequence: usize,
        prompt: &Prompt,
        goal: Goal,
        pass: Pass,
    ) -> Result<()> {
        self.forward.set_pass(pass);
        let never = CancelFlag::default();
        self.forward.decode_prompt(sequence, prompt, goal, &never)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use crate::llama::{Pass, Reach, SPOILED};
    use crate::metrics::Metrics;
    use crate::steering::{Change, Intervention, Steering, Units};
    use crate::{
        CancelFlag, FeatureId, Keep, PromptForm, Run, RunOptions, Session, SessionOptions,
        TryShortcuts, demo,
    };

    fn session(try_shortcuts: TryShortcuts, share_prompts: bool) -> Session {
        let options = SessionOptions {
            threads: 1,
            gpu_layers: 0,
            share_prompts,
            try_shortcuts,
            ..SessionOptions::default()
        };
        Session::open(&demo::files().expect("the demo"), options).expect("it loads")
    }

    fn steering(session: &Session) -> Arc<Steering> {
        let add = Intervention {
            units: Units::Unit,
            ..Intervention::new(FeatureId::of_only(3), Change::steer(20.0))
        };
        session.model().steering(vec![add]).expect("a feature")
    }

    fn holds(session: &Session) -> [Option<bool>; 3] {
        *session.model().shortcuts().known()
    }

    /// What a session does with shortcuts of every kind.
    fn runs(session: &mut Session) -> Vec<Run> {
        let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
        let prompt = prompt.expect("known characters");
        let plain = RunOptions {
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            max_tokens: 6,
            ..RunOptions::default()
        };
        let steered = RunOptions {
            steering: Some(steering(session)),
            ..plain.clone()
        };
        let rows = RunOptions {
            keep: Keep {
                residuals: true,
                ..Keep::default()
            },
            max_tokens: 0,
            ..plain.clone()
        };
        [vec![rows], vec![steered.clone()], vec![plain, steered]]
            .into_iter()
            .flat_map(|runs| {
                let go_on = &mut |_, _: crate::Step<'_>| ControlFlow::Continue(());
                let done = session.run_side_by_side(&prompt, runs, go_on);
                done.expect("the runs succeed")
            })
            .collect()
    }

    fn check_same(ours: &[Run], theirs: &[Run]) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours.token_ids, theirs.token_ids);
            assert_eq!(ours.logits, theirs.logits);
            let [ours, theirs] = [ours, theirs].map(|run| &run.trace.saes[0].residuals);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn trying_changes_nothing_where_all_is_well() {
        let mut tried = session(TryShortcuts::Always, true);
        assert_eq!(holds(&tried), [None; 3]);
        let runs_tried = runs(&mut tried);
        assert_eq!(holds(&tried), [Some(true); 3]);
        let mut untried = session(TryShortcuts::OnDevices, true);
        assert_eq!(holds(&untried), [Some(true); 3]);
        check_same(&runs_tried, &runs(&mut untried));
    }

    /// Where there is one sequence, as for metrics.
    #[test]
    fn one_sequence_is_tried_too() {
        let measured = |session: &mut Session| {
            let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
            let prompt = prompt.expect("known characters");
            let mut metrics = Metrics::new(session, 0);
            let added = metrics.add(session, &prompt, &CancelFlag::default());
            added.expect("it is measured");
            (format!("{metrics:?}"), holds(session)[0])
        };
        let (expected, _) = measured(&mut session(TryShortcuts::OnDevices, false));
        let well = measured(&mut session(TryShortcuts::Always, true));
        assert_eq!(well, (expected.clone(), Some(true)));
        SPOILED.set(Some(Pass::replayed(Reach::Node(0))));
        let spoiled = measured(&mut session(TryShortcuts::Always, true));
        SPOILED.set(None);
        assert_eq!(spoiled, (expected, Some(false)));
    }

    #[test]
    fn what_goes_wrong_is_noticed_and_done_without() {
        const REPLAYED: Pass = Pass::replayed(Reach::Node(0));
        for (pass, expected) in [
            (REPLAYED, [false, true, true]),
            (Pass::up_to(Reach::Node(0)), [true, false, true]),
            (Pass::Unhooked, [true, true, false]), // the control vector
        ] {
            let share_prompts = pass != REPLAYED;
            let mut whole = session(TryShortcuts::OnDevices, share_prompts);
            let expected_runs = runs(&mut whole);
            SPOILED.set(Some(pass));
            let mut spoiled = session(TryShortcuts::Always, true);
            let runs = runs(&mut spoiled);
            SPOILED.set(None);
            assert_eq!(holds(&spoiled), expected.map(Some), "{pass:?}");
            check_same(&runs, &expected_runs);
        }
    }
}
