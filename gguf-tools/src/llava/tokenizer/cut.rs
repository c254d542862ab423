//! What `tokenizer.json` does with a text before pieces are joined.

use serde::Deserialize;

/// `pre_tokenizer`, with what matters of any kind.
#[derive(Deserialize)]
pub(super) struct PreTokenizer {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    pretokenizers: Vec<PreTokenizer>,
    pattern: Option<Pattern>,
    /// Of a `Metaspace`, and its older form.
    prepend_scheme: Option<String>,
    add_prefix_space: Option<bool>,
    /// Of `Digits`.
    individual_digits: Option<bool>,
    /// Of `ByteLevel`: whether it cuts as GPT-2 does, which it does unless it is told not to.
    use_regex: Option<bool>,
}

#[derive(Deserialize)]
struct Pattern {
    #[serde(rename = "Regex")]
    regex: Option<String>,
}

/// Ways to cut a text, and llama.cpp's names for them (`llm_tokenizer_bpe` in `src/llama-vocab.cpp`).
const CUTS: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        QWEN2,
    ),
];

/// Qwen2's, whose texts are normalised first, which llama.cpp leaves to them.
pub(super) const QWEN2: &str = "qwen2";
/// SmolLM's: digits one by one, then as GPT-2.
const SMOLLM: &str = "smollm";

/// Whether a text begins with the token for its beginning, where transformers puts one there.
pub(super) fn adds_bos(cut: &str) -> bool {
    ![QWEN2, SMOLLM].contains(&cut)
}

impl PreTokenizer {
    /// llama.cpp's name, if it cuts by a known pattern and then writes bytes as letters.
    pub(super) fn known_cut(&self) -> Option<&'static str> {
        let [split, byte_level] = &self.pretokenizers[..] else {
            return None;
        };
        if split.kind == "Digits" {
            let is_smollm = split.individual_digits == Some(true)
                && byte_level.kind == "ByteLevel"
                && byte_level.add_prefix_space == Some(false)
                && byte_level.use_regex != Some(false);
            return is_smollm.then_some(SMOLLM);
        }
        if split.kind != "Split"
            || byte_level.kind != "ByteLevel"
            || byte_level.add_prefix_space != Some(false)
        {
            return None;
        }
        let regex = split.pattern.as_ref()?.regex.as_deref()?;
        let (_, name) = CUTS.iter().find(|(pattern, _)| *pattern == regex)?;
        Some(name)
    }

    /// Whether it puts a space in front of a text.
    pub(super) fn prepends(&self) -> bool {
        let is_metaspace = self.kind == "Metaspace"
            && self.prepend_scheme.as_deref() != Some("never")
            && self.add_prefix_space != Some(false);
        is_metaspace || self.pretokenizers.iter().any(Self::prepends)
    }
}
