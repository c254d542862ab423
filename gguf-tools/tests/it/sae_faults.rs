//! SAEs and labels that are refused: each fault is named, and no file is left behind.

use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::sae::{self, SaeOptions};
use gguf_tools::{ErrorKind, gguf::TensorType};
use safetensors::Dtype;
use serde_json::json;

use crate::listing;
use crate::sae_conversion::options;
use crate::sae_folder::{D_IN, D_SAE, Folder};

pub(crate) fn check_source(source: &Path, options: &SaeOptions, expected: &[&str]) {
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut go_on = |_, _| ControlFlow::Continue(());
    let error = sae::convert(source, &out.path().join("sae.gguf"), options, &mut go_on)
        .expect_err(&expected.join(", "));
    let message = format!("{error}\n{}", error.hint().unwrap_or_default());
    for expected in expected {
        assert!(
            message.contains(expected),
            "`{expected}` is not in: {message}"
        );
    }
    assert_eq!(listing(out.path()), [""; 0]);
}

fn check(folder: &Folder, options: &SaeOptions, expected: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    check_source(&folder.write(dir.path()), options, expected);
}

#[test]
fn configurations() {
    let check = |key: &str, value: serde_json::Value, expected: &[&str]| {
        check(&Folder::standard().with(key, value), &options(), expected);
    };
    for word in ["temporal", "jumprelu_v2", ""] {
        let quoted = format!("`architecture` is `{word}`");
        check(
            "architecture",
            json!(word),
            &["cfg.json", &quoted, "`standard`, `jumprelu`", "`gated`"],
        );
    }
    check("architecture", json!("gated"), &["no tensor `r_mag`"]);
    for word in ["transcoder", "jumprelu_skip_transcoder"] {
        check(
            "architecture",
            json!(word),
            &["cfg.json", "no key `hook_name_out`", "hook_mlp_out"],
        );
    }
    check(
        "hook_name_out",
        json!("blocks.1.hook_mlp_out"),
        &["is a transcoder", "`blocks.1.hook_mlp_out`"],
    );
    check("hook_head_index", json!(3), &["cfg.json", "head 3"]);
    check(
        "normalize_activations",
        json!("covariance_whitening"),
        &[
            "cfg.json",
            "whitening matrix",
            "`fold_activation_whitening`",
        ],
    );
    check(
        "normalize_activations",
        json!("sometimes"),
        &[
            "cfg.json",
            "`normalize_activations` is `sometimes`",
            "`expected_average_only_in`",
        ],
    );
    for (key, word) in [("activation_fn_str", "topk"), ("architecture", "topk")] {
        check(key, json!(word), &["cfg.json", "no key `k`"]);
    }
    check(
        "activation_fn",
        json!("tanh-relu"),
        &["`activation_fn` is `tanh-relu`"],
    );
    check("hook_name", json!(null), &["cfg.json", "`hook_name`"]);
    check("hook_name", json!(""), &["hook point"]);
    check("d_in", json!(D_SAE), &["`d_in` is 101", "[101, 37]"]);
    check("d_sae", json!(7), &["`d_sae` is 7", "[101, 37]"]);
    check("d_in", json!("many"), &["cfg.json", "many"]);
    check(
        "architecture",
        json!("jumprelu"),
        &["no tensor `threshold`"],
    );
}

/// A `jumprelu_skip_transcoder` from rows of 37 to rows of 23.
fn transcoder() -> Folder {
    let d_out = 23;
    let mut folder = Folder::jumprelu()
        .with("architecture", json!("jumprelu_skip_transcoder"))
        .with("apply_b_dec_to_input", json!(null))
        .with("d_out", json!(d_out))
        .with("hook_name_out", json!("blocks.4.hook_mlp_out"));
    folder.config["hook_name"] = json!("blocks.4.mlp.hook_in");
    for (name, shape) in [
        ("W_dec", vec![D_SAE, d_out]),
        ("b_dec", vec![d_out]),
        ("W_skip", vec![d_out, D_IN]),
    ] {
        let values = crate::random_values(7, shape.iter().product());
        folder
            .tensors
            .insert(name.to_owned(), (Dtype::F32, shape, values));
    }
    folder
}

