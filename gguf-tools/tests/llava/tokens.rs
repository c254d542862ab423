//! Text becomes the ids that Hugging Face's tokenizers give, by llama.cpp's way of joining pieces.

use std::fs;
use std::path::Path;

use gguf_tools::gguf::{Gguf, TensorType};
use serde::Deserialize;

use super::checkpoint::Checkpoint;
use super::llama_tokenizer::{self, LlamaTokenizer};
use super::{converted, fixture, floats, numbers, strings};

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A text with the ids that transformers' slow and fast tokenizers agree on.
#[derive(Deserialize)]
struct HardText {
    text: String,
    ids: Vec<usize>,
}

/// The model file of a checkpoint's copy that has only the files which `keep` wants.
fn model_of(dir: &Path, keep: impl Fn(&str) -> bool) -> Gguf {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if keep(entry.file_name().to_str().unwrap()) {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    converted(copy.path(), TensorType::Q8_0).model
}

/// Checks the ids of all hard texts for a checkpoint's tokenizer in both of its forms.
fn check_hard_texts(checkpoint: &str, texts: &str) {
    let texts: Vec<HardText> = serde_json::from_slice(&fs::read(fixture(texts)).unwrap()).unwrap();
    let dir = fixture(checkpoint);
    let slow = model_of(&dir, |name| name != "tokenizer.json");
    let fast = model_of(&dir, |name| name != "tokenizer.model");
    let both = model_of(&dir, |_| true);
    for HardText { text, ids } in &texts {
        for (form, model) in [("slow", &slow), ("fast", &fast), ("both", &both)] {
            assert_eq!(
                LlamaTokenizer::new(model).tokenize(text),
                *ids,
                "{form} {text:?}"
            );
        }
    }
    assert_eq!(
        strings(&slow, "tokenizer.ggml.tokens"),
        strings(&fast, "tokenizer.ggml.tokens")
    );
}

#[test]
fn demo_ids_are_transformers() {
    check_hard_texts("demo/llava", "demo-hard-texts.json");
}

#[test]
fn tiny_ids_are_transformers() {
    check_hard_texts("tiny/llava", "tiny/hard_texts.json");
}

/// Whether a run of the literal `▁` meets a space. `tokenizers` cuts such a run out of the text where
/// it is an added token, before spaces become `▁`; SentencePiece and llama.cpp look for runs
/// afterwards, so that both become one.
fn has_run_beside_space(text: &str) -> bool {
    text.contains("▁▁ ") || text.contains(" ▁▁")
}

/// Hugging Face's `tokenizers` on thousands of awkward texts, for both forms of the tokenizer.
fn check_random_texts(checkpoint: &str) {
    let dir = fixture(checkpoint);
    let theirs = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let slow = model_of(&dir, |name| name != "tokenizer.json");
    let fast = model_of(&dir, |name| name != "tokenizer.model");
    let forms = [("slow", &slow), ("fast", &fast)];
    let forms = forms.map(|(form, model)| (form, LlamaTokenizer::new(model)));
    let mut texts = llama_tokenizer::texts(4000);
    texts.retain(|text| !has_run_beside_space(text));
    assert!(texts.len() > 3800);
    for text in texts {
        let expected = theirs.encode_fast(&*text, false).unwrap();
        let expected: Vec<_> = expected.get_ids().iter().map(|&id| id as usize).collect();
        for (form, ours) in &forms {
            assert_eq!(ours.tokenize(&text), expected, "{form} {text:?}");
        }
    }
}

#[test]
fn demo_ids_of_random_texts_are_those_of_tokenizers() {
    check_random_texts("demo/llava");
}

#[test]
fn tiny_ids_of_random_texts_are_those_of_tokenizers() {
    check_random_texts("tiny/llava");
}

#[test]
fn both_forms_of_the_demo_tokenizer_agree() {
    let dir = fixture("demo/llava");
    let slow = model_of(&dir, |name| name != "tokenizer.json");
    let fast = model_of(&dir, |name| name != "tokenizer.model");
    let kinds = [&slow, &fast].map(|model| numbers(model, "tokenizer.ggml.token_type"));
    for (id, piece) in strings(&slow, "tokenizer.ggml.tokens").iter().enumerate() {
        // `tokenizer.json` does not say that the newline is user-defined.
        assert!(
            kinds[0][id] == kinds[1][id] || piece == "\n",
            "{piece}: {} {}",
            kinds[0][id],
            kinds[1][id]
        );
    }
    for key in ["bos", "eos", "eot", "unknown", "padding"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        assert_eq!(
            slow.require_u32(&key).unwrap(),
            fast.require_u32(&key).unwrap(),
            "{key}"
        );
    }
}

#[test]
fn demo_special_tokens() {
    let model = model_of(&fixture("demo/llava"), |_| true);
    for (name, id) in [
        ("bos", 2),
        ("eos", 1),
        ("eot", 6),
        ("unknown", 3),
        ("padding", 0),
    ] {
        assert_eq!(
            model
                .require_u32(&format!("tokenizer.ggml.{name}_token_id"))
                .unwrap(),
            id,
            "{name}"
        );
    }
    assert!(model.require_bool("tokenizer.ggml.add_bos_token").unwrap());
    assert!(!model.require_bool("tokenizer.ggml.add_eos_token").unwrap());
    let kinds = numbers(&model, "tokenizer.ggml.token_type");
    assert_eq!(
        kinds[..9],
        [
            CONTROL,
            CONTROL,
            CONTROL,
            UNKNOWN,
            CONTROL,
            CONTROL,
            CONTROL,
            CONTROL,
            USER_DEFINED
        ]
    );
    assert_eq!(kinds[9..9 + 256], [BYTE; 256]);
    let config = fs::read(fixture("demo/llava/tokenizer_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        model.require_str("tokenizer.chat_template").unwrap(),
        config["chat_template"]
    );
}

/// The model file of a checkpoint that `change` has changed.
fn model_with(change: impl FnOnce(&mut Checkpoint)) -> Gguf {
    let mut checkpoint = Checkpoint::new();
    change(&mut checkpoint);
    let dir = tempfile::tempdir().unwrap();
    checkpoint.write(dir.path());
    converted(dir.path(), TensorType::F32).model
}

#[test]
fn rows_without_a_token_get_fillers_that_samplers_suppress() {
    let model = model_with(|_| {});
    assert_eq!(strings(&model, "tokenizer.ggml.tokens")[271], "[PAD271]");
    assert_eq!(numbers(&model, "tokenizer.ggml.token_type")[271], UNUSED);
    assert_eq!(numbers(&model, "tokenizer.ggml.suppress_tokens"), [271]);
}

#[test]
fn added_tokens_come_from_each_file() {
    let model = model_with(|c| {
        c.files
            .insert("added_tokens.json", serde_json::json!({ "<plain>": 271 }));
        c.files.insert(
            "tokenizer_config.json",
            serde_json::json!({
                "added_tokens_decoder": { "271": { "content": "<special>", "special": true } },
            }),
        );
    });
    assert_eq!(strings(&model, "tokenizer.ggml.tokens")[271], "<special>");
    assert_eq!(numbers(&model, "tokenizer.ggml.token_type")[271], CONTROL);
    let model = model_with(|c| {
        drop(
            c.files
                .insert("added_tokens.json", serde_json::json!({ "▁x": 271 })),
        )
    });
    assert_eq!(strings(&model, "tokenizer.ggml.tokens")[271], " x");
    assert_eq!(
        numbers(&model, "tokenizer.ggml.token_type")[271],
        USER_DEFINED
    );
}

#[test]
fn a_byte_token_may_be_called_by_its_character() {
    let model = model_with(|c| {
        let vocab = c.tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("<0x09>").unwrap();
        vocab.insert("\t".to_owned(), id);
    });
    assert_eq!(strings(&model, "tokenizer.ggml.tokens")[6 + 9], "<0x09>");
    assert_eq!(numbers(&model, "tokenizer.ggml.token_type")[6 + 9], BYTE);
}

#[test]
fn the_best_merge_of_a_token_counts() {
    let model = model_with(|_| {});
    let scores = floats(&model, "tokenizer.ggml.scores");
    // `ab`, `▁a`, `▁ab` (merges 2 and 3), `abc`
    assert_eq!(scores[266..270], [0.0, -1.0, -2.0, -4.0]);
}

#[test]
fn the_turn_ends_at_the_other_end_token() {
    let eot = |model: &Gguf| model.require_u32("tokenizer.ggml.eot_token_id").unwrap();
    assert_eq!(eot(&model_with(|_| {})), 4); // by its name
    let generation = serde_json::json!({ "eos_token_id": [1, 5] });
    assert_eq!(
        eot(&model_with(|c| drop(
            c.files.insert("generation_config.json", generation)
        ))),
        5
    );
}

#[test]
fn a_chat_template_may_have_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::new().write(dir.path());
    fs::write(dir.path().join("chat_template.jinja"), "{{ own }}\n").unwrap();
    let model = converted(dir.path(), TensorType::F32).model;
    assert_eq!(
        model.require_str("tokenizer.chat_template").unwrap(),
        "{{ own }}\n"
    );
}

#[test]
fn chat_templates_come_from_each_file() {
    let template = |file: &'static str, value: serde_json::Value| {
        let model = model_with(|c| drop(c.files.insert(file, value)));
        model
            .require_str("tokenizer.chat_template")
            .unwrap()
            .to_owned()
    };
    let one = serde_json::json!({ "chat_template": "{{ one }}" });
    assert_eq!(template("tokenizer_config.json", one.clone()), "{{ one }}");
    assert_eq!(template("chat_template.json", one), "{{ one }}");
    let several = serde_json::json!({ "chat_template": [
        { "name": "tool_use", "template": "{{ tools }}" },
        { "name": "default", "template": "{{ default }}" },
    ] });
    assert_eq!(template("tokenizer_config.json", several), "{{ default }}");
    assert!(template("generation_config.json", serde_json::json!({})).contains("<start_of_turn>"));
}
