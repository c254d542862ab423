//! SAEs and labels as people have them: each kind in several spellings.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::sae::{self, Architecture, ConvertedSae, SaeFile, SaeOptions};
use safetensors::Dtype;
use serde_json::json;

use crate::sae_conversion::{convert, matrix, options};
use crate::sae_faults::check_source;
use crate::sae_folder::Folder;
use crate::sae_formats::{copy, edit, fixture, write_npz};

const LLAMA_SCOPE: &str = "llama-scope/Llama3_1-8B-Base-L1R-8x";

fn convert_source(source: &Path, options: &SaeOptions) -> ConvertedSae {
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut go_on = |_, _| ControlFlow::Continue(());
    let target = out.path().join("sae.gguf");
    let converted = sae::convert(source, &target, options, &mut go_on).expect("convertible");
    let file = SaeFile::open(&target).expect("just written");
    file.verify().expect("just written");
    converted
}

#[test]
fn the_hook_point_that_is_given_has_the_last_word() {
    for name in [
        "saelens-0-standard",
        "saelens-6-topk",
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "sparsify/layers.1",
        LLAMA_SCOPE,
        "openmoss/jumprelu",
    ] {
        let said = convert_source(&fixture(name), &options());
        assert_eq!(said.meta.hook_name, "blocks.1.hook_resid_post", "{name}");
        assert!(said.report[1].contains("hook point from the SAE's files"));
        let told = SaeOptions {
            hook_name: Some("blocks.7.hook_mlp_out".to_owned()),
            ..options()
        };
        let given = convert_source(&fixture(name), &told);
        assert_eq!(given.meta.hook_name, "blocks.7.hook_mlp_out", "{name}");
        assert!(given.report[1].contains("hook point as given"));
    }
}

/// sparsify calls folders as modules of its model are called; LMMs-Lab's SAE is in `model.layers.24`.
#[test]
fn folders_that_are_called_as_modules() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let sparsify = copy("sparsify/layers.1", dir.path());
    for (name, hook_name) in [
        ("layers.24", "blocks.24.hook_resid_post"),
        ("model.layers.24", "blocks.24.hook_resid_post"),
        (
            "language_model.model.layers.24",
            "blocks.24.hook_resid_post",
        ),
        (
            "model.language_model.layers.24",
            "blocks.24.hook_resid_post",
        ),
        ("model.layers.24.mlp", "blocks.24.hook_mlp_out"),
    ] {
        let renamed = sparsify.with_file_name(name);
        std::fs::rename(&sparsify, &renamed).expect("writable");
        let converted = convert_source(&renamed, &options());
        assert_eq!(converted.meta.hook_name, hook_name, "{name}");
        std::fs::rename(&renamed, &sparsify).expect("writable");
    }
}

