//! Texts and tokens at the vocabulary's limits: characters without a token, ids out of range, pieces
//! of any length, the token that begins a text, texts that are too long for one call.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Array, Gguf, Overwrite, TensorInfo, TensorType, Value, Writer};
use llava_sae_cpp::llama::{AddBos, Model, ModelOptions, Special};
use llava_sae_cpp::{Keep, ModelFiles, Prompt, PromptForm, RunOptions, Session, Token};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::bad_input::check;
use crate::fixture::{Fixture, Oracle, exact_options, temporary_root};
use crate::hook_points::{LIKE_LLAMA, model, open, root, sae_at};

const HOOK: &str = "blocks.1.hook_resid_post";

const UNKNOWN: i32 = 2;
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

fn load(path: &Path) -> Model {
    let options = ModelOptions {
        gpu_layers: 0,
        repack: false,
    };
    Model::load(path, options).expect("the model loads")
}

/// The Llama fixture with another vocabulary; it repeats its weights for more tokens. Of metadata that is
/// given twice, the last counts.
fn with_vocabulary(name: &str, tokens: &[(String, i32)], more: &[(&str, Value)]) -> PathBuf {
    let texts: Vec<String> = tokens.iter().map(|token| token.0.clone()).collect();
    let kinds: Vec<i32> = tokens.iter().map(|token| token.1).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let mut changed: BTreeMap<&str, Value> = BTreeMap::from([
        ("tokenizer.ggml.tokens", texts.into()),
        ("tokenizer.ggml.token_type", kinds.into()),
        ("tokenizer.ggml.scores", scores.into()),
        ("llama.vocab_size", (tokens.len() as u32).into()),
    ]);
    changed.extend(more.iter().cloned());
    changed_model(name, &changed, Some(tokens.len()), &|_, _| {})
}

/// The Llama fixture with other metadata, rows for `n_tokens` tokens, and values that `change` changes.
fn changed_model(
    name: &str,
    changed: &BTreeMap<&str, Value>,
    n_tokens: Option<usize>,
    change: &dyn Fn(&str, &mut [f32]),
) -> PathBuf {
    let original = Gguf::open(&model("llama")).expect("a committed file");
    let target = temporary_root().join(format!("vocabulary-{name}.gguf"));
    let mut writer = Writer::create(&target, Overwrite::Replace).expect("a file of our own");
    let metadata = original.metadata().iter();
    for (key, value) in metadata.filter(|(key, _)| !changed.contains_key(&**key)) {
        writer.set(key, value.clone());
    }
    for (key, value) in changed {
        writer.set(key, value.clone());
    }
    let is_by_token = |name: &str| matches!(name, "token_embd.weight" | "output.weight");
    let n_rows = |tensor: &TensorInfo| n_tokens.filter(|_| is_by_token(&tensor.name));
    for tensor in original.tensors() {
        let mut dims = tensor.dims.clone();
        if let Some(n_rows) = n_rows(tensor) {
            dims[1] = n_rows as u64;
        }
        writer.declare(&tensor.name, &dims, TensorType::F32);
    }
    let mut writer = writer.begin().expect("a valid header");
    for tensor in original.tensors() {
        let values = original.read_f32(tensor).expect("a valid tensor");
        let n_values = n_rows(tensor).map_or(values.len(), |n| n * tensor.dims[0] as usize);
        let mut values: Vec<f32> = values.into_iter().cycle().take(n_values).collect();
        change(&tensor.name, &mut values);
        writer.write_f32(&values).expect("a file of our own");
    }
    writer.finish().expect("a file of our own");
    target
}

fn token(text: impl Into<String>, kind: i32) -> (String, i32) {
    (text.into(), kind)
}

fn specials() -> Vec<(String, i32)> {
    vec![
        token("<unk>", UNKNOWN),
        token("<s>", CONTROL),
        token("</s>", CONTROL),
        token("<start_of_turn>", CONTROL),
        token("<end_of_turn>", CONTROL),
        token("▁", NORMAL),
        token("\n", NORMAL),
    ]
}

