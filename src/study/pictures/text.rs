//! Texts: the features that one activates, and where in it each is strongest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::read::{ActiveFeature, ItemFeatures};
use crate::llama::{AddBos, Model};
use crate::rank::{self, FeatureScore, Pool};
use crate::{CancelFlag, Error, HookedModel, Keep, Kinds, Prompt, Result, RunOptions, Session};

/// Tokens on each side of one that is shown in its context.
const N_AROUND: usize = 12;

/// A token of a text, with what stands around it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InContext<T = String> {
    /// Its place among the text's tokens, from 0; what the model wants in front of a text is none of them.
    pub position: usize,
    /// The tokens before it, of those that were read with it, 12 at most.
    pub before: T,
    /// Its text. Of a character that is several tokens, each has all of it.
    pub token: T,
    /// The tokens behind it, as those before it.
    pub after: T,
}

impl InContext<&str> {
    /// With texts of its own.
    pub fn to_owned(self) -> InContext {
        InContext {
            position: self.position,
            before: self.before.to_owned(),
            token: self.token.to_owned(),
            after: self.after.to_owned(),
        }
    }
}

/// The tokens of a text that was read, and where in it features are strongest.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadText {
    text: String,               // of all tokens
    ends: Vec<usize>,           // [n_tokens], in bytes of the text
    n_together: usize,          // tokens of a context, less what the model wants in front
    strongest: Vec<Vec<usize>>, // for each SAE, the position of the largest activation of each active feature
}

impl ReadText {
    fn new(
        model: &HookedModel,
        ids: &[i32],
        n_together: usize,
        strongest: Vec<Vec<usize>>,
    ) -> Self {
        let pieces = ids.iter().map(|&id| model.token_bytes(id));
        let pieces: Vec<_> = pieces.map(Option::unwrap_or_default).collect();
        // Pieces may be parts of characters, all of them together seldom are.
        let (text, n_bytes): (_, Vec<_>) = match String::from_utf8(pieces.concat()) {
            Ok(text) => (text, pieces.iter().map(Vec::len).collect()),
            Err(_) => {
                let pieces = pieces.iter().map(|piece| String::from_utf8_lossy(piece));
                let pieces: Vec<_> = pieces.collect();
                (pieces.concat(), pieces.iter().map(|p| p.len()).collect())
            }
        };
        let ends = n_bytes.into_iter().scan(0, |end, n_bytes| {
            *end += n_bytes;
            Some(*end)
        });
        Self {
            text,
            ends: ends.collect(),
            n_together,
            strongest,
        }
    }

    /// The token that activates an SAE's feature most, the first of several; `active_idx` is the feature's place
    /// among the active ones.
    ///
    /// # Panics
    /// When there is no such SAE or feature.
    pub fn strongest(&self, sae: usize, active_idx: usize) -> InContext<&str> {
        self.in_context(self.strongest[sae][active_idx])
    }

    fn in_context(&self, position: usize) -> InContext<&str> {
        let first = position / self.n_together * self.n_together;
        let behind = self.ends.len().min(first + self.n_together);
        let from = first.max(position.saturating_sub(N_AROUND));
        let to = behind.min(position + 1 + N_AROUND);
        let (start, end) = (self.start(position), self.end(position + 1));
        InContext {
            position,
            before: &self.text[self.start(from)..start],
            token: &self.text[start..end],
            after: &self.text[end..self.end(to)],
        }
    }

    /// Where a token begins, or the character that it is a part of.
    fn start(&self, position: usize) -> usize {
        let start = position.checked_sub(1).map_or(0, |last| self.ends[last]);
        let mut starts = (0..=start).rev();
        starts
            .find(|&at| self.text.is_char_boundary(at))
            .unwrap_or(0)
    }

    /// Where the first so many tokens end, or the character that their last one is a part of.
    fn end(&self, n_tokens: usize) -> usize {
        let end = self.ends[n_tokens - 1];
        let mut ends = end..self.text.len();
        ends.find(|&at| self.text.is_char_boundary(at))
            .unwrap_or(self.text.len())
    }
}

/// Prompts of a text's tokens, `context_size` of them in each, which begins with `start`.
///
/// # Errors
/// A context that is too short for any of the text.
pub(in crate::study) fn contexts(
    model: &Model,
    start: &[i32],
    ids: &[i32],
    context_size: usize,
) -> Result<Vec<Prompt>> {
    let n_together = n_together(start, context_size)?;
    let chunks = ids.chunks(n_together);
    chunks
        .map(|chunk| Prompt::of_text(model, [start, chunk].concat()))
        .collect()
}

