//! What Gemma 4's language models have besides: blocks of two shapes, per-layer embeddings, keys and values that
//! blocks share, experts.
//!
//! Mirrors `Gemma4TextConfig` of transformers 5.24 (`configuration_gemma4.py`) and llama.cpp's `src/models/gemma4.cpp`.
//! Where the two do not compute the same, a config is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::checks::{MAX_SIZE, in_range, multiple};
use super::rope::{RawRope, RopeScaling};

/// What a Gemma 4 has besides.
#[derive(Debug)]
pub(crate) struct Gemma4 {
    /// Of blocks that see everything.
    pub(crate) d_head_full: usize,
    /// Of these.
    pub(crate) n_kv_heads_full: usize,
    /// Whether the values of these are their keys, before the norms.
    pub(crate) values_are_keys: bool,
    /// The last blocks, which take keys and values from those before.
    pub(crate) n_shared: usize,
    /// Whether the feed-forward parts of these are twice as wide.
    pub(crate) is_double_wide: bool,
    /// The width of per-layer embeddings; 0 where there are none.
    pub(crate) d_per_layer: usize,
    pub(crate) experts: Option<Experts>,
    /// Of logits.
    pub(crate) softcap: Option<f32>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    pub(crate) n: usize,
    /// For each row.
    pub(crate) n_used: usize,
    pub(crate) d_ffn: usize,
}

/// The part of a config's language model that only Gemma 4 has.
#[derive(Default, Deserialize)]
pub(super) struct RawGemma4 {
    global_head_dim: Option<usize>,
    num_global_key_value_heads: Option<usize>,
    /// What transformers 5.23 and later save instead of the two: what differs, by the block's number.
    per_layer_config: Option<BTreeMap<String, Overrides>>,
    attention_k_eq_v: Option<bool>,
    num_kv_shared_layers: Option<usize>,
    /// `None` where the key is missing, null where there are none.
    #[serde(default, deserialize_with = "present")]
    hidden_size_per_layer_input: Option<Value>,
    vocab_size_per_layer_input: Option<usize>,
    enable_moe_block: Option<bool>,
    use_double_wide_mlp: Option<bool>,
    num_experts: Option<usize>,
    top_k_experts: Option<usize>,
    moe_intermediate_size: Option<usize>,
}

#[derive(Deserialize)]
struct Overrides {
    head_dim: Option<usize>,
    num_key_value_heads: Option<usize>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<Option<Value>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

/// What the rest of the config says.
pub(super) struct Rest<'a> {
    pub(super) vocab_size: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) pad_token_id: Option<usize>,
    /// The blocks that have a window.
    pub(super) windows: &'a [bool],
    /// What image rows see of one another: `vision`, `all`, or nothing besides those before.
    pub(super) bidirectional: Option<&'a Value>,
    pub(super) softcap: Option<f32>,
}

impl RawGemma4 {
    pub(super) fn check(&self, rest: &Rest) -> std::result::Result<Gemma4, String> {
        let values_are_keys = self.attention_k_eq_v.unwrap_or(false);
        let (d_head_full, n_kv_heads_full) = self.full_blocks(rest, values_are_keys)?;
        let n_shared = self.num_kv_shared_layers.unwrap_or(0);
        check_shared(n_shared, rest.windows)?;
        let d_per_layer = self.per_layer_width(rest)?;
        check_images(d_per_layer, rest)?;
        if let Some(softcap) = rest.softcap {
            super::checks::positive("text_config.final_logit_softcapping", softcap)?;
        }
        Ok(Gemma4 {
            d_head_full,
            n_kv_heads_full,
            values_are_keys,
            n_shared,
            is_double_wide: self.use_double_wide_mlp.unwrap_or(false),
            d_per_layer,
            experts: self.experts()?,
            softcap: rest.softcap,
        })
    }

    /// The head's size and the number of key heads in blocks that see everything, which are all alike.
    fn full_blocks(
        &self,
        rest: &Rest,
        values_are_keys: bool,
    ) -> std::result::Result<(usize, usize), String> {
        let mut found = (
            self.global_head_dim.unwrap_or(512),
            // transformers reads the key only where values are keys.
            self.num_global_key_value_heads
                .filter(|_| values_are_keys)
                .unwrap_or(rest.n_kv_heads),
        );
        let Some(overrides) = &self.per_layer_config else {
            return check_heads(found, rest);
        };
        let mut shapes = rest
            .windows
            .iter()
            .enumerate()
            .filter(|(_, has_window)| !**has_window);
        let shape = |block_idx: usize| {
            let of_block = overrides.get(&block_idx.to_string());
            let of_block = of_block.ok_or_else(|| {
                format!("`text_config.per_layer_config` says nothing of block {block_idx}")
            })?;
            let n_kv_heads = of_block.num_key_value_heads.unwrap_or(rest.n_kv_heads);
            match (of_block.head_dim, of_block.other.keys().next()) {
                (Some(d_head), None) => Ok((d_head, n_kv_heads)),
                (None, _) => Err(format!(
                    "`text_config.per_layer_config` has no `head_dim` for block {block_idx}"
                )),
                (_, Some(key)) => Err(format!(
                    "`text_config.per_layer_config` has `{key}` for block {block_idx}, supported: `head_dim`, `num_key_value_heads`"
                )),
            }
        };
        let n_full = shapes.clone().count();
        if overrides.len() != n_full {
            return Err(format!(
                "`text_config.per_layer_config` has {} blocks, expected the {n_full} that see everything",
                overrides.len()
            ));
        }
        if let Some((first, _)) = shapes.next() {
            found = shape(first)?;
        }
        for (block_idx, _) in shapes {
            if shape(block_idx)? != found {
                return Err("`text_config.per_layer_config` has blocks that see everything with heads of several shapes".to_owned());
            }
        }
        check_heads(found, rest)
    }

