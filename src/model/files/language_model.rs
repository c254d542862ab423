//! What a language model's file must hold, for the architectures whose graphs are known.
//!
//! llama.cpp takes much of a header as it comes: some of what does not fit is an error there, some ends
//! the process, never ends, or changes what is computed without a word. The tables mirror `load_hparams`,
//! `load_tensors` and `create_tensor_qkv` in `src/llama-model.cpp` and the architectures' files in
//! `src/models/`, as llama-cpp-sys-2 0.1.161 carries them; limits are those of llama.cpp's assertions.

mod gemma4;
mod tensors;

use std::fmt::Display;
use std::ops::RangeInclusive;

use gguf_tools::gguf::{Array, Gguf, Value};

use self::tensors::Sizes;
use super::rules::{Key, Kind, broken, wrong_role, wrong_value};
use super::vocabulary;
use crate::{Error, Result};

/// What the header of a language model says.
pub(super) struct LanguageModel<'a> {
    /// `general.architecture`.
    pub(super) architecture: &'a str,
    /// The residual stream's width.
    pub(super) d_model: u64,
    /// The number of blocks.
    pub(super) n_layers: usize,
    /// The blocks, from the first, behind which image rows are added to the stream (deepstack).
    pub(super) n_deepstack: usize,
    /// Whether all that its blocks compute depends on the residual stream alone.
    pub(super) is_of_stream_alone: bool,
    /// Whether its architecture's graph is known, and was compared with transformers.
    pub(super) is_known: bool,
}

/// Checks a language model's file; of an architecture that is not known, its vocabulary alone.
pub(super) fn check(model: &Gguf) -> Result<LanguageModel<'_>> {
    let architecture = model.require_str("general.architecture")?;
    if matches!(architecture, "clip" | "sae" | "controlvector") {
        return Err(wrong_role(model.path(), "a language model", architecture));
    }
    let require = |name: &str| model.require_u32(&format!("{architecture}.{name}"));
    let found = LanguageModel {
        architecture,
        d_model: u64::from(require("embedding_length")?),
        n_layers: require("block_count")? as usize,
        n_deepstack: n_deepstack(model, architecture)?,
        is_of_stream_alone: architecture != "gemma4" || gemma4::is_of_stream_alone(model),
        is_known: own_keys(architecture).is_some(),
    };
    if model.alignment() < MIN_ALIGNMENT {
        return Err(broken(
            model,
            format!(
                "key `general.alignment` must be at least {MIN_ALIGNMENT}, got {}",
                model.alignment()
            ),
        ));
    }
    let Some(own_keys) = own_keys(architecture) else {
        vocabulary::check(model)?;
        return Ok(found);
    };
    let epsilon = (!has_layer_norms(architecture)).then_some(&RMS_NORM_EPSILON);
    for key in KEYS.iter().chain(epsilon).chain(own_keys) {
        key.check(model, architecture)?;
    }
    let header = Header {
        model,
        architecture,
    };
    let n_tokens = vocabulary::check(model)?;
    if architecture == "gemma4" {
        gemma4::check(&header, n_tokens)?;
        return Ok(found);
    }
    let sizes = Sizes::read(&header, n_tokens)?;
    let has_windows = match architecture {
        "gemma2" | "gemma3" => true,
        "olmo2" => header.number("attention.sliding_window").unwrap_or(0) > 0,
        _ => false,
    };
    if has_windows {
        header.check_window_pattern(sizes.n_layers)?;
    }
    if matches!(architecture, "qwen2vl" | "qwen3vl") {
        header.check_sections(sizes.n_rot)?;
    }
    tensors::check(model, architecture, &sizes)?;
    Ok(found)
}

/// ggml's own (`TENSOR_ALIGNMENT` in `ggml/src/ggml-impl.h`), which a mapped file has to keep.
const MIN_ALIGNMENT: u64 = 32;

/// Lengths and counts of an `int32_t`.
const MAX_I32: u32 = i32::MAX as u32;

