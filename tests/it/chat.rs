//! Chats: files of messages, through the command line, and the model's chat template.
//!
//! What templates make of chats is compared with transformers' in `src/prompt/chat/tests.rs`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::gguf::TensorType;
use llava_sae_cpp::chat::{Message, Part, Role};
use llava_sae_cpp::{CancelFlag, ModelFiles, Picture, PromptForm, Session, SessionOptions};
use serde_json::{Value, json};

use crate::bad_input::check;
use crate::command_line::{json as json_of, run, stdout};
use crate::fixture::{Fixture, exact_options, picture, temporary_root};
use crate::rewritten::rewritten;

const ROWS: u64 = 64; // of an image, with the demo model

fn folder() -> PathBuf {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    dir.keep()
}

/// A chat's file in a folder of its own.
fn file(chat: &Value) -> String {
    file_in(&folder(), chat)
}

fn file_in(folder: &Path, chat: &Value) -> String {
    let path = folder.join("chat.json");
    std::fs::write(&path, chat.to_string()).expect("it is written");
    text(path)
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().expect("a plain path")
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn said(line: &str) -> Value {
    json!({"type": "text", "text": line})
}

fn image(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

fn template(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chats/templates");
    text(folder.join(format!("{name}.jinja")))
}

/// A picture is the same from the command line, by its path, by a URL, and in the file.
#[test]
fn one_turn_is_a_prompt() {
    let args = |more: &[&str]| {
        let args = [&["--json", "-n", "12"], more].concat();
        json_of(&args)
    };
    let plain = args(&["-p", "Describe the image.", picture()]);
    let folder = folder();
    let bytes = std::fs::read(picture()).expect("a picture");
    std::fs::write(folder.join("copy.png"), &bytes).expect("it is written");
    let absolute = std::fs::canonicalize(picture()).expect("a picture");
    let urls = [
        "copy.png".to_owned(),
        format!("file://{}", absolute.display()),
        format!("data:image/png;base64,{}", STANDARD.encode(&bytes)),
    ];
    let check = |content: Value, given: &[&str]| {
        let path = file_in(&folder, &json!([user(content)]));
        let chat = args(&[&["--chat", &path], given].concat());
        assert_eq!(chat["original"], plain["original"]);
        for n in ["n_prompt_tokens", "n_image_tokens"] {
            assert_eq!(chat[n], plain[n]);
        }
        let expected = "<bos><start_of_turn>user\n<image>\nDescribe the image.<end_of_turn>\n<start_of_turn>model\n";
        assert_eq!(chat["prompt"], expected);
    };
    for url in urls {
        check(json!([image(&url), said("Describe the image.")]), &[]);
    }
    check(
        json!([{"type": "image"}, said("Describe the image.")]),
        &[picture()],
    );
}

#[test]
fn images_stand_in_their_turns() {
    let session = Fixture::Demo.session(TensorType::F32, exact_options());
    let message = |role, content: &[Part]| Message {
        role,
        content: content.to_vec(),
    };
    let say = |line: &str| Part::Text(line.to_owned());
    let messages = [
        message(Role::System, &[say("Answer in a word.")]),
        message(Role::User, &[Part::Image, say("What is it?")]),
        message(Role::Assistant, &[say("An apple.")]),
        message(Role::User, &[say("And this?"), Part::Image]),
    ];
    let names = Fixture::Demo.picture_names();
    let images: Vec<_> = names[..2]
        .iter()
        .map(|name| session.encode_image(&Fixture::Demo.open_picture(name)))
        .collect::<Result<_, _>>()
        .expect("they are encoded");
    let images: Vec<_> = images.iter().collect();
    let never = CancelFlag::default();
    let model = session.model();
    let chat = model.chat_prompt(&messages, &images, &never);
    let chat = chat.expect("the template takes it");
    let written = "<bos><start_of_turn>system\nAnswer in a word.<end_of_turn>\n\
        <start_of_turn>user\n<image>\nWhat is it?<end_of_turn>\n\
        <start_of_turn>model\nAn apple.<end_of_turn>\n\
        <start_of_turn>user\nAnd this?<image>\n<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(model.chat_text(&messages).expect("as above"), written);
    let raw = model.prompt(written, PromptForm::Raw, &images, &never);
    assert_eq!(chat.tokens(), raw.expect("two marks").tokens());

    // The answer goes on where it stopped.
    let started = &[
        &messages[1..2],
        &[message(Role::Assistant, &[say("It is ")])],
    ]
    .concat();
    let text = model.chat_text(started).expect("it is continued");
    assert!(text.ends_with("model\nIt is "), "{text}");

    let error = model.chat_prompt(&messages, &images[..1], &never).err();
    let said = error.expect("one is missing").to_string();
    assert_eq!(said, "the messages have 2 images, and 1 were given");
}

/// A template that takes parts writes the model's own token for an image, and one that takes texts gets it in them.
#[test]
fn images_have_the_models_own_token() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let parts = std::fs::read_to_string(template("parts")).expect("a fixture");
    let parts = parts
        .replace("<turn>", "<start_of_turn>")
        .replace("</turn>", "<end_of_turn>")
        .replace("'model' if", "'assistant' if");
    let check = |folder: &str, picture: &str, token: &str| {
        let files = ModelFiles {
            model: fixtures.join(folder).join("model.gguf"),
            mmproj: Some(fixtures.join(folder).join("mmproj.gguf")),
            saes: Vec::new(),
        };
        let ids = |chat_template: Option<String>| {
            let options = SessionOptions {
                chat_template,
                ..exact_options()
            };
            let session = Session::open(&files, options).expect("the fixture loads");
            let picture = Picture::open(&fixtures.join(picture)).expect("a picture");
            let image = session.encode_image(&picture).expect("it is encoded");
            let prompt = session.prompt("a cat", PromptForm::Chat, &[&image, &image]);
            prompt.expect("it is tokenised").tokens().to_vec()
        };
        let parts = parts.replace("<picture>", token);
        assert_eq!(ids(Some(parts)), ids(None), "{folder}");
    };
    check(
        "gemma3/3-layers",
        "gemma3/pictures/square.png",
        "<start_of_image>",
    );
    // Of projectors that are not known, the template tells.
    check(
        "others/qwen2.5vl",
        "others/pictures/qwen2.5vl-square.png",
        "<|vision_start|><|image_pad|><|vision_end|>",
    );
}

#[test]
fn commands_take_chats() {
    let places = json!([user(json!([{"type": "image"}, said("What is it?")]))]);
    let (places, two) = (file(&places), {
        let folder = folder();
        std::fs::copy(picture(), folder.join("a.png")).expect("it is copied");
        let first = user(json!([image("a.png"), said("What is it?")]));
        let answer = json!({"role": "assistant", "content": "A thing."});
        let chat = json!({"model": "any", "messages": [first, answer, user(json!([said("And this?"), image("a.png")]))]});
        file_in(&folder, &chat)
    });
    let report = json_of(&["--json", "-n", "4", "--chat", &two]);
    assert_eq!(report["n_image_tokens"], 2 * ROWS);
    let report = json_of(&["features", "--json", "--chat", &places, picture()]);
    assert_eq!(report["n_image_tokens"], ROWS);
    assert_eq!(report["grid"], json!([8, 8]));
    let range = [
        "sweep", "--steer", "5:0..4:4", "-n", "4", "--json", "--chat",
    ];
    let report = json_of(&[&range[..], &[&places, picture()]].concat());
    let prompt = report["prompt"].as_str().expect("a text");
    assert!(prompt.contains("<image>\nWhat is it?"), "{prompt}");
    let table = stdout(&["metrics", "--chat", &two]);
    assert!(table.contains("image"), "{table}");
    let target = text(folder().join("rows.safetensors"));
    let captured = run(&["capture", "-n", "0", "-o", &target, "--chat", &two]);
    assert!(captured.status.success(), "{captured:?}");
    let bytes = std::fs::read(&target).expect("it was written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
    let shape = tensors.tensor("image_embeddings").expect("all").shape()[0];
    assert_eq!(shape as u64, 2 * ROWS);
}

#[test]
fn templates_are_refused_for_what_they_do() {
    let scene = json!([{"role": "system", "content": "Be brief."}, user(json!("Hi"))]);
    let scene = file(&scene);
    let turns = template("turns");
    let args = ["--chat-template", &turns, "--chat", &scene];
    check(&args, 1, &["there is no system role", "`--chat-template`"]);
    let folder = folder();
    let check = |source: &str, words: &[&str]| {
        let path = folder.join("template.jinja");
        std::fs::write(&path, source).expect("it is written");
        let path = text(path);
        check(&["--chat-template", &path, picture()], 1, words);
    };
    let dropping = "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}";
    check(dropping, &["drops images", "0 of 1"]);
    check(
        "{{ messages | nonsense }}",
        &["nonsense is unknown", "chat template:1"],
    );
    check(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        &["more time or memory"],
    );
    let missing = text(folder.join("missing.jinja"));
    crate::bad_input::check(
        &["--chat-template", &missing, picture()],
        1,
        &["cannot read the chat template", "missing.jinja"],
    );
}

/// Older files have no template: one can be given.
#[test]
fn a_model_without_a_template_takes_one() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let [model, mmproj, sae] = ["model-f32.gguf", "mmproj-f32.gguf", "sae.gguf"];
    let without = rewritten(&dir.join(model), &|parts| {
        parts.remove("tokenizer.chat_template");
    });
    let [with, without, mmproj, sae] =
        [dir.join(model), without, dir.join(mmproj), dir.join(sae)].map(text);
    let files = ["--mmproj", &mmproj, "--sae", &sae, "-n", "8", picture()];
    let bare = ["-m", &without];
    let words = ["no chat template", "`--raw-prompt`", "`--chat-template`"];
    check(&[&bare[..], &files].concat(), 1, &words);
    let explain = ["explain", "--word", "a"];
    check(&[&explain[..], &bare, &files].concat(), 1, &words);
    let own = folder().join("own.jinja");
    let session = Fixture::Demo.session(TensorType::F32, exact_options());
    let source = session
        .language_model()
        .chat_template()
        .expect("it has one");
    std::fs::write(&own, source).expect("it is written");
    let own = text(own);
    let given = ["--chat-template", &own];
    let expected = stdout(&[&["-m", &with], &files[..]].concat());
    assert_eq!(stdout(&[&bare[..], &given, &files].concat()), expected);
}

#[test]
fn bad_chats() {
    let hello = file(&json!([user(json!("Hello"))]));
    check(&["--chat", &hello, "-p", "Hi"], 2, &["--chat", "--prompt"]);
    check(&["--chat", &hello, "--raw-prompt"], 2, &["--raw-prompt"]);
    check(
        &["scan", "--chat", &hello, "-o", "x.parquet", "."],
        2,
        &["--chat"],
    );
    let words = ["pictures given: 1, expected 0", "hint: "];
    check(&["--chat", &hello, picture()], 1, &words);
    let place = file(&json!([user(json!([{"type": "image"}, said("Hi")]))]));
    let words = ["pictures given: 0, expected 1", "hint: "];
    check(&["--chat", &place], 1, &words);
    let gone = file(&json!([user(json!([image("gone.png"), said("Hi")]))]));
    check(&["--chat", &gone], 1, &["gone.png"]);
    let broken = "data:image/png;base64,YWJj";
    let broken = file(&json!([user(json!([image(broken), said("Hi")]))]));
    check(&["--chat", &broken], 1, &["image 1 of the chat"]);
    let web = file(&json!([user(json!([image("https://example.com/a.png")]))]));
    let words = [
        "chat.json",
        "`messages[0].content[0].image_url`",
        "hint: download",
    ];
    check(&["--chat", &web], 1, &words);
    let marked = file(&json!([user(json!("an <image>"))]));
    check(&["--chat", &marked], 1, &["`messages[0]` holds `<image>`"]);
    check(&["--chat", "/gone.json"], 1, &["gone.json"]);
    check(&["--chat", "/dev/null"], 1, &["it is not a file"]);
}
