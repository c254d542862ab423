//! Gemma 3, LLaVA-1.5 and LLaVA-NeXT: what their files say, and what is refused or left out. That the numbers are
//! right, the main crate's tests say, which run them beside transformers.

use gguf_tools::gguf::{Gguf, TensorType, Value};
use serde_json::{Value as Json, json};

use super::bad_input::check_spoilt;
use super::checkpoint::Checkpoint;
use super::spellings::output;
use super::{convert_quietly, converted, fixture, numbers, strings};

const GEMMA3: &str = "gemma3";
const VICUNA: &str = "llava-vicuna";
const LLAMA3: &str = "llava-llama3";
const NEXT: &str = "llava-next-mistral";
const ALL: [&str; 4] = [GEMMA3, VICUNA, LLAMA3, NEXT];

fn checkpoint(family: &str) -> Checkpoint {
    Checkpoint::read(&fixture("families").join(family))
}

/// Sets what a JSON pointer into the config points to.
fn set(pointer: &str, value: Json) -> impl Fn(&mut Checkpoint) {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let (parent, key) = (parent.to_owned(), key.to_owned());
    move |checkpoint| checkpoint.config.pointer_mut(&parent).unwrap()[&key] = value.clone()
}

#[test]
fn spellings_of_names_make_no_difference() {
    for family in ALL {
        let saved = checkpoint(family);
        let expected = output(&saved);
        // transformers from 4.52 on, and 5.
        let newer = |name: &str| match name.strip_prefix("language_model.") {
            Some("lm_head.weight") => "lm_head.weight".to_owned(),
            Some(text) => text.replacen("model.", "model.language_model.", 1),
            None => format!("model.{name}"),
        };
        for rename in [&newer as &dyn Fn(&str) -> String, &|name| {
            newer(name).replace("vision_model.", "")
        }] {
            let mut renamed = checkpoint(family);
            renamed.rename(rename);
            assert!(renamed.tensors.keys().ne(saved.tensors.keys()));
            assert!(output(&renamed) == expected, "{family}");
        }
    }
}

#[test]
fn gemma3_metadata() {
    let files = converted(&fixture("families").join(GEMMA3), TensorType::Q8_0);
    let (model, mmproj) = (&files.model, &files.mmproj);
    assert_eq!(model.require_str("general.architecture").unwrap(), "gemma3");
    for (key, expected) in [
        ("context_length", 512),
        ("attention.head_count", 3),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 16),
        ("attention.sliding_window", 24),
    ] {
        let key = format!("gemma3.{key}");
        assert_eq!(model.require_u32(&key).unwrap(), expected, "{key}");
    }
    for (key, expected) in [
        ("rope.freq_base", 20_000.0),
        ("rope.freq_base_swa", 500.0),
        ("rope.scaling.factor", 8.0),
    ] {
        let key = format!("gemma3.{key}");
        assert_eq!(model.require_f32(&key).unwrap(), expected, "{key}");
    }
    assert_eq!(
        model.get("gemma3.attention.sliding_window_pattern"),
        Some(&Value::from(vec![true, false, true]))
    );
    assert_eq!(mmproj.require_str("clip.projector_type").unwrap(), "gemma3");
    assert!(mmproj.require_bool("clip.use_gelu").unwrap());
    assert!(mmproj.get("clip.vision.feature_layer").is_none());
    let scale_factor = mmproj.require_u32("clip.vision.projector.scale_factor");
    assert_eq!(scale_factor.unwrap(), 2);
    // llama.cpp transposes it, which ggml does with no quantised one.
    let matrix = mmproj.tensor("mm.input_projection.weight").unwrap();
    assert_eq!(
        (matrix.tensor_type, &matrix.dims[..]),
        (TensorType::F16, &[32, 24][..])
    );
}

/// A file says nothing of windows where they are in the blocks in which llama.cpp expects them.
#[test]
fn usual_windows_are_not_listed() {
    let mut usual = checkpoint(GEMMA3);
    usual.config["text_config"]["layer_types"] = Json::Null;
    let dir = tempfile::tempdir().unwrap();
    usual.write(dir.path());
    let model = converted(dir.path(), TensorType::F32).model;
    assert!(model.require_u32("gemma3.attention.sliding_window").is_ok());
    assert!(
        model
            .get("gemma3.attention.sliding_window_pattern")
            .is_none()
    );
}