/// Keys of all architectures; those that may be arrays are in [`Sizes::read`].
const KEYS: &[Key] = &[
    Key::optional("general.name", Kind::Text),
    Key::optional("general.file_type", Kind::Count(0, u32::MAX)),
    Key::optional("general.tensor_extra.name", Kind::Texts),
    Key::optional("general.tensor_extra.prec_a4", Kind::Flags),
    Key::required("*.context_length", Kind::Count(1, MAX_I32)),
    Key::required("*.embedding_length", Kind::Count(1, 1 << 20)),
    Key::required("*.block_count", Kind::Count(1, 512)), // LLAMA_MAX_LAYERS
    Key::optional("*.embedding_length_out", Kind::Count(0, 0)),
    Key::optional("*.vocab_size", Kind::Count(0, u32::MAX)),
    Key::optional("*.nextn_predict_layers", Kind::Count(0, 0)),
    Key::optional("*.expert_count", Kind::Count(0, 1024)), // LLAMA_MAX_EXPERTS
    Key::optional("*.expert_group_count", Kind::Count(0, 0)),
    Key::optional("*.expert_group_used_count", Kind::Count(0, 0)),
    Key::optional("*.attention.causal", Kind::True),
    Key::optional("*.attention.key_length", Kind::Count(1, 1 << 14)),
    Key::optional("*.attention.value_length", Kind::Count(1, 1 << 14)),
    Key::optional("*.attention.key_length_swa", Kind::Count(1, 1 << 14)),
    Key::optional("*.attention.value_length_swa", Kind::Count(1, 1 << 14)),
    Key::optional("*.rope.dimension_count", Kind::Count(2, 1 << 14)),
    Key::optional("*.rope.dimension_count_swa", Kind::Count(2, 1 << 14)),
    Key::optional("*.rope.freq_base", Kind::Positive(f32::MAX)),
    Key::optional(
        "*.rope.scaling.type",
        Kind::OneOf(&["none", "linear", "yarn", "longrope"]),
    ),
    Key::optional("*.rope.scaling.factor", Kind::Positive(f32::MAX)),
    Key::optional("*.rope.scale_linear", Kind::Positive(f32::MAX)),
    Key::optional("*.rope.scaling.attn_factor", Kind::Positive(f32::MAX)),
    Key::optional("*.rope.scaling.alpha", Kind::NotNegative),
    Key::optional(
        "*.rope.scaling.original_context_length",
        Kind::Count(0, MAX_I32),
    ),
    Key::optional("*.rope.scaling.finetuned", Kind::Flag),
    Key::optional("*.pooling_type", Kind::Count(0, 4)),
    Key::optional("*.classifier.pooling_type", Kind::Count(0, 4)),
    Key::optional("*.classifier.output_labels", Kind::Texts),
];

/// A window that holds for all sequences of a context stays within 32 bits.
const MAX_WINDOW: u32 = 1 << 22;

const GEMMA2_KEYS: &[Key] = &[
    Key::optional("*.attention.sliding_window", Kind::Count(1, MAX_WINDOW)),
    Key::optional("*.rope.freq_base_swa", Kind::Positive(f32::MAX)),
    Key::optional("*.attn_logit_softcapping", Kind::Positive(f32::MAX)),
    Key::optional("*.final_logit_softcapping", Kind::Positive(f32::MAX)),
];

const GEMMA3_KEYS: &[Key] = &[
    Key::optional("*.attention.sliding_window", Kind::Count(0, MAX_WINDOW)), // 0: none
    Key::optional("*.rope.freq_base_swa", Kind::Positive(f32::MAX)),
    Key::optional("*.final_logit_softcapping", Kind::NotNegative), // 0: none
];

const MROPE_KEYS: &[Key] = &[Key::required("*.rope.dimension_sections", Kind::Ints)];

/// The blocks behind which llama.cpp adds image rows, which must not be all: in the last, it has picked the rows that
/// need logits by then (`src/models/qwen3vl.cpp`, and `qwen3vlmoe.cpp`).
fn n_deepstack(model: &Gguf, architecture: &str) -> Result<usize> {
    if !matches!(architecture, "qwen3vl" | "qwen3vlmoe") {
        return Ok(0);
    }
    let key = format!("{architecture}.n_deepstack_layers");
    let n_layers = model.require_u32(&format!("{architecture}.block_count"))?;
    match model.get(&key) {
        None => Ok(0),
        Some(&Value::U32(n)) if n < n_layers => Ok(n as usize),
        Some(other) => {
            let expected = format!("a u32 below the {n_layers} blocks");
            Err(wrong_value(model, &key, expected, other))
        }
    }
}

const OLMO2_KEYS: &[Key] = &[
    Key::optional("*.attention.sliding_window", Kind::Count(0, MAX_WINDOW)), // OLMo 3's
    Key::optional("*.rope.freq_base_swa", Kind::Positive(f32::MAX)),
];

const GPT2_KEYS: &[Key] = &[LAYER_NORM_EPSILON];

const GPTNEOX_KEYS: &[Key] = &[
    LAYER_NORM_EPSILON,
    Key::required("*.use_parallel_residual", Kind::Flag),
];

