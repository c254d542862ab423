//! What the values of a config may be.

use serde::Deserialize;

/// A number or a list of them, where transformers takes either.
#[derive(Deserialize)]
#[serde(untagged)]
pub(in crate::llava) enum OneOrSeveral {
    One(i64),
    Several(Vec<i64>),
}

impl OneOrSeveral {
    pub(in crate::llava) fn as_slice(&self) -> &[i64] {
        match self {
            Self::One(number) => std::slice::from_ref(number),
            Self::Several(numbers) => numbers,
        }
    }
}

/// The names under which transformers has GELU. llama.cpp computes the tanh form for each of them.
/// transformers' Gemma follows `hidden_activation`, or has the tanh form without it, up to 4.47; from
/// 4.48 on it follows `hidden_act`.
pub(super) const GELU: [&str; 4] = ["gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"];

/// `LLAMA_MAX_LAYERS` of llama.cpp, which aborts on more.
pub(super) const MAX_LAYERS: usize = 512;

/// Rows of the largest embedding. Gemma 3 has 262208, and each takes some hundred bytes of memory here,
/// whatever its width.
pub(super) const MAX_VOCAB_SIZE: usize = 270_000;

/// Bounds every size of a config, so that products of two fit 64 bits.
pub(super) const MAX_SIZE: usize = 1 << 24;

pub(super) fn expect(
    value: &Option<String>,
    key: &str,
    default: &str,
    supported: &[&str],
) -> std::result::Result<(), String> {
    let value = value.as_deref().unwrap_or(default);
    if supported.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "`{key}` is `{value}`, supported: `{}`",
        supported.join("`, `")
    ))
}

pub(super) fn in_range(key: &str, value: usize, max: usize) -> std::result::Result<(), String> {
    if (1..=max).contains(&value) {
        return Ok(());
    }
    Err(format!("`{key}` is {value}, expected 1 to {max}"))
}

pub(super) fn positive(key: &str, value: f32) -> std::result::Result<(), String> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(format!(
        "`{key}` is {value} as a 32-bit float, expected a finite number above 0"
    ))
}

pub(super) fn multiple(
    key: &str,
    value: usize,
    of_key: &str,
    of: usize,
) -> std::result::Result<(), String> {
    if value.is_multiple_of(of) {
        return Ok(());
    }
    Err(format!(
        "`{key}` is {value}, expected a multiple of `{of_key}`, which is {of}"
    ))
}
