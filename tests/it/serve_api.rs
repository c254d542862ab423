//! Our own endpoints: they say what the command line says, and refuse what cannot be had.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llava_sae_cpp::serve::ServeOptions;
use serde_json::{Value, json};

use crate::command_line::{self, stdout};
use crate::fixture::{NEIGHBOURS, temporary_root};
use crate::serve_fixture::{Served, about_picture, options};

const FEATURES: &str = "/api/features";

fn picture(name: &str) -> String {
    format!("assets/pictures/{name}.png")
}

fn list(value: &Value) -> &[Value] {
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
    let named = |entry: &Value| json!({"feature": entry["feature"], "label": entry["label"]});
    let expected: Vec<_> = list(&expected["features"]).iter().map(named).collect();
    assert_eq!(labels["labels"], json!(expected));
    assert!(!expected.is_empty());

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
    let status = served.get("/api/status").json();
    assert_eq!([&status["parallel"], &status["queue"]], [2, 16]);
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

fn frames(served: &Served, path: &str, request: &Value) -> Vec<Value> {
    let frames = served.stream(path, request);
    let frames = frames.map(|frame| serde_json::from_str(&frame).expect("JSON"));
    frames.collect()
}

/// The texts that came in pieces, by their run's name or number.
fn texts(frames: &[Value], run: &Value) -> String {
    let of_run = frames
        .iter()
        .filter(|frame| frame["type"] == "text" && frame["run"] == *run);
    of_run.filter_map(|frame| frame["text"].as_str()).collect()
}

fn joined(pieces: &Value, keep: impl Fn(&Value) -> bool) -> String {
    let kept = list(pieces).iter().filter(|piece| keep(&piece[1]));
    kept.filter_map(|piece| piece[0].as_str()).collect()
}

#[test]
fn interventions_are_said_as_the_command_line_takes_them() {
    let served = Served::demo(options());
    let ask = |steering: &Value| {
        let request = json!({"steering": steering, "messages": about_picture("boat")});
        served.ask("/api/interventions", &request)
    };
    let sorted = |entries: &Value| {
        let mut entries = list(entries).to_vec();
        entries.sort_by_key(Value::to_string);
        entries
    };
    let check = |steering: Value| {
        let answer = ask(&steering);
        let arguments = list(&answer["arguments"]).iter();
        let arguments = arguments.map(|argument| argument.as_str().expect("a text"));
        let boat = picture("boat");
        let args: Vec<_> = ["--json", "-n", "1"].into_iter().chain(arguments).collect();
        let report = command_line::json(&[&args[..], &[&boat]].concat());
        let (found, expected) = (&answer["interventions"], &report["interventions"]);
        assert_eq!(sorted(found), sorted(expected), "{args:?}");
    };
    check(json!([{"kind": "steer", "feature": "mushroom", "value": -12}]));
    check(json!({"interventions": [{"kind": "ablate", "feature": 7, "at": "all"}]}));
    check(json!([
        {"kind": "ablate", "feature": "carrot", "at": "image,-1"},
        {"kind": "clamp", "feature": 3, "value": 0.1, "at": "image,-1"},
        {"kind": "steer", "feature": 4, "value": -1e-7, "at": "image,-1"},
        {"kind": "scale", "feature": 5, "value": 1.7, "at": "image,-1"},
    ]));
    let when = json!({"feature": "mushroom", "above": 0.5});
    check(json!([
        {"kind": "steer", "feature": 4, "value": 3, "units": "unit", "at": "patch:0..1,2..3", "when": when},
        {"kind": "steer", "feature": 5, "value": 2, "units": "unit", "at": "patch:0..1,2..3", "when": when},
    ]));
    // What all options share differs, or cannot be said.
    let only_in_a_file = |steering: Value| {
        let answer = ask(&steering);
        assert_eq!(answer["arguments"], Value::Null, "{steering}");
        assert!(!list(&answer["interventions"]).is_empty());
    };
    let steer = |more: Value| {
        let mut entry = json!({"kind": "steer", "feature": 4, "value": 3});
        let members = more.as_object().expect("members").clone();
        entry.as_object_mut().expect("an object").extend(members);
        json!([entry, {"kind": "ablate", "feature": 5}])
    };
    only_in_a_file(steer(json!({"at": "image"})));
    only_in_a_file(steer(json!({"units": "unit"})));
    only_in_a_file(steer(json!({"when": when})));
    let values = vec![0.5; 192];
    only_in_a_file(json!([{"kind": "vector", "values": values, "value": 2}]));
    let nothing = json!({"interventions": [], "arguments": []});
    assert_eq!(ask(&json!([])), nothing);
    assert_eq!(served.ask("/api/interventions", &json!({})), nothing);

    let refused = |request: Value, param: &str, said: &str| {
        let answer = served.post("/api/interventions", &request);
        let sentence = answer.refused(400);
        assert!(sentence.contains(said), "{request}: {sentence}");
        assert_eq!(answer.json()["error"]["param"], param, "{sentence}");
    };
    let far = json!([{"kind": "ablate", "feature": 5, "at": "99"}]);
    served.ask("/api/interventions", &json!({"steering": far}));
    refused(json!({"steering": far, "prompt": "a"}), "steering", "99");
    let steering =
        |entry: Value, said: &str| refused(json!({"steering": [entry]}), "steering", said);
    steering(
        json!({"kind": "ablate", "feature": "nothing such"}),
        "no label",
    );
    steering(json!({"kind": "steer", "feature": 1}), "`value` is missing");
    steering(json!({"kind": "clam", "feature": 1}), "unknown kind");
    steering(
        json!({"kind": "ablate", "feature": 5, "label": "mushroom"}),
        "another SAE",
    );
}

#[test]
fn texts_are_compared_as_they_come() {
    let served = Served::demo(options());
    let sae = json!({"top": 4});
    let mut request = json!({
        "messages": about_picture("carrot-mushroom"),
        "steering": [{"kind": "steer", "feature": "mushroom", "value": -12}],
        "sae": sae,
    });
    let carrot = picture("carrot-mushroom");
    let args = ["--json", "--compare", "--steer", "mushroom:-12", &carrot];
    let expected = command_line::json(&args);
    let compare = |request: &Value| frames(&served, "/api/compare", request);
    let found = compare(&request);
    let looked = json!({"messages": request["messages"], "sae": sae});
    let features = served.ask(FEATURES, &looked);
    assert_eq!(found[0], json!({"type": "sae", "sae": features}));
    let (done, others) = found.split_last().expect("some events");
    assert_eq!(done["type"], "done");
    assert!(others[1..].iter().all(|frame| frame["type"] == "text"));
    for run in ["original", "steered"] {
        assert_eq!(done[run], expected[run], "{run}");
        assert_eq!(texts(others, &json!(run)), done[run]["text"], "{run}");
        let pieces = &done["difference"][run];
        assert_eq!(joined(pieces, |_| true), done[run]["text"]);
        assert!(list(pieces).iter().any(|piece| piece[1] == true), "{run}");
    }
    assert_eq!(done["interventions"], expected["interventions"]);
    let n_tokens = expected["timings"]["generated_tokens"].clone();
    assert_eq!(done["timings"]["generated_tokens"], n_tokens);

    // Features of generated text come when it is there.
    request["sae"]["over"] = json!("generated");
    request["max_tokens"] = json!(6);
    let found = compare(&request);
    let kinds: Vec<_> = found.iter().map(|frame| &frame["type"]).collect();
    let at = kinds
        .iter()
        .position(|kind| *kind == "sae")
        .expect("it is there");
    assert!(at > 0, "{kinds:?}");
    let args = [
        "features",
        "--json",
        "--top",
        "4",
        "--over",
        "generated",
        "-n",
        "6",
        &carrot,
    ];
    let expected = command_line::json(&args);
    // The steered run beside it changes roundings.
    let features = list(&found[at]["sae"]["features"]);
    for (found, expected) in features.iter().zip(list(&expected["features"])) {
        assert_eq!(found["feature"], expected["feature"]);
        let max = |entry: &Value| entry["max"].as_f64().expect("a number");
        let distance = (max(found) - max(expected)).abs();
        assert!(distance <= NEIGHBOURS * max(expected), "{distance}");
    }
    assert_eq!(features.len(), 4);

    let refused = |member: &str, value: Value, param: &str, said: &str| {
        let mut request = request.clone();
        request[member] = value;
        let answer = served.post("/api/compare", &request);
        let sentence = answer.refused(400);
        assert!(sentence.contains(said), "{member}: {sentence}");
        assert_eq!(answer.json()["error"]["param"], param, "{sentence}");
    };
    refused("steering", json!([]), "steering", "nothing to compare");
    refused("stream", json!(true), "stream", "not known here");
    refused("sae", json!({"over": "99"}), "sae.over", "no position 99");
}

#[test]
fn a_feature_at_several_strengths() {
    let served = Served::demo(options());
    let request = json!({
        "messages": about_picture("carrot-mushroom"),
        "feature": "mushroom",
        "strengths": [-12, -6, 0],
        "at": "image",
        "word": "mushroom",
        "max_tokens": 24,
    });
    let found = frames(&served, "/api/sweep", &request);
    let (done, others) = found.split_last().expect("some events");
    let carrot = picture("carrot-mushroom");
    let expected = command_line::json(&[
        "sweep",
        "--json",
        "--steer",
        "mushroom:-12..0:6",
        "--at",
        "image",
        "--word",
        "mushroom",
        "-n",
        "24",
        &carrot,
    ]);
    for member in [
        "feature", "label", "units", "at", "word", "original", "steered",
    ] {
        assert_eq!(done[member], expected[member], "{member}");
    }
    assert_eq!([&done["type"], &done["kind"]], ["done", "steer"]);
    assert!(done["timings"]["generate_ms"].as_f64() > Some(0.0));
    let steered = list(&done["steered"]);
    for (i, run) in [&done["original"]].into_iter().chain(steered).enumerate() {
        assert_eq!(texts(others, &json!(i)), run["text"], "{i}");
    }
    for frame in others {
        let run = frame["run"].as_u64().expect("a number") as usize;
        let strength = run.checked_sub(1).map(|i| &steered[i]["strength"]);
        assert_eq!(&frame["strength"], strength.unwrap_or(&Value::Null));
    }
    for (pieces, run) in list(&done["pieces"]).iter().zip(steered) {
        assert_eq!(joined(pieces, |place| place != "before"), run["text"]);
        let original = &done["original"]["text"];
        assert_eq!(joined(pieces, |place| place != "after"), *original);
    }

    let refused = |member: &str, value: Value, said: &str| {
        let mut request = request.clone();
        request[member] = value;
        let answer = served.post("/api/sweep", &request);
        let sentence = answer.refused(400);
        assert!(sentence.contains(said), "{member}: {sentence}");
        assert_eq!(answer.json()["error"]["param"], member, "{sentence}");
    };
    refused("feature", json!("nothing such"), "no label");
    refused("strengths", json!([]), "1 to 32");
    refused("strengths", json!(vec![1; 33]), "1 to 32");
    refused("strengths", json!([1e300]), "too large");
    refused("max_tokens", json!(0), "generates no tokens");
    refused("kind", json!("ablate"), "takes no `value`");
    refused("kind", json!("wave"), "unknown kind");
    refused("units", json!("miles"), "unknown variant `miles`");
    refused("at", json!("nowhere"), "`nowhere` is not a position");
    refused("at", json!("99"), "99");
    refused("steering", json!([]), "not known here");
}

/// A run, or a sweep, of a client that has left takes no place and no time.
#[test]
fn a_client_that_leaves_stops_its_sweep() {
    let served = Served::demo(ServeOptions {
        parallel: 1,
        queue: 0,
        ..options()
    });
    let request = |n_strengths: usize, max_tokens: usize| {
        json!({
            "messages": about_picture("boat"),
            "feature": 3,
            "strengths": vec![300; n_strengths], // no text that ends
            "max_tokens": max_tokens,
        })
    };
    let mut long = served.stream("/api/sweep", &request(32, 1500));
    long.next().expect("it has begun");
    assert_eq!(served.post("/api/sweep", &request(1, 1)).status, 503);
    drop(long);
    let start = Instant::now();
    while served.post("/api/sweep", &request(1, 1)).status != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "the sweep of who has left ended within {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < Duration::from_secs(5));
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
}
