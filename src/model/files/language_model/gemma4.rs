//! Gemma 4: blocks of two shapes, and what only some models have: per-layer embeddings, keys and values that blocks
//! share, experts.
//!
//! Mirrors `src/models/gemma4.cpp` and `create_memory` in `src/llama-model.cpp`, as llama-cpp-sys-2 0.1.161 carries
//! them.

use std::collections::{HashMap, HashSet};

use gguf_tools::gguf::{Array, Gguf, Value};

use super::{Header, MAX_WINDOW};
use crate::Result;
use crate::model::files::rules::{Key, Kind, Role, broken, check_tensor};

const MAX_WIDTH: u32 = 1 << 14;

pub(super) const KEYS: &[Key] = &[
    Key::required("*.attention.sliding_window", Kind::Count(1, MAX_WINDOW)),
    Key::optional("*.rope.freq_base_swa", Kind::Positive(f32::MAX)),
    Key::optional("*.final_logit_softcapping", Kind::NotNegative), // 0: none, missing: 30
    Key::required(
        "*.embedding_length_per_layer_input",
        Kind::Count(0, MAX_WIDTH),
    ), // 0: none
    Key::required("*.attention.key_length", Kind::Count(2, MAX_WIDTH)),
    Key::required("*.attention.key_length_swa", Kind::Count(2, MAX_WIDTH)),
    Key::optional("*.attention.shared_kv_layers", Kind::Count(0, 512)),
];

/// Sizes that a block may have of its own.
struct Block {
    d_head: u64,
    n_kv_heads: u64,
    d_ffn: u64,
}

/// What a file's header says.
struct Sizes {
    d_model: u64,
    n_tokens: u64,
    n_heads: u64,
    d_per_layer: u64,
    /// The blocks that have keys and values of their own.
    n_own: usize,
    n_experts: u64,
    d_expert: u64,
    d_head_full: u64,
    blocks: Vec<Block>,
}

/// Whether all that blocks compute depends on the residual stream alone: not where per-layer embeddings, or keys and
/// values of blocks further down, come in beside it.
pub(in crate::model::files) fn is_of_stream_alone(model: &Gguf) -> bool {
    let is_zero = |name| !matches!(model.get(name), Some(Value::U32(1..)));
    is_zero("gemma4.embedding_length_per_layer_input")
        && is_zero("gemma4.attention.shared_kv_layers")
}

/// Checks a file whose keys have passed.
pub(super) fn check(header: &Header, n_tokens: u64) -> Result<()> {
    let sizes = Sizes::read(header, n_tokens)?;
    check_tensors(header.model, &sizes)
}

impl Sizes {
    fn read(header: &Header, n_tokens: u64) -> Result<Self> {
        let number = |name| header.number(name).unwrap_or(0);
        let [d_model, n_layers] = [number("embedding_length"), number("block_count")];
        let windows = windows(header, n_layers)?;
        let n_heads =
            header.number_of_each_block("attention.head_count", n_layers, None, 1..=d_model)?;
        let n_kv_heads = header.numbers_of_blocks(
            "attention.head_count_kv",
            n_layers,
            Some(n_heads),
            1..=n_heads,
        )?;
        if let Some(n) = n_kv_heads.iter().find(|n| !n_heads.is_multiple_of(**n)) {
            let expected = format!("divisors of the {n_heads} heads, which {n} is not");
            return Err(header.wrong("attention.head_count_kv", expected));
        }
        let d_ffn = header.numbers_of_blocks("feed_forward_length", n_layers, None, 1..=1 << 24)?;
        let [d_head_full, d_head_swa] = [head_size(header, "")?, head_size(header, "_swa")?];
        let n_experts = number("expert_count");
        let n_used =
            header.number_of_each_block("expert_used_count", n_layers, Some(0), 0..=n_experts)?;
        if (n_used == 0) != (n_experts == 0) {
            let expected = format!("from 1 to the {n_experts} experts");
            return Err(header.wrong("expert_used_count", expected));
        }
        let d_expert = match n_experts {
            0 => 0,
            _ => header.number_of_each_block(
                "expert_feed_forward_length",
                n_layers,
                None,
                1..=1 << 24,
            )?,
        };
        let blocks = windows.iter().zip(n_kv_heads).zip(d_ffn);
        let blocks = blocks.map(|((&has_window, n_kv_heads), d_ffn)| Block {
            d_head: if has_window { d_head_swa } else { d_head_full },
            n_kv_heads,
            d_ffn,
        });
        Ok(Self {
            d_model,
            n_tokens,
            n_heads,
            d_per_layer: number("embedding_length_per_layer_input"),
            n_own: n_own(header, &windows)?,
            n_experts,
            d_expert,
            d_head_full,
            blocks: blocks.collect(),
        })
    }
}

