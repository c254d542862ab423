//! A LLaVA folder: configurations, tokenizers, the index of weights.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::Result;
use gguf_tools::gguf::{Gguf, Overwrite, TensorType};
use gguf_tools::llava::LlavaOptions;
use serde_json::{Value, json};

use crate::Expected::{Either, Refused};
use crate::{Reader, copy, faults};

/// Converts the folder; what comes of it must be right files.
fn convert(dir: &Path) -> Result<()> {
    let options = LlavaOptions {
        model_type: TensorType::F16,
        mmproj_type: TensorType::F16,
        overwrite: Overwrite::Refuse,
    };
    let out = tempfile::tempdir().expect("a temporary folder");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let files = gguf_tools::llava::convert(dir, out.path(), &options, go_on)?;
    for path in files.model.iter().chain(&files.mmproj) {
        Gguf::open(path).expect("what is written can be read");
    }
    Ok(())
}

/// Checks all faults of a JSON file of the folder `dir`.
fn check_json(dir: &Path, name: &str, right: &Value) {
    let file = dir.join(name);
    let original = fs::read(&file).ok();
    let reader = Reader {
        file: file.clone(),
        read: &|| convert(dir),
    };
    reader.check_right(right.to_string().as_bytes());
    faults::json(right, &mut |fault, bytes, expected| {
        reader.check(fault, bytes, expected);
    });
    match original {
        Some(bytes) => fs::write(file, bytes).expect("writable"),
        None => fs::remove_file(file).expect("just written"),
    }
}

#[test]
fn configurations() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("tiny/llava", dir.path());
    for name in [
        "config.json",
        "preprocessor_config.json",
        "generation_config.json",
        "added_tokens.json",
        "tokenizer_config.json",
    ] {
        let right = fs::read(source.join(name)).expect("committed");
        check_json(
            &source,
            name,
            &serde_json::from_slice(&right).expect("JSON"),
        );
    }
    fs::remove_file(source.join("tokenizer_config.json")).expect("there");
    let template = json!({"chat_template": [{"name": "default", "template": "{{ messages }}"}]});
    check_json(&source, "chat_template.json", &template);
    let reader = Reader {
        file: source.join("chat_template.jinja"),
        read: &|| convert(&source),
    };
    reader.check("invalid UTF-8", b"\xc3\x28", Refused);
    reader.check("a long one", &vec![b'x'; 20 << 20], Refused);
    fs::remove_file(&reader.file).expect("written");

    let settings = fs::read(source.join("preprocessor_config.json")).expect("committed");
    fs::remove_file(source.join("preprocessor_config.json")).expect("there");
    let settings: Value = serde_json::from_slice(&settings).expect("JSON");
    let right = json!({"image_processor": settings, "processor_class": "LlavaProcessor"});
    check_json(&source, "processor_config.json", &right);
}

#[test]
fn index_of_weights() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("tiny/llava", dir.path());
    let name = "model.safetensors.index.json";
    let right = fs::read(source.join(name)).expect("committed");
    check_json(
        &source,
        name,
        &serde_json::from_slice(&right).expect("JSON"),
    );
}

