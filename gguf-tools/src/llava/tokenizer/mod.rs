//! The tokenizer of a checkpoint as llama.cpp needs it: a piece and a kind for every row of the
//! embedding, and how pieces are joined.

mod bpe;
mod chat_template;
mod cut;
mod pieces;
mod sentence_piece;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use self::pieces::{Joins, MAX_FILE_BYTES, Pieces, Token, TokenKind};
use super::config::{Architecture, OneOrSeveral, TextConfig};
use crate::gguf::Writer;
use crate::json_file::{for_each, malformed, read_optional_json, read_text};
use crate::{Error, Result};

/// What llama.cpp needs to know to turn text into ids and back.
#[derive(Debug)]
pub(super) struct Tokenizer {
    /// By id; as many as the embedding has rows.
    tokens: Vec<Token>,
    bos_id: usize,
    eos_id: usize,
    /// Ends a turn, as `eos_id` does.
    eot_id: Option<usize>,
    unk_id: Option<usize>,
    pad_id: Option<usize>,
    joins: Joins,
    chat_template: Option<String>,
    /// The file that the pieces are from.
    pub(super) source: &'static str,
}

/// The score of markers and fillers, which no merge makes.
const MARKER_SCORE: f32 = -1000.0;

/// Gemma's markers of a turn: control tokens even where a file calls them plain text.
const MARKERS: [&str; 2] = ["<start_of_turn>", "<end_of_turn>"];

/// What ends a turn of Gemma, Llama 3, SmolVLM and Qwen, where no generation settings say it.
const ENDS_OF_TURN: [&str; 5] = [
    "<turn|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<end_of_utterance>",
    "<|im_end|>",
];

impl Tokenizer {
    /// Reads `tokenizer.model` or, without it, `tokenizer.json`, and the tokens added to it.
    ///
    /// # Errors
    /// Missing or malformed files, more tokens than the embedding has rows, a piece that stands
    /// twice, a missing byte token; of the kind [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), a
    /// tokenizer that is not converted.
    pub(super) fn read(dir: &Path, config: &TextConfig, image_token_id: usize) -> Result<Self> {
        let refuse =
            |what: String| Error::invalid(format!("the tokenizer in `{}`: {what}", dir.display()));
        let n_rows = config.vocab_size;
        let settings: Settings =
            read_optional_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let (source, Pieces { mut tokens, joins }) = read_pieces(dir, n_rows, config.architecture)?;
        for (id, added) in added_tokens(dir, &settings, n_rows)? {
            if id >= tokens.len() {
                tokens.resize(id + 1, None);
            }
            added.put(&mut tokens[id]);
        }
        tokens.resize(n_rows, None);

        let mut special = settings.special_tokens();
        special.extend(MARKERS);
        let tokens: Vec<Token> = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| {
                let token = token.unwrap_or_else(|| Token::filler(id));
                let is_special = special.contains(token.piece.as_str()) || id == image_token_id;
                token.classified(is_special, &joins)
            })
            .collect();
        let ids = ids(&tokens, &joins).map_err(refuse)?;

