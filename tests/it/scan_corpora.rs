//! Corpora: of every type, in shards, spoilt, and interrupted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, LargeStringArray, StringArray};

use crate::bad_input::check;
use crate::command_line::{names, run, stdout, text};
use crate::scan::{OwnedRow, folder, rows, scan, stderr, with_sidecar};
use crate::scan_lists::{scan_names, write_parquet};
use crate::scan_several::{model, saes};
use crate::scan_texts::{corpus, scan_texts, texts, tokens};

/// Any number of jobs and of shards gives the bytes of one scan, and so does every type of corpus its rows.
#[test]
fn corpora_are_scanned_alike() {
    let (dir, corpus) = corpus("texts/alike");
    let whole = dir.join("whole.parquet");
    let expected = scan_texts(&corpus, &whole, &[]);
    let jobs = scan_texts(&corpus, &dir.join("jobs.parquet"), &["--jobs", "3"]);
    assert!(jobs == expected);
    let shards: Vec<_> = (1..=7)
        .map(|i| {
            let file = dir.join(format!("shard-{i}.parquet"));
            scan_texts(&corpus, &file, &["--shard", &format!("{i}/7")]);
            file
        })
        .collect();
    let merged = dir.join("merged.parquet");
    let mut args = vec!["scan", "merge", "-o", text(&merged)];
    args.extend(shards.iter().rev().map(|shard| text(shard)));
    stdout(&args);
    assert!(with_sidecar(&merged) == expected);
    // A shard of another text is of another scan.
    let other = fs::read_to_string(&corpus)
        .expect("ours")
        .replace("boat", "frog");
    fs::write(&corpus, other).expect("a file of our own");
    scan_texts(&corpus, &shards[0], &["--shard", "1/7", "--force"]);
    check(
        &[&args[..], &["--force"]].concat(),
        1,
        &["do not belong together", "are others"],
    );

    // Parquet, with integers as names and wide texts, of which one is null.
    let column = |values: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let all = texts();
    let bodies: Vec<_> = all
        .iter()
        .map(|(.., text)| Some(&**text))
        .chain([None])
        .collect();
    let classes = all
        .iter()
        .map(|(_, class, _)| *class)
        .chain([None])
        .collect();
    let parquet = dir.join("corpus.parquet");
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..6));
    let bodies: ArrayRef = Arc::new(LargeStringArray::from(bodies));
    write_parquet(
        &parquet,
        vec![("id", ids), ("body", bodies), ("class", column(classes))],
    );
    let file = dir.join("parquet.parquet");
    let scanned = scan(&parquet, &file, &["--texts", "--text-column", "body"]);
    let said = stderr(&scanned);
    assert!(scanned.status.success(), "{said}");
    assert!(said.contains("`5` is an empty text"), "{said}");
    assert!(said.contains("skipped 1 of 6 texts"), "{said}");
    let number_of = |name: &str| all.iter().position(|(known, ..)| known == name);
    let mut expected = rows(&whole);
    for row in &mut expected {
        row.path = number_of(&row.path).expect("one of them").to_string();
    }
    expected.sort_by(|a, b| (&a.path, a.feature).cmp(&(&b.path, b.feature)));
    assert_eq!(rows(&file), expected);

    // A folder of files, and one alone.
    let files = dir.join("files");
    for (name, _, content) in &all {
        let path = files.join(format!("{name}.txt"));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of our own");
        fs::write(path, content).expect("a file of our own");
    }
    fs::write(files.join("notes.md"), "none").expect("a file of our own");
    let file = dir.join("files.parquet");
    let scanned = scan(&files, &file, &["--texts"]);
    assert!(stderr(&scanned).contains("1 .md"), "{}", stderr(&scanned));
    let mut expected = rows(&whole);
    for row in &mut expected {
        row.path.push_str(".txt");
    }
    assert_eq!(rows(&file), expected);
    let file = dir.join("file.parquet");
    scan_texts(&files.join("alone.txt"), &file, &[]);
    expected.retain(|row| row.path == "alone.txt");
    assert_eq!(rows(&file), expected);

    // Texts without names have numbers.
    let unnamed = dir.join("unnamed.ndjson");
    fs::write(
        &unnamed,
        "{\"text\": \"a boat\"}\n\n{\"text\": \"a cat\"}\n",
    )
    .expect("ours");
    let file = dir.join("unnamed.parquet");
    scan_texts(&unnamed, &file, &[]);
    let mut paths: Vec<_> = rows(&file).into_iter().map(|row| row.path).collect();
    paths.dedup();
    assert_eq!(paths, ["unnamed.ndjson:1", "unnamed.ndjson:2"]);
}

