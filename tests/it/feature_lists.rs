//! `features`: what is hidden, and several pictures together.

use std::collections::HashMap;

use serde_json::Value;

use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::fixture::{Fixture, temporary_root};
use gguf_tools::gguf::TensorType;

const PICTURES: [&str; 3] = [
    "assets/pictures/carrot-mushroom.png",
    "assets/pictures/boat.png",
    "assets/pictures/apple.png",
];
const CARROT: &str = PICTURES[0];

fn by_feature(report: &Value) -> HashMap<u64, Value> {
    let features = report["features"].as_array().expect("a list").iter();
    let index = |entry: &Value| entry["feature"].as_u64().expect("an index");
    features
        .map(|entry| (index(entry), entry.clone()))
        .collect()
}

fn number(entry: &Value, key: &str) -> f64 {
    entry[key].as_f64().expect("a number")
}

#[test]
fn hidden_features_leave_the_others_in_their_order() {
    let list = |more: &[&str]| -> Vec<u64> {
        let report = json(&[&["features", "--json", "--top", "768", CARROT], more].concat());
        let features = report["features"].as_array().expect("a list");
        let index = |entry: &Value| entry["feature"].as_u64().expect("an index");
        features.iter().map(index).collect()
    };
    let all = list(&[]);
    let shown = list(&["--exclude", "carrot,766"]);
    let expected = all.iter().filter(|feature| ![430, 766].contains(*feature));
    assert_eq!(shown, expected.copied().collect::<Vec<_>>());
    check(
        &["features", "--exclude", "nonsense", CARROT],
        1,
        &["`nonsense`", "hint: "],
    );
}

/// By the baseline's share of rows where the file has one, else by this input's.
#[test]
fn features_that_are_always_on() {
    let dir = Fixture::Demo.converted(TensorType::F32); // its SAE has no baseline
    let dir = dir.to_str().expect("a plain path");
    let common = ["features", "--json", "--top", "768", "-d", dir, CARROT];
    let all = by_feature(&json(&common));
    let kept = by_feature(&json(&[&common[..], &["--exclude-always-on"]].concat()));
    let is_kept = |entry: &Value| number(entry, "n_tokens") < 0.9 * 64.0;
    for (feature, entry) in &all {
        assert_eq!(kept.contains_key(feature), is_kept(entry), "{feature}");
    }
    // Of one position, whatever is active there is always on.
    let one = [&common[..], &["--over", "0"]].concat();
    assert!(!by_feature(&json(&one)).is_empty());
    let none = [&one[..], &["--exclude-always-on"]].concat();
    assert!(by_feature(&json(&none)).is_empty());

    let sae = llava_sae_cpp::demo::files()
        .expect("the cache can be written")
        .sae;
    let sae = gguf_tools::sae::SaeFile::open(&sae).expect("a valid file");
    let baseline = sae.baseline().expect("readable").expect("the demo has one");
    let common = ["features", "--json", "--top", "768", CARROT];
    let all = by_feature(&json(&common));
    let kept = by_feature(&json(&[&common[..], &["--exclude-always-on"]].concat()));
    for feature in all.keys() {
        let share = baseline.frequency[*feature as usize];
        assert_eq!(kept.contains_key(feature), share < 0.9, "{feature}");
    }
}

#[test]
fn pictures_together_have_the_means_of_their_scores() {
    let top = ["features", "--json", "--top", "768"];
    let alone = PICTURES.map(|picture| by_feature(&json(&[&top[..], &[picture]].concat())));
    let together = json(&[&top[..], &["--group"], &PICTURES].concat());
    assert_eq!(together["images"].as_array().map(Vec::len), Some(3));
    let together = by_feature(&together);
    let fired: std::collections::HashSet<_> = alone.iter().flat_map(HashMap::keys).collect();
    assert_eq!(together.len(), fired.len());
    for (feature, entry) in &together {
        let found: Vec<_> = alone.iter().filter_map(|one| one.get(feature)).collect();
        let sum = |key: &str| found.iter().map(|one| number(one, key)).sum::<f64>();
        assert!(
            (number(entry, "score") - sum("score") / 3.0).abs() < 1e-4,
            "{feature}"
        );
        assert_eq!(number(entry, "n_tokens"), sum("n_tokens"), "{feature}");
        assert_eq!(entry["n_images"], found.len(), "{feature}");
        // lift = mean maximum − usual maximum, and a picture's own is its maximum − the usual one.
        let usual = number(found[0], "max") - number(found[0], "lift");
        let lift = sum("max") / 3.0 - usual;
        assert!((number(entry, "lift") - lift).abs() < 1e-4, "{feature}");
    }
    let table = stdout(&[&["features", "-q", "--group"][..], &PICTURES].concat());
    assert!(
        table.starts_with("3 images, mean of each: largest activation"),
        "{table}"
    );
    check(&["features", "--group", "-p", "a"], 2, &["IMAGE"]);
}

/// Heat maps and pages are of pictures.
#[test]
fn texts_have_no_pictures() {
    let target = temporary_root().join("no-picture");
    let target = target.to_str().expect("a plain path");
    for option in ["--heatmap", "--html"] {
        check(&["features", option, target, "-p", "a"], 2, &["IMAGE"]);
    }
    let report = json(&["features", "--json", "-p", "a carrot"]);
    assert!(report["image"].is_null() && report["grid"].is_null());
}
