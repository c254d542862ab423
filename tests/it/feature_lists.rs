//! `features`: what is hidden, and several pictures together.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::fixture::{Fixture, temporary_root};
use crate::gemma3_set;
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
        .saes[0]
        .clone();
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
    let active: std::collections::HashSet<_> = alone.iter().flat_map(HashMap::keys).collect();
    assert_eq!(together.len(), active.len());
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

/// Heat maps are of pictures.
#[test]
fn texts_have_no_pictures() {
    let target = temporary_root().join("no-picture");
    let target = target.to_str().expect("a plain path");
    check(&["features", "--heatmap", target, "-p", "a"], 2, &["IMAGE"]);
    let report = json(&["features", "--json", "-p", "a carrot"]);
    assert!(report["image"].is_null() && report["grid"].is_null());
    assert_eq!(report["n_image_tokens"], 0);
}

/// What `--over` names, and the positions where the listed features are active.
fn over(list: &str, more: &[&str]) -> (Value, BTreeSet<u64>) {
    let args = ["features", "--json", "--top", "768", "--over", list];
    let report = json(&[&args[..], more].concat());
    let mut positions = BTreeSet::new();
    for feature in report["features"].as_array().expect("a list") {
        let active = feature["active"].as_array().expect("a list");
        assert_eq!(feature["n_tokens"], active.len());
        let largest = active
            .iter()
            .map(|pair| pair[1].as_f64().expect("a number"));
        assert_eq!(largest.fold(0.0, f64::max), number(feature, "max"));
        positions.extend(
            active
                .iter()
                .map(|pair| pair[0].as_u64().expect("a position")),
        );
    }
    (report, positions)
}

/// The first row's activations outdo all others, so that a ranking of texts was one of `<bos>`.
#[test]
fn special_tokens_are_left_out_unless_they_are_named() {
    let texts = ["-p", "a carrot on the grass"];
    let (report, with) = over("prompt,special", &texts);
    let tokens = report["tokens"].as_array().expect("a list");
    let is_special = |text: &str| text.starts_with('<') && text.ends_with('>');
    let special: BTreeSet<u64> = (0..)
        .zip(tokens)
        .filter(|(_, token)| is_special(token["text"].as_str().expect("a text")))
        .map(|(position, _)| position)
        .collect();
    // <bos>, and the beginnings and the end of turns.
    assert_eq!(special.len(), 4, "{tokens:?}");
    assert_eq!(with.len(), tokens.len());
    let others: BTreeSet<u64> = with.difference(&special).copied().collect();
    assert_eq!(over("prompt", &texts).1, others);
    assert_eq!(over("all", &texts).1, others);
    assert_eq!(over("special", &texts).1, special);
    assert_eq!(
        over("0", &texts).1,
        BTreeSet::from([0]),
        "it is given explicitly"
    );
    let default = json(&[&["features", "--json", "--top", "768"], &texts[..]].concat());
    assert_eq!(default["features"], over("prompt", &texts).0["features"]);
    let table = stdout(&[&["--top", "3", "-n", "1"], &texts[..]].concat());
    let top = default["features"][0]["feature"].to_string();
    assert!(table.contains(&format!("     1  {top:>7}")), "{table}");
    // A text without others says how to see them.
    let empty = ["features", "--raw-prompt", "-p", ""];
    check(
        &empty,
        1,
        &["no position", "over `prompt,special`", "`--over`"],
    );
}

#[test]
fn ranges_and_lists_of_positions() {
    let positions = |list: &str| over(list, &[CARROT]).1;
    let check_same = |list: &str, expected: &[u64]| {
        assert_eq!(
            positions(list),
            expected.iter().copied().collect(),
            "{list}"
        );
    };
    check_same("5..9", &[5, 6, 7, 8, 9]);
    check_same("-3..-1", &[75, 76, 77]);
    check_same("76..-1,-1, 5", &[5, 76, 77]);
    let image: Vec<u64> = (4..68).collect();
    check_same("image", &image);
    check_same("image,-1", &[&image[..], &[77]].concat());
    let check = |list: &str, code, words: &[&str]| {
        check(&["features", "--over", list, CARROT], code, words);
    };
    check("5..100", 1, &["no position 100", "78 rows", "hint: "]);
    check("-79..-1", 1, &["no position -79", "hint: "]);
    check("9..5", 1, &["9..5", "hint: "]);
    for list in ["5..", "..5", "5...9", "image,", "no-special", "bos", ""] {
        check(list, 2, &["--over"]);
    }
}

/// The rows of generated tokens, but for the last one, which no run reads.
#[test]
fn generated_tokens_have_features() {
    let (report, positions) = over("generated", &["-n", "5", CARROT]);
    assert_eq!(positions, (78..82).collect());
    let tokens = report["tokens"].as_array().expect("a list");
    assert_eq!(tokens.len(), 82);
    assert_eq!(tokens[78]["kind"], "generated");
    assert_eq!(tokens[78]["text"], "The");
    check(
        &["features", "--over", "generated", "-n", "0", CARROT],
        1,
        &["the generated tokens"],
    );
}

/// The score stands beside the largest activation only where it is another number.
#[test]
fn tables_show_a_number_once() {
    let head = |more: &[&str]| {
        let table = stdout(&[&["features", "-q", "--top", "1", CARROT], more].concat());
        let head = table.lines().nth(1).expect("a table").split_whitespace();
        head.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(head(&[]), "rank feature lift max tokens label");
    assert_eq!(head(&["--over", "all"]), "rank feature max tokens label");
    for more in [["--pool", "sum"], ["--group", PICTURES[1]]] {
        assert!(head(&more).contains("score max"), "{more:?}");
    }
}

/// A picture that Gemma 3 sees, with a grid of pooled patches.
#[test]
fn features_of_gemma_3() {
    let files = gemma3_set::Set::small().files();
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let picture = text(&gemma3_set::root().join("pictures/wide.png"));
    let (model, mmproj) = (
        text(&files.model),
        text(files.mmproj.as_deref().expect("given")),
    );
    let sae = text(&files.saes[0]);
    let of_files = ["-m", &model, "--mmproj", &mmproj, "--sae", &sae, "-t", "1"];
    let report = json(&[&["features"], &of_files[..], &["--json", &picture]].concat());
    assert_eq!(report["grid"], serde_json::json!([4, 4]));
    assert_eq!(report["n_image_tokens"], 16);
    let report = json(
        &[
            &of_files[..],
            &["--json", "--steer", "5:4", "-n", "3", &picture],
        ]
        .concat(),
    );
    assert_eq!(report["n_image_tokens"], 16);
    check(
        &[&of_files[..], &["--image-prep", "pad", &picture]].concat(),
        1,
        &["`pad` is no way", "`stretch`"],
    );
}