#[test]
fn transcoders() {
    let check = |change: &dyn Fn(&mut Folder), expected: &[&str]| {
        let mut folder = transcoder();
        change(&mut folder);
        check(&folder, &options(), expected);
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = transcoder().write(dir.path());
    let target = dir.path().join("sae.gguf");
    let mut go_on = |_, _| ControlFlow::Continue(());
    let converted = sae::convert(&source, &target, &options(), &mut go_on).expect("a right one");
    let meta = &converted.meta;
    assert_eq!((meta.d_in, meta.d_out, meta.d_sae), (D_IN, 23, D_SAE));
    assert_eq!(meta.hook_names_out, ["blocks.4.hook_mlp_out"]);

    let set = |key: &'static str, value: serde_json::Value| {
        move |folder: &mut Folder| folder.config[key] = value.clone()
    };
    check(
        &set("d_out", json!(37)),
        &["`d_out` is 37", "`W_dec`", "[101, 23]"],
    );
    check(
        &set("d_in", json!(23)),
        &["`d_in` is 23", "`W_enc`", "[37, 101]"],
    );
    check(&set("d_sae", json!(7)), &["`d_sae` is 7"]);
    check(
        &set("hook_name_out", json!(null)),
        &["no key `hook_name_out`"],
    );
    check(
        &set("hook_name_out", json!("")),
        &["the hook point has no name"],
    );
    check(
        &set("hook_name", json!("blocks.4.hook_mlp_out")),
        &["`blocks.4.hook_mlp_out` twice"],
    );
    check(
        &set("apply_b_dec_to_input", json!(true)),
        &["subtracts `b_dec`", "not supported"],
    );
    check(
        &set("normalize_activations", json!("layer_norm")),
        &["`layer_norm`", "not supported"],
    );
    check(
        &set(
            "model_from_pretrained_kwargs",
            json!({"center_writing_weights": true}),
        ),
        &["rows less their mean", "not supported"],
    );
    check(
        &set("architecture", json!("jumprelu_transcoder")),
        &["`W_skip`", "`jumprelu_transcoder`"],
    );
    check(
        &set("architecture", json!("skip_transcoder")),
        &["`threshold`", "`skip_transcoder`"],
    );
    check(
        &set("architecture", json!("clt")),
        &["is a transcoder", "not read in this format"],
    );
    check(
        &|folder| drop(folder.tensors.remove("W_skip")),
        &["no tensor `W_skip`"],
    );
    let reshape = |name: &'static str, shape: &'static [usize]| {
        move |folder: &mut Folder| folder.tensors.get_mut(name).expect("there").1 = shape.to_vec()
    };
    check(
        &reshape("W_skip", &[D_IN, 23]),
        &["`W_skip`", "[37, 23], expected [23, 37]"],
    );
    check(&reshape("b_dec", &[23, 1]), &["`b_dec`", "expected [23]"]);
    check(&reshape("W_enc", &[D_IN * D_SAE]), &["`W_enc`"]);
    check(
        &|folder| folder.values_mut("W_skip")[40] = f32::NAN,
        &["`W_skip`", "NaN at feature 1"],
    );
}

#[test]
fn norm_factors() {
    let normalized =
        Folder::standard().with("normalize_activations", json!("expected_average_only_in"));
    let with = |norm_factor| SaeOptions {
        norm_factor: Some(norm_factor),
        ..options()
    };
    check(
        &normalized,
        &options(),
        &["sae`: `normalize_activations`", "give it: "],
    );
    check(
        &Folder::standard(),
        &with(0.5),
        &["a norm factor is given", "leave"],
    );
    for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        check(&normalized, &with(factor), &["finite and above 0"]);
    }
    // So large or small that finite weights become infinite.
    let check = |name: &str, factor, expected: &str| {
        let mut folder = normalized.clone();
        folder.values_mut(name)[5] = 1e3;
        check(
            &folder,
            &with(factor),
            &[expected, name, "too large for f32", "check the norm factor"],
        );
    };
    check("W_enc", 1e37, "the norm factor 1e37");
    check("W_dec", 1e-36, "the norm factor 1e-36");
    check("b_dec", 1e-36, "the norm factor 1e-36");
}

