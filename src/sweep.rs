//! A sweep: one prompt under several interventions at once, and how far each is from the original.

use crate::Result;
use crate::llama::Sampling;
use crate::prompt::Prompt;
use crate::run::{Keep, Run, RunOptions};
use crate::session::Session;
use crate::steering::Steering;

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
    /// `KL(original ‖ this)` of the first generated token, in nats.
    pub kl: f64,
    /// The mean log-probability, in nats, that the model **without** interventions gives the tokens of
    /// the text, each after those before it; none of an empty text.
    pub mean_log_prob: Option<f64>,
}

/// Runs `prompt` without interventions and with each of `steerings`, side by side.
pub(crate) fn sweep(
    session: &mut Session,
    prompt: &Prompt,
    steerings: &[Steering],
    max_tokens: usize,
    sampling: Sampling,
) -> Result<Sweep> {
    let original = RunOptions {
        steering: None,
        keep: Keep::default(),
        max_tokens,
        sampling,
    };
    let steered = steerings.iter().map(|steering| RunOptions {
        steering: Some(steering),
        ..original
    });
    let options: Vec<RunOptions<'_>> = std::iter::once(original).chain(steered).collect();
    let runs = session.run_side_by_side(prompt, &options, &mut |_, _| {})?;
    let logits = runs[0].logits.clone();
    let scored = runs.into_iter().map(|run| {
        Ok(ScoredRun {
            kl: kl_divergence(&logits, &run.logits),
            mean_log_prob: mean_log_prob(session, prompt, &logits, &run.token_ids)?,
            run,
        })
    });
    let mut steered = scored.collect::<Result<Vec<_>>>()?;
    Ok(Sweep {
        original: steered.remove(0),
        steered,
    })
}

/// The mean log-probability of `ids` behind the prompt, whose last row has these logits, without
/// interventions.
fn mean_log_prob(
    session: &mut Session,
    prompt: &Prompt,
    logits: &[f32],
    ids: &[i32],
) -> Result<Option<f64>> {
    let [first, ..] = *ids else {
        return Ok(None);
    };
    let mut sum = log_prob(logits, first);
    session.replay(prompt, ids, &mut |i, logits| {
        sum += log_prob(logits, ids[i])
    })?;
    Ok(Some(sum / ids.len() as f64))
}

/// `log softmax(logits)[id]`, in nats.
fn log_prob(logits: &[f32], id: i32) -> f64 {
    let id = usize::try_from(id).expect("ids are not negative");
    f64::from(logits[id]) - log_sum_exp(logits)
}

/// `Σ p (log p − log q)` of the distributions with these logits, in nats.
fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p_logits), log_sum_exp(q_logits));
    let pairs = p_logits.iter().zip(q_logits);
    let terms = pairs.map(|(&p, &q)| {
        let (log_p, log_q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        log_p.exp() * (log_p - log_q)
    });
    terms.sum::<f64>().max(0.0) // rounding can make it less than nothing
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::{kl_divergence, log_prob};

    #[test]
    fn probabilities_of_logits() {
        // softmax([0, ln 3]) = [1/4, 3/4].
        let logits = [0.0, 3.0_f32.ln()];
        assert!((log_prob(&logits, 1) - 0.75_f64.ln()).abs() < 1e-6);
        // KL([1/2, 1/2] ‖ [1/4, 3/4]) = ½ ln 2 + ½ ln ⅔.
        let expected = 0.5 * 2.0_f64.ln() + 0.5 * (2.0_f64 / 3.0).ln();
        assert!((kl_divergence(&[5.0, 5.0], &logits) - expected).abs() < 1e-6);
        assert_eq!(kl_divergence(&logits, &logits), 0.0);
    }
}
