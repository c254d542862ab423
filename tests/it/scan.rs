//! `scan`: what it writes, and what it refuses.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::scan::ScanFile;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::bad_input::check;
use crate::command_line::{json, names, run, text};
use crate::fixture::{Fixture, temporary_root};
use crate::scan_top::{list, number};

/// A row of the table, owned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnedRow {
    pub(crate) path: String,
    pub(crate) class: Option<String>,
    pub(crate) sae: Option<String>,
    pub(crate) feature: usize,
    pub(crate) label: Option<String>,
    pub(crate) sum: f32,
    pub(crate) max: f32,
    pub(crate) count: usize,
}

pub(crate) fn rows(file: &Path) -> Vec<OwnedRow> {
    let file = ScanFile::open(file).expect("a whole file");
    let mut rows = Vec::new();
    file.for_each_row(&mut |row| {
        rows.push(OwnedRow {
            path: row.path.to_owned(),
            class: row.class.map(str::to_owned),
            sae: row.sae.map(str::to_owned),
            feature: row.active.feature,
            label: row.label.map(str::to_owned),
            sum: row.active.sum,
            max: row.active.max,
            count: row.active.count,
        });
        Ok(())
    })
    .expect("readable");
    assert_eq!(rows.len() as u64, file.n_rows());
    rows
}

/// The bytes of a table and its sidecar.
pub(crate) fn with_sidecar(table: &Path) -> [Vec<u8>; 2] {
    [table.to_owned(), table.with_extension("parquet.json")]
        .map(|path| fs::read(path).expect("it was written"))
}

