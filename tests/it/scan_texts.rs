//! Scans of texts: their numbers against runs of the same tokens, what `top` shows, and workers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use llava_sae_cpp::llama::AddBos;
use llava_sae_cpp::pictures::InContext;
use llava_sae_cpp::scan::ScanFile;
use llava_sae_cpp::{
    Keep, Kinds, RunOptions, Segment, Session, SessionOptions, Token, TokenKind, demo,
};

use crate::bad_input::check;
use crate::command_line::{json, stdout, text};
use crate::page::data;
use crate::scan::{folder, rows, rows_by_features, scan, stderr, with_sidecar};
use crate::scan_top::{list, number};
use crate::scan_worker::{answer, worker};

/// Names, classes and texts, of few tokens and of many.
pub(crate) fn texts() -> Vec<(String, Option<&'static str>, String)> {
    let text = |name: &str, class, text: String| (name.to_owned(), class, text);
    vec![
        text("animals/1", Some("animals"), "a cat and a dog".to_owned()),
        text(
            "animals/2",
            Some("animals"),
            "the dog sits on the grass. ".repeat(9),
        ),
        text(
            "food/1",
            Some("food"),
            "an apple, a carrot and a mushroom".to_owned(),
        ),
        text("food/2", Some("food"), " carrot".repeat(40)),
        text("alone", None, "a boat".to_owned()),
    ]
}

/// The same, as JSON lines with another column.
pub(crate) fn corpus(name: &str) -> (PathBuf, PathBuf) {
    let dir = folder(name);
    let file = dir.join("corpus.jsonl");
    let line = |(path, _, text): (String, _, String)| {
        format!(
            "{}\n",
            serde_json::json!({"path": path, "n": 1, "text": text})
        )
    };
    let lines: String = texts().into_iter().map(line).collect();
    fs::write(&file, lines).expect("a file of our own");
    (dir, file)
}

pub(crate) fn scan_texts(corpus: &Path, output: &Path, args: &[&str]) -> [Vec<u8>; 2] {
    let args = [&["--texts", "-q"], args].concat();
    let scanned = scan(corpus, output, &args);
    assert!(scanned.status.success(), "{}", stderr(&scanned));
    with_sidecar(output)
}

/// The rows' tokens.
pub(crate) fn tokens(file: &Path) -> Vec<InContext> {
    let file = ScanFile::open(file).expect("a whole file");
    let mut tokens = Vec::new();
    let read = file.for_each_row(&mut |row| {
        tokens.push(row.token.expect("a table of texts").to_owned());
        Ok(())
    });
    read.expect("readable");
    tokens
}

/// Of texts that fit a context, each value is what `features` prints for the same raw prompt.
#[test]
fn rows_are_what_features_says_of_the_text() {
    let (dir, corpus) = corpus("texts/features");
    let file = dir.join("features.parquet");
    scan_texts(&corpus, &file, &[]);
    let mut expected = Vec::new();
    let mut sorted = texts();
    sorted.sort();
    for (path, class, content) in sorted {
        let args = ["--raw-prompt", "-p", &content, "--over", "prompt"];
        expected.extend(rows_by_features(&path, class, &args));
    }
    assert!(expected.len() > 100, "{}", expected.len());
    assert_eq!(rows(&file), expected);
    // What made it is said, and nothing of pictures.
    let [_, sidecar] = with_sidecar(&file);
    let said: serde_json::Value = serde_json::from_slice(&sidecar).expect("JSON");
    assert_eq!(said["settings"]["items"], "texts");
    assert_eq!(said["settings"]["context"], "128 tokens");
    for name in ["prompt", "projector", "image preparation"] {
        assert!(said["settings"][name].is_null(), "{name}");
    }
    assert_eq!(said["listing"]["n_items"], 5);
}