#[test]
fn a_configuration_without_a_hook_point() {
    let told = SaeOptions {
        hook_name: Some("blocks.7.hook_resid_post".to_owned()),
        ..options()
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |source: &Path, is_told_by_folder: Option<&str>| {
        match is_told_by_folder {
            Some(hook_name) => {
                assert_eq!(convert_source(source, &options()).meta.hook_name, hook_name);
            }
            None => check_source(source, &options(), &["hook point, ", "`blocks."]),
        }
        let given = convert_source(source, &told).meta.hook_name;
        assert_eq!(given, "blocks.7.hook_resid_post");
    };
    let saelens = Folder::standard().with("hook_name", json!(null));
    check(&saelens.write(dir.path()), None);
    let gemma = copy(
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        dir.path(),
    );
    edit(&gemma.join("config.json"), "hf_hook_point_in", json!(null));
    check(&gemma, None);
    let openmoss = copy("openmoss/topk", dir.path());
    for key in ["hook_point_in", "hook_point_out"] {
        edit(&openmoss.join("config.json"), key, json!(null));
    }
    check(&openmoss, None);

    // Llama Scope: what it writes to, or the folder's name.
    let mut llama = copy(LLAMA_SCOPE, dir.path());
    let config = llama.join("hyperparams.json");
    edit(&config, "hook_point_in", json!(null));
    edit(&config, "hook_point_out", json!("blocks.3.hook_mlp_out"));
    check(&llama, Some("blocks.3.hook_mlp_out"));
    edit(&config, "hook_point_out", json!(null));
    for (name, hook_name) in [
        (
            "Llama3_1-8B-Base-L15R-8x",
            Some("blocks.15.hook_resid_post"),
        ),
        ("Llama3_1-8B-Base-L0M-32x", Some("blocks.0.hook_mlp_out")),
        ("Llama3_1-8B-Base-L31A-8x", Some("blocks.31.hook_attn_out")),
        ("L7R", Some("blocks.7.hook_resid_post")),
        ("Llama3_1-8B-Base-L15TC-8x", None),
        ("Llama3_1-8B-LR-L", None),
        ("my-sae", None),
    ] {
        let renamed = llama.with_file_name(name);
        std::fs::rename(&llama, &renamed).expect("writable");
        llama = renamed;
        check(&llama, hook_name);
    }
}

#[test]
fn openmoss_configurations() {
    let check = |key: &str, value: serde_json::Value, expected: &[&str]| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy("openmoss/jumprelu", dir.path());
        edit(&source.join("config.json"), key, value);
        check_source(&source, &options(), &[&["config.json"], expected].concat());
    };
    check(
        "act_fn",
        json!("batchtopk"),
        &["`batchtopk`", "makes a jumprelu SAE"],
    );
    check(
        "norm_activation",
        json!("batch-wise"),
        &["`batch-wise`", "`token-wise`"],
    );
    check(
        "sae_type",
        json!("crosscoder"),
        &["`sae_type` is `crosscoder`"],
    );
    check("use_glu_encoder", json!(true), &["`use_glu_encoder`"]);
    check(
        "hook_point_out",
        json!("blocks.1.hook_mlp_out"),
        &["is a transcoder"],
    );
    // The norm factor's tensor is of the hook point, or of whatever there is one.
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("openmoss/jumprelu", dir.path());
    let said = convert_source(&source, &options());
    let factor = said.meta.norm_factor.expect("data-set-wise");
    assert!((factor - 24_f32.sqrt() / 6.3).abs() < 1e-6, "{factor}");
    for key in ["hook_point_in", "hook_point_out"] {
        edit(
            &source.join("config.json"),
            key,
            json!("blocks.2.hook_resid_post"),
        );
    }
    assert_eq!(
        convert_source(&source, &options()).meta.norm_factor,
        Some(factor)
    );
}

#[test]
fn folders_of_several() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let place = |fixture_name: &str, target: &str| {
        let source = copy(fixture_name, &dir.path().join("copies"));
        let target = dir.path().join("roots").join(target);
        std::fs::create_dir_all(target.parent().expect("one above")).expect("writable");
        std::fs::rename(source, target).expect("writable");
    };
    for layer in [10, 2, 1] {
        place("sparsify/layers.1", &format!("sparsify/layers.{layer}"));
        place(
            "saelens-6-topk",
            &format!("release/blocks.{layer}.hook_resid_post"),
        );
        place(LLAMA_SCOPE, &format!("scope/Llama3_1-8B-Base-L{layer}R-8x"));
        place("openmoss/jumprelu", &format!("openmoss/L{layer}R"));
        for l0 in [71, 9] {
            place(
                "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
                &format!("gemma-scope-2b-pt-res/layer_{layer}/width_16k/average_l0_{l0}"),
            );
        }
    }
    let root = |name: &str| dir.path().join("roots").join(name);
    std::fs::write(root("sparsify/config.json"), "{}").expect("writable");
    let check = |name: &str, expected: &[&str]| check_source(&root(name), &options(), expected);
    check(
        "sparsify",
        &[
            "is not an SAE, but a folder with 3 of them",
            "give one of these: `layers.1`, `layers.2`, `layers.10`",
        ],
    );
    check(
        "release",
        &["`blocks.1.hook_resid_post`, `blocks.2.hook_resid_post`"],
    );
    check(
        "scope",
        &["`Llama3_1-8B-Base-L1R-8x`, `Llama3_1-8B-Base-L2R-8x`"],
    );
    check("openmoss", &["`L1R`, `L2R`, `L10R`"]);
    check(
        "gemma-scope-2b-pt-res",
        &[
            "with 6 of them",
            "`layer_1/width_16k/average_l0_9`, `layer_1/width_16k/average_l0_71`",
        ],
    );
    check(
        "gemma-scope-2b-pt-res/layer_1",
        &["`width_16k/average_l0_9`"],
    );
    // More than fit into a line.
    check("", &["with 18 of them", "and 6 more"]);
}