#[test]
fn llava_next_metadata() {
    let dir = fixture("families").join(NEXT);
    let files = converted(&dir, TensorType::F32);
    // As the config has them.
    assert_eq!(
        numbers(&files.mmproj, "clip.vision.image_grid_pinpoints"),
        [28, 56, 56, 28, 56, 56]
    );
    let merge = files.mmproj.require_str("clip.vision.mm_patch_merge_type");
    assert_eq!(merge.unwrap(), "spatial_unpad");
    let newline = files
        .mmproj
        .require_tensor("v.image_newline", &[32])
        .unwrap();
    let newline = files.mmproj.read_f32(newline).unwrap();
    assert_eq!(newline, checkpoint(NEXT).tensors["image_newline"].values());
    assert_eq!(
        files.model.require_str("general.architecture").unwrap(),
        "llama"
    );
    assert_eq!(
        files.model.require_u32("llama.context_length").unwrap(),
        512
    );

    // Without a window, Mistral has 4096; up to a window, there is no difference.
    let mut windowed = checkpoint(NEXT);
    windowed.config["text_config"]["sliding_window"] = 64.into();
    let dir = tempfile::tempdir().unwrap();
    windowed.write(dir.path());
    let model = converted(dir.path(), TensorType::F32).model;
    assert_eq!(model.require_u32("llama.context_length").unwrap(), 64);
}

#[test]
fn llama3_vocabulary() {
    let model = converted(&fixture("families").join(LLAMA3), TensorType::F32).model;
    for (key, expected) in [("model", "gpt2"), ("pre", "llama-bpe")] {
        let key = format!("tokenizer.ggml.{key}");
        assert_eq!(model.require_str(&key).unwrap(), expected);
    }
    assert!(
        strings(&model, "tokenizer.ggml.merges")
            .iter()
            .all(|merge| merge.contains(' '))
    );
    assert!(model.get("tokenizer.ggml.scores").is_none());
    assert!(model.get("tokenizer.chat_template").is_none());
    // Neither the ends' 2 nor its default, but what the settings say.
    let eos = model.require_u32("tokenizer.ggml.eos_token_id").unwrap() as usize;
    assert_eq!(strings(&model, "tokenizer.ggml.tokens")[eos], "</s>");
    assert!(model.require_tensor("rope_freqs.weight", &[4]).is_ok());
}

/// Checks that a checkpoint gives its projector as it is, and no language model.
fn check_left_out(family: &str, spoil: impl Fn(&mut Checkpoint)) {
    let mut spoilt = checkpoint(family);
    let [_, expected] = output(&spoilt);
    spoil(&mut spoilt);
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("checkpoint");
    std::fs::create_dir(&dir).unwrap();
    spoilt.write(&dir);
    let made = convert_quietly(&dir, root.path(), TensorType::F32).unwrap();
    assert_eq!(made.model, None);
    assert!(
        made.report[0].ends_with("without its language model"),
        "{:?}",
        made.report
    );
    assert!(
        std::fs::read(made.mmproj.unwrap()).unwrap() == expected,
        "{family}"
    );
    assert!(!root.path().join("model-f32.gguf").exists());
}

#[test]
fn language_models_of_other_kinds_are_left_out() {
    check_left_out(VICUNA, set("/text_config/model_type", "stablelm".into()));
    check_left_out(NEXT, set("/text_config/model_type", "phi3".into()));
    check_left_out(VICUNA, |c| c.tokenizer["model"]["type"] = "Unigram".into());
    check_left_out(GEMMA3, |c| {
        c.tokenizer["model"]["byte_fallback"] = false.into()
    });
    for pattern in ["\\p{L}+|\\p{N}", ""] {
        check_left_out(LLAMA3, |c| {
            c.tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern.into();
        });
    }
    check_left_out(LLAMA3, |c| {
        c.tokenizer["normalizer"] = json!({ "type": "NFC" })
    });
}

