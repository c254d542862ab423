//! `baseline`, and rankings by it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::TensorType;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::demo;

use crate::bad_input::check;
use crate::command_line::{json, names, run, stdout, text};
use crate::fixture::{Fixture, picture, temporary_root};

const PICTURES: &str = "assets/pictures";

/// The largest activation of each feature that a picture activates, and its lift.
fn features(args: &[&str], picture: &str) -> HashMap<u64, (f64, Option<f64>)> {
    let common = ["features", "--json", "--top", "768", picture];
    let report = json(&[&common[..], args].concat());
    let entries = report["features"].as_array().expect("a list").clone();
    let entry = |entry: &serde_json::Value| {
        let feature = entry["feature"].as_u64().expect("an index");
        let max = entry["max"].as_f64().expect("a number");
        (feature, (max, entry["lift"].as_f64()))
    };
    entries.iter().map(entry).collect()
}

fn files_with(sae: &Path) -> Vec<String> {
    let demo = demo::files().expect("the cache folder can be written");
    let mmproj = demo.mmproj.expect("the demo sees");
    [
        ("--model", demo.model.as_path()),
        ("--mmproj", &mmproj),
        ("--sae", sae),
    ]
    .iter()
    .flat_map(|(option, path)| [(*option).to_owned(), text(path).to_owned()])
    .collect()
}

#[test]
fn a_baseline_is_the_mean_of_the_pictures_maxima() {
    let dir = temporary_root().join("baseline");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let target = dir.join("sae.gguf");
    stdout(&["baseline", PICTURES, "-o", text(&target)]);

    let pictures: Vec<PathBuf> = names(Path::new(PICTURES))
        .iter()
        .map(|name| Path::new(PICTURES).join(name))
        .collect();
    let seen: Vec<_> = pictures
        .iter()
        .map(|path| features(&["--rank", "activation"], text(path)))
        .collect();
    let copy = SaeFile::open(&target).expect("a valid file");
    let baseline = copy.baseline().expect("readable").expect("present");
    assert_eq!(baseline.n_pictures as usize, pictures.len());
    let usual = baseline.usual.as_ref().expect("measured");
    for (feature, &mean) in baseline.mean_max.iter().enumerate() {
        let max = |features: &HashMap<u64, (f64, Option<f64>)>| {
            features.get(&(feature as u64)).map_or(0.0, |entry| entry.0)
        };
        let expected = seen.iter().map(max).sum::<f64>() / seen.len() as f64;
        assert!(
            (f64::from(mean) - expected).abs() < 1e-4,
            "{feature}: {mean} {expected}"
        );
        let squares = seen
            .iter()
            .map(|features| max(features).powi(2))
            .sum::<f64>();
        let sum = expected * seen.len() as f64;
        let expected = if sum > 0.0 { squares / sum } else { 0.0 };
        let usual = f64::from(usual[feature]);
        assert!(
            (usual - expected).abs() < 1e-4,
            "{feature}: {usual} {expected}"
        );
    }
    assert!(baseline.frequency.iter().any(|&share| share > 0.3));
    assert!(
        baseline
            .frequency
            .iter()
            .all(|share| (0.0..=1.0).contains(share))
    );

    // All else is the original's.
    let original = SaeFile::open(&demo::files().expect("written").saes[0]).expect("a valid file");
    assert_eq!(copy.meta, original.meta);
    let mut rows = [vec![0.0; copy.meta.d_in], vec![0.0; copy.meta.d_in]];
    for feature in [0, 1, 255, 767] {
        copy.decoder_row(feature, &mut rows[0]).expect("readable");
        original
            .decoder_row(feature, &mut rows[1])
            .expect("readable");
        assert_eq!(rows[0], rows[1]);
    }

    // Rankings go by lift from then on, unless told otherwise.
    let files = files_with(&target);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let shown = picture();
    for (feature, (max, lift)) in features(&files, shown) {
        let usual = f64::from(baseline.mean_max[feature as usize]);
        let lift = lift.expect("there is a baseline");
        assert!((lift - (max - usual)).abs() < 1e-4, "{feature}");
    }
    let table = stdout(&[&["features", "-q", shown][..], &files].concat());
    assert!(
        table
            .lines()
            .nth(1)
            .is_some_and(|line| line.contains("lift"))
    );
    let main = stdout(&[&["-q", "--top", "1", shown][..], &files].concat());
    assert!(main.contains("minus the usual one"), "{main}");

    // A copy of a copy has one baseline, the newer one.
    let again = dir.join("again.gguf");
    let more = ["baseline", PICTURES, "-o", text(&again)];
    stdout(&[&more[..], &files].concat());
    let again = SaeFile::open(&again).expect("a valid file").baseline();
    assert_eq!(again.expect("readable").as_ref(), Some(&baseline));
}

