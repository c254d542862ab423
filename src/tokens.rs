//! What each row at the hook is, sets of such rows, and a cursor that follows the rows
//! as llama.cpp hands them out.

use std::fmt;

use crate::{Error, Result};

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A text token of the prompt.
    Text,
    /// A patch of the image.
    Image,
    /// A token that the model generated.
    Generated,
}

/// One position of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// The id in the vocabulary; an image row has none.
    pub id: Option<i32>,
    /// Whether it is a special token of the prompt: one that begins, ends or structures texts
    /// ([`Model::is_special`](crate::llama::Model::is_special)).
    pub is_special: bool,
}

impl Token {
    /// A text token of the prompt that is not special.
    pub const fn text(id: i32) -> Self {
        Self {
            kind: TokenKind::Text,
            id: Some(id),
            is_special: false,
        }
    }

    /// A special token of the prompt.
    pub const fn special(id: i32) -> Self {
        Self {
            is_special: true,
            ..Self::text(id)
        }
    }

    /// An image row.
    pub const fn image() -> Self {
        Self {
            kind: TokenKind::Image,
            id: None,
            is_special: false,
        }
    }

    /// A generated token.
    pub const fn generated(id: i32) -> Self {
        Self {
            kind: TokenKind::Generated,
            id: Some(id),
            is_special: false,
        }
    }

    pub(crate) fn part(self) -> Part {
        match self.kind {
            TokenKind::Text if self.is_special => Part::Special,
            TokenKind::Text => Part::Prompt,
            TokenKind::Image => Part::Image,
            TokenKind::Generated => Part::Generated,
        }
    }
}

/// The sets of rows that [`Positions`] are put together from; each row is in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Prompt,
    Special,
    Image,
    Generated,
}

impl Part {
    /// Every part; `part as usize` is its place here.
    pub(crate) const ALL: [Self; 4] = [Self::Prompt, Self::Special, Self::Image, Self::Generated];
}

/// The kinds of positions that something applies to; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Image rows.
    pub image: bool,
    /// The prompt's text, before generation, but for its special tokens.
    pub prompt: bool,
    /// The prompt's special tokens, such as `<bos>` and the marks of turns.
    pub special: bool,
    /// Generated tokens.
    pub generated: bool,
}

impl Positions {
    /// Every position, the original experiment's choice.
    pub const ALL: Self = Self {
        image: true,
        prompt: true,
        special: true,
        generated: true,
    };
    /// Image rows.
    pub const IMAGE: Self = Self {
        image: true,
        ..Self::NONE
    };
    /// No position.
    pub const NONE: Self = Self {
        image: false,
        prompt: false,
        special: false,
        generated: false,
    };

    /// Reads `all`, `image`, `prompt`, `special`, `generated`, or a comma-separated list of them.
    /// `prompt` is all of the prompt's text, of which `no-special` leaves the special tokens out.
    ///
    /// # Errors
    /// An unknown word, or a list that names nothing.
    pub fn parse(list: &str) -> Result<Self> {
        let mut words = Words::default();
        for word in list.split(',') {
            if !words.take(word.trim(), Self::ALL) {
                return Err(
                    Error::invalid(format!("`{}` is not a position", word.trim())).with_hint(
                        "use `all`, `image`, `prompt`, `special`, `generated`, or a list such as \
                     `image,generated` or `all,no-special`",
                    ),
                );
            }
        }
        let named = words.named;
        let positions = Self {
            special: words.special.unwrap_or(named.prompt),
            ..named
        };
        if positions == Self::NONE {
            return Err(
                Error::invalid(format!("`{list}` names no position")).with_hint(
                    "say what the special tokens are left out of, such as `all,no-special`",
                ),
            );
        }
        Ok(positions)
    }

    /// Whether this position belongs to them.
    pub fn contain(self, token: Token) -> bool {
        self.contain_part(token.part())
    }

    /// Whether some position of this kind does.
    pub fn contain_some(self, kind: TokenKind) -> bool {
        match kind {
            TokenKind::Image => self.image,
            TokenKind::Text => self.prompt || self.special,
            TokenKind::Generated => self.generated,
        }
    }

    pub(crate) fn contain_part(self, part: Part) -> bool {
        match part {
            Part::Image => self.image,
            Part::Prompt => self.prompt,
            Part::Special => self.special,
            Part::Generated => self.generated,
        }
    }

    /// Whether some position belongs to both.
    pub fn overlap(self, other: Self) -> bool {
        let both = |part: &Part| self.contain_part(*part) && other.contain_part(*part);
        Part::ALL.iter().any(both)
    }

    /// The words that [`Positions::parse`] reads.
    pub fn words(self) -> Vec<&'static str> {
        let named = match self {
            Self {
                image: true,
                prompt: true,
                generated: true,
                ..
            } => vec![(true, "all")],
            _ => vec![
                (self.image, "image"),
                (self.prompt, "prompt"),
                (self.special && !self.prompt, "special"),
                (self.generated, "generated"),
            ],
        };
        let left_out = (self.prompt && !self.special, "no-special");
        named
            .into_iter()
            .chain([left_out])
            .filter_map(|(on, word)| on.then_some(word))
            .collect()
    }
}

