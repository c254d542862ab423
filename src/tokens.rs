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

impl TokenKind {
    /// Every kind; `kind as usize` is its place here.
    pub(crate) const ALL: [Self; 3] = [Self::Text, Self::Image, Self::Generated];
}

/// One position of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// The id in the vocabulary; an image row has none.
    pub id: Option<i32>,
}

impl Token {
    /// A text token of the prompt.
    pub fn text(id: i32) -> Self {
        Self {
            kind: TokenKind::Text,
            id: Some(id),
        }
    }

    /// An image row.
    pub fn image() -> Self {
        Self {
            kind: TokenKind::Image,
            id: None,
        }
    }

    /// A generated token.
    pub fn generated(id: i32) -> Self {
        Self {
            kind: TokenKind::Generated,
            id: Some(id),
        }
    }
}

/// The kinds of positions that something applies to; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Image rows.
    pub image: bool,
    /// The prompt's text, before generation.
    pub prompt: bool,
    /// Generated tokens.
    pub generated: bool,
}

impl Positions {
    /// Every position, the original experiment's choice.
    pub const ALL: Self = Self {
        image: true,
        prompt: true,
        generated: true,
    };
    /// No position.
    pub const NONE: Self = Self {
        image: false,
        prompt: false,
        generated: false,
    };

    /// Reads `all`, `image`, `prompt`, `generated`, or a comma-separated list of them.
    ///
    /// # Errors
    /// An empty list or an unknown word.
    pub fn parse(list: &str) -> Result<Self> {
        let mut positions = Self::NONE;
        for word in list.split(',') {
            match word.trim() {
                "all" => positions = Self::ALL,
                "image" => positions.image = true,
                "prompt" => positions.prompt = true,
                "generated" => positions.generated = true,
                other => {
                    return Err(Error::invalid(format!("`{other}` is no position"))
                        .with_hint("use `all`, `image`, `prompt`, `generated` or a list such as `image,generated`"));
                }
            }
        }
        Ok(positions)
    }

    /// Whether rows of this kind belong to them.
    pub fn contain(self, kind: TokenKind) -> bool {
        match kind {
            TokenKind::Image => self.image,
            TokenKind::Text => self.prompt,
            TokenKind::Generated => self.generated,
        }
    }

    /// Whether some kind of row belongs to both.
    pub fn overlap(self, other: Self) -> bool {
        let both = |kind: &TokenKind| self.contain(*kind) && other.contain(*kind);
        TokenKind::ALL.iter().any(both)
    }

    /// The words that [`Positions::parse`] reads.
    pub fn words(self) -> Vec<&'static str> {
        if self == Self::ALL {
            return vec!["all"];
        }
        [
            (self.image, "image"),
            (self.prompt, "prompt"),
            (self.generated, "generated"),
        ]
        .into_iter()
        .filter_map(|(on, word)| on.then_some(word))
        .collect()
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
    use super::{Cursor, Positions, Row, Token, TokenKind};

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

    #[test]
    fn positions_are_sets_of_kinds() {
        let check = |words: &str, expected: &[TokenKind], shown: &str| {
            let positions = Positions::parse(words).expect("valid positions");
            for kind in TokenKind::ALL {
                assert_eq!(positions.contain(kind), expected.contains(&kind), "{words}");
            }
            assert_eq!(positions.words().join(","), shown);
        };
        check("all", &TokenKind::ALL, "all");
        check("image", &[TokenKind::Image], "image");
        check("prompt", &[TokenKind::Text], "prompt");
        check(
            "generated, image",
            &[TokenKind::Image, TokenKind::Generated],
            "image,generated",
        );
        assert!(Positions::parse("").is_err());
        assert!(Positions::parse("images").is_err());
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
    }
}