fn byte_tokens() -> impl Iterator<Item = (String, i32)> {
    (0..=u8::MAX).map(|byte| token(format!("<0x{byte:02X}>"), BYTE))
}

fn session_of(model: PathBuf) -> Session {
    let files = ModelFiles {
        model,
        mmproj: None,
        saes: vec![sae_at(HOOK, 32)],
    };
    Session::open(&files, exact_options()).expect("the model loads")
}

fn raw_prompt(session: &Session, text: &str) -> llava_sae_cpp::Result<Prompt> {
    session.prompt(text, PromptForm::Raw, &[])
}

fn ids(prompt: &Prompt) -> Vec<i32> {
    prompt.tokens().iter().flat_map(|token| token.id).collect()
}

// --- characters without a token ---

#[test]
fn characters_without_a_token_are_named() {
    for architecture in LIKE_LLAMA {
        let session = open(architecture, HOOK, 32, exact_options()).expect("the fixture loads");
        for form in [PromptForm::Raw, PromptForm::Chat] {
            let error = session.prompt("a t5 é", form, &[]).err();
            let error = error.expect("the vocabulary has neither");
            let said = error.to_string();
            for word in ["`5` (U+0035, in `", "a t5 é", "`é` (U+00E9"] {
                assert!(said.contains(word), "{architecture}: {said}");
            }
            assert!(error.hint().is_some());
        }
        // The text of a special token is none of such characters.
        let prompt = raw_prompt(&session, "<start_of_turn>a cat").expect("all have tokens");
        assert_eq!(ids(&prompt)[1], 3);
    }
    let sae = sae_at(HOOK, 32);
    let (model, sae) = (model("llama"), sae.to_str().expect("a plain path"));
    let model = model.to_str().expect("a plain path");
    check(
        &["-m", model, "--sae", sae, "-p", "t5"],
        1,
        &["no token for `5`", "hint: "],
    );
}

/// A vocabulary that has some bytes, among them those of `é`.
#[test]
fn characters_of_bytes_with_tokens_have_tokens() {
    let mut tokens = specials();
    tokens.extend(["a", "b"].map(|letter| token(letter, NORMAL)));
    tokens.extend(["<0xC3>", "<0xA9>"].map(|byte| token(byte, BYTE)));
    let model = load(&with_vocabulary("some-bytes", &tokens, &[]));
    assert_eq!(
        model.tokenize("aé", AddBos::No).expect("both have"),
        [7, 9, 10]
    );
    let error = model
        .tokenize("aè", AddBos::No)
        .expect_err("one byte is missing");
    assert!(error.to_string().contains("`è`"), "{error}");
}

/// llama.cpp leaves such bytes out without a word.
#[test]
fn bytes_without_a_letter_are_named() {
    let path = with_vocabulary(
        "bpe-some",
        &bpe_tokens(|byte| byte != b'5'),
        &bpe_metadata(),
    );
    let model = load(&path);
    let ids = model
        .tokenize("a cat", AddBos::No)
        .expect("all have tokens");
    assert_eq!(piece_text(&model, &ids), "a cat");
    let error = model.tokenize("t5", AddBos::No).expect_err("`5` has none");
    assert!(error.to_string().contains("no token for `5`"), "{error}");
}

// --- ids and pieces ---

#[test]
fn ids_out_of_range_have_no_text() {
    let session = open("llama", HOOK, 32, exact_options()).expect("the fixture loads");
    assert_eq!(session.token_text(Token::text(1)).as_deref(), Some("<s>"));
    for id in [-1, i32::MIN, 64, i32::MAX] {
        assert_eq!(session.token_text(Token::text(id)), None);
        let mut bytes = b"before".to_vec();
        let piece = session
            .language_model()
            .append_piece(id, Special::Show, &mut bytes);
        assert!(piece.expect_err("no such token").to_string().contains("64"));
        assert_eq!(bytes, b"before");
    }
}