const LAYER_NORM_EPSILON: Key =
    Key::required("*.attention.layer_norm_epsilon", Kind::Positive(1.0));

const RMS_NORM_EPSILON: Key =
    Key::required("*.attention.layer_norm_rms_epsilon", Kind::Positive(1.0));

/// Whether an architecture's norms subtract a row's mean, so that its stream's means are nothing to it.
pub(super) fn has_layer_norms(architecture: &str) -> bool {
    matches!(architecture, "gpt2" | "gptneox")
}

/// The keys that an architecture has beside [`KEYS`]; `None` if it is not known.
fn own_keys(architecture: &str) -> Option<&'static [Key]> {
    match architecture {
        "gemma" | "llama" | "phi3" | "qwen2" | "qwen3" => Some(&[]),
        "gpt2" => Some(GPT2_KEYS),
        "gptneox" => Some(GPTNEOX_KEYS),
        "olmo2" => Some(OLMO2_KEYS),
        "qwen2vl" | "qwen3vl" => Some(MROPE_KEYS),
        "gemma2" => Some(GEMMA2_KEYS),
        "gemma3" => Some(GEMMA3_KEYS),
        "gemma4" => Some(gemma4::KEYS),
        _ => None,
    }
}

impl Sizes {
    /// Reads them from a header whose keys have passed, and checks that they fit together.
    fn read(header: &Header, n_tokens: u64) -> Result<Self> {
        let d_model = header.number("embedding_length").unwrap_or(0);
        let n_layers = header.number("block_count").unwrap_or(0);
        let of_each_block =
            |name, default, range| header.number_of_each_block(name, n_layers, default, range);
        let n_heads = of_each_block("attention.head_count", None, 1..=d_model)?;
        let n_kv_heads = of_each_block("attention.head_count_kv", Some(n_heads), 1..=n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of the {n_heads} heads");
            return Err(header.wrong("attention.head_count_kv", expected));
        }
        let d_ffn = of_each_block("feed_forward_length", None, 1..=1 << 24)?;
        let n_experts = header.number("expert_count").unwrap_or(0);
        if n_experts > 0 && header.architecture != "llama" {
            return Err(header.wrong("expert_count", "0: there are none in this architecture"));
        }
        let n_used = of_each_block("expert_used_count", Some(0), 0..=n_experts)?;
        if (n_used == 0) != (n_experts == 0) {
            let expected = format!("from 1 to the {n_experts} experts");
            return Err(header.wrong("expert_used_count", expected));
        }
        let (d_head, n_rot) = sizes_of_heads(header, d_model, n_heads)?;
        Ok(Self {
            d_model,
            n_layers,
            n_heads,
            n_kv_heads,
            d_head,
            n_rot,
            d_ffn,
            n_experts,
            n_tokens,
            n_context: header.number("context_length").unwrap_or(0),
            is_longrope: matches!(
                header.get("rope.scaling.type"),
                Some(Value::String(scaling)) if scaling == "longrope"
            ),
        })
    }
}

/// A head's size and how many of its values `RoPE` turns. The graphs have one size for keys and values
/// of all blocks.
fn sizes_of_heads(header: &Header, d_model: u64, n_heads: u64) -> Result<(u64, u64)> {
    let d_default = d_model / n_heads;
    let d_head = header.number("attention.key_length").unwrap_or(d_default);
    if !d_head.is_multiple_of(2) {
        return Err(header.wrong("attention.key_length", "even, since RoPE turns pairs"));
    }
    for (name, default) in [
        ("attention.value_length", d_default),
        ("attention.key_length_swa", d_head),
        ("attention.value_length_swa", d_head),
    ] {
        if header.number(name).unwrap_or(default) != d_head {
            return Err(header.wrong(name, format!("{d_head}, as keys are")));
        }
    }
    let n_rot = header.number("rope.dimension_count").unwrap_or(d_head);
    let turns_all = matches!(
        header.architecture,
        "llama" | "olmo2" | "qwen2" | "qwen2vl" | "qwen3" | "qwen3vl"
    );
    if !n_rot.is_multiple_of(2) || n_rot > d_head || turns_all && n_rot < d_head {
        let expected = if turns_all {
            format!("{d_head}, as heads are")
        } else {
            format!("an even number up to the {d_head} of a head")
        };
        return Err(header.wrong("rope.dimension_count", expected));
    }
    let n_rot_swa = header.number("rope.dimension_count_swa").unwrap_or(n_rot);
    if n_rot_swa != n_rot {
        return Err(header.wrong(
            "rope.dimension_count_swa",
            format!("{n_rot}, as in other blocks"),
        ));
    }
    Ok((d_head, n_rot))
}

