//! The rows of a run at some positions.

use super::place::Place;
use crate::token::{Kinds, Token, TokenKind};
use crate::{Error, Result};

/// The rows of a run that [`Positions`](crate::Positions) are.
#[derive(Clone, Debug, PartialEq)]
pub struct RowSet {
    kinds: Kinds,
    prompt: Vec<bool>, // for each row of the prompt; empty where kinds say all
    ids: Vec<i32>,     // of generated tokens
}

impl RowSet {
    /// All rows of `kinds`, and those at `places` in a run of `prompt`.
    pub(super) fn new(kinds: Kinds, places: &[Place], prompt: &[Token]) -> Result<Self> {
        let mut set = RowSet {
            kinds,
            prompt: Vec::new(),
            ids: Vec::new(),
        };
        if places.is_empty() {
            return Ok(set);
        }
        set.prompt = prompt.iter().map(|&token| kinds.contain(token)).collect();
        for place in places {
            match place {
                Place::Last => set.prompt[prompt_index(-1, prompt.len())?] = true,
                Place::Range(from, to) => {
                    let n_rows = prompt.len();
                    let range = prompt_index(*from, n_rows)?..=prompt_index(*to, n_rows)?;
                    if range.is_empty() {
                        return Err(Error::invalid(format!(
                            "no position in {from}..{to}: the prompt has {n_rows} rows"
                        ))
                        .with_hint("the end of a range comes after its start"));
                    }
                    set.prompt[range].fill(true);
                }
                Place::Token { text, ids } => {
                    let ids = ids.as_ref().ok_or_else(|| {
                        Error::invalid(format!(
                            "the tokens of `{text}` were not looked up in a vocabulary"
                        ))
                    })?;
                    for (is_in, token) in set.prompt.iter_mut().zip(prompt) {
                        *is_in |= token.id.is_some_and(|id| ids.contains(&id));
                    }
                    set.ids.extend(ids);
                }
                Place::Image(number) => {
                    let image = image_index(*number, prompt)?;
                    for (is_in, token) in set.prompt.iter_mut().zip(prompt) {
                        *is_in |= token.image == Some(image);
                    }
                }
                Place::Patches { rows, columns } => {
                    let is_meant = |token: &Token| {
                        let [row, column] = token.patch?;
                        let is_between = |x: usize, [from, to]: [usize; 2]| from <= x && x <= to;
                        Some(is_between(row, *rows) && is_between(column, *columns))
                    };
                    check_patch([rows[1], columns[1]], prompt)?;
                    for (is_in, token) in set.prompt.iter_mut().zip(prompt) {
                        *is_in |= is_meant(token) == Some(true);
                    }
                }
            }
        }
        Ok(set)
    }

    /// Whether the row of `token` is among them; in the prompt, it is the row `prompt_idx`.
    pub fn contain(&self, prompt_idx: usize, token: Token) -> bool {
        match token.kind {
            TokenKind::Generated => {
                self.kinds.generated || token.id.is_some_and(|id| self.ids.contains(&id))
            }
            TokenKind::Text | TokenKind::Image if self.prompt.is_empty() => {
                self.kinds.contain(token)
            }
            TokenKind::Text | TokenKind::Image => self.prompt[prompt_idx],
        }
    }

    /// The generated tokens that are among them besides those that their kind says, by id.
    pub(crate) fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Whether some row of a run of `prompt` belongs to both.
    pub fn overlap(&self, other: &Self, prompt: &[Token]) -> bool {
        let mut rows = prompt.iter().enumerate();
        let of_both = |(i, &token)| self.contain(i, token) && other.contain(i, token);
        let mut ids = self.ids.iter().chain(&other.ids);
        let is_generated = |set: &Self, id: i32| set.contain(0, Token::generated(id));
        rows.any(of_both)
            || (self.kinds.generated && other.kinds.generated)
            || ids.any(|&id| is_generated(self, id) && is_generated(other, id))
    }
}

/// A position of a prompt of `n_rows` rows, counted from its start.
fn prompt_index(position: i64, n_rows: usize) -> Result<usize> {
    let length = i64::try_from(n_rows).expect("prompts are short");
    let from_start = match position {
        0.. => position,
        _ => position.saturating_add(length),
    };
    let found = usize::try_from(from_start).ok();
    found.filter(|&position| position < n_rows).ok_or_else(|| {
        Error::invalid(format!(
            "no position {position}: the prompt has {n_rows} rows"
        ))
        .with_hint(format!("use {} to {}", -length, length - 1))
    })
}

/// An image of a prompt, counted from 0.
fn image_index(number: usize, prompt: &[Token]) -> Result<usize> {
    let last = prompt.iter().filter_map(|token| token.image).max();
    let n_images = last.map_or(0, |last| last + 1);
    if (1..=n_images).contains(&number) {
        return Ok(number - 1);
    }
    let what = format!("no image {number} in the prompt");
    Err(match n_images {
        0 => Error::invalid(format!("{what}: it has none")).with_hint("give an image"),
        1 => Error::invalid(format!("{what}: it has one")).with_hint("use `image:1`"),
        _ => Error::invalid(format!("{what}: it has {n_images}"))
            .with_hint(format!("use `image:1` to `image:{n_images}`")),
    })
}

/// Refuses a patch that no image of the prompt has.
fn check_patch([row, column]: [usize; 2], prompt: &[Token]) -> Result<()> {
    let patches = || prompt.iter().filter_map(|token| token.patch);
    if patches().any(|patch| patch == [row, column]) {
        return Ok(());
    }
    let what = format!("no patch {row},{column}");
    let last = patches().reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]);
    Err(match last {
        Some([rows, columns]) => Error::invalid(format!("{what}: it is outside the image"))
            .with_hint(format!("use rows 0 to {rows} and columns 0 to {columns}")),
        None => Error::invalid(format!("{what}: there is no image in the prompt"))
            .with_hint("give an image"),
    })
}
