//! `scan` that stops, and goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use gguf_tools::gguf::TensorType;

use crate::bad_input::{check, send};
use crate::command_line::{names, program, text};
use crate::fixture::Fixture;
use crate::scan::{
    OwnedRow, folder, rows, scan, scan_with_limit, stderr, two_classes, with_sidecar,
};

/// 12 × 16 pictures and one that is broken, which make four parts.
pub(crate) fn many(name: &str) -> PathBuf {
    let dir = folder(name);
    for class in "abcdefghijkl".chars() {
        let class_dir = dir.join(class.to_string());
        fs::create_dir_all(&class_dir).expect("a folder of our own");
        for name in Fixture::Demo.picture_names() {
            fs::copy(Fixture::Demo.picture(&name), class_dir.join(name)).expect("a copy");
        }
    }
    fs::write(dir.join("a/99.png"), "broken").expect("a file of our own");
    dir
}

/// The folder of a file's parts.
fn parts_of(file: &Path) -> PathBuf {
    file.with_extension("parquet.parts")
}

/// Names of finished parts.
pub(crate) fn finished(file: &Path) -> Vec<String> {
    let parts = parts_of(file);
    let names = if parts.is_dir() {
        names(&parts)
    } else {
        Vec::new()
    };
    names
        .into_iter()
        .filter(|name| name.ends_with(".parquet"))
        .collect()
}

/// Starts a scan of so many items, sends it Ctrl-C when it has finished this many parts, and checks what it leaves.
pub(crate) fn interrupted(dir: &Path, items: &str, file: &Path, n_parts: usize, args: &[&str]) {
    let mut child = program()
        .args(["scan", text(dir), "-o", text(file), "-t", "1"])
        .args(args)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    while finished(file).len() < n_parts {
        let ended = child.try_wait().expect("it is our child");
        assert!(ended.is_none(), "it ended before it was interrupted");
        std::thread::sleep(Duration::from_millis(2));
    }
    send("INT", &child);
    let output = child.wait_with_output().expect("it ends");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("error: interrupted"), "{said}");
    assert!(said.contains(&format!("of {items} are done")), "{said}");
    assert!(!file.exists());
    let pair = |name: String| [name.clone(), name + ".json"];
    let whole: Vec<String> = finished(file).into_iter().flat_map(pair).collect();
    assert_eq!(names(&parts_of(file)), whole, "nothing half written");
}

/// Starts a scan, and kills it when it has finished a part. On a busy machine it may come to its end before: then again.
pub(crate) fn killed(args: &[&str], file: &Path) {
    for _ in 0..5 {
        let mut child = program().args(args).spawn().expect("the program starts");
        while finished(file).is_empty() && child.try_wait().expect("it is our child").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        if !file.exists() && !finished(file).is_empty() {
            return;
        }
        fs::remove_file(file).expect("it came to its end");
    }
    panic!("it came to its end each time");
}

