//! Gemma's part of `config.json`.

use serde::Deserialize;

use super::checks::{
    GELU, MAX_LAYERS, MAX_SIZE, MAX_VOCAB_SIZE, OneOrSeveral, expect, in_range, multiple, positive,
};

/// Gemma 1.
#[derive(Debug)]
pub(crate) struct TextConfig {
    /// Rows of the embedding, which may be more than the tokenizer has tokens.
    pub(crate) vocab_size: usize,
    pub(crate) d_model: usize,
    pub(crate) d_ffn: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) d_head: usize,
    /// Positions, in tokens.
    pub(crate) context_length: usize,
    pub(crate) rms_norm_eps: f32,
    pub(crate) rope_theta: f32,
    pub(crate) bos_token_id: usize,
    pub(crate) eos_token_id: usize,
    pub(crate) pad_token_id: usize,
    pub(crate) output: OutputMatrix,
}

/// What turns the last hidden state into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputMatrix {
    /// The embedding; transformers ignores an `lm_head` that is stored.
    Embedding,
    /// `lm_head`, stored apart from the embedding.
    Stored,
}

#[derive(Default, Deserialize)]
pub(super) struct RawText {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    /// transformers 5 nests `rope_theta` in it.
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    bos_token_id: Option<usize>,
    eos_token_id: Option<OneOrSeveral>,
    /// -1 where there is none.
    pad_token_id: Option<i64>,
    tie_word_embeddings: Option<bool>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
    /// Its older name; some files have both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
}

impl RawText {
    /// `tie_word_embeddings` is the top level's, which counts where there is none in here.
    pub(super) fn check(
        self,
        tie_word_embeddings: Option<bool>,
    ) -> std::result::Result<TextConfig, String> {
        // `LlavaConfig` takes a text model without a type for a Llama.
        expect(
            &self.model_type,
            "text_config.model_type",
            "llama",
            &["gemma"],
        )?;
        expect(&self.hidden_act, "text_config.hidden_act", "gelu", &GELU)?;
        expect(
            &self.hidden_activation,
            "text_config.hidden_activation",
            "gelu",
            &GELU,
        )?;
        if self.attention_bias == Some(true) {
            return Err("`text_config.attention_bias` is true, only false is supported".to_owned());
        }
        for rope in self.rope_parameters.iter().chain(&self.rope_scaling) {
            for rope_type in [&rope.rope_type, &rope.old_rope_type] {
                expect(rope_type, "rope_type", "default", &["default"])?;
            }
        }
        let text = TextConfig {
            vocab_size: self.vocab_size.unwrap_or(256_000),
            d_model: self.hidden_size.unwrap_or(3072),
            d_ffn: self.intermediate_size.unwrap_or(24576),
            n_layers: self.num_hidden_layers.unwrap_or(28),
            n_heads: self.num_attention_heads.unwrap_or(16),
            n_kv_heads: self.num_key_value_heads.unwrap_or(16),
            d_head: self.head_dim.unwrap_or(256),
            context_length: self.max_position_embeddings.unwrap_or(8192),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self
                .rope_theta
                .or(self.rope_parameters.and_then(|rope| rope.rope_theta))
                .unwrap_or(10000.0),
            bos_token_id: self.bos_token_id.unwrap_or(2),
            eos_token_id: self
                .eos_token_id
                .and_then(|ids| usize::try_from(*ids.as_slice().first()?).ok())
                .unwrap_or(1),
            pad_token_id: self
                .pad_token_id
                .and_then(|id| usize::try_from(id).ok())
                .unwrap_or(0),
            output: match self.tie_word_embeddings.or(tie_word_embeddings) {
                Some(false) => OutputMatrix::Stored,
                _ => OutputMatrix::Embedding,
            },
        };
        for (key, size, max) in [
            ("vocab_size", text.vocab_size, MAX_VOCAB_SIZE),
            ("hidden_size", text.d_model, MAX_SIZE),
            ("intermediate_size", text.d_ffn, MAX_SIZE),
            ("num_hidden_layers", text.n_layers, MAX_LAYERS),
            ("num_attention_heads", text.n_heads, MAX_SIZE),
            ("num_key_value_heads", text.n_kv_heads, text.n_heads),
            ("head_dim", text.d_head, MAX_SIZE),
            ("max_position_embeddings", text.context_length, MAX_SIZE),
        ] {
            in_range(&format!("text_config.{key}"), size, max)?;
        }
        positive("text_config.rms_norm_eps", text.rms_norm_eps)?;
        positive("text_config.rope_theta", text.rope_theta)?;
        multiple(
            "text_config.num_attention_heads",
            text.n_heads,
            "num_key_value_heads",
            text.n_kv_heads,
        )?;
        Ok(text)
    }
}
