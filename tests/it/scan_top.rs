//! `top`: its numbers against a plain computation, and files that are not what they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow_array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, LargeStringArray, RecordBatch, StringArray,
};
use arrow_schema::{DataType, Field, Schema};
use llava_sae_cpp::scan::ScanFile;
use parquet::arrow::ArrowWriter;

use crate::allocations::peak_of;
use crate::bad_input::check;
use crate::command_line::{json, run, stdout, text};
use crate::scan::{OwnedRow, folder, rows, stderr, two_classes, with_sidecar};

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

pub(crate) fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().expect("a number")
}

pub(crate) fn list<'a>(report: &'a serde_json::Value, key: &str) -> &'a Vec<serde_json::Value> {
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

/// Hedges' g and the area under the ROC curve by their definitions, of a feature's values in all images.
fn effect_and_area(inside: &[f64], outside: &[f64]) -> (Option<f64>, f64) {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let squares = |values: &[f64]| -> f64 {
        let about = mean(values);
        values.iter().map(|x| (x - about).powi(2)).sum()
    };
    let freedom = (inside.len() + outside.len() - 2) as f64;
    let deviation = ((squares(inside) + squares(outside)) / freedom).sqrt();
    let cohens_d = (mean(inside) - mean(outside)) / deviation;
    let effect = (deviation > 0.0).then(|| cohens_d * (1.0 - 3.0 / (4.0 * freedom - 1.0)));
    let pair = |a: f64, b: f64| f64::from(u8::from(a > b)) + 0.5 * f64::from(u8::from(a == b));
    let pairs = inside
        .iter()
        .flat_map(|&a| outside.iter().map(move |&b| pair(a, b)));
    let area = pairs.sum::<f64>() / (inside.len() * outside.len()) as f64;
    (effect, area)
}

#[test]
fn how_far_features_tell_a_class_apart() {
    let file = scanned();
    let rows = rows(&file);
    let (n_inside, n_outside) = (2, 4);
    let values = |feature: usize, by: &str, is_inside: bool| {
        let of_feature = rows.iter().filter(|row| row.feature == feature);
        let side = of_feature.filter(|row| (row.class.as_deref() == Some("food")) == is_inside);
        let mut values: Vec<_> = side.map(|row| value(row, by)).collect();
        values.resize(if is_inside { n_inside } else { n_outside }, 0.0);
        values
    };
    let report = |by: &str, sort: &str, top: &str| {
        let args = ["top", text(&file), "--class", "food", "--by", by, "--json"];
        json(&[&args[..], &["--sort", sort, "--top", top]].concat())
    };
    for by in ["max", "sum", "count"] {
        let by_difference = report(by, "difference", "1000");
        let all = list(&by_difference, "features");
        assert!(all.len() > 20);
        for entry in all {
            let feature = entry["feature"].as_u64().expect("an index") as usize;
            let sides = [true, false].map(|is_inside| values(feature, by, is_inside));
            let (effect, area) = effect_and_area(&sides[0], &sides[1]);
            assert!((number(&entry["auroc"]) - area).abs() < 1e-12);
            match effect {
                // Both are in f64, whose rounding a small deviation makes larger.
                Some(effect) => {
                    assert!((number(&entry["effect_size"]) / effect - 1.0).abs() < 1e-9)
                }
                None => assert!(entry["effect_size"].is_null()),
            }
        }
        for (sort, key) in [("effect", "effect_size"), ("auroc", "auroc")] {
            let key = |entry: &serde_json::Value| entry[key].as_f64().unwrap_or(f64::INFINITY);
            let sorted = report(by, sort, "1000");
            assert_eq!(sorted["sort"], sort);
            let sorted = list(&sorted, "features");
            assert!(sorted.is_sorted_by(|a, b| key(a) >= key(b)), "{sort}");
            assert_eq!(sorted.len(), all.len());
            assert_ne!(sorted[0]["feature"], all[0]["feature"], "another order");
            let first = report(by, sort, "3");
            assert_eq!(list(&first, "features")[..], sorted[..3]);
        }
    }
    let table = stdout(&["top", text(&file), "--class", "food", "--sort", "auroc"]);
    assert!(table.contains("effect size  AUROC  label\n"), "{table}");
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
    top(&["--feature", "1", "--sort", "auroc"], 2, &["--class"]);
    top(&["--class", "food", "--sort", "p"], 2, &["--sort"]);
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
    top(text(&dir), &["not a regular file"]);
    top("README.md", &["not a Parquet file", "hint: "]);
    let file = dir.join("other.parquet");
    fs::write(&file, "").expect("a file of our own");
    top(text(&file), &["not a Parquet file", "hint: "]);
    let schema = Schema::new(vec![Field::new("feature", DataType::Int32, false)]);
    let column = Arc::new(Int32Array::from(vec![1, 2, 3]));
    let batch = RecordBatch::try_new(Arc::new(schema), vec![column]).expect("one column");
    let target = fs::File::create(&file).expect("a file of our own");
    let mut writer = ArrowWriter::try_new(target, batch.schema(), None).expect("a plain schema");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
    top(
        text(&file),
        &["no column `path`, `class`, `label`", "hint: "],
    );
}

