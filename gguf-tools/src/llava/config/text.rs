//! The language model's part of `config.json`.

mod window;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::checks::{
    MAX_LAYERS, MAX_SIZE, MAX_VOCAB_SIZE, OneOrSeveral, expect, in_range, multiple, positive,
};
use super::gemma4::{self, Gemma4, RawGemma4, Rest};
use super::rope::{RawRope, Rope, RopeScaling};
use super::text_family::{Architecture, FAMILIES, TextFamily};

pub(crate) use self::window::Window;

/// A language model of a known family.
#[derive(Debug)]
pub(crate) struct TextConfig {
    pub(crate) architecture: Architecture,
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
    pub(crate) rope: Rope,
    /// Where some blocks see no further back than a window.
    pub(crate) window: Option<Window>,
    pub(crate) bos_token_id: usize,
    pub(crate) eos_token_id: usize,
    pub(crate) pad_token_id: Option<usize>,
    pub(crate) output: OutputMatrix,
    pub(crate) gemma4: Option<Gemma4>,
}

/// What turns the last hidden state into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputMatrix {
    /// The embedding; transformers ignores an `lm_head` that is stored.
    Embedding,
    /// `lm_head`, stored apart from the embedding.
    Stored,
}

/// The language model of a config.
#[derive(Debug)]
pub(crate) enum Text {
    Known(Box<TextConfig>),
    /// Of a `model_type` that is not converted, with the width that the projector's rows have to have.
    Other {
        model_type: String,
        d_model: usize,
    },
}

impl Text {
    /// The residual stream's width.
    pub(crate) fn d_model(&self) -> usize {
        match self {
            Self::Known(text) => text.d_model,
            Self::Other { d_model, .. } => *d_model,
        }
    }
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
    rope_local_base_freq: Option<f32>,
    /// `None` where the key is missing, `Some(None)` where it is null: there is no window.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    /// Of Qwen's, which have a window where it is true.
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    sliding_window_pattern: Option<usize>,
    #[serde(rename = "_sliding_window_pattern")]
    saved_window_pattern: Option<usize>,
    query_pre_attn_scalar: Option<f32>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_bidirectional_attention: Option<Value>,
    bos_token_id: Option<usize>,
    eos_token_id: Option<OneOrSeveral>,
    /// -1 where there is none.
    pad_token_id: Option<i64>,
    tie_word_embeddings: Option<bool>,
    #[serde(flatten)]
    gemma4: RawGemma4,
}

/// A key that is there, null or not.
fn present<'de, D: Deserializer<'de>>(
    value: D,
) -> std::result::Result<Option<Option<usize>>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

impl RawText {
    /// `default_type` is the `model_type` where there is none, and `tie_word_embeddings` the top level's.
    pub(super) fn check(
        self,
        default_type: &str,
        tie_word_embeddings: Option<bool>,
    ) -> std::result::Result<Text, String> {
        let model_type = self.model_type.as_deref().unwrap_or(default_type);
        let Some(family) = FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
        else {
            let d_model = self.hidden_size.ok_or_else(|| {
                format!("`text_config.hidden_size` is missing, and `{model_type}`'s default is not known")
            })?;
            in_range("text_config.hidden_size", d_model, MAX_SIZE)?;
            return Ok(Text::Other {
                model_type: model_type.to_owned(),
                d_model,
            });
        };
        let text = self.check_known(family, tie_word_embeddings)?;
        Ok(Text::Known(Box::new(text)))
    }

