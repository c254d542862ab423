//! What runs leave out, tried against the whole graph where another device than the processor computes.
//!
//! The shortcuts rest on how llama.cpp computes graphs, which was proved on the processor; backends of
//! devices reorder and fuse nodes. So there, once a session and before it is first taken, each goes both
//! ways with the beginning of the prompt.

use crate::Result;
use crate::decoder::{Decoder, Goal};
use crate::llama::{OutputRow, Sampling};
use crate::prompt::Prompt;
use crate::run::{RunOptions, Runner};
use crate::steering::Steering;
use crate::tap::Keep;
use crate::tokens::Positions;

/// Something that a run leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// Prompts share the blocks below the hook.
    SharedPrompts,
    /// The model stops at the hook.
    StopAtHook,
    /// An addition at all positions is llama.cpp's control vector.
    ControlVector,
}

/// When shortcuts are tried against the whole graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TryShortcuts {
    /// Where another device than the processor computes.
    #[default]
    OnDevices,
    /// Always.
    Always,
}

/// What is known of the shortcuts.
#[derive(Debug)]
pub(crate) struct Shortcuts {
    holds: [Option<bool>; 3], // by `Shortcut`; none where it has not been tried
}

/// Tokens of a prompt that shortcuts are tried with.
const TRIED: usize = 8;
/// How far both ways may be apart, as a part of the numbers' spread: devices compute in f16 and add in
/// other orders, some thousandths; what is left out wrongly changes tenths.
const TOLERANCE: f64 = 1e-2;

impl Shortcuts {
    /// Shortcuts that are tried before they are taken, or that are taken as they are.
    pub(crate) fn new(is_tried: bool) -> Self {
        let holds = [(!is_tried).then_some(true); 3];
        Self { holds }
    }

    /// Whether a shortcut that a run has asked about holds.
    pub(crate) fn holds(&self, shortcut: Shortcut) -> bool {
        self.holds[shortcut as usize] == Some(true)
    }
}

impl Runner<'_> {
    /// Whether `shortcut` may be taken with `prompt`. Where that is not known, both ways are tried; for a
    /// control vector, with this steering. The context is cleared then.
    pub(crate) fn takes(
        &mut self,
        shortcut: Shortcut,
        prompt: &Prompt,
        steering: Option<(&Steering, usize, &[f32])>,
    ) -> Result<bool> {
        if let Some(holds) = self.shortcuts.holds[shortcut as usize] {
            return Ok(holds);
        }
        let n_tokens = TRIED.min(self.context.capacity() - 1);
        let Some(prompt) = prompt.beginning(n_tokens) else {
            return Ok(false);
        };
        let (quick, whole) = match shortcut {
            Shortcut::SharedPrompts => (
                self.logits_beside(&prompt, true)?,
                self.logits_beside(&prompt, false)?,
            ),
            Shortcut::StopAtHook => (
                self.rows(&prompt, Goal::Rows(Positions::ALL))?,
                self.rows(&prompt, Goal::Logits)?,
            ),
            Shortcut::ControlVector => {
                let Some((steering, layer, vector)) = steering else {
                    return Ok(false);
                };
                let plain = self.logits(&prompt, None)?;
                let whole = self.logits(&prompt, Some(steering))?;
                self.context.set_control_vector(layer, vector)?;
                let quick = self.logits(&prompt, None);
                self.context.set_control_vector(layer, &[])?;
                if distance(&whole, &plain) < 10.0 * TOLERANCE {
                    return Ok(false); // too little to tell: a stronger one will
                }
                (quick?, whole)
            }
        };
        let distance = distance(&quick, &whole);
        let holds = distance <= TOLERANCE; // and not where it is no number
        self.shortcuts.holds[shortcut as usize] = Some(holds);
        if !holds {
            let what = match shortcut {
                Shortcut::SharedPrompts => "prompts side by side are computed one by one",
                Shortcut::StopAtHook => "the model does not stop at the hook",
                Shortcut::ControlVector => "additions are made by the callback",
            };
            log::warn!(
                "{what}: on this device a shortcut gives other numbers ({distance:.1e} apart)"
            );
        }
        Ok(holds)
    }

    /// The rows at the hook, computed as far as `goal` says.
    fn rows(&mut self, prompt: &Prompt, goal: Goal) -> Result<Vec<f32>> {
        let keep = Keep {
            residuals: true,
            ..Keep::default()
        };
        let mut decoder = Decoder::start(self.context, self.node, &[options(None, keep)]);
        decoder.decode_prompt(0, prompt, goal)?;
        Ok(decoder.take_trace(0).residuals)
    }

    fn logits(&mut self, prompt: &Prompt, steering: Option<&Steering>) -> Result<Vec<f32>> {
        let options = options(steering, Keep::default());
        let mut decoder = Decoder::start(self.context, self.node, &[options]);
        decoder.decode_prompt(0, prompt, Goal::Logits)?;
        Ok(decoder.context.logits(OutputRow::Last).to_vec())
    }

    /// The logits of a second sequence, of its prompt and of a token behind, which reads the cache.
    fn logits_beside(&mut self, prompt: &Prompt, shares_prompts: bool) -> Result<Vec<f32>> {
        let both = [options(None, Keep::default()); 2];
        let mut decoder = Decoder::start(self.context, self.node, &both);
        decoder.shares_prompts = shares_prompts;
        decoder.decode_prompt(0, prompt, Goal::Logits)?;
        decoder.decode_prompt(1, prompt, Goal::Logits)?;
        let mut logits = decoder.context.logits(OutputRow::Last).to_vec();
        decoder.end_prompts();
        let last = prompt.tokens().last().and_then(|token| token.id);
        let last = last.expect("a prompt ends with text");
        decoder.decode_generated(&[0, 1], &[last, last])?;
        logits.extend_from_slice(decoder.context.logits(OutputRow::Index(1)));
        Ok(logits)
    }
}