        let named = |name: &str, default: Option<usize>| {
            let piece = settings.named(name);
            let id = piece.and_then(|piece| ids.get(piece).copied()).or(default);
            match id {
                Some(id) if id >= n_rows => Err(refuse(format!(
                    "`{name}` is {id}, but the embedding has only {n_rows} rows"
                ))),
                id => Ok(id),
            }
        };
        let id_of = |name: &str, default: usize| {
            named(name, Some(default)).map(|id| id.expect("it has a default"))
        };
        let eos_id = id_of("eos_token", config.eos_token_id)?;
        let generation: Option<Generation> =
            read_optional_json(&dir.join("generation_config.json"))?;
        let end_ids = generation.and_then(|generation| generation.eos_token_id);
        Ok(Self {
            bos_id: id_of("bos_token", config.bos_token_id)?,
            eos_id,
            eot_id: end_ids
                .iter()
                .flat_map(OneOrSeveral::as_slice)
                .filter_map(|&id| usize::try_from(id).ok())
                .find(|&id| id != eos_id && id < n_rows)
                .or(ENDS_OF_TURN
                    .iter()
                    .find_map(|piece| ids.get(piece).copied())),
            unk_id: tokens
                .iter()
                .position(|token| token.kind == TokenKind::Unknown),
            pad_id: named("pad_token", config.pad_token_id)?,
            chat_template: chat_template::read(dir, config.architecture)?,
            source,
            tokens,
            joins,
        })
    }

    /// Writes the `tokenizer.*` keys, as `src/llama-vocab.cpp` of llama.cpp reads them.
    pub(super) fn write_metadata(self, writer: &mut Writer) {
        let id = |id: usize| u32::try_from(id).expect("ids are below 2^24 rows");
        let scores: Vec<f32> = self.tokens.iter().map(|token| token.score).collect();
        let kinds: Vec<i32> = self.tokens.iter().map(|token| token.kind as i32).collect();
        let fillers: Vec<i32> = (0i32..)
            .zip(&self.tokens)
            .filter(|(_, token)| token.kind == TokenKind::Unused)
            .map(|(id, _)| id)
            .collect();
        let (model, cut) = self.joins.names();
        let adds_bos = cut::adds_bos(cut);
        writer.set("tokenizer.ggml.model", model);
        writer.set("tokenizer.ggml.pre", cut);
        let pieces: Vec<String> = self.tokens.into_iter().map(|token| token.piece).collect();
        writer.set("tokenizer.ggml.tokens", pieces);
        if let Joins::Scores { .. } = self.joins {
            writer.set("tokenizer.ggml.scores", scores);
        }
        writer.set("tokenizer.ggml.token_type", kinds);
        writer.set("tokenizer.ggml.bos_token_id", id(self.bos_id));
        writer.set("tokenizer.ggml.eos_token_id", id(self.eos_id));
        if let Some(pad_id) = self.pad_id {
            writer.set("tokenizer.ggml.padding_token_id", id(pad_id));
        }
        if let Some(eot_id) = self.eot_id {
            writer.set("tokenizer.ggml.eot_token_id", id(eot_id));
        }
        if let Some(unk_id) = self.unk_id {
            writer.set("tokenizer.ggml.unknown_token_id", id(unk_id));
        }
        // Rows of the embedding that no token has: samplers must never choose them.
        if !fillers.is_empty() {
            writer.set("tokenizer.ggml.suppress_tokens", fillers);
        }
        writer.set("tokenizer.ggml.add_bos_token", adds_bos);
        writer.set("tokenizer.ggml.add_eos_token", false);
        match self.joins {
            Joins::Scores { add_space_prefix } => {
                writer.set("tokenizer.ggml.add_space_prefix", add_space_prefix);
            }
            Joins::Merges { merges, .. } | Joins::SpacedMerges { merges } => {
                writer.set("tokenizer.ggml.merges", merges);
            }
        }
        if let Some(chat_template) = self.chat_template {
            writer.set("tokenizer.chat_template", chat_template);
        }
    }
}

impl Token {
    /// A row of the embedding that no token has.
    fn filler(id: usize) -> Self {
        Self {
            piece: format!("[PAD{id}]"),
            score: MARKER_SCORE,
            kind: TokenKind::Unused,
        }
    }

    /// The token with the kind by which llama.cpp treats it as transformers does.
    fn classified(mut self, is_special: bool, joins: &Joins) -> Self {
        let is_text = matches!(self.kind, TokenKind::Normal | TokenKind::UserDefined);
        if is_text && is_special {
            self.kind = TokenKind::Control;
        } else if self.kind == TokenKind::UserDefined && joins.are_of_texts() {
            if self.piece.chars().all(|c| c == '▁') {
                // Runs of spaces have scores that join them before anything else.
                self.kind = TokenKind::Normal;
            } else {
                // llama.cpp looks for such tokens in the text as it was typed.
                self.piece = self.piece.replace('▁', " ");
            }
        }
        self
    }
}

/// The pieces, and the name of the file that has them.
fn read_pieces(
    dir: &Path,
    max_tokens: usize,
    architecture: Architecture,
) -> Result<(&'static str, Pieces)> {
    const MODEL: &str = "tokenizer.model";
    const JSON: &str = "tokenizer.json";
    let (model_path, json_path) = (dir.join(MODEL), dir.join(JSON));
    if model_path.exists() {
        return Ok((MODEL, sentence_piece::read(&model_path, max_tokens)?));
    }
    if json_path.exists() {
        return Ok((JSON, bpe::read(&json_path, max_tokens, architecture)?));
    }
    Err(Error::invalid(format!(
        "`{}` has neither `{MODEL}` nor `{JSON}`",
        dir.display()
    )))
}