fn n_together(start: &[i32], context_size: usize) -> Result<usize> {
    let n_together = context_size.checked_sub(start.len());
    n_together.filter(|&n| n > 0).ok_or_else(|| {
        let what = format!("a context of {context_size} tokens has no room for a text");
        Error::invalid(what).with_hint(format!("the least is {}", start.len() + 1))
    })
}

/// A text's features, pooled over its tokens but special ones; the outer error is not the text's fault.
///
/// As SAELens does, the text stands as it is, without a chat template, in contexts that each begin with the token
/// that the vocabulary asks for.
pub(super) fn features_of_text(
    session: &mut Session,
    name: &str,
    text: Result<Cow<'_, str>>,
    context_size: usize,
    cancel: &CancelFlag,
) -> Result<Result<ItemFeatures>> {
    let model = Arc::clone(session.model());
    let start = Vec::from_iter(model.language_model().added_bos());
    let n_together = n_together(&start, context_size)?;
    let ids = match text.and_then(|text| tokens(&model, name, &text, &start, cancel)) {
        Ok(ids) => ids,
        Err(error) if error.is_of_input() => return Ok(Err(error)),
        Err(error) => return Err(error),
    };
    let mut pooled = vec![Pooled::new(); model.saes().len()];
    let mut n_rows = 0;
    let prompts = contexts(model.language_model(), &start, &ids, context_size)?;
    for (context_idx, prompt) in prompts.iter().enumerate() {
        let options = RunOptions {
            keep: Keep {
                features: Kinds::PROMPT,
                ..Keep::default()
            },
            cancel: cancel.clone(),
            ..RunOptions::default()
        };
        let trace = session.run(prompt, options)?.trace;
        let tokens = trace.tokens.iter().enumerate();
        let of_text = tokens.filter(|(_, token)| Kinds::PROMPT.contain(**token));
        let positions: Vec<_> = of_text.map(|(position, _)| position).collect();
        n_rows += positions.len();
        for ((sae, trace), pooled) in model.saes().iter().zip(&trace.saes).zip(&mut pooled) {
            let d_sae = sae.meta().d_sae;
            for score in rank::rank(&trace.activations, &positions, d_sae, Pool::Sum, None) {
                let position = context_idx * n_together + score.argmax_position - start.len();
                add(pooled, &score, position);
            }
        }
    }
    if n_rows == 0 {
        let what = format!("`{name}` has no tokens but special ones");
        return Ok(Err(Error::invalid(what)));
    }
    let of_saes = pooled
        .into_iter()
        .map(|of_sae| of_sae.into_values().unzip());
    let (active, strongest) = of_saes.unzip();
    Ok(Ok(ItemFeatures {
        n_rows,
        active,
        text: Some(ReadText::new(&model, &ids, n_together, strongest)),
    }))
}

/// A text's tokens, without those of `start`, which it may have already.
fn tokens(
    model: &HookedModel,
    name: &str,
    text: &str,
    start: &[i32],
    cancel: &CancelFlag,
) -> Result<Vec<i32>> {
    let ids = model.tokenize(text, AddBos::No, cancel)?;
    let ids = ids.strip_prefix(start).unwrap_or(&ids);
    if ids.is_empty() {
        return Err(Error::invalid(format!("`{name}` is an empty text")));
    }
    Ok(ids.to_vec())
}

/// An SAE's active features, and where each is strongest.
type Pooled = BTreeMap<usize, (ActiveFeature, usize)>;

/// Adds what a feature does in one more context, where it is strongest at the text's token `position`.
fn add(pooled: &mut Pooled, score: &FeatureScore, position: usize) {
    let here = ActiveFeature::from(score);
    pooled
        .entry(score.feature)
        .and_modify(|(active, strongest)| {
            active.sum += here.sum;
            active.count += here.count;
            if here.max > active.max {
                active.max = here.max;
                *strongest = position;
            }
        })
        .or_insert((here, position));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens are shown with those that were read with them, and parts of a character as all of it.
    #[test]
    fn tokens_in_context() {
        // `é` is two tokens of a byte each.
        let text = ReadText {
            text: "ab é cd".to_owned(),
            ends: vec![1, 2, 4, 5, 8],
            n_together: 4,
            strongest: Vec::new(),
        };
        let shown = |position| {
            let found = text.in_context(position);
            assert_eq!(found.position, position);
            [found.before, found.token, found.after]
        };
        assert_eq!(shown(0), ["", "a", "b é"]);
        assert_eq!(shown(2), ["ab", " é", ""]);
        assert_eq!(shown(3), ["ab ", "é", ""]);
        assert_eq!(shown(4), ["", " cd", ""]);
        let long = ReadText {
            text: "x".repeat(100),
            ends: (1..=100).collect(),
            n_together: 100,
            strongest: Vec::new(),
        };
        let found = long.in_context(50);
        assert_eq!([found.before.len(), found.after.len()], [N_AROUND; 2]);
    }
}