#[test]
fn every_float_becomes_f32() {
    for (dtype, tolerance) in [
        (Dtype::F64, 0.0),
        (Dtype::F16, 2.0_f32.powi(-12)),
        (Dtype::BF16, 2.0_f32.powi(-9)),
    ] {
        let mut folder = Folder::jumprelu();
        for tensor in folder.tensors.values_mut() {
            tensor.0 = dtype;
        }
        let (_dir, file) = convert(&folder, &options());
        let pairs = matrix(&file, "sae.w_dec");
        for (read, value) in pairs.iter().zip(folder.values("W_dec")) {
            assert!(
                (read - value).abs() <= tolerance,
                "{read}, {value} as {dtype:?}"
            );
        }
    }
    let mut folder = Folder::standard();
    folder.tensors.get_mut("b_enc").expect("there").0 = Dtype::F64;
    convert(&folder, &options());
}

#[test]
fn arrays_of_every_float() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        dir.path(),
    );
    let (d_in, d_sae) = (4, 6);
    let value = |seed: usize, idx: usize| ((seed * 31 + idx * 7) % 17) as f32 / 16.0 - 0.5;
    for descr in ["<f8", "<f4", "<f2"] {
        let array = |seed: usize, shape: &[usize]| {
            let sizes: Vec<String> = shape.iter().map(|size| format!("{size},")).collect();
            let header = format!(
                "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}\n",
                sizes.join(" ")
            );
            let n_values = shape.iter().product();
            let data: Vec<u8> = (0..n_values)
                .flat_map(|idx| {
                    let value = value(seed, idx);
                    match descr {
                        "<f8" => f64::from(value).to_le_bytes().to_vec(),
                        "<f4" => value.to_le_bytes().to_vec(),
                        _ => half::f16::from_f32(value).to_le_bytes().to_vec(),
                    }
                })
                .collect();
            crate::sae_formats::array(&header, &data)
        };
        let entries = [
            ("W_enc.npy", array(1, &[d_in, d_sae])),
            ("W_dec.npy", array(2, &[d_sae, d_in])),
            ("b_enc.npy", array(3, &[d_sae])),
            ("b_dec.npy", array(4, &[d_in])),
            ("threshold.npy", array(5, &[d_sae])),
        ];
        for packing in [
            zip::CompressionMethod::Stored,
            zip::CompressionMethod::Deflated,
        ] {
            write_npz(&source.join("params.npz"), packing, &entries);
            let target = dir.path().join("sae.gguf");
            let replace = SaeOptions {
                overwrite: gguf_tools::gguf::Overwrite::Replace,
                ..options()
            };
            let mut go_on = |_, _| ControlFlow::Continue(());
            sae::convert(&source, &target, &replace, &mut go_on).expect("convertible");
            let file = SaeFile::open(&target).expect("just written");
            let expected: Vec<f32> = (0..d_sae * d_in).map(|idx| value(2, idx)).collect();
            assert_eq!(matrix(&file, "sae.w_dec"), expected, "{descr}");
        }
    }
}

