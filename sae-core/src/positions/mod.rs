//! Sets of positions: as words, and as the rows of a run.

mod place;
mod row_set;

use std::fmt;

use crate::token::{Kinds, Token};
use crate::{Error, ErrorKind, Result};

pub use self::place::Place;
pub use self::row_set::RowSet;

/// Positions that something applies to: kinds of rows, and single places.
///
/// Which rows the places are is known once there is a prompt: [`Positions::rows`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Positions {
    kinds: Kinds,
    places: Vec<Place>,
}

impl Positions {
    /// Every position, the original experiment's choice.
    pub const ALL: Self = Self::of(Kinds::ALL);
    /// Image rows.
    pub const IMAGE: Self = Self::of(Kinds::IMAGE);
    /// No position.
    pub const NONE: Self = Self::of(Kinds::NONE);

    /// All rows of these kinds.
    pub const fn of(kinds: Kinds) -> Self {
        Self {
            kinds,
            places: Vec::new(),
        }
    }

    /// Reads a comma-separated list of
    /// - `all`, `image`, `prompt` (all of the prompt's text, of which `no-special` leaves the special tokens
    ///   out), `special`, `generated`;
    /// - `last`, the prompt's last row; an index of a row of the prompt, such as `5` or `-1`, or a range,
    ///   such as `5..9`, both ends included; negative ones count from the prompt's end;
    /// - `token:TEXT`, every token, in the prompt or generated, whose text is TEXT apart from the space around it;
    /// - `image:N`, the rows of the prompt's N-th image, counted from 1;
    /// - `patch:ROW,COL` and `patch:R0..R1,C0..C1`, image rows by the patches they show, counted from 0 at the
    ///   top left.
    ///
    /// # Errors
    /// An unknown word, or a list that names nothing.
    pub fn parse(list: &str) -> Result<Self> {
        let words = Words::parse(list, Kinds::ALL, |word| {
            Error::invalid(format!("`{word}` is not a position")).with_hint(
                "use `all`, `image`, `prompt`, `special`, `generated`, `last`, an index such as -1, a \
                 range such as 5..9, `token:TEXT`, `image:N`, `patch:ROW,COL`, or a list such as `image,generated` \
                 or `all,no-special`",
            )
        })?;
        let positions = words.positions(words.named.prompt);
        if positions == Self::NONE {
            return Err(
                Error::invalid(format!("`{list}` names no position")).with_hint(
                    "say what to leave the special tokens out of, such as `all,no-special`",
                ),
            );
        }
        Ok(positions)
    }

    /// As [`Positions::parse`], for what is looked at: `all` is the prompt and its image, and special tokens
    /// belong to `prompt` and `all` where `special` is in the list too.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn parse_looked_at(list: &str) -> Result<Self> {
        let all = Kinds {
            generated: false,
            ..Kinds::ALL
        };
        let words = Words::parse(list, all, |word| {
            Error::invalid(format!("`{word}` is not a set of positions")).with_hint(
                "use `image`, `prompt`, `special`, `generated`, `all`, `last`, a position such as 586 \
                 or -3, a range such as 5..9, `token:TEXT`, `image:N`, `patch:ROW,COL`, or a list of them",
            )
        })?;
        let positions = words.positions(false);
        if positions == Self::NONE {
            return Err(Error::invalid(format!("`{list}` names no position"))
                .with_hint("special tokens are left out unless `special` is in the list"));
        }
        Ok(positions)
    }

    /// The kinds whose rows all belong to them.
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// The single places.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The kinds that may have rows among them.
    pub fn possible_kinds(&self) -> Kinds {
        let places = self.places.iter().map(Place::possible_kinds);
        places.fold(self.kinds, Kinds::or)
    }

    /// Looks up the tokens of `token:TEXT`; `ids_of` gives all tokens of a vocabulary that have this text,
    /// apart from the space around it.
    ///
    /// # Errors
    /// A text that no token has; those of `ids_of`.
    pub fn find_tokens(&mut self, mut ids_of: impl FnMut(&str) -> Result<Vec<i32>>) -> Result<()> {
        for place in &mut self.places {
            let Place::Token { text, ids } = place else {
                continue;
            };
            let found = ids_of(text)?;
            if found.is_empty() {
                let what = format!("no token of the model's vocabulary is `{text}`");
                return Err(Error::new(ErrorKind::NoPosition, what)
                    .with_hint("give the text of one token: a word may be several"));
            }
            *ids = Some(found);
        }
        Ok(())
    }

    /// The rows of a run at these positions; `prompt` says what each row of its prompt is.
    ///
    /// # Errors
    /// An index, or a patch, that the prompt does not have; a range whose end comes first; `token:TEXT` whose
    /// tokens were not looked up.
    pub fn rows(&self, prompt: &[Token]) -> Result<RowSet> {
        RowSet::new(self.kinds, &self.places, prompt)
    }
}

impl From<Kinds> for Positions {
    fn from(kinds: Kinds) -> Self {
        Self::of(kinds)
    }
}

impl fmt::Display for Positions {
    /// The words that [`Positions::parse`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = self.kinds.words().into_iter().map(str::to_owned);
        let places = self.places.iter().map(Place::to_string);
        f.write_str(&kinds.chain(places).collect::<Vec<_>>().join(","))
    }
}

/// The words of a list of positions.
struct Words {
    /// The kinds that they name, apart from special tokens.
    named: Kinds,
    /// Whether special tokens are among them, where a word says so.
    special: Option<bool>,
    places: Vec<Place>,
}

impl Words {
    /// Reads a list, of which `all` stands for `all`.
    fn parse(list: &str, all: Kinds, unknown: impl Fn(&str) -> Error) -> Result<Self> {
        let mut words = Self {
            named: Kinds::NONE,
            special: None,
            places: Vec::new(),
        };
        let named = &mut words.named;
        let mut rest = Some(list);
        while let Some(list) = rest {
            // A patch has a comma in it.
            let start = match list.trim_start().starts_with("patch:") {
                true => list.find(',').map_or(list.len(), |comma| comma + 1),
                false => 0,
            };
            let end = list[start..].find(',').map(|comma| start + comma);
            let word = list[..end.unwrap_or(list.len())].trim();
            rest = end.map(|end| &list[end + 1..]);
            match word {
                "all" => {
                    named.image |= all.image;
                    named.prompt |= all.prompt;
                    named.generated |= all.generated;
                }
                "image" => named.image = true,
                "prompt" => named.prompt = true,
                "generated" => named.generated = true,
                "special" => words.special = Some(true),
                "no-special" => words.special = Some(false),
                _ => {
                    let place = Place::parse(word).ok_or_else(|| unknown(word))?;
                    words.places.push(place);
                }
            }
        }
        Ok(words)
    }

    /// What they mean; special tokens are among them where a word, or else `special`, says so.
    fn positions(&self, special: bool) -> Positions {
        Positions {
            kinds: Kinds {
                special: self.special.unwrap_or(special),
                ..self.named
            },
            places: self.places.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
