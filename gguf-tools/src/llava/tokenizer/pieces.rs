//! What all formats of tokenizers give.

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) piece: String,
    pub(super) score: f32,
    pub(super) kind: TokenKind,
}

/// `llama_token_type` of llama.cpp, which took the numbers from SentencePiece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// What a tokenizer's file has; ids without a piece are `None`.
pub(super) struct Pieces {
    pub(super) tokens: Vec<Option<Token>>,
    pub(super) joins: Joins,
}

/// How pieces are joined.
#[derive(Debug)]
pub(super) enum Joins {
    /// By the best score, in texts whose spaces are `▁` (`tokenizer.ggml.model = "llama"`).
    Scores {
        /// Whether a text is tokenized as if it began with a space.
        add_space_prefix: bool,
    },
    /// By a list of pairs, in texts whose spaces are `▁` (`tokenizer.ggml.model = "gemma4"`).
    SpacedMerges {
        /// Both parts of each, with a space between.
        merges: Vec<String>,
    },
    /// By a list of pairs, in pieces of text whose bytes are written as letters
    /// (`tokenizer.ggml.model = "gpt2"`).
    Merges {
        /// llama.cpp's name for the way in which text is cut first.
        cut: &'static str,
        /// Both parts of each, with a space between.
        merges: Vec<String>,
    },
}

impl Joins {
    /// What llama.cpp calls such a tokenizer, and its way to cut texts.
    pub(super) fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Scores { .. } => ("llama", "default"),
            Self::SpacedMerges { .. } => ("gemma4", "gemma4"),
            Self::Merges { cut, .. } => ("gpt2", cut),
        }
    }

    /// Whether pieces are of texts whose spaces are `▁`, with tokens such as `<0x0A>` for bytes.
    pub(super) fn are_of_texts(&self) -> bool {
        matches!(self, Self::Scores { .. } | Self::SpacedMerges { .. })
    }
}

/// Largest `tokenizer.model` and `tokenizer.json`; those of Gemma have up to 34 MB.
pub(super) const MAX_FILE_BYTES: u64 = 48 << 20;
