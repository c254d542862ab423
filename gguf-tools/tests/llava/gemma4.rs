//! Gemma 4: its files are what was written by hand, which the main crate's tests run beside transformers; what is left
//! out, and what is refused.

use std::path::Path;
use std::process::Command;

use gguf_tools::gguf::{Gguf, TensorType, Value};
use gguf_tools::llava::LlavaFiles;
use serde_json::{Value as Json, json};

use super::bad_input::check_spoilt;
use super::checkpoint::Checkpoint;
use super::gemma4_checkpoint::{gemma4_checkpoint, projector_by_hand, written_by_hand};
use super::{convert_quietly, strings};

const SETS: [&str; 6] = [
    "dense-a",
    "dense-b",
    "shared-a",
    "shared-b",
    "experts-a",
    "experts-b",
];

/// Converts into a folder of its own.
fn made(checkpoint: &Checkpoint, tensor_type: TensorType) -> (LlavaFiles, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoint");
    std::fs::create_dir(&dir).unwrap();
    checkpoint.write(&dir);
    let files = convert_quietly(&dir, &root.path().join("out"), tensor_type).unwrap();
    (files, root)
}

/// The model's file, and the projector's behind it, if there is one.
fn bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    let (files, _root) = made(checkpoint, TensorType::F32);
    bytes_of(files)
}

