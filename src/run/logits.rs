//! What logits say: log-probabilities, and how far two distributions are apart.

/// `log softmax(logits)[id]`, in nats.
pub(crate) fn log_prob(logits: &[f32], id: i32) -> f64 {
    let id = usize::try_from(id).expect("ids are not negative");
    f64::from(logits[id]) - log_sum_exp(logits)
}

/// `Σ p (log p − log q)` of the distributions with these logits, in nats.
pub(crate) fn kl_divergence(p_logits: &[f32], q_logits: &[f32]) -> f64 {
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