/// Folders below, litter and names as for `scan`; one that cannot be read does not end it.
#[test]
fn a_baseline_of_a_folder_of_folders() {
    let dir = temporary_root().join("baseline-folders");
    let pictures = dir.join("pictures");
    std::fs::create_dir_all(pictures.join("food/@eaDir")).expect("a folder of our own");
    let copy = |to: &str| {
        let source = Path::new(PICTURES).join("apple.png");
        std::fs::copy(source, pictures.join(to)).expect("a copy");
    };
    copy("food/apple");
    copy("boat.png");
    copy("food/@eaDir/apple.png");
    std::fs::write(pictures.join("food/._apple.png"), "litter").expect("a file of our own");
    std::fs::write(pictures.join("half.png"), "broken").expect("a file of our own");
    let target = dir.join("sae.gguf");
    let output = run(&["baseline", "-q", text(&pictures), "-o", text(&target)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("skipped 1 of 3 pictures"), "{said}");
    let baseline = SaeFile::open(&target).expect("a valid file").baseline();
    let baseline = baseline.expect("readable").expect("present");
    assert_eq!(baseline.n_pictures, 2);
}

#[test]
fn baselines_that_are_refused() {
    let dir = temporary_root().join("baseline-bad");
    std::fs::create_dir_all(dir.join("empty")).expect("a folder of our own");
    let target = dir.join("sae.gguf");
    let empty = dir.join("empty");
    check(
        &["baseline", text(&empty), "-o", text(&target)],
        1,
        &["no picture", "hint: "],
    );
    check(
        &["baseline", "/no/such/folder", "-o", text(&target)],
        1,
        &["/no/such/folder"],
    );
    std::fs::write(empty.join("notes.txt"), "no picture").expect("a file of our own");
    check(
        &["baseline", text(&empty), "-o", text(&target)],
        1,
        &["other files: 1 .txt", "no pictures in", "hint: "],
    );
    std::fs::write(empty.join("a.png"), "broken").expect("a file of our own");
    check(
        &["baseline", "-q", text(&empty), "-o", text(&target)],
        1,
        &[
            "skipped: ",
            "a.png",
            "none of the 1 pictures",
            "the warnings say why",
        ],
    );
    // Without a projector, it is said once.
    let demo = Fixture::Demo.converted(TensorType::F32);
    let (model, sae) = (demo.join("model-f32.gguf"), demo.join("sae.gguf"));
    let blind = ["-m", text(&model), "--sae", text(&sae)];
    let blind = run(&[&["baseline", PICTURES, "-o", text(&target)], &blind[..]].concat());
    let said = String::from_utf8_lossy(&blind.stderr);
    assert_eq!(blind.status.code(), Some(1));
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.contains("error: this model has no projector"),
        "{said}"
    );
    assert!(!target.exists());
    std::fs::write(&target, "mine").expect("a file of our own");
    assert_eq!(
        run(&["baseline", PICTURES, "-o", text(&target)])
            .status
            .code(),
        Some(1)
    );
    assert_eq!(std::fs::read(&target).expect("still there"), b"mine");
    let plain = Fixture::Demo.converted(TensorType::F32).join("sae.gguf");
    let files = files_with(&plain);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let lift = ["features", "--rank", "lift", picture()];
    check(&[&lift[..], &files].concat(), 1, &["no baseline", "hint: "]);
}

