//! The image encoder's and projector's file: what llama.cpp's `mtmd` reads as a `clip` model with
//! an `mlp`, a `gemma3`, a `gemma4v`, an `idefics3` or an `internvl` projector.
//!
//! Keys and names follow `tools/mtmd/clip-impl.h` and `tools/mtmd/clip.cpp` of llama.cpp. Of CLIP, only
//! the layers that the projector's input goes through are stored, and no post-layernorm, which
//! llama.cpp would apply where transformers does not.

use super::config::{Projector, ProjectorBias, Sight, Tower, VisionActivation, VisionConfig};
use super::gemma4;
use super::output::OutputTensor;
use crate::gguf::{TensorType, Writer};

/// Patches a side that become one row.
const SCALE_FACTOR: &str = "clip.vision.projector.scale_factor";

/// Writes the encoder's hyperparameters; its rows become `d_text` wide.
pub(super) fn write_metadata(sight: &Sight, d_text: usize, writer: &mut Writer) {
    let size = |value: usize| u32::try_from(value).expect("the config's sizes are below 2^25");
    let vision = &sight.vision;
    writer.set("clip.has_vision_encoder", true);
    match &sight.projector {
        Projector::Mlp { .. } => {
            writer.set("clip.has_llava_projector", true);
            writer.set("clip.projector_type", "mlp");
        }
        Projector::Gemma3 { pool } => {
            writer.set("clip.projector_type", "gemma3");
            writer.set(SCALE_FACTOR, size(*pool));
        }
        Projector::Idefics3 {
            merge,
            longest_edge,
        } => {
            writer.set("clip.projector_type", "idefics3");
            writer.set(SCALE_FACTOR, size(*merge));
            writer.set("clip.vision.preproc_image_size", size(*longest_edge));
        }
        Projector::InternVl { merge, n_tiles } => {
            writer.set("clip.projector_type", "internvl");
            writer.set(SCALE_FACTOR, size(*merge));
            writer.set("clip.vision.preproc_min_tiles", size(n_tiles[0]));
            writer.set("clip.vision.preproc_max_tiles", size(n_tiles[1]));
        }
        Projector::Gemma4(pooler) => {
            writer.set("clip.projector_type", "gemma4v");
            writer.set(SCALE_FACTOR, size(pooler.pool));
            let n_pixels = pooler.max_rows * (pooler.pool * vision.patch_size).pow(2);
            writer.set("clip.vision.image_max_pixels", size(n_pixels));
        }
    }
    writer.set("clip.use_gelu", vision.activation == VisionActivation::Gelu);
    for (name, value) in [
        ("image_size", vision.image_size),
        ("patch_size", vision.patch_size),
        ("embedding_length", vision.d_model),
        ("feed_forward_length", vision.d_ffn),
        ("projection_dim", d_text),
        ("attention.head_count", vision.n_heads),
    ] {
        writer.set(&format!("clip.vision.{name}"), size(value));
    }
    writer.set(
        "clip.vision.attention.layer_norm_epsilon",
        vision.layer_norm_eps,
    );
    writer.set("clip.vision.image_mean", vision.image_mean.to_vec());
    writer.set("clip.vision.image_std", vision.image_std.to_vec());
    writer.set("clip.vision.block_count", size(vision.n_feature_layers));
    let Projector::Mlp { tiles, .. } = &sight.projector else {
        return;
    };
    // Without `feature_layer` llama.cpp would leave out the last block.
    writer.set(
        "clip.vision.feature_layer",
        vec![vision.n_feature_layers as i32],
    );
    if let Some(tiles) = tiles {
        writer.set(
            "clip.vision.image_grid_pinpoints",
            tiles.heights_and_widths(),
        );
        writer.set("clip.vision.mm_patch_merge_type", "spatial_unpad");
    }
}

