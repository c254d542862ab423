//! What logits say: log-probabilities, and how far two distributions are apart.

/// How likely a model finds a token, and what it finds most likely: natural logarithms of probabilities, which those
/// of the whole vocabulary sum to 1 with, interventions and all, before anything that [`Sampling`](crate::Sampling)
/// says.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    /// The token's.
    pub log_prob: f64,
    /// The most likely tokens' ids with theirs, the likeliest first.
    pub top: Vec<(i32, f64)>,
}

impl TokenLogProbs {
    /// Of the token `id`, and of the `n_top` most likely, by the logits that it is chosen from, `[n_vocab]`.
    pub(super) fn new(logits: &[f32], id: i32, n_top: usize) -> Self {
        let distribution = Distribution::new(logits);
        Self {
            log_prob: distribution.log_prob(id),
            top: distribution.top(n_top),
        }
    }
}

/// A distribution over the vocabulary, with its exponentials summed once.
pub(crate) struct Distribution<L> {
    logits: L, // [n_vocab]
    log_sum_exp: f64,
}

impl<L: AsRef<[f32]>> Distribution<L> {
    /// The distribution with these logits, `[n_vocab]`.
    pub(crate) fn new(logits: L) -> Self {
        let values = logits.as_ref();
        let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = values.iter().map(|&x| f64::from(x - max).exp()).sum();
        Self {
            log_sum_exp: f64::from(max) + sum.ln(),
            logits,
        }
    }

    /// `log softmax(logits)[id]`, in nats.
    pub(crate) fn log_prob(&self, id: i32) -> f64 {
        let id = usize::try_from(id).expect("ids are not negative");
        f64::from(self.logits.as_ref()[id]) - self.log_sum_exp
    }

    /// The `n` most likely tokens, the likeliest first, with their log-probabilities; of equals, smaller ids first.
    fn top(&self, n: usize) -> Vec<(i32, f64)> {
        let mut top: Vec<(i32, f32)> = Vec::with_capacity(n + 1);
        for (&logit, id) in self.logits.as_ref().iter().zip(0..) {
            if top.len() < n || top.last().is_some_and(|&(_, least)| logit > least) {
                let place = top.partition_point(|&(_, other)| other >= logit);
                top.insert(place, (id, logit));
                top.truncate(n);
            }
        }
        top.iter().map(|&(id, _)| (id, self.log_prob(id))).collect()
    }

    /// `Σ p (log p − log q)` of this distribution `p` and another, `q`, in nats.
    pub(crate) fn kl_divergence<M: AsRef<[f32]>>(&self, q: &Distribution<M>) -> f64 {
        let pairs = self.logits.as_ref().iter().zip(q.logits.as_ref());
        let terms = pairs.map(|(&p_logit, &q_logit)| {
            let log_p = f64::from(p_logit) - self.log_sum_exp;
            let log_q = f64::from(q_logit) - q.log_sum_exp;
            log_p.exp() * (log_p - log_q)
        });
        terms.sum::<f64>().max(0.0) // rounding can make it less than nothing
    }
}

#[cfg(test)]
mod tests {
    use super::Distribution;

    #[test]
    fn probabilities_of_logits() {
        // softmax([0, ln 3]) = [1/4, 3/4].
        let q = Distribution::new([0.0, 3.0_f32.ln()]);
        assert!((q.log_prob(1) - 0.75_f64.ln()).abs() < 1e-6);
        // KL([1/2, 1/2] ‖ [1/4, 3/4]) = ½ ln 2 + ½ ln ⅔.
        let expected = 0.5 * 2.0_f64.ln() + 0.5 * (2.0_f64 / 3.0).ln();
        let p = Distribution::new([5.0, 5.0]);
        assert!((p.kl_divergence(&q) - expected).abs() < 1e-6);
        assert_eq!(q.kl_divergence(&q), 0.0);
    }

    #[test]
    fn the_most_likely_tokens_come_first() {
        let of = Distribution::new([1.0, 3.0, -2.0, 3.0, 2.0, f32::NEG_INFINITY]);
        let ids = |n| of.top(n).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(0), [0; 0]);
        assert_eq!(ids(3), [1, 3, 4]);
        assert_eq!(ids(9), [1, 3, 4, 0, 2, 5]);
        assert_eq!(of.top(2)[1], (3, of.log_prob(3)));
    }
}