/// Strengths in multiples of what is usual are raw ones times that, wherever units go.
#[test]
fn strengths_count_usual_activations() {
    let demo = demo::files().expect("the cache folder can be written");
    let sae = SaeFile::open(&demo.saes[0]).expect("a valid file");
    let usual = sae
        .baseline()
        .expect("readable")
        .expect("the demo has one")
        .usual;
    let usual = usual.expect("measured");
    let carrot = 430;
    // Both are the same number in f32 where the multiple is a power of two.
    let raw = |multiple: f32| (multiple * usual[carrot]).to_string();
    let describe = |kind: &str, value: &str, units: &str| {
        let change = format!("carrot:{value}");
        json(&[
            kind,
            &change,
            "--units",
            units,
            "--at",
            "image",
            "-n",
            "24",
            "--json",
            picture(),
        ])
    };
    for (kind, multiple) in [("--steer", -2.0), ("--clamp", 4.0)] {
        let counted = describe(kind, &multiple.to_string(), "usual");
        assert_eq!(counted["interventions"][0]["units"], "usual");
        assert_eq!(counted["interventions"][0]["value"], multiple);
        let expected = describe(kind, &raw(multiple), "raw");
        assert_eq!(counted["steered"], expected["steered"], "{kind}");
        assert_ne!(
            counted["steered"],
            describe(kind, "0", "usual")["steered"],
            "{kind}"
        );

        let dir = temporary_root().join("usual-set");
        std::fs::create_dir_all(&dir).expect("a folder of our own");
        let set = dir.join("set.json");
        std::fs::write(&set, counted.to_string()).expect("a file of our own");
        let args = [
            "--interventions",
            text(&set),
            "-n",
            "24",
            "--json",
            picture(),
        ];
        assert_eq!(json(&args)["steered"], counted["steered"]);
    }
    let sweep = |range: &str, units: &str| {
        let steer = format!("carrot:{range}");
        json(&[
            "sweep",
            "--steer",
            &steer,
            "--units",
            units,
            "-n",
            "8",
            "--json",
            picture(),
        ])
    };
    let counted = sweep("-2..0:1", "usual");
    assert_eq!(counted["units"], "usual");
    let step = raw(1.0);
    let expected = sweep(&format!("-{}..0:{step}", raw(2.0)), "raw");
    for (counted, expected) in [0, 1, 2].map(|i| (&counted["steered"][i], &expected["steered"][i]))
    {
        assert_eq!(counted["text"], expected["text"]);
        assert!(
            (counted["kl"].as_f64().expect("a number")
                - expected["kl"].as_f64().expect("a number"))
            .abs()
                < 1e-6
        );
    }
    let vector = |name: &str, args: &[&str]| {
        let file = temporary_root().join(name);
        let args = [&["export-cvec", "--force", "-o", text(&file)], args].concat();
        stdout(&args);
        std::fs::read(&file).expect("just written")
    };
    let counted = vector("usual.gguf", &["--steer", "carrot:-2", "--units", "usual"]);
    let expected = format!("carrot:{}", raw(-2.0));
    assert_eq!(counted, vector("raw.gguf", &["--steer", &expected]));

    let silent = usual.iter().position(|&usual| usual == 0.0);
    let silent = format!("{}:1", silent.expect("one that no picture activates"));
    let refused = |args: &[&str], words: &[&str]| {
        check(&[args, &["--units", "usual", picture()]].concat(), 1, words);
    };
    refused(&["--steer", &silent], &["no picture", "`--units raw`"]);
    let plain = Fixture::Demo.converted(TensorType::F32).join("sae.gguf");
    let files = files_with(&plain);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let of_plain = [&["--steer", "carrot:1"][..], &files].concat();
    refused(
        &of_plain,
        &["does not say what is usual", "`llava-sae-cpp baseline`"],
    );
}

/// What is usual is near to how strongly a feature stands for its word in text, which a mean over all pictures is not.
#[test]
fn usual_activations_are_those_of_what_a_feature_stands_for() {
    let demo = demo::files().expect("the cache folder can be written");
    let sae = SaeFile::open(&demo.saes[0]).expect("a valid file");
    let baseline = sae.baseline().expect("readable").expect("the demo has one");
    let usual = baseline.usual.expect("measured");
    let classes = std::fs::read("tests/fixtures/demo/sae/class_features.json").expect("a fixture");
    let classes: HashMap<String, serde_json::Value> =
        serde_json::from_slice(&classes).expect("JSON");
    let ratios = |values: &[f32]| {
        let ratio = |class: &serde_json::Value| {
            let feature = class["feature"].as_u64().expect("an index") as usize;
            f64::from(values[feature]) / class["mean"].as_f64().expect("a number")
        };
        let mut ratios: Vec<f64> = classes.values().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    // Lowest, median and highest of 42 classes.
    let shown = |ratios: Vec<f64>| [0, ratios.len() / 2, ratios.len() - 1].map(|i| ratios[i]);
    let [low, median, high] = shown(ratios(&usual));
    assert!(
        low > 0.4 && (0.55..0.7).contains(&median) && high < 2.2,
        "{low} {median} {high}"
    );
    let [low, median, high] = shown(ratios(&baseline.mean_max));
    assert!(
        low < 0.05 && median < 0.13 && high < 0.4,
        "{low} {median} {high}"
    );
}