/// Which blocks see no further back than the window; some do, and some do not.
fn windows(header: &Header, n_layers: u64) -> Result<Vec<bool>> {
    let name = "attention.sliding_window_pattern";
    let windows: Vec<bool> = match header.get(name) {
        Some(Value::Array(Array::Bool(all))) => all.clone(),
        Some(Value::Array(Array::U32(all))) => all.iter().map(|&n| n != 0).collect(),
        Some(Value::Array(Array::I32(all))) => all.iter().map(|&n| n != 0).collect(),
        _ => Vec::new(),
    };
    let has = |kind| windows.contains(&kind);
    match windows.len() as u64 == n_layers && has(true) && has(false) {
        true => Ok(windows),
        false => Err(header.wrong(
            name,
            format!("an array of bools for the {n_layers} blocks, with both"),
        )),
    }
}

/// A head's size in blocks of a kind: of keys as of values, and turned as a whole.
fn head_size(header: &Header, kind: &str) -> Result<u64> {
    let key = format!("attention.key_length{kind}");
    let d_head = header.number(&key).unwrap_or(0);
    if !d_head.is_multiple_of(2) {
        return Err(header.wrong(&key, "even, since RoPE turns pairs"));
    }
    // Without them, llama.cpp takes other sizes.
    for name in [
        format!("attention.value_length{kind}"),
        format!("rope.dimension_count{kind}"),
    ] {
        if header.number(&name) != Some(d_head) {
            return Err(header.wrong(&name, format!("{d_head}, as keys are")));
        }
    }
    Ok(d_head)
}

/// The blocks that have keys and values of their own. llama.cpp gives the others those of the last of these, or of the
/// one before that where they have a window; transformers those of the last one of their kind.
fn n_own(header: &Header, windows: &[bool]) -> Result<usize> {
    let name = "attention.shared_kv_layers";
    let n_shared = header.number(name).unwrap_or(0) as usize;
    let n_own = windows.len().saturating_sub(n_shared);
    if n_own < 2 {
        let expected = format!(
            "at most {}, so that two of the {} blocks have keys of their own",
            windows.len().saturating_sub(2),
            windows.len()
        );
        return Err(header.wrong(name, expected));
    }
    if n_shared > 0 && (!windows[n_own - 2] || windows[n_own - 1]) {
        let expected = "a number of blocks that come behind one with a window and then one without, whose keys llama.cpp gives them";
        return Err(header.wrong(name, expected));
    }
    Ok(n_own)
}

/// A tensor that there may be.
struct Tensor {
    role: Role,
    dims: Vec<u64>, // in ggml's order
    is_required: bool,
}

/// The tensors of a model, by name.
struct Expected(HashMap<String, Tensor>);

impl Expected {
    fn add(&mut self, name: String, role: Role, dims: &[u64], is_required: bool) {
        let tensor = Tensor {
            role,
            dims: dims.to_vec(),
            is_required,
        };
        self.0.insert(name, tensor);
    }

    fn of(sizes: &Sizes, names: &HashSet<&str>) -> Self {
        let mut all = Self(HashMap::new());
        let d_model = sizes.d_model;
        let weight = |name: &str| format!("{name}.weight");
        let embedding = [d_model, sizes.n_tokens];
        all.add(weight("token_embd"), Role::Matrix, &embedding, true);
        all.add(weight("output"), Role::Matrix, &embedding, false);
        all.add(weight("output_norm"), Role::Vector, &[d_model], true);
        all.add(
            weight("rope_freqs"),
            Role::Vector,
            &[sizes.d_head_full / 2],
            true,
        );
        if sizes.d_per_layer > 0 {
            let width = sizes.d_per_layer * sizes.blocks.len() as u64;
            all.add(
                weight("per_layer_token_embd"),
                Role::Matrix,
                &[width, sizes.n_tokens],
                true,
            );
            all.add(
                weight("per_layer_model_proj"),
                Role::Matrix,
                &[d_model, width],
                true,
            );
            all.add(
                weight("per_layer_proj_norm"),
                Role::Vector,
                &[sizes.d_per_layer],
                true,
            );
        }
        for block_idx in 0..sizes.blocks.len() {
            all.add_block(sizes, names, block_idx);
        }
        all
    }