/// The words of a list of positions, as far as they were read.
#[derive(Default)]
pub(crate) struct Words {
    /// What they name, but for special tokens.
    pub(crate) named: Positions,
    /// Whether special tokens are among them, where a word says so.
    pub(crate) special: Option<bool>,
}

impl Words {
    /// Takes a word, of which `all` stands for `all`; tells whether it is known.
    pub(crate) fn take(&mut self, word: &str, all: Positions) -> bool {
        let named = &mut self.named;
        match word {
            "all" => {
                named.image |= all.image;
                named.prompt |= all.prompt;
                named.generated |= all.generated;
            }
            "image" => named.image = true,
            "prompt" => named.prompt = true,
            "generated" => named.generated = true,
            "special" => self.special = Some(true),
            "no-special" => self.special = Some(false),
            _ => return false,
        }
        true
    }
}

/// Follows a run's rows: submitted in batches, seen by the hook in ubatches of any size.
///
/// llama.cpp does not say which rows a ubatch holds. With one cache for all sequences it keeps their
/// order, so counting is enough, and [`Cursor::finish_decode`] proves after each decode that nothing was
/// missed or seen twice.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    rows: Vec<Row>,
    n_seen: usize,
}

/// A row that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The sequence that it belongs to.
    pub(crate) sequence: usize,
    /// What it is.
    pub(crate) token: Token,
}

impl Cursor {
    /// Announces the rows of the next decode.
    pub(crate) fn submit(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows.extend(rows);
    }

    /// Takes the next `n_rows` rows.
    ///
    /// # Errors
    /// When more rows come than were announced.
    pub(crate) fn advance(&mut self, n_rows: usize) -> Result<&[Row]> {
        let start = self.n_seen;
        let end = start + n_rows;
        if end > self.rows.len() {
            return Err(Error::invalid(format!(
                "the hook saw row {} of {} submitted rows",
                end - 1,
                self.rows.len()
            )));
        }
        self.n_seen = end;
        Ok(&self.rows[start..end])
    }

    /// Checks that every announced row was seen.
    ///
    /// # Errors
    /// When rows are missing: the graph has no such node, or llama.cpp left rows out.
    pub(crate) fn finish_decode(&self, node: impl fmt::Display) -> Result<()> {
        if self.n_seen == self.rows.len() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the hook at {node} saw {} of {} submitted rows",
            self.n_seen,
            self.rows.len()
        ))
        .with_hint("this model's graph does not show its rows there"))
    }

    /// Forgets everything, for a new run.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.n_seen = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Positions, Row, Token};

    #[test]
    fn rows_are_followed_across_ubatches() {
        let mut cursor = Cursor::default();
        let row = |sequence, token| Row { sequence, token };
        let rows = [
            row(0, Token::text(2)),
            row(0, Token::image()),
            row(1, Token::image()),
        ];
        cursor.submit(rows);
        assert_eq!(cursor.advance(1).expect("a row is left"), &rows[..1]);
        assert!(cursor.finish_decode("l_out-0").is_err());
        assert_eq!(cursor.advance(2).expect("two rows are left"), &rows[1..]);
        assert!(cursor.finish_decode("l_out-0").is_ok());
        assert!(cursor.advance(1).is_err());
    }

    /// A position of each kind.
    const TOKENS: [Token; 4] = [
        Token::text(5),
        Token::special(2),
        Token::image(),
        Token::generated(5),
    ];

    #[test]
    fn positions_are_sets_of_kinds() {
        let check = |words: &str, expected: &[Token], shown: &str| {
            let positions = Positions::parse(words).expect("valid positions");
            for token in TOKENS {
                assert_eq!(
                    positions.contain(token),
                    expected.contains(&token),
                    "{words}"
                );
            }
            assert_eq!(positions.words().join(","), shown);
            assert_eq!(Positions::parse(shown).expect("valid positions"), positions);
        };
        let [text, special, image, generated] = TOKENS;
        check("all", &TOKENS, "all");
        check("image", &[image], "image");
        check("prompt", &[text, special], "prompt");
        check("generated, image", &[image, generated], "image,generated");
        check("special", &[special], "special");
        check("special,image", &[special, image], "image,special");
        check("prompt,no-special", &[text], "prompt,no-special");
        check(
            "no-special,all",
            &[text, image, generated],
            "all,no-special",
        );
        check("image,no-special", &[image], "image");
        for bad in ["", "images", "no-special", "image,"] {
            assert!(Positions::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_overlap_where_they_share_a_kind() {
        let check = |a: &str, b: &str, expected: bool| {
            let parse = |words| Positions::parse(words).expect("valid positions");
            assert_eq!(parse(a).overlap(parse(b)), expected, "{a} and {b}");
        };
        check("all", "prompt", true);
        check("image,generated", "generated", true);
        check("image,generated", "prompt", false);
        check("prompt", "special", true);
        check("prompt,no-special", "special", false);
    }
}