#[test]
fn checkpoints_of_a_training() {
    for word in [
        "batchtopk",
        "matryoshka_batchtopk",
        "rank_stabilized_batchtopk",
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut folder = Folder::standard()
            .with("architecture", json!(word))
            .with("k", json!(16.0))
            .with("rescale_acts_by_decoder_norm", json!(true));
        let threshold = (Dtype::F64, vec![], vec![0.5]);
        folder
            .tensors
            .insert("topk_threshold".to_owned(), threshold);
        check_source(
            &folder.write(dir.path()),
            &options(),
            &[
                "cfg.json",
                word,
                "a checkpoint of the training",
                "`jumprelu`",
                "save_inference_model",
            ],
        );
    }
    // A float is no fault of a plain one.
    for k in [json!(16.0), json!(16)] {
        let (_dir, file) = convert(
            &Folder::standard()
                .with("architecture", json!("topk"))
                .with("k", k),
            &options(),
        );
        assert_eq!(file.meta.architecture, Architecture::TopK { k: 16 });
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let folder = Folder::standard()
        .with("architecture", json!("topk"))
        .with("k", json!(16.5));
    check_source(&folder.write(dir.path()), &options(), &["`k` is `16.5`"]);
}

/// A byte-order mark, and Python's numbers in keys that nobody needs.
#[test]
fn json_as_it_is_written() {
    let extra = r#""loss": NaN, "lr_end": Infinity, "least": [-Infinity, {"NaN": "a NaN"}], "#;
    for (name, file) in [
        ("saelens-6-topk", "cfg.json"),
        (
            "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
            "config.json",
        ),
        ("sparsify/layers.1", "cfg.json"),
        ("sparsify/layers.1", "../config.json"),
        (LLAMA_SCOPE, "hyperparams.json"),
        ("openmoss/jumprelu", "config.json"),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = name.split('/').next().expect("a name");
        copy(root, dir.path());
        let source = dir.path().join(name);
        let path = source.join(file);
        let right = std::fs::read_to_string(&path).expect("committed");
        let expected = convert_source(&source, &options()).meta;
        let with_numbers = right.replacen('{', &format!("{{{extra}"), 1);
        for text in [
            format!("\u{feff}{right}"),
            with_numbers.clone(),
            format!("\u{feff}{with_numbers}"),
        ] {
            std::fs::write(&path, text).expect("writable");
            assert_eq!(convert_source(&source, &options()).meta, expected, "{name}");
        }
    }
    // Where a number is needed, it is named.
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(LLAMA_SCOPE, dir.path());
    let path = source.join("hyperparams.json");
    let text = std::fs::read_to_string(&path).expect("committed");
    std::fs::write(&path, text.replace("0.2021484375", "-Infinity")).expect("writable");
    check_source(&source, &options(), &["hyperparams.json", "-Infinity"]);
}

fn write_labels(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("labels.jsonl");
    std::fs::write(&path, text).expect("writable");
    path
}

#[test]
fn labels_of_something_else() {
    let check = |hook_name: &str, text: &str, expected: &[&str]| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let with_labels = SaeOptions {
            labels: vec![write_labels(dir.path(), text)],
            hook_name: Some(hook_name.to_owned()),
            ..options()
        };
        let source = Folder::standard().write(dir.path());
        if expected.is_empty() {
            let converted = convert_source(&source, &with_labels);
            assert_eq!(converted.meta.labels[3], "dogs");
            assert!(converted.report[2].starts_with("labels of 1 features, from `"));
        } else {
            check_source(
                &source,
                &with_labels,
                &[&["labels.jsonl"], expected].concat(),
            );
        }
    };
    let label = |layer: &str| {
        json!({"modelId": "gemma-2b", "layer": layer, "index": "3", "description": "dogs"})
            .to_string()
    };
    // Another layer.
    for hook_name in [
        "blocks.12.hook_resid_post",
        "model.layers.12",
        "transformer.h.12",
    ] {
        check(hook_name, &label("12-res-jb"), &[]);
        check(hook_name, &label("12-gemmascope-res-16k"), &[]);
        check(
            hook_name,
            &label("6-res-jb"),
            &[
                "`gemma-2b/6-res-jb`",
                hook_name,
                "`gemma-2b/12-res-jb/explanations`",
            ],
        );
        check(
            hook_name,
            &label("1-gemmascope-mlp-16k"),
            &["`gemma-2b/1-gemmascope-mlp-16k`"],
        );
        check(hook_name, &label("120-res-jb"), &["layer 12"]);
        check(hook_name, &label("mine"), &[]);
    }
    // Before its features are counted.
    let beyond = label("6-res-jb").replace("\"3\"", "\"9999\"");
    check(
        "blocks.12.hook_resid_post",
        &beyond,
        &["`gemma-2b/6-res-jb`"],
    );
    // Neuronpedia's other dumps.
    for record in [
        json!({"modelId": "gemma-2b", "layer": "12-res-jb", "index": "3", "tokens": ["a"], "values": [0, 1.5]}),
        // Whatever else is wrong with it.
        json!({"modelId": "gemma-2b", "layer": "6-res-jb", "index": "9999", "maxActApprox": 12.5, "pos_str": ["a"]}),
        json!({"index": 3, "umap_x": 0.5}),
    ] {
        let lines = format!("{record}\n{record}\n");
        for text in [lines, format!("[{record}]")] {
            check(
                "blocks.12.hook_resid_post",
                &text,
                &["contains no labels", "`explanations`", "`activations`"],
            );
        }
    }
    // Numbers of Python in the keys beside a label.
    let text =
        r#"{"index": "3", "umap_x": NaN, "description": "dogs", "more": [-Infinity, Infinity]}"#;
    check("blocks.12.hook_resid_post", text, &[]);
    check("blocks.12.hook_resid_post", &format!("[{text}]"), &[]);
}