/// The tensors of the file in its order, matrices in `matrices` type.
pub(super) fn tensors(sight: &Sight, d_text: usize, matrices: TensorType) -> Vec<OutputTensor> {
    let vision = &sight.vision;
    if let Projector::Gemma4(pooler) = sight.projector {
        return gemma4::vision_tensors(vision, pooler, d_text, matrices);
    }
    let (d_model, d_ffn) = (vision.d_model, vision.d_ffn);
    let mut tensors = embeddings(vision);
    for layer_idx in 0..vision.n_feature_layers {
        let name = |part: &str| format!("blk.{layer_idx}.{part}");
        let is_intern_vit = vision.tower == Tower::InternVit;
        let (layers, norms, attention, out) = match is_intern_vit {
            false => (
                "layers",
                ["layer_norm1", "layer_norm2"],
                "self_attn",
                "out_proj",
            ),
            true => (
                "layer",
                ["layernorm_before", "layernorm_after"],
                "attention",
                "projection_layer",
            ),
        };
        let source = |part: &str| format!("encoder.{layers}.{layer_idx}.{part}");
        for (part, source_part) in ["ln1", "ln2"].into_iter().zip(norms) {
            tensors.extend(norm(&name(part), &source(source_part), d_model));
        }
        for (part, source_part) in [("ls1", "lambda_1"), ("ls2", "lambda_2")] {
            if is_intern_vit {
                let name = name(&format!("{part}.weight"));
                tensors.push(vector(&name, &source(source_part), d_model));
            }
        }
        let of_attention = |part: &str| format!("{attention}.{part}");
        for (part, source_part, shape) in [
            ("attn_q", of_attention("q_proj"), [d_model, d_model]),
            ("attn_k", of_attention("k_proj"), [d_model, d_model]),
            ("attn_v", of_attention("v_proj"), [d_model, d_model]),
            ("attn_out", of_attention(out), [d_model, d_model]),
            ("ffn_up", "mlp.fc1".to_owned(), [d_ffn, d_model]),
            ("ffn_down", "mlp.fc2".to_owned(), [d_model, d_ffn]),
        ] {
            tensors.extend(linear(
                &format!("v.{}", name(part)),
                &format!("vision_tower.{}", source(&source_part)),
                shape,
                matrices,
            ));
        }
    }
    if vision.tower == Tower::Siglip {
        tensors.extend(norm("post_ln", "post_layernorm", d_model));
    }
    tensors.extend(projector(sight, d_text, matrices));
    tensors
}

/// A vector of the vision tower.
fn vector(name: &str, source: &str, n: usize) -> OutputTensor {
    OutputTensor::new(
        format!("v.{name}"),
        format!("vision_tower.{source}"),
        &[n],
        TensorType::F32,
    )
}

/// The weight and bias of a norm of the vision tower.
fn norm(name: &str, source: &str, n: usize) -> [OutputTensor; 2] {
    ["weight", "bias"].map(|kind| vector(&format!("{name}.{kind}"), &format!("{source}.{kind}"), n))
}

/// What stands in front of the vision tower's blocks.
fn embeddings(vision: &VisionConfig) -> Vec<OutputTensor> {
    let (d_model, patch) = (vision.d_model, vision.patch_size);
    let n_patches = vision.grid().pow(2);
    let shaped = |name: &str, source: &str, shape: &[usize]| {
        OutputTensor::new(
            format!("v.{name}.weight"),
            format!("vision_tower.embeddings.{source}.weight"),
            shape,
            // Small, and llava-sae-cpp computes products with patches in full precision.
            TensorType::F32,
        )
    };
    let patches = shaped("patch_embd", "patch_embedding", &[d_model, 3, patch, patch]);
    let positions = |n_positions| {
        shaped(
            "position_embd",
            "position_embedding",
            &[n_positions, d_model],
        )
    };
    match vision.tower {
        Tower::Clip { .. } => {
            let class = vector("class_embd", "embeddings.class_embedding", d_model);
            // The class row's is the first.
            let mut tensors = vec![class, patches, positions(n_patches + 1)];
            // transformers spells it so.
            tensors.extend(norm("pre_ln", "pre_layrnorm", d_model));
            tensors
        }
        Tower::Gemma4 => unreachable!("its tensors are in a table of their own"),
        Tower::Siglip => {
            let bias = vector(
                "patch_embd.bias",
                "embeddings.patch_embedding.bias",
                d_model,
            );
            vec![patches, bias, positions(n_patches)]
        }
        Tower::InternVit => {
            let part = |name: &str, source: &str, shape: &[usize]| {
                OutputTensor::new(
                    format!("v.{name}"),
                    format!("vision_tower.embeddings.{source}"),
                    shape,
                    TensorType::F32,
                )
            };
            let kernel = [d_model, 3, patch, patch];
            let projection = |part: &str| format!("patch_embeddings.projection.{part}");
            vec![
                part("class_embd", "cls_token", &[1, 1, d_model]),
                part("patch_embd.weight", &projection("weight"), &kernel),
                part("patch_embd.bias", &projection("bias"), &[d_model]),
                // The class row's is the first.
                part(
                    "position_embd.weight",
                    "position_embeddings",
                    &[1, n_patches + 1, d_model],
                ),
            ]
        }
    }
}

