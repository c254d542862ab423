//! `tokenizer.json`: a byte-pair encoding, as the `tokenizers` library has it.
//!
//! With byte fallback it was made of a SentencePiece model. llama.cpp's tokenizer for those joins the two
//! neighbours whose join is the token with the best score. A BPE model joins the pair with the lowest
//! rank in its list of merges. With a token's score set to minus the lowest rank of a merge that makes
//! it, both come to the same joins, since all merges that make a token stand together.
//!
//! Without, it is one of bytes that are written as letters (GPT-2's kind), such as Llama 3's, and its
//! merges are llama.cpp's. Qwen2's texts are brought into composed form first (NFC), which llama.cpp does not do: those
//! that are not in it already, which is rare, become other tokens.

use std::collections::HashMap;
use std::path::Path;

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::cut::{PreTokenizer, QWEN2};
use super::pieces::{Joins, MAX_FILE_BYTES, Pieces, Token, TokenKind};
use crate::json_file::{for_each, for_each_pair, malformed, parse, read_text};
use crate::llava::config::Architecture;
use crate::{Error, ErrorKind, Result};

/// The score of what no merge makes: single characters, bytes and markers.
const NO_MERGE_SCORE: f32 = -1e9;

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Model<'a>,
    normalizer: Option<&'a RawValue>,
    pre_tokenizer: Option<&'a RawValue>,
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

/// Two parts that are joined. A file has them in an array, or with a space between, as `tokenizers`
/// wrote them before 0.20.
struct Merge([String; 2]);

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
                        Ok(Merge([left, right].map(str::to_owned)))
                    }
                    _ => Err(E::invalid_value(Unexpected::Str(pair), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut parts: A,
            ) -> std::result::Result<Merge, A::Error> {
                let mut merge = Merge(Default::default());
                for (part_idx, place) in merge.0.iter_mut().enumerate() {
                    let part: Option<String> = parts.next_element()?;
                    *place = part.ok_or_else(|| A::Error::invalid_length(part_idx, &self))?;
                }
                Ok(merge)
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
/// A malformed file, an id out of range; of the kind [`ErrorKind::Unsupported`], a model other than BPE, and a way to
/// cut text that is not known.
pub(super) fn read(path: &Path, max_tokens: usize, architecture: Architecture) -> Result<Pieces> {
    let bytes = read_text(path, MAX_FILE_BYTES)?;
    let file: File = serde_json::from_slice(&bytes).map_err(malformed(path))?;
    let model = file.model;
    let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));
    let normalizer: Option<Normalizer> = parse_part(file.normalizer).map_err(malformed(path))?;
    let pre_tokenizer: Option<PreTokenizer> =
        parse_part(file.pre_tokenizer).map_err(malformed(path))?;
    // The field is missing in files of `tokenizers` before 0.10.
    let is_bpe = model.model_type.as_deref().unwrap_or("BPE") == "BPE";
    let cut = pre_tokenizer.as_ref().and_then(PreTokenizer::known_cut);
    let is_plain = |cut: &&str| match &normalizer {
        None => true,
        Some(normalizer) => *cut == QWEN2 && normalizer.kind == "NFC",
    };
    let mut joins = match cut.filter(is_plain) {
        // As llama.cpp's converter writes it.
        _ if is_bpe && model.byte_fallback && architecture == Architecture::Gemma4 => {
            Joins::SpacedMerges { merges: Vec::new() }
        }
        _ if is_bpe && model.byte_fallback => Joins::Scores {
            add_space_prefix: normalizer.is_some_and(|normalizer| normalizer.prepends())
                || pre_tokenizer.is_some_and(|pre_tokenizer| pre_tokenizer.prepends()),
        },
        Some(cut) if is_bpe => Joins::Merges {
            cut,
            merges: Vec::new(),
        },
        _ => {
            let what = "the tokenizer is neither BPE with byte fallback, as Gemma's and Llama 2's are, nor one of Llama 3's, Qwen2's and SmolLM's";
            return Err(refuse(what.to_owned()).of_kind(ErrorKind::Unsupported));
        }
    };

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
        for_each(merges, malformed(path), |Merge(parts)| {
            let rank = ranks.next().expect("a file has fewer than 2^32 bytes");
            if let Joins::Merges { merges, .. } | Joins::SpacedMerges { merges } = &mut joins {
                merges.push(parts.join(" "));
            } else if let Some(entry) = vocab.get_mut(&parts.concat()) {
                entry.rank.get_or_insert(rank);
            }
            Ok(())
        })?;
    }

    let mut tokens: Vec<Option<Token>> = Vec::new();
    for (piece, &Entry { id, rank }) in &vocab {
        let is_byte_fallback = joins.are_of_texts();
        // Gemma's file calls the byte token of the tab by the tab itself.
        let byte_piece = match piece.as_bytes() {
            [byte] if is_byte_fallback => {
                Some(format!("<0x{byte:02X}>")).filter(|name| !vocab.contains_key(name))
            }
            _ => None,
        };
        let piece = byte_piece.as_ref().unwrap_or(piece);
        let kind = if Some(piece) == model.unk_token.as_ref() {
            TokenKind::Unknown
        } else if is_byte_fallback && is_byte(piece) {
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
    Ok(Pieces { tokens, joins })
}

/// A part of the file that has few values, if it is there.
fn parse_part<T: DeserializeOwned>(part: Option<&RawValue>) -> serde_json::Result<Option<T>> {
    part.map(|part| parse(part.get().as_bytes())).transpose()
}

/// Whether a piece stands for one byte: `<0x0A>`.
fn is_byte(piece: &str) -> bool {
    piece
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}
