//! `top`: its numbers against a plain computation, and files that are not what they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arrow_array::{Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use llava_sae_cpp::scan::ScanFile;
use parquet::arrow::ArrowWriter;

use crate::allocations::peak_of;
use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::scan::{OwnedRow, folder, rows, text, two_classes};

/// A scan of five pictures of three classes and one of none.
fn scanned() -> PathBuf {
    static SCANNED: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let dir = two_classes("top");
        let file = dir.join("features.parquet");
        stdout(&["scan", "-q", text(&dir), "-o", text(&file)]);
        file
    };
    SCANNED.get_or_init(make).clone()
}

fn value(row: &OwnedRow, by: &str) -> f64 {
    match by {
        "sum" => f64::from(row.sum),
        "max" => f64::from(row.max),
        _ => row.count as f64,
    }
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().expect("a number")
}

fn list<'a>(report: &'a serde_json::Value, key: &str) -> &'a Vec<serde_json::Value> {
    report[key].as_array().expect("a list")
}

#[test]
fn images_of_a_feature() {
    let file = scanned();
    let rows = rows(&file);
    for by in ["max", "sum", "count"] {
        for (name, feature) in [("carrot", 430), ("430", 430), ("MUSHROOM, straw", 363)] {
            let mut expected: Vec<_> = rows.iter().filter(|row| row.feature == feature).collect();
            expected.sort_by(|a, b| {
                let order = value(b, by).total_cmp(&value(a, by));
                order.then_with(|| a.path.cmp(&b.path))
            });
            let args = ["top", text(&file), "--feature", name, "--by", by, "--json"];
            let report = json(&[&args[..], &["--top", "3"]].concat());
            assert_eq!(report["feature"], feature);
            assert_eq!(report["by"], by);
            assert_eq!(report["n_images"], 6);
            assert_eq!(report["n_firing"], expected.len());
            let images = list(&report, "images");
            assert_eq!(images.len(), expected.len().min(3), "{name}");
            for (i, (image, row)) in images.iter().zip(expected).enumerate() {
                assert_eq!(image["rank"], i + 1);
                assert_eq!(image["path"], row.path);
                assert_eq!(image["class"].as_str(), row.class.as_deref());
                assert_eq!(number(&image["sum"]) as f32, row.sum);
                assert_eq!(number(&image["max"]) as f32, row.max);
                assert_eq!(image["count"], row.count);
                assert_eq!(report["label"].as_str(), row.label.as_deref());
            }
        }
    }
    let table = stdout(&["top", text(&file), "--feature", "carrot", "--top", "1"]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].contains("Feature 430 `carrot`: ") && lines[0].contains("of 6 images"));
    assert!(lines[2].ends_with("food/red/Carrot.PNG"), "{table}");
}

#[test]
fn features_of_a_class() {
    let file = scanned();
    let rows = rows(&file);
    for (class, n_inside) in [("vehicle", 2), ("food", 2), ("red", 1)] {
        for by in ["max", "sum", "count"] {
            let mut expected = BTreeMap::<usize, [f64; 4]>::new();
            for row in &rows {
                let entry = expected.entry(row.feature).or_default();
                let is_inside = row.class.as_deref() == Some(class);
                let (side, n_images) = if is_inside {
                    (0, n_inside)
                } else {
                    (1, 6 - n_inside)
                };
                entry[side] += value(row, by) / f64::from(n_images);
                entry[2 + side] += 1.0 / f64::from(n_images);
            }
            let args = ["top", text(&file), "--class", class, "--by", by, "--json"];
            let report = json(&[&args[..], &["--top", "1000"]].concat());
            assert_eq!(report["n_inside"], n_inside);
            assert_eq!(report["n_outside"], 6 - n_inside);
            let features = list(&report, "features");
            let n_more = expected
                .values()
                .filter(|[inside, outside, ..]| inside - outside > 1e-9);
            assert_eq!(features.len(), n_more.count(), "{class}");
            let mut last = f64::INFINITY;
            for entry in features {
                let feature = entry["feature"].as_u64().expect("an index") as usize;
                let [inside, outside, share_inside, share_outside] = expected[&feature];
                for (key, expected) in [
                    ("difference", inside - outside),
                    ("mean_inside", inside),
                    ("mean_outside", outside),
                    ("share_inside", share_inside),
                    ("share_outside", share_outside),
                ] {
                    // Both are sums in f64, in another order.
                    assert!((number(&entry[key]) - expected).abs() < 1e-9, "{key}");
                }
                let difference = number(&entry["difference"]);
                assert!(difference <= last);
                last = difference;
            }
        }
    }
    let table = stdout(&["top", text(&file), "--class", "red", "--top", "2"]);
    assert!(table.contains("images of `red` (1)"), "{table}");
    assert!(
        table.lines().count() == 5 && table.contains("  carrot\n"),
        "{table}"
    );
}

