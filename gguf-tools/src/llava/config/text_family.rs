//! The language models that are converted: what transformers' config class of each has for defaults.

use super::checks::GELU;

/// A language model that llama.cpp runs, by the name that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    Gemma,
    Gemma3,
    Gemma4,
    Llama,
    Qwen2,
    Qwen3,
}

impl Architecture {
    /// `general.architecture`, which the keys of a file begin with.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gemma => "gemma",
            Self::Gemma3 => "gemma3",
            Self::Gemma4 => "gemma4",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Whether norms multiply by 1 + weight, where llama.cpp does it by the weight: Gemma up to its third version.
    pub(crate) fn has_norms_from_one(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma3)
    }
}

/// A `model_type` of `text_config`, with the values of the keys that a config leaves out.
#[derive(Debug)]
pub(super) struct TextFamily {
    pub(super) model_type: &'static str,
    pub(super) architecture: Architecture,
    pub(super) activations: &'static [&'static str],
    pub(super) vocab_size: usize,
    pub(super) d_model: usize,
    pub(super) d_ffn: usize,
    pub(super) n_layers: usize,
    pub(super) n_heads: usize,
    /// As many as heads, if there is none.
    pub(super) n_kv_heads: Option<usize>,
    /// What the width has for each head, if there is none.
    pub(super) d_head: Option<usize>,
    pub(super) context_length: usize,
    pub(super) rope_theta: f32,
    pub(super) sliding_window: Option<usize>,
    pub(super) bos_token_id: usize,
    pub(super) eos_token_id: usize,
    pub(super) pad_token_id: Option<usize>,
    pub(super) is_tied: bool,
}

/// `GemmaConfig`, `Gemma3TextConfig`, `Gemma4TextConfig`, `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config` of transformers.
pub(super) const FAMILIES: [TextFamily; 7] = [
    TextFamily {
        model_type: "gemma",
        architecture: Architecture::Gemma,
        activations: &GELU,
        vocab_size: 256_000,
        d_model: 3072,
        d_ffn: 24576,
        n_layers: 28,
        n_heads: 16,
        n_kv_heads: Some(16),
        d_head: Some(256),
        context_length: 8192,
        rope_theta: 10_000.0,
        sliding_window: None,
        bos_token_id: 2,
        eos_token_id: 1,
        pad_token_id: Some(0),
        is_tied: true,
    },
    TextFamily {
        model_type: "gemma3_text",
        architecture: Architecture::Gemma3,
        activations: &GELU,
        vocab_size: 262_208,
        d_model: 2304,
        d_ffn: 9216,
        n_layers: 26,
        n_heads: 8,
        n_kv_heads: Some(4),
        d_head: Some(256),
        context_length: 131_072,
        rope_theta: 1_000_000.0,
        sliding_window: Some(4096),
        bos_token_id: 2,
        eos_token_id: 1,
        pad_token_id: Some(0),
        is_tied: true,
    },
    TextFamily {
        model_type: "gemma4_text",
        architecture: Architecture::Gemma4,
        activations: &["gelu_pytorch_tanh"],
        vocab_size: 262_144,
        d_model: 2304,
        d_ffn: 9216,
        n_layers: 30,
        n_heads: 8,
        n_kv_heads: Some(4),
        d_head: Some(256),
        context_length: 131_072,
        rope_theta: 1_000_000.0,
        sliding_window: Some(512),
        bos_token_id: 2,
        eos_token_id: 1,
        pad_token_id: Some(0),
        is_tied: true,
    },
    LLAMA,
    TextFamily {
        model_type: "mistral",
        d_ffn: 14336,
        n_kv_heads: Some(8),
        context_length: 131_072,
        sliding_window: Some(4096),
        ..LLAMA
    },
    QWEN2,
    TextFamily {
        model_type: "qwen3",
        architecture: Architecture::Qwen3,
        d_head: Some(128),
        ..QWEN2
    },
];

const LLAMA: TextFamily = TextFamily {
    model_type: "llama",
    architecture: Architecture::Llama,
    activations: &["silu"],
    vocab_size: 32_000,
    d_model: 4096,
    d_ffn: 11008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    d_head: None,
    context_length: 2048,
    rope_theta: 10_000.0,
    sliding_window: None,
    bos_token_id: 1,
    eos_token_id: 2,
    pad_token_id: None,
    is_tied: false,
};

const QWEN2: TextFamily = TextFamily {
    model_type: "qwen2",
    architecture: Architecture::Qwen2,
    vocab_size: 151_936,
    d_ffn: 22016,
    n_kv_heads: Some(32),
    context_length: 32768,
    // Those of the published tokenizers; the config has none.
    bos_token_id: 151_643,
    eos_token_id: 151_645,
    ..LLAMA
};