/// Lines on stdin, in which a text may begin with `<bos>` itself; several SAEs in one pass.
#[test]
fn texts_on_stdin_and_several_saes() {
    let (dir, corpus) = corpus("texts/stdin");
    let whole = dir.join("whole.parquet");
    scan_texts(&corpus, &whole, &[]);
    let mut lines = fs::read_to_string(&corpus).expect("ours");
    lines.push_str("{\"id\": \"z\", \"text\": \"<bos>a boat\"}\n");
    let file = dir.join("stdin.parquet");
    let scanned = scan_names(&dir, lines.as_bytes(), &file, &["--texts", "-q"]);
    assert!(scanned.status.success(), "{}", stderr(&scanned));
    let mut expected = rows(&whole);
    let alone = expected.iter().filter(|row| row.path == "alone");
    let mut begun: Vec<_> = alone.cloned().collect();
    begun.iter_mut().for_each(|row| row.path = "z".to_owned());
    assert!(!begun.is_empty());
    expected.extend(begun);
    assert_eq!(rows(&file), expected);

    let saes = saes(&dir);
    let both = dir.join("both.parquet");
    scan_texts(&corpus, &both, &model(&saes));
    let (of_both, tokens_of_both) = (rows(&both), tokens(&both));
    for sae in &saes {
        let alone = dir.join("alone.parquet");
        scan_texts(
            &corpus,
            &alone,
            &[&model(std::slice::from_ref(sae))[..], &["--force"]].concat(),
        );
        let id = sae.file_stem().and_then(|stem| stem.to_str());
        let of_sae = of_both.iter().zip(&tokens_of_both);
        let of_sae = of_sae.filter(|(row, _)| row.sae.as_deref() == id);
        let (of_sae, of_tokens): (Vec<_>, Vec<_>) = of_sae
            .map(|(row, token)| {
                (
                    OwnedRow {
                        sae: None,
                        ..row.clone()
                    },
                    token.clone(),
                )
            })
            .unzip();
        assert!(!of_sae.is_empty());
        assert_eq!((of_sae, of_tokens), (rows(&alone), tokens(&alone)));
    }
}