/// The keys of a model, by their names behind the architecture.
struct Header<'a> {
    model: &'a Gguf,
    architecture: &'a str,
}

impl Header<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.model.get(&self.key(name))
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Value::U32(n)) => Some(u64::from(*n)),
            _ => None,
        }
    }

    /// The error for a key, there or not, that breaks a rule.
    fn wrong(&self, name: &str, expected: impl Display) -> Error {
        match self.get(name) {
            Some(value) => wrong_value(self.model, &self.key(name), expected, value),
            None => broken(
                self.model,
                format!(
                    "there is no key `{}`, which must be {expected}",
                    self.key(name)
                ),
            ),
        }
    }

    /// A number, or an array with that number for each block: the graphs take the first for all.
    fn number_of_each_block(
        &self,
        name: &str,
        n_layers: u64,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<u64> {
        let numbers = self.numbers(name, n_layers, default);
        match numbers.first() {
            Some(first) if range.contains(first) && numbers.iter().all(|n| n == first) => {
                Ok(*first)
            }
            _ => Err(self.wrong(
                name,
                format!(
                    "a u32 from {} to {}, or an array of it for each of the {n_layers} blocks",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// A number for all blocks, or an array with one for each.
    fn numbers_of_blocks(
        &self,
        name: &str,
        n_layers: u64,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<Vec<u64>> {
        let numbers = self.numbers(name, n_layers, default);
        if !numbers.is_empty() && numbers.iter().all(|n| range.contains(n)) {
            return Ok(match numbers[..] {
                [all] => vec![all; n_layers as usize],
                _ => numbers,
            });
        }
        let expected = format!(
            "a u32 from {} to {}, or an array of them for the {n_layers} blocks",
            range.start(),
            range.end()
        );
        Err(self.wrong(name, expected))
    }

    /// The number of a key, or those of blocks; none where it is neither.
    fn numbers(&self, name: &str, n_layers: u64, default: Option<u64>) -> Vec<u64> {
        match self.get(name) {
            Some(Value::U32(n)) => vec![u64::from(*n)],
            Some(Value::Array(Array::U32(all))) if all.len() as u64 == n_layers => {
                all.iter().map(|&n| u64::from(n)).collect()
            }
            Some(Value::Array(Array::I32(all))) if all.len() as u64 == n_layers => all
                .iter()
                .map(|&n| u64::try_from(n).unwrap_or(u64::MAX))
                .collect(),
            Some(_) => Vec::new(),
            None => default.into_iter().collect(),
        }
    }

    /// How M-RoPE's four positions share a head's pairs. ggml divides by their sum
    /// (`ggml_mrope_cache_init` in `ggml/src/ggml-cpu/ops.cpp`).
    fn check_sections(&self, n_rot: u64) -> Result<()> {
        let name = "rope.dimension_sections";
        let n_pairs = n_rot / 2;
        if let Some(Value::Array(Array::I32(sections))) = self.get(name)
            && sections.len() == 4
            && let Ok(sizes) = sections
                .iter()
                .map(|&n| u64::try_from(n))
                .collect::<std::result::Result<Vec<_>, _>>()
            && sizes.iter().sum::<u64>() == n_pairs
        {
            return Ok(());
        }
        let expected =
            format!("an array of four i32 of 0 or more that make up {n_pairs}, half of a head");
        Err(self.wrong(name, expected))
    }

    /// Which blocks see a window only: every nth not, or as an array says. A cache for blocks with a
    /// window needs one (`llama_kv_cache_iswa`).
    fn check_window_pattern(&self, n_layers: u64) -> Result<()> {
        let name = "attention.sliding_window_pattern";
        let has_window = match self.get(name) {
            None => true,
            Some(Value::U32(n)) => *n != 1,
            Some(Value::Array(all)) if all.len() as u64 != n_layers => false,
            Some(Value::Array(Array::Bool(all))) => all.contains(&true),
            Some(Value::Array(Array::U32(all))) => all.iter().any(|&n| n != 0),
            Some(Value::Array(Array::I32(all))) => all.iter().any(|&n| n != 0),
            Some(_) => false,
        };
        if has_window {
            return Ok(());
        }
        Err(self.wrong(
            name,
            format!("a u32 other than 1, or an array of bools for the {n_layers} blocks with one that is true"),
        ))
    }
}