/// Writes rows as programs of dataframes do: any order of columns, wide types, columns of their own.
pub(crate) fn rewrite(target: &Path, rows: &[OwnedRow]) {
    let texts = |text: fn(&OwnedRow) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(text).collect::<LargeStringArray>())
    };
    let ints = |int: fn(&OwnedRow) -> usize| -> ArrayRef {
        Arc::new(
            rows.iter()
                .map(|row| int(row) as i64)
                .collect::<Int64Array>(),
        )
    };
    let floats = |float: fn(&OwnedRow) -> f32| -> ArrayRef {
        let values = rows.iter().map(|row| f64::from(float(row)));
        Arc::new(values.collect::<Float64Array>())
    };
    let mut columns = vec![
        ("max", floats(|row| row.max)),
        ("__index_level_0__", ints(|row| row.count)),
        ("path", texts(|row| Some(&row.path))),
        ("feature", ints(|row| row.feature)),
        ("count", ints(|row| row.count)),
        ("label", texts(|row| row.label.as_deref())),
        ("class", texts(|row| row.class.as_deref())),
        ("sum", floats(|row| row.sum)),
    ];
    if rows.iter().any(|row| row.sae.is_some()) {
        columns.insert(1, ("sae", texts(|row| row.sae.as_deref())));
    }
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let target = fs::File::create(target).expect("a file of our own");
    let mut writer = ArrowWriter::try_new(target, batch.schema(), None).expect("a plain schema");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
}

/// What another program has made of a table is read, and what it cannot tell is said.
#[test]
fn tables_that_others_have_rewritten() {
    let dir = folder("top-rewritten");
    let of_scan = rows(&scanned());
    let filtered: Vec<_> = of_scan
        .iter()
        .filter(|row| row.path != "food/apple.png" && row.max > 1.0)
        .cloned()
        .collect();
    let alone = dir.join("filtered.parquet");
    rewrite(&alone, &filtered);
    assert_eq!(rows(&alone), filtered);
    // In place, beside the sidecar of the scan.
    let in_place = dir.join("features.parquet");
    fs::copy(
        scanned().with_extension("parquet.json"),
        dir.join("features.parquet.json"),
    )
    .expect("a copy");
    rewrite(&in_place, &filtered);
    // As the scan wrote it, and taken away from its sidecar.
    let moved = dir.join("moved.parquet");
    fs::copy(scanned(), &moved).expect("a copy");
    for (file, rows, reason) in [
        (&alone, &filtered, "there is no `"),
        (&in_place, &filtered, "another program has written"),
        (&moved, &of_scan, "there is no `"),
    ] {
        let of_feature = |feature| rows.iter().filter(move |row| row.feature == feature);
        let n_firing = of_feature(430).count();
        let output = run(&["top", "-q", text(file), "--feature", "carrot", "--json"]);
        let said = stderr(&output);
        assert!(
            said.contains(reason) && said.contains("is not known"),
            "{said}"
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert!(report["n_images"].is_null());
        assert_eq!(report["n_firing"], n_firing);
        assert_eq!(list(&report, "images").len(), n_firing);
        let table = stdout(&["top", text(file), "--feature", "430"]);
        assert!(
            table.contains(&format!(": {n_firing} images activate it")),
            "{table}"
        );

        let images = |class: &str| {
            let of_class = rows
                .iter()
                .filter(|row| row.class.as_deref() == Some(class));
            let paths: std::collections::BTreeSet<_> = of_class.map(|row| &row.path).collect();
            paths.len()
        };
        let report = json(&["top", text(file), "--class", "food", "--json"]);
        assert_eq!(report["counts_known"], false);
        assert_eq!(report["n_inside"], images("food"));
        let first = &list(&report, "features")[0];
        let feature = first["feature"].as_u64().expect("an index") as usize;
        let inside = of_feature(feature).filter(|row| row.class.as_deref() == Some("food"));
        let sum: f64 = inside.map(|row| value(row, "max")).sum();
        let mean = sum / images("food") as f64;
        assert!((number(&first["mean_inside"]) - mean).abs() < 1e-9);
    }
    let known = json(&["top", text(&scanned()), "--class", "food", "--json"]);
    assert_eq!(known["counts_known"], true);
    check(
        &["top", text(&alone), "--class", "dog"],
        1,
        &["`dog`", "`food`, `red`, `vehicle`"],
    );
    // Through a link, a table has the sidecar of what the link leads to.
    #[cfg(unix)]
    {
        let link = dir.join("link.parquet");
        std::os::unix::fs::symlink(scanned(), &link).expect("a link");
        let report = json(&["top", text(&link), "--feature", "430", "--json"]);
        assert_eq!(report["n_images"], 6);
    }
}

/// Columns that hold something else, and rows without values.
#[test]
fn columns_that_are_refused() {
    let dir = folder("top-columns");
    let file = dir.join("f.parquet");
    let path = text(&file);
    let refused = |name: &str, column: ArrayRef, words: &[&str]| {
        let text = |text: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let int: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let columns = [
            ("path", text(Some("a.png"))),
            ("class", text(None)),
            ("feature", Arc::clone(&int)),
            ("label", text(None)),
            ("sum", Arc::clone(&int)),
            ("max", Arc::clone(&int)),
            ("count", int),
        ]
        .map(|(other, right)| {
            (
                other,
                if other == name {
                    Arc::clone(&column)
                } else {
                    right
                },
            )
        });
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let target = fs::File::create(&file).expect("a file of our own");
        let mut writer = ArrowWriter::try_new(target, batch.schema(), None).expect("plain");
        writer.write(&batch).expect("written");
        writer.close().expect("written");
        check(&["top", path, "--feature", "1"], 1, words);
    };
    let ints = |int: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![int])) };
    refused("feature", ints(-1), &["a row of feature -1"]);
    refused("feature", ints(1 << 40), &["column `feature`"]);
    refused(
        "count",
        Arc::new(Int64Array::from(vec![None])),
        &["without `count`", "hint: "],
    );
    let words: ArrayRef = Arc::new(StringArray::from(vec!["much"]));
    refused("max", words, &["column `max`"]);
}

