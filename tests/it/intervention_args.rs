//! The options that ask for interventions, and saved sets of them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use serde_json::{Value, json};

use crate::bad_input;
use crate::command_line::{json as json_of, run, stdout, text};
use crate::fixture::{Fixture, temporary_root};

const PICTURE: &str = "tests/fixtures/tiny/pictures/00.png";

fn folder() -> PathBuf {
    let dir = temporary_root().join("intervention-args");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

/// The random model's SAE, with labels on some features.
fn labelled_sae() -> &'static Path {
    static SAE: OnceLock<PathBuf> = OnceLock::new();
    SAE.get_or_init(|| {
        let labels = folder().join("labels.json");
        let entry =
            |(index, description): (u32, &str)| json!({"index": index, "description": description});
        let entries = [
            (3, "dog"),
            (4, "a dog: brown"),
            (5, "bird, cat, s"),
            (6, "counts 1,2"),
            (7, "cat"),
        ];
        let entries = Value::from_iter(entries.map(entry));
        std::fs::write(&labels, entries.to_string()).expect("a file of our own");
        let options = SaeOptions {
            weight_type: TensorType::F32,
            norm_factor: Some(0.11), // `norm_factor` in the fixture's oracle.json
            hook_name: None,
            labels: vec![labels],
            overwrite: Overwrite::Replace,
        };
        let target = folder().join("labelled.gguf");
        let source = Fixture::Tiny.dir().join("sae");
        let progress = &mut |_, _| std::ops::ControlFlow::Continue(());
        sae::convert(&source, &target, &options, progress).expect("the fixture converts");
        target
    })
}

