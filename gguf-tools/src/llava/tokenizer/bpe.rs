//! `tokenizer.json`: a byte-pair encoding with byte fallback, as the `tokenizers` library has it.
//!
//! llama.cpp's tokenizer joins the two neighbours whose join is the token with the best score. A
//! BPE model joins the pair with the lowest rank in its list of merges. With a token's score set
//! to minus the lowest rank of a merge that makes it, both come to the same joins: the list was made
//! of a SentencePiece model, where all merges that make a token stand together.

use std::collections::HashMap;
use std::path::Path;

use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::pieces::{MAX_FILE_BYTES, Pieces, Token, TokenKind};
use crate::json_file::{for_each, for_each_pair, malformed, parse, read_text};
use crate::{Error, Result};

/// The score of what no merge makes: single characters, bytes and markers.
const NO_MERGE_SCORE: f32 = -1e9;

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
    normalizer: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    model_type: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    #[serde(borrow)]
    vocab: &'a RawValue,
    merges: Option<&'a RawValue>,
}

/// What a merge makes. A file has both parts in an array, or with a space between, as `tokenizers`
/// wrote them before 0.20.
struct Merge(String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Merge;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a merge of two parts")
            }

            fn visit_str<E: serde::de::Error>(self, pair: &str) -> std::result::Result<Merge, E> {
                match pair.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge([left, right].concat()))
                    }
                    _ => Err(E::invalid_value(Unexpected::Str(pair), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut parts: A,
            ) -> std::result::Result<Merge, A::Error> {
                let mut made = String::new();
                for part_idx in 0..2 {
                    let part: Option<String> = parts.next_element()?;
                    made += &part.ok_or_else(|| A::Error::invalid_length(part_idx, &self))?;
                }
                Ok(Merge(made))
            }
        }
        json.deserialize_any(Parts)
    }
}

/// A token of the vocabulary.
struct Entry {
    id: usize,
    /// The lowest of a merge that makes it.
    rank: Option<u32>,
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
    let bytes = read_text(path, MAX_FILE_BYTES)?;
    let File { model, normalizer } = serde_json::from_slice(&bytes).map_err(malformed(path))?;
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    // The field is missing in files of `tokenizers` before 0.10.
    if model.model_type.as_deref().unwrap_or("BPE") != "BPE" || !model.byte_fallback {
        return Err(refuse(
            "the tokenizer is not BPE with byte fallback, as Gemma's is".to_owned(),
        ));
    }

    let mut vocab: HashMap<String, Entry> = HashMap::new();
    for_each_pair(model.vocab, malformed(path), |piece, id: usize| {
        if id >= max_tokens {
            return Err(refuse(format!(
                "token `{piece}` has id {id}, but the embedding has only {max_tokens} rows"
            )));
        }
        vocab.insert(piece, Entry { id, rank: None });
        if vocab.len() > max_tokens {
            return Err(refuse(format!(
                "it has more tokens than the embedding has rows, {max_tokens}"
            )));
        }
        Ok(())
    })?;
    if let Some(merges) = model.merges {
        let mut ranks = 0..;
        for_each(merges, malformed(path), |Merge(made)| {
            let rank = ranks.next().expect("a file has fewer than 2^32 bytes");
            if let Some(entry) = vocab.get_mut(&made) {
                entry.rank.get_or_insert(rank);
            }
            Ok(())
        })?;
    }

    let mut tokens: Vec<Option<Token>> = Vec::new();
    for (piece, &Entry { id, rank }) in &vocab {
        // Gemma's file calls the byte token of the tab by the tab itself.
        let byte_piece = match piece.as_bytes() {
            [byte] => Some(format!("<0x{byte:02X}>")).filter(|name| !vocab.contains_key(name)),
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
            score: rank.map_or(NO_MERGE_SCORE, |rank| -(rank as f32)),
            kind,
        };
        if let Some(twin) = tokens[id].replace(token) {
            return Err(refuse(format!(
                "tokens `{piece}` and `{}` both have id {id}",
                twin.piece
            )));
        }
    }
    let normalizer: Option<Normalizer> = normalizer
        .map(|normalizer| parse(normalizer.get().as_bytes()))
        .transpose()
        .map_err(malformed(path))?;
    Ok(Pieces {
        tokens,
        add_space_prefix: normalizer.is_some_and(|normalizer| normalizer.prepends()),
    })
}

/// Whether a piece stands for one byte: `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    piece
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
