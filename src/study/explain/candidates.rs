//! Which features, at which positions, may have raised a word: pure arithmetic on what a run's hooks saw.

use std::collections::BTreeMap;

use crate::{FeatureId, Positions, SaeSet, TokenKind, Trace};

/// Positions that are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// The rows of one of the prompt's images, counted from 0.
    Image(usize),
    /// A row of the prompt's text.
    Text(usize),
    /// The answer's tokens.
    Generated,
}

impl Group {
    /// The group of a position of a run whose prompt has `n_prompt` rows; none for special tokens of the prompt.
    fn of(position: usize, n_prompt: usize, trace: &Trace) -> Option<Self> {
        let token = trace.tokens[position];
        match token.kind {
            _ if position >= n_prompt => Some(Self::Generated),
            TokenKind::Image => Some(Self::Image(token.image.unwrap_or(0))),
            TokenKind::Text | TokenKind::Generated => {
                (!token.is_special).then_some(Self::Text(position))
            }
        }
    }

    /// The same as positions of a run, of which `n_images` are the prompt's images.
    pub(super) fn positions(self, n_images: usize) -> Positions {
        let words = match self {
            Self::Image(_) if n_images == 1 => "image".to_owned(),
            Self::Image(image) => format!("image:{}", image + 1),
            Self::Text(position) => position.to_string(),
            Self::Generated => "generated".to_owned(),
        };
        Positions::parse(&words).expect("positions that the prompt has")
    }
}

/// A feature in a group of positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) feature: FeatureId,
    pub(super) group: Group,
    /// Where it is active, and its activations there.
    pub(super) active: Vec<(usize, f32)>,
    /// The squared length of its part of these rows, which is what ablating it takes away: the sum of
    /// `‖a W_dec[feature]‖²`.
    size: f64,
}

/// The candidates among the first `n_rows` rows that the hooks saw, the largest first; of equals, by feature and
/// position.
pub(super) fn candidates(
    saes: &SaeSet,
    trace: &Trace,
    n_prompt: usize,
    n_rows: usize,
) -> Vec<Candidate> {
    let mut found = BTreeMap::<(FeatureId, Group), Candidate>::new();
    for (sae_idx, (sae, seen)) in saes.iter().zip(&trace.saes).enumerate() {
        let rows = seen.residuals.chunks_exact(sae.meta().d_in);
        for (position, row) in rows.enumerate().take(n_rows) {
            let Some(group) = Group::of(position, n_prompt, trace) else {
                continue;
            };
            let scale = sae.decoder_scale(row);
            for (index, value) in seen.activations.row(position) {
                let feature = FeatureId {
                    sae: sae_idx,
                    index,
                };
                let none = || Candidate {
                    feature,
                    group,
                    active: Vec::new(),
                    size: 0.0,
                };
                let candidate = found.entry((feature, group)).or_insert_with(none);
                candidate.active.push((position, value));
                let length = value * scale * sae.decoder_norm()[index];
                candidate.size += f64::from(length).powi(2);
            }
        }
    }
    let mut found: Vec<Candidate> = found.into_values().collect();
    found.sort_by(|a, b| b.size.total_cmp(&a.size));
    found
}