/// The plain name of the row that ends each row of patches in LLaVA-NeXT.
const NEWLINE: &str = "image_newline";

fn projector(sight: &Sight, d_text: usize, matrices: TensorType) -> Vec<OutputTensor> {
    let d_model = sight.vision.d_model;
    match &sight.projector {
        Projector::Mlp { bias, tiles } => {
            let mut tensors = Vec::new();
            for (name, source, shape) in [
                ("mm.0", "linear_1", [d_text, d_model]),
                ("mm.2", "linear_2", [d_text, d_text]),
            ] {
                let source = format!("multi_modal_projector.{source}");
                let [weight, bias_vector] = linear(name, &source, shape, matrices);
                tensors.extend(match bias {
                    ProjectorBias::Present => [weight, bias_vector],
                    // llama.cpp's graph adds a bias in any case.
                    ProjectorBias::Absent => [weight, bias_vector.zeros()],
                });
            }
            if tiles.is_some() {
                let (name, source) = (format!("v.{NEWLINE}"), NEWLINE.to_owned());
                tensors.push(OutputTensor::new(name, source, &[d_text], TensorType::F32));
            }
            tensors
        }
        Projector::Gemma3 { .. } => {
            let source = |part: &str| format!("multi_modal_projector.{part}");
            let norm = OutputTensor::new(
                "mm.soft_emb_norm.weight".to_owned(),
                source("mm_soft_emb_norm.weight"),
                &[d_model],
                TensorType::F32,
            );
            let matrix = OutputTensor::matrix(
                "mm.input_projection.weight".to_owned(),
                source("mm_input_projection_weight"),
                [d_model, d_text],
                // llama.cpp transposes it, which ggml does with these alone.
                match matrices {
                    TensorType::F32 => TensorType::F32,
                    _ => TensorType::F16,
                },
            );
            // Gemma multiplies by 1 + weight, llama.cpp by the weight.
            vec![norm.plus_one(), matrix]
        }
        Projector::Idefics3 { merge, .. } => vec![OutputTensor::matrix(
            "mm.model.fc.weight".to_owned(),
            "connector.modality_projection.proj.weight".to_owned(),
            [d_text, d_model * merge.pow(2)],
            matrices,
        )],
        Projector::InternVl { merge, .. } => {
            let merged = d_model * merge.pow(2);
            let source = |part: &str| format!("multi_modal_projector.{part}");
            let norm = ["weight", "bias"].map(|kind| {
                OutputTensor::new(
                    format!("mm.model.mlp.0.{kind}"),
                    source(&format!("layer_norm.{kind}")),
                    &[merged],
                    TensorType::F32,
                )
            });
            let first = [d_text, merged];
            let first = linear("mm.model.mlp.1", &source("linear_1"), first, matrices);
            let second = [d_text, d_text];
            let second = linear("mm.model.mlp.3", &source("linear_2"), second, matrices);
            norm.into_iter().chain(first).chain(second).collect()
        }
        Projector::Gemma4(_) => Vec::new(), // with the tower's
    }
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
        // A SigLIP's head pools what the projector reads row by row.
        None => ["embeddings.position_ids", "post_layernorm.", "head."]
            .iter()
            .any(|part| name.starts_with(part)),
    }
}
