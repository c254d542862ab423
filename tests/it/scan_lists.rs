//! Scans of what a list names: manifests, and names on stdin.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, LargeStringArray, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

use crate::bad_input::check;
use crate::command_line::{names, program, text};
use crate::scan::{folder, rows, scan, stderr, two_classes, with_sidecar};

/// Scans what is on stdin, from within `dir`.
pub(crate) fn scan_names(dir: &Path, stdin: &[u8], file: &Path, args: &[&str]) -> Output {
    let mut child = program()
        .current_dir(dir)
        .args(["scan", "-", "-o", text(file)])
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut pipe = child.stdin.take().expect("it is piped");
    // It may have ended with an error already.
    let _ = pipe.write_all(stdin);
    drop(pipe);
    child.wait_with_output().expect("it ends")
}

/// What `find` prints is scanned as the folder is, to the byte, in whatever order it comes.
#[test]
fn names_are_scanned_as_the_folder() {
    let dir = two_classes("listed/pictures");
    let out = folder("listed/out");
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    let names = [
        "vehicle/boat.png",
        "./food/doughnut.png",
        "food//apple.png",
        "guitar.png",
        "vehicle/airplane.png",
        "food/red/Carrot.PNG",
    ];
    let lists = [
        (names.join("\n"), None),
        (names.map(|name| format!("{name}\r\n")).concat(), None),
        (names.map(|name| format!("{name}\0")).concat(), Some("-0")),
    ];
    for (i, (list, option)) in lists.iter().enumerate() {
        let file = out.join(format!("{i}.parquet"));
        let args: Vec<_> = option.iter().copied().chain(["-q"]).collect();
        let output = scan_names(&dir, list.as_bytes(), &file, &args);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(with_sidecar(&file) == with_sidecar(&whole), "{list}");
    }
    // From elsewhere, a name is what it is on the list.
    let file = out.join("absolute.parquet");
    let picture = dir.join("food/apple.png");
    let output = scan_names(&out, text(&picture).as_bytes(), &file, &["-q"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let row = &rows(&file)[0];
    assert_eq!(
        (&*row.path, row.class.as_deref()),
        (text(&picture), Some("food"))
    );

    let file = out.join("none.parquet");
    let refused = |stdin: &[u8], words: &[&str]| {
        let output = scan_names(&dir, stdin, &file, &["-q"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    refused(b"", &["no pictures in `stdin`"]);
    refused(b"\n\n", &["no pictures in `stdin`"]);
    refused(
        b"a.png\nb.png\n./a.png",
        &["has `a.png` twice, in its entries 1 and 3", "hint: "],
    );
    refused(&[b'a'; 70_000], &["entry 1: the path is too long"]);
    refused(b"no.png", &["no.png", "none of the 1 pictures"]);
}

/// Writes a Parquet file of these columns.
pub(crate) fn write_parquet(file: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let file = fs::File::create(file).expect("a file of our own");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a schema");
    writer.write(&batch).expect("written");
    writer.close().expect("written");
}

/// Every type of manifest is read alike: classes, none, other columns, files that are not there.
#[test]
fn manifests_are_scanned() {
    let dir = two_classes("manifests/pictures");
    let out = folder("manifests/out");
    let paths = ["vehicle/boat.png", "food/apple.png", "no.png", "guitar.png"];
    let classes = [Some("ship, \"big\""), Some("fruit"), Some("fruit"), None];
    let csv = "path,split,class\nvehicle/boat.png,train,\"ship, \"\"big\"\"\"\nfood/apple.png,test,fruit\n\
               no.png,test,fruit\nguitar.png,test,\n";
    fs::write(dir.join("m.csv"), format!("\u{feff}{csv}")).expect("a file of our own");
    let mut lines = String::new();
    for (path, class) in paths.iter().zip(classes) {
        let line = serde_json::json!({"split": [1], "path": path, "class": class});
        lines.push_str(&format!("{line}\n\n"));
    }
    fs::write(dir.join("m.jsonl"), lines).expect("a file of our own");
    let text_column =
        |values: &[Option<&str>]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
    let wide: ArrayRef = Arc::new(LargeStringArray::from(paths.to_vec()));
    let split: ArrayRef = Arc::new(Int32Array::from(vec![1; 4]));
    let columns = vec![
        ("class", text_column(&classes)),
        ("path", wide),
        ("split", split),
    ];
    write_parquet(&dir.join("m.parquet"), columns);
    let mut tables = Vec::new();
    for extension in ["csv", "jsonl", "parquet"] {
        let manifest = dir.join("m").with_extension(extension);
        let file = out.join(format!("{extension}.parquet"));
        let output = program()
            .args(["scan", "--manifest", text(&manifest), "-o", text(&file)])
            .output()
            .expect("the program starts");
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        let line = format!(
            "left out, other columns of `{}`: split\n",
            manifest.display()
        );
        assert!(said.contains(&line), "{said}");
        assert!(
            said.contains("skipped: ") && said.contains("no.png"),
            "{said}"
        );
        assert!(said.contains("skipped 1 of 4 pictures"), "{said}");
        tables.push(with_sidecar(&file));
    }
    assert!(tables.iter().all(|table| *table == tables[0]));
    let of_manifest = rows(&out.join("csv.parquet"));
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    let mut expected = rows(&whole);
    expected.retain(|row| paths.contains(&&*row.path));
    for row in &mut expected {
        let at = paths.iter().position(|path| *path == row.path);
        row.class = classes[at.expect("it is one of them")].map(str::to_owned);
    }
    assert_eq!(of_manifest, expected);

    // Without classes, they are the folders' names; paths may begin elsewhere.
    let manifest = out.join("plain.csv");
    fs::write(&manifest, "path\nfood/apple.png\nguitar.png\n").expect("a file of our own");
    let file = out.join("plain.parquet");
    let args = [
        "scan",
        "-q",
        "--manifest",
        text(&manifest),
        text(&dir),
        "-o",
        text(&file),
    ];
    let output = program().args(args).output().expect("the program starts");
    assert!(output.status.success(), "{}", stderr(&output));
    let mut expected = rows(&whole);
    expected.retain(|row| ["food/apple.png", "guitar.png"].contains(&&*row.path));
    assert_eq!(rows(&file), expected);
}

#[test]
fn manifests_that_are_refused() {
    let dir = folder("manifests/refused");
    let file = dir.join("f.parquet");
    let refused = |name: &str, words: &[&str]| {
        let manifest = dir.join(name);
        check(
            &["scan", "--manifest", text(&manifest), "-o", text(&file)],
            1,
            words,
        );
    };
    let written = |name: &str, contents: &str, words: &[&str]| {
        fs::write(dir.join(name), contents).expect("a file of our own");
        refused(name, words);
    };
    refused("missing.csv", &["cannot read", "missing.csv"]);
    written(
        "m.txt",
        "a.png",
        &["m.txt", "hint: give a Parquet file, CSV or JSON lines"],
    );
    written("m.csv", "", &["no column `path`"]);
    written("m.csv", "path,class\n", &["no pictures in", "m.csv"]);
    written(
        "m.csv",
        "file,class\na.png,x\n",
        &["no column `path`", "hint: its columns are `file`, `class`"],
    );
    written(
        "m.csv",
        "path,class\na.png,x\nb.png\n",
        &["line 3: 1 values, and not 2", "hint: "],
    );
    written(
        "m.csv",
        "path,class\na.png,x\n,y\n",
        &["entry 2: the path is empty"],
    );
    written(
        "m.csv",
        "path\na.png\nb.png\n./b.png\n",
        &["has `b.png` twice, in its entries 2 and 3", "hint: "],
    );
    fs::write(dir.join("m.csv"), b"path\na.png\n\xff.png\n").expect("a file of our own");
    refused("m.csv", &["line 3: not UTF-8"]);
    written(
        "m.jsonl",
        "{\"path\": \"a.png\"}\n{\"file\": \"b.png\"}\n",
        &["entry 2: missing field `path`", "hint: "],
    );
    written(
        "m.jsonl",
        "{\"path\": 5}\n",
        &["entry 1: invalid type: integer `5`, expected a string"],
    );
    written(
        "m.jsonl",
        "{\"path\": \"a.png\", \"class\": 5}\n",
        &["entry 1: invalid type: integer `5`"],
    );
    written("m.jsonl", "[1]\n", &["entry 1: invalid type"]);
    written("m.jsonl", "{\"path\":\n", &["entry 1: "]);
    written(
        "m.parquet",
        "no table",
        &["m.parquet` is not a Parquet file"],
    );
    let int: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let one: ArrayRef = Arc::new(StringArray::from(vec!["a.png"]));
    let none: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
    for (columns, words) in [
        (
            vec![("path", &int)],
            &["column `path`", "of type Int32, and not text"][..],
        ),
        (
            vec![("path", &one), ("class", &int)],
            &["column `class`", "of type Int32"],
        ),
        (vec![("path", &none)], &["entry 1: there is no path"]),
        (
            vec![("class", &one)],
            &["no column `path`", "hint: its columns are `class`"],
        ),
    ] {
        let columns = columns
            .into_iter()
            .map(|(name, column)| (name, Arc::clone(column)));
        write_parquet(&dir.join("m.parquet"), columns.collect());
        refused("m.parquet", words);
    }
    check(&["scan", "-o", text(&file)], 2, &["DIR"]);
    assert!(!names(&dir).contains(&"f.parquet".to_owned()));
    // The manifest is no output.
    let manifest = dir.join("m.parquet");
    let over = [
        "scan",
        "--manifest",
        text(&manifest),
        "-o",
        text(&manifest),
        "--force",
    ];
    write_parquet(&manifest, vec![("path", one)]);
    check(&over, 1, &["it is an input"]);
}

/// A class that changes between two runs is not taken from the first.
#[cfg(unix)]
#[test]
fn a_changed_class_is_read_again() {
    use crate::scan_resume::{killed, many};
    let dir = many("manifests-changed");
    let out = folder("manifests-changed-out");
    let (manifest, file) = (out.join("m.csv"), out.join("f.parquet"));
    let write = |class: &str| {
        let mut rows = String::from("path,class\n");
        for folder in ["a", "b", "c", "d", "e", "f", "g", "h", "i"] {
            for name in crate::fixture::Fixture::Demo.picture_names() {
                rows.push_str(&format!("{folder}/{name},{class}\n"));
            }
        }
        fs::write(&manifest, rows).expect("a file of our own");
    };
    write("old");
    let args = [
        "scan",
        "-t",
        "1",
        text(&dir),
        "--manifest",
        text(&manifest),
        "-o",
        text(&file),
    ];
    killed(&args, &file);
    write("new");
    let output = program().args(args).output().expect("the program starts");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("has changed"), "{said}");
    assert!(
        rows(&file)
            .iter()
            .all(|row| row.class.as_deref() == Some("new"))
    );
}
