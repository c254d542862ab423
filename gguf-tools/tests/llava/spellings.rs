//! What makes no difference to the output: spellings of names and settings, leftovers.

use std::fs;
use std::path::Path;

use gguf_tools::gguf::TensorType;
use gguf_tools::llava::weight_type;
use safetensors::Dtype;

use super::checkpoint::{Checkpoint, Tensor};
use super::convert_quietly;

/// Converts `checkpoint` with one file of weights and with two, and returns the outputs' bytes.
pub(crate) fn output(checkpoint: &Checkpoint) -> [Vec<u8>; 2] {
    let convert_in = |write: &dyn Fn(&Checkpoint, &Path)| {
        let dir = tempfile::tempdir().unwrap();
        // The folder's name becomes the model's.
        let checkpoint_dir = dir.path().join("checkpoint");
        fs::create_dir(&checkpoint_dir).unwrap();
        write(checkpoint, &checkpoint_dir);
        let files = convert_quietly(&checkpoint_dir, dir.path(), TensorType::F32).unwrap();
        [
            fs::read(files.model.unwrap()).unwrap(),
            fs::read(files.mmproj.unwrap()).unwrap(),
        ]
    };
    let single = convert_in(&Checkpoint::write);
    assert!(
        single == convert_in(&Checkpoint::write_sharded),
        "one file and two differ"
    );
    single
}

/// Checks that `change` makes no difference to the output files.
fn check_same(change: impl FnOnce(&mut Checkpoint)) {
    let mut checkpoint = Checkpoint::new();
    let expected = output(&checkpoint);
    change(&mut checkpoint);
    assert!(output(&checkpoint) == expected);
}

#[test]
fn spellings_of_names_make_no_difference() {
    // transformers 4.52 to 4.57
    check_same(|c| {
        c.rename(|name| {
            format!(
                "model.{}",
                name.replace("language_model.model.", "language_model.")
            )
        })
    });
    // transformers 5
    check_same(|c| {
        c.rename(|name| {
            let name = name.replace("language_model.model.", "language_model.");
            format!("model.{}", name.replace("vision_model.", ""))
        })
    });
}

#[test]
fn known_leftovers_make_no_difference() {
    check_same(|c| {
        let embedding = c.tensors["language_model.model.embed_tokens.weight"].clone();
        c.tensors
            .insert("language_model.lm_head.weight".to_owned(), embedding);
        c.config["tie_word_embeddings"] = false.into();
        c.add(
            "vision_tower.vision_model.embeddings.position_ids",
            &[1, 10],
        );
        c.add(
            "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
            &[8],
        );
    });
    // transformers ignores such an output matrix, unless told that it is not tied.
    check_same(|c| c.add("language_model.lm_head.weight", &[272, 32]));
    check_same(|c| {
        c.config["tie_word_embeddings"] = false.into();
        c.config["text_config"]["tie_word_embeddings"] = true.into();
        c.add("language_model.lm_head.weight", &[272, 32]);
    });
}

#[test]
fn spellings_of_settings_make_no_difference() {
    check_same(|c| {
        c.config["text_config"]["rope_parameters"] = serde_json::json!({
            "rope_type": "default", "rope_theta": 10000.0
        })
    });
    check_same(|c| {
        c.config["text_config"]["rope_scaling"] = serde_json::json!({
            "rope_type": "default", "type": "default"
        })
    });
    check_same(|c| c.config["text_config"]["pad_token_id"] = (-1).into());
    check_same(|c| {
        let settings = serde_json::json!({ "added_tokens_decoder": null });
        c.files.insert("tokenizer_config.json", settings);
    });
    check_same(|c| c.config["vision_feature_layer"] = 2.into());
    check_same(|c| c.config["vision_feature_layer"] = serde_json::json!([-2]));
    check_same(|c| {
        let id = c.config["image_token_index"].take();
        c.config["image_token_id"] = id;
    });
}

#[test]
fn integers_have_no_say_in_the_weights_type() {
    let mut checkpoint = Checkpoint::new();
    let check = |checkpoint: &Checkpoint, expected| {
        let dir = tempfile::tempdir().unwrap();
        checkpoint.write(dir.path());
        assert_eq!(weight_type(dir.path()).unwrap(), expected);
    };
    check(&checkpoint, TensorType::F32);
    for tensor in checkpoint.tensors.values_mut() {
        *tensor = tensor.to_f16();
    }
    let position_ids = Tensor {
        dtype: Dtype::I64,
        shape: vec![1, 10],
        bytes: vec![0; 80],
    };
    let name = "vision_tower.vision_model.embeddings.position_ids";
    checkpoint.tensors.insert(name.to_owned(), position_ids);
    check(&checkpoint, TensorType::F16);
    checkpoint.add("vision_tower.vision_model.post_layernorm.bias", &[24]);
    check(&checkpoint, TensorType::F32);
}