    fn check_known(
        mut self,
        family: &TextFamily,
        tie_word_embeddings: Option<bool>,
    ) -> std::result::Result<TextConfig, String> {
        self.check_settings(family)?;
        let (rope, window_rope) = self.rope_parameters.take().unwrap_or_default().by_kind();
        let rope_theta = self.rope_theta.or(rope.rope_theta);
        let rope_theta = rope_theta.unwrap_or(family.rope_theta);
        positive("text_config.rope_theta", rope_theta)?;
        let d_model = self.hidden_size.unwrap_or(family.d_model);
        let n_heads = self.num_attention_heads.unwrap_or(family.n_heads);
        for (key, size) in [("hidden_size", d_model), ("num_attention_heads", n_heads)] {
            in_range(&format!("text_config.{key}"), size, MAX_SIZE)?;
        }
        let d_head = self.head_dim.or(family.d_head).unwrap_or(d_model / n_heads);
        let n_kv_heads = self.num_key_value_heads.or(family.n_kv_heads);
        let mut text = TextConfig {
            architecture: family.architecture,
            vocab_size: self.vocab_size.unwrap_or(family.vocab_size),
            d_model,
            d_ffn: self.intermediate_size.unwrap_or(family.d_ffn),
            n_layers: self.num_hidden_layers.unwrap_or(family.n_layers),
            n_heads,
            n_kv_heads: n_kv_heads.unwrap_or(n_heads),
            d_head,
            context_length: self
                .max_position_embeddings
                .unwrap_or(family.context_length),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope: Rope {
                theta: rope_theta,
                scaling: match family.architecture {
                    Architecture::Gemma4 => RopeScaling::None, // until its heads are known
                    _ => {
                        let rope = self.rope_scaling.as_ref().unwrap_or(&rope);
                        rope.scaling(rope_theta, d_head)?
                    }
                },
            },
            window: None,
            gemma4: None,
            bos_token_id: self.bos_token_id.unwrap_or(family.bos_token_id),
            eos_token_id: self
                .eos_token_id
                .as_ref()
                .and_then(|ids| usize::try_from(*ids.as_slice().first()?).ok())
                .unwrap_or(family.eos_token_id),
            pad_token_id: self
                .pad_token_id
                .and_then(|id| usize::try_from(id).ok())
                .or(family.pad_token_id),
            // A `true` at the top is the default there, and says nothing.
            output: match self
                .tie_word_embeddings
                .or(tie_word_embeddings.filter(|is_tied| !is_tied))
                .unwrap_or(family.is_tied)
            {
                true => OutputMatrix::Embedding,
                false => OutputMatrix::Stored,
            },
        };
        text.check_sizes()?;
        self.check_attention(&text)?;
        let window = self.sliding_window.unwrap_or(family.sliding_window);
        match (family.architecture, window) {
            (Architecture::Gemma3, Some(length)) => {
                text.window = self.window(length, window_rope, text.n_layers)?;
            }
            (Architecture::Gemma4, length) => {
                self.take_gemma4(&mut text, length, rope, window_rope)?
            }
            // llama.cpp has no window in a Llama: up to that length, there is no difference.
            (Architecture::Llama, Some(length)) => {
                in_range("text_config.sliding_window", length, MAX_SIZE)?;
                text.context_length = text.context_length.min(length);
            }
            // The same, where it is switched on.
            (Architecture::Qwen2 | Architecture::Qwen3, _)
                if self.use_sliding_window == Some(true) =>
            {
                let length = self.sliding_window.unwrap_or(Some(4096));
                let length = length.unwrap_or(text.context_length);
                in_range("text_config.sliding_window", length, MAX_SIZE)?;
                text.context_length = text.context_length.min(length);
            }
            _ => {}
        }
        Ok(text)
    }

