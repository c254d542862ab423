//! `features --against`: the features that set two sets of pictures apart, without a scan.

use std::fs;
use std::path::Path;

use crate::bad_input::check;
use crate::command_line::{json, run, stdout, text};
use crate::fixture::temporary_root;
use crate::scan::stderr;

const INSIDE: [&str; 3] = ["carrot-cow", "carrot-mushroom", "elephant-carrot"];
const OUTSIDE: [&str; 3] = ["apple", "boat", "frog"];

fn copied(dir: &Path, names: &[&str]) {
    fs::create_dir_all(dir).expect("a folder of our own");
    for name in names {
        let source = format!("assets/pictures/{name}.png");
        fs::copy(source, dir.join(format!("{name}.png"))).expect("a copy");
    }
}

/// The same as a scan and `top` say, to the bit, since pictures come in the same order.
#[test]
fn two_folders_are_compared_as_classes_are() {
    let dir = temporary_root().join("against");
    let (inside, outside) = (dir.join("carrots"), dir.join("others"));
    copied(&inside, &INSIDE);
    copied(&outside, &OUTSIDE);
    let table = dir.join("table.parquet");
    stdout(&["scan", "-q", "--force", text(&dir), "-o", text(&table)]);
    for (pool, by) in [("max", "max"), ("sum", "sum"), ("count", "count")] {
        for sort in ["difference", "effect", "auroc"] {
            let found = json(&[
                "features",
                text(&inside),
                "--against",
                text(&outside),
                "--pool",
                pool,
                "--sort",
                sort,
                "--json",
            ]);
            let expected = json(&[
                "top",
                text(&table),
                "--class",
                "carrots",
                "--by",
                by,
                "--sort",
                sort,
                "--json",
            ]);
            assert_eq!(
                (&found["n_inside"], &found["n_outside"]),
                (&3.into(), &3.into())
            );
            assert_eq!(found["features"], expected["features"], "{pool} {sort}");
        }
    }
    // A list of pictures is as good as their folder.
    let listed = |names: [&str; 3]| names.map(|name| format!("assets/pictures/{name}.png"));
    let (given, against) = (listed(INSIDE), listed(OUTSIDE));
    let mut args = vec!["features", "--json"];
    args.extend(given.iter().map(String::as_str));
    args.extend(against.iter().flat_map(|path| ["--against", path]));
    let of_lists = json(&args);
    let of_folders = json(&[
        "features",
        text(&inside),
        "--against",
        text(&outside),
        "--json",
    ]);
    assert_eq!(of_lists["features"], of_folders["features"]);
    assert_eq!(of_lists["features"][0]["label"], "carrot");

    let shown = stdout(&[
        "features",
        "-q",
        text(&inside),
        "--against",
        text(&outside),
        "--top",
        "1",
    ]);
    assert!(
        shown.contains("in the 3 pictures given") && shown.ends_with("  carrot\n"),
        "{shown}"
    );
    // What cannot be read is said and left out.
    fs::write(outside.join("half.png"), "broken").expect("a file of our own");
    let output = run(&[
        "features",
        "-q",
        text(&inside),
        "--against",
        text(&outside),
        "--json",
    ]);
    assert!(stderr(&output).contains("skipped: "), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["features"], of_folders["features"]);
    let broken = outside.join("half.png");
    check(
        &["features", text(&inside), "--against", text(&broken)],
        1,
        &["could be read", "hint: "],
    );
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let picture = "assets/pictures/apple.png";
    let refused = |args: &[&str], words: &[&str]| {
        check(&[&["features", picture], args].concat(), 2, words);
    };
    refused(&["--against", picture, "--group"], &["--group"]);
    refused(&["--against", picture, "--html", "x.html"], &["--html"]);
    refused(&["--sort", "auroc"], &["--against"]);
    check(
        &["features", picture, "--against", "/no/such"],
        1,
        &["/no/such"],
    );
    check(
        &["features", "-p", "a", "--against", picture],
        2,
        &["IMAGE"],
    );
}
