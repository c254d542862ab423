//! `--control random`: the same interventions on other features, beside those that were asked for.

use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::fixture::picture;

#[test]
fn a_control_is_a_run_of_its_own() {
    let args = [
        "--steer",
        "carrot:-12",
        "--ablate",
        "mushroom",
        "--at",
        "image",
        "-n",
        "16",
    ];
    let run = |more: &[&str]| json(&[&args[..], &["--json", picture()], more].concat());
    let alone = run(&["--compare"]);
    assert!(alone["control"].is_null());
    let report = run(&["--compare", "--control", "random"]);
    for key in ["original", "steered", "interventions"] {
        assert_eq!(report[key], alone[key], "{key}");
    }
    let control = &report["control"];
    assert_eq!(control["seed"], 0);
    let kinds = |entries: &serde_json::Value| -> Vec<_> {
        let entries = entries.as_array().expect("a list").iter();
        entries
            .map(|one| (one["kind"].clone(), one["at"].clone()))
            .collect()
    };
    assert_eq!(
        kinds(&control["interventions"]),
        kinds(&report["interventions"])
    );
    let steer = &control["interventions"][0];
    assert_ne!(steer["feature"], 430);
    assert_eq!(steer["units"], "unit");
    // The saved set in it gives the same again.
    let set = crate::fixture::temporary_root().join("control.json");
    std::fs::write(&set, control.to_string()).expect("a file of our own");
    let set = set.to_str().expect("a plain path");
    let again = json(&["--interventions", set, "-n", "16", "--json", picture()]);
    assert_eq!(again["steered"]["token_ids"], control["token_ids"]);
    // So does the seed, and another draws others.
    assert_eq!(run(&["--control", "random:0"])["control"], *control);
    let other = run(&["--control", "random:1"]);
    assert_ne!(other["control"]["interventions"], control["interventions"]);
    assert!(other["original"].is_null());

    let text = stdout(
        &[
            &args[..],
            &["-q", "--compare", "--control", "random", picture()],
        ]
        .concat(),
    );
    let expected = format!(
        "Original output:\n{}\n\nOutput after intervention:\n{}\n\nOutput after the same on random features:\n{}\n",
        report["original"]["text"].as_str().expect("a text"),
        report["steered"]["text"].as_str().expect("a text"),
        control["text"].as_str().expect("a text"),
    );
    assert_eq!(text, expected);
    check(&["--control", "random", picture()], 2, &["--steer"]);
    let other = ["--steer", "carrot:1", "--control", "other", picture()];
    check(&other, 2, &["`random`"]);
}

fn sweep<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let common = ["sweep", "--at", "image", "--word", "apple", "-n", "12"];
    [&common[..], args, &[picture()]].concat()
}

#[test]
fn a_sweep_has_its_control_beside_it() {
    let args = ["--steer", "carrot:-20..20:20"];
    let alone = json(&sweep(&[&args[..], &["--json"]].concat()));
    assert!(alone["control"].is_null());
    let args = [&args[..], &["--control", "random:3"]].concat();
    let report = json(&sweep(&[&args[..], &["--json"]].concat()));
    assert_eq!(report["steered"], alone["steered"]);
    let control = &report["control"];
    assert_eq!(control["seed"], 3);
    assert_ne!(control["feature"], report["feature"]);
    let steered = control["steered"].as_array().expect("a list");
    let strengths: Vec<_> = steered.iter().map(|one| one["strength"].as_f64()).collect();
    assert_eq!(strengths, [Some(-20.0), Some(0.0), Some(20.0)]);
    // Nothing is added; in a batch, sums round in another order.
    assert!(steered[1]["kl"].as_f64() < Some(1e-6));
    assert!(steered[0]["kl"].as_f64() > Some(0.0));
    let table = stdout(&sweep(&args));
    let title = format!("The same on random feature {}", control["feature"]);
    let (above, below) = table.split_once(&title).expect("a second part");
    assert_eq!(
        (above.lines().count(), below.lines().count()),
        (6, 4),
        "{table}"
    );
    let many = ["--steer", "carrot:0..200:1", "--control", "random"];
    check(&sweep(&many), 1, &["with their controls", "hint: "]);
}
