//! A checkpoint that cannot be converted gives an error that says why, and no file.

use std::fs;
use std::path::Path;

use gguf_tools::gguf::TensorType;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::checkpoint::{Checkpoint, Tensor, VOCAB_SIZE, serialize};
use super::convert_quietly;

const Q_PROJ: &str = "language_model.model.layers.0.self_attn.q_proj.weight";
const EMBEDDING: &str = "language_model.model.embed_tokens.weight";

/// Converts `dir` and checks that the error has all of `expected` and that nothing is left.
fn check_dir(dir: &Path, expected: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let error = convert_quietly(dir, &out.path().join("out"), TensorType::F32).unwrap_err();
    let message = format!("{error}\n{}", error.hint().unwrap_or_default());
    for part in expected {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    assert_eq!(
        fs::read_dir(out.path()).unwrap().count(),
        0,
        "something is left"
    );
}

/// Checks the error for a checkpoint that `spoil` has changed.
pub(crate) fn check(spoil: impl FnOnce(&mut Checkpoint), expected: &[&str]) {
    check_spoilt(Checkpoint::new(), spoil, expected);
}

/// The same for a checkpoint of its own.
pub(crate) fn check_spoilt(
    mut checkpoint: Checkpoint,
    spoil: impl FnOnce(&mut Checkpoint),
    expected: &[&str],
) {
    spoil(&mut checkpoint);
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    check_dir(dir.path(), expected);
}

/// Checks the error for a folder that `spoil` has changed.
fn check_files(spoil: impl FnOnce(&Path), expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::new().write_sharded(dir.path());
    spoil(dir.path());
    check_dir(dir.path(), expected);
}

#[test]
fn settings_that_llama_cpp_cannot_compute() {
    let set = |pointer: &'static str, value: Value| {
        move |c: &mut Checkpoint| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            c.config.pointer_mut(parent).unwrap()[key] = value;
        }
    };
    check(
        set("/model_type", "paligemma".into()),
        &[
            "config.json",
            "`model_type` is `paligemma`",
            "`llava`, `llava_next`, `gemma3`",
            "`convert_hf_to_gguf.py`",
        ],
    );
    // Without a type it is a Llama, which has another activation.
    for model_type in ["llama".into(), Value::Null] {
        check(
            |c| {
                c.config["text_config"]["model_type"] = model_type;
                c.config["text_config"]["hidden_act"] = "gelu".into();
            },
            &["`text_config.hidden_act` is `gelu`", "`silu`"],
        );
    }
    check(
        set("/vision_config/model_type", "siglip_vision_model".into()),
        &["siglip", "`clip_vision_model`"],
    );
    check(
        set("/vision_config/hidden_act", "relu".into()),
        &["`vision_config.hidden_act` is `relu`"],
    );
    check(
        set("/text_config/hidden_act", "silu".into()),
        &["`text_config.hidden_act` is `silu`"],
    );
    check(
        set("/text_config/attention_bias", true.into()),
        &["`text_config.attention_bias`"],
    );
    check(
        set(
            "/text_config/rope_scaling",
            json!({ "type": "linear", "factor": 2.0 }),
        ),
        &["rope", "`linear`"],
    );
    check(
        set("/projector_hidden_act", "relu".into()),
        &["`projector_hidden_act` is `relu`"],
    );
    check(
        set("/vision_feature_select_strategy", "full".into()),
        &["`full`", "`default`"],
    );
    check(
        set("/vision_feature_layer", 0.into()),
        &["`vision_feature_layer` is 0", "1 to 3"],
    );
    check(
        set("/vision_feature_layer", (-4).into()),
        &["`vision_feature_layer` is -4"],
    );
    check(
        set("/vision_feature_layer", json!([-2, -1])),
        &["[-2, -1]", "only one layer"],
    );
    check(
        set("/text_config/num_hidden_layers", 0.into()),
        &["`text_config.num_hidden_layers` is 0"],
    );
    check(
        set("/text_config/num_hidden_layers", 600.into()),
        &["is 600", "1 to 512"],
    );
    check(
        set("/text_config/num_key_value_heads", 3.into()),
        &["is 4", "multiple", "3"],
    );
    check(
        set("/vision_config/patch_size", 5.into()),
        &["`vision_config.image_size` is 12", "multiple"],
    );
    for (pointer, value, words) in [
        (
            "/image_token_index",
            json!(-200),
            ["`image_token_index` is -200", "-hf"],
        ),
        (
            "/image_token_id",
            json!(-1),
            ["`image_token_id` is -1", "-hf"],
        ),
        (
            "/model_type",
            json!("llava_gemma"),
            ["`model_type` is `llava_gemma`", "-hf"],
        ),
        (
            "/mm_vision_tower",
            json!("openai/clip-vit-large-patch14-336"),
            ["`mm_vision_tower`", "-hf"],
        ),
    ] {
        check(set(pointer, value), &words);
    }
    check(
        set("/image_token_index", VOCAB_SIZE.into()),
        &["`image_token_index` is 272"],
    );
    // The last two are infinite and 0 as f32.
    for number in [0.0, -1.0, 1e39, 1e-60] {
        for (pointer, key) in [
            ("/text_config/rms_norm_eps", "`text_config.rms_norm_eps`"),
            ("/text_config/rope_theta", "`text_config.rope_theta`"),
            (
                "/vision_config/layer_norm_eps",
                "`vision_config.layer_norm_eps`",
            ),
        ] {
            check(set(pointer, number.into()), &[key, "finite", "above 0"]);
        }
        check(
            preprocessor(json!({ "image_std": [0.5, number, 0.5] })),
            &["preprocessor_config.json", "`image_std`", "above 0"],
        );
    }
    check(
        preprocessor(json!({ "image_mean": [0.5, -1e39, 0.5] })),
        &["preprocessor_config.json", "`image_mean`", "-inf", "finite"],
    );
    check(
        set("/text_config/hidden_size", "wide".into()),
        &["config.json", "wide"],
    );
}