    fn add_block(&mut self, sizes: &Sizes, names: &HashSet<&str>, block_idx: usize) {
        let block = &sizes.blocks[block_idx];
        let [d_model, d_ffn] = [sizes.d_model, block.d_ffn];
        let [d_heads, d_keys] = [sizes.n_heads, block.n_kv_heads].map(|n| n * block.d_head);
        let has_keys = block_idx < sizes.n_own;
        let name = |part: &str| format!("blk.{block_idx}.{part}");
        for (part, dims, is_required) in [
            ("attn_q", [d_model, d_heads], true),
            ("attn_k", [d_model, d_keys], has_keys),
            ("attn_v", [d_model, d_keys], false), // without it, values are keys
            ("attn_output", [d_heads, d_model], true),
            ("ffn_gate", [d_model, d_ffn], true),
            ("ffn_up", [d_model, d_ffn], true),
            ("ffn_down", [d_ffn, d_model], true),
        ] {
            self.add(
                name(&format!("{part}.weight")),
                Role::Matrix,
                &dims,
                is_required,
            );
        }
        for (part, n, is_required) in [
            ("attn_norm", d_model, true),
            ("attn_q_norm", block.d_head, true),
            ("attn_k_norm", block.d_head, has_keys),
            ("post_attention_norm", d_model, true),
            ("ffn_norm", d_model, true),
            ("post_ffw_norm", d_model, true),
            ("layer_output_scale", 1, false),
        ] {
            self.add(
                name(&format!("{part}.weight")),
                Role::Vector,
                &[n],
                is_required,
            );
        }
        if sizes.d_per_layer > 0 {
            let width = sizes.d_per_layer;
            self.add(
                name("inp_gate.weight"),
                Role::Matrix,
                &[d_model, width],
                true,
            );
            self.add(name("proj.weight"), Role::Matrix, &[width, d_model], true);
            self.add(name("post_norm.weight"), Role::Vector, &[d_model], true);
        }
        let router = name("ffn_gate_inp.weight");
        if sizes.n_experts == 0 || !names.contains(&*router) {
            return; // a block without experts
        }
        let (n, d_expert) = (sizes.n_experts, sizes.d_expert);
        self.add(router, Role::Matrix, &[d_model, n], true);
        self.add(name("ffn_gate_inp.scale"), Role::Vector, &[d_model], true);
        for part in ["post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2"] {
            self.add(
                name(&format!("{part}.weight")),
                Role::Vector,
                &[d_model],
                true,
            );
        }
        let both = name("ffn_gate_up_exps.weight");
        match names.contains(&*both) {
            true => self.add(both, Role::Matrix, &[d_model, 2 * d_expert, n], true),
            false => {
                for part in ["ffn_gate_exps.weight", "ffn_up_exps.weight"] {
                    self.add(name(part), Role::Matrix, &[d_model, d_expert, n], true);
                }
            }
        }
        self.add(
            name("ffn_down_exps.weight"),
            Role::Matrix,
            &[d_expert, d_model, n],
            true,
        );
        self.add(name("ffn_down_exps.scale"), Role::Vector, &[n], false);
    }
}

/// Checks that all tensors are there that must be, each of the right shape and type, and no others.
fn check_tensors(model: &Gguf, sizes: &Sizes) -> Result<()> {
    let names: HashSet<&str> = model.tensors().iter().map(|tensor| &*tensor.name).collect();
    let Expected(expected) = Expected::of(sizes, &names);
    for tensor in model.tensors() {
        let Some(rule) = expected.get(&tensor.name) else {
            let what = format!(
                "tensor `{}` does not belong to a model of architecture `gemma4` with {} blocks",
                tensor.name,
                sizes.blocks.len()
            );
            return Err(broken(model, what));
        };
        check_tensor(model, tensor, rule.role, &rule.dims)?;
    }
    let mut missing = expected
        .iter()
        .filter(|(name, tensor)| tensor.is_required && !names.contains(&***name))
        .map(|(name, _)| name)
        .collect::<Vec<_>>();
    missing.sort_unstable(); // so that it is the same one each time
    match missing.first() {
        None => Ok(()),
        Some(name) => Err(broken(model, format!("there is no tensor `{name}`"))),
    }
}
