//! The tensors of each architecture.

use std::borrow::Cow;
use std::collections::HashSet;

use gguf_tools::gguf::Gguf;

use crate::Result;
use crate::model::files::rules::{Role, broken, check_tensor};

/// A length in a tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dim {
    One,
    /// The residual stream's width.
    Model,
    /// The vocabulary.
    Tokens,
    /// All heads' queries.
    Heads,
    /// All heads' keys, or their values.
    KvHeads,
    /// Queries, keys and values.
    AllHeads,
    /// One head.
    Head,
    Ffn,
    /// A gate beside it.
    TwoFfn,
    Experts,
    RopePairs,
    /// The longest context.
    Context,
}

impl Sizes {
    fn of(&self, dim: Dim) -> u64 {
        match dim {
            Dim::One => 1,
            Dim::Model => self.d_model,
            Dim::Tokens => self.n_tokens,
            Dim::Heads => self.n_heads * self.d_head,
            Dim::KvHeads => self.n_kv_heads * self.d_head,
            Dim::AllHeads => (self.n_heads + 2 * self.n_kv_heads) * self.d_head,
            Dim::Head => self.d_head,
            Dim::Ffn => self.d_ffn,
            Dim::TwoFfn => 2 * self.d_ffn,
            Dim::Experts => self.n_experts,
            Dim::RopePairs => self.n_rot / 2,
            Dim::Context => self.n_context,
        }
    }
}