#[test]
fn pieces_of_any_length_are_whole() {
    let mut tokens = specials();
    let long: Vec<String> = [255, 256, 257, 5000].map(|n| "x".repeat(n)).into();
    tokens.extend(long.iter().map(|text| token(text, NORMAL)));
    tokens.push(token(format!("<{}>", "y".repeat(400)), CONTROL));
    let model = load(&with_vocabulary("long-pieces", &tokens, &[]));
    for (i, (text, _)) in tokens.iter().enumerate().skip(7) {
        let mut piece = Vec::new();
        model
            .append_piece(i as i32, Special::Show, &mut piece)
            .expect("it is in the vocabulary");
        assert_eq!(String::from_utf8(piece).expect("ASCII"), *text);
    }
}

#[test]
fn metadata_of_any_length_is_whole() {
    let name: String = "long name ".repeat(200);
    let more = [("general.name", Value::from(name.clone()))];
    let model = load(&with_vocabulary("long-name", &specials(), &more));
    assert_eq!(model.metadata("general.name"), Some(name));
    assert_eq!(model.metadata("no.such.key"), None);
}

/// The embedding of a generated token is no number, and so are the logits behind it.
#[test]
fn logits_of_generated_tokens_are_looked_at() {
    let oracle = Oracle::read(&root());
    let [prompt_ids, greedy] =
        ["prompt_ids", "greedy_ids"].map(|name| oracle.ids(&format!("llama/{name}")));
    let is_new = |(i, id): &(usize, &i32)| !prompt_ids.contains(id) && !greedy[..*i].contains(id);
    let (n_before, id) = greedy
        .iter()
        .enumerate()
        .filter(is_new)
        .nth(1)
        .expect("two new tokens");
    const MARK: f32 = 123_456.79; // becomes NaN, which the writer refuses
    let mark = |name: &str, values: &mut [f32]| {
        if name == "token_embd.weight" {
            values[32 * *id as usize] = MARK;
        }
    };
    let path = changed_model("nan", &BTreeMap::new(), None, &mark);
    let mut bytes = std::fs::read(&path).expect("a file of our own");
    let place = bytes
        .windows(4)
        .position(|found| found == MARK.to_le_bytes());
    let place = place.expect("it was written");
    bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("a file of our own");
    let mut session = session_of(path);
    let text = oracle.json["prompt"].as_str().expect("a text");
    let prompt = raw_prompt(&session, text).expect("known characters");
    let options = |max_tokens| RunOptions {
        steering: None,
        keep: Keep::default(),
        max_tokens,
        ..RunOptions::default()
    };
    let n_tokens = n_before + 1;
    let whole = session.run(&prompt, options(n_tokens));
    let whole = whole.expect("the last token is not computed").text;
    let mut shown = String::new();
    let error = session.run_with(&prompt, options(8), &mut |step| {
        shown.push_str(step.text);
        ControlFlow::Continue(())
    });
    let said = error.expect_err("they are no numbers").to_string();
    let expected = format!(
        "not numbers after {n_tokens} generated tokens, `{}`",
        whole.escape_debug()
    );
    assert!(said.contains(&expected), "{said} should say {expected}");
    assert_eq!(shown, whole);
}

// --- the token that begins a text ---

