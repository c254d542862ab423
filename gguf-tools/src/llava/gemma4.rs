//! What is written of a Gemma 4 and of nothing else: keys and tensors of the language model, tensors of the vision tower.
//!
//! Keys and names follow `src/models/gemma4.cpp` and `tools/mtmd/clip.cpp` of llama.cpp, and are those that its own
//! converter writes, but for `clip.use_gelu`, which that leaves out.

use super::config::{Architecture, Gemma4, Pooler, TextConfig, VisionConfig};
use super::language_model::{BlockTensor, u32_of};
use super::output::OutputTensor;
use crate::gguf::{TensorType, Writer};

/// Writes the keys; those of all architectures are written elsewhere.
pub(super) fn write_metadata(config: &TextConfig, gemma4: &Gemma4, writer: &mut Writer) {
    let key = |name: &str| format!("{}.{name}", Architecture::Gemma4.name());
    for (name, size) in [
        ("attention.key_length", gemma4.d_head_full),
        ("attention.value_length", gemma4.d_head_full),
        ("attention.key_length_swa", config.d_head),
        ("attention.value_length_swa", config.d_head),
        ("rope.dimension_count", gemma4.d_head_full),
        ("rope.dimension_count_swa", config.d_head),
        ("attention.shared_kv_layers", gemma4.n_shared),
        ("embedding_length_per_layer_input", gemma4.d_per_layer),
    ] {
        writer.set(&key(name), u32_of(size));
    }
    let blocks = (0..config.n_layers).map(|block_idx| config.block_sizes(block_idx));
    let [_, n_kv_heads, d_ffn] = config.block_sizes(0);
    for (name, of_first, sizes) in [
        (
            "attention.head_count_kv",
            n_kv_heads,
            blocks
                .clone()
                .map(|[_, n_kv_heads, _]| n_kv_heads)
                .collect::<Vec<_>>(),
        ),
        (
            "feed_forward_length",
            d_ffn,
            blocks.map(|[_, _, d_ffn]| d_ffn).collect(),
        ),
    ] {
        // One number for all, where it is one.
        match sizes.iter().all(|size| *size == of_first) {
            true => writer.set(&key(name), u32_of(of_first)),
            false => {
                let sizes = sizes.into_iter().map(|size| u32_of(size).cast_signed());
                writer.set(&key(name), sizes.collect::<Vec<i32>>());
            }
        }
    }
    if let Some(experts) = gemma4.experts {
        for (name, size) in [
            ("expert_count", experts.n),
            ("expert_used_count", experts.n_used),
            ("expert_feed_forward_length", experts.d_ffn),
        ] {
            writer.set(&key(name), u32_of(size));
        }
    }
    // Without the key, llama.cpp takes 30, as in published models.
    let softcap = gemma4.softcap.unwrap_or(0.0);
    writer.set(&key("final_logit_softcapping"), softcap);
}

/// The tensors of a block besides the feed-forward part's matrices, its norms and its attention's, which Gemma 3 has too.
pub(super) fn block(config: &TextConfig, gemma4: &Gemma4) -> Vec<BlockTensor> {
    let d_model = config.d_model;
    let mut tensors: Vec<BlockTensor> =
        vec![("layer_output_scale.weight", "layer_scalar", vec![1])];
    if gemma4.d_per_layer > 0 {
        tensors.extend([
            (
                "inp_gate.weight",
                "per_layer_input_gate.weight",
                vec![gemma4.d_per_layer, d_model],
            ),
            (
                "proj.weight",
                "per_layer_projection.weight",
                vec![d_model, gemma4.d_per_layer],
            ),
            (
                "post_norm.weight",
                "post_per_layer_input_norm.weight",
                vec![d_model],
            ),
        ]);
    }
    if let Some(experts) = gemma4.experts {
        let (n, d_ffn) = (experts.n, experts.d_ffn);
        tensors.extend([
            (
                "ffn_gate_inp.weight",
                "router.proj.weight",
                vec![n, d_model],
            ),
            ("ffn_gate_inp.scale", "router.scale", vec![d_model]),
            ("ffn_down_exps.scale", "router.per_expert_scale", vec![n]),
            (
                "ffn_gate_up_exps.weight",
                "experts.gate_up_proj",
                vec![n, 2 * d_ffn, d_model],
            ),
            (
                "ffn_down_exps.weight",
                "experts.down_proj",
                vec![n, d_model, d_ffn],
            ),
            (
                "post_ffw_norm_1.weight",
                "post_feedforward_layernorm_1.weight",
                vec![d_model],
            ),
            (
                "pre_ffw_norm_2.weight",
                "pre_feedforward_layernorm_2.weight",
                vec![d_model],
            ),
            (
                "post_ffw_norm_2.weight",
                "post_feedforward_layernorm_2.weight",
                vec![d_model],
            ),
        ]);
    }
    tensors
}

