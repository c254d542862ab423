//! Weights and metadata arrive as they should.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use gguf_tools::gguf::{Gguf, TensorType, Value};
use safetensors::{Dtype, SafeTensors};

use super::checkpoint::Checkpoint;
use super::{Converted, converted, fixture, floats, numbers};

/// The name that a tensor of the output has in a checkpoint of transformers up to 4.51.
fn source_name(name: &str) -> String {
    let parts: &[(&str, &str)] = if name.starts_with("v.") || name.starts_with("mm.") {
        &[
            (
                "v.class_embd",
                "vision_tower.vision_model.embeddings.class_embedding",
            ),
            (
                "v.patch_embd",
                "vision_tower.vision_model.embeddings.patch_embedding",
            ),
            (
                "v.position_embd",
                "vision_tower.vision_model.embeddings.position_embedding",
            ),
            ("v.pre_ln", "vision_tower.vision_model.pre_layrnorm"),
            ("v.blk", "vision_tower.vision_model.encoder.layers"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_out", "self_attn.out_proj"),
            ("ln1", "layer_norm1"),
            ("ln2", "layer_norm2"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
            ("mm.0", "multi_modal_projector.linear_1"),
            ("mm.2", "multi_modal_projector.linear_2"),
        ]
    } else {
        &[
            ("token_embd", "language_model.model.embed_tokens"),
            ("output_norm", "language_model.model.norm"),
            ("blk", "language_model.model.layers"),
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ]
    };
    // Longest first, so that `attn_output` is not taken for `attn_out`.
    let mut parts = parts.to_vec();
    parts.sort_by_key(|(part, _)| std::cmp::Reverse(part.len()));
    parts
        .into_iter()
        .fold(name.to_owned(), |name, (part, source)| {
            name.replacen(part, source, 1)
        })
}

/// The tensors of a folder's safetensors files, foreign ones left out, by their names in the
/// spelling of transformers up to 4.51: shapes and values.
fn read_source(dir: &Path) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_foreign = path.ends_with("model-00009-of-00009.safetensors");
        if is_foreign
            || path
                .extension()
                .is_none_or(|extension| extension != "safetensors")
        {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let name = match name.strip_prefix("model.") {
                Some(name) => name.replace("language_model.", "language_model.model."),
                None => name,
            };
            let values = match tensor.dtype() {
                Dtype::F32 => tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| f32::from_le_bytes(*b))
                    .collect(),
                Dtype::BF16 => tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                    .collect(),
                Dtype::F16 => tensor
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| half::f16::from_le_bytes(*b).to_f32())
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            let shape = tensor.shape().iter().map(|&n| n as u64).collect();
            tensors.insert(name, (shape, values));
        }
    }
    tensors
}

/// Checks the values of each tensor of a file against the checkpoint in `dir`, within `tolerance`
/// of the largest of the tensor.
fn check_values(file: &Gguf, dir: &Path, tolerance: f32) {
    let source = read_source(dir);
    for tensor in file.tensors() {
        let (shape, values) = &source[&source_name(&tensor.name)];
        assert!(
            tensor.dims.iter().eq(shape.iter().rev()),
            "{}: {:?} {shape:?}",
            tensor.name,
            tensor.dims
        );
        let is_gemma_norm = tensor.name.ends_with("_norm.weight");
        let offset = if is_gemma_norm { 1.0 } else { 0.0 };
        let largest = values
            .iter()
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (got, value) in file.read_f32(tensor).unwrap().into_iter().zip(values) {
            let difference = (got - (value + offset)).abs();
            assert!(
                difference <= tolerance * largest,
                "{}: {got} {value}",
                tensor.name
            );
        }
    }
}

/// Checks a conversion of the demo checkpoint to `tensor_type`.
fn check_demo(tensor_type: TensorType, tolerance: f32) -> Converted {
    let dir = fixture("demo/llava");
    let files = converted(&dir, tensor_type);
    check_values(&files.model, &dir, tolerance);
    check_values(&files.mmproj, &dir, tolerance);
    assert_eq!(files.model.tensors().len(), 1 + 7 * 9 + 1);
    assert_eq!(files.mmproj.tensors().len(), 5 + 5 * 16 + 4);
    for tensor in files.model.tensors().iter().chain(files.mmproj.tensors()) {
        let expected = match tensor.name.as_str() {
            "v.position_embd.weight" => TensorType::F32,
            "v.patch_embd.weight" => TensorType::F32,
            _ if tensor.dims.len() == 1 => TensorType::F32,
            _ => tensor_type,
        };
        assert_eq!(tensor.tensor_type, expected, "{}", tensor.name);
    }
    files
}