#[test]
fn weights() {
    let check = |change: &dyn Fn(&mut Folder), expected: &[&str]| {
        let mut folder = Folder::jumprelu();
        change(&mut folder);
        check(&folder, &options(), expected);
    };
    for name in ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"] {
        check(
            &|folder| drop(folder.tensors.remove(name)),
            &["no tensor", name],
        );
    }
    let reshape = |name: &'static str, shape: &'static [usize]| {
        move |folder: &mut Folder| folder.tensors.get_mut(name).expect("there").1 = shape.to_vec()
    };
    check(
        &reshape("W_enc", &[D_SAE, D_IN]),
        &["`W_enc`", "[101, 37], expected [37, 101]"],
    );
    check(
        &reshape("W_dec", &[D_SAE * D_IN]),
        &["`W_dec`", "expected [d_sae, d_in]"],
    );
    check(
        &reshape("b_enc", &[1, D_SAE]),
        &["`b_enc`", "[1, 101], expected [101]"],
    );
    for name in ["W_enc", "W_dec", "threshold"] {
        check(
            &|folder| folder.tensors.get_mut(name).expect("there").0 = Dtype::I32,
            &[name, "I32", "F64, F32, F16 or BF16"],
        );
    }
    check(
        &|folder| folder.values_mut("W_enc")[3 * D_SAE + 17] = f32::NAN,
        &["`W_enc`", "NaN at feature 17"],
    );
    check(
        &|folder| folder.values_mut("W_dec")[100 * D_IN] = f32::INFINITY,
        &["`W_dec`", "inf at feature 100"],
    );
    check(
        &|folder| folder.values_mut("b_dec")[36] = f32::NAN,
        &["`b_dec`", "NaN at index 36"],
    );
    check(
        &|folder| folder.values_mut("threshold")[1] = f32::NAN,
        &["`threshold`", "NaN at index 1"],
    );
    let gate = (Dtype::F32, vec![1], vec![1.0]);
    check(
        &|folder| drop(folder.tensors.insert("b_gate".to_owned(), gate.clone())),
        &["`b_gate`", "`jumprelu`"],
    );
    let factors = (Dtype::F32, vec![D_SAE], vec![2.0; D_SAE]);
    check(
        &|folder| {
            drop(
                folder
                    .tensors
                    .insert("scaling_factor".to_owned(), factors.clone()),
            )
        },
        &["`scaling_factor`", "`finetuning_scaling_factor` is false"],
    );
}

#[test]
fn values_beyond_the_type_asked_for() {
    let mut folder = Folder::standard();
    folder.values_mut("W_dec")[5] = 1e6;
    let as_f16 = SaeOptions {
        weight_type: TensorType::F16,
        ..options()
    };
    check(
        &folder,
        &as_f16,
        &["`sae.w_dec`", "1000000", "f16 cannot hold", "f32"],
    );
    let as_bf16 = SaeOptions {
        weight_type: TensorType::Bf16,
        ..options()
    };
    check(&folder, &as_bf16, &["bf16", "f32, f16 or q8_0"]);
}

