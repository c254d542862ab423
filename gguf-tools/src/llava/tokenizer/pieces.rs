//! What both formats of tokenizers give.

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

/// What the two tokenizer formats have in common; ids without a piece are `None`.
pub(super) struct Pieces {
    pub(super) tokens: Vec<Option<Token>>,
    pub(super) add_space_prefix: bool,
}

/// Largest `tokenizer.model` and `tokenizer.json`; those of Gemma have up to 34 MB.
pub(super) const MAX_FILE_BYTES: u64 = 48 << 20;
