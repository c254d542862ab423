//! Interventions through our own endpoints: said as arguments, compared, and swept.

use std::time::{Duration, Instant};

use llava_sae_cpp::serve::ServeOptions;
use serde_json::{Value, json};

use crate::command_line;
use crate::fixture::NEIGHBOURS;
use crate::serve_api::{FEATURES, list, picture};
use crate::serve_fixture::{Served, about_picture, options};

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
    check(
        json!([{"kind": "steer", "feature": "carrot", "value": -1.5, "units": "usual", "at": "image"}]),
    );
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

    let mut long = request(1, 1500);
    for member in ["feature", "strengths"] {
        long.as_object_mut().expect("an object").remove(member);
    }
    long["steering"] = json!([{"kind": "steer", "feature": 3, "value": 300}]);
    let mut long = served.stream("/api/compare", &long);
    long.next().expect("it has begun");
    drop(long);
    let start = Instant::now();
    while served.get("/api/status").json()["running"] != 0 {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "the runs of who has left ended within {:?}",
        start.elapsed()
    );
}