/// What is no corpus is refused with its place, and what is no text is skipped and said.
#[test]
fn bad_corpora() {
    let dir = folder("texts/bad");
    let file = dir.join("out.parquet");
    let refused = |name: &str, content: &[u8], words: &[&str]| {
        let corpus = dir.join(name);
        fs::write(&corpus, content).expect("a file of our own");
        check(
            &["scan", "--texts", "-q", text(&corpus), "-o", text(&file)],
            1,
            words,
        );
    };
    let good = "{\"id\": 1, \"text\": \"a cat\"}\n";
    let behind = |line: &str| format!("{good}{line}").into_bytes();
    let columns = [
        "entry 2: there is no column `text`",
        "hint: its columns are `body`, `id`",
    ];
    refused("a.jsonl", &behind(r#"{"id": 2, "body": "a"}"#), &columns);
    refused(
        "a.jsonl",
        &behind(r#"{"text": 5}"#),
        &["entry 2: `text` is not text"],
    );
    refused(
        "a.jsonl",
        &behind(r#"{"text": "a", "id": 1.5}"#),
        &["entry 2: `id` is not text"],
    );
    refused(
        "a.jsonl",
        &behind(r#"{"text": "a", "id": ""}"#),
        &["entry 2: the name is empty"],
    );
    refused(
        "a.jsonl",
        &behind(good),
        &["has `1` twice, in its entries 1 and 2"],
    );
    refused(
        "a.jsonl",
        &behind("[1]"),
        &["entry 2: invalid type: sequence", "hint: "],
    );
    refused(
        "a.jsonl",
        b"{\"text\": \"a \xff\"}",
        &["entry 1: ", "hint: "],
    );
    refused("a.jsonl", b"", &["no texts in"]);
    refused("a.parquet", b"no parquet", &["is not a Parquet file"]);
    refused(
        "empty.txt",
        b"",
        &["`empty.txt` is an empty text", "none of the 1 texts"],
    );
    refused(
        "latin.txt",
        b"caf\xe9",
        &["latin.txt` is not UTF-8, at byte 3", "none of the 1 texts"],
    );
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..2));
    let parquet = dir.join("b.parquet");
    write_parquet(&parquet, vec![("text", numbers)]);
    let scan_of = |input: &Path, args: &[&'static str]| {
        let args = [&["scan", "--texts", "-q"], args].concat();
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.extend([
            text(input).to_owned(),
            "-o".to_owned(),
            text(&file).to_owned(),
        ]);
        args
    };
    let refused = |input: &Path, args: &[&'static str], code, words: &[&str]| {
        let args = scan_of(input, args);
        check(
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
            code,
            words,
        );
    };
    refused(
        &parquet,
        &[],
        1,
        &["column `text` of", "of type Int64, and not text"],
    );
    let missing = ["has no column `body`", "its columns are `text`"];
    refused(&parquet, &["--text-column", "body"], 1, &missing);
    let plain = dir.join("empty.txt");
    refused(
        &plain,
        &["--text-column", "body"],
        1,
        &["has no columns", "hint: "],
    );
    refused(&dir.join("no.jsonl"), &[], 1, &["cannot read", "no.jsonl"]);
    refused(
        &folder("texts/bad/none"),
        &[],
        1,
        &["no texts in", "`.txt`"],
    );
    // Pictures and texts at once, and options of the one with the other.
    refused(
        &parquet,
        &["--manifest", "m.csv"],
        2,
        &["--texts", "--manifest"],
    );
    refused(&parquet, &["--prompt", "a"], 2, &["--texts", "--prompt"]);
    check(
        &["scan", text(&dir), "-o", text(&file), "--text-context", "8"],
        2,
        &["--texts"],
    );
    // A context has room for the text, and the model for the context.
    let good_file = dir.join("good.jsonl");
    fs::write(&good_file, good).expect("a file of our own");
    let tiny = [
        "a context of 1 tokens has no room for a text",
        "the least is 2",
    ];
    refused(&good_file, &["--text-context", "1"], 1, &tiny);
    let long = dir.join("long.txt");
    fs::write(&long, "a cat ".repeat(100)).expect("a file of our own");
    refused(&long, &["-c", "16"], 1, &["128 tokens", "hint: "]);
    assert!(
        !names(&dir)
            .iter()
            .any(|name| name.starts_with("out.parquet"))
    );

    // In a folder, only what cannot be read is skipped.
    let files = folder("texts/bad/files");
    for (name, content) in [("a.txt", &b"a cat"[..]), ("b.TXT", b""), ("c.txt", b"\xff")] {
        fs::write(files.join(name), content).expect("a file of our own");
    }
    let scanned = run(&["scan", "--texts", "-q", text(&files), "-o", text(&file)]);
    let said = stderr(&scanned);
    assert!(scanned.status.success(), "{said}");
    assert!(
        said.contains("`b.TXT` is an empty text") && said.contains("c.txt"),
        "{said}"
    );
    assert!(said.contains("skipped 2 of 3 texts"), "{said}");
    assert!(rows(&file).iter().all(|row| row.path == "a.txt"));
}

/// An interrupted scan goes on, with texts that have changed meanwhile read again.
#[cfg(unix)]
#[test]
fn interrupted_scans_of_texts() {
    use crate::scan_resume::{finished, interrupted};
    let dir = folder("texts/resume");
    let corpus = dir.join("corpus.jsonl");
    let write = |first: &str| {
        let line = |i: usize| {
            let text = if i == 0 {
                first
            } else {
                "the dog sits on the grass. a cat."
            };
            format!(
                "{}\n",
                serde_json::json!({"id": format!("{i:05}"), "text": text})
            )
        };
        fs::write(&corpus, (0..1500).map(line).collect::<String>()).expect("ours");
    };
    write("a boat");
    let file = dir.join("features.parquet");
    interrupted(&corpus, "1500 texts", &file, 2, &["--texts"]);
    assert!(finished(&file).len() >= 2);
    write("a frog");
    let scanned = scan(&corpus, &file, &["--texts", "-t", "1"]);
    let said = stderr(&scanned);
    assert!(
        said.contains("`00000` has changed") && said.contains("resuming with"),
        "{said}"
    );
    let whole = scan_texts(&corpus, &dir.join("whole.parquet"), &[]);
    assert!(with_sidecar(&file) == whole);
}