/// Every cut and every changed byte is an error, in little memory, and never a panic.
#[test]
fn damaged_files() {
    let [bytes, sidecar] = with_sidecar(&scanned());
    let file = folder("top-damaged").join("damaged.parquet");
    fs::write(file.with_extension("parquet.json"), &sidecar).expect("a file of our own");
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
    assert!(refused(&huge_footer).contains("is damaged"));
    let mut changed = bytes.clone();
    changed[bytes.len() / 2] ^= 1;
    fs::write(&file, changed).expect("a file of our own");
    let args = ["top", text(&file), "--feature", "1"];
    check(&args, 1, &["is damaged", "hint: "]);

    // A sidecar that is damaged, of another version, or another scan's.
    fs::write(&file, &bytes).expect("a file of our own");
    let sidecar = String::from_utf8(sidecar).expect("JSON");
    let beside = file.with_extension("parquet.json");
    for (from, to, word) in [
        ("\"format\": 2", "\"format\": 9", "another version"),
        ("{", "[", "is damaged"),
        ("\"d_sae\"", "\"d\"", "is damaged"),
        ("\"blake3\": \"", "\"blake3\": \"0", "the checksums differ"),
    ] {
        fs::write(&beside, sidecar.replacen(from, to, 1)).expect("a file of our own");
        check(&args, 1, &[word, "hint: "]);
    }
    fs::write(&beside, &sidecar).expect("a file of our own");
    assert!(!stdout(&args).is_empty());
}

/// Without a sidecar, damage may go unseen, but it never ends in a panic, and takes little memory.
#[test]
fn damaged_files_without_a_sidecar() {
    let bytes = fs::read(scanned()).expect("it was written");
    let file = folder("top-unchecked").join("damaged.parquet");
    let mut n_refused = 0;
    let mut read = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("a file of our own");
        let (result, peak) = peak_of(|| {
            let opened = ScanFile::open(&file)?;
            opened.for_each_row(&mut |_| Ok(()))
        });
        assert!(peak < 64 << 20, "{peak} bytes");
        n_refused += usize::from(result.is_err());
    };
    let start_of_end = bytes.len() - 4096;
    let places = (0..start_of_end)
        .step_by(97)
        .chain(start_of_end..bytes.len());
    for (i, at) in places.enumerate() {
        read(&bytes[..at]);
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (i % 8);
        read(&changed);
    }
    assert!(n_refused > 4500, "{n_refused}");
}