    /// Checks that there is nothing that llama.cpp's graph of the architecture does not have.
    fn check_settings(&self, family: &TextFamily) -> std::result::Result<(), String> {
        let default = family.activations[0];
        for (key, value) in [
            ("hidden_act", &self.hidden_act),
            ("hidden_activation", &self.hidden_activation),
        ] {
            expect(
                value,
                &format!("text_config.{key}"),
                default,
                family.activations,
            )?;
        }
        for (key, value) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ] {
            if value == Some(true) {
                return Err(format!(
                    "`text_config.{key}` is true, only false is supported"
                ));
            }
        }
        let is_gemma4 = family.architecture == Architecture::Gemma4;
        match &self.use_bidirectional_attention {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(value) if !is_gemma4 => {
                return Err(format!(
                    "`text_config.use_bidirectional_attention` is {value}, only false is supported"
                ));
            }
            Some(_) => {}
        }
        for (key, value) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            (
                "final_logit_softcapping",
                self.final_logit_softcapping.filter(|_| !is_gemma4),
            ),
        ] {
            if let Some(value) = value {
                return Err(format!(
                    "`text_config.{key}` is {value}, only null is supported"
                ));
            }
        }
        if family.architecture == Architecture::Gemma {
            for rope in self.rope_parameters.iter().chain(&self.rope_scaling) {
                rope.check_type(&["default"])?;
            }
        }
        Ok(())
    }

    /// Checks what attention's products are multiplied by (`load_arch_hparams` in llama.cpp's
    /// `src/models/gemma3.cpp`, which knows the 27B by its number of blocks).
    fn check_attention(&self, text: &TextConfig) -> std::result::Result<(), String> {
        if text.architecture != Architecture::Gemma3 {
            return Ok(());
        }
        let computed = match text.n_layers {
            62 => text.d_model / text.n_heads,
            _ => text.d_head,
        };
        let scalar = self.query_pre_attn_scalar.unwrap_or(256.0);
        if scalar == computed as f32 {
            return Ok(());
        }
        Err(format!(
            "`text_config.query_pre_attn_scalar` is {scalar}, and llama.cpp computes with {computed}"
        ))
    }

    /// What a Gemma 4 has besides.
    fn take_gemma4(
        &self,
        text: &mut TextConfig,
        window: Option<usize>,
        rope: RawRope,
        window_rope: Option<RawRope>,
    ) -> std::result::Result<(), String> {
        let length = window.ok_or("`text_config.sliding_window` is null")?;
        let window = self.window(length, window_rope, text.n_layers)?;
        let mut window = window.ok_or("`text_config.layer_types` has no `sliding_attention`, which llama.cpp's Gemma 4 has to have")?;
        // transformers has it so, whatever the config says.
        *window.blocks.last_mut().expect("there are blocks") = false;
        let found = self.gemma4.check(&Rest {
            vocab_size: text.vocab_size,
            n_heads: text.n_heads,
            n_kv_heads: text.n_kv_heads,
            pad_token_id: text.pad_token_id,
            windows: &window.blocks,
            bidirectional: self.use_bidirectional_attention.as_ref(),
            softcap: self.final_logit_softcapping,
        })?;
        text.rope.scaling = gemma4::rope(&rope, found.d_head_full)?;
        text.window = Some(window);
        text.gemma4 = Some(found);
        Ok(())
    }
}

impl TextConfig {
    /// A block's head size, its heads of keys, and the width of its feed-forward part.
    pub(crate) fn block_sizes(&self, block_idx: usize) -> [usize; 3] {
        let Some(gemma4) = &self.gemma4 else {
            return [self.d_head, self.n_kv_heads, self.d_ffn];
        };
        let [d_head, n_kv_heads] = match self.has_window(block_idx) {
            true => [self.d_head, self.n_kv_heads],
            false => [gemma4.d_head_full, gemma4.n_kv_heads_full],
        };
        let is_wide = gemma4.is_double_wide && self.shares(block_idx);
        [d_head, n_kv_heads, self.d_ffn * (1 + usize::from(is_wide))]
    }

    /// Whether a block takes keys and values of another.
    pub(crate) fn shares(&self, block_idx: usize) -> bool {
        let n_shared = self.gemma4.as_ref().map_or(0, |gemma4| gemma4.n_shared);
        block_idx + n_shared >= self.n_layers
    }

    fn check_sizes(&self) -> std::result::Result<(), String> {
        for (key, size, max) in [
            ("vocab_size", self.vocab_size, MAX_VOCAB_SIZE),
            ("intermediate_size", self.d_ffn, MAX_SIZE),
            ("num_hidden_layers", self.n_layers, MAX_LAYERS),
            ("num_key_value_heads", self.n_kv_heads, self.n_heads),
            ("head_dim", self.d_head, MAX_SIZE),
            ("max_position_embeddings", self.context_length, MAX_SIZE),
        ] {
            in_range(&format!("text_config.{key}"), size, max)?;
        }
        positive("text_config.rms_norm_eps", self.rms_norm_eps)?;
        if !self.d_head.is_multiple_of(2) {
            return Err(format!(
                "`text_config.head_dim` is {}, expected an even number",
                self.d_head
            ));
        }
        multiple(
            "text_config.num_attention_heads",
            self.n_heads,
            "num_key_value_heads",
            self.n_kv_heads,
        )
    }
}