#[test]
fn f32_values_are_the_checkpoints() {
    check_demo(TensorType::F32, 0.0);
}

// Half a unit in the last place: f16 has 11 bits of significand, bf16 has 8; q8_0 has 127 steps, of
// a size that is itself an f16.

#[test]
fn f16_values_are_rounded() {
    check_demo(TensorType::F16, 2.0_f32.powi(-11));
}

#[test]
fn bf16_values_are_rounded() {
    check_demo(TensorType::Bf16, 2.0_f32.powi(-8));
}

#[test]
fn q8_0_values_are_rounded() {
    check_demo(TensorType::Q8_0, 0.5 / 127.0 + 2.0_f32.powi(-11));
}

#[test]
fn sharded_bf16_values_are_the_checkpoints() {
    let dir = fixture("tiny/llava");
    let Converted {
        model,
        mmproj,
        _out_dir,
    } = converted(&dir, TensorType::F32);
    check_values(&model, &dir, 0.0);
    check_values(&mmproj, &dir, 0.0);
    assert_eq!(model.tensors().len(), 1 + 3 * 9 + 1);
    assert_eq!(mmproj.tensors().len(), 5 + 3 * 16 + 4);
}

#[test]
fn missing_settings_have_transformers_defaults() {
    let Converted {
        model,
        mmproj,
        _out_dir,
    } = converted(&fixture("tiny/llava"), TensorType::F32);
    assert_eq!(model.require_u32("gemma.context_length").unwrap(), 8192);
    assert_eq!(
        model.require_u32("gemma.attention.head_count_kv").unwrap(),
        2
    );
    assert_eq!(model.require_f32("gemma.rope.freq_base").unwrap(), 5000.0);
    assert_eq!(
        model
            .require_f32("gemma.attention.layer_norm_rms_epsilon")
            .unwrap(),
        1e-5
    );
    assert_eq!(
        mmproj
            .require_f32("clip.vision.attention.layer_norm_epsilon")
            .unwrap(),
        1e-5
    );
    assert_eq!(mmproj.require_u32("clip.vision.block_count").unwrap(), 3);
    assert!(!mmproj.require_bool("clip.use_gelu").unwrap());
}

#[test]
fn demo_metadata() {
    let Converted { model, mmproj, .. } = check_demo(TensorType::F32, 0.0);
    assert_eq!(model.require_str("general.architecture").unwrap(), "gemma");
    for (key, expected) in [
        ("general.file_type", 0),
        ("gemma.context_length", 512),
        ("gemma.embedding_length", 192),
        ("gemma.block_count", 7),
        ("gemma.feed_forward_length", 640),
        ("gemma.attention.head_count", 6),
        ("gemma.attention.head_count_kv", 1),
        ("gemma.attention.key_length", 32),
        ("gemma.attention.value_length", 32),
    ] {
        assert_eq!(model.require_u32(key).unwrap(), expected, "{key}");
    }
    assert_eq!(
        model
            .require_f32("gemma.attention.layer_norm_rms_epsilon")
            .unwrap(),
        1e-6
    );
    assert_eq!(model.require_f32("gemma.rope.freq_base").unwrap(), 10000.0);

    assert_eq!(mmproj.require_str("general.architecture").unwrap(), "clip");
    assert_eq!(mmproj.require_str("clip.projector_type").unwrap(), "mlp");
    for (key, expected) in [
        ("clip.vision.image_size", 112),
        ("clip.vision.patch_size", 14),
        ("clip.vision.embedding_length", 128),
        ("clip.vision.feed_forward_length", 512),
        ("clip.vision.block_count", 5),
        ("clip.vision.projection_dim", 192),
        ("clip.vision.attention.head_count", 4),
    ] {
        assert_eq!(mmproj.require_u32(key).unwrap(), expected, "{key}");
    }
    for (key, expected) in [
        ("clip.has_vision_encoder", true),
        ("clip.has_llava_projector", true),
        ("clip.use_gelu", false),
    ] {
        assert_eq!(mmproj.require_bool(key).unwrap(), expected, "{key}");
    }
    assert_eq!(
        mmproj
            .require_f32("clip.vision.attention.layer_norm_epsilon")
            .unwrap(),
        1e-5
    );
    assert_eq!(numbers(&mmproj, "clip.vision.feature_layer"), [5]);
    assert_eq!(
        floats(&mmproj, "clip.vision.image_mean"),
        [0.48145466, 0.4578275, 0.40821073]
    );
    assert_eq!(
        floats(&mmproj, "clip.vision.image_std"),
        [0.26862954, 0.2613026, 0.2757771]
    );
}

