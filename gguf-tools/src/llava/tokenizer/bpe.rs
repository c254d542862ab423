//! `tokenizer.json`: a byte-pair encoding with byte fallback, as the `tokenizers` library has it.
//!
//! llama.cpp's tokenizer joins the two neighbours whose join is the token with the best score. A
//! BPE model joins the pair with the lowest rank in its list of merges. With a token's score set
//! to minus the lowest rank of a merge that makes it, both come to the same joins: the list was made
//! of a SentencePiece model, where all merges that make a token stand together.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::{Pieces, Token, TokenKind};
use crate::input_file::read_json;
use crate::{Error, Result};

/// The score of what no merge makes: single characters, bytes and markers.
const NO_MERGE_SCORE: f32 = -1e9;

#[derive(Deserialize)]
struct File {
    model: Model,
    normalizer: Option<Normalizer>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    model_type: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    vocab: HashMap<String, usize>,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    /// Both parts with a space between, as `tokenizers` wrote them before 0.20.
    Text(String),
}

#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    normalizers: Vec<Normalizer>,
}

impl Normalizer {
    fn prepends(&self) -> bool {
        self.kind == "Prepend" || self.normalizers.iter().any(Normalizer::prepends)
    }
}

/// Reads the vocabulary, of at most `max_tokens`; the added tokens are read elsewhere.
///
/// # Errors
/// A malformed file, a model other than BPE with byte fallback, an id out of range.
pub(super) fn read(path: &Path, max_tokens: usize) -> Result<Pieces> {
    let file: File = read_json(path)?;
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    let model = file.model;
    // The field is missing in files of `tokenizers` before 0.10.
    if model.model_type.as_deref().unwrap_or("BPE") != "BPE" || !model.byte_fallback {
        return Err(refuse(
            "the tokenizer is not BPE with byte fallback, as Gemma's is".to_owned(),
        ));
    }

    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(model.merges.len());
    for (rank, merge) in model.merges.into_iter().enumerate() {
        let made = match merge {
            Merge::Pair(left, right) => left + &right,
            Merge::Text(pair) => match pair.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => format!("{left}{right}"),
                _ => {
                    return Err(refuse(format!(
                        "merge {rank} is `{pair}`, expected two parts"
                    )));
                }
            },
        };
        ranks.entry(made).or_insert(rank);
    }

    let mut tokens: Vec<Option<Token>> = Vec::new();
    for (piece, &id) in &model.vocab {
        if id >= max_tokens {
            return Err(refuse(format!(
                "token `{piece}` has id {id}, but the embedding has only {max_tokens} rows"
            )));
        }
        // Gemma's file calls the byte token of the tab by the tab itself.
        let byte_piece = match piece.as_bytes() {
            [byte] => {
                Some(format!("<0x{byte:02X}>")).filter(|name| !model.vocab.contains_key(name))
            }
            _ => None,
        };
        let piece = byte_piece.as_ref().unwrap_or(piece);
        let kind = if Some(piece) == model.unk_token.as_ref() {
            TokenKind::Unknown
        } else if is_byte(piece) {
            TokenKind::Byte
        } else {
            TokenKind::Normal
        };
        if id >= tokens.len() {
            tokens.resize(id + 1, None);
        }
        let token = Token {
            piece: piece.clone(),
            score: ranks
                .get(piece)
                .map_or(NO_MERGE_SCORE, |&rank| -(rank as f32)),
            kind,
        };
        if let Some(twin) = tokens[id].replace(token) {
            return Err(refuse(format!(
                "tokens `{piece}` and `{}` both have id {id}",
                twin.piece
            )));
        }
    }
    Ok(Pieces {
        tokens,
        add_space_prefix: file
            .normalizer
            .is_some_and(|normalizer| normalizer.prepends()),
    })
}

/// Whether a piece stands for one byte: `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    piece
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