fn bytes_of(files: LlavaFiles) -> Vec<u8> {
    let paths = files.model.into_iter().chain(files.mmproj);
    paths
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn files_are_those_that_were_written_by_hand() {
    for name in SETS {
        let (files, root) = made(&gemma4_checkpoint(name), TensorType::F32);
        let ours = Gguf::open(&files.model.unwrap()).unwrap();
        let theirs = Gguf::open(&written_by_hand(name)).unwrap();
        assert_eq!(ours.tensors().len(), theirs.tensors().len(), "{name}");
        for tensor in theirs.tensors() {
            let shown = format!("{name}, {}", tensor.name);
            let found = ours.tensor(&tensor.name).expect(&shown);
            let expected = theirs.read_f32(tensor).unwrap();
            let mut values = ours.read_f32(found).unwrap();
            if ["token_embd.weight", "per_layer_token_embd.weight"].contains(&&*tensor.name) {
                assert_eq!(found.dims[0], tensor.dims[0], "{shown}");
                assert!(values[expected.len()..].iter().all(|value| *value == 0.0));
                values.truncate(expected.len());
            } else {
                assert_eq!(found.dims, tensor.dims, "{shown}");
            }
            assert!(bits(&values) == bits(&expected), "{shown}");
        }
        let keys = |file: &Gguf| {
            let metadata = file.metadata().iter();
            let mut keys: Vec<(String, Value)> = metadata
                .filter(|(key, _)| key.starts_with("gemma4."))
                .cloned()
                .collect();
            keys.sort_by(|a, b| a.0.cmp(&b.0));
            keys
        };
        assert!(keys(&theirs).len() > 15);
        assert_eq!(keys(&ours), keys(&theirs), "{name}");
        check_tokenizer(&ours, &theirs);
        let projector = projector_by_hand(name);
        assert_eq!(files.mmproj.is_some(), projector.is_some(), "{name}");
        let out = std::fs::read_dir(root.path().join("out")).unwrap();
        assert_eq!(out.count(), 1 + usize::from(projector.is_some()));
        if let (Some(ours), Some(theirs)) = (files.mmproj, projector) {
            check_projector(name, &ours, &theirs);
        }
    }
}

/// Tensors are the same, and keys, but for those that llama.cpp's converter does not write.
fn check_projector(name: &str, ours: &Path, theirs: &Path) {
    let [ours, theirs] = [ours, theirs].map(|path| Gguf::open(path).unwrap());
    assert_eq!(ours.tensors().len(), theirs.tensors().len(), "{name}");
    for tensor in theirs.tensors() {
        let found = ours.tensor(&tensor.name).expect(&tensor.name);
        assert_eq!(found.dims, tensor.dims, "{name}, {}", tensor.name);
        let [found, expected] = [(&ours, found), (&theirs, tensor)]
            .map(|(file, tensor)| bits(&file.read_f32(tensor).unwrap()));
        assert!(found == expected, "{name}, {}", tensor.name);
    }
    for (key, value) in theirs.metadata() {
        let ours = match key.as_str() {
            "clip.vision.projector_type" => ours.get("clip.projector_type"),
            key => ours.get(key),
        };
        assert_eq!(ours, Some(value), "{name}, {key}");
    }
    assert_eq!(ours.get("clip.use_gelu"), Some(&Value::Bool(true)));
    let pool = ours.require_u32("clip.vision.projector.scale_factor");
    assert_eq!(pool.unwrap(), if name.ends_with('a') { 3 } else { 2 });
}

/// Tokens are the same but for those that the other file does not have.
fn check_tokenizer(ours: &Gguf, theirs: &Gguf) {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    for name in [
        "model",
        "merges",
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "padding_token_id",
        "add_bos_token",
    ] {
        let key = key(name);
        assert!(theirs.get(&key).is_some(), "{key}");
        assert_eq!(ours.get(&key), theirs.get(&key), "{key}");
    }
    let template = "tokenizer.chat_template";
    assert_eq!(ours.str(template).unwrap(), theirs.str(template).unwrap());
    assert_eq!(ours.str(&key("pre")), Some("gemma4"));
    assert_eq!(ours.get(&key("add_eos_token")), Some(&Value::Bool(false)));
    let tokens = |file| strings(file, "tokenizer.ggml.tokens");
    let (ours_in_all, theirs_in_all) = (tokens(ours), tokens(theirs));
    let n_tokens = theirs_in_all.len();
    assert_eq!(&ours_in_all[..n_tokens], theirs_in_all);
    let is_byte = |token: &String| token.starts_with("<0x");
    assert!(ours_in_all[n_tokens..].iter().all(is_byte));
    let kinds = |file: &Gguf| match file.get("tokenizer.ggml.token_type") {
        Some(Value::Array(gguf_tools::gguf::Array::I32(kinds))) => kinds.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kinds(ours)[..n_tokens], kinds(theirs));
    // What ends a turn ends a text.
    let end = ours.require_u32(&key("eot_token_id")).unwrap() as usize;
    assert_eq!(ours_in_all[end], "<turn|>");
}

#[test]
fn spellings_make_no_difference() {
    for name in SETS {
        let saved = gemma4_checkpoint(name);
        let expected = bytes(&saved);
        // transformers up to 5.22.
        let mut older = gemma4_checkpoint(name);
        let text = older.config["text_config"].as_object_mut().unwrap();
        let of_blocks = text.remove("per_layer_config").unwrap();
        let of_block = of_blocks.as_object().unwrap().values().next().unwrap();
        text.insert("global_head_dim".to_owned(), of_block["head_dim"].clone());
        if let Some(n) = of_block.get("num_key_value_heads") {
            text.insert("num_global_key_value_heads".to_owned(), n.clone());
        }
        assert!(bytes(&older) == expected, "{name}");
        // Without the wrapper's prefix, and in two files.
        let mut renamed = gemma4_checkpoint(name);
        renamed.rename(|name| name.strip_prefix("model.").unwrap().to_owned());
        assert!(bytes(&renamed) == expected, "{name}");
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("checkpoint");
        std::fs::create_dir(&dir).unwrap();
        saved.write_sharded(&dir);
        let files = convert_quietly(&dir, root.path(), TensorType::F32).unwrap();
        assert!(bytes_of(files) == expected, "{name}");
        // The last block sees everything, whatever a config says.
        let mut last = gemma4_checkpoint(name);
        let types = last.config["text_config"]["layer_types"].as_array_mut();
        *types.unwrap().last_mut().unwrap() = "sliding_attention".into();
        assert!(bytes(&last) == expected, "{name}");
    }
}

/// Published checkpoints have keys and values of blocks that take those of others.
#[test]
fn what_nothing_reads_is_passed_over() {
    let mut with_more = gemma4_checkpoint("shared-a");
    let expected = bytes(&with_more);
    for (part, shape) in [
        ("k_proj", &[16, 32][..]),
        ("v_proj", &[16, 32]),
        ("k_norm", &[8]),
    ] {
        let name = format!("model.language_model.layers.4.self_attn.{part}.weight");
        with_more.add(&name, shape);
    }
    assert!(bytes(&with_more) == expected);
    // Those of a block that has its own are not.
    let foreign =
        |c: &mut Checkpoint| c.add("model.language_model.layers.3.self_attn.k_proj.bias", &[32]);
    let words = ["does not belong in a Gemma 4"];
    check_spoilt(gemma4_checkpoint("shared-a"), foreign, &words);
}

#[test]
fn types_of_tensors() {
    let (files, _root) = made(&gemma4_checkpoint("experts-a"), TensorType::Q8_0);
    let model = Gguf::open(&files.model.unwrap()).unwrap();
    let type_of = |name: &str| model.tensor(name).unwrap().tensor_type;
    for (name, expected) in [
        ("token_embd.weight", TensorType::Q8_0),
        ("blk.0.attn_q.weight", TensorType::Q8_0),
        ("blk.0.ffn_gate_up_exps.weight", TensorType::Q8_0),
        // Rows of 12 are no blocks of 32.
        ("blk.0.ffn_down_exps.weight", TensorType::F16),
        ("blk.0.ffn_gate_inp.weight", TensorType::F32),
        ("blk.0.ffn_gate_inp.scale", TensorType::F32),
        ("blk.0.layer_output_scale.weight", TensorType::F32),
        ("rope_freqs.weight", TensorType::F32),
    ] {
        assert_eq!(type_of(name), expected, "{name}");
    }
}

#[test]
fn what_is_left_out_is_said() {
    let root = tempfile::tempdir().unwrap();
    let run = |checkpoint: &Checkpoint, out: &str| {
        checkpoint.write(root.path());
        let run = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
            .args(["llava", ".", "-o", out, "--type", "f32"])
            .current_dir(root.path())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (run.status.success(), text(run.stdout), text(run.stderr))
    };
    let (is_done, stdout, stderr) = run(&gemma4_checkpoint("shared-a"), "out");
    assert!(is_done, "{stderr}");
    let written: Vec<_> = stdout.lines().map(Path::new).collect();
    let both = ["out/model-f32.gguf", "out/mmproj-f16.gguf"];
    assert_eq!(written, both.map(Path::new));
    for words in [
        "warning: what hears in a Gemma 4 is left out",
        "`gemma4` of 6 blocks of width 32",
        "pictures: up to 70 image rows of 3 × 3 patches of 4 pixels a side",
        "written as f32",
    ] {
        assert!(stderr.contains(words), "no {words:?} in: {stderr}");
    }
    let (is_done, _, stderr) = run(&gemma4_checkpoint("dense-a"), "deaf");
    assert!(is_done && !stderr.contains("what hears"), "{stderr}");
    // One that sees nothing has a file for texts, beside whatever projector lies there.
    std::fs::create_dir(root.path().join("blind")).unwrap();
    std::fs::write(root.path().join("blind/mmproj-f16.gguf"), "").unwrap();
    let (is_done, stdout, stderr) = run(&gemma4_checkpoint("experts-b"), "blind");
    assert!(is_done, "{stderr}");
    let written = Path::new(stdout.trim_end());
    assert_eq!(written, Path::new("blind/model-f32.gguf"));
    assert!(stderr.contains("written as f32 (language model)\n"));
    assert!(!stderr.contains("vision tower"), "{stderr}");
    // Then there is nothing to write without the language model.
    let mut other = gemma4_checkpoint("experts-b");
    other.config["text_config"]["model_type"] = "gemma4_more".into();
    let (is_done, _, stderr) = run(&other, "other");
    assert!(!is_done);
    for words in ["`text_config.model_type` is `gemma4_more`", "hint: "] {
        assert!(stderr.contains(words), "no {words:?} in: {stderr}");
    }
    assert!(!root.path().join("other").exists());
}

#[test]
fn what_is_refused() {
    let check = |name: &str, key: &str, value: Json, words: &[&str]| {
        let set = |c: &mut Checkpoint| {
            c.config.pointer_mut("/text_config").unwrap()[key] = value;
        };
        check_spoilt(
            gemma4_checkpoint(name),
            set,
            &[&["config.json"], words].concat(),
        );
    };
    let key = |key: &str| format!("`text_config.{key}`");
    for (name, setting, value, words) in [
        ("dense-a", "sliding_window", Json::Null, "is null"),
        ("dense-a", "sliding_window", json!(0), "is 0"),
        ("shared-a", "num_kv_shared_layers", json!(5), "is 5"),
        ("shared-a", "num_kv_shared_layers", json!(3), "is 3"),
        ("shared-b", "num_kv_shared_layers", json!(2), "is 2"),
        (
            "shared-a",
            "vocab_size_per_layer_input",
            json!(300),
            "is 300",
        ),
        (
            "shared-a",
            "hidden_size_per_layer_input",
            json!(-1),
            "is -1",
        ),
        ("shared-a", "pad_token_id", json!(3), "is 3"),
        (
            "shared-a",
            "use_bidirectional_attention",
            json!("vision"),
            "\"vision\"",
        ),
        (
            "dense-a",
            "use_bidirectional_attention",
            json!("all"),
            "\"all\"",
        ),
        (
            "dense-a",
            "use_bidirectional_attention",
            Json::Null,
            "is null",
        ),
        ("dense-a", "final_logit_softcapping", json!(-1.0), "is -1"),
        ("experts-a", "num_experts", Json::Null, "is missing"),
        ("experts-a", "top_k_experts", json!(5), "1 to 4"),
        ("experts-a", "moe_intermediate_size", json!(0), "is 0"),
        (
            "dense-a",
            "hidden_activation",
            json!("gelu"),
            "`gelu_pytorch_tanh`",
        ),
        ("dense-a", "attention_bias", json!(true), "only false"),
    ] {
        check(name, setting, value, &[&key(setting), words]);
    }
    let windows = |windows: [bool; 3]| {
        let kinds = windows.map(|window| match window {
            true => "sliding_attention",
            false => "full_attention",
        });
        json!(kinds)
    };
    check(
        "dense-a",
        "layer_types",
        windows([false; 3]),
        &["no `sliding_attention`"],
    );
    for (value, words) in [
        (json!({}), "has 0 blocks, expected the 1"),
        (
            json!({ "1": { "head_dim": 16 } }),
            "says nothing of block 2",
        ),
        (
            json!({ "2": { "num_key_value_heads": 1 } }),
            "no `head_dim` for block 2",
        ),
        (json!({ "2": { "head_dim": 15 } }), "is 15"),
        (
            json!({ "2": { "head_dim": 16, "num_key_value_heads": 3 } }),
            "num_global_key_value_heads",
        ),
        (
            json!({ "2": { "head_dim": 16, "hidden_size": 8 } }),
            "has `hidden_size` for block 2",
        ),
    ] {
        check("dense-a", "per_layer_config", value, &[words]);
    }
    check(
        "shared-a",
        "per_layer_config",
        json!({ "1": { "head_dim": 16 }, "3": { "head_dim": 16 }, "5": { "head_dim": 8 } }),
        &["heads of several shapes"],
    );
    for (change, words) in [
        (json!({ "rope_type": "linear", "factor": 2.0 }), "`linear`"),
        (
            json!({ "rope_type": "proportional", "factor": 2.0 }),
            "`rope_parameters.full_attention.factor` is not 1",
        ),
        (
            json!({ "rope_type": "proportional", "partial_rotary_factor": 1.5 }),
            "`partial_rotary_factor` is 1.5",
        ),
    ] {
        let set = |c: &mut Checkpoint| {
            c.config["text_config"]["rope_parameters"]["full_attention"] = change.clone();
        };
        check_spoilt(gemma4_checkpoint("dense-a"), set, &["config.json", words]);
    }
}

#[test]
fn what_is_refused_of_what_sees() {
    let check = |name: &str, key: &str, value: Json, words: &[&str]| {
        let set = |c: &mut Checkpoint| {
            c.config.pointer_mut("/vision_config").unwrap()[key] = value;
        };
        let words = [&["config.json"], words].concat();
        check_spoilt(gemma4_checkpoint(name), set, &words);
    };
    let key = |key: &str| format!("`vision_config.{key}`");
    for (setting, value, words) in [
        (
            "model_type",
            json!("gemma4_unified_vision"),
            "`gemma4_vision`",
        ),
        ("hidden_activation", json!("gelu"), "`gelu_pytorch_tanh`"),
        ("attention_bias", json!(true), "only false"),
        ("head_dim", json!(4), "is 4"),
        ("num_attention_heads", json!(0), "is 0"),
        ("num_key_value_heads", json!(1), "is 1"),
        ("num_hidden_layers", json!(0), "is 0"),
        ("hidden_size", json!(0), "is 0"),
        ("patch_size", json!(33), "is 33"),
        ("pooling_kernel_size", json!(9), "is 9"),
        ("position_embedding_size", json!(209), "may have 210"),
        ("rms_norm_eps", json!(0.0), "is 0"),
    ] {
        check("shared-a", setting, value, &[&key(setting), words]);
    }
    check(
        "dense-a",
        "hidden_size",
        json!("wide"),
        &["`vision_config`: "],
    );
    let rope = json!({ "rope_type": "axial", "rope_theta": 10_000.0 });
    check("dense-a", "rope_parameters", rope, &["is not 100"]);
    let rope = json!({ "rope_type": "linear", "rope_theta": 100.0 });
    check("dense-a", "rope_parameters", rope, &["`linear`"]);
    for (setting, value, words) in [
        ("max_soft_tokens", json!(71), "expected one of"),
        ("patch_size", json!(16), "and 4 in `config.json`"),
        ("pooling_kernel_size", json!(2), "and 3 in `config.json`"),
        ("resample", json!(2), "bicubic"),
        ("do_resize", json!(false), "supported: true"),
        (
            "image_processor_type",
            json!("Gemma3ImageProcessor"),
            "Gemma4",
        ),
        // Which makes 840 patches a side.
        (
            "max_soft_tokens",
            json!(280),
            "`vision_config.position_embedding_size` is 210",
        ),
    ] {
        let set = |c: &mut Checkpoint| {
            let processor = c.files.get_mut("processor_config.json").unwrap();
            processor["image_processor"][setting] = value;
        };
        check_spoilt(gemma4_checkpoint("shared-a"), set, &[words]);
    }
}

#[test]
fn tensors_that_are_missing_or_of_another_shape() {
    for tensor in [
        "vision_tower.patch_embedder.input_proj.weight",
        "vision_tower.patch_embedder.position_embedding_table",
        "vision_tower.encoder.layers.1.self_attn.q_norm.weight",
        "vision_tower.encoder.layers.1.mlp.gate_proj.input_max",
        "vision_tower.encoder.layers.0.mlp.down_proj.linear.weight",
        "embed_vision.embedding_projection.weight",
    ] {
        let saved = format!("model.{tensor}");
        let plain = format!("`{tensor}`");
        let remove = |c: &mut Checkpoint| drop(c.tensors.remove(&saved).expect(tensor));
        let dense = || gemma4_checkpoint("dense-a");
        check_spoilt(dense(), remove, &["has no tensor", &plain]);
        let other = |c: &mut Checkpoint| c.add(&saved, &[3, 5]);
        check_spoilt(dense(), other, &[tensor, "[3, 5]", "expected ["]);
    }
    let more = |c: &mut Checkpoint| c.add("model.vision_tower.std_bias", &[16]);
    let words = ["does not belong in a Gemma 4"];
    check_spoilt(gemma4_checkpoint("dense-a"), more, &words);
    for (name, tensor) in [
        ("dense-a", "layers.0.layer_scalar"),
        ("dense-a", "layers.0.self_attn.v_proj.weight"),
        ("shared-a", "embed_tokens_per_layer.weight"),
        ("shared-a", "layers.5.per_layer_input_gate.weight"),
        ("experts-a", "layers.1.router.per_expert_scale"),
        ("experts-a", "layers.1.experts.gate_up_proj"),
    ] {
        let saved = format!("model.language_model.{tensor}");
        let plain = format!("`language_model.{tensor}`");
        let remove = |c: &mut Checkpoint| drop(c.tensors.remove(&saved).expect(tensor));
        check_spoilt(gemma4_checkpoint(name), remove, &["has no tensor", &plain]);
        let other = |c: &mut Checkpoint| c.add(&saved, &[3, 5]);
        check_spoilt(
            gemma4_checkpoint(name),
            other,
            &[tensor, "[3, 5]", "expected ["],
        );
    }
    // Blocks that see everything have no values of their own in a dense model, and here they would have.
    let add = |c: &mut Checkpoint| {
        c.add(
            "model.language_model.layers.2.self_attn.v_proj.weight",
            &[16, 32],
        )
    };
    check_spoilt(
        gemma4_checkpoint("dense-a"),
        add,
        &["does not belong in a Gemma 4"],
    );
    let experts = |c: &mut Checkpoint| {
        c.config["text_config"]["enable_moe_block"] = false.into();
    };
    check_spoilt(
        gemma4_checkpoint("experts-a"),
        experts,
        &["does not belong in a Gemma 4"],
    );
    let unigram = |c: &mut Checkpoint| c.tokenizer["model"]["type"] = "Unigram".into();
    check_spoilt(gemma4_checkpoint("experts-b"), unigram, &["tokenizer"]);
}
