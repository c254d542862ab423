//! Ranking an image's features: pooling activations over positions. Pure arithmetic.

use std::collections::BTreeMap;
use std::fmt;

use gguf_tools::sae::Baseline;
use serde::{Deserialize, Serialize};

use crate::activations::Activations;
use crate::positions::{Place, Positions};
use crate::token::{Kinds, Token, TokenKind};
use crate::{Error, ErrorKind, Result};

/// The positions that are pooled. Special tokens are among them only where they are named.
#[derive(Clone, Debug, PartialEq)]
pub struct Over(Positions);

impl Over {
    /// Image rows.
    pub const IMAGE: Self = Self(Positions::IMAGE);
    /// The prompt's text without its special tokens, whose rows are unlike all others: the first one's
    /// is often ten times as long (Xiao et al., *Efficient Streaming Language Models with Attention
    /// Sinks*, 2023).
    pub const PROMPT: Self = Self(Positions::of(Kinds::PROMPT));

    /// Reads a list as [`Positions::parse`] does, but that `all` is the prompt and its image; that special
    /// tokens belong to `prompt` and `all` where `special` is in the list too, and always to a position that
    /// is given as a number; and that `token:TEXT` means tokens of the prompt.
    ///
    /// # Errors
    /// Another word, or a list that names nothing.
    pub fn parse(list: &str) -> Result<Self> {
        Positions::parse_looked_at(list).map(Self)
    }

    /// As [`Positions::find_tokens`].
    ///
    /// # Errors
    /// As there.
    pub fn find_tokens(&mut self, ids_of: impl FnMut(&str) -> Result<Vec<i32>>) -> Result<()> {
        self.0.find_tokens(ids_of)
    }

    /// The kinds of rows that hold them.
    pub fn kinds(&self) -> Kinds {
        let kinds = self.0.kinds();
        match self.0.places() {
            [] => kinds,
            _ => Kinds {
                generated: kinds.generated,
                ..self.0.possible_kinds()
            },
        }
    }
}

impl fmt::Display for Over {
    /// In words, as a phrase such as "the image tokens".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.0.kinds();
        let mut phrases: Vec<String> = match (kinds.image, kinds.prompt, kinds.special) {
            (true, true, true) => vec!["all tokens of the prompt".into()],
            (true, true, false) => vec!["all tokens of the prompt but special ones".into()],
            (image, prompt, special) => {
                let text = match (prompt, special) {
                    (true, true) => Some("the prompt's text tokens"),
                    (true, false) => Some("the prompt's text tokens but special ones"),
                    (false, true) => Some("the prompt's special tokens"),
                    (false, false) => None,
                };
                let image = image.then_some("the image tokens");
                image.into_iter().chain(text).map(String::from).collect()
            }
        };
        if kinds.generated {
            phrases.push("the generated tokens".into());
        }
        phrases.extend(self.0.places().iter().map(|place| match place {
            Place::Last => "the prompt's last token".to_owned(),
            Place::Range(from, to) if from == to => format!("position {from}"),
            Place::Range(from, to) => format!("positions {from} to {to}"),
            Place::Token { text, .. } => format!("the tokens `{text}`"),
            Place::Image(number) => format!("the tokens of image {number}"),
            Place::Patches { .. } => place.to_string(),
        }));
        f.write_str(&phrases.join(", "))
    }
}

/// How activations of several positions become one number. Inactive positions count as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
    /// The largest activation minus the feature's usual one on pictures; none without a baseline.
    pub lift: Option<f32>,
    /// The largest activation over the pooled positions.
    pub max: f32,
    /// Where it is, as a position of the prompt.
    pub argmax_position: usize,
    /// At how many of the pooled positions the feature is active.
    pub n_tokens: usize,
}

/// The pooled positions of a run, rising. `tokens` are the prompt's, and those that were generated.
///
/// # Errors
/// A position outside of the prompt, a range whose end comes first, or no position at all (`image`
/// without an image).
pub fn pooled_positions(tokens: &[Token], over: &Over) -> Result<Vec<usize>> {
    let is_generated = |token: &Token| token.kind == TokenKind::Generated;
    let n_prompt = tokens.iter().position(is_generated);
    let (prompt, generated) = tokens.split_at(n_prompt.unwrap_or(tokens.len()));
    let rows = over.0.rows(prompt)?;
    let in_prompt = prompt.iter().enumerate();
    let in_prompt = in_prompt.map(|(i, &token)| rows.contain(i, token));
    let behind = generated.iter().map(|_| over.0.kinds().generated);
    let is_pooled: Vec<bool> = in_prompt.chain(behind).collect();
    let positions: Vec<usize> = (0..tokens.len()).filter(|&i| is_pooled[i]).collect();
    if positions.is_empty() {
        return Err(nothing_pooled(tokens, over));
    }
    Ok(positions)
}

fn nothing_pooled(tokens: &[Token], over: &Over) -> Error {
    if *over == Over::IMAGE {
        return Error::new(ErrorKind::NoPosition, "there are no image rows to pool")
            .with_hint("give an image, or pool over `prompt`");
    }
    let what = format!("no position to pool: {over}");
    let error = Error::new(ErrorKind::NoPosition, what);
    match over.0.kinds().prompt && tokens.iter().any(|token| token.is_special) {
        true => error.with_hint("the text has only special tokens: pool over `prompt,special`"),
        false => error,
    }
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
/// feature that a picture does not activate counts as 0, and lifts those of the mean maximum; the largest
/// activation is that of all, and positions are counted in all. `argmax_position` is that of the
/// picture with the largest activation.
pub fn group(pictures: &[&[FeatureScore]], baseline: Option<&Baseline>) -> Vec<FeatureScore> {
    struct Sums {
        together: FeatureScore, // but for the score, a sum
        max_sum: f32,
    }
    let mut sums = BTreeMap::<usize, Sums>::new();
    for score in pictures.iter().copied().flatten() {
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
