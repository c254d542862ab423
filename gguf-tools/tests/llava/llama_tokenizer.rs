//! llama.cpp's way from text to ids, written down once more, and texts that try it.
//!
//! Here its ids are compared with those of Hugging Face's `tokenizers`, in the tests of llava-sae-cpp
//! with llama.cpp's own, on the same texts: so llama.cpp gives the ids of `tokenizers`.

use std::collections::HashMap;

use gguf_tools::gguf::{Array, Gguf, Value};

// As in `llama_token_type` of llama.cpp.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// llama.cpp's SentencePiece-like tokenizer (`llm_tokenizer_spm_session` and
/// `tokenizer_st_partition` in `src/llama-vocab.cpp`), with special tokens parsed.
pub(crate) struct LlamaTokenizer<'a> {
    ids: HashMap<&'a str, usize>,
    scores: &'a [f32],
    /// Tokens that are cut out of the text first, the longest first.
    special: Vec<&'a str>,
}

impl<'a> LlamaTokenizer<'a> {
    pub(crate) fn new(model: &'a Gguf) -> Self {
        assert!(
            !model
                .require_bool("tokenizer.ggml.add_space_prefix")
                .unwrap()
        );
        let array = |key: &str| match model.get(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Array(array)) => array,
            other => panic!("{key}: {other:?}"),
        };
        let (Array::String(pieces), Array::F32(scores), Array::I32(kinds)) =
            (array("tokens"), array("scores"), array("token_type"))
        else {
            panic!("arrays of other types");
        };
        let mut special: Vec<&str> = pieces
            .iter()
            .zip(kinds)
            .filter(|(_, kind)| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(piece, _)| piece.as_str())
            .collect();
        special.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
        Self {
            ids: pieces
                .iter()
                .enumerate()
                .map(|(id, piece)| (piece.as_str(), id))
                .collect(),
            scores,
            special,
        }
    }

    pub(crate) fn tokenize(&self, text: &str) -> Vec<usize> {
        if text.is_empty() {
            return Vec::new();
        }
        for piece in &self.special {
            if let Some((left, right)) = text.split_once(piece) {
                return [
                    self.tokenize(left),
                    vec![self.ids[piece]],
                    self.tokenize(right),
                ]
                .concat();
            }
        }
        let mut symbols: Vec<String> = text.replace(' ', "▁").chars().map(String::from).collect();
        loop {
            let score = |i: &usize| {
                let id = self
                    .ids
                    .get(format!("{}{}", symbols[*i], symbols[i + 1]).as_str())?;
                Some(self.scores[*id])
            };
            // Of equal scores the leftmost; `max_by` returns the last of equals.
            let best = (0..symbols.len() - 1)
                .rev()
                .filter_map(|i| Some((i, score(&i)?)))
                .max_by(|(_, a), (_, b)| a.total_cmp(b));
            let Some((i, _)) = best else { break };
            let right = symbols.remove(i + 1);
            symbols[i] += &right;
        }
        let id = |piece: &str| self.ids.get(piece).copied();
        symbols
            .iter()
            .flat_map(|symbol| match id(symbol) {
                Some(id) => vec![id],
                None => symbol
                    .bytes()
                    .map(|byte| self.ids[format!("<0x{byte:02X}>").as_str()])
                    .collect(),
            })
            .collect()
    }
}

/// Awkward texts, made of parts that meet in every order: the same on every call.
pub(crate) fn texts(n_texts: usize) -> Vec<String> {
    let parts: Vec<String> = [
        "a",
        "b",
        "t",
        "The",
        "the",
        "image",
        "shows",
        "dog",
        ".",
        ",",
        "'s",
        "1",
        "42",
        "  ",
        "   ",
        " ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        "▁",
        "▁▁",
        "▁a",
        "é",
        "e\u{301}",
        "ß",
        "Ω",
        "я",
        "日本",
        "語",
        "한",
        "ع",
        "🦊",
        "👩\u{200d}🚀",
        "\u{feff}",
        "\u{0}",
        "\u{7f}",
        "\u{a0}",
        "\u{2028}",
        "\u{10ffff}",
        "<",
        ">",
        "<bos>",
        "<eos>",
        "<image>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<unk>",
        "<pad>",
        "<0x41>",
        "<0x0A>",
        "<table>",
        "<unused1>",
        "[PAD500]",
        "{",
        "\\",
        "\"",
        "-",
        "_",
        "=",
    ]
    .map(str::to_owned)
    .into();
    let mut state = 7_u64;
    // splitmix64
    let mut below = |n: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize % n
    };
    let mut text = |idx: usize| {
        // One in a hundred is long, and one in four is of any characters.
        let n_parts = 1 + below(if idx.is_multiple_of(100) { 400 } else { 16 });
        let any = idx % 4 == 1;
        let part = |_| match any {
            false => parts[below(parts.len())].clone(),
            true => char::from_u32(below(0x3000) as u32)
                .unwrap_or(' ')
                .to_string(),
        };
        (0..n_parts).map(part).collect()
    };
    (0..n_texts).map(&mut text).collect()
}