#[test]
fn a_prompt_that_begins_with_bos_gets_no_second_one() {
    let check = |session: &Session, bos: &str| {
        let with = raw_prompt(session, &format!("{bos}a b c")).expect("known characters");
        let without = raw_prompt(session, "a b c").expect("known characters");
        assert_eq!(ids(&with), ids(&without), "{bos}");
        let twice = raw_prompt(session, &format!("{bos}{bos}a b c")).expect("known characters");
        assert_eq!(
            ids(&twice).len(),
            ids(&with).len() + 1,
            "as it was asked for"
        );
    };
    for architecture in LIKE_LLAMA {
        let session = open(architecture, HOOK, 32, exact_options()).expect("the fixture loads");
        check(&session, "<s>");
        assert_eq!(ids(&raw_prompt(&session, "<s>a b c").expect("known"))[0], 1);
    }
    check(&Fixture::Tiny.exact_session(), "<bos>");
    // The token counts, not a text that others use for it.
    let bos = token("<|begin_of_text|>", CONTROL);
    let tokens = [
        bpe_tokens(|_| true),
        vec![bos, token("<bos>", USER_DEFINED)],
    ]
    .concat();
    let id = tokens.len() as u32 - 2;
    let begins = [
        ("tokenizer.ggml.bos_token_id", Value::from(id)),
        ("tokenizer.ggml.add_bos_token", Value::from(true)),
    ];
    let model = with_vocabulary(
        "bpe-bos",
        &tokens,
        &[bpe_metadata(), begins.into()].concat(),
    );
    let session = session_of(model);
    check(&session, "<|begin_of_text|>");
    let other = raw_prompt(&session, "<bos>a").expect("known characters");
    assert_eq!(ids(&other)[..2], [id as i32, id as i32 + 1]);
}

// --- long texts ---

/// The letter of GPT-2's alphabet for each byte, of those that `has` wants, and a few words.
fn bpe_tokens(has: impl Fn(u8) -> bool) -> Vec<(String, i32)> {
    let letters = (0..=u8::MAX).filter(|&byte| has(byte)).map(letter_of_byte);
    let words = [
        "Ġc", "at", "Ġcat", "ĠĠ", "th", "the", "Ġthe", "ĊĊ", "12", "ab", "Ġa",
    ];
    let texts = letters.map(String::from).chain(words.map(str::to_owned));
    let ends = token("<|endoftext|>", CONTROL);
    texts
        .map(|text| token(text, NORMAL))
        .chain([ends])
        .collect()
}

fn letter_of_byte(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..byte).filter(|byte| !printable(byte)).count() as u32;
    let code = if printable(&byte) {
        u32::from(byte)
    } else {
        256 + others
    };
    char::from_u32(code).expect("a letter")
}