/// Of longer texts, each context is run by itself, and features are pooled over all: a plain computation.
#[test]
fn long_texts_are_read_in_contexts() {
    let (dir, corpus) = corpus("texts/contexts");
    let file = dir.join("features.parquet");
    scan_texts(&corpus, &file, &["--text-context", "8", "-t", "1"]);
    let options = SessionOptions {
        threads: 1,
        gpu_layers: 0,
        ..SessionOptions::default()
    };
    let files = demo::files().expect("the cache folder can be written");
    let mut session = Session::open(&files, options).expect("the demo");
    let bos = session.language_model().bos().expect("the demo has one");
    let mut sorted = texts();
    sorted.sort();
    let mut found = rows(&file).into_iter().zip(tokens(&file));
    let mut n_cut = 0;
    for (name, _, content) in sorted {
        let ids = session.language_model().tokenize(&content, AddBos::No);
        let ids = ids.expect("the vocabulary has all characters");
        let words: Vec<_> = ids
            .iter()
            .map(|&id| session.token_text(Token::text(id)).expect("a text"))
            .collect();
        let mut pooled = BTreeMap::<usize, (f32, f32, usize, usize)>::new();
        for (i, chunk) in ids.chunks(7).enumerate() {
            n_cut += usize::from(i > 0);
            let context = Segment::Text([&[bos], chunk].concat());
            let prompt = session
                .model()
                .prompt_of_segments(vec![context])
                .expect("tokens");
            let keep = Keep {
                features: Kinds::ALL,
                ..Keep::default()
            };
            let run = session.run(
                &prompt,
                RunOptions {
                    keep,
                    ..RunOptions::default()
                },
            );
            let trace = run.expect("it runs").trace;
            let mut sums = BTreeMap::<usize, f32>::new();
            for (row_idx, token) in trace.tokens.iter().enumerate().skip(1) {
                assert!(token.kind == TokenKind::Text && !token.is_special);
                for (feature, value) in trace.saes[0].activations.row(row_idx) {
                    *sums.entry(feature).or_default() += value;
                    let entry = pooled.entry(feature).or_insert((0.0, f32::MIN, 0, 0));
                    entry.2 += 1;
                    if value > entry.1 {
                        (entry.1, entry.3) = (value, 7 * i + row_idx - 1);
                    }
                }
            }
            for (feature, sum) in sums {
                pooled.get_mut(&feature).expect("it was seen").0 += sum;
            }
        }
        for (feature, (sum, max, count, position)) in pooled {
            let (row, token) = found.next().expect("a row for each");
            assert_eq!((&row.path, row.feature), (&name, feature));
            assert_eq!((row.sum, row.max, row.count), (sum, max, count), "{name}");
            assert_eq!((token.position, &token.token), (position, &words[position]));
            let first = position / 7 * 7;
            assert_eq!(token.before, words[first..position].concat());
            let behind = words.len().min(first + 7);
            assert_eq!(token.after, words[position + 1..behind].concat());
        }
    }
    assert!(found.next().is_none() && n_cut > 5);
}

/// `top` shows the token in its context, and classes as ever.
#[test]
fn tops_of_texts() {
    let (dir, corpus) = corpus("texts/top");
    let file = dir.join("features.parquet");
    scan_texts(&corpus, &file, &[]);
    let (rows, tokens) = (rows(&file), tokens(&file));
    let strongest = |feature: usize| {
        let all = rows.iter().zip(&tokens);
        let mut all: Vec<_> = all.filter(|(row, _)| row.feature == feature).collect();
        all.sort_by(|(a, _), (b, _)| b.max.total_cmp(&a.max).then(a.path.cmp(&b.path)));
        all
    };
    let feature = rows[0].feature;
    let expected = strongest(feature);
    let report = json(&[
        "top",
        text(&file),
        "--feature",
        &feature.to_string(),
        "--json",
    ]);
    let images = list(&report, "images");
    assert_eq!(images.len(), expected.len());
    for (image, (row, token)) in images.iter().zip(&expected) {
        assert_eq!(image["path"], *row.path);
        assert_eq!(number(&image["max"]) as f32, row.max);
        assert_eq!(image["position"], token.position);
        let texts = [&image["before"], &image["token"], &image["after"]];
        assert_eq!(texts, [&*token.before, &*token.token, &*token.after]);
    }
    let shown = stdout(&["top", text(&file), "--feature", &feature.to_string()]);
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].contains("of 5 texts activate it"), "{shown}");
    assert_eq!(lines.len(), 2 + 2 * expected.len(), "{shown}");
    let (row, token) = expected[0];
    assert!(lines[2].ends_with(&*row.path), "{shown}");
    let marked = format!("{}<<{}>>{}", token.before, token.token, token.after);
    assert!(lines[3].ends_with(marked.trim_end()), "{shown}");

    let shown = stdout(&["top", text(&file), "--class", "food", "--top", "3"]);
    assert!(
        shown.starts_with("Features that texts of `food` (2) activate more than the others (3)")
    );
    assert!(shown.contains("share of texts"), "{shown}");
    check(
        &["top", text(&file), "--class", "cars"],
        1,
        &["no text is of class `cars`", "`animals`, `food`"],
    );
}