/// A new folder of this name, below that of the test run.
pub(crate) fn folder(name: &str) -> PathBuf {
    let dir = temporary_root().join("scan").join(name);
    fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

pub(crate) fn add(picture: &str, dir: &Path, to: &str) {
    let target = dir.join(to);
    fs::create_dir_all(target.parent().expect("it is in a folder")).expect("a folder of our own");
    let source = Path::new("tests/fixtures/demo/pictures").join(picture);
    fs::copy(source, target).expect("a copy");
}

/// Pictures of two classes, one of none, and files that are no pictures.
pub(crate) fn two_classes(name: &str) -> PathBuf {
    let dir = folder(name);
    add("00.png", &dir, "food/apple.png");
    add("08.png", &dir, "food/red/Carrot.PNG");
    add("11.png", &dir, "food/doughnut.png");
    add("01.png", &dir, "vehicle/airplane.png");
    add("02.png", &dir, "vehicle/boat.png");
    add("10.png", &dir, "guitar.png");
    fs::write(dir.join("food/notes.txt"), "no picture").expect("a file of our own");
    dir
}

pub(crate) fn scan(dir: &Path, output: &Path, args: &[&str]) -> Output {
    run(&[&["scan", text(dir), "-o", text(output)], args].concat())
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The rows of a picture or a text by what `features` prints with `args`.
pub(crate) fn rows_by_features(
    path: &str,
    class: Option<&str>,
    args: &[&str],
) -> impl Iterator<Item = OwnedRow> {
    let mut rows = BTreeMap::<u64, OwnedRow>::new();
    for pool in ["sum", "max", "count"] {
        let features = ["features", "--json", "--rank", "activation"];
        let report = json(&[&features[..], &["--top", "768", "--pool", pool], args].concat());
        for entry in list(&report, "features") {
            let feature = entry["feature"].as_u64().expect("an index");
            let row = rows.entry(feature).or_insert_with(|| OwnedRow {
                path: path.to_owned(),
                class: class.map(str::to_owned),
                sae: None,
                feature: feature as usize,
                label: entry["label"].as_str().map(str::to_owned),
                sum: 0.0,
                max: 0.0,
                count: 0,
            });
            let score = number(&entry["score"]) as f32;
            match pool {
                "sum" => row.sum = score,
                "max" => row.max = score,
                _ => row.count = score as usize,
            }
        }
    }
    rows.into_values()
}

/// Each value of each row is what `features` prints for the same picture.
#[test]
fn rows_are_what_features_says() {
    let dir = two_classes("contents");
    let file = dir.join("features.parquet");
    let output = scan(&dir, &file, &["-q"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
    let rows = rows(&file);
    let classes = [
        ("food/apple.png", Some("food")),
        ("food/doughnut.png", Some("food")),
        ("food/red/Carrot.PNG", Some("red")),
        ("guitar.png", None),
        ("vehicle/airplane.png", Some("vehicle")),
        ("vehicle/boat.png", Some("vehicle")),
    ];
    let mut expected = Vec::new();
    for (path, class) in classes {
        let picture = dir.join(path);
        expected.extend(rows_by_features(path, class, &[text(&picture)]));
    }
    assert!(expected.len() > 300, "{}", expected.len());
    assert_eq!(rows, expected);

    // The schema is what the help says, and only what a finished file needs is beside it.
    let opened = fs::File::open(&file).expect("it was written");
    let metadata = ArrowReaderMetadata::load(&opened, Default::default()).expect("a valid file");
    let fields: Vec<_> = metadata
        .schema()
        .fields()
        .iter()
        .map(|field| {
            format!(
                "{} {} {}",
                field.name(),
                field.data_type(),
                field.is_nullable()
            )
        })
        .collect();
    let expected = [
        "path Utf8 false",
        "class Utf8 true",
        "feature Int32 false",
        "label Utf8 true",
        "sum Float32 false",
        "max Float32 false",
        "count Int32 false",
    ];
    assert_eq!(fields, expected);
    let opened = ScanFile::open(&file).expect("a whole file");
    let contents = opened.contents().expect("its sidecar is there");
    assert_eq!(contents.n_images(), 6);
    assert_eq!(contents.classes.len(), 4);
    let [bytes, sidecar] = with_sidecar(&file);
    let json: serde_json::Value = serde_json::from_slice(&sidecar).expect("JSON");
    assert_eq!(json["table"]["n_bytes"], bytes.len());
    let hash = blake3::hash(&bytes).to_hex();
    assert_eq!(json["table"]["blake3"], hash.as_str());
    let classes = serde_json::json!([
        {"class": null, "n_images": 1}, {"class": "food", "n_images": 2},
        {"class": "red", "n_images": 1}, {"class": "vehicle", "n_images": 2},
    ]);
    assert_eq!(json["classes"], classes);
    assert_eq!(json["settings"]["prompt"], "Describe the image.");
    let dir_name = text(&dir).as_bytes();
    for bytes in [&bytes, &sidecar] {
        let mut windows = bytes.windows(dir_name.len());
        assert!(
            !windows.any(|window| window == dir_name),
            "no machine's path"
        );
    }
    assert!(!names(&dir).contains(&"features.parquet.parts".to_owned()));

    for jobs in ["2", "3", "100"] {
        let other = dir.join(format!("{jobs}.parquet"));
        let output = scan(&dir, &other, &["--jobs", jobs]);
        assert!(output.status.success(), "{}", stderr(&output));
        let expected = [bytes.clone(), sidecar.clone()];
        assert!(with_sidecar(&other) == expected, "{jobs} jobs");
    }
}

#[test]
fn broken_pictures_are_reported_and_skipped() {
    let dir = two_classes("broken");
    let (whole, file) = (dir.join("whole.parquet"), dir.join("features.parquet"));
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    let bytes = fs::read("assets/pictures/apple.png").expect("a committed file");
    fs::write(dir.join("food/half.png"), &bytes[..bytes.len() / 2]).expect("a file of our own");
    fs::write(dir.join("a.jpg"), "").expect("a file of our own");
    let strip = image::RgbImage::new(2, 400);
    strip.save(dir.join("strip.png")).expect("saved");
    // What is missing is said, whatever else is not.
    for args in [&["--jobs", "1"][..], &["--jobs", "2"], &["-q"]] {
        let output = scan(&dir, &file, &[args, &["--force"]].concat());
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let lines: Vec<_> = stderr
            .lines()
            .filter(|line| line.starts_with("warning: "))
            .collect();
        assert_eq!(lines.len(), 4, "{stderr}");
        assert!(lines[0].contains("skipped: ") && lines[0].contains("a.jpg"));
        assert!(lines[1].contains("food/half.png"), "{stderr}");
        assert!(lines[2].contains("strip.png") && lines[2].contains("2 × 400"));
        assert!(lines[3].contains("skipped 3 of 9 pictures"), "{stderr}");
        assert_eq!(rows(&file), rows(&whole));
        let opened = ScanFile::open(&file).expect("a whole file");
        let contents = opened.contents().expect("its sidecar is there");
        assert_eq!(contents.n_skipped, 3);
        assert_eq!(contents.n_images(), 6);
    }
}

#[test]
fn scans_that_are_refused() {
    let dir = folder("refused");
    let pictures = two_classes("refused/pictures");
    let file = dir.join("features.parquet");
    let refused = |dir: &Path, output: &Path, words: &[&str]| {
        check(&["scan", text(dir), "-o", text(output)], 1, words);
    };
    refused(&dir.join("missing"), &file, &["cannot read", "missing"]);
    refused(&pictures.join("guitar.png"), &file, &["guitar.png"]);
    let empty = folder("refused/empty");
    fs::write(empty.join("notes.txt"), "no picture").expect("a file of our own");
    refused(&empty, &file, &["no pictures in", "hint: ", "jpg"]);
    refused(&pictures, &dir.join("no/such/file"), &["no/such"]);
    refused(&pictures, &dir, &["it is a folder", "hint: "]);
    let picture = pictures.join("guitar.png");
    check(
        &["scan", text(&pictures), "-o", text(&picture), "--force"],
        1,
        &["it is an input", "hint: "],
    );
    check(&["scan", text(&pictures)], 2, &["--output"]);
    let zero = ["scan", text(&pictures), "-o", text(&file), "--jobs", "0"];
    check(&zero, 2, &["--jobs"]);
    let in_a_small_context = ["scan", text(&pictures), "-o", text(&file), "-c", "16"];
    check(&in_a_small_context, 1, &["78 tokens", "hint: "]);
    let unmarked = ["scan", text(&pictures), "-o", text(&file), "--raw-prompt"];
    check(&unmarked, 1, &["<image>", "hint: "]);
    let demo = Fixture::Demo.converted(TensorType::F32);
    let (model, sae) = (demo.join("model-f32.gguf"), demo.join("sae.gguf"));
    let blind = ["-m", text(&model), "--sae", text(&sae)];
    let blind = [&["scan", text(&pictures), "-o", text(&file)], &blind[..]].concat();
    check(&blind, 1, &["no projector", "hint: "]);

    let broken = folder("refused/broken");
    fs::write(broken.join("a.png"), "broken").expect("a file of our own");
    fs::write(broken.join("b.jpg"), "broken").expect("a file of our own");
    refused(
        &broken,
        &file,
        &["a.png", "b.jpg", "none of the 2 pictures", "hint: "],
    );
    assert_eq!(names(&dir), ["broken", "empty", "pictures"]);

    fs::write(&file, "mine").expect("a file of our own");
    refused(&pictures, &file, &["features.parquet", "--force"]);
    assert_eq!(fs::read(&file).expect("still there"), b"mine");
    assert!(scan(&pictures, &file, &["-q", "--force"]).status.success());
    assert!(!rows(&file).is_empty());

    // A file of the user's in the sidecar's place is not overwritten; a sidecar without its table is.
    let alone = dir.join("alone.parquet");
    let beside = dir.join("alone.parquet.json");
    fs::write(&beside, "{}").expect("a file of our own");
    refused(&pictures, &alone, &["alone.parquet.json", "--force"]);
    assert_eq!(fs::read(&beside).expect("still there"), b"{}");
    fs::copy(dir.join("features.parquet.json"), &beside).expect("a copy");
    assert!(scan(&pictures, &alone, &["-q"]).status.success());
    assert!(with_sidecar(&alone) == with_sidecar(&file));
}

/// A scan on a full disk, played by a limit on file sizes, as the shell sets it (in blocks of 512 bytes).
#[cfg(unix)]
pub(crate) fn scan_with_limit(limit: &str, dir: &Path, output: &Path, args: &str) -> Output {
    let command = format!(
        "trap '' XFSZ; ulimit -f {limit}; exec '{}' scan '{}' -o '{}' {args}",
        env!("CARGO_BIN_EXE_llava-sae-cpp"),
        dir.display(),
        output.display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.current_dir(env!("CARGO_MANIFEST_DIR"));
    shell.env("XDG_CACHE_HOME", temporary_root().join("cache"));
    shell.args(["-c", &command]).output().expect("a shell")
}

#[cfg(unix)]
#[test]
fn no_room_for_a_scan() {
    let dir = two_classes("full/pictures");
    let out = folder("full/out");
    let file = out.join("f.parquet");
    let model = Fixture::Demo.converted(TensorType::F32);
    let model = format!("-d '{}'", model.display());
    let output = scan_with_limit("8", &dir, &file, &model);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot write"), "{said}");
    assert!(names(&out).is_empty(), "{:?}", names(&out));
    let output = scan_with_limit("unlimited", &dir, &file, &model);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(names(&out), ["f.parquet", "f.parquet.json"]);
}
