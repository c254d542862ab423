//! Shards of a scan, what joins them, and what does not.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_input::check;
use crate::command_line::{json, names, program, run, text};
use crate::scan::{add, folder, rows, scan, stderr, two_classes, with_sidecar};
#[cfg(unix)]
use crate::scan_resume::{killed, many};
use crate::scan_top::list;

/// Scans shard `index` of `count`, and says where it is.
fn shard(dir: &Path, index: usize, count: usize, out: &Path, args: &[&str]) -> PathBuf {
    let file = out.join(format!("{index}-of-{count}.parquet"));
    let of = format!("{index}/{count}");
    let output = scan(dir, &file, &[args, &["--shard", &of]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    file
}

fn shards(dir: &Path, count: usize, out: &Path) -> Vec<PathBuf> {
    let shard = |index| shard(dir, index, count, out, &["-q"]);
    (1..=count).map(shard).collect()
}

fn merge_args<'a>(shards: &'a [PathBuf], file: &'a Path) -> Vec<&'a str> {
    let mut args = vec!["scan", "merge", "-o", text(file)];
    args.extend(shards.iter().map(|shard| text(shard)));
    args
}

/// Joins shards, and gives the bytes of the table and its sidecar.
fn merged(shards: &[PathBuf], file: &Path) -> [Vec<u8>; 2] {
    let output = run(&merge_args(shards, file));
    assert!(output.status.success(), "{}", stderr(&output));
    with_sidecar(file)
}

/// Seven pictures, one of which is broken.
fn pictures(name: &str) -> PathBuf {
    let dir = two_classes(name);
    fs::write(dir.join("food/half.png"), "broken").expect("a file of our own");
    dir
}

/// However many shards, in whatever order, of which some are empty: the bytes are those of one scan.
#[test]
fn merged_shards_are_one_scan() {
    let dir = pictures("shards/pictures");
    let out = folder("shards/out");
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    let expected = with_sidecar(&whole);
    for count in [1, 2, 7, 64] {
        let mut shards = shards(&dir, count, &out);
        let n_rows: usize = shards.iter().map(|shard| rows(shard).len()).sum();
        assert_eq!(n_rows, rows(&whole).len());
        shards.rotate_left(count / 3);
        shards[..count / 2].reverse();
        let file = out.join(format!("{count}.parquet"));
        assert!(merged(&shards, &file) == expected, "{count} shards");
    }
    // A shard says what it is, and what made it.
    let first = out.join("1-of-2.parquet");
    let [_, sidecar] = with_sidecar(&first);
    let said: serde_json::Value = serde_json::from_slice(&sidecar).expect("JSON");
    assert_eq!(said["shard"], serde_json::json!({"index": 1, "count": 2}));
    assert_eq!(said["listing"]["n_items"], 7);
    let computed_by = said["computed_by"].as_array().expect("a list");
    assert_eq!(computed_by.len(), 1);
    let kernels = computed_by[0].as_str().expect("text");
    assert!(kernels.contains("CPU"), "{kernels}");
    let program = said["settings"]["program"].as_str().expect("text");
    assert!(program.starts_with("llava-sae-cpp "), "{program}");

    // What is skipped is said in the end.
    let half = [first.clone(), out.join("2-of-2.parquet")];
    let file = out.join("again.parquet");
    let said = stderr(&run(&merge_args(&half, &file)));
    assert!(said.contains("skipped 1 of 7 pictures"), "{said}");
    // The program's own patterns, for shells that have none.
    let pattern = [out.join("*-of-7.parquet")];
    let file = out.join("pattern.parquet");
    assert!(merged(&pattern, &file) == expected);
    check(
        &merge_args(&[out.join("*-of-8.parquet")], &file),
        1,
        &["no file matches"],
    );
}

/// A shard that was killed and went on.
#[cfg(unix)]
#[test]
fn a_killed_shard_goes_on() {
    let dir = many("shards-killed");
    let out = folder("shards-killed-out");
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q", "-t", "1"]).status.success());
    let file = out.join("2-of-2.parquet");
    let args = ["scan", "-q", "-t", "1", text(&dir), "-o", text(&file)];
    killed(&[&args[..], &["--shard", "2/2"]].concat(), &file);

    // Its parts are its own: not another shard's, and not the whole scan's.
    let words = ["its shard is `2/2`, and not `1/2`", "hint: "];
    check(&[&args[..], &["--shard", "1/2"]].concat(), 1, &words);
    check(&args, 1, &["its shard is `2/2`, and not none", "hint: "]);
    let second = shard(&dir, 2, 2, &out, &["-t", "1"]);
    let first = shard(&dir, 1, 2, &out, &["-q", "-t", "1"]);
    let file = out.join("merged.parquet");
    assert!(merged(&[second, first], &file) == with_sidecar(&whole));
}

#[test]
fn shards_that_do_not_belong_together() {
    let dir = pictures("shards-refused/pictures");
    let out = folder("shards-refused/out");
    let [first, second] = [1, 2].map(|index| shard(&dir, index, 2, &out, &["-q"]));
    let file = out.join("merged.parquet");
    let refused = |shards: &[&PathBuf], words: &[&str]| {
        let shards: Vec<_> = shards.iter().map(|&shard| shard.clone()).collect();
        let words = [words, &["hint: "]].concat();
        check(&merge_args(&shards, &file), 1, &words);
        assert!(!file.exists() && !file.with_extension("parquet.json").exists());
    };
    refused(&[&first], &["of 2 shards, 1 is missing: 2"]);
    refused(
        &[&first, &second, &first],
        &["1-of-2.parquet` is given twice"],
    );
    let copy = out.join("copy.parquet");
    for (from, to) in [
        ("1-of-2.parquet", "copy.parquet"),
        ("1-of-2.parquet.json", "copy.parquet.json"),
    ] {
        fs::copy(out.join(from), out.join(to)).expect("a copy");
    }
    refused(&[&first, &second, &copy], &["are the same shard, 1/2"]);

    // A sidecar that is another shard's, none, and a table of another program's.
    let sidecar = |shard: &Path| shard.with_extension("parquet.json");
    fs::copy(sidecar(&second), sidecar(&copy)).expect("a copy");
    refused(&[&first, &copy], &["copy.parquet` is damaged, or"]);
    fs::remove_file(sidecar(&copy)).expect("our own file");
    refused(&[&first, &copy], &["copy.parquet` has no `", "beside it"]);

    // Other settings, another number of shards, another listing, and none.
    let other = folder("shards-refused/other");
    let asked = shard(&dir, 2, 2, &other, &["-q", "-p", "Why?"]);
    let words = [
        "do not belong together",
        "its prompt is `Why?`, and not `Describe the image.`",
    ];
    refused(&[&first, &asked], &words);
    let of_three = shard(&dir, 3, 3, &other, &["-q"]);
    refused(
        &[&first, &of_three],
        &["the first is shard 3/3, and the second 1/2"],
    );
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    refused(&[&first, &whole], &["whole.parquet` is no shard"]);
    fs::rename(dir.join("guitar.png"), dir.join("violin.png")).expect("our own file");
    let renamed = shard(&dir, 2, 2, &folder("shards-refused/renamed"), &["-q"]);
    refused(
        &[&first, &renamed],
        &["the pictures or classes that were to be scanned are others"],
    );
    add("03.png", &dir, "food/more.png");
    let more = shard(&dir, 2, 2, &folder("shards-refused/more"), &["-q"]);
    refused(
        &[&first, &more],
        &["a shard of 8 pictures, and the second of 7"],
    );

    // Shards of broken pictures are valid, and all of them together are no scan.
    let broken = folder("shards-refused/broken");
    fs::write(broken.join("a.png"), "broken").expect("a file of our own");
    let broken = shards(&broken, 2, &folder("shards-refused/broken-out"));
    refused(
        &[&broken[0], &broken[1]],
        &["none of the 1 pictures in the shards"],
    );

    check(
        &["scan", text(&dir), "-o", text(&file), "--shard", "0/2"],
        2,
        &["count from 1"],
    );
    check(
        &["scan", text(&dir), "-o", text(&file), "--shard", "3/2"],
        2,
        &["from 1 to 2"],
    );
    check(&["scan", "merge", "-o", text(&file)], 2, &["SHARD.parquet"]);
    // Neither a shard nor a file that is there is overwritten.
    let both = [first.clone(), second];
    check(&merge_args(&both, &first), 1, &["it is an input"]);
    fs::write(&file, "mine").expect("a file of our own");
    let mut over_mine = merge_args(&both, &file);
    check(&over_mine, 1, &["exists", "--force"]);
    over_mine.push("--force");
    assert!(run(&over_mine).status.success());
}

/// Values of other kinds of processors are joined, and that is said.
#[test]
fn other_processors_are_said() {
    let dir = two_classes("shards-kernels");
    let out = folder("shards-kernels-out");
    let shards = shards(&dir, 2, &out);
    let sidecar = shards[1].with_extension("parquet.json");
    let said = fs::read(&sidecar).expect("it was written");
    let mut said: serde_json::Value = serde_json::from_slice(&said).expect("JSON");
    said["computed_by"] = serde_json::json!(["an abacus"]);
    fs::write(&sidecar, said.to_string()).expect("a file of our own");
    let file = out.join("merged.parquet");
    let output = run(&merge_args(&shards, &file));
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("and 2 kinds did: ") && said.contains("`an abacus`"),
        "{said}"
    );
    let [_, sidecar] = with_sidecar(&file);
    let said: serde_json::Value = serde_json::from_slice(&sidecar).expect("JSON");
    assert_eq!(said["computed_by"].as_array().expect("a list").len(), 2);
}

/// A folder of the command's name is reachable, with options before it or a path.
#[test]
fn a_folder_that_is_called_merge() {
    let dir = folder("shards-merge");
    add("00.png", &dir, "merge/a.png");
    for (args, file) in [
        (["./merge", "-q"], "1.parquet"),
        (["-q", "merge"], "2.parquet"),
    ] {
        let output = program()
            .current_dir(&dir)
            .args(["scan", "-o", file])
            .args(args)
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(names(&dir).contains(&file.to_owned()));
    }
}

/// `top` takes shards for the scan that they are of, and says which are missing.
#[test]
fn top_reads_shards() {
    let dir = pictures("shards-top/pictures");
    let out = folder("shards-top/out");
    let whole = out.join("whole.parquet");
    assert!(scan(&dir, &whole, &["-q"]).status.success());
    let shards = shards(&dir, 3, &out);
    let shards: Vec<_> = shards.iter().rev().map(|shard| text(shard)).collect();
    let pattern = out.join("?-of-3.parquet");
    for subject in [["--feature", "carrot"], ["--class", "food"]] {
        let mut expected = json(&[&["top", text(&whole), "--json"][..], &subject].concat());
        expected["file"].take();
        for files in [&shards[..], &[text(&pattern)]] {
            let mut found = json(&[&["top", "--json"][..], files, &subject].concat());
            let file = found["file"].take();
            assert!(file.as_str().expect("text").contains("-of-3.parquet"));
            assert_eq!(found, expected, "{subject:?}");
        }
    }
    let output = run(&["top", "-q", shards[0], "--feature", "carrot", "--json"]);
    let said = stderr(&output);
    let line = "shards of the scan that are not given, whose images are left out: 1, 2\n";
    assert!(said.contains(line), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["n_images"], 3);

    let refused = |files: &[&str], words: &[&str]| {
        check(
            &[&["top", "--feature", "1"], files].concat(),
            1,
            &[words, &["hint: "]].concat(),
        );
    };
    refused(&[shards[0], shards[0]], &["is given twice"]);
    refused(
        &[shards[0], text(&whole)],
        &["one is a shard, and the other a whole scan"],
    );
    let asked = shard(
        &dir,
        2,
        3,
        &folder("shards-top/asked"),
        &["-q", "-p", "Why?"],
    );
    refused(&[shards[0], text(&asked)], &["its prompt is"]);
    // Whole scans of other folders, with the same settings, are read together.
    let other = folder("shards-top/other");
    add("02.png", &other, "sea/boat.png");
    let of_other = out.join("other.parquet");
    assert!(scan(&other, &of_other, &["-q"]).status.success());
    let report = json(&[
        "top",
        text(&whole),
        text(&of_other),
        "--class",
        "sea",
        "--json",
    ]);
    assert_eq!(
        (&report["n_inside"], &report["n_outside"]),
        (&1.into(), &6.into())
    );
    assert!(!list(&report, "features").is_empty());
}
