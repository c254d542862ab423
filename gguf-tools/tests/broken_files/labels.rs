//! Labels: JSON arrays and lines, plain and gzipped.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::Expected::{Either, Refused};
use crate::{Reader, copy, faults, sae};

fn gzipped(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Runs `check` with a reader of labels.
fn with_reader(check: impl FnOnce(&Reader)) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy("saes/saelens-3-standard", dir.path());
    let file = dir.path().join("labels");
    check(&Reader {
        file: file.clone(),
        read: &|| sae::convert(&source, vec![file.clone()]),
    });
}

#[test]
fn arrays_lines_and_gzip() {
    with_reader(check_arrays_lines_and_gzip);
}

fn check_arrays_lines_and_gzip(reader: &Reader) {
    let label = json!({"modelId": "m", "layer": "1-res", "index": "3", "description": "dogs"});
    let lines = format!("{label}\n{}\n", json!({"index": 4, "description": "é"}));
    let array = format!("[{label}]");
    for right in [
        array.as_bytes(),
        lines.as_bytes(),
        &gzipped(lines.as_bytes()),
    ] {
        reader.check_right(right);
        // A file of lines may end behind any of them, and nothing labels nothing.
        let check = &mut |fault: &str, bytes: &[u8], _| reader.check(fault, bytes, Either);
        faults::cut(right, 0..right.len(), check);
        faults::overwrite(right, 0..right.len(), check);
    }
    for (start, end) in [("", ""), ("[", "]")] {
        faults::json(&label, &mut |fault, bytes, _| {
            let bytes = [start.as_bytes(), bytes, end.as_bytes()].concat();
            reader.check(fault, &bytes, Either);
        });
    }
}

/// Some hundred kilobytes that unpack to a thousand times that.
#[test]
fn bombs() {
    with_reader(check_bombs);
}

fn check_bombs(reader: &Reader) {
    let long = "x".repeat(70 << 20);
    for (start, end) in [
        ("{\"index\": 3, \"description\": \"", "\"}"),
        ("{\"index\": 3, \"more\": \"", "\"}"),
        ("[{\"", "\": 1}]"),
        ("\"", "\""),
    ] {
        let bomb = [start, &long, end].concat();
        reader.check("one long text", &gzipped(bomb.as_bytes()), Refused);
    }
    reader.check("white space", &gzipped(&vec![b' '; 70 << 20]), Refused);
    let elements = "[],".repeat(20 << 20);
    let bomb = format!("{{\"index\": [{elements}0]}}");
    reader.check("many elements", &gzipped(bomb.as_bytes()), Refused);

    let text = "y".repeat(900_000);
    let labels: Vec<String> = (0..40)
        .map(|i| format!("{{\"index\": {i}, \"description\": \"{text}\"}}"))
        .collect();
    reader.check(
        "many long labels",
        &gzipped(labels.join("\n").as_bytes()),
        Refused,
    );
    let small = "{\"index\": 3}".repeat(4 << 20);
    reader.check("many labels", &gzipped(small.as_bytes()), Either);
}
