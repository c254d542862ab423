//! Our own endpoints on features: they say what the command line says, and refuse what cannot be had.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{HookedModel, ModelFiles, SessionOptions};
use serde_json::{Value, json};

use crate::command_line::{self, stdout};
use crate::fixture::{Fixture, temporary_root, threads};
use crate::serve_fixture::{Served, about_picture, options};
use crate::several_saes::{sae_at, with};

pub(crate) const FEATURES: &str = "/api/features";

pub(crate) fn picture(name: &str) -> String {
    format!("assets/pictures/{name}.png")
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The answer has what the command line's report has, to the last digit.
fn check_features(served: &Served, mut request: Value, sae: Value, args: &[&str]) {
    let args = [&["features", "--json"], args].concat();
    let expected = command_line::json(&args);
    request["sae"] = sae;
    let answer = served.ask(FEATURES, &request);
    for member in ["n_image_tokens", "grid", "views", "tokens", "features"] {
        assert_eq!(answer[member], expected[member], "{member}: {args:?}");
    }
}

#[test]
fn features_are_the_command_lines() {
    let served = Served::demo(options());
    let check = |name: &str, sae: Value, args: &[&str]| {
        let path = picture(name);
        let request = json!({"messages": about_picture(name)});
        check_features(&served, request, sae, &[args, &[&path]].concat());
    };
    check("boat", json!({}), &["--top", "20"]);
    check("boat", json!(null), &["--top", "20"]);
    check(
        "frog",
        json!({"top": 3, "per_token": true}),
        &["--top", "3"],
    );
    check(
        "frog",
        json!({"top": 768, "over": "all,special", "pool": "sum", "exclude": ["carrot", 766]}),
        &[
            "--top",
            "768",
            "--over",
            "all,special",
            "--pool",
            "sum",
            "--exclude",
            "carrot,766",
        ],
    );
    check(
        "apple",
        json!({"over": "-1", "rank": "lift", "exclude_always_on": true}),
        &[
            "--top",
            "20",
            "--over",
            "-1",
            "--rank",
            "lift",
            "--exclude-always-on",
        ],
    );
    let text = "A carrot on the grass";
    let messages = json!([{"role": "user", "content": text}]);
    let of_text = ["--top", "20", "-p", text];
    check_features(&served, json!({"messages": messages}), json!({}), &of_text);
    let raw = [&of_text[..], &["--raw-prompt"]].concat();
    check_features(&served, json!({"prompt": text}), json!({}), &raw);
    let answer = served.ask(FEATURES, &json!({"prompt": text}));
    assert_eq!(
        [&answer["over"], &answer["ranked_by"]],
        ["prompt", "activation"]
    );
    let answer = served.ask(FEATURES, &json!({"messages": about_picture("boat")}));
    assert_eq!([&answer["over"], &answer["ranked_by"]], ["image", "lift"]);
    assert!(answer.get("activations").is_none());
}

/// All that is active at each position: what the command line says of all positions and features, the other way round.
#[test]
fn features_of_each_position() {
    let served = Served::demo(options());
    let request = json!({
        "messages": about_picture("carrot-cow"),
        "sae": {"top": 1, "per_token": true},
    });
    let answer = served.ask(FEATURES, &request);
    let path = picture("carrot-cow");
    let all = [
        "features",
        "--json",
        "--top",
        "768",
        "--over",
        "all,special",
    ];
    let report = command_line::json(&[&all[..], &[&path]].concat());
    let mut expected = vec![Vec::new(); list(&report["tokens"]).len()];
    let mut features = list(&report["features"]).to_vec();
    features.sort_by_key(|entry| entry["feature"].as_u64());
    for entry in &features {
        for pair in list(&entry["active"]) {
            let position = pair[0].as_u64().expect("a position") as usize;
            expected[position].push(json!([entry["feature"], pair[1]]));
        }
        let name = entry["feature"].to_string();
        let label = answer["labels"].get(&name).unwrap_or(&Value::Null);
        assert_eq!(*label, entry["label"], "{name}");
    }
    assert_eq!(answer["activations"], json!(expected));
}

#[test]
fn heat_maps_are_the_command_lines() {
    let served = Served::demo(options());
    let request = json!({
        "messages": about_picture("frog"),
        "sae": {"top": 2, "heatmap": true},
    });
    let answer = served.ask(FEATURES, &request);
    let dir = temporary_root().join("served-maps");
    let maps = dir.to_str().expect("a plain path");
    stdout(&[
        "features",
        "--top",
        "2",
        "--heatmap",
        maps,
        &picture("frog"),
    ]);
    for (i, entry) in list(&answer["features"]).iter().enumerate() {
        let url = entry["heatmap"].as_str().expect("it is on the image");
        let png = url.strip_prefix("data:image/png;base64,").expect("a PNG");
        let path = dir.join(format!("frog-{}-{}.png", i + 1, entry["feature"]));
        let drawn = std::fs::read(path).expect("it was drawn");
        assert!(STANDARD.decode(png).expect("base64") == drawn, "{i}");
    }
}

#[test]
fn what_is_known_of_features() {
    let served = Served::demo(options());
    let labels = served.get("/api/labels?q=carrot&top=2").json();
    let expected = command_line::json(&["labels", "carrot", "--top", "2", "--json"]);
    assert_eq!(labels["n_found"], expected["n_found"]);
    let named = |entry: &Value| json!({"feature": entry["feature"], "label": entry["label"], "usual": entry["usual"]});
    let expected: Vec<_> = list(&expected["features"]).iter().map(named).collect();
    assert_eq!(labels["labels"], json!(expected));
    assert!(!expected.is_empty());
    let typo = |how: &str| served.get(&format!("/api/labels?q=carot{how}")).json();
    assert_eq!(
        (&typo("")["matching"], &typo("")["labels"][0]),
        (&json!("fuzzy"), &labels["labels"][0])
    );
    assert_eq!(typo("&match=contains")["n_found"], 0);
    let begin = served.get("/api/labels?q=carr&match=prefix").json();
    assert_eq!(
        (&begin["matching"], &begin["labels"][0]),
        (&json!("prefix"), &labels["labels"][0])
    );

    let card = |path: &str| served.get(&format!("{FEATURES}/{path}"));
    let expected = |args: &[&str]| {
        let args = [&["feature", "--json"], args].concat();
        command_line::json(&args)["features"][0].clone()
    };
    assert_eq!(card("mushroom").json(), expected(&["mushroom"]));
    assert_eq!(card("3?top=2").json(), expected(&["3", "--top", "2"]));
    let refused = |path: &str, status: u16, said: &str| {
        let sentence = served.get(path).refused(status);
        assert!(sentence.contains(said), "{path}: {sentence}");
    };
    refused("/api/features/99999", 404, "valid indices are 0 to");
    refused("/api/features/nothing%20such", 404, "`nothing such`");
    refused("/api/features/%ff", 400, "UTF-8");
    refused("/api/features/3?top=0", 400, "top");
    refused("/api/features/3?top=1001", 400, "at most");
    refused("/api/labels", 400, "no letter or digit");
    refused("/api/labels?q=a&top=x", 400, "top");
    refused("/api/labels?q=a&match=x", 400, "`fuzzy`");
}

#[test]
fn what_is_served() {
    let served = Served::demo(options());
    let model = served.get("/api/model").json();
    assert_eq!(model["model"], "demo");
    assert_eq!(model["command"], "");
    assert_eq!(model["has_images"], true);
    assert_eq!(model["parallel"], 2);
    let n_layers = served.model.language_model().n_layers();
    assert_eq!(model["n_layers"], n_layers);
    let sae = &model["saes"][0];
    assert_eq!(
        [&sae["d_sae"], &sae["has_baseline"]],
        [&json!(768), &json!(true)]
    );
    let kinds = list(&model["kinds"]).iter();
    let kinds: Vec<_> = kinds
        .map(|kind| kind["name"].as_str().expect("a name"))
        .collect();
    for kind in [
        "steer", "clamp", "ablate", "scale", "vector", "project", "cap",
    ] {
        assert!(kinds.contains(&kind), "{kind}");
    }
    let examples = list(&model["examples"]);
    assert_eq!(examples.len(), 6);
    for example in examples {
        let (name, url) = (&example["name"], example["url"].as_str().expect("a path"));
        let shown = served.get(url);
        assert_eq!(shown.header("content-type"), Some("image/png"));
        let path = picture(name.as_str().expect("a name"));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        assert!(
            shown.body == std::fs::read(path).expect("a picture"),
            "{name}"
        );
    }
    assert!(
        served
            .get("/api/examples/none.png")
            .refused(404)
            .contains("none.png")
    );
    assert!(
        served
            .get("/api/examples/..%2fREADME.md")
            .refused(404)
            .contains("README")
    );
    served.ask(FEATURES, &json!({"prompt": "a carrot"}));
    let status = served.get("/api/status").json();
    assert_eq!([&status["parallel"], &status["queue"]], [2, 16]);
    assert_eq!([&status["running"], &status["waiting"]], [0, 0]);
}

#[test]
fn what_cannot_be_asked_of_features() {
    let served = Served::demo(options());
    let check = |request: Value, param: &str, said: &str| {
        let answer = served.post(FEATURES, &request);
        let sentence = answer.refused(400);
        assert!(sentence.contains(said), "{request}: {sentence}");
        assert_eq!(answer.json()["error"]["param"], param, "{sentence}");
    };
    check(json!({}), "messages", "there is no prompt");
    check(json!({"messages": [], "prompt": ""}), "prompt", "keep one");
    check(
        json!({"prompt": "a", "sea": {}}),
        "sea",
        "`sea` is not known",
    );
    check(
        json!({"prompt": "a", "sae": {"topp": 1}}),
        "sae.topp",
        "`sae.topp`",
    );
    let sae = |member: &str, value: Value, said: &str| {
        let member_of = format!("sae.{member}");
        check(
            json!({"prompt": "a carrot", "sae": {member: value}}),
            &member_of,
            said,
        );
    };
    sae("top", json!(0), "nonzero");
    sae(
        "over",
        json!("everywhere"),
        "`everywhere` is not a set of positions",
    );
    sae("over", json!("image"), "no image rows");
    sae("over", json!("99"), "no position 99");
    sae("over", json!("generated"), "nothing is generated here");
    sae("over", json!("token:carrrot"), "no token");
    sae("pool", json!("median"), "unknown variant `median`");
    sae("rank", json!("loudness"), "unknown variant");
    sae("exclude", json!(["nothing such"]), "no label");
    sae("exclude", json!([99_999]), "no feature `99999`");
    let drawn = json!({"prompt": "a", "sae": {"top": 101, "heatmap": true}});
    check(drawn, "sae.top", "too many to draw");
}

#[test]
fn a_chat_gives_back_features() {
    let served = Served::demo(options());
    let chat = |sae: &Value| json!({"messages": about_picture("frog"), "sae": sae});
    let path = "/v1/chat/completions";
    let sae = json!({"top": 3, "per_token": true});
    let expected = served.ask(FEATURES, &chat(&sae));
    let mut request = chat(&sae);
    request["n"] = json!(2);
    assert_eq!(served.ask(path, &request)["sae"], expected);
    request["stream"] = json!(true);
    let stream = |request: &Value| {
        let frames = served.stream(path, request);
        let frames = frames.filter(|frame| frame != "[DONE]");
        let frames = frames.map(|frame| serde_json::from_str(&frame).expect("JSON"));
        frames.collect::<Vec<Value>>()
    };
    let found = stream(&request);
    let first = found.iter().find(|frame| frame["choices"][0]["index"] == 0);
    let first = first.expect("a chunk");
    assert_eq!(first["sae"], expected);
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant"}));
    assert_eq!(
        found
            .iter()
            .filter(|frame| frame.get("sae").is_some())
            .count(),
        1
    );

    let of_text = json!({"top": 3, "over": "generated"});
    let mut request = chat(&of_text);
    request["max_tokens"] = json!(6);
    let args = [
        "features",
        "--json",
        "--top",
        "3",
        "--over",
        "generated",
        "-n",
        "6",
    ];
    let expected = command_line::json(&[&args[..], &[&picture("frog")]].concat());
    let whole = served.ask(path, &request);
    assert_eq!(whole["sae"]["features"], expected["features"]);
    assert_eq!(whole["sae"]["tokens"], expected["tokens"]);
    request["stream"] = json!(true);
    let found = stream(&request);
    let last = found.last().expect("a chunk");
    assert_eq!(last["sae"], whole["sae"]);
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    let plain = served.ask(path, &json!({"messages": about_picture("frog")}));
    assert!(plain.get("sae").is_none());
    let refused = served.post(path, &chat(&json!({"over": "99"})));
    assert!(refused.refused(400).contains("no position 99"));

    // Texts as they stand give theirs back too, where it is one.
    let path = "/v1/completions";
    let mut request = json!({"prompt": "The image shows a carrot", "sae": {"top": 3}});
    let expected = served.ask(FEATURES, &request);
    assert_eq!(served.ask(path, &request)["sae"], expected);
    request["stream"] = json!(true);
    let mut frames = served.stream(path, &request);
    let first = frames.next().expect("a chunk");
    let first: Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!(first["sae"], expected);
    request["prompt"] = json!(["a", "b"]);
    assert!(
        served
            .post(path, &request)
            .refused(400)
            .contains("one prompt")
    );
}

/// Features of several SAEs have their names, in answers and in arguments.
#[test]
fn several_saes() {
    let models = Fixture::Demo.converted(TensorType::F32);
    let dir = temporary_root().join("served-saes");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let saes = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        .map(|hook| sae_at(hook, &dir.join(format!("{}.gguf", &hook[..8]))));
    let files = ModelFiles {
        model: models.join("model-f32.gguf"),
        mmproj: Some(models.join("mmproj-f32.gguf")),
        saes: saes.to_vec(),
    };
    let session = SessionOptions {
        threads: threads(),
        ..SessionOptions::default()
    };
    let model = HookedModel::open(&files, session).expect("it loads");
    let served = Served::of(model, options());
    let path = picture("boat");
    let with = with(&models, &saes);
    let features = ["features", "--json", "--top", "3", &path];
    let expected = command_line::json(&[&features[..], &with].concat());
    let messages = about_picture("boat");
    let sae = json!({"top": 3, "per_token": true});
    let answer = served.ask(FEATURES, &json!({"messages": messages, "sae": sae}));
    assert_eq!(answer["features"], expected["features"]);
    assert_eq!(list(&answer["features"]).len(), 6);
    let [lower, upper] = [0, 3].map(|i| answer["features"][i]["feature"].clone());
    assert!(lower.as_str().expect("a name").starts_with("blocks.0/"));
    let at = answer["features"][3]["argmax_position"]
        .as_u64()
        .expect("a position");
    let active = list(&answer["activations"][at as usize]);
    assert!(active.iter().any(|pair| pair[0] == upper));
    let named = upper.as_str().expect("a name").replace('/', "%2F");
    let card = served.get(&format!("{FEATURES}/{named}")).json();
    assert_eq!(card["feature"], upper);

    let steering = json!([
        {"kind": "clamp", "feature": lower, "value": 2.5},
        {"kind": "ablate", "feature": upper},
    ]);
    let answer = served.ask("/api/interventions", &json!({"steering": steering}));
    let arguments = list(&answer["arguments"]).iter();
    let arguments = arguments.map(|word| word.as_str().expect("a text"));
    let arguments: Vec<_> = arguments.collect();
    let args = [&["--json", "-n", "1", &path][..], &arguments, &with].concat();
    let report = command_line::json(&args);
    assert_eq!(answer["interventions"], report["interventions"]);
}