fn preprocessor(config: Value) -> impl FnOnce(&mut Checkpoint) {
    move |c| drop(c.files.insert("preprocessor_config.json", config))
}

#[test]
fn tensors_that_do_not_fit() {
    check(
        |c| drop(c.tensors.remove(Q_PROJ)),
        &["has no tensor `language_model.layers.0.self_attn.q_proj.weight`"],
    );
    check(
        |c| c.add(Q_PROJ, &[32, 64]),
        &["model.safetensors", Q_PROJ, "[32, 64]", "expected [64, 32]"],
    );
    check(
        |c| c.add(EMBEDDING, &[300, 32]),
        &[EMBEDDING, "[300, 32]", "expected [272, 32]"],
    );
    check(
        |c| c.add("multi_modal_projector.linear_2.weight", &[48, 32]),
        &[
            "multi_modal_projector.linear_2.weight",
            "[48, 32]",
            "expected [32, 32]",
        ],
    );
    check(
        |c| {
            let tensor = Tensor {
                dtype: Dtype::I64,
                shape: vec![64, 32],
                bytes: vec![1; 64 * 32 * 8],
            };
            c.tensors.insert(Q_PROJ.to_owned(), tensor);
        },
        &[Q_PROJ, "I64", "expected F64, F32, F16 or BF16"],
    );
    check(
        |c| c.add("language_model.model.layers.0.self_attn.q_proj.bias", &[64]),
        &["q_proj.bias", "does not belong"],
    );
    check(
        |c| {
            c.add(
                "language_model.model.layers.1.input_layernorm.weight",
                &[32],
            )
        },
        &["layers.1", "does not belong"],
    );
    for (at_the_top, in_text_config) in [(json!(false), json!(null)), (json!(true), json!(false))] {
        check(
            |c| {
                c.config["tie_word_embeddings"] = at_the_top;
                c.config["text_config"]["tie_word_embeddings"] = in_text_config;
                c.add("language_model.lm_head.weight", &[272, 32]);
            },
            &["lm_head.weight", "differs from the embedding"],
        );
    }
    check(
        |c| {
            let twin = c.tensors[Q_PROJ].clone();
            c.tensors.insert(
                "model.language_model.layers.0.self_attn.q_proj.weight".to_owned(),
                twin,
            );
        },
        &["q_proj.weight", "twice"],
    );
}

#[test]
fn values_that_are_no_numbers() {
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        check(
            |c| {
                let mut values = c.tensors[Q_PROJ].values();
                values[77] = value;
                c.tensors
                    .insert(Q_PROJ.to_owned(), Tensor::f32(&[64, 32], &values));
            },
            &[Q_PROJ, name, "finite"],
        );
    }
}