fn bpe_metadata() -> Vec<(&'static str, Value)> {
    let merges = [
        "Ġ c", "a t", "Ġc at", "Ġ Ġ", "t h", "th e", "Ġ the", "Ċ Ċ", "1 2", "a b", "Ġ a",
    ];
    let merges: Vec<String> = merges.map(str::to_owned).into();
    vec![
        ("tokenizer.ggml.model", Value::from("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::from("qwen2".to_owned())),
        ("tokenizer.ggml.merges", Value::Array(Array::String(merges))),
        ("tokenizer.ggml.bos_token_id", Value::from(0_u32)),
        ("tokenizer.ggml.add_bos_token", Value::from(false)),
    ]
}

fn piece_text(model: &Model, ids: &[i32]) -> String {
    let mut bytes = Vec::new();
    for &id in ids {
        model
            .append_piece(id, Special::Show, &mut bytes)
            .expect("it is in the vocabulary");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// SentencePiece vocabularies with and without a space in front, and byte-level ones of three families.
fn vocabularies() -> Vec<(String, Model)> {
    let mut found = vec![
        (
            "demo",
            Fixture::Demo
                .converted(TensorType::F32)
                .join("model-f32.gguf"),
        ),
        (
            "tiny",
            Fixture::Tiny
                .converted(TensorType::F32)
                .join("model-f32.gguf"),
        ),
    ];
    let mut tokens = specials();
    let letters = [
        "a", "b", "c", "t", "h", "e", "at", "▁c", "▁cat", "th", "the", "▁the", "t▁", "▁▁",
    ];
    tokens.extend(letters.map(|letter| token(letter, NORMAL)));
    tokens.push(token("<table>", USER_DEFINED));
    tokens.push(token("a b", USER_DEFINED));
    tokens.extend(byte_tokens());
    let prefix = [("tokenizer.ggml.add_space_prefix", Value::from(true))];
    found.push(("prefix", with_vocabulary("prefix", &tokens, &prefix)));
    let ends = [
        ("tokenizer.ggml.add_eos_token", Value::from(true)),
        ("tokenizer.ggml.add_space_prefix", Value::from(false)),
    ];
    found.push(("ends", with_vocabulary("ends", &tokens, &ends)));
    for pre in ["gpt-2", "llama-bpe", "qwen2"] {
        let mut metadata = bpe_metadata();
        metadata[1].1 = Value::from(pre.to_owned());
        let more = token("<|im start|>", CONTROL);
        let tokens = [bpe_tokens(|_| true), vec![more]].concat();
        found.push((
            pre,
            with_vocabulary(&format!("bpe-{pre}"), &tokens, &metadata),
        ));
    }
    let named = found.into_iter();
    named
        .map(|(name, path)| (name.to_owned(), load(&path)))
        .collect()
}

/// Texts over a size that is cut have the ids of the whole text.
#[test]
fn cut_texts_have_the_ids_of_whole_ones() {
    let words = prop_oneof![
        8 => "[a-z]{1,7}",
        3 => "(the|cat|a|at|ab|th)",
        2 => "[A-Z]{1,3}[0-9]{0,5}",
        2 => "[.,;!?'\"-]{1,3}",
        2 => "[ \t\n]{1,4}",
        1 => "[é漢字かな한글ДжЖ☃🙂]{1,5}",
        1 => Just("<table>".to_owned()),
        1 => Just("<s>".to_owned()),
        1 => Just("<|im start|>".to_owned()),
        1 => Just("\0\0".to_owned()),
        1 => Just("▁Ġ".to_owned()),
    ];
    let separator = prop_oneof![6 => Just(" "), 2 => Just(""), 1 => Just("\n"), 1 => Just("  ")];
    let text = proptest::collection::vec((words, separator), 9_000..11_000);
    for (name, model) in vocabularies() {
        let mut runner = TestRunner::new_with_rng(
            Config::with_cases(6),
            proptest::test_runner::TestRng::deterministic_rng(
                proptest::test_runner::RngAlgorithm::ChaCha,
            ),
        );
        let result = runner.run(&text, |words| {
            let text: String = words.iter().flat_map(|(a, b)| [a.as_str(), b]).collect();
            for add_bos in [AddBos::Yes, AddBos::No] {
                let cut = model.tokenize(&text, add_bos).expect("it can be cut");
                let whole = model
                    .tokenize_at_once(&text, add_bos)
                    .expect("not too long");
                let first = cut.iter().zip(&whole).position(|(a, b)| a != b);
                prop_assert!(
                    cut == whole,
                    "{name}: {first:?}, {} of {}",
                    cut.len(),
                    whole.len()
                );
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    for (name, model) in vocabularies()
        .into_iter()
        .filter(|(name, _)| name == "demo" || name == "qwen2")
    {
        let long = "ab".repeat(200_000);
        let error = model.tokenize(&long, AddBos::No).err();
        let error = error.unwrap_or_else(|| panic!("{name} holds `ab` and `ba`"));
        assert!(
            error.to_string().contains("cannot be cut"),
            "{name}: {error}"
        );
        assert!(error.hint().is_some());
    }
}

/// 3 MB of bytes without a token of their own take llama.cpp a quarter of an hour at once.
#[cfg(unix)]
#[test]
fn a_long_text_can_be_interrupted() {
    use std::time::{Duration, Instant};

    let path = temporary_root().join("zeros.txt");
    std::fs::write(&path, vec![0; 3_000_000]).expect("a file of our own");
    let mut child = crate::command_line::program()
        .args(["metrics", "-q", "--text"])
        .arg(&path)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    std::thread::sleep(Duration::from_millis(1500)); // it loads, and begins with the text
    assert!(
        child.try_wait().expect("our child").is_none(),
        "it ended before"
    );
    let start = Instant::now();
    crate::bad_input::send("TERM", &child);
    let output = child.wait_with_output().expect("our child");
    assert_eq!(output.status.code(), Some(130));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}
