//! Several SAEs in one pass, from the command line: each gives what it gives alone.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeOptions};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::bad_input::check;
use crate::browser;
use crate::command_line::{json, run, stdout, text};
use crate::fixture::{Fixture, picture, temporary_root};

/// The demo's SAE at two layers: at the second it was trained on, at the first it sees something else.
pub(crate) fn saes(name: &str) -> [PathBuf; 2] {
    let dir = temporary_root().join("several").join(name);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    [
        ("lower", "blocks.0.hook_resid_post"),
        ("upper", "blocks.1.hook_resid_post"),
    ]
    .map(|(name, hook_name)| sae_at(hook_name, &dir.join(format!("{name}.gguf"))))
}

/// Writes the demo's SAE for a hook point, with labels in the second layer.
pub(crate) fn sae_at(hook_name: &str, target: &Path) -> PathBuf {
    let options = SaeOptions {
        weight_type: TensorType::F16,
        norm_factor: None,
        hook_name: Some(hook_name.to_owned()),
        labels: match hook_name.starts_with("blocks.1.") {
            true => vec![Fixture::Demo.dir().join("sae/labels.json")],
            false => Vec::new(),
        },
        overwrite: Overwrite::Replace,
    };
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let source = Fixture::Demo.dir().join("sae");
    sae::convert(&source, target, &options, go_on).expect("it converts");
    target.to_owned()
}

/// The demo with these SAEs.
pub(crate) fn with<'a>(models: &'a Path, saes: &'a [PathBuf]) -> Vec<&'a str> {
    let mut args = vec!["--no-probe", "--image-cache", "0", "-d", text(models)];
    for sae in saes {
        args.extend(["--sae", text(sae)]);
    }
    args
}

fn args<'a>(command: &[&'a str], with: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [command, with, more].concat()
}

#[test]
fn features_of_two_are_those_of_each() {
    let models = Fixture::Demo.converted(TensorType::F16);
    let saes = saes("features");
    let look = |saes: &[PathBuf]| {
        json(&args(
            &["features"],
            &with(&models, saes),
            &["--json", "--top", "4", picture()],
        ))
    };
    let both = look(&saes);
    let both = both["features"].as_array().expect("a list");
    assert_eq!(both.len(), 8);
    for (place, (path, name)) in saes.iter().zip(["lower", "upper"]).enumerate() {
        let alone = look(std::slice::from_ref(path));
        for (i, alone) in alone["features"]
            .as_array()
            .expect("a list")
            .iter()
            .enumerate()
        {
            let ours = &both[4 * place + i];
            let feature = format!("{name}/{}", alone["feature"]);
            assert_eq!(ours["feature"], Value::String(feature));
            for key in [
                "rank", "label", "score", "max", "n_tokens", "active", "patches",
            ] {
                assert_eq!(ours[key], alone[key], "{name}: {key}");
            }
        }
    }
    // As tables: one each.
    let shown = stdout(&args(
        &["features"],
        &with(&models, &saes),
        &["--top", "3", picture()],
    ));
    let titles = shown
        .lines()
        .filter(|line| line.contains("largest activation"));
    let titles: Vec<_> = titles.collect();
    assert!(
        titles[0].ends_with(", lower") && titles[1].ends_with(", upper"),
        "{shown}"
    );
    let main = stdout(&args(
        &[],
        &with(&models, &saes),
        &["--top", "3", "-n", "2", picture()],
    ));
    assert!(main.contains("Features of lower that"), "{main}");
}

#[test]
fn interventions_name_the_sae() {
    let models = Fixture::Demo.converted(TensorType::F16);
    let saes = saes("interventions");
    let with = with(&models, &saes);
    let steered = |steer: &str, saes: &[&str]| {
        let report = json(&args(
            &[],
            saes,
            &["--json", "--steer", steer, "-n", "12", picture()],
        ));
        (
            report["steered"]["text"].clone(),
            report["interventions"].clone(),
        )
    };
    let (both, set) = steered("upper/3:40", &with);
    let alone = self::with(&models, &saes[1..]);
    assert_eq!(both, steered("3:40", &alone).0);
    assert_eq!(set[0]["feature"], "upper/3");
    // What was printed is read again.
    let file = temporary_root().join("several/interventions/set.json");
    std::fs::write(&file, serde_json::json!({"interventions": set}).to_string()).expect("our own");
    let again = [
        "--json",
        "--interventions",
        text(&file),
        "-n",
        "12",
        picture(),
    ];
    assert_eq!(json(&args(&[], &with, &again))["steered"]["text"], both);
    check(
        &args(&[], &with, &["--steer", "3:40", picture()]),
        1,
        &["does not say which SAE", "`lower`, `upper`", "hint: "],
    );
    check(
        &args(&[], &with, &["--steer", "middle/3:40", picture()]),
        1,
        &["`middle/3`"],
    );
    let twice = [saes[0].clone(), saes[0].clone()];
    check(
        &args(&[], &self::with(&models, &twice), &[picture()]),
        1,
        &["two of the SAEs are called `lower`"],
    );
}

