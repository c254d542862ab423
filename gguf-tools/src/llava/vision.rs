//! The image encoder's and projector's file: what llama.cpp's `mtmd` reads as a `clip` model with
//! an `mlp` projector.
//!
//! Keys and names follow `tools/mtmd/clip-impl.h` and `tools/mtmd/clip.cpp` of llama.cpp. Only the
//! layers that the projector's input goes through are stored, and no post-layernorm, which
//! llama.cpp would apply where transformers does not.

use super::config::{Config, ProjectorBias, VisionActivation, VisionConfig};
use super::output::OutputTensor;
use crate::gguf::{TensorType, Writer};

/// Writes the encoder's hyperparameters.
pub(super) fn write_metadata(config: &Config, writer: &mut Writer) {
    let size = |value: usize| u32::try_from(value).expect("the config's sizes are below 2^24");
    let vision = &config.vision;
    writer.set("clip.has_vision_encoder", true);
    writer.set("clip.has_llava_projector", true);
    writer.set("clip.projector_type", "mlp");
    writer.set("clip.use_gelu", vision.activation == VisionActivation::Gelu);
    writer.set("clip.vision.image_size", size(vision.image_size));
    writer.set("clip.vision.patch_size", size(vision.patch_size));
    writer.set("clip.vision.embedding_length", size(vision.d_model));
    writer.set("clip.vision.feed_forward_length", size(vision.d_ffn));
    writer.set("clip.vision.projection_dim", size(config.text.d_model));
    writer.set("clip.vision.attention.head_count", size(vision.n_heads));
    writer.set(
        "clip.vision.attention.layer_norm_epsilon",
        vision.layer_norm_eps,
    );
    writer.set("clip.vision.image_mean", vision.image_mean.to_vec());
    writer.set("clip.vision.image_std", vision.image_std.to_vec());
    // Without `feature_layer` llama.cpp would leave out the last block.
    writer.set("clip.vision.block_count", size(vision.n_feature_layers));
    writer.set(
        "clip.vision.feature_layer",
        vec![vision.n_feature_layers as i32],
    );
}

/// The tensors of the file in its order, matrices in `matrices` type.
pub(super) fn tensors(config: &Config, matrices: TensorType) -> Vec<OutputTensor> {
    let vision = &config.vision;
    let (d_model, d_ffn, patch) = (vision.d_model, vision.d_ffn, vision.patch_size);
    let n_positions = (vision.image_size / patch).pow(2) + 1; // the class token's is the first
    let vector = |name: &str, source: &str, n: usize| {
        OutputTensor::new(
            format!("v.{name}"),
            format!("vision_tower.{source}"),
            &[n],
            TensorType::F32,
        )
    };
    let mut tensors = vec![
        vector("class_embd", "embeddings.class_embedding", d_model),
        OutputTensor::new(
            "v.patch_embd.weight".to_owned(),
            "vision_tower.embeddings.patch_embedding.weight".to_owned(),
            &[d_model, 3, patch, patch],
            // Small, and llava-sae-cpp computes this product in full precision.
            TensorType::F32,
        ),
        OutputTensor::new(
            "v.position_embd.weight".to_owned(),
            "vision_tower.embeddings.position_embedding.weight".to_owned(),
            &[n_positions, d_model],
            TensorType::F32,
        ),
        // transformers spells it so.
        vector("pre_ln.weight", "pre_layrnorm.weight", d_model),
        vector("pre_ln.bias", "pre_layrnorm.bias", d_model),
    ];
    for layer_idx in 0..vision.n_feature_layers {
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        let source = |part: &str| format!("encoder.layers.{layer_idx}.{part}");
        for (part, source_part) in [("ln1", "layer_norm1"), ("ln2", "layer_norm2")] {
            for kind in ["weight", "bias"] {
                let (part, source_part) =
                    (format!("{part}.{kind}"), format!("{source_part}.{kind}"));
                tensors.push(vector(&name(&part), &source(&source_part), d_model));
            }
        }
        for (part, source_part, shape) in [
            ("attn_q", "self_attn.q_proj", [d_model, d_model]),
            ("attn_k", "self_attn.k_proj", [d_model, d_model]),
            ("attn_v", "self_attn.v_proj", [d_model, d_model]),
            ("attn_out", "self_attn.out_proj", [d_model, d_model]),
            ("ffn_up", "mlp.fc1", [d_ffn, d_model]),
            ("ffn_down", "mlp.fc2", [d_model, d_ffn]),
        ] {
            tensors.extend(linear(
                &format!("v.{}", name(part)),
                &format!("vision_tower.{}", source(source_part)),
                shape,
                matrices,
            ));
        }
    }
    let d_text = config.text.d_model;
    for (name, source, shape) in [
        ("mm.0", "linear_1", [d_text, d_model]),
        ("mm.2", "linear_2", [d_text, d_text]),
    ] {
        let source = format!("multi_modal_projector.{source}");
        let [weight, bias] = linear(name, &source, shape, matrices);
        tensors.extend(match config.projector_bias {
            ProjectorBias::Present => [weight, bias],
            // llama.cpp's graph adds a bias in any case.
            ProjectorBias::Absent => [weight, bias.zeros()],
        });
    }
    tensors
}

/// The weight and bias of a linear layer with a weight of `[d_out, d_in]`.
fn linear(name: &str, source: &str, shape: [usize; 2], matrices: TensorType) -> [OutputTensor; 2] {
    [
        OutputTensor::matrix(
            format!("{name}.weight"),
            format!("{source}.weight"),
            shape,
            matrices,
        ),
        OutputTensor::new(
            format!("{name}.bias"),
            format!("{source}.bias"),
            &shape[..1],
            TensorType::F32,
        ),
    ]
}

/// Whether a checkpoint's tensor of that plain name belongs to a part of the encoder that the
/// projector's input does not go through, or is no weight.
pub(super) fn is_unused(config: &VisionConfig, name: &str) -> bool {
    let Some(name) = name.strip_prefix("vision_tower.") else {
        return false;
    };
    let layer_idx = name
        .strip_prefix("encoder.layers.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer_idx, _)| layer_idx.parse::<usize>().ok());
    match layer_idx {
        Some(layer_idx) => (config.n_feature_layers..config.n_layers).contains(&layer_idx),
        None => name == "embeddings.position_ids" || name.starts_with("post_layernorm."),
    }
}