#[test]
fn a_projector_alone_can_be_read() {
    let mut other = checkpoint(VICUNA);
    set("/text_config/model_type", "stablelm".into())(&mut other);
    let dir = tempfile::tempdir().unwrap();
    other.write(dir.path());
    let made = convert_quietly(dir.path(), dir.path(), TensorType::F16).unwrap();
    let mmproj = Gguf::open(&made.mmproj.unwrap()).unwrap();
    assert_eq!(
        mmproj.require_u32("clip.vision.projection_dim").unwrap(),
        32
    );
}

#[test]
fn what_is_refused() {
    let refused = |family: &str, pointer: &str, value: Json, words: &[&str]| {
        check_spoilt(checkpoint(family), set(pointer, value), words);
    };
    for (family, pointer, value, words) in [
        (
            GEMMA3,
            "/mm_tokens_per_image",
            json!(9),
            &["`mm_tokens_per_image` is 9", "8 × 8"][..],
        ),
        (
            GEMMA3,
            "/mm_tokens_per_image",
            json!(15),
            &["expected a square"],
        ),
        (GEMMA3, "/mm_tokens_per_image", json!(0), &["is 0"]),
        (
            GEMMA3,
            "/vision_config/model_type",
            json!("clip_vision_model"),
            &["`siglip_vision_model`"],
        ),
        (
            GEMMA3,
            "/vision_config/hidden_act",
            json!("gelu"),
            &["`gelu_pytorch_tanh`"],
        ),
        (
            GEMMA3,
            "/vision_config/patch_size",
            json!(16),
            &["patch_embedding", "expected [24, 3, 16, 16]"],
        ),
        (
            GEMMA3,
            "/text_config/query_pre_attn_scalar",
            json!(32),
            &["is 32", "computes with 16"],
        ),
        (
            GEMMA3,
            "/text_config/layer_types",
            json!(["full_attention"]),
            &["1 entries, expected 3"],
        ),
        (
            GEMMA3,
            "/text_config/layer_types",
            json!(["full_attention", "linear", "x"]),
            &["`linear`"],
        ),
        (
            GEMMA3,
            "/text_config/sliding_window",
            json!(0),
            &["`text_config.sliding_window` is 0"],
        ),
        (
            GEMMA3,
            "/text_config/final_logit_softcapping",
            json!(30.0),
            &["only null is supported"],
        ),
        (
            GEMMA3,
            "/text_config/use_bidirectional_attention",
            json!(true),
            &["only false"],
        ),
        (
            GEMMA3,
            "/text_config/rope_scaling",
            json!({ "rope_type": "yarn" }),
            &["`yarn`", "`linear`"],
        ),
        (
            GEMMA3,
            "/text_config/rope_scaling",
            json!({ "rope_type": "linear" }),
            &["`rope_scaling.factor` is missing"],
        ),
        (
            GEMMA3,
            "/text_config/head_dim",
            json!(15),
            &["`text_config.head_dim` is 15", "even"],
        ),
        (
            GEMMA3,
            "/text_config/vocab_size",
            json!(300_000),
            &["1 to 270000"],
        ),
        (
            LLAMA3,
            "/text_config/rope_scaling/low_freq_factor",
            json!(4.0),
            &["below `high_freq_factor`"],
        ),
        (
            LLAMA3,
            "/text_config/rope_scaling/factor",
            json!(-1.0),
            &["`rope_scaling.factor` is -1"],
        ),
        (
            LLAMA3,
            "/text_config/mlp_bias",
            json!(true),
            &["`text_config.mlp_bias`"],
        ),
        (
            LLAMA3,
            "/text_config/num_key_value_heads",
            json!(4),
            &["k_proj", "expected [32, 32]"],
        ),
        (
            NEXT,
            "/image_grid_pinpoints",
            json!([[28, 56], [30, 28]]),
            &["[30, 28]", "whole tiles of 28"],
        ),
        (
            NEXT,
            "/image_grid_pinpoints",
            json!([[28]]),
            &["[28]", "a height and a width"],
        ),
        (NEXT, "/image_grid_pinpoints", json!([]), &["has 0 sizes"]),
        (
            NEXT,
            "/image_grid_pinpoints",
            json!([[28, 28]]),
            &["preprocessor_config.json", "[[28,28]] in `config.json`"],
        ),
        (
            NEXT,
            "/vision_feature_select_strategy",
            json!("full"),
            &["`full`", "`default`"],
        ),
        (
            NEXT,
            "/text_config/sliding_window",
            json!(0),
            &["`text_config.sliding_window` is 0"],
        ),
        (
            VICUNA,
            "/model_type",
            json!("llava_next"),
            &["`LlavaNextImageProcessor`"],
        ),
        (
            VICUNA,
            "/text_config/hidden_size",
            json!(64),
            &["expected [445, 64]"],
        ),
    ] {
        refused(family, pointer, value, words);
    }
    // The way out is said.
    let linear = set("/text_config/attention_bias", json!(true));
    check_spoilt(checkpoint(VICUNA), linear, &["`convert_hf_to_gguf.py`"]);
    // The projector's rows have to have some width.
    let without_width = |c: &mut Checkpoint| {
        c.config["text_config"] = json!({ "model_type": "stablelm" });
    };
    check_spoilt(
        checkpoint(VICUNA),
        without_width,
        &["`text_config.hidden_size` is missing"],
    );
}