/// The tensors outside of blocks, of per-layer embeddings.
pub(super) fn per_layer(config: &TextConfig, gemma4: &Gemma4) -> Vec<BlockTensor> {
    if gemma4.d_per_layer == 0 {
        return Vec::new();
    }
    let width = config.n_layers * gemma4.d_per_layer;
    vec![
        (
            "per_layer_token_embd.weight",
            "embed_tokens_per_layer.weight",
            vec![config.vocab_size, width],
        ),
        (
            "per_layer_model_proj.weight",
            "per_layer_model_projection.weight",
            vec![width, config.d_model],
        ),
        (
            "per_layer_proj_norm.weight",
            "per_layer_projection_norm.weight",
            vec![gemma4.d_per_layer],
        ),
    ]
}

/// Whether a checkpoint's tensor of that plain name is of keys and values of a block that has those of another, which
/// neither transformers nor llama.cpp reads.
pub(super) fn is_unused(config: &TextConfig, name: &str) -> bool {
    let part = name
        .strip_prefix("language_model.layers.")
        .and_then(|rest| rest.split_once(".self_attn."))
        .and_then(|(block_idx, part)| Some((block_idx.parse::<usize>().ok()?, part)));
    let is_of_keys = |part: &str| {
        ["k_proj.", "v_proj.", "k_norm."]
            .iter()
            .any(|of_keys| part.starts_with(of_keys))
    };
    part.is_some_and(|(block_idx, part)| {
        block_idx < config.n_layers && config.shares(block_idx) && is_of_keys(part)
    })
}

/// The tensors of the vision tower and of what follows.
pub(super) fn vision_tensors(
    vision: &VisionConfig,
    pooler: Pooler,
    d_text: usize,
    matrices: TensorType,
) -> Vec<OutputTensor> {
    let (d_model, d_ffn, patch) = (vision.d_model, vision.d_ffn, vision.patch_size);
    let vector = |name: String, source: String, n| {
        let (name, source) = (format!("v.{name}"), format!("vision_tower.{source}"));
        OutputTensor::new(name, source, &[n], TensorType::F32)
    };
    let mut tensors = vec![
        OutputTensor::kernel(
            "v.patch_embd.weight".to_owned(),
            "vision_tower.patch_embedder.input_proj.weight".to_owned(),
            [d_model, 3, patch],
        ),
        OutputTensor::new(
            "v.position_embd.weight".to_owned(),
            "vision_tower.patch_embedder.position_embedding_table".to_owned(),
            &[2, pooler.n_positions, d_model],
            TensorType::F32,
        ),
    ];
    for block_idx in 0..vision.n_layers {
        let name = |part: &str| format!("blk.{block_idx}.{part}");
        let source = |part: &str| format!("encoder.layers.{block_idx}.{part}");
        for (part, source_part, n) in [
            ("ln1", "input_layernorm", d_model),
            ("attn_post_norm", "post_attention_layernorm", d_model),
            ("ln2", "pre_feedforward_layernorm", d_model),
            ("ffn_post_norm", "post_feedforward_layernorm", d_model),
            ("attn_q_norm", "self_attn.q_norm", d_model / vision.n_heads),
            ("attn_k_norm", "self_attn.k_norm", d_model / vision.n_heads),
        ] {
            let source = source(&format!("{source_part}.weight"));
            tensors.push(vector(name(&format!("{part}.weight")), source, n));
        }
        for (part, source_part, shape) in [
            ("attn_q", "self_attn.q_proj", [d_model, d_model]),
            ("attn_k", "self_attn.k_proj", [d_model, d_model]),
            ("attn_v", "self_attn.v_proj", [d_model, d_model]),
            ("attn_out", "self_attn.o_proj", [d_model, d_model]),
            ("ffn_gate", "mlp.gate_proj", [d_ffn, d_model]),
            ("ffn_up", "mlp.up_proj", [d_ffn, d_model]),
            ("ffn_down", "mlp.down_proj", [d_model, d_ffn]),
        ] {
            let (name, source) = (
                format!("v.{}", name(part)),
                format!("vision_tower.{}", source(source_part)),
            );
            tensors.push(OutputTensor::matrix(
                format!("{name}.weight"),
                format!("{source}.linear.weight"),
                shape,
                matrices,
            ));
            if pooler.is_clipped {
                let limits = ["input_min", "input_max", "output_min", "output_max"];
                tensors.extend(limits.map(|limit| {
                    OutputTensor::scalar(format!("{name}.{limit}"), format!("{source}.{limit}"))
                }));
            }
        }
    }
    if pooler.is_standardised {
        for name in ["std_bias", "std_scale"] {
            tensors.push(vector(name.to_owned(), name.to_owned(), d_model));
        }
    }
    tensors.push(OutputTensor::matrix(
        "mm.input_projection.weight".to_owned(),
        "embed_vision.embedding_projection.weight".to_owned(),
        [d_text, d_model],
        matrices,
    ));
    tensors
}
