//! A sweep: one prompt under several interventions at once, and how far each is from the original.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::model::Session;
use crate::prompt::Prompt;
use crate::run::logits::Distribution;
use crate::run::{Keep, Run, RunOptions, Step};
use crate::steering::Steering;
use crate::{CancelFlag, Result};

/// A prompt's runs under several interventions.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The run without interventions.
    pub original: ScoredRun,
    /// One for each steering, in their order.
    pub steered: Vec<ScoredRun>,
}

/// A run, and how far it is from the one without interventions.
#[derive(Clone, Debug)]
pub struct ScoredRun {
    /// The run.
    pub run: Run,
    /// How far the distributions are from the original's along the original's text, in nats: the mean
    /// over its tokens `y` of `KL(p(y_t | y_<t) ‖ q(y_t | y_<t))`, where `p` is the model without
    /// interventions and `q` with them; of an empty text, [`ScoredRun::first_kl`]. None after an
    /// interruption.
    pub kl: Option<f64>,
    /// The same of the first generated token alone.
    pub first_kl: f64,
    /// The mean log-probability, in nats, that the model **without** interventions gives the tokens of
    /// the text, each after those before it; none of an empty text, or after an interruption.
    pub mean_log_prob: Option<f64>,
}

impl Session {
    /// Runs a prompt without interventions and with each of `steerings`, side by side, otherwise as `options`
    /// say.
    ///
    /// # Errors
    /// As [`Session::run_side_by_side`].
    pub fn sweep(
        &mut self,
        prompt: &Prompt,
        steerings: &[Arc<Steering>],
        options: &RunOptions,
    ) -> Result<Sweep> {
        let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
        self.sweep_with(prompt, steerings, options, go_on)
    }

    /// As [`Session::sweep`]; `on_step` gets the texts as they come, that of the original as 0 and the others behind
    /// it, and may end each of them.
    ///
    /// # Errors
    /// As there.
    pub fn sweep_with(
        &mut self,
        prompt: &Prompt,
        steerings: &[Arc<Steering>],
        options: &RunOptions,
        on_step: &mut dyn FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) -> Result<Sweep> {
        let original = RunOptions {
            steering: None,
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            ..options.clone()
        };
        let steered = steerings.iter().map(|steering| RunOptions {
            steering: Some(Arc::clone(steering)),
            ..original.clone()
        });
        let runs = std::iter::once(original.clone()).chain(steered).collect();
        let runs = self.run_side_by_side(prompt, runs, on_step)?;
        let first = Distribution::new(runs[0].logits.clone());
        let first_kl = |run: &Run| first.kl_divergence(&Distribution::new(&run.logits[..]));
        let first_kls: Vec<f64> = runs.iter().map(first_kl).collect();
        let along = self.along_original(prompt, &runs, &first, &first_kls, &options.cancel)?;
        let mut mean_log_probs = HashMap::new(); // by the text: runs may say the same
        if let Some(along) = &along {
            mean_log_probs.insert(runs[0].token_ids.clone(), along.mean_log_prob);
        }
        let scored = runs.into_iter().zip(first_kls).enumerate();
        let scored = scored.map(|(i, (run, first_kl))| {
            let ids = &run.token_ids;
            let mean_log_prob = match mean_log_probs.get(ids) {
                Some(known) => *known,
                None => self.mean_log_prob(prompt, &first, ids, &options.cancel)?,
            };
            mean_log_probs.insert(ids.clone(), mean_log_prob);
            Ok(ScoredRun {
                kl: along.as_ref().map(|along| along.kls[i]),
                first_kl,
                mean_log_prob,
                run,
            })
        });
        let mut steered = scored.collect::<Result<Vec<_>>>()?;
        Ok(Sweep {
            original: steered.remove(0),
            steered,
        })
    }

    /// Decodes the original's tokens again in each run's sequence under that run's interventions; the first run
    /// is the original, whose first token has the distribution `first`, from which the runs' are `first_kls`
    /// apart. None after an interruption.
    fn along_original(
        &mut self,
        prompt: &Prompt,
        runs: &[Run],
        first: &Distribution<Vec<f32>>,
        first_kls: &[f64],
        cancel: &CancelFlag,
    ) -> Result<Option<AlongOriginal>> {
        let ids = &runs[0].token_ids;
        let mut kl_sums = first_kls.to_vec();
        let mut log_prob_sum = ids.first().map(|&id| first.log_prob(id));
        let mut originals = BTreeMap::new(); // distributions, until the last sequence has been compared
        let replayed = self.engine().replay(
            prompt.extent(),
            runs.len(),
            ids,
            cancel,
            &mut |sequence, i, logits| {
                if sequence == 0 {
                    let original = Distribution::new(logits.to_vec());
                    log_prob_sum = log_prob_sum.map(|sum| sum + original.log_prob(ids[i]));
                    originals.insert(i, original);
                } else {
                    kl_sums[sequence] += originals[&i].kl_divergence(&Distribution::new(logits));
                }
                if sequence + 1 == runs.len() {
                    originals.remove(&i);
                }
            },
        );
        let n_tokens = ids.len() as f64;
        let along = || AlongOriginal {
            kls: kl_sums.iter().map(|sum| sum / n_tokens.max(1.0)).collect(),
            mean_log_prob: log_prob_sum.map(|sum| sum / n_tokens),
        };
        unless_interrupted(replayed.map(|()| along()))
    }

    /// The mean log-probability of `ids` behind the prompt, whose last row gives the distribution `first`, without
    /// interventions.
    fn mean_log_prob(
        &mut self,
        prompt: &Prompt,
        first: &Distribution<Vec<f32>>,
        ids: &[i32],
        cancel: &CancelFlag,
    ) -> Result<Option<f64>> {
        let [first_id, ..] = *ids else {
            return Ok(None);
        };
        let mut sum = first.log_prob(first_id);
        let kept = prompt.extent();
        let replayed = self
            .engine()
            .replay(kept, 1, ids, cancel, &mut |_, i, logits| {
                sum += Distribution::new(logits).log_prob(ids[i]);
            });
        unless_interrupted(replayed.map(|()| sum / ids.len() as f64))
    }
}

/// What is measured along the original's text.
struct AlongOriginal {
    kls: Vec<f64>,              // of each run: `ScoredRun::kl`
    mean_log_prob: Option<f64>, // the original's
}

fn unless_interrupted<T>(done: Result<T>) -> Result<Option<T>> {
    match done {
        Err(error) if error.is_interrupted() => Ok(None),
        other => other.map(Some),
    }
}
