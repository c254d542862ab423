//! What a report of `reproduce` says, and its page in a browser.

use std::collections::HashMap;
use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::browser;
use crate::command_line::{json as json_of, run, text};
use crate::fixture::Fixture;
use crate::reproduce::{
    CLASSES, PICTURES, demo_report, demo_run, folder, outcome, pictures, protocol, read, root,
    small, values_of,
};

const PROMPT: &str =
    "<bos><start_of_turn>user\n<image>\nDescribe the image.<end_of_turn>\n<start_of_turn>model\n";

#[test]
fn a_report_says_what_it_was_run_with() {
    let report = demo_report();
    assert_eq!(
        report["program"],
        concat!("llava-sae-cpp ", env!("CARGO_PKG_VERSION"))
    );
    let lock = read(&root("Cargo.lock"));
    let sys = lock
        .split("name = \"llama-cpp-sys-2\"\nversion = \"")
        .nth(1);
    let version = sys
        .and_then(|rest| rest.split('"').next())
        .expect("its version");
    assert_eq!(report["llama_cpp"], format!("llama-cpp-sys-2 {version}"));
    for (i, (role, asset)) in [
        ("model", "model-f16.gguf"),
        ("projector", "mmproj-f16.gguf"),
        ("SAE", "sae-f16.gguf"),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = fs::read(root("assets").join(asset)).expect("a committed file");
        let hash = blake3::hash(&bytes);
        let file = &report["files"][i];
        assert_eq!(file["role"], role);
        assert_eq!(
            file["contents"],
            format!("{} bytes, blake3 {hash}", bytes.len())
        );
    }
    assert_eq!(report["settings"]["kv_type"], "f16");
    assert!(report["machine"]["threads"].as_u64() > Some(0));
    let of_demo: Value = serde_json::from_str(&read(&root("reproduce/demo.json"))).expect("JSON");
    assert_eq!(report["protocol"]["notes"], of_demo["notes"]);
    // Nothing of where the user's files are.
    let run = demo_run();
    for text in [read(&run.report), read(&run.page)] {
        // Temporary files are below it.
        assert!(!text.contains(env!("CARGO_MANIFEST_DIR")));
    }
}

/// Rankings and areas under the curve, from what `features` says of each picture and of each class.
#[test]
fn readings_are_those_of_features() {
    let report = demo_report();
    let protocol = &report["protocol"]["reading"];
    let hidden = protocol["hidden"].as_array().expect("a list").iter();
    let hidden: Vec<_> = hidden.map(Value::to_string).collect();
    let hidden = hidden.join(",");
    let common = [
        "features",
        "-q",
        "--json",
        "--raw-prompt",
        "-p",
        PROMPT,
        "--rank",
        "activation",
    ];
    let paths = |class: &str| -> Vec<String> {
        (0..16)
            .map(|i| format!("{PICTURES}/{class}/{i:02}.png"))
            .collect()
    };
    let carrots = paths("carrot");
    let carrots: Vec<_> = carrots.iter().map(String::as_str).collect();
    let group = ["--group", "--exclude", &hidden];
    let expected = json_of(&[&common[..], &group, &carrots].concat());
    let carrot_idx = CLASSES
        .iter()
        .position(|class| *class == "carrot")
        .expect("a class");
    let reading = &report["prompts"][0]["reading"][carrot_idx];
    let ids = |features: &Value| -> Vec<Value> {
        let features = features.as_array().expect("a list").iter();
        features.map(|one| one["feature"].clone()).collect()
    };
    assert_eq!(ids(&reading["top"]), ids(&expected["features"]));
    assert_eq!(reading["top"][0]["label"], "carrot");
    let score = |features: &Value| features[0]["score"].as_f64().expect("a number");
    assert_eq!(score(&reading["top"]), score(&expected["features"]));

    // All of a picture's features, so that the carrot's is among them wherever it is active.
    let every = ["--top", "768"];
    let mut values = HashMap::<bool, Vec<f64>>::new();
    for class in CLASSES {
        let paths = paths(class);
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        let output = run(&[&common[..], &every, &paths].concat());
        for line in str::from_utf8(&output.stdout).expect("UTF-8").lines() {
            let picture: Value = serde_json::from_str(line).expect("JSON");
            let mut features = picture["features"].as_array().expect("a list").iter();
            let carrot = features.find(|one| one["feature"] == 430);
            let value = carrot.map_or(0.0, |one| one["score"].as_f64().expect("a number"));
            values.entry(class == "carrot").or_default().push(value);
        }
    }
    let pairs = values[&true]
        .iter()
        .flat_map(|a| values[&false].iter().map(move |b| (a, b)));
    let won = pairs.clone().filter(|(a, b)| a > b).count() as f64;
    let drawn = pairs.clone().filter(|(a, b)| a == b).count() as f64;
    let auroc = (won + drawn / 2.0) / pairs.count() as f64;
    assert_eq!(reading["published"][0]["auroc"], json!(auroc));
    assert_eq!(reading["published"][0]["rank"], 1);
}

