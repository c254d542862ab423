//! Checkpoints of other families than LLaVA-Gemma, converted, beside transformers: token ids, image rows, rows
//! inside, logits, texts (`tests/fixtures/make_families.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaFiles, LlavaOptions};
use llava_sae_cpp::llama::AddBos;
use llava_sae_cpp::{ModelFiles, Picture, Prompt, PromptForm, Session, TokenKind};

use crate::fixture::{
    F32, IMAGE_EMBEDDINGS, Oracle, everything, exact_options, relative_error, temporary_root,
};
use crate::hook_points::{sae_at, worst_row};

pub(crate) fn dir(family: &str) -> PathBuf {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    families.join(family)
}

/// The files of a family, converted once a test run.
pub(crate) fn converted(family: &'static str) -> LlavaFiles {
    converted_from(&dir(family))
}

/// Those of a checkpoint's folder.
pub(crate) fn converted_from(dir: &Path) -> LlavaFiles {
    static CONVERTED: Mutex<BTreeMap<PathBuf, LlavaFiles>> = Mutex::new(BTreeMap::new());
    let name = dir.file_name().expect("a folder of its own");
    let convert = || {
        let out_dir = temporary_root().join("families").join(name);
        let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
        llava::convert(dir, &out_dir, &options(), go_on).expect("it is converted")
    };
    let mut converted = CONVERTED.lock().expect("no conversion panicked");
    let entry = converted.entry(dir.to_owned());
    entry.or_insert_with(convert).clone()
}

/// All in f32.
pub(crate) fn options() -> LlavaOptions {
    LlavaOptions {
        model_type: TensorType::F32,
        mmproj_type: TensorType::F32,
        overwrite: Overwrite::Replace,
    }
}

/// What a run keeps of a prompt and the tokens behind it.
struct Compared {
    rows: Vec<f32>,
    logits: Vec<f32>,
    token_ids: Vec<i32>,
}

fn run(session: &mut Session, prompt: &Prompt, max_tokens: usize) -> Compared {
    let run = session
        .run(prompt, everything(max_tokens))
        .expect("it runs");
    Compared {
        rows: run.trace.saes[0].residuals.clone(),
        logits: run.logits,
        token_ids: run.token_ids,
    }
}

fn check(family: &'static str) {
    let oracle = Oracle::read(&dir(family));
    let text = |key: &str| oracle.json[key].as_str().expect("a text");
    let number = |key: &str| oracle.json[key].as_u64().expect("a number") as usize;
    let (hook, d_model) = (text("hook"), number("d_model"));
    let made = converted(family);
    let files = ModelFiles {
        model: made.model.expect("its tokenizer is one that is converted"),
        mmproj: made.mmproj,
        saes: vec![sae_at(hook, d_model)],
    };
    let mut session = Session::open(&files, exact_options()).expect("it loads");

    let texts = oracle.json["texts"].as_array().expect("a list");
    for case in texts {
        let (text, ids) = (case["text"].as_str().expect("a text"), &case["ids"]);
        let ours = session.language_model().tokenize(text, AddBos::No);
        let ours = serde_json::json!(ours.expect("it is tokenised"));
        assert_eq!(ours, *ids, "{family}: {text:?}");
    }
    let prompt = session.prompt(text("text"), PromptForm::Raw, &[]);
    let ours = run(&mut session, &prompt.expect("it is tokenised"), 0);
    let error = relative_error(&ours.logits, &oracle.f32("text/logits"));
    assert!(error < F32, "{family}: logits of a text {error:.2e}");

    for name in oracle.json["pictures"].as_array().expect("a list") {
        let name = name.as_str().expect("a name");
        let shown = format!("{family}, {name}");
        let picture = Picture::open(&dir(family).join(format!("{name}.png")));
        let image = session.encode_image(&picture.expect("a committed file"));
        let image = image.expect("it is encoded");
        let theirs = oracle.f32(&format!("{name}/image_embeddings"));
        let chunks = image.chunks();
        let ours: Vec<f32> = chunks.flat_map(|chunk| chunk.rows.to_vec()).collect();
        let error = relative_error(&ours, &theirs);
        assert!(error < IMAGE_EMBEDDINGS, "{shown}: image rows {error:.2e}");

        let prompt = session.prompt(text("prompt"), PromptForm::Raw, &[&image]);
        let prompt = prompt.expect("it is tokenised");
        let ids: Vec<i32> = prompt
            .tokens()
            .iter()
            .filter_map(|token| token.id)
            .collect();
        assert_eq!(ids, oracle.ids(&format!("{name}/prompt_ids")), "{shown}");
        let n_image = theirs.len() / d_model;
        let is_image = |kind| kind == TokenKind::Image;
        let kinds = prompt.tokens().iter().map(|token| token.kind);
        assert_eq!(
            kinds.filter(|kind| is_image(*kind)).count(),
            n_image,
            "{shown}"
        );

        let ours = run(&mut session, &prompt, number("max_tokens"));
        let theirs = oracle.f32(&format!("{name}/resid"));
        let error = worst_row(&ours.rows[..theirs.len()], &theirs, d_model);
        assert!(error < F32, "{shown}: rows {error:.2e}");
        let error = relative_error(&ours.logits, &oracle.f32(&format!("{name}/logits")));
        assert!(error < F32, "{shown}: logits {error:.2e}");
        let expected = oracle.ids(&format!("{name}/greedy_ids"));
        assert_eq!(ours.token_ids, expected, "{shown}");
    }
}

#[test]
fn gemma3() {
    check("gemma3");
}

/// As many KV heads as heads, an output matrix of its own, a space in front of texts.
#[test]
fn llava_vicuna() {
    check("llava-vicuna");
}

/// Grouped heads, a tokenizer of bytes, Llama 3.1's `RoPE`.
#[test]
fn llava_llama3() {
    check("llava-llama3");
}

/// Heads that make up another width than the model's; pictures of one tile and of two, with newline rows.
#[test]
fn llava_next_mistral() {
    check("llava-next-mistral");
}