#[test]
fn captures_hold_both() {
    let models = Fixture::Demo.converted(TensorType::F16);
    let saes = saes("captures");
    let dir = temporary_root().join("several/captures");
    let capture = |saes: &[PathBuf], name: &str| {
        let file = dir.join(name);
        let more = ["-n", "3", "--force", "-o", text(&file), picture()];
        stdout(&args(&["capture"], &with(&models, saes), &more));
        std::fs::read(file).expect("it was written")
    };
    let both = capture(&saes, "both.safetensors");
    let both = SafeTensors::deserialize(&both).expect("its own format");
    for (path, name) in saes.iter().zip(["lower", "upper"]) {
        let alone = capture(std::slice::from_ref(path), "alone.safetensors");
        let alone = SafeTensors::deserialize(&alone).expect("its own format");
        for key in ["resid", "feature_offsets", "feature_ids", "feature_values"] {
            let ours = both.tensor(&format!("{name}/{key}")).expect("it is there");
            let theirs = alone.tensor(key).expect("it is there");
            assert_eq!(ours.shape(), theirs.shape());
            assert!(ours.data() == theirs.data(), "{name}/{key}");
        }
        let logits = |file: &SafeTensors<'_>| file.tensor("logits").expect("there").data().to_vec();
        assert!(logits(&both) == logits(&alone), "{name}: logits");
    }
}

#[test]
fn pages_maps_and_metrics_follow() {
    let models = Fixture::Demo.converted(TensorType::F16);
    let saes = saes("pages");
    let dir = temporary_root().join("several/pages");
    let (page, maps) = (dir.join("page.html"), dir.join("maps"));
    let with = with(&models, &saes);
    let more = [
        "--top",
        "2",
        "--html",
        text(&page),
        "--heatmap",
        text(&maps),
        "-n",
        "4",
        "--force",
    ];
    stdout(&[&args(&["features"], &with, &more)[..], &[picture()]].concat());
    let html = std::fs::read_to_string(&page).expect("it was written");
    assert!(html.contains("\"names\":{") && html.contains("upper/"));
    if let Some(mut browser) = browser::Page::open(&page) {
        // The page's address names the SAE too.
        for sae in ["upper/", "lower/"] {
            let name = "option.children[1].textContent";
            let option = format!(
                "[...document.querySelectorAll('.option')].find(option => {name}.startsWith('{sae}'))"
            );
            let shown = browser.value(&format!("(option => {name})({option})"));
            let shown = shown.as_str().expect("a text");
            browser.value(&format!("location.hash = '#feature={shown}'"));
            let chosen = "document.querySelector('.option[aria-selected=true]')";
            browser.expect(&format!("(option => {name})({chosen})"), shown);
            browser.value(&format!("{option}.click()"));
            browser.expect(
                "decodeURIComponent(location.hash)",
                format!("#feature={shown}"),
            );
        }
        assert!(browser.errors().is_empty(), "{:?}", browser.errors());
    }
    let names = crate::command_line::names(&maps);
    let of = |name: &str| names.iter().filter(|file| file.contains(name)).count();
    assert!(of("-lower-") >= 1 && of("-upper-") == 2, "{names:?}");
    let printed = stdout(&args(&["metrics"], &with, &["--json", picture()]));
    let reports: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(reports.len(), 2);
    let alone = json(&args(
        &["metrics"],
        &self::with(&models, &saes[1..]),
        &["--json", picture()],
    ));
    for key in ["text", "image", "loss"] {
        assert_eq!(reports[1][key], alone[key], "{key}");
    }
    assert!(
        run(&args(&["metrics"], &with, &[picture()]))
            .status
            .success()
    );
}