fn options(steering: Option<&Steering>, keep: Keep) -> RunOptions<'_> {
    RunOptions {
        steering,
        keep,
        max_tokens: 1,
        sampling: Sampling::Greedy,
    }
}

/// `‖a − b‖ / ‖b − mean(b)‖`.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let mean = b.iter().map(|&b| f64::from(b)).sum::<f64>() / b.len() as f64;
    let square = |x: f64| x * x;
    let spread: f64 = b.iter().map(|&b| square(f64::from(b) - mean)).sum();
    let pairs = a.iter().zip(b);
    let difference: f64 = pairs
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    (difference / spread).sqrt()
}

#[cfg(test)]
mod tests {
    use super::TryShortcuts;
    use crate::llama::{Pass, SPOILED, Sampling};
    use crate::steering::{Change, Intervention, Positions, Steering, Units};
    use crate::{Keep, PromptForm, Run, RunOptions, Session, SessionOptions, demo};

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

    fn steering(session: &mut Session) -> Steering {
        let add = Intervention {
            feature: 3,
            change: Change::Add(20.0),
            units: Units::Unit,
            at: Positions::ALL,
        };
        session.sae().steering(vec![add]).expect("a feature")
    }

    /// What a session does with shortcuts of every kind.
    fn runs(session: &mut Session) -> Vec<Run> {
        let prompt = session.prompt("Describe the image.", PromptForm::Chat, None);
        let prompt = prompt.expect("known characters");
        let steering = steering(session);
        let plain = RunOptions {
            steering: None,
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            max_tokens: 6,
            sampling: Sampling::Greedy,
        };
        let steered = RunOptions {
            steering: Some(&steering),
            ..plain
        };
        let rows = RunOptions {
            keep: Keep {
                residuals: true,
                ..Keep::default()
            },
            max_tokens: 0,
            ..plain
        };
        [&[rows][..], &[steered], &[plain, steered]]
            .into_iter()
            .flat_map(|runs| {
                let done = session.run_side_by_side(&prompt, runs, &mut |_, _| {});
                done.expect("the runs succeed")
            })
            .collect()
    }

    fn check_same(ours: &[Run], theirs: &[Run]) {
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours.token_ids, theirs.token_ids);
            assert_eq!(ours.logits, theirs.logits);
            assert_eq!(ours.trace.residuals, theirs.trace.residuals);
        }
    }

    #[test]
    fn trying_changes_nothing_where_all_is_well() {
        let mut tried = session(TryShortcuts::Always, true);
        assert_eq!(tried.shortcuts().holds, [None; 3]);
        let runs_tried = runs(&mut tried);
        assert_eq!(tried.shortcuts().holds, [Some(true); 3]);
        let mut untried = session(TryShortcuts::OnDevices, true);
        assert_eq!(untried.shortcuts().holds, [Some(true); 3]);
        check_same(&runs_tried, &runs(&mut untried));
    }

    #[test]
    fn what_goes_wrong_is_noticed_and_done_without() {
        for (pass, expected) in [
            (Pass::Replayed, [false, true, true]),
            (Pass::UpToHook, [true, false, true]),
            (Pass::Unhooked, [true, true, false]), // the control vector
        ] {
            let mut whole = session(TryShortcuts::OnDevices, pass != Pass::Replayed);
            let expected_runs = runs(&mut whole);
            SPOILED.set(Some(pass));
            let mut spoiled = session(TryShortcuts::Always, true);
            let runs = runs(&mut spoiled);
            SPOILED.set(None);
            assert_eq!(spoiled.shortcuts().holds, expected.map(Some), "{pass:?}");
            check_same(&runs, &expected_runs);
        }
    }
}