/// Captions and their log-probabilities, from what `sweep` says of a picture: of the steered feature, and of a
/// random one at a strength that makes it as long.
#[test]
fn captions_are_those_of_a_sweep() {
    let report = demo_report();
    let picture = &report["prompts"][0]["steering"][2];
    let path = format!("{PICTURES}/carrot/02.png");
    let sweep = |range: &str, units: &str| {
        json_of(&[
            "sweep",
            "-q",
            "--json",
            "--raw-prompt",
            "-p",
            PROMPT,
            "--at",
            "image",
            "-n",
            "48",
            "--steer",
            range,
            "--units",
            units,
            &path,
        ])
    };
    let check_caption = |ours: &Value, expected: &Value| {
        assert_eq!(ours["text"], expected["text"]);
        let log_prob = |caption: &Value| caption["mean_log_prob"].as_f64().expect("a number");
        // Other sequences in the context change sums' last bits.
        assert!(
            (log_prob(ours) - log_prob(expected)).abs() < 1e-2,
            "{ours} {expected}"
        );
    };
    let expected = sweep("430:-24..-8:8", "raw");
    check_caption(&picture["original"], &expected["original"]);
    for (i, strength_idx) in [(0, 4), (1, 1), (2, 0)] {
        let (ours, expected) = (&picture["steered"][strength_idx], &expected["steered"][i]);
        assert_eq!(ours["strength"], expected["strength"]);
        check_caption(ours, expected);
        let log_prob = |caption: &Value| caption["mean_log_prob"].as_f64().expect("a number");
        let loss = log_prob(&picture["original"]) - log_prob(ours);
        let said = ours["log_prob_loss"].as_f64().expect("a number");
        assert!((said - loss).abs() < 1e-12, "{said} {loss}"); // both were printed
    }

    let weights = fs::read(Fixture::Demo.dir().join("sae/sae_weights.safetensors"));
    let weights = weights.expect("a committed file");
    let w_dec = values_of(
        &SafeTensors::deserialize(&weights).expect("safetensors"),
        "W_dec",
    );
    let row = w_dec.chunks_exact(192).nth(430).expect("768 rows");
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    let control = &picture["controls"][0];
    let strength = control["as_strength"].as_f64().expect("a number") as f32 * norm;
    let range = format!("{}:{strength}..{strength}:1", control["feature"]);
    check_caption(control, &sweep(&range, "unit")["steered"][0]);
    // None that the protocol names is drawn, and each is there once for each strength that counts.
    let protocol = &report["protocol"];
    let mut drawn: Vec<_> = picture["controls"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(drawn.len(), 3 * 3);
    drawn.dedup_by_key(|one| &one["feature"]);
    assert_eq!(drawn.len(), 3);
    for one in drawn {
        let feature = &one["feature"];
        assert!(*feature != protocol["steering"]["feature"]);
        let hidden = protocol["reading"]["hidden"].as_array().expect("a list");
        assert!(!hidden.contains(feature));
    }
}

#[test]
fn the_page_in_a_browser() {
    let report = demo_report();
    let Some(mut page) = browser::Page::open(&demo_run().page) else {
        return;
    };
    page.expect_text("#title .verdict", "✓ holds");
    let count = |selector: &str| format!("document.querySelectorAll('{selector}').length");
    page.expect(&count("#claims .item"), 3);
    page.expect(&count("#claims .verdict"), 6);
    page.expect(&count("#reading .item"), 7);
    page.expect(&count("#steering .item"), 8);
    // Of a picture and a prompt, seven rows with the title's, and nine controls.
    page.expect(
        &count("#steering .item:first-child .prompts > div:first-child > table tr"),
        7,
    );
    page.expect(
        &count("#steering .item:first-child .prompts > div:first-child details tr"),
        10,
    );
    let carrot = "#reading .item:nth-child(3)";
    page.expect_text(&format!("{carrot} h3"), "carrot");
    page.expect_text(&format!("{carrot} tr.published bdi"), "carrot");
    let caption = &report["prompts"][0]["steering"][0]["original"]["text"];
    page.expect_text("#steering .item bdi", caption.as_str().expect("a text"));
    page.expect_text("#steering .item td:nth-child(2)", "yes");
    let hash = report["files"][2]["contents"].as_str().expect("a text");
    page.expect(
        &format!("document.querySelector('#run').textContent.includes('{hash}')"),
        true,
    );
    page.expect("document.documentElement.scrollWidth <= innerWidth", true);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// Names that would be markup are shown as they are.
#[cfg(unix)]
#[test]
fn nasty_names_in_a_browser() {
    let nasty = "<img src=x onerror=alert(1)>";
    let class = "</script><b>&{{data}}";
    let dir = pictures("nasty", &["apple", "carrot"]);
    fs::rename(dir.join("carrot"), dir.join("plain")).expect("our own folder");
    fs::rename(
        dir.join("plain/02.png"),
        dir.join(format!("plain/00 {nasty}.png")),
    )
    .expect("our own file");
    let path = protocol("nasty", |protocol| {
        small(protocol);
        let of = |name: &str, feature: u32| json!({"name": name, "features": [feature]});
        protocol["reading"]["classes"] = json!([of("apple", 371), of("plain", 430)]);
        protocol["reading"]["classes_needed"] = json!(2);
        protocol["steering"]["class"] = json!("plain");
        protocol["name"] = json!(class);
        protocol["notes"] = json!([class]);
    });
    let page = folder("nasty-page").join("page.html");
    let args = [
        "reproduce",
        "-q",
        "--images",
        text(&dir),
        "--protocol",
        text(&path),
        "--force",
    ];
    let (code, _, stderr) = outcome(&run(&[&args[..], &["-o", text(&page)]].concat()));
    assert_eq!(code, Some(0), "{stderr}");
    let Some(mut page) = browser::Page::open(&page) else {
        return;
    };
    page.expect_text("#steering h3", &format!("00 {nasty}.png"));
    page.expect_text("#notes li", class);
    page.expect("document.querySelectorAll('img, b').length", 0);
    assert!(page.errors().is_empty(), "{:?}", page.errors());
}

/// A position is another token with another prompt.
#[test]
fn the_tokens_that_are_read_are_named() {
    let dir = pictures("of-two", &["apple", "carrot"]);
    let protocol = protocol("positions", |protocol| {
        let prompts = protocol["prompts"].clone();
        small(protocol);
        protocol["prompts"] = prompts;
        protocol["reading"]["positions"] = json!("1,-1");
        protocol["steering"]["pictures"] = json!(1);
    });
    let args = [
        "reproduce",
        "-q",
        "--json",
        "--images",
        text(&dir),
        "--protocol",
        text(&protocol),
    ];
    let (_, stdout, _) = outcome(&run(&args));
    let report: Value = serde_json::from_str(&stdout).expect("one JSON object");
    let read = |prompt: usize| report["prompts"][prompt]["read_tokens"].clone();
    let tokens = |first: &str, last: usize| json!([{"position": 1, "text": first}, {"position": last, "text": "\n"}]);
    assert_eq!(read(0), tokens("<start_of_turn>", 77));
    assert_eq!(read(1), tokens("<bos>", 78));
}