/// The arguments with the random model, its labelled SAE and a picture.
fn with_model(args: &[&str]) -> Vec<String> {
    let dir = Fixture::Tiny.converted(TensorType::F32);
    let model = ["-d", text(&dir), "--sae", text(labelled_sae())];
    let args = [args, &model, &["-n", "6", PICTURE]].concat();
    args.into_iter().map(str::to_owned).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn report(args: &[&str]) -> Value {
    json_of(&strs(&with_model(&[&["--json"], args].concat())))
}

/// The program must fail with `code`, say all of `words`, and say what to do where it is not
/// clap's error.
fn check_refused(args: &[&str], code: i32, words: &[&str]) {
    let hint: &[&str] = if code == 1 { &["hint: "] } else { &[] };
    let words = [words, hint].concat();
    bad_input::check(&strs(&with_model(args)), code, &words);
}

/// Two features that the picture activates most.
fn active_features() -> [String; 2] {
    let mut args = vec!["features".to_owned(), "--json".to_owned()];
    let model = with_model(&[]);
    args.extend(model.into_iter().filter(|arg| arg != "-n" && arg != "6"));
    let features = json_of(&strs(&args))["features"].clone();
    [0, 1].map(|rank| features[rank]["feature"].to_string())
}

#[test]
fn what_was_asked_for_is_reported() {
    let check = |args: &[&str], expected: Value| {
        assert_eq!(report(args)["interventions"], expected, "{args:?}");
    };
    check(
        &["--ablate", "9", "--scale", "8:0.5", "--clamp", "7:2,3:-1"],
        json!([
            {"kind": "clamp", "feature": 7, "label": "cat", "value": 2.0, "units": "raw", "at": "all"},
            {"kind": "clamp", "feature": 3, "label": "dog", "value": -1.0, "units": "raw", "at": "all"},
            {"kind": "scale", "feature": 8, "label": null, "value": 0.5, "units": "raw", "at": "all"},
            {"kind": "ablate", "feature": 9, "label": null, "value": null, "units": "raw", "at": "all"},
        ]),
    );
    check(
        &[
            "--steer",
            "a dog: brown:2.5",
            "--units",
            "unit",
            "--at",
            "generated,image",
        ],
        json!([{
            "kind": "steer", "feature": 4, "label": "a dog: brown",
            "value": 2.5, "units": "unit", "at": "image,generated",
        }]),
    );
}

/// The words of `--at` are those of a saved set.
#[test]
fn special_tokens_are_left_out_of_steering() {
    let steer = ["--steer", "3:2"];
    for (at, shown) in [
        ("no-special,all", "all,no-special"),
        ("image,prompt,generated", "all"),
        ("special", "special"),
        ("prompt,no-special", "prompt,no-special"),
    ] {
        let report = report(&[&steer[..], &["--at", at]].concat());
        assert_eq!(report["interventions"][0]["at"], shown, "{at}");
        let set = folder().join("special.json");
        std::fs::write(&set, report["interventions"].to_string()).expect("a file of our own");
        let again = self::report(&["--interventions", text(&set)]);
        assert_eq!(again["interventions"], report["interventions"], "{at}");
        assert_eq!(again["steered"], report["steered"], "{at}");
    }
    for at in ["no-special", "bos", "image,"] {
        check_refused(&[&steer[..], &["--at", at]].concat(), 2, &["--at"]);
    }
}

/// A comma separates, unless the text with it means one feature.
#[test]
fn names_with_commas() {
    let check = |list: &str, expected: &[u64]| {
        let report = report(&["--ablate", list]);
        let entries = report["interventions"].as_array().expect("a list");
        let features: Vec<_> = entries
            .iter()
            .map(|entry| entry["feature"].as_u64().expect("an index"))
            .collect();
        assert_eq!(features, expected, "{list}");
    };
    check("9", &[9]);
    check("bird, cat, s", &[5]);
    check("bird, cat", &[5]);
    check("bird, cat, s,dog, 9", &[5, 3, 9]);
    check("dog,cat,brown", &[3, 7, 4]);
    // In other letters it is the label that it is, and not part of two.
    check("Dog,CAT", &[3, 7]);
    // Not the label that holds this text.
    check("1,2", &[1, 2]);
}

/// What a run printed gives the same run again, whole or as a bare list, and so does what a capture
/// holds; with other interventions beside it, it counts as well.
#[test]
fn saved_sets_repeat_a_run() {
    let [first, second] = active_features();
    let (add, clamp) = (format!("{first}:-40"), format!("{second}:60"));
    let args = ["--steer", &add, "--clamp", &clamp, "--at", "image,prompt"];
    let more = ["--scale", "3:2.5", "--ablate", "cat", "--units", "unit"];
    let args = [&args[..], &more].concat();
    let original = report(&[&args[..], &["--compare"]].concat());
    assert_ne!(original["original"]["text"], original["steered"]["text"]);

    let set = folder().join("set.json");
    let check = |saved: String, more: &[&str]| {
        std::fs::write(&set, saved).expect("a file of our own");
        let again = report(&[&["--interventions", text(&set)], more].concat());
        assert_eq!(again["steered"], original["steered"]);
        let entries = again["interventions"].as_array().expect("a list").len();
        assert_eq!(entries, 4);
    };
    check(original.to_string(), &[]);
    check(original["interventions"].to_string(), &[]);
    let halves = original["interventions"].as_array().expect("a list");
    let (at, units) = (["--at", "image,prompt"], ["--units", "unit"]);
    let others = [&["--steer", &add][..], &at, &units].concat();
    check(Value::from(&halves[1..]).to_string(), &others);
    // Labels instead of indices, and what may be left out.
    let mut entries = original["interventions"].clone();
    for entry in entries.as_array_mut().expect("a list") {
        if let Some(label) = entry["label"].as_str() {
            entry["feature"] = label.into();
        }
        let entry = entry.as_object_mut().expect("an object");
        entry.retain(|key, value| key != "label" && !value.is_null());
    }
    check(entries.to_string(), &[]);

    let capture = folder().join("set.safetensors");
    let capture_args = [&["capture", "-o", text(&capture)], &args[..]].concat();
    stdout(&strs(&with_model(&capture_args)));
    let bytes = std::fs::read(&capture).expect("it was written");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a valid file");
    let metadata = header.metadata().as_ref().expect("it has metadata");
    check(metadata["interventions"].clone(), &[]);
}

/// The rows that a capture holds are those that ggml's activations give: x − a·W_dec in f32.
#[test]
fn captured_rows_are_the_ablated_ones() {
    let [feature, _] = active_features();
    let path = folder().join("ablated.safetensors");
    let args = ["capture", "-o", text(&path), "--ablate", &feature];
    stdout(&strs(&with_model(&args)));
    let bytes = std::fs::read(&path).expect("it was written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a valid file");
    let data = |name: &str| tensors.tensor(name).expect("present").data().to_vec();
    let f32s = |name: &str| -> Vec<f32> {
        let data = data(name);
        let values = data.chunks_exact(4).map(|value| value.try_into());
        values
            .map(|value| f32::from_le_bytes(value.expect("four bytes")))
            .collect()
    };
    let ids = data("feature_ids");
    let ids = ids.chunks_exact(4).map(|id| id.try_into());
    let ids: Vec<i32> = ids
        .map(|id| i32::from_le_bytes(id.expect("four bytes")))
        .collect();
    let offsets = data("feature_offsets");
    let offsets = offsets.chunks_exact(8).map(|offset| offset.try_into());
    let offsets: Vec<usize> = offsets
        .map(|offset| i64::from_le_bytes(offset.expect("eight bytes")) as usize)
        .collect();

    let feature: usize = feature.parse().expect("an index");
    let sae = SaeFile::open(labelled_sae()).expect("converted");
    let mut direction = vec![0.0; sae.meta.d_in];
    sae.decoder_row(feature, &mut direction).expect("readable");
    let (values, before, after) = (f32s("feature_values"), f32s("resid"), f32s("resid_steered"));
    let mut n_active = 0;
    for (row_idx, range) in offsets.windows(2).enumerate() {
        let mut active = (range[0]..range[1]).filter(|&i| ids[i] as usize == feature);
        let a = active.next().map_or(0.0, |i| values[i]);
        n_active += usize::from(a > 0.0);
        let row = row_idx * direction.len()..(row_idx + 1) * direction.len();
        let largest = before[row.clone()]
            .iter()
            .fold(1.0_f32, |sum, x| sum.max(x.abs()));
        for ((x, after), w) in before[row.clone()].iter().zip(&after[row]).zip(&direction) {
            let error = (x - a * w - after).abs();
            assert!(error < 1e-4 * largest, "row {row_idx}: {error}");
        }
    }
    assert!(n_active > 0);
}

#[test]
fn options_that_are_refused() {
    let check = check_refused;
    for option in ["--clamp", "--scale", "--steer"] {
        for bad in [
            "", "dog", "dog:", ":3", "dog:x", "dog:nan", "dog:-inf", "dog:1,",
        ] {
            check(&[option, bad], 2, &[option]);
        }
        check(&[option, "200:1"], 1, &["200 features", "0 to 199"]);
        check(&[option, "unicorn:1"], 1, &["`unicorn`"]);
        check(
            &[option, "ca:1"],
            1,
            &["part of 2 labels", "5 `bird, cat, s`"],
        );
    }
    for bad in ["", ",", "dog,", ",dog", "dog,,cat"] {
        check(&["--ablate", bad], 2, &["--ablate"]);
    }
    check(&["--ablate", "200"], 1, &["200 features"]);
    check(&["--ablate=-1"], 1, &["`-1`"]);
    check(&["--ablate", "dog,unicorn"], 1, &["`unicorn`"]);
    check(&["--ablate", "ca"], 1, &["part of 2 labels"]);
    check(&["--ablate", "1", "--units", "metres"], 2, &["--units"]);
    check(&["--ablate", "1", "--at", "images"], 2, &["--at"]);
    for lonely in [["--units", "unit"], ["--at", "image"]] {
        check(&lonely, 2, &["--steer", "--clamp", "--ablate", "--scale"]);
    }
    check(&["--compare"], 2, &["--clamp", "--interventions"]);
    check(
        &["--scale", "9:3e38", "--clamp", "3:3e38"],
        1,
        &["too large"],
    );
}

#[test]
fn contradictions_are_refused() {
    let check = |args: &[&str], what: &str| check_refused(args, 1, &["`3`", what]);
    check(&["--clamp", "3:1,dog:1"], "clamped twice");
    check(&["--clamp", "3:1", "--ablate", "3"], "clamped and ablated");
    check(&["--scale", "3:2", "--ablate", "dog"], "scaled and ablated");
    check(
        &["--ablate", "3", "--steer", "dog:5"],
        "steered and ablated",
    );
    let set = folder().join("contradiction.json");
    let entry = json!([{"kind": "scale", "feature": 3, "value": 0, "at": "image"}]);
    std::fs::write(&set, entry.to_string()).expect("a file of our own");
    let from_file = ["--interventions", text(&set), "--ablate", "3"];
    check(&from_file, "scaled and ablated");
    let elsewhere = [&from_file[..], &["--at", "prompt"]].concat();
    assert!(run(&strs(&with_model(&elsewhere))).status.success());
    let additions = ["--steer", "3:1", "--steer", "dog:1,3:2"];
    assert!(run(&strs(&with_model(&additions))).status.success());
}

#[test]
fn saved_sets_that_are_refused() {
    let set = folder().join("bad.json");
    let check = |content: &str, words: &[&str]| {
        std::fs::write(&set, content).expect("a file of our own");
        let words = [words, &["bad.json"]].concat();
        check_refused(&["--interventions", text(&set)], 1, &words);
    };
    for content in ["", "[", "dog:5", "\u{0}\u{1}"] {
        check(content, &["not a JSON file"]);
    }
    for content in ["{}", "5", "null", r#"{"interventions": 5}"#] {
        check(content, &["no list"]);
    }
    check("[]", &["empty"]);
    check(r#"{"interventions": []}"#, &["empty"]);
    check("[5]", &["intervention 1"]);
    let good = r#"{"kind": "ablate", "feature": 3}"#;
    let check_second = |entry: &str, words: &[&str]| {
        let words = [words, &["intervention 2"]].concat();
        check(&format!("[{good}, {entry}]"), &words);
    };
    check_second(r#"{"feature": 4}"#, &["`kind`"]);
    check_second(r#"{"kind": "ablate"}"#, &["`feature`"]);
    check_second(
        r#"{"kind": "kill", "feature": 4}"#,
        &["`kill`", "`steer`, `clamp`, `ablate`, `scale`"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 4, "strength": 3}"#,
        &["`strength`"],
    );
    check_second(
        r#"{"kind": "clamp", "feature": 4}"#,
        &["`value` is missing"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 4, "value": 0}"#,
        &["`ablate` takes no `value`"],
    );
    check_second(
        r#"{"kind": "steer", "feature": 4, "value": 1e39}"#,
        &["too large"],
    );
    check_second(
        r#"{"kind": "steer", "feature": 4, "value": "5"}"#,
        &["invalid type"],
    );
    for feature in ["-1", "1.5", "null", "[4]"] {
        check_second(
            &format!(r#"{{"kind": "ablate", "feature": {feature}}}"#),
            &["an index or a label"],
        );
    }
    check_second(r#"{"kind": "ablate", "feature": 200}"#, &["200 features"]);
    check_second(
        r#"{"kind": "ablate", "feature": "unicorn"}"#,
        &["`unicorn`"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 4, "label": "snail"}"#,
        &["`a dog: brown`", "not `snail`", "another SAE"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 9, "label": "snail"}"#,
        &["no label"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 4, "at": "images"}"#,
        &["`images`"],
    );
    check_second(
        r#"{"kind": "ablate", "feature": 4, "units": "metres"}"#,
        &["`metres`", "`raw`"],
    );
    let missing = folder().join("no-such-set.json");
    bad_input::check(
        &strs(&with_model(&["--interventions", text(&missing)])),
        1,
        &["no-such-set.json"],
    );
    bad_input::check(
        &strs(&with_model(&["--interventions", text(&folder())])),
        1,
        &["intervention-args"],
    );
}

/// A saved set is an input, and a capture does not replace it.
#[test]
fn captures_do_not_replace_a_saved_set() {
    let set = folder().join("kept.json");
    std::fs::write(&set, r#"[{"kind": "ablate", "feature": 3}]"#).expect("a file of our own");
    let args = ["capture", "-o", text(&set), "--interventions", text(&set)];
    check_refused(&args, 1, &["is an input"]);
    assert!(std::fs::read(&set).expect("still there").starts_with(b"["));
}
