//! A sweep: one prompt under several interventions at once, and how far each is from the original.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::model::Session;
use crate::prompt::Prompt;
use crate::run::logits::{kl_divergence, log_prob};
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
        let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
        let runs = self.run_side_by_side(prompt, runs, go_on)?;
        let logits = runs[0].logits.clone();
        let kls = self.kl_along_original(prompt, &runs, &options.cancel)?;
        let scored = runs.into_iter().enumerate().map(|(i, run)| {
            let ids = &run.token_ids;
            Ok(ScoredRun {
                kl: kls.as_ref().map(|kls| kls[i]),
                first_kl: kl_divergence(&logits, &run.logits),
                mean_log_prob: self.mean_log_prob(prompt, &logits, ids, &options.cancel)?,
                run,
            })
        });
        let mut steered = scored.collect::<Result<Vec<_>>>()?;
        Ok(Sweep {
            original: steered.remove(0),
            steered,
        })
    }

    /// [`ScoredRun::kl`] of each run, the first of which is the original: its tokens, decoded again in
    /// each run's sequence under that run's interventions.
    fn kl_along_original(
        &mut self,
        prompt: &Prompt,
        runs: &[Run],
        cancel: &CancelFlag,
    ) -> Result<Option<Vec<f64>>> {
        let first = |run: &Run| kl_divergence(&runs[0].logits, &run.logits);
        let mut sums: Vec<f64> = runs.iter().map(first).collect();
        let ids = &runs[0].token_ids;
        let mut originals = BTreeMap::new(); // logits, until the last sequence has been compared
        let engine = self.engine();
        let replayed = engine.replay(
            prompt.extent(),
            runs.len(),
            ids,
            cancel,
            &mut |sequence, i, logits| {
                if sequence == 0 {
                    originals.insert(i, logits.to_vec());
                }
                sums[sequence] += kl_divergence(&originals[&i], logits);
                if sequence + 1 == runs.len() {
                    originals.remove(&i);
                }
            },
        );
        let n_tokens = ids.len().max(1) as f64;
        let means = || sums.iter().map(|sum| sum / n_tokens).collect();
        match replayed {
            Err(error) if error.is_interrupted() => Ok(None),
            other => other.map(|()| Some(means())),
        }
    }

    /// The mean log-probability of `ids` behind the prompt, whose last row has these logits, without
    /// interventions.
    fn mean_log_prob(
        &mut self,
        prompt: &Prompt,
        logits: &[f32],
        ids: &[i32],
        cancel: &CancelFlag,
    ) -> Result<Option<f64>> {
        let [first, ..] = *ids else {
            return Ok(None);
        };
        let mut sum = log_prob(logits, first);
        let kept = prompt.extent();
        let replayed = self
            .engine()
            .replay(kept, 1, ids, cancel, &mut |_, i, logits| {
                sum += log_prob(logits, ids[i]);
            });
        match replayed {
            Err(error) if error.is_interrupted() => Ok(None),
            other => other.map(|()| Some(sum / ids.len() as f64)),
        }
    }
}

/// Whether the words of `phrase` stand in `text` one after the other, in upper or lower case.
pub fn holds_word(text: &str, phrase: &str) -> bool {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric());
        words
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect()
    };
    let (text, phrase) = (words(text), words(phrase));
    !phrase.is_empty() && text.windows(phrase.len()).any(|window| window == phrase)
}

#[cfg(test)]
mod tests {
    use super::holds_word;

    #[test]
    fn words_of_a_text() {
        assert!(holds_word("A Dog, and more.", "dog"));
        assert!(holds_word("an ice cream", "Ice cream"));
        assert!(!holds_word("dogs", "dog"));
        assert!(!holds_word("dog", ""));
    }
}