/// Ctrl-C, other settings, and parts that are spoilt in between: the file is that of a run without a
/// break.
#[test]
fn an_interrupted_scan_goes_on() {
    let dir = many("many");
    let out = folder("many-out");
    let (whole, file) = (out.join("whole.parquet"), out.join("features.parquet"));
    assert!(scan(&dir, &whole, &["-q", "-t", "1"]).status.success());
    let expected = with_sidecar(&whole);
    interrupted(&dir, "193 pictures", &file, 2, &["--jobs", "2"]);

    // Other settings are refused, and nothing is lost by it.
    let n_parts = finished(&file).len();
    let refused = |dir: &Path, args: &[&str], words: &[&str]| {
        let scan = ["scan", text(dir), "-o", text(&file)];
        check(
            &[&scan[..], args].concat(),
            1,
            &[words, &["hint: "]].concat(),
        );
        assert_eq!(finished(&file).len(), n_parts);
    };
    let words = ["its prompt is `Describe the image.`, and not `Why?`"];
    refused(&dir, &["-p", "Why?"], &words);
    refused(&two_classes("many-other"), &[], &["its folder is"]);
    refused(
        &dir,
        &["--image-prep", "pad"],
        &["its image preparation is"],
    );
    let other_model = Fixture::Demo.converted(TensorType::F32);
    let words = ["its SAE is", "its model is", "its projector is"];
    refused(&dir, &["-d", text(&other_model)], &words);

    // What a killed run leaves is removed; a damaged part is read again.
    let parts = parts_of(&file);
    fs::write(parts.join("x.unfinished"), "half").expect("a file of our own");
    fs::write(parts.join("part-000099.parquet.json"), "{}").expect("a file of our own");
    let first = parts.join(&finished(&file)[0]);
    let mut damaged = fs::read(&first).expect("a part");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    fs::write(&first, damaged).expect("a file of our own");
    let output = scan(&dir, &file, &["-t", "1"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("is damaged") && said.contains("resuming with"),
        "{said}"
    );
    assert!(said.contains("skipped 1 of 193 pictures"), "{said}");
    assert!(with_sidecar(&file) == expected, "the same bytes");
    assert!(!parts.exists());
}

/// A picture that changes is read again; parts that there is no room to join are joined by a later run.
#[test]
fn a_scan_goes_on_with_what_there_is() {
    let dir = many("changes");
    let file = folder("changes-out").join("features.parquet");
    interrupted(&dir, "193 pictures", &file, 1, &["--jobs", "1"]);
    fs::copy(Fixture::Demo.picture("00.png"), dir.join("a/99.png")).expect("a copy");
    // Each part is smaller than this, and the whole is larger.
    let output = scan_with_limit("200", &dir, &file, "--jobs 2");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`a/99.png` has changed"), "{said}");
    assert!(said.contains("193 of 193 pictures are done"), "{said}");
    assert!(said.contains("error: cannot write"), "{said}");
    assert!(!file.exists());
    let output = scan(&dir, &file, &[]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("resuming with 0 of 193 pictures"), "{said}");
    assert!(
        !said.contains("skipped") && !parts_of(&file).exists(),
        "{said}"
    );
    let rows = rows(&file);
    let values = |path: &str| -> Vec<_> {
        let rows = rows.iter().filter(|row| row.path == path);
        let value = |row: &OwnedRow| (row.feature, row.sum, row.max, row.count);
        rows.map(value).collect()
    };
    assert!(!values("a/99.png").is_empty());
    assert_eq!(values("a/99.png"), values("b/00.png"));
}

/// The second of two scans with one output says so, and the first does not notice.
#[test]
fn two_scans_with_one_output() {
    let dir = many("two-at-once");
    let out = folder("two-at-once-out");
    let (alone, file) = (out.join("alone.parquet"), out.join("features.parquet"));
    assert!(scan(&dir, &alone, &["-q", "-t", "1"]).status.success());
    let args = ["scan", "-q", "-t", "1", text(&dir), "-o", text(&file)];
    let first = program().args(args).spawn().expect("the program starts");
    while finished(&file).is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let words = [
        "another scan is writing to",
        "features.parquet.parts",
        "hint: ",
    ];
    check(&args, 1, &words);
    check(&[&args[..], &["--force"]].concat(), 1, &words);
    let first = first.wait_with_output().expect("it ends");
    assert_eq!(first.status.code(), Some(0));
    assert!(with_sidecar(&file) == with_sidecar(&alone));
    assert!(!parts_of(&file).exists());
}

/// What a killed scan leaves locked nobody.
#[test]
fn a_killed_scan_goes_on() {
    let dir = many("killed");
    let file = folder("killed-out").join("features.parquet");
    let args = ["scan", "-q", "-t", "1", text(&dir), "-o", text(&file)];
    killed(&args, &file);
    let output = scan(&dir, &file, &["-t", "1"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("resuming with"), "{said}");
    assert!(!parts_of(&file).exists());
}