/// What looks like another model or another place of the layer is said, and the labels are taken.
#[test]
fn labels_that_may_be_of_something_else() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |model: &str, labelled: &str, layer: &str, warning: Option<&str>| {
        let label =
            json!({"modelId": labelled, "layer": layer, "index": "3", "description": "dogs"});
        let labels = write_labels(dir.path(), &label.to_string());
        let source = Folder::standard()
            .with("model_name", json!(model))
            .write(dir.path());
        let arguments = [
            "sae",
            source.to_str().expect("UTF-8"),
            "-o",
            "sae.gguf",
            "--force",
            "--labels",
            labels.to_str().expect("UTF-8"),
        ];
        let (code, _, stderr) = crate::command_line::run(dir.path(), &arguments);
        assert_eq!(code, Some(0), "{stderr}");
        match warning {
            Some(words) => assert!(stderr.contains(words), "{words}: {stderr}"),
            None => assert!(!stderr.contains("warning"), "{stderr}"),
        }
    };
    check("gemma-2b", "gemma-2b", "4-res-jb", None);
    check("google/gemma-2b", "gemma-2b", "4-res-jb", None);
    check(
        "meta-llama/Llama-3.1-8B",
        "llama3.1-8b",
        "4-llamascope-res-32k",
        None,
    );
    check(
        "gemma-2b",
        "gemma-2b-it",
        "4-res-jb",
        Some("trained on `gemma-2b`"),
    );
    check("gpt2", "pythia-70m", "4-res-sm", Some("trained on `gpt2`"));
    check(
        "gemma-2b",
        "gemma-2b",
        "4-gemmascope-mlp-16k",
        Some("the SAE belongs to `blocks.4.hook_resid_post`"),
    );
    check(
        "gemma-2b",
        "gemma-2b",
        "4-att-kk",
        Some("`gemma-2b/4-att-kk`"),
    );
}
