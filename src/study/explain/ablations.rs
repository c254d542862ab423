//! Features ablated one at a time, and a word's log-probability without each.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::Ablated;
use crate::model::Session;
use crate::prompt::Prompt;
use crate::run::logits::Distribution;
use crate::run::{Keep, Request, RunOptions};
use crate::steering::{Change, Intervention, Positions};
use crate::{CancelFlag, FeatureId, Result};

/// Ablations that run side by side. The original runs beside them, and attention reads the cells of all.
const AT_ONCE: usize = 8;

/// A word behind a prompt.
pub(super) struct Asked {
    pub(super) prompt: Arc<Prompt>,
    pub(super) ids: Vec<i32>, // the answer's up to the word's last
    pub(super) word: Range<usize>,
    pub(super) cancel: CancelFlag,
}

/// A word's log-probability, and by how much it is above that with each of some features ablated.
pub(super) struct Effects {
    pub(super) log_prob: f64,
    pub(super) effects: Vec<f64>,
}

/// Who hears how far it has come.
pub(super) struct Progress<'a> {
    pub(super) done: Ablated,
    pub(super) on_ablated: &'a mut dyn FnMut(Ablated),
}

impl Session {
    /// Ablates features at positions, each by itself, and reads the answer up to the word.
    pub(super) fn effects(
        &mut self,
        asked: &Asked,
        ablations: &[(FeatureId, Positions)],
        progress: &mut Progress<'_>,
    ) -> Result<Effects> {
        let mut known = None;
        let mut effects = Vec::new();
        let mut rest = ablations;
        loop {
            let (now, later) = rest.split_at(rest.len().min(AT_ONCE));
            let log_probs = self.log_probs(asked, now)?;
            let original = *known.get_or_insert(log_probs[0]);
            // Beside others, a run's numbers are not those that it has alone, to the bit.
            effects.extend(log_probs[1..].iter().map(|ablated| log_probs[0] - ablated));
            progress.add(now.len());
            rest = later;
            if rest.is_empty() {
                return Ok(Effects {
                    log_prob: original,
                    effects,
                });
            }
        }
    }

    /// The word's log-probability, as the model is and then with each of these features ablated.
    fn log_probs(
        &mut self,
        asked: &Asked,
        ablations: &[(FeatureId, Positions)],
    ) -> Result<Vec<f64>> {
        let original = RunOptions {
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            cancel: asked.cancel.clone(),
            ..RunOptions::default()
        };
        let mut requests = vec![Request::new(Arc::clone(&asked.prompt), original.clone())];
        for (feature, at) in ablations {
            let ablate = Intervention::new(*feature, Change::ablate()).at(at.clone());
            let options = RunOptions {
                steering: Some(self.model().steering(vec![ablate])?),
                ..original.clone()
            };
            requests.push(Request::new(Arc::clone(&asked.prompt), options));
        }
        let n_runs = requests.len();
        let Asked {
            prompt,
            ids,
            word,
            cancel,
        } = asked;
        let engine = self.engine_for(prompt, ids.len(), n_runs)?;
        let runs = engine.run(requests, &mut |_, _| ControlFlow::Continue(()))?;
        let first = |logits: &[f32]| Distribution::new(logits).log_prob(ids[0]);
        let mut sums: Vec<f64> = match word.start {
            0 => runs.iter().map(|run| first(&run.logits)).collect(),
            _ => vec![0.0; n_runs],
        };
        engine.replay(
            prompt.extent(),
            n_runs,
            ids,
            cancel,
            &mut |run, i, logits| {
                if word.contains(&i) {
                    sums[run] += Distribution::new(logits).log_prob(ids[i]);
                }
            },
        )?;
        Ok(sums)
    }
}

impl Progress<'_> {
    fn add(&mut self, n: usize) {
        self.done.n_done += n;
        (self.on_ablated)(self.done);
    }
}