#[test]
fn files_that_are_missing_or_damaged() {
    const INDEX: &str = "model.safetensors.index.json";
    const SHARD: &str = "model-00002-of-00002.safetensors";
    let remove = |file: &'static str| move |dir: &Path| fs::remove_file(dir.join(file)).unwrap();
    let write = |file: &'static str, bytes: &'static [u8]| {
        move |dir: &Path| fs::write(dir.join(file), bytes).unwrap()
    };
    check_files(remove("config.json"), &["config.json"]);
    check_files(
        remove("tokenizer.json"),
        &["neither `tokenizer.model` nor `tokenizer.json`"],
    );
    check_files(
        remove(INDEX),
        &["neither `model.safetensors.index.json` nor `model.safetensors`"],
    );
    check_files(remove(SHARD), &[SHARD]);
    check_files(write("config.json", b""), &["config.json"]);
    check_files(write("config.json", b"{"), &["config.json"]);
    check_files(
        write("tokenizer.model", b"\x0a\xff"),
        &["tokenizer.model", "not a SentencePiece model"],
    );
    check_files(
        write("tokenizer.model", b""),
        &["tokenizer.model", "expected 2 (BPE)"],
    );
    // The piece `a` with the score NaN, and a trainer specification with the model type 2.
    check_files(
        write(
            "tokenizer.model",
            b"\x0a\x08\x0a\x01a\x15\0\0\xc0\x7f\x12\x02\x18\x02",
        ),
        &["tokenizer.model", "piece 0 has the score NaN"],
    );
    check_files(write(SHARD, b""), &[SHARD, "0 bytes"]);
    for file in ["config.json", "tokenizer.model", "tokenizer.json", SHARD] {
        check_files(
            write(file, b"version https://git-lfs.github.com/spec/v1\n"),
            &[file, "Git LFS pointer", "git lfs pull"],
        );
    }
    check_files(
        |dir| {
            let header = json!({
                "a": { "dtype": "U8", "shape": [u64::MAX], "data_offsets": [0, u64::MAX] }
            })
            .to_string();
            let length = (header.len() as u64).to_le_bytes();
            fs::write(dir.join(SHARD), [&length[..], header.as_bytes()].concat()).unwrap();
        },
        &[SHARD, "header is malformed", "overflow"],
    );
    check_files(
        write(SHARD, &[0xff; 64]),
        &[SHARD, "header claims", "the file has 64"],
    );
    check_files(write(SHARD, b"\x02\0\0\0\0\0\0\0[]"), &[SHARD, "header"]);
    check_files(
        write(SHARD, b"\x02\0\0\0\0\0\0\0{}"),
        &[SHARD, "has no tensor", INDEX],
    );
    check_files(
        |dir| {
            let bytes = fs::read(dir.join(SHARD)).unwrap();
            fs::write(dir.join(SHARD), &bytes[..bytes.len() - 1]).unwrap();
        },
        &[SHARD, "truncated"],
    );
    check_files(
        write(
            INDEX,
            br#"{ "weight_map": { "a": "../model.safetensors" } }"#,
        ),
        &[INDEX, "`../model.safetensors`"],
    );
}

#[test]
fn weights_that_the_index_does_not_name_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut foreign = Checkpoint::new();
    foreign.write_sharded(dir.path());
    foreign.rename(|name| format!("foreign.{name}"));
    let bytes = serialize(foreign.tensors.iter());
    fs::write(dir.path().join("model-00009-of-00009.safetensors"), bytes).unwrap();
    convert_quietly(dir.path(), &dir.path().join("out"), TensorType::F32).unwrap();
}

#[test]
fn tokenizers_that_do_not_fit() {
    check(
        |c| c.tokenizer["model"]["vocab"]["zz"] = 272.into(),
        &["`zz` has id 272", "272 rows"],
    );
    check(
        |c| c.tokenizer["model"]["vocab"]["zz"] = 263.into(),
        &["`zz`", "id 263"],
    );
    check(
        |c| c.tokenizer["model"]["merges"][0] = "a b c".into(),
        &["tokenizer.json", "\"a b c\", expected a merge of two parts"],
    );
    check(
        |c| {
            drop(
                c.tokenizer["model"]["vocab"]
                    .as_object_mut()
                    .unwrap()
                    .remove("<0x41>"),
            )
        },
        &["`<0x41>` is missing"],
    );
    check(
        |c| {
            c.tokenizer["added_tokens"][5] = json!({ "id": 5, "content": "<eos>", "special": true })
        },
        &["tokens 1 and 5 are both `<eos>`"],
    );
    check(
        |c| {
            drop(
                c.files
                    .insert("added_tokens.json", json!({ "<more>": 4000 })),
            )
        },
        &["`<more>` has id 4000", "272 rows"],
    );
    check(
        |c| c.config["text_config"]["bos_token_id"] = 999.into(),
        &["`bos_token` is 999"],
    );
}
