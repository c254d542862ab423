//! `scan --worker`: an answer for each line, whatever is in it.

use std::fs;
use std::io::{BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::bad_input::check;
use crate::command_line::{names, program, text};
#[cfg(target_os = "linux")]
use crate::fixture::Fixture;
use crate::scan::{OwnedRow, folder, rows, scan, stderr, two_classes};

/// A worker in `dir`, its stdin, and its stream of answers.
pub(crate) fn worker(
    dir: &Path,
    args: &[&str],
) -> (Child, ChildStdin, StreamReader<BufReader<ChildStdout>>) {
    let mut child = program()
        .current_dir(dir)
        .args(["scan", "--worker", "-t", "1"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let stdin = child.stdin.take().expect("it is piped");
    let stdout = child.stdout.take().expect("it is piped");
    let answers = StreamReader::try_new_buffered(stdout, None).expect("a schema");
    (child, stdin, answers)
}

/// The rows of an answer, and what it says is wrong.
pub(crate) fn answer(batch: &RecordBatch, input: i64) -> Result<Vec<OwnedRow>, String> {
    let column = |name: &str| batch.column_by_name(name).expect("it is there");
    let text = |name: &str| column(name).as_string::<i32>().clone();
    let int = |name: &str| column(name).as_primitive::<Int32Type>().clone();
    let float = |name: &str| column(name).as_primitive::<Float32Type>().clone();
    let numbers = column("input").as_primitive::<Int64Type>();
    assert!(numbers.values().iter().all(|number| *number == input));
    let error = text("error");
    if error.null_count() < error.len() {
        assert_eq!(batch.num_rows(), 1);
        let names = ["feature", "label", "sum", "max", "count"];
        assert!(names.iter().all(|name| column(name).is_null(0)));
        return Err(error.value(0).to_owned());
    }
    let optional = |name: &str, i| {
        let column = text(name);
        column.is_valid(i).then(|| column.value(i).to_owned())
    };
    let row = |i| OwnedRow {
        path: text("path").value(i).to_owned(),
        class: optional("class", i),
        sae: batch
            .column_by_name("sae")
            .map(|_| text("sae").value(i).to_owned()),
        feature: int("feature").value(i) as usize,
        label: optional("label", i),
        sum: float("sum").value(i),
        max: float("max").value(i),
        count: int("count").value(i) as usize,
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Paths and pictures, one after another, each answered before the next is asked: the rows are those of a scan.
#[test]
fn answers_are_the_rows_of_a_scan() {
    let dir = two_classes("worker/pictures");
    let whole = folder("worker/out").join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q", "-t", "1"]).status.success());
    let of_scan = rows(&whole);
    let before = names(&dir);
    let (child, mut stdin, mut answers) = worker(&dir, &[]);
    let metadata = answers.schema().metadata().clone();
    let settings: serde_json::Value = serde_json::from_str(&metadata["settings"]).expect("JSON");
    let sidecar = fs::read(whole.with_extension("parquet.json")).expect("it was written");
    let sidecar: serde_json::Value = serde_json::from_slice(&sidecar).expect("JSON");
    assert_eq!(settings, sidecar["settings"]);
    assert_eq!(
        metadata["computed_by"],
        sidecar["computed_by"][0].as_str().expect("text")
    );

    let data = BASE64_STANDARD.encode(fs::read(dir.join("food/apple.png")).expect("a picture"));
    let named = |name: &str, class: Option<&str>| -> Vec<OwnedRow> {
        let mut rows = of_scan.clone();
        rows.retain(|row| row.path == name);
        for row in &mut rows {
            row.class = class.map(str::to_owned);
        }
        rows
    };
    let mut as_data = named("food/apple.png", Some("fruit"));
    as_data
        .iter_mut()
        .for_each(|row| row.path = "db/1".to_owned());
    let questions = [
        (
            "food/apple.png".to_owned(),
            named("food/apple.png", Some("food")),
        ),
        ("./guitar.png\r".to_owned(), named("guitar.png", None)),
        (
            r#"{"path": "vehicle/boat.png", "class": null}"#.to_owned(),
            named("vehicle/boat.png", None),
        ),
        (
            r#" {"path": "x"}"#.trim_start().replace('x', "food/doughnut.png"),
            named("food/doughnut.png", Some("food")),
        ),
        (
            format!(r#"{{"path": "db/1", "class": "fruit", "data": "{data}"}}"#),
            as_data,
        ),
    ];
    for (i, (question, expected)) in questions.iter().enumerate() {
        stdin.write_all(question.as_bytes()).expect("it reads");
        stdin.write_all(b"\n").expect("it reads");
        let batch = answers.next().expect("an answer").expect("a batch");
        assert_eq!(
            answer(&batch, i as i64).as_ref(),
            Ok(expected),
            "{question:.60}"
        );
        assert!(!expected.is_empty());
    }
    drop(stdin);
    assert!(answers.next().is_none());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(&dir), before, "it writes no file");
}

/// What cannot be answered is answered so, at its place, and the next line as ever.
#[test]
fn broken_lines_are_answered() {
    let dir = two_classes("worker-broken");
    fs::write(dir.join("half.png"), "broken").expect("a file of our own");
    let data = BASE64_STANDARD.encode("no picture");
    let no_picture = format!(r#"{{"path": "x.png", "data": "{data}"}}"#);
    let lines: [(&[u8], Option<&str>, &str); 11] = [
        (b"", None, "the path is empty"),
        (b"no.png", Some("no.png"), "cannot read `./no.png`"),
        (b"half.png", Some("half.png"), "half.png"),
        (b"food", Some("food"), "it is not a file"),
        (
            b"{\"path\": \"a.png\"",
            None,
            "the line cannot be read: EOF",
        ),
        (
            b"{\"path\": 5}",
            None,
            "invalid type: integer `5`, expected a string",
        ),
        (
            b"{\"path\": \"a.png\", \"label\": \"x\"}",
            None,
            "unknown field `label`",
        ),
        (b"{\"class\": \"x\"}", None, "missing field `path`"),
        (
            b"{\"path\": \"a.png\", \"data\": \"?\"}",
            None,
            "`data` is not base64",
        ),
        (no_picture.as_bytes(), Some("x.png"), "x.png"),
        (b"\xff\xfe.png", None, ".png"),
    ];
    let (child, mut stdin, mut answers) = worker(&dir, &[]);
    // All at once, each with a good line behind it, and none behind the last.
    for (line, ..) in lines {
        stdin.write_all(line).expect("it reads");
        stdin.write_all(b"\nguitar.png\n").expect("it reads");
    }
    stdin.write_all(b"guitar.png").expect("it reads");
    drop(stdin);
    for (i, (line, path, word)) in lines.into_iter().enumerate() {
        let input = 2 * i as i64;
        let batch = answers.next().expect("an answer").expect("a batch");
        let said = answer(&batch, input).expect_err("it cannot be read");
        assert!(said.contains(word), "{line:?}: {said}");
        let column = batch.column_by_name("path").expect("it is there");
        let column = column.as_string::<i32>();
        if let Some(path) = path {
            assert_eq!(column.value(0), path);
        }
        let batch = answers.next().expect("an answer").expect("a batch");
        let rows = answer(&batch, input + 1).expect("rows");
        assert!(rows.iter().all(|row| row.path == "guitar.png") && !rows.is_empty());
    }
    let batch = answers.next().expect("an answer").expect("a batch");
    assert!(answer(&batch, 2 * lines.len() as i64).is_ok_and(|rows| !rows.is_empty()));
    assert!(answers.next().is_none());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", stderr(&output));
}

/// A picture whose prompt does not fit, which other pictures' may.
#[test]
fn a_small_context_is_answered() {
    let dir = two_classes("worker-context");
    let (child, mut stdin, mut answers) = worker(&dir, &["-c", "16"]);
    stdin.write_all(b"guitar.png\nno.png\n").expect("it reads");
    drop(stdin);
    for (input, word) in [(0, "78 tokens"), (1, "no.png")] {
        let batch = answers.next().expect("an answer").expect("a batch");
        let said = answer(&batch, input).expect_err("there is no room for it");
        assert!(said.contains(word), "{said}");
    }
    assert!(child.wait_with_output().expect("it ends").status.success());
}

/// A worker ends when nobody reads its answers, at once when it is told to, and takes nothing that it would ignore.
#[test]
fn workers_that_end() {
    let dir = two_classes("worker-ends");
    let (child, mut stdin, answers) = worker(&dir, &["-q"]);
    drop(answers);
    for _ in 0..3 {
        // It may have ended by then.
        let _ = stdin.write_all(b"guitar.png\n");
    }
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
    #[cfg(unix)]
    {
        let (mut child, stdin, answers) = worker(&dir, &[]);
        crate::bad_input::send("TERM", &child);
        let status = child.wait().expect("it ends, with its stdin still open");
        assert!(!status.success());
        drop((stdin, answers));
    }
    let refused = |args: &[&str], word: &str| {
        check(&[&["scan", "--worker"], args].concat(), 2, &[word]);
    };
    refused(&["-o", "f.parquet"], "--output");
    refused(&[text(&dir)], "DIR");
    refused(&["--shard", "1/2"], "--shard");
    refused(&["--jobs", "2"], "--jobs");
}

/// What a worker holds in memory does not grow with what it has answered; `scripts/check-worker.sh` asks 20,000 times.
#[cfg(target_os = "linux")]
#[test]
fn a_workers_memory_stays() {
    let dir = folder("worker-memory");
    let names = Fixture::Demo.picture_names();
    for name in &names {
        fs::copy(Fixture::Demo.picture(name), dir.join(name)).expect("a copy");
    }
    let (child, mut stdin, mut answers) = worker(&dir, &["--image-cache", "0"]);
    let mut ask = |n_rounds: usize| {
        for name in (0..n_rounds).flat_map(|_| &names) {
            let data = BASE64_STANDARD.encode(fs::read(dir.join(name)).expect("a picture"));
            let line = format!("{name}\n{{\"path\": \"{name}\", \"data\": \"{data}\"}}\n{{\n");
            stdin.write_all(line.as_bytes()).expect("it reads");
            for is_answered in [true, true, false] {
                let batch = answers.next().expect("an answer").expect("a batch");
                let error = batch.column_by_name("error").expect("it is there");
                assert_eq!(error.is_null(0), is_answered);
            }
        }
        let statm = fs::read_to_string(format!("/proc/{}/statm", child.id())).expect("Linux");
        let pages = statm.split(' ').nth(1).expect("resident pages");
        pages.parse::<f64>().expect("a number")
    };
    let warm = ask(3);
    let later = ask(6);
    assert!(later < 1.03 * warm, "{warm} and {later} pages");
    drop(stdin);
    assert!(child.wait_with_output().expect("it ends").status.success());
}