/// When a tensor is there.
#[derive(Clone, Copy, Debug)]
enum Need {
    Always,
    Maybe,
    /// Where this one is not.
    InsteadOf(&'static str),
    /// Perhaps, where this one is.
    With(&'static str),
    /// Perhaps, where this one is not.
    Without(&'static str),
}

/// A tensor's rule; `*` in a name stands for each block's number.
#[derive(Clone, Copy)]
struct Tensor {
    name: &'static str,
    role: Role,
    dims: &'static [Dim], // in ggml's order
    need: Need,
    /// Whether llama.cpp multiplies its products by `.scale`, which some number types have.
    is_scaled: bool,
}

const fn matrix(name: &'static str, dims: &'static [Dim]) -> Tensor {
    Tensor {
        name,
        role: Role::Matrix,
        dims,
        need: Need::Always,
        is_scaled: false,
    }
}

const fn vector(name: &'static str, dims: &'static [Dim]) -> Tensor {
    Tensor {
        role: Role::Vector,
        ..matrix(name, dims)
    }
}

impl Tensor {
    const fn when(self, need: Need) -> Self {
        Self { need, ..self }
    }

    const fn scaled(self) -> Self {
        Self {
            is_scaled: true,
            ..self
        }
    }
}

use Dim::{
    AllHeads, Context, Experts, Ffn, Head, Heads, KvHeads, Model, One, RopePairs, Tokens, TwoFfn,
};
use Need::{Always, InsteadOf, Maybe, With, Without};

/// The sizes that tensors' shapes are made of.
pub(super) struct Sizes {
    pub(super) d_model: u64,
    pub(super) n_layers: u64,
    pub(super) n_heads: u64,
    pub(super) n_kv_heads: u64,
    pub(super) d_head: u64,
    pub(super) n_rot: u64, // a head's values that RoPE turns
    pub(super) d_ffn: u64,
    pub(super) n_experts: u64,
    pub(super) n_tokens: u64,
    pub(super) n_context: u64,
    pub(super) is_longrope: bool,
}

const QKV: &str = "blk.*.attn_qkv.weight";

const EVERY: &[Tensor] = &[
    matrix("token_embd.weight", &[Model, Tokens]),
    vector("output_norm.weight", &[Model]),
];

const PRE_NORMS: &[Tensor] = &[
    vector("blk.*.attn_norm.weight", &[Model]),
    vector("blk.*.ffn_norm.weight", &[Model]),
];

const ATTENTION: &[Tensor] = &[
    matrix("blk.*.attn_q.weight", &[Model, Heads])
        .when(InsteadOf(QKV))
        .scaled(),
    matrix("blk.*.attn_k.weight", &[Model, KvHeads])
        .when(InsteadOf(QKV))
        .scaled(),
    matrix("blk.*.attn_v.weight", &[Model, KvHeads])
        .when(InsteadOf(QKV))
        .scaled(),
    vector("blk.*.attn_q.bias", &[Heads]).when(Maybe),
    vector("blk.*.attn_k.bias", &[KvHeads]).when(Maybe),
    vector("blk.*.attn_v.bias", &[KvHeads]).when(Maybe),
    matrix(QKV, &[Model, AllHeads]).when(Maybe).scaled(),
    vector("blk.*.attn_qkv.bias", &[AllHeads]).when(With(QKV)),
    matrix("blk.*.attn_output.weight", &[Heads, Model]).scaled(),
];

/// What GPT-2 and GPT-NeoX have in each block, biases throughout; neither takes queries, keys and values apart.
const LAYER_NORM_BLOCKS: &[Tensor] = &[
    vector("output_norm.bias", &[Model]),
    vector("blk.*.attn_norm.bias", &[Model]),
    vector("blk.*.ffn_norm.bias", &[Model]),
    matrix(QKV, &[Model, AllHeads]).scaled(),
    vector("blk.*.attn_qkv.bias", &[AllHeads]),
    matrix("blk.*.attn_output.weight", &[Heads, Model]).scaled(),
    vector("blk.*.attn_output.bias", &[Model]),
    matrix("blk.*.ffn_up.weight", &[Model, Ffn]),
    vector("blk.*.ffn_up.bias", &[Ffn]),
    matrix("blk.*.ffn_down.weight", &[Ffn, Model]),
    vector("blk.*.ffn_down.bias", &[Model]),
];

const POSITIONS: &[Tensor] = &[matrix("position_embd.weight", &[Model, Context])];

/// Phi-3's gate stands in front of `ffn_up`.
const GATED_FFN: &[Tensor] = &[
    matrix("blk.*.ffn_up.weight", &[Model, TwoFfn]),
    matrix("blk.*.ffn_down.weight", &[Ffn, Model]),
];

/// Norms of all heads' queries, and of all their keys.
const NORMS_OF_ALL_HEADS: &[Tensor] = &[
    vector("blk.*.attn_q_norm.weight", &[Heads]),
    vector("blk.*.attn_k_norm.weight", &[KvHeads]),
];

const FFN: &[Tensor] = &[
    matrix("blk.*.ffn_gate.weight", &[Model, Ffn]),
    matrix("blk.*.ffn_up.weight", &[Model, Ffn]),
    matrix("blk.*.ffn_down.weight", &[Ffn, Model]),
];

const SCALED_FFN: &[Tensor] = &[
    matrix("blk.*.ffn_gate.weight", &[Model, Ffn]).scaled(),
    matrix("blk.*.ffn_up.weight", &[Model, Ffn]).scaled(),
    matrix("blk.*.ffn_down.weight", &[Ffn, Model]).scaled(),
];

/// `build_ffn` asserts that there are no biases beside scales.
const FFN_BIASES: &[Tensor] = &[
    vector("blk.*.ffn_gate.bias", &[Ffn]).when(Without("blk.*.ffn_gate.scale")),
    vector("blk.*.ffn_up.bias", &[Ffn]).when(Without("blk.*.ffn_up.scale")),
    vector("blk.*.ffn_down.bias", &[Model]).when(Without("blk.*.ffn_down.scale")),
];

const EXPERTS: &[Tensor] = &[
    matrix("blk.*.ffn_gate_inp.weight", &[Model, Experts]),
    matrix("blk.*.ffn_gate_exps.weight", &[Model, Ffn, Experts])
        .when(Maybe)
        .scaled(),
    matrix("blk.*.ffn_up_exps.weight", &[Model, Ffn, Experts]).scaled(),
    matrix("blk.*.ffn_down_exps.weight", &[Ffn, Model, Experts]).scaled(),
];

const POST_NORMS: &[Tensor] = &[
    vector("blk.*.post_attention_norm.weight", &[Model]),
    vector("blk.*.post_ffw_norm.weight", &[Model]),
];

const HEAD_NORMS: &[Tensor] = &[
    vector("blk.*.attn_q_norm.weight", &[Head]),
    vector("blk.*.attn_k_norm.weight", &[Head]),
];

/// An output of its own; without it, it is the token embedding.
const OUTPUT: &[Tensor] = &[matrix("output.weight", &[Model, Tokens]).when(Maybe)];

/// An output that is never the token embedding.
const OWN_OUTPUT: &[Tensor] = &[matrix("output.weight", &[Model, Tokens])];

const SCALED_OUTPUT: &[Tensor] = &[matrix("output.weight", &[Model, Tokens]).scaled()];

const OUTPUT_BIAS: &[Tensor] = &[vector("output.bias", &[Tokens]).when(Maybe)];

const ATTENTION_BIAS: &[Tensor] = &[vector("blk.*.attn_output.bias", &[Model]).when(Maybe)];

const ROPE_FACTORS: &[Tensor] = &[vector("rope_freqs.weight", &[RopePairs]).when(Maybe)];

const LONGROPE_FACTORS: &[Tensor] = &[
    vector("rope_factors_long.weight", &[RopePairs]).when(Maybe),
    vector("rope_factors_short.weight", &[RopePairs]).when(Maybe),
];

/// The tables of a known architecture.
fn tables(model: &Gguf, architecture: &str, sizes: &Sizes) -> Vec<&'static [Tensor]> {
    // The only type whose scales llama.cpp takes here.
    let output = model.tensor("output.weight");
    let output = if output.is_some_and(|output| output.tensor_type.name() == "nvfp4") {
        SCALED_OUTPUT
    } else {
        OUTPUT
    };
    match architecture {
        "gemma" => vec![EVERY, PRE_NORMS, ATTENTION, FFN],
        "gemma2" => vec![EVERY, PRE_NORMS, ATTENTION, FFN, POST_NORMS],
        "gemma3" => vec![
            EVERY, PRE_NORMS, ATTENTION, FFN, POST_NORMS, HEAD_NORMS, output,
        ],
        "gpt2" => vec![EVERY, PRE_NORMS, LAYER_NORM_BLOCKS, POSITIONS, output],
        "gptneox" => vec![EVERY, PRE_NORMS, LAYER_NORM_BLOCKS, OWN_OUTPUT],
        "olmo2" => vec![
            EVERY,
            ATTENTION,
            FFN,
            POST_NORMS,
            NORMS_OF_ALL_HEADS,
            OWN_OUTPUT,
        ],
        "phi3" => vec![
            EVERY,
            PRE_NORMS,
            ATTENTION,
            GATED_FFN,
            output,
            LONGROPE_FACTORS,
        ],
        "qwen2" | "qwen2vl" => vec![EVERY, PRE_NORMS, ATTENTION, FFN, output, OUTPUT_BIAS],
        "qwen3" => vec![EVERY, PRE_NORMS, ATTENTION, SCALED_FFN, HEAD_NORMS, output],
        "qwen3vl" => vec![EVERY, PRE_NORMS, ATTENTION, FFN, HEAD_NORMS, output],
        _ => {
            let factors = if sizes.is_longrope {
                LONGROPE_FACTORS
            } else {
                ROPE_FACTORS
            };
            let of_llama = [EVERY, PRE_NORMS, ATTENTION, output, ATTENTION_BIAS, factors];
            let feed_forward: &[_] = if sizes.n_experts == 0 {
                &[SCALED_FFN, FFN_BIASES]
            } else {
                &[EXPERTS]
            };
            [&of_llama, feed_forward].concat()
        }
    }
}

/// Checks that all tensors are there that must be, each of the right shape and type, and no others.
pub(super) fn check(model: &Gguf, architecture: &str, sizes: &Sizes) -> Result<()> {
    let tables = tables(model, architecture, sizes);
    let rules: Vec<&Tensor> = tables.into_iter().flatten().collect();
    let names: HashSet<&str> = model.tensors().iter().map(|tensor| &*tensor.name).collect();
    for tensor in model.tensors() {
        let name = &tensor.name;
        let (pattern, block_idx) = pattern(name);
        let exists = |rule: &Tensor| match block_idx {
            Some(block_idx) => block_idx < sizes.n_layers,
            None => !rule.name.contains('*'),
        };
        let Some(rule) = rule_for(&rules, &pattern).filter(exists) else {
            let what = format!(
                "tensor `{name}` does not belong to a model of architecture `{architecture}` with {} blocks",
                sizes.n_layers
            );
            return Err(broken(model, what));
        };
        let dims: Vec<u64> = rule.dims.iter().map(|&dim| sizes.of(dim)).collect();
        check_tensor(model, tensor, rule.role, &dims)?;
        let other = |other| in_block(other, block_idx.unwrap_or(0));
        match rule.need {
            With(weight) if !names.contains(&*other(weight)) => {
                let what = format!("tensor `{name}` is present without `{}`", other(weight));
                return Err(broken(model, what));
            }
            InsteadOf(twin) | Without(twin) if names.contains(&*other(twin)) => {
                let what = format!("tensors `{name}` and `{}` are both present", other(twin));
                return Err(broken(model, what));
            }
            _ => {}
        }
    }
    check_presence(model, &rules, &names, sizes.n_layers)
}

/// Checks that no tensor is missing.
fn check_presence(
    model: &Gguf,
    rules: &[&Tensor],
    names: &HashSet<&str>,
    n_layers: u64,
) -> Result<()> {
    for rule in rules {
        let n_blocks = if rule.name.contains('*') { n_layers } else { 1 };
        for block_idx in 0..n_blocks {
            let has = |name| names.contains(&*in_block(name, block_idx));
            let is_missing = match rule.need {
                Always => !has(rule.name),
                InsteadOf(twin) => !has(rule.name) && !has(twin),
                Maybe | With(_) | Without(_) => false,
            };
            if is_missing {
                let name = in_block(rule.name, block_idx);
                return Err(broken(model, format!("there is no tensor `{name}`")));
            }
        }
    }
    Ok(())
}

/// The rule for a tensor: one of the tables', or that of a matrix's scale, one for each expert.
fn rule_for(rules: &[&Tensor], pattern: &str) -> Option<Tensor> {
    let find = |name: &str| rules.iter().find(|rule| rule.name == name);
    if let Some(rule) = find(pattern) {
        return Some(**rule);
    }
    let (stem, part) = pattern.rsplit_once('.')?;
    let matrix = find(&format!("{stem}.weight")).filter(|matrix| matrix.is_scaled)?;
    matches!(part, "scale" | "input_scale").then_some(Tensor {
        dims: if matrix.dims.contains(&Experts) {
            &[Experts]
        } else {
            &[One]
        },
        need: With(matrix.name),
        ..vector(matrix.name, &[])
    })
}

/// A tensor's name with `*` for its block's number, and that number.
fn pattern(name: &str) -> (Cow<'_, str>, Option<u64>) {
    let number = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    match number.and_then(|(number, rest)| Some((number, number.parse::<u64>().ok()?, rest))) {
        // One number has one name.
        Some((text, number, rest)) if number.to_string() == text => {
            (format!("blk.*.{rest}").into(), Some(number))
        }
        _ => (name.into(), None),
    }
}

fn in_block(pattern: &str, block_idx: u64) -> String {
    pattern.replacen('*', &block_idx.to_string(), 1)
}
