//! What is refused, in Neuronpedia's form.

use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::serve::{ApiKey, ServeOptions};
use serde_json::{Value, json};

use super::{HOOK, steer_request, tiny};
use crate::fixture::{Fixture, exact_options};
use crate::serve;
use crate::serve_fixture::{Answer, Served, options};

/// The sentence of a refusal in Neuronpedia's form.
fn refused(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let error = body["error"].as_str();
    error
        .unwrap_or_else(|| panic!("no sentence: {body}"))
        .to_owned()
}

/// A request that is answered; another one is it with a member changed.
fn request_to(path: &str) -> Value {
    let feature = json!({"model": "demo", "source": "1-sae", "index": 1});
    let mut steer = steer_request("SIMPLE_ADDITIVE");
    steer["features"] = json!([{"model": "demo", "source": "1-sae", "index": 1, "strength": 1}]);
    match path {
        "steer/completion" => steer,
        "steer/completion-chat" => {
            steer["prompt"] = json!([{"role": "user", "content": "Hello"}]);
            steer["steerSpecialTokens"] = json!(true);
            steer
        }
        "activation/single" => {
            json!({"prompt": "one", "model": "demo", "source": "1-sae", "index": "1"})
        }
        "activation/all" => {
            json!({"prompt": "one", "model": "demo", "sourceSet": "sae", "selectedSources": [],
                "sortByTokenIndexes": [], "ignoreBos": true})
        }
        "activation/source" => json!({"prompts": ["one"], "model": "demo", "source": "1-sae"}),
        "util/sae-vector" => feature,
        "util/sae-topk-by-decoder-cossim" => {
            json!({"model": "demo", "source": "1-sae", "numResults": 1, "feature": feature})
        }
        "tokenize" => json!({"text": "one", "model": "demo"}),
        other => panic!("`{other}` has no request here"),
    }
}

/// An endpoint, a member, its value, and what is said of it.
const REFUSED: &str = r#"
steer/completion | vectors | [] | not both
steer/completion | features | null | nothing to steer by
steer/completion | model | "gpt2-small" | there is `demo`, `tiny-llava-gemma`
steer/completion | freqPenalty | 3 | from -2 to 2
steer/completion | temperature | -1 | 0 or more
steer/completion | prompt | "<image>" | as many images
steer/completion | features | [{"model": "demo", "source": "0-res-jb", "index": 1, "strength": 1}] | there is `1-sae`
steer/completion | features | [{"model": "other", "source": "1-sae", "index": 1, "strength": 1}] | no model `other`
steer/completion | features | [{"model": "demo", "source": "1-sae", "index": 200, "strength": 1}] | has 200 features
steer/completion-chat | reads | [{"id": "a"}] | not done here
steer/completion-chat | prompt | [] | is empty
steer/completion-chat | prompt | [{"role": "tool", "content": "1"}] | roles are
steer/completion-chat | prompt | [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]}] | web address
activation/single | vector | [1.0] | and not both
activation/single | index | null | and not both
activation/single | index | "200" | has 200 features
activation/single | source | "2-sae" | there is `1-sae`
activation/single | prompt | "" | empty
activation/all | sourceSet | "res-jb" | there is `sae`
activation/all | selectedSources | ["0-sae"] | there is `1-sae`
activation/all | sortByTokenIndexes | [100] | no token 100
activation/source | prompts | [] | 1 to 4
activation/source | prompts | ["1", "2", "3", "4", "5"] | 1 to 4
util/sae-vector | index | 200 | has 200 features
util/sae-topk-by-decoder-cossim | vector | [1.0] | not both
util/sae-topk-by-decoder-cossim | feature | null | not both
util/sae-topk-by-decoder-cossim | feature | {"model": "demo", "source": "1-sae", "index": 200} | has 200 features
tokenize | model | "other" | there is no model `other` here
"#;

/// An endpoint, a member, its value, and where the request is malformed.
const MALFORMED: &str = r#"
tokenize | text | 1 | ["body", "text"]
steer/completion | types | [] | ["body", "types"]
steer/completion | types | ["DEFAULT", "DEFAULT"] | ["body", "types"]
steer/completion | nLogprobs | 11 | ["body", "nLogprobs"]
steer/completion | nCompletionTokens | 0 | ["body", "nCompletionTokens"]
steer/completion | steerMethod | "PUSH" | ["body", "steerMethod"]
steer/completion | features | [{"model": "demo", "source": "1-sae", "index": 1, "strength": "much"}] | ["body", "features", 0, "strength"]
activation/single | prompt | 1 | ["body", "prompt"]
activation/single | index | "one" | ["body", "index"]
activation/all | numResults | -1 | ["body", "numResults"]
"#;

fn cases(table: &str) -> impl Iterator<Item = (String, Value, &str)> {
    table.trim().lines().map(|line| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let [path, member, value, said] = cells[..] else {
            panic!("four cells: {line}");
        };
        let mut request = request_to(path);
        request[member] = serde_json::from_str(value).expect("a value");
        (format!("/v1/{path}"), request, said)
    })
}

