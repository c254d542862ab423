//! What each row at a hook is, and sets of such rows.

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
    /// Whether it is a special token of the prompt: one that begins, ends or structures texts.
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

#[cfg(test)]
mod tests {
    use super::{Positions, Token};

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