/// The ids by piece; llama.cpp aborts if a piece stands twice, and where a character without a token
/// has no tokens of bytes either, it throws or leaves it out.
fn ids<'a>(
    tokens: &'a [Token],
    joins: &Joins,
) -> std::result::Result<HashMap<&'a str, usize>, String> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(twin) = ids.insert(token.piece.as_str(), id) {
            return Err(format!("tokens {twin} and {id} are both `{}`", token.piece));
        }
    }
    let mut others = 0x100..;
    for byte in 0..=u8::MAX {
        let piece = match joins {
            Joins::Scores { .. } | Joins::SpacedMerges { .. } => format!("<0x{byte:02X}>"),
            // Bytes that are no visible letters are written as ones beyond (`bytes_to_unicode` in GPT-2).
            Joins::Merges { .. } => match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
                _ => char::from_u32(others.next().expect("endless"))
                    .expect("a letter")
                    .to_string(),
            },
        };
        if !ids.contains_key(piece.as_str()) {
            return Err(format!("the byte token `{piece}` is missing"));
        }
    }
    Ok(ids)
}

/// A token that is not part of the trained model.
#[derive(Deserialize)]
struct AddedToken {
    id: Option<usize>,
    content: String,
    #[serde(default)]
    special: bool,
}

impl AddedToken {
    /// Gives the token its place; where the trained model has it there already, only its kind
    /// changes.
    fn put(self, slot: &mut Option<Token>) {
        let kind = if self.special {
            TokenKind::Control
        } else {
            TokenKind::UserDefined
        };
        match slot {
            Some(token) if token.piece == self.content => {
                if matches!(token.kind, TokenKind::Normal | TokenKind::UserDefined) {
                    token.kind = kind;
                }
            }
            _ => {
                *slot = Some(Token {
                    piece: self.content,
                    score: MARKER_SCORE,
                    kind,
                })
            }
        }
    }
}

/// `tokenizer_config.json`.
#[derive(Default, Deserialize)]
struct Settings {
    added_tokens_decoder: Option<BTreeMap<usize, AddedToken>>,
    /// `bos_token` and its like, and the lists of further special tokens.
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl Settings {
    /// The piece of a setting such as `bos_token`: a text, or an object with `content`.
    fn named(&self, name: &str) -> Option<&str> {
        piece(self.other.get(name)?)
    }

    /// The pieces that are special by one of the settings.
    fn special_tokens(&self) -> HashSet<&str> {
        let named = ["bos_token", "eos_token", "pad_token", "mask_token"];
        let lists = ["additional_special_tokens", "extra_special_tokens"];
        let listed = lists
            .into_iter()
            .filter_map(|list| self.other.get(list))
            .flat_map(|list| match list {
                Value::Array(values) => values.iter().filter_map(piece).collect(),
                Value::Object(values) => values.values().filter_map(piece).collect(),
                _ => Vec::new(),
            });
        named
            .into_iter()
            .filter_map(|name| self.named(name))
            .chain(listed)
            .collect()
    }
}

fn piece(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The added tokens of `added_tokens.json`, `tokenizer_config.json` and `tokenizer.json` by id. The
/// later file wins, since transformers' tokenizers follow it.
///
/// # Errors
/// Malformed files, and an id that is not below `max_tokens`.
fn added_tokens(
    dir: &Path,
    settings: &Settings,
    max_tokens: usize,
) -> Result<BTreeMap<usize, AddedToken>> {
    #[derive(Deserialize)]
    struct TokenizerJson<'a> {
        #[serde(borrow)]
        added_tokens: Option<&'a RawValue>,
    }
    let mut added = BTreeMap::new();
    let mut add = |id: usize, token: AddedToken| {
        if id >= max_tokens {
            return Err(Error::invalid(format!(
                "the tokenizer in `{}`: token `{}` has id {id}, but the embedding has only {max_tokens} rows",
                dir.display(),
                token.content
            )));
        }
        added.insert(id, token);
        Ok(())
    };
    let plain: Option<BTreeMap<String, usize>> =
        read_optional_json(&dir.join("added_tokens.json"))?;
    for (content, id) in plain.unwrap_or_default() {
        let token = AddedToken {
            id: Some(id),
            content,
            special: false,
        };
        add(id, token)?;
    }
    for (&id, token) in settings.added_tokens_decoder.iter().flatten() {
        let token = AddedToken {
            content: token.content.clone(),
            ..*token
        };
        add(id, token)?;
    }
    let path = dir.join("tokenizer.json");
    if path.exists() {
        let bytes = read_text(&path, MAX_FILE_BYTES)?;
        let json: TokenizerJson = serde_json::from_slice(&bytes).map_err(malformed(&path))?;
        if let Some(tokens) = json.added_tokens {
            for_each(tokens, malformed(&path), |token: AddedToken| {
                match token.id {
                    Some(id) => add(id, token),
                    None => Ok(()),
                }
            })?;
        }
    }
    Ok(added)
}

/// `generation_config.json`.
#[derive(Deserialize)]
struct Generation {
    eos_token_id: Option<OneOrSeveral>,
}
