//! The language model's file: what llama.cpp's `gemma`, `gemma3`, `gemma4`, `llama`, `qwen2` and `qwen3` architectures read.
//!
//! Keys and names follow `src/llama-arch.cpp`, `src/llama-model.cpp` and the architectures' files in
//! `src/models/` of llama.cpp.

use super::checkpoint::Checkpoint;
use super::config::{Architecture, OutputMatrix, RopeScaling, TextConfig};
use super::gemma4;
use super::output::OutputTensor;
use crate::gguf::{TensorType, Writer};
use crate::{Error, Result};

/// The output matrix in a checkpoint that has one.
pub(super) const OUTPUT: &str = "lm_head.weight";

/// The plain names of a language model's tensors begin with it, but for [`OUTPUT`].
pub(super) const PREFIX: &str = "language_model.";

/// Writes the hyperparameters; the tokenizer writes its own keys.
pub(super) fn write_metadata(config: &TextConfig, writer: &mut Writer) {
    let architecture = config.architecture;
    let key = |name: &str| format!("{}.{name}", architecture.name());
    let mut sizes = vec![
        ("context_length", config.context_length),
        ("embedding_length", config.d_model),
        ("block_count", config.n_layers),
    ];
    match &config.gemma4 {
        Some(_) => sizes.push(("attention.head_count", config.n_heads)),
        None => sizes.extend([
            ("feed_forward_length", config.d_ffn),
            ("attention.head_count", config.n_heads),
            ("attention.head_count_kv", config.n_kv_heads),
            ("attention.key_length", config.d_head),
            ("attention.value_length", config.d_head),
        ]),
    }
    for (name, size) in sizes {
        writer.set(&key(name), u32_of(size));
    }
    if let Some(of_gemma4) = &config.gemma4 {
        gemma4::write_metadata(config, of_gemma4, writer);
    }
    writer.set(
        &key("attention.layer_norm_rms_epsilon"),
        config.rms_norm_eps,
    );
    writer.set(&key("rope.freq_base"), config.rope.theta);
    if architecture == Architecture::Llama {
        writer.set(&key("rope.dimension_count"), u32_of(config.d_head));
        writer.set(&key("vocab_size"), u32_of(config.vocab_size));
    }
    if let RopeScaling::Linear(factor) = config.rope.scaling {
        writer.set(&key("rope.scaling.type"), "linear");
        writer.set(&key("rope.scaling.factor"), factor);
    }
    if let Some(window) = &config.window {
        writer.set(&key("attention.sliding_window"), u32_of(window.length));
        writer.set(&key("rope.freq_base_swa"), window.rope_theta);
        if !window.is_default() || architecture == Architecture::Gemma4 {
            let pattern = key("attention.sliding_window_pattern");
            writer.set(&pattern, window.blocks.clone());
        }
    }
}

pub(super) fn u32_of(size: usize) -> u32 {
    u32::try_from(size).expect("the config's sizes are below 2^25")
}

/// A tensor of a block: its name in the file and in the checkpoint, and its shape.
pub(super) type BlockTensor = (&'static str, &'static str, Vec<usize>);

/// The tensors of a block in the file's order.
fn block(config: &TextConfig, block_idx: usize) -> Vec<BlockTensor> {
    let d_model = config.d_model;
    let [d_head, n_kv_heads, d_ffn] = config.block_sizes(block_idx);
    let d_q = config.n_heads * d_head;
    let d_kv = n_kv_heads * d_head;
    let mut tensors: Vec<BlockTensor> = vec![
        ("attn_norm.weight", "input_layernorm.weight", vec![d_model]),
        (
            "attn_q.weight",
            "self_attn.q_proj.weight",
            vec![d_q, d_model],
        ),
    ];
    let has_keys = !config.shares(block_idx);
    let values_are_keys = config
        .gemma4
        .as_ref()
        .is_some_and(|gemma4| gemma4.values_are_keys);
    if has_keys {
        tensors.push((
            "attn_k.weight",
            "self_attn.k_proj.weight",
            vec![d_kv, d_model],
        ));
    }
    if has_keys && (config.has_window(block_idx) || !values_are_keys) {
        tensors.push((
            "attn_v.weight",
            "self_attn.v_proj.weight",
            vec![d_kv, d_model],
        ));
    }
    tensors.push((
        "attn_output.weight",
        "self_attn.o_proj.weight",
        vec![d_model, d_q],
    ));
    let norms: &[(&str, &str, usize)] = match config.architecture {
        Architecture::Gemma | Architecture::Llama | Architecture::Qwen2 => &[(
            "ffn_norm.weight",
            "post_attention_layernorm.weight",
            d_model,
        )],
        Architecture::Qwen3 => &[
            ("attn_q_norm.weight", "self_attn.q_norm.weight", d_head),
            ("attn_k_norm.weight", "self_attn.k_norm.weight", d_head),
            (
                "ffn_norm.weight",
                "post_attention_layernorm.weight",
                d_model,
            ),
        ],
        Architecture::Gemma3 | Architecture::Gemma4 => &[
            ("attn_q_norm.weight", "self_attn.q_norm.weight", d_head),
            ("attn_k_norm.weight", "self_attn.k_norm.weight", d_head),
            (
                "post_attention_norm.weight",
                "post_attention_layernorm.weight",
                d_model,
            ),
            (
                "ffn_norm.weight",
                "pre_feedforward_layernorm.weight",
                d_model,
            ),
            (
                "post_ffw_norm.weight",
                "post_feedforward_layernorm.weight",
                d_model,
            ),
        ],
    };
    let norms = norms
        .iter()
        .filter(|(name, _, _)| has_keys || *name != "attn_k_norm.weight");
    tensors.extend(norms.map(|&(name, source, n)| (name, source, vec![n])));
    tensors.extend([
        (
            "ffn_gate.weight",
            "mlp.gate_proj.weight",
            vec![d_ffn, d_model],
        ),
        ("ffn_up.weight", "mlp.up_proj.weight", vec![d_ffn, d_model]),
        (
            "ffn_down.weight",
            "mlp.down_proj.weight",
            vec![d_model, d_ffn],
        ),
    ]);
    if let Some(of_gemma4) = &config.gemma4 {
        tensors.extend(gemma4::block(config, of_gemma4));
    }
    tensors
}