#[test]
fn tensors_that_are_missing_or_foreign() {
    for (family, name) in [
        (GEMMA3, "multi_modal_projector.mm_input_projection_weight"),
        (GEMMA3, "multi_modal_projector.mm_soft_emb_norm.weight"),
        (GEMMA3, "vision_tower.vision_model.post_layernorm.bias"),
        (
            GEMMA3,
            "language_model.model.layers.1.self_attn.q_norm.weight",
        ),
        (NEXT, "image_newline"),
        (VICUNA, "language_model.lm_head.weight"),
    ] {
        let plain = name
            .replace("vision_model.", "")
            .replace("language_model.model.", "language_model.")
            .replace("language_model.lm_head", "lm_head");
        let missing = format!("has no tensor `{plain}`");
        let remove = |c: &mut Checkpoint| drop(c.tensors.remove(name).expect(name));
        check_spoilt(checkpoint(family), remove, &[&missing]);
        // Those that other families do not have.
        if family != VICUNA && !name.contains("post_layernorm") {
            let add = |c: &mut Checkpoint| c.add(name, &[32]);
            check_spoilt(checkpoint(VICUNA), add, &["does not belong in a LLaVA"]);
        }
    }
}

#[test]
fn settings_of_image_processors() {
    const FILE: &str = "preprocessor_config.json";
    let refused = |family: &str, key: &str, value: Json, words: &[&str]| {
        let set = |c: &mut Checkpoint| c.files.get_mut(FILE).unwrap()[key] = value;
        check_spoilt(checkpoint(family), set, &[&[FILE], words].concat());
    };
    refused(
        GEMMA3,
        "do_pan_and_scan",
        json!(true),
        &["`do_pan_and_scan` is true", "published without"],
    );
    refused(GEMMA3, "resample", json!(3), &["2, which is bilinear"]);
    refused(
        GEMMA3,
        "size",
        json!({ "height": 896, "width": 896 }),
        &["896", "\"height\":64"],
    );
    refused(
        GEMMA3,
        "image_processor_type",
        json!("CLIPImageProcessor"),
        &["`Gemma3ImageProcessor`"],
    );
    refused(
        NEXT,
        "image_processor_type",
        json!("CLIPImageProcessor"),
        &["`LlavaNextImageProcessor`"],
    );
    refused(
        NEXT,
        "image_grid_pinpoints",
        json!([[28, 56]]),
        &["[[28,56]]", "`config.json`"],
    );
    refused(NEXT, "image_grid_pinpoints", Json::Null, &["[[336,672]"]);
    refused(NEXT, "do_center_crop", json!(false), &["supported: true"]);
    refused(NEXT, "do_flip", json!(true), &["supported: false"]);
    // What makes no difference to one picture.
    let mut other = checkpoint(NEXT);
    let expected = output(&other);
    let settings = other.files.get_mut(FILE).unwrap();
    settings["do_pad"] = false.into();
    settings["image_processor_type"] = "LlavaNextImageProcessorFast".into();
    assert!(output(&other) == expected);
}
