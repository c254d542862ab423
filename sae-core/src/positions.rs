//! Sets of positions: as words, and as the rows of a run.

use std::fmt;

use crate::token::{Kinds, Token, TokenKind};
use crate::{Error, ErrorKind, Result};

/// Positions that something applies to: kinds of rows, and places of their own.
///
/// Which rows places are is known when there is a prompt: [`Positions::rows`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Positions {
    kinds: Kinds,
    places: Vec<Place>,
}

/// A place in a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// The prompt's last row.
    Last,
    /// The prompt's rows from the first to the second, both included; negative ones count from its end.
    Range(i64, i64),
    /// Every token, of the prompt or generated, whose text is this one without the space around it.
    Token {
        /// The text.
        text: String,
        /// Its tokens' ids; none while they were not looked up ([`Positions::find_tokens`]).
        ids: Option<Vec<i32>>,
    },
    /// Image rows, by their patches' rows and columns: the first and the last of each, both included.
    Patches {
        /// The rows, counted from 0 at the top.
        rows: [usize; 2],
        /// The columns, counted from 0 at the left.
        columns: [usize; 2],
    },
}

/// The rows of a run that [`Positions`] are.
#[derive(Clone, Debug, PartialEq)]
pub struct RowSet {
    kinds: Kinds,
    prompt: Vec<bool>, // for each row of the prompt; empty where kinds say all
    ids: Vec<i32>,     // of generated tokens
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
    /// - `token:TEXT`, every token, of the prompt or generated, whose text is TEXT but for space around it;
    /// - `patch:ROW,COL` and `patch:R0..R1,C0..C1`, image rows by the patches that they show, counted from 0
    ///   at the top left.
    ///
    /// # Errors
    /// An unknown word, or a list that names nothing.
    pub fn parse(list: &str) -> Result<Self> {
        let words = Words::parse(list, Kinds::ALL, |word| {
            Error::invalid(format!("`{word}` is not a position")).with_hint(
                "use `all`, `image`, `prompt`, `special`, `generated`, `last`, an index such as -1, a \
                 range such as 5..9, `token:TEXT`, `patch:ROW,COL`, or a list such as `image,generated` \
                 or `all,no-special`",
            )
        })?;
        let positions = words.positions(words.named.prompt);
        if positions == Self::NONE {
            return Err(
                Error::invalid(format!("`{list}` names no position")).with_hint(
                    "say what the special tokens are left out of, such as `all,no-special`",
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
                 or -3, a range such as 5..9, `token:TEXT`, `patch:ROW,COL`, or a list of them",
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

    /// The places of their own.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The kinds of which some row may belong to them.
    pub fn possible_kinds(&self) -> Kinds {
        let places = self.places.iter().map(Place::possible_kinds);
        places.fold(self.kinds, Kinds::or)
    }

    /// Looks up the tokens of `token:TEXT`; `ids_of` gives all of a vocabulary whose text without the space
    /// around it is this one.
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
                return Err(Error::new(ErrorKind::NoPosition, what).with_hint(
                    "a word may be several tokens; `features --json` of a text with it shows them",
                ));
            }
            *ids = Some(found);
        }
        Ok(())
    }

    /// The rows of a run that they are; `prompt` is what each row of its prompt is.
    ///
    /// # Errors
    /// An index, or a patch, that the prompt does not have; a range whose end comes first; `token:TEXT` whose
    /// tokens were not looked up.
    pub fn rows(&self, prompt: &[Token]) -> Result<RowSet> {
        let mut set = RowSet {
            kinds: self.kinds,
            prompt: Vec::new(),
            ids: Vec::new(),
        };
        if self.places.is_empty() {
            return Ok(set);
        }
        set.prompt = prompt
            .iter()
            .map(|&token| self.kinds.contain(token))
            .collect();
        for place in &self.places {
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

impl Place {
    /// Reads a place; none where it is something else.
    fn parse(word: &str) -> Option<Self> {
        if word == "last" {
            return Some(Self::Last);
        }
        if let Some(text) = word.strip_prefix("token:") {
            let text = text.trim();
            return (!text.is_empty()).then(|| Self::Token {
                text: text.to_owned(),
                ids: None,
            });
        }
        if let Some(patch) = word.strip_prefix("patch:") {
            let (rows, columns) = patch.split_once(',')?;
            let [rows, columns] = [rows, columns].map(ends::<usize>);
            let is_rising = |ends: &[usize; 2]| ends[0] <= ends[1];
            return Some(Self::Patches {
                rows: rows.filter(is_rising)?,
                columns: columns.filter(is_rising)?,
            });
        }
        let [from, to] = ends(word)?;
        Some(Self::Range(from, to))
    }

    fn possible_kinds(&self) -> Kinds {
        let in_prompt = Kinds {
            generated: false,
            ..Kinds::ALL
        };
        match self {
            Self::Last | Self::Range(..) => in_prompt,
            Self::Token { .. } => Kinds {
                image: false,
                ..Kinds::ALL
            },
            Self::Patches { .. } => Kinds::IMAGE,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |[from, to]: [usize; 2]| match from == to {
            true => from.to_string(),
            false => format!("{from}..{to}"),
        };
        match self {
            Self::Last => f.write_str("last"),
            Self::Range(from, to) if from == to => write!(f, "{from}"),
            Self::Range(from, to) => write!(f, "{from}..{to}"),
            Self::Token { text, .. } => write!(f, "token:{text}"),
            Self::Patches { rows, columns } => {
                write!(f, "patch:{},{}", range(*rows), range(*columns))
            }
        }
    }
}

impl RowSet {
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

/// A number, or two with `..` between.
fn ends<T: std::str::FromStr>(word: &str) -> Option<[T; 2]> {
    let (from, to) = word.split_once("..").unwrap_or((word, word));
    let number = |text: &str| text.trim().parse().ok();
    Some([number(from)?, number(to)?])
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

/// Refuses a patch that no image of the prompt has.
fn check_patch([row, column]: [usize; 2], prompt: &[Token]) -> Result<()> {
    let patches = || prompt.iter().filter_map(|token| token.patch);
    if patches().any(|patch| patch == [row, column]) {
        return Ok(());
    }
    let what = format!("no patch {row},{column}");
    let last = patches().reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]);
    Err(match last {
        Some([rows, columns]) => {
            Error::invalid(format!("{what}: the image has other patches in the prompt"))
                .with_hint(format!("use rows 0 to {rows} and columns 0 to {columns}"))
        }
        None => Error::invalid(format!("{what}: there is no image in the prompt"))
            .with_hint("give an image"),
    })
}

/// The words of a list of positions.
struct Words {
    /// The kinds that they name, but for special tokens.
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
            // A patch has a comma of its own.
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