#[test]
fn questions_that_are_refused() {
    let file = scanned();
    let top = |args: &[&str], code, words: &[&str]| {
        check(&[&["top", text(&file)], args].concat(), code, words);
    };
    top(&[], 2, &["--feature", "--class"]);
    top(&["--feature", "1", "--class", "food"], 2, &["--class"]);
    top(&["--feature", "1", "--top", "0"], 2, &["--top"]);
    top(&["--feature", "1", "--by", "mean"], 2, &["--by"]);
    top(&["--feature", "768"], 1, &["768 features", "0 to 767"]);
    top(&["--feature", "-1"], 1, &["`-1`", "0 to 767"]);
    top(&["--feature", "unicorn"], 1, &["`unicorn`", "hint: "]);
    top(
        &["--feature", "e"],
        1,
        &["part of", "use one of these indices"],
    );
    top(
        &["--class", "dog"],
        1,
        &["`dog`", "`food`, `red`, `vehicle`"],
    );
    top(&["--class", ""], 1, &["no image is of class", "hint: "]);

    let dir = folder("top-one-class");
    fs::create_dir_all(dir.join("food")).expect("a folder of our own");
    fs::copy("assets/pictures/apple.png", dir.join("food/a.png")).expect("a copy");
    let alone = dir.join("alone.parquet");
    stdout(&["scan", "-q", text(&dir), "-o", text(&alone)]);
    let only = ["top", text(&alone), "--class", "food"];
    check(&only, 1, &["no others", "hint: "]);
    let none = dir.join("none.parquet");
    stdout(&["scan", "-q", text(&dir.join("food")), "-o", text(&none)]);
    let without = ["top", text(&none), "--class", "food"];
    check(&without, 1, &["no image is of class", "directly", "hint: "]);
}

#[test]
fn files_of_others() {
    let dir = folder("top-foreign");
    let top = |file: &str, words: &[&str]| check(&["top", file, "--feature", "1"], 1, words);
    top("/no/such/file", &["/no/such/file"]);
    top(text(&dir), &["no regular file"]);
    top("README.md", &["no Parquet file", "hint: "]);
    let file = dir.join("other.parquet");
    fs::write(&file, "").expect("a file of our own");
    top(text(&file), &["no Parquet file", "hint: "]);
    let schema = Schema::new(vec![Field::new("feature", DataType::Int32, false)]);
    let column = Arc::new(Int32Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_new(Arc::new(schema), vec![column]).expect("one column");
    let target = fs::File::create(&file).expect("a file of our own");
    let mut writer = ArrowWriter::try_new(target, batch.schema(), None).expect("a plain schema");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
    top(text(&file), &["was not written by", "hint: "]);
}

/// Every cut and every changed byte is an error, in little memory, and never a panic.
#[test]
fn damaged_files() {
    let bytes = fs::read(scanned()).expect("it was written");
    let file = folder("top-damaged").join("damaged.parquet");
    let refused = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("a file of our own");
        let (result, peak) = peak_of(|| ScanFile::open(&file).err());
        assert!(peak < 4 << 20, "{peak} bytes");
        result.expect("damaged").to_string()
    };
    // The metadata at the end byte by byte, and steps through all else.
    let start_of_end = bytes.len() - 4096;
    let places = (0..start_of_end)
        .step_by(97)
        .chain(start_of_end..bytes.len());
    for (i, at) in places.enumerate() {
        refused(&bytes[..at]);
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (i % 8);
        refused(&changed);
    }
    refused(&[&bytes[..], b"x"].concat());
    let huge_footer = [
        &bytes[..bytes.len() - 8],
        &[0xff, 0xff, 0xff, 0x7f],
        b"PAR1",
    ]
    .concat();
    assert!(refused(&huge_footer).contains("no Parquet file"));
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    fs::write(&file, changed).expect("a file of our own");
    let args = ["top", text(&file), "--feature", "1"];
    check(&args, 1, &["is damaged", "hint: "]);
}