/// The tensors of the file in its order, matrices in `matrices` type.
pub(super) fn tensors(config: &TextConfig, matrices: TensorType) -> Vec<OutputTensor> {
    let tensor = |name: String, source: String, shape: &[usize]| match shape.len() {
        // Which experts are chosen is a matter of small differences; llama.cpp's converter keeps it so, too.
        2 if name.ends_with(".ffn_gate_inp.weight") => {
            OutputTensor::new(name, source, shape, TensorType::F32)
        }
        1 => {
            let norm = OutputTensor::new(name, source, shape, TensorType::F32);
            match config.architecture.has_norms_from_one() {
                true => norm.plus_one(),
                false => norm,
            }
        }
        _ => OutputTensor::matrices(name, source, shape, matrices),
    };
    let outside = |name: &str, source: &str, shape: &[usize]| {
        tensor(
            format!("{name}.weight"),
            format!("{PREFIX}{source}.weight"),
            shape,
        )
    };
    let embedding = [config.vocab_size, config.d_model];
    let mut tensors = vec![outside("token_embd", "embed_tokens", &embedding)];
    // llama.cpp takes it for every block.
    if let RopeScaling::Factors(factors) = &config.rope.scaling {
        let name = "rope_freqs.weight".to_owned();
        tensors.push(OutputTensor::computed(name, factors.clone()));
    }
    if let Some(of_gemma4) = &config.gemma4 {
        let per_layer = gemma4::per_layer(config, of_gemma4).into_iter();
        tensors.extend(per_layer.map(|(name, source, shape)| {
            tensor(name.to_owned(), format!("{PREFIX}{source}"), &shape)
        }));
    }
    for layer_idx in 0..config.n_layers {
        for (name, source, shape) in block(config, layer_idx) {
            let tensor = tensor(
                format!("blk.{layer_idx}.{name}"),
                format!("{PREFIX}layers.{layer_idx}.{source}"),
                &shape,
            );
            // In a Llama, llama.cpp turns neighbouring rows of a head together, and transformers rows
            // that are half a head apart.
            let is_turned = matches!(name, "attn_q.weight" | "attn_k.weight");
            tensors.push(
                match is_turned && config.architecture == Architecture::Llama {
                    true => tensor.interleaved(config.d_head),
                    false => tensor,
                },
            );
        }
        if config.architecture == Architecture::Qwen2 {
            tensors.extend(biases(config, layer_idx));
        }
    }
    tensors.push(outside("output_norm", "norm", &[config.d_model]));
    if has_output(config) {
        tensors.push(tensor(
            "output.weight".to_owned(),
            OUTPUT.to_owned(),
            &embedding,
        ));
    }
    tensors
}

/// The biases of Qwen2's queries, keys and values.
fn biases(config: &TextConfig, layer_idx: usize) -> [OutputTensor; 3] {
    let d_kv = config.n_kv_heads * config.d_head;
    let d_q = config.n_heads * config.d_head;
    [("q", d_q), ("k", d_kv), ("v", d_kv)].map(|(part, width)| {
        OutputTensor::new(
            format!("blk.{layer_idx}.attn_{part}.bias"),
            format!("{PREFIX}layers.{layer_idx}.self_attn.{part}_proj.bias"),
            &[width],
            TensorType::F32,
        )
    })
}

/// Whether the output matrix is in the file: llama.cpp's `gemma` has the embedding in its place.
fn has_output(config: &TextConfig) -> bool {
    config.output == OutputMatrix::Stored && config.architecture != Architecture::Gemma
}

/// Checks that an output matrix that is not in the file, but that transformers would use, equals the
/// embedding.
///
/// # Errors
/// One that differs; llama.cpp's graph has no place for it.
pub(super) fn check_output(config: &TextConfig, checkpoint: &Checkpoint) -> Result<()> {
    let output = match config.output {
        OutputMatrix::Stored if !has_output(config) => checkpoint.get(OUTPUT),
        _ => None,
    };
    let Some(output) = output else {
        return Ok(());
    };
    output.check(&[config.vocab_size, config.d_model])?;
    let embedding = checkpoint.require("language_model.embed_tokens.weight")?;
    // Both have the same shape, so their blocks have the same size.
    let (mut output_blocks, mut embedding_blocks) = (output.blocks()?, embedding.blocks()?);
    while let (Some((output_values, _)), Some((embedding_values, _))) =
        (output_blocks.next()?, embedding_blocks.next()?)
    {
        if output_values != embedding_values {
            return Err(Error::invalid(format!(
                "{} differs from the embedding and `tie_word_embeddings` is false, \
                 but llama.cpp's Gemma uses the embedding for both",
                output.describe()
            )));
        }
    }
    Ok(())
}