    /// transformers' default is 256.
    fn per_layer_width(&self, rest: &Rest) -> std::result::Result<usize, String> {
        const KEY: &str = "text_config.hidden_size_per_layer_input";
        let width = match &self.hidden_size_per_layer_input {
            None => 256,
            Some(Value::Null) => 0,
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(width) if width <= MAX_SIZE => width,
                _ => return Err(format!("`{KEY}` is {value}, expected 0 to {MAX_SIZE}")),
            },
        };
        let n_rows = self.vocab_size_per_layer_input.unwrap_or(262_144);
        if width > 0 && n_rows != rest.vocab_size {
            return Err(format!(
                "`text_config.vocab_size_per_layer_input` is {n_rows}, and llama.cpp has one for each of the {} tokens",
                rest.vocab_size
            ));
        }
        Ok(width)
    }

    fn experts(&self) -> std::result::Result<Option<Experts>, String> {
        if self.enable_moe_block != Some(true) {
            return Ok(None);
        }
        let number = |key: &str, value: Option<usize>, max| {
            let key = format!("text_config.{key}");
            let value = value.ok_or_else(|| format!("`{key}` is missing"))?;
            in_range(&key, value, max).map(|()| value)
        };
        let n = number("num_experts", self.num_experts, 1024)?; // LLAMA_MAX_EXPERTS
        Ok(Some(Experts {
            n,
            n_used: number("top_k_experts", self.top_k_experts, n)?,
            d_ffn: number(
                "moe_intermediate_size",
                self.moe_intermediate_size,
                MAX_SIZE,
            )?,
        }))
    }
}

fn check_heads(
    (d_head, n_kv_heads): (usize, usize),
    rest: &Rest,
) -> std::result::Result<(usize, usize), String> {
    in_range("text_config.global_head_dim", d_head, MAX_SIZE)?;
    let key = "num_global_key_value_heads";
    in_range(&format!("text_config.{key}"), n_kv_heads, rest.n_heads)?;
    multiple(
        "text_config.num_attention_heads",
        rest.n_heads,
        key,
        n_kv_heads,
    )?;
    match d_head.is_multiple_of(2) {
        true => Ok((d_head, n_kv_heads)),
        false => Err(format!(
            "`text_config.global_head_dim` is {d_head}, expected an even number"
        )),
    }
}

/// Blocks that share take keys and values of the last block of their kind before them in transformers; llama.cpp
/// takes those of the last one before them, or of the one before that where they have a window (`create_memory` in
/// `src/llama-model.cpp`).
fn check_shared(n_shared: usize, windows: &[bool]) -> std::result::Result<(), String> {
    let n_own = windows.len().saturating_sub(n_shared);
    if n_own < 2 {
        return Err(format!(
            "`text_config.num_kv_shared_layers` is {n_shared}, and llama.cpp wants two of the {} blocks to have keys of their own",
            windows.len()
        ));
    }
    if n_shared > 0 && (!windows[n_own - 2] || windows[n_own - 1]) {
        return Err(format!(
            "`text_config.num_kv_shared_layers` is {n_shared}: llama.cpp takes it that before these, a block with a window comes and then one without, and `text_config.layer_types` has something else"
        ));
    }
    Ok(())
}

/// What image rows see, and what they are given of per-layer embeddings: neither has a key in llama.cpp's files.
fn check_images(d_per_layer: usize, rest: &Rest) -> std::result::Result<(), String> {
    const KEY: &str = "text_config.use_bidirectional_attention";
    let value = rest.bidirectional.filter(|value| !value.is_null());
    let expected = match d_per_layer {
        0 => Some(Value::from("vision")),
        _ => None,
    };
    if value != expected.as_ref() {
        let [shown, expected] = [value, expected.as_ref()]
            .map(|value| value.map_or("null".to_owned(), Value::to_string));
        return Err(format!(
            "`{KEY}` is {shown}, and it is taken to be {expected} where `hidden_size_per_layer_input` is {d_per_layer}, as in the published models"
        ));
    }
    match rest.pad_token_id {
        Some(id) if id > 0 && d_per_layer > 0 => Err(format!(
            "`text_config.pad_token_id` is {id}, whose per-layer embedding image rows have, and llama.cpp gives them that of token 0"
        )),
        _ => Ok(()),
    }
}

/// The angles of blocks that see everything: the first pairs of a head turn as far as those of a whole head would, and
/// the others not at all (`_compute_proportional_rope_parameters` in transformers' `modeling_rope_utils.py`).
pub(super) fn rope(raw: &RawRope, d_head: usize) -> std::result::Result<RopeScaling, String> {
    /// What llama.cpp's converter writes for pairs that do not turn.
    const STILL: f32 = 1e30;
    raw.check_type_or("proportional", &["proportional"])?;
    if raw.factor.is_some_and(|factor| factor != 1.0) {
        return Err("`rope_parameters.full_attention.factor` is not 1".to_owned());
    }
    let share = raw.partial_rotary_factor.unwrap_or(match raw.is_empty() {
        true => 0.25,
        false => 1.0,
    });
    if !(0.0..=1.0).contains(&share) {
        return Err(format!(
            "`partial_rotary_factor` is {share}, expected 0 to 1"
        ));
    }
    let n_turned = (f64::from(share) * d_head as f64 / 2.0).floor() as usize;
    let factors = (0..d_head / 2).map(|pair_idx| if pair_idx < n_turned { 1.0 } else { STILL });
    Ok(RopeScaling::Factors(factors.collect()))
}