#[test]
fn what_cannot_be_had_is_said() {
    let (served, _session) = tiny();
    for (path, request, said) in cases(REFUSED) {
        let sentence = refused(&served.post(&path, &request), 400);
        assert!(sentence.contains(said), "{path}, {request}: {sentence}");
    }
    let by_vector = |n: usize, hook: &str, said: &str| {
        let mut request = request_to("steer/completion");
        let vector = json!({"steeringVector": vec![1.0; n], "strength": 1, "hook": hook});
        (request["features"], request["vectors"]) = (Value::Null, json!([vector]));
        let sentence = refused(&served.post("/v1/steer/completion", &request), 400);
        assert!(sentence.contains(said), "{sentence}");
        let read = json!({"prompt": "one", "model": "demo", "vector": vec![1.0; n], "hook": hook});
        let sentence = refused(&served.post("/v1/activation/single", &read), 400);
        assert!(sentence.contains(said), "{sentence}");
    };
    by_vector(3, HOOK, "3 values");
    by_vector(48, "blocks.1.hook_x", "is not supported");
    by_vector(48, "blocks.99.hook_resid_post", "layers");
}

/// As FastAPI has it.
#[test]
fn malformed_requests_say_where() {
    let (served, _session) = tiny();
    let check = |path: &str, request: &Value, kind: &str, place: Value| {
        let answer = served.post(path, request);
        assert_eq!(answer.status, 422, "{request}: {}", answer.text());
        let detail = &answer.json()["detail"][0];
        assert_eq!(detail["type"], kind, "{detail}");
        assert_eq!(detail["loc"], place, "{detail}");
        assert!(detail["msg"].is_string());
    };
    for (path, request, place) in cases(MALFORMED) {
        let place = serde_json::from_str(place).expect("a place");
        check(&path, &request, "value_error", place);
    }
    check("/v1/tokenize", &json!([]), "value_error", json!(["body"]));
    let no_model = json!({"text": "one"});
    check(
        "/v1/tokenize",
        &no_model,
        "missing",
        json!(["body", "model"]),
    );
    let mut chat = request_to("steer/completion-chat");
    chat["steerSpecialTokens"] = Value::Null;
    let place = json!(["body", "steerSpecialTokens"]);
    check("/v1/steer/completion-chat", &chat, "missing", place);
}

#[test]
fn refusals_that_come_from_elsewhere_have_the_same_form() {
    let (served, _session) = tiny();
    let unknown = served.post("/v1/steer/sideways", &json!({}));
    assert!(refused(&unknown, 404).contains("nothing at"));
    let got = served.get("/v1/activation/all");
    assert!(refused(&got, 405).contains("does not take GET"));
    let origin = [("origin", "http://evil.example")];
    let foreign = served.post_with("/v1/tokenize", &json!({}), &origin);
    assert!(refused(&foreign, 403).contains("may not use this server"));
    let long = format!(
        "POST /v1/tokenize HTTP/1.1\r\nhost: {}\r\ncontent-length: 10737418240\r\n\r\n",
        served.address
    );
    let long = serve::raw(&served, long.as_bytes());
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    let body = "{\"error\":\"the request's body is longer";
    assert!(long.contains(body), "{long}");
    // Other paths keep theirs.
    served.post("/v1/none", &json!({})).refused(404);
}

#[test]
fn the_secret_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let path = dir.path().join("key");
    std::fs::write(&path, "se-cret").expect("a file");
    let served = Served::demo(ServeOptions {
        api_key: Some(ApiKey::read(&path).expect("a key")),
        ..options()
    });
    let request = json!({"text": "Hello", "model": "demo"});
    let without = served.post("/v1/tokenize", &request);
    assert!(refused(&without, 401).contains("X-SECRET-KEY"));
    let with = served.post_with("/v1/tokenize", &request, &[("x-secret-key", "se-cret")]);
    assert_eq!(with.status, 200);
}

#[test]
fn who_finds_no_place_comes_again_or_goes_elsewhere() {
    let session = Fixture::Tiny.session(TensorType::F32, exact_options());
    let served = Served::of(
        Arc::clone(session.model()),
        ServeOptions {
            parallel: 1,
            queue: 0,
            ..options()
        },
    );
    let mut long = steer_request("SIMPLE_ADDITIVE");
    long["features"] = json!([]);
    long["types"] = json!(["DEFAULT"]);
    long["nCompletionTokens"] = json!(100_000);
    long["stream"] = json!(true);
    let mut stream = served.stream("/v1/steer/completion", &long);
    stream.next().expect("it has begun"); // and goes on when its frames are read
    long["stream"] = json!(false);
    let full = served.post("/v1/steer/completion", &long);
    assert!(refused(&full, 503).contains("try again"));
    assert_eq!(full.header("retry-after"), Some("2"));
    long["failIfBusy"] = json!(true);
    refused(&served.post("/v1/steer/completion", &long), 429);
    drop(stream);
}
