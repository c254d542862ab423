//! Files of projectors that would run as llama.cpp does it, and cannot: errors, by their headers or in the trial.

use gguf_tools::gguf::{TensorType, Value};
use llava_sae_cpp::ModelFiles;

use crate::bad_input::check;
use crate::command_line::{json, run};
use crate::fixture::Oracle;
use crate::others::{EXAONE, args, files, picture_path, prompt_text, root};
use crate::rewritten::{Parts, Tensor, rewritten};

/// Half a tensor.
fn halve(parts: &mut Parts, name: &str, dim_idx: usize) {
    let mut dims = parts.take(name).dims;
    dims[dim_idx] /= 2;
    parts.add(Tensor::ones(name, &dims));
}

/// What `change` makes of a model's projector is refused by its header, with these words and a way out.
fn refused(model: &str, change: &dyn Fn(&mut Parts), words: &str) {
    let good = files(model);
    let mmproj = rewritten(good.mmproj.as_deref().expect("it has one"), change);
    let files = ModelFiles {
        mmproj: Some(mmproj),
        ..good
    };
    let error = files.check().expect_err(words);
    let said = error.to_string();
    assert!(said.contains(words), "`{said}` should say `{words}`");
    assert!(said.contains("rewritten.gguf"), "{said}");
    assert!(error.hint().is_some(), "{said}");
}

#[test]
fn what_does_not_see_is_refused() {
    for kind in ["ultravox", "qwen2a", "gemma4a"] {
        refused(
            "qwen2.5vl",
            &|parts| {
                parts.set("clip.projector_type", kind);
                parts.set("clip.has_audio_encoder", true);
                parts.remove("clip.has_vision_encoder");
            },
            "hears and does not see",
        );
    }
    refused(
        "qwen2.5vl",
        &|parts| {
            parts.set("clip.projector_type", "qwen2.5o");
            parts.set("clip.has_audio_encoder", true);
            parts.set("clip.has_vision_encoder", false);
        },
        "hears and does not see",
    );
    refused(
        "qwen2.5vl",
        &|parts| parts.set("clip.has_vision_encoder", false),
        "`clip.has_vision_encoder`",
    );
    for kind in ["qwen9vl_merger", "", "unknown"] {
        let words = match kind {
            "" => "`clip.projector_type`",
            _ => "llama.cpp does not know",
        };
        refused(
            "idefics3",
            &|parts| {
                parts.remove("clip.projector_type");
                if !kind.is_empty() {
                    parts.set("clip.vision.projector_type", kind);
                }
            },
            words,
        );
    }
}

#[test]
fn projectors_of_other_models_are_refused() {
    let tensor = "mm.model.fc.weight";
    let words = "makes rows of 16, and the model's rows have 32";
    refused("idefics3", &|parts| halve(parts, tensor, 1), words);
    refused("idefics3", &|parts| drop(parts.take(tensor)), tensor);
}

#[test]
fn hostile_headers_are_refused() {
    let cases: &[(&str, Value)] = &[
        ("clip.vision.image_size", 0_u32.into()),
        ("clip.vision.image_size", 8193_u32.into()),
        ("clip.vision.image_size", 32_i32.into()),
        ("clip.vision.image_size", 3_u32.into()),
        ("clip.vision.patch_size", 0_u32.into()),
        ("clip.vision.patch_size", 4096_u32.into()),
        ("clip.vision.embedding_length", 0_u32.into()),
        ("clip.vision.embedding_length", (1_u32 << 20).into()),
        ("clip.vision.embedding_length", 25_u32.into()),
        ("clip.vision.attention.head_count", 0_u32.into()),
        ("clip.vision.attention.head_count_kv", 0_u32.into()),
        ("clip.vision.block_count", 0_u32.into()),
        ("clip.vision.block_count", u32::MAX.into()),
        ("clip.vision.block_count", "3".into()),
        ("clip.vision.projection_dim", u32::MAX.into()),
        ("clip.vision.attention.layer_norm_epsilon", f32::NAN.into()),
        ("clip.vision.image_std", vec![0.5_f32, 0.0, 0.5].into()),
        ("clip.vision.image_mean", vec![0.5_f32; 2].into()),
        ("clip.vision.projector.scale_factor", 0_u32.into()),
        ("clip.vision.projector.scale_factor", 70_000_u32.into()),
        ("clip.vision.spatial_merge_size", 0_u32.into()),
        ("clip.vision.preproc_image_size", u32::MAX.into()),
        ("clip.vision.preproc_max_tiles", 100_000_u32.into()),
        ("clip.vision.image_max_pixels", u32::MAX.into()),
        ("clip.vision.image_grid_pinpoints", vec![64_i32].into()),
        ("clip.vision.image_grid_pinpoints", vec![-1_i32, 64].into()),
        ("clip.vision.feature_layer", vec![-1_i32].into()),
        ("clip.vision.wa_layer_indexes", 1_u32.into()),
        ("clip.use_gelu", 1_u32.into()),
        ("general.name", 1_u32.into()),
    ];
    for (key, value) in cases {
        let words = match *key {
            "clip.vision.embedding_length" if *value == 25_u32.into() => "a width of 25",
            key => key,
        };
        refused(EXAONE, &|parts| parts.set(key, value.clone()), words);
    }
    let many_tiles = |parts: &mut Parts| {
        parts.set("clip.vision.image_size", 32_u32);
        parts.set("clip.vision.preproc_image_size", 1024_u32); // 32 × 32 of them
    };
    refused(EXAONE, &many_tiles, "clip.vision.preproc_image_size");
    for key in [
        "clip.vision.image_size",
        "clip.vision.image_mean",
        "clip.vision.block_count",
    ] {
        refused(EXAONE, &|parts| parts.remove(key), key);
    }
    let retype = |name: &'static str, tensor_type| {
        move |parts: &mut Parts| parts.tensor(name).tensor_type = tensor_type
    };
    for (name, tensor_type) in [
        ("v.blk.0.attn_qkv.weight", TensorType::Other(24)),
        ("v.blk.0.ln1.weight", TensorType::F16),
        ("v.patch_embd.weight", TensorType::Bf16),
    ] {
        refused(EXAONE, &retype(name, tensor_type), name);
    }
    let shorter = |parts: &mut Parts| {
        parts.take("v.blk.1.ffn_up.bias");
        parts.add(Tensor::ones("v.blk.1.ffn_up.bias", &[7]));
    };
    refused(EXAONE, &shorter, "v.blk.1.ffn_up.bias");
    // llama.cpp would repeat them.
    for name in ["v.blk.0.ln1.weight", "v.blk.2.ln2.weight"] {
        refused(EXAONE, &|parts| halve(parts, name, 0), name);
    }
}

