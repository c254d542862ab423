//! Ranking an image's features: pooling activations over positions. Pure arithmetic.

use std::collections::BTreeMap;

use gguf_tools::sae::Baseline;

use crate::activations::Activations;
use crate::tokens::{Positions, Token, TokenKind};
use crate::{Error, Result};

/// The positions that are pooled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Image rows.
    Image,
    /// The prompt's text.
    Prompt,
    /// Every row of the prompt.
    All,
    /// One position; a negative one counts from the prompt's end.
    Position(i64),
}

impl Over {
    /// Reads `image`, `prompt`, `all` or a position.
    ///
    /// # Errors
    /// Any other word.
    pub fn parse(word: &str) -> Result<Self> {
        match word {
            "image" => Ok(Self::Image),
            "prompt" => Ok(Self::Prompt),
            "all" => Ok(Self::All),
            _ => word.parse().map(Self::Position).map_err(|_| {
                Error::invalid(format!("`{word}` is no set of positions"))
                    .with_hint("use `image`, `prompt`, `all`, or a position such as 586 or -3")
            }),
        }
    }

    /// The kinds of rows that hold them.
    pub fn kinds(self) -> Positions {
        Positions {
            image: self != Self::Prompt,
            prompt: self != Self::Image,
            generated: false,
        }
    }
}

/// How activations of several positions become one number. Inactive positions count as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The largest.
    Max,
    /// Their sum.
    Sum,
    /// Their mean over all pooled positions.
    Mean,
    /// The number of positions where the feature is active.
    Count,
}

/// A feature's standing.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureScore {
    /// Its index.
    pub feature: usize,
    /// The pooled activation.
    pub score: f32,
    /// The largest activation, less the feature's usual one on pictures; where a baseline was given.
    pub lift: Option<f32>,
    /// The largest activation over the pooled positions.
    pub max: f32,
    /// Where it is, as a position of the prompt.
    pub argmax_position: usize,
    /// At how many of the pooled positions the feature is active.
    pub n_tokens: usize,
}

/// The pooled positions of a prompt, rising.
///
/// # Errors
/// A position outside of the prompt, or none at all (`image` without an image).
pub fn pooled_positions(tokens: &[Token], over: Over) -> Result<Vec<usize>> {
    let n_prompt = tokens
        .iter()
        .filter(|token| token.kind != TokenKind::Generated)
        .count();
    if let Over::Position(position) = over {
        let length = i64::try_from(n_prompt).expect("prompts are short");
        let from_start = if position < 0 {
            position + length
        } else {
            position
        };
        return usize::try_from(from_start)
            .ok()
            .filter(|&position| position < n_prompt)
            .map(|position| vec![position])
            .ok_or_else(|| {
                Error::invalid(format!(
                    "no position {position}: the prompt has {n_prompt} rows"
                ))
                .with_hint(format!("use {} to {}", -length, length - 1))
            });
    }
    let kinds = over.kinds();
    let is_pooled = |&position: &usize| kinds.contain(tokens[position].kind);
    let positions: Vec<usize> = (0..n_prompt).filter(is_pooled).collect();
    if positions.is_empty() {
        return Err(Error::invalid("there are no image rows to look at")
            .with_hint("give an image, or use `--over prompt`"));
    }
    Ok(positions)
}

/// Ranks the features that are active at `positions`, best first, by lift if there is a `baseline`,
/// else by their score; equal ones by index. `activations` has a row for each position of the prompt.
pub fn rank(
    activations: &Activations,
    positions: &[usize],
    d_sae: usize,
    pool: Pool,
    baseline: Option<&Baseline>,
) -> Vec<FeatureScore> {
    struct Sums {
        sum: f32,
        max: f32,
        argmax_position: usize,
        n_tokens: usize,
    }
    let mut sums: Vec<Option<Sums>> = Vec::new(); // [d_sae]
    sums.resize_with(d_sae, || None);
    for &position in positions {
        for (feature, value) in activations.row(position) {
            let entry = sums[feature].get_or_insert(Sums {
                sum: 0.0,
                max: f32::NEG_INFINITY,
                argmax_position: position,
                n_tokens: 0,
            });
            entry.sum += value;
            entry.n_tokens += 1;
            if value > entry.max {
                entry.max = value;
                entry.argmax_position = position;
            }
        }
    }
    let mut ranked: Vec<FeatureScore> = sums
        .into_iter()
        .enumerate()
        .filter_map(|(feature, sums)| {
            let sums = sums?;
            let score = match pool {
                Pool::Max => sums.max,
                Pool::Sum => sums.sum,
                Pool::Mean => sums.sum / positions.len() as f32,
                Pool::Count => sums.n_tokens as f32,
            };
            Some(FeatureScore {
                feature,
                score,
                lift: baseline.map(|baseline| sums.max - baseline.mean_max[feature]),
                max: sums.max,
                argmax_position: sums.argmax_position,
                n_tokens: sums.n_tokens,
            })
        })
        .collect();
    sort(&mut ranked);
    ranked
}

/// Ranks the features of several pictures together: scores are means over all `pictures`, in which a
/// feature that a picture does not fire counts as 0, and lifts those of the mean maximum; the largest
/// activation is that of all, and positions are counted in all. `argmax_position` is that of the
/// picture with the largest activation.
pub fn group(pictures: &[Vec<FeatureScore>], baseline: Option<&Baseline>) -> Vec<FeatureScore> {
    struct Sums {
        together: FeatureScore, // but for the score, a sum
        max_sum: f32,
    }
    let mut sums = BTreeMap::<usize, Sums>::new();
    for score in pictures.iter().flatten() {
        let Some(sum) = sums.get_mut(&score.feature) else {
            let (together, max_sum) = (score.clone(), score.max);
            sums.insert(score.feature, Sums { together, max_sum });
            continue;
        };
        let together = &mut sum.together;
        together.score += score.score;
        together.n_tokens += score.n_tokens;
        sum.max_sum += score.max;
        if score.max > together.max {
            together.max = score.max;
            together.argmax_position = score.argmax_position;
        }
    }
    let n = pictures.len() as f32;
    let mean = |sums: Sums| FeatureScore {
        score: sums.together.score / n,
        lift: baseline.map(|usual| sums.max_sum / n - usual.mean_max[sums.together.feature]),
        ..sums.together
    };
    let mut ranked: Vec<FeatureScore> = sums.into_values().map(mean).collect();
    sort(&mut ranked);
    ranked
}

/// Best first, by lift where there is one, else by score; equal ones by index.
fn sort(scores: &mut [FeatureScore]) {
    let key = |score: &FeatureScore| score.lift.unwrap_or(score.score);
    scores.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.feature.cmp(&b.feature)));
}