#[test]
fn files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::standard().write(dir.path());
    let weights = source.join("sae_weights.safetensors");
    let bytes = std::fs::read(&weights).expect("readable");
    let check = |content: &[u8], expected: &[&str]| {
        std::fs::write(&weights, content).expect("writable");
        check_source(&source, &options(), expected);
    };
    check(b"", &["safetensors", "0 bytes"]);
    check(&bytes[..bytes.len() - 1], &["the file has", "truncated"]);
    check(&bytes[..100], &["safetensors", "its header claims"]);
    check(
        b"version https://git-lfs.github.com/spec/v1\n",
        &["Git LFS", "git lfs pull"],
    );
    check(&[0xff; 64], &["its header claims"]);
    check(b"\x02\0\0\0\0\0\0\0[]", &["its header is malformed"]);
    std::fs::remove_file(&weights).expect("there");
    check_source(
        &source,
        &options(),
        &[
            "not an SAE of a known format",
            "SAELens (`sae_weights.safetensors`)",
        ],
    );
    std::fs::write(source.join("params.npz"), "").expect("writable");
    check_source(
        &source,
        &options(),
        &["params.npz` as npz", "truncated or damaged"],
    );
    std::fs::write(source.join("ae.pt"), "").expect("writable");
    check_source(
        &source.join("ae.pt"),
        &options(),
        &[
            "ae.pt` is a pickle",
            "`torch.load`",
            "`sae.save_model(folder)`",
        ],
    );
    std::fs::remove_file(source.join("params.npz")).expect("there");
    check_source(&source, &options(), &["ae.pt` is a pickle"]);
    check_source(&source.join("nowhere"), &options(), &["nowhere"]);

    let source = Folder::standard().write(dir.path());
    std::fs::write(source.join("cfg.json"), "{").expect("writable");
    check_source(&source, &options(), &["cfg.json", "EOF"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\n";
    std::fs::write(source.join("cfg.json"), pointer).expect("writable");
    check_source(
        &source,
        &options(),
        &["cfg.json", "Git LFS pointer", "git lfs pull"],
    );
    std::fs::remove_file(source.join("cfg.json")).expect("there");
    check_source(&source, &options(), &["cfg.json"]);
    check_source(&weights, &options(), &["cfg.json"]);
}

#[test]
fn labels() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("labels.json");
    let with_labels = SaeOptions {
        labels: vec![path.clone()],
        ..options()
    };
    let check = |text: &str, expected: &[&str]| {
        std::fs::write(&path, text).expect("writable");
        check(&Folder::standard(), &with_labels, expected);
    };
    let range = ["labels.json", "101 features"];
    check(
        r#"[{"index": "101", "description": "x"}]"#,
        &[&range[..], &["feature `101`"]].concat(),
    );
    check(
        r#"{"index": -1, "description": "x"}"#,
        &["labels.json", "index"],
    );
    check(
        r#"{"index": "first", "description": "x"}"#,
        &[&range[..], &["feature `first`"]].concat(),
    );
    check(r#"[{"description": "x"}]"#, &["labels.json", "index"]);
    check("[", &["labels.json", "EOF"]);
    check("index,description\n1,x\n", &["labels.json", "JSON"]);
    check(
        r#"{"index": 1, "modelId": "m", "layer": "4-a"} {"index": 2, "modelId": "m", "layer": "4-b"}"#,
        &["labels.json", "`m/4-b`", "`m/4-a`"],
    );
    std::fs::remove_file(&path).expect("there");
    check_source(
        &Folder::standard().write(dir.path()),
        &with_labels,
        &["labels.json"],
    );
}

#[test]
fn an_interruption_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::standard().write(dir.path());
    let target = dir.path().join("out/sae.gguf");
    std::fs::create_dir(dir.path().join("out")).expect("writable");
    let error = sae::convert(&source, &target, &options(), &mut |_, _| {
        ControlFlow::Break(())
    })
    .expect_err("interrupted");
    assert!(error.is_interrupted(), "{error}");
    assert_eq!(listing(&dir.path().join("out")), [""; 0]);
}

#[test]
fn an_existing_target_is_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::standard().write(dir.path());
    let target = dir.path().join("sae.gguf");
    std::fs::write(&target, "precious").expect("writable");
    let error = sae::convert(&source, &target, &options(), &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect_err("the target exists");
    assert!(
        error.kind() == ErrorKind::Exists && error.hint().is_some(),
        "{error}"
    );
    assert_eq!(std::fs::read(&target).expect("there"), b"precious");
}