/// Files that are cut short, or lack what llama.cpp asks for: errors, with the trial and without.
#[test]
fn missing_tensors_and_ends_are_errors() {
    let files = files(EXAONE);
    let original = files.mmproj.clone().expect("it has one");
    let bytes = std::fs::read(&original).expect("a committed file");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let cut = dir.path().join("cut.gguf");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).expect("a file of our own");
    let take =
        |name: &'static str| rewritten(&original, &move |parts: &mut Parts| drop(parts.take(name)));
    let odd = picture_path("odd");
    let more = [
        "--raw-prompt",
        "-p",
        "a<image>b",
        odd.to_str().expect("a plain path"),
    ];
    for (mmproj, words) in [
        (cut, "cut.gguf"),
        (take("v.blk.1.attn_out.weight"), "v.blk.1.attn_out.weight"),
        (take("v.blk.2.ffn_down.weight"), "v.blk.2.ffn_down.weight"),
    ] {
        let files = ModelFiles {
            mmproj: Some(mmproj),
            ..files.clone()
        };
        for probe in [&[][..], &["--no-probe"]] {
            check(&[&args(&files, &more)[..], probe].concat(), 1, &[words]);
        }
    }
}

/// Shapes that do not fit one another end the process in llama.cpp: that is found in the child.
#[test]
fn what_ends_the_process_is_found_by_the_trial() {
    let half = |name: &'static str, dim_idx: usize| {
        let files = files(EXAONE);
        let change = move |parts: &mut Parts| halve(parts, name, dim_idx);
        let mmproj = rewritten(files.mmproj.as_deref().expect("it has one"), &change);
        ModelFiles {
            mmproj: Some(mmproj),
            ..files
        }
    };
    let odd = picture_path("odd");
    let more = [
        "--raw-prompt",
        "-p",
        "a<image>b",
        odd.to_str().expect("a plain path"),
    ];
    for name in ["v.blk.0.ffn_down.weight", "v.blk.2.attn_out.weight"] {
        let files = half(name, 0);
        check(
            &args(&files, &more),
            1,
            &["crashes llama.cpp", "rewritten.gguf"],
        );
    }
}

#[test]
fn the_command_line_says_once_that_nothing_was_compared() {
    let oracle = Oracle::read(&root());
    let odd = picture_path("odd");
    let files = files(EXAONE);
    let more = [
        "--raw-prompt",
        "-p",
        prompt_text(&oracle),
        "-n",
        "2",
        odd.to_str().expect("a plain path"),
    ];
    for probe in [&[][..], &["--no-probe"]] {
        let output = run(&[&args(&files, &more)[..], probe].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.matches("not compared").count(), 1, "{stderr}");
        assert!(stderr.contains("as llama.cpp does it"), "{stderr}");
    }
}

#[test]
fn the_chat_template_has_the_image_in_front() {
    let odd = picture_path("odd");
    let odd = odd.to_str().expect("a plain path");
    let files = files("idefics3");
    let mut features = vec!["features"];
    features.extend(args(
        &files,
        &["-p", "what", "--over", "all", "--json", odd],
    ));
    let seen = json(&features);
    let text = |token: &serde_json::Value| token["text"].as_str().map(str::to_owned);
    let tokens = seen["tokens"].as_array().expect("a list");
    let texts: Vec<String> = tokens.iter().filter_map(text).collect();
    let texts = texts.concat();
    // llama.cpp's own programs put nothing between the image and the text.
    let [start, end] = [
        "user\n<fake_token_around_image><row_1_col_1>",
        "<global-img><fake_token_around_image>what<end_of_turn>",
    ];
    assert!(texts.contains(start) && texts.contains(end), "{texts}");
}