#[test]
fn f16_weights_are_read() {
    let mut checkpoint = Checkpoint::new();
    let name = "language_model.model.layers.0.mlp.up_proj.weight";
    let half = checkpoint.tensors[name].to_f16();
    let expected: Vec<f32> = checkpoint.tensors[name]
        .values()
        .into_iter()
        .map(|value| half::f16::from_f32(value).to_f32())
        .collect();
    checkpoint.tensors.insert(name.to_owned(), half);
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    let files = converted(dir.path(), TensorType::F32);
    let tensor = files
        .model
        .require_tensor("blk.0.ffn_up.weight", &[32, 64])
        .unwrap();
    assert_eq!(files.model.read_f32(tensor).unwrap(), expected);
}

/// Checks block count and feature layer for a value of `vision_feature_layer`.
fn check_feature_layer(layer: i64, n_expected: u32) {
    let mut checkpoint = Checkpoint::new();
    checkpoint.config["vision_feature_layer"] = layer.into();
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    let mmproj = converted(dir.path(), TensorType::F32).mmproj;
    assert_eq!(
        mmproj.require_u32("clip.vision.block_count").unwrap(),
        n_expected
    );
    assert_eq!(
        numbers(&mmproj, "clip.vision.feature_layer"),
        [n_expected as i32]
    );
    assert_eq!(mmproj.tensors().len(), 5 + 16 * n_expected as usize + 4);
}

#[test]
fn feature_layers_count_from_either_end() {
    check_feature_layer(-1, 3);
    check_feature_layer(-3, 1);
    check_feature_layer(1, 1);
    check_feature_layer(3, 3);
}

#[test]
fn settings_reach_the_files() {
    let mut checkpoint = Checkpoint::new();
    checkpoint.config["vision_config"]["hidden_act"] = "gelu".into();
    checkpoint.config["multimodal_projector_bias"] = false.into();
    checkpoint.config["text_config"]["rope_theta"] = 500.0.into();
    checkpoint
        .tensors
        .retain(|name, _| !name.starts_with("multi_modal_projector") || name.ends_with("weight"));
    checkpoint.files.insert("processor_config.json", serde_json::json!({
        "image_processor": { "size": 12, "crop_size": 12, "image_mean": [0.5, 0.25, 0.125], "image_std": [1.0, 0.5, 0.25] }
    }));
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    let Converted {
        model,
        mmproj,
        _out_dir,
    } = converted(dir.path(), TensorType::F32);
    assert_eq!(model.require_f32("gemma.rope.freq_base").unwrap(), 500.0);
    assert_eq!(mmproj.get("clip.use_gelu"), Some(&Value::Bool(true)));
    assert_eq!(
        floats(&mmproj, "clip.vision.image_mean"),
        [0.5, 0.25, 0.125]
    );
    assert_eq!(floats(&mmproj, "clip.vision.image_std"), [1.0, 0.5, 0.25]);
    let bias = mmproj.require_tensor("mm.2.bias", &[32]).unwrap();
    assert_eq!(mmproj.read_f32(bias).unwrap(), [0.0; 32]);
}

#[test]
fn rows_that_q8_0_blocks_do_not_fill_stay_f16() {
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::new().write(dir.path());
    let mmproj = converted(dir.path(), TensorType::Q8_0).mmproj;
    // Rows of 24, of 40 and of 32.
    for (name, expected) in [
        ("v.blk.0.ffn_up.weight", TensorType::F16),
        ("v.blk.0.ffn_down.weight", TensorType::F16),
        ("mm.2.weight", TensorType::Q8_0),
    ] {
        assert_eq!(mmproj.tensor(name).unwrap().tensor_type, expected, "{name}");
    }
}