#[test]
fn tokenizer_json() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("tiny/llava", dir.path());
    fs::remove_file(source.join("tokenizer.model")).expect("there");
    let name = "tokenizer.json";
    let right: Value =
        serde_json::from_slice(&fs::read(source.join(name)).expect("committed")).expect("JSON");
    check_json(&source, name, &right);

    let reader = Reader {
        file: source.join(name),
        read: &|| convert(&source),
    };
    let many = |key: &str, element: &dyn Fn(usize) -> String, brackets: [&str; 2]| {
        let mut broken = right.clone();
        *broken.pointer_mut(key).expect("a key of its own") = json!("mark");
        let elements: Vec<String> = (0..600_000).map(element).collect();
        let list = [brackets[0], &elements.join(","), brackets[1]].concat();
        let broken = broken.to_string().replace("\"mark\"", &list);
        reader.check(key, broken.as_bytes(), Either);
    };
    many(
        "/model/vocab",
        &|i| format!("\"{i}\":{}", i % 400),
        ["{", "}"],
    );
    many("/model/vocab", &|i| format!("\"{i}\":{i}"), ["{", "}"]);
    many("/model/merges", &|i| format!("\"{i} {i}\""), ["[", "]"]);
    many("/model/merges", &|i| format!("[\"{i}\",\"\"]"), ["[", "]"]);
    many(
        "/added_tokens",
        &|i| format!("{{\"id\":{i},\"content\":\"{i}\"}}"),
        ["[", "]"],
    );
    many(
        "/added_tokens",
        &|i| format!("{{\"id\":9,\"content\":\"{i}\"}}"),
        ["[", "]"],
    );
    many(
        "/added_tokens",
        &|i| format!("{{\"content\":\"{i}\"}}"),
        ["[", "]"],
    );
    many(
        "/normalizer",
        &|_| "{\"type\":\"\"}".to_owned(),
        ["{\"type\":\"\",\"normalizers\":[", "]}"],
    );
}

#[test]
fn tokenizer_model() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("tiny/llava", dir.path());
    let file = source.join("tokenizer.model");
    let right = fs::read(&file).expect("committed");
    let reader = Reader {
        file,
        read: &|| convert(&source),
    };
    reader.check_right(&right);
    // A message may end behind any field.
    let check = &mut |fault: &str, bytes: &[u8], _| reader.check(fault, bytes, Either);
    faults::cut(&right, (0..right.len()).step_by(61), check);
    faults::overwrite(&right, (0..60).chain(right.len() - 60..right.len()), check);
    reader.check("empty pieces", &b"\x0a\0".repeat(10 << 20), Refused);
    reader.check("empty specifications", &b"\x12\0".repeat(10 << 20), Refused);
    reader.check("unknown fields", &b"\x78\0".repeat(10 << 20), Refused);
    reader.check("nested groups", &[0x0b; 100_000], Refused);
    reader.check("nested unknown groups", &[0x7b; 100_000], Refused);
    reader.check(
        "a length of 2^63",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        Refused,
    );
    reader.check("a number without an end", &[0xff; 30], Refused);
    let mut piece = b"\x0a\x85\x80\x80\x10\x0a\x80\x80\x80\x10".to_vec();
    piece.resize(piece.len() + (32 << 20), b'x');
    reader.check("a long piece", &piece, Refused);
}

/// A vocabulary of which the file says no more than its size.
#[test]
fn rows_without_tokens() {
    const MOST: usize = 270_000;
    for n_rows in [MOST, MOST + 1, 1 << 24] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy("tiny/llava", dir.path());
        let config = fs::read(source.join("config.json")).expect("committed");
        let mut config: Value = serde_json::from_slice(&config).expect("JSON");
        config["text_config"]["vocab_size"] = json!(n_rows);
        // The embedding as a hole.
        let index_path = source.join("model.safetensors.index.json");
        let index = fs::read(&index_path).expect("committed");
        let mut index: Value = serde_json::from_slice(&index).expect("JSON");
        let name = "model.language_model.embed_tokens.weight";
        assert!(index["weight_map"][name].is_string());
        index["weight_map"][name] = json!("hole.safetensors");
        fs::write(index_path, index.to_string()).expect("writable");
        let n_data = n_rows as u64 * 48 * 2;
        let tensor = json!({"dtype": "BF16", "shape": [n_rows, 48], "data_offsets": [0, n_data]});
        let header = json!({ name: tensor }).to_string();
        let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let hole = source.join("hole.safetensors");
        fs::write(&hole, &start).expect("writable");
        let hole = fs::File::options().write(true).open(hole).expect("there");
        hole.set_len(start.len() as u64 + n_data)
            .expect("a sparse file");

        let reader = Reader {
            file: source.join("config.json"),
            read: &|| convert(&source),
        };
        let expected = if n_rows > MOST { Refused } else { Either };
        reader.check("many rows", config.to_string().as_bytes(), expected);
    }
}
