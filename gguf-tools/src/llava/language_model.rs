//! The language model's file: what llama.cpp's `gemma` architecture reads.
//!
//! Keys and names follow `src/llama-arch.cpp`, `src/llama-model.cpp` and `src/models/gemma.cpp` of
//! llama.cpp. The output matrix is not stored: the graph uses the embedding for it, as transformers
//! does unless the config says otherwise.

use super::checkpoint::Checkpoint;
use super::config::{OutputMatrix, TextConfig};
use super::output::OutputTensor;
use crate::gguf::{TensorType, Writer};
use crate::{Error, Result};

/// The output matrix in a checkpoint that has one.
pub(super) const OUTPUT: &str = "lm_head.weight";

/// Writes Gemma's hyperparameters; the tokenizer writes its own keys.
pub(super) fn write_metadata(config: &TextConfig, writer: &mut Writer) {
    let size = |value: usize| u32::try_from(value).expect("the config's sizes are below 2^24");
    writer.set("gemma.context_length", size(config.context_length));
    writer.set("gemma.embedding_length", size(config.d_model));
    writer.set("gemma.block_count", size(config.n_layers));
    writer.set("gemma.feed_forward_length", size(config.d_ffn));
    writer.set("gemma.attention.head_count", size(config.n_heads));
    writer.set("gemma.attention.head_count_kv", size(config.n_kv_heads));
    writer.set("gemma.attention.key_length", size(config.d_head));
    writer.set("gemma.attention.value_length", size(config.d_head));
    writer.set(
        "gemma.attention.layer_norm_rms_epsilon",
        config.rms_norm_eps,
    );
    writer.set("gemma.rope.freq_base", config.rope_theta);
}

/// The tensors of the file in its order, matrices in `matrices` type.
pub(super) fn tensors(config: &TextConfig, matrices: TensorType) -> Vec<OutputTensor> {
    let d_model = config.d_model;
    let d_q = config.n_heads * config.d_head;
    let d_kv = config.n_kv_heads * config.d_head;
    let matrix = |name: String, source: String, shape: [usize; 2]| {
        OutputTensor::matrix(name, format!("language_model.{source}"), shape, matrices)
    };
    // Gemma multiplies by 1 + weight, llama.cpp by the weight.
    let norm = |name: String, source: String| {
        OutputTensor::new(
            name,
            format!("language_model.{source}"),
            &[d_model],
            TensorType::F32,
        )
        .plus_one()
    };

    let mut tensors = vec![matrix(
        "token_embd.weight".to_owned(),
        "embed_tokens.weight".to_owned(),
        [config.vocab_size, d_model],
    )];
    for layer_idx in 0..config.n_layers {
        let name = |part: &str| format!("blk.{layer_idx}.{part}.weight");
        let source = |part: &str| format!("layers.{layer_idx}.{part}.weight");
        tensors.extend([
            norm(name("attn_norm"), source("input_layernorm")),
            matrix(name("attn_q"), source("self_attn.q_proj"), [d_q, d_model]),
            matrix(name("attn_k"), source("self_attn.k_proj"), [d_kv, d_model]),
            matrix(name("attn_v"), source("self_attn.v_proj"), [d_kv, d_model]),
            matrix(
                name("attn_output"),
                source("self_attn.o_proj"),
                [d_model, d_q],
            ),
            norm(name("ffn_norm"), source("post_attention_layernorm")),
            matrix(
                name("ffn_gate"),
                source("mlp.gate_proj"),
                [config.d_ffn, d_model],
            ),
            matrix(
                name("ffn_up"),
                source("mlp.up_proj"),
                [config.d_ffn, d_model],
            ),
            matrix(
                name("ffn_down"),
                source("mlp.down_proj"),
                [d_model, config.d_ffn],
            ),
        ]);
    }
    tensors.push(norm(
        "output_norm.weight".to_owned(),
        "norm.weight".to_owned(),
    ));
    tensors
}

/// Checks that an output matrix equals the embedding, where transformers would use it.
///
/// # Errors
/// One that differs; llama.cpp's graph has no place for it.
pub(super) fn check_output(config: &TextConfig, checkpoint: &Checkpoint) -> Result<()> {
    let output = match config.output {
        OutputMatrix::Embedding => None,
        OutputMatrix::Stored => checkpoint.get(OUTPUT),
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
