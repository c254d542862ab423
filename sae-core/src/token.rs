//! What each row at a hook is, and kinds of such rows.

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
    /// Its name, as reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Generated => "generated",
        }
    }
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
    /// The row and the column of an image row's patch, counted from 0 at the top left, where they are known.
    pub patch: Option<[usize; 2]>,
    /// Which of the prompt's images an image row belongs to, counted from 0.
    pub image: Option<usize>,
}

impl Token {
    /// A text token of the prompt that is not special.
    pub const fn text(id: i32) -> Self {
        Self {
            kind: TokenKind::Text,
            id: Some(id),
            is_special: false,
            patch: None,
            image: None,
        }
    }

    /// A special token of the prompt.
    pub const fn special(id: i32) -> Self {
        Self {
            is_special: true,
            ..Self::text(id)
        }
    }

    /// A row of the prompt's first image, of a patch in this row and column.
    pub const fn patch(row: usize, column: usize) -> Self {
        Self {
            patch: Some([row, column]),
            ..Self::image()
        }
    }

    /// A row of the prompt's first image.
    pub const fn image() -> Self {
        Self {
            kind: TokenKind::Image,
            id: None,
            is_special: false,
            patch: None,
            image: Some(0),
        }
    }

    /// The same row of another of the prompt's images, counted from 0.
    #[must_use]
    pub const fn of_image(self, image: usize) -> Self {
        Self {
            image: Some(image),
            ..self
        }
    }

    /// A generated token.
    pub const fn generated(id: i32) -> Self {
        Self {
            kind: TokenKind::Generated,
            id: Some(id),
            is_special: false,
            patch: None,
            image: None,
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

/// The sets of rows that [`Kinds`] are put together from; each row is in one of them.
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

/// Kinds of rows; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Image rows.
    pub image: bool,
    /// The prompt's text, before generation, without its special tokens.
    pub prompt: bool,
    /// The prompt's special tokens, such as `<bos>` and the marks of turns.
    pub special: bool,
    /// Generated tokens.
    pub generated: bool,
}

impl Kinds {
    /// Every row.
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
    /// The prompt's text without its special tokens.
    pub const PROMPT: Self = Self {
        prompt: true,
        ..Self::NONE
    };
    /// No row.
    pub const NONE: Self = Self {
        image: false,
        prompt: false,
        special: false,
        generated: false,
    };

    /// Whether this row is among them.
    pub fn contain(self, token: Token) -> bool {
        self.contain_part(token.part())
    }

    /// Whether some row of this kind is.
    pub fn contain_some(self, kind: TokenKind) -> bool {
        match kind {
            TokenKind::Image => self.image,
            TokenKind::Text => self.prompt || self.special,
            TokenKind::Generated => self.generated,
        }
    }

    /// Those of either.
    pub fn or(self, other: Self) -> Self {
        Self {
            image: self.image || other.image,
            prompt: self.prompt || other.prompt,
            special: self.special || other.special,
            generated: self.generated || other.generated,
        }
    }

    /// Whether some row belongs to both.
    pub fn overlap(self, other: Self) -> bool {
        let both = |part: &Part| self.contain_part(*part) && other.contain_part(*part);
        Part::ALL.iter().any(both)
    }

    pub(crate) fn contain_part(self, part: Part) -> bool {
        match part {
            Part::Image => self.image,
            Part::Prompt => self.prompt,
            Part::Special => self.special,
            Part::Generated => self.generated,
        }
    }

    /// Their words, which [`Positions::parse`](crate::Positions::parse) reads.
    pub(crate) fn words(self) -> Vec<&'static str> {
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
        let words = named.into_iter().chain([left_out]);
        words.filter_map(|(on, word)| on.then_some(word)).collect()
    }
}