/// A worker of texts answers with the rows of a scan, and pictures with what is wrong.
#[test]
fn workers_of_texts() {
    let (dir, corpus) = corpus("texts/worker");
    let file = dir.join("features.parquet");
    scan_texts(&corpus, &file, &["-t", "1"]);
    fs::write(dir.join("alone.txt"), "a boat").expect("a file of our own");
    let (of_scan, of_tokens) = (rows(&file), tokens(&file));
    let (child, mut stdin, mut answers) = worker(&dir, &["--texts"]);
    let lines = fs::read_to_string(&corpus)
        .expect("ours")
        .replace("\"n\":1,", "");
    let lines = format!(
        "{lines}alone.txt\n{}\n{}\n{}\n",
        r#"{"path": "a", "data": ""}"#,
        r#"{"path": "b", "text": ""}"#,
        r#"{"path": "c", "text": "a", "data": ""}"#
    );
    stdin.write_all(lines.as_bytes()).expect("it reads");
    drop(stdin);
    for (input, (name, ..)) in texts().into_iter().enumerate() {
        let batch = answers.next().expect("an answer").expect("a batch");
        let expected: Vec<_> = of_scan
            .iter()
            .filter(|row| row.path == name)
            .cloned()
            .collect();
        assert_eq!(answer(&batch, input as i64), Ok(expected), "{name}");
        let positions = batch.column_by_name("position").expect("it is there");
        let positions = positions.as_primitive::<Int32Type>().values().iter();
        let of_tokens = of_tokens.iter().zip(&of_scan);
        let of_tokens = of_tokens.filter(|(_, row)| row.path == name);
        assert!(
            positions
                .map(|&at| at as usize)
                .eq(of_tokens.map(|(token, _)| token.position))
        );
    }
    let batch = answers.next().expect("an answer").expect("a batch");
    assert!(answer(&batch, 5).is_ok_and(|rows| rows[0].path == "alone.txt"));
    let words = [
        "`a` is a picture, and not a text",
        "`b` is an empty text",
        "both `data` and `text`",
    ];
    for (input, word) in (6..).zip(words) {
        let batch = answers.next().expect("an answer").expect("a batch");
        let said = answer(&batch, input).expect_err("it cannot be read");
        assert!(said.contains(word), "{said}");
    }
    assert!(answers.next().is_none());
    assert!(child.wait_with_output().expect("it ends").status.success());

    let (child, mut stdin, mut answers) = worker(&dir, &[]);
    stdin
        .write_all(b"{\"path\": \"a\", \"text\": \"a cat\"}\n")
        .expect("it reads");
    drop(stdin);
    let batch = answers.next().expect("an answer").expect("a batch");
    let said = answer(&batch, 0).expect_err("it reads pictures");
    assert!(said.contains("`a` is a text, and not a picture"), "{said}");
    assert!(child.wait_with_output().expect("it ends").status.success());
}

/// A gallery of texts has the tokens in their contexts, and wants no pictures.
#[test]
fn galleries_of_texts() {
    let (dir, corpus) = corpus("texts/gallery");
    let file = dir.join("features.parquet");
    scan_texts(&corpus, &file, &[]);
    let feature = rows(&file)[0].feature.to_string();
    let out = dir.join("gallery");
    stdout(&[
        "gallery",
        "-q",
        text(&file),
        "--feature",
        &feature,
        "-o",
        text(&out),
    ]);
    let pages = fs::read_dir(out.join("features")).expect("a folder of pages");
    let page = pages.map(|page| page.expect("readable").path()).next();
    let page = fs::read_to_string(page.expect("a page")).expect("text");
    let shown = &data(&page)["top"][0];
    let report = json(&["top", text(&file), "--feature", &feature, "--json"]);
    let first = &list(&report, "images")[0];
    assert_eq!(shown["name"], first["path"]);
    for part in ["position", "before", "token", "after"] {
        assert_eq!(shown["token"][part], first[part]);
    }
    let args = ["gallery", text(&file), "--images", text(&dir), "-o"];
    let other = dir.join("other");
    check(
        &[&args[..], &[text(&other)]].concat(),
        1,
        &["is of texts", "hint: "],
    );
}
