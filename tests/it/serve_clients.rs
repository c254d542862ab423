//! Requests as other people's clients really send them, recorded by `scripts/clients/recorder.py` while
//! `scripts/check-clients.sh` ran: they are answered as they were when those clients found the answers right.

use llava_sae_cpp::serve::{ServeOptions, ShownNames};
use serde_json::Value;

use crate::serve_fixture::{Answer, Served, options, picture_url};

/// What each answer has of its own.
const OWN: [&str; 3] = ["created", "id", "timings"];

/// Log-probabilities and activations of a model of half precision, on processors that sum in other orders.
const TOLERANCE: f64 = 0.02;

/// How much of an answer is the same each time.
#[derive(Clone, Copy, PartialEq)]
enum Same {
    Values,
    /// Names of members and kinds of values: texts are drawn, or sentences that may be put in other words.
    Form,
}

fn check(same: Same, place: &str, recorded: &Value, answered: &Value) {
    match (recorded, answered) {
        (Value::Object(recorded), Value::Object(answered)) => {
            for (name, value) in recorded {
                let place = format!("{place}.{name}");
                let found = answered.get(name);
                let found = found.unwrap_or_else(|| panic!("{place} is missing: {answered:?}"));
                let is_own = OWN.contains(&&name[..]);
                check(if is_own { Same::Form } else { same }, &place, value, found);
            }
        }
        (Value::Array(recorded), Value::Array(answered)) => {
            match same {
                Same::Values => assert_eq!(answered.len(), recorded.len(), "{place}: {answered:?}"),
                Same::Form => assert_eq!(answered.is_empty(), recorded.is_empty(), "{place}"),
            }
            for (i, (recorded, answered)) in recorded.iter().zip(answered).enumerate() {
                check(same, &format!("{place}[{i}]"), recorded, answered);
            }
        }
        (Value::Number(recorded), Value::Number(answered)) if same == Same::Values => {
            let [recorded, answered] = [recorded, answered].map(|number| number.as_f64().unwrap());
            let is_near = (recorded - answered).abs() <= TOLERANCE * (1.0 + recorded.abs());
            assert!(is_near, "{place}: {answered} for {recorded}");
        }
        _ if same == Same::Values => assert_eq!(answered, recorded, "{place}"),
        _ => assert_eq!(kind(answered), kind(recorded), "{place}: {answered}"),
    }
}

fn kind(value: &Value) -> std::mem::Discriminant<Value> {
    std::mem::discriminant(value)
}

/// The answer's JSON, or the frames of a stream.
fn body(answer: &Answer) -> Value {
    if !answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("text/event-stream"))
    {
        return answer.json();
    }
    let text = answer.text();
    let frames = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let read = |frame| serde_json::from_str(frame).unwrap_or_else(|_| Value::from(frame));
    frames.map(read).collect()
}

/// Sends again what a client has sent.
fn replay(client: &str) {
    let path = format!(
        "{}/tests/fixtures/clients/{client}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let mut text = std::fs::read_to_string(path).expect("a fixture");
    for name in [
        "apple",
        "boat",
        "carrot-cow",
        "carrot-mushroom",
        "elephant-carrot",
        "frog",
    ] {
        text = text.replace(&format!("<{name}>"), &picture_url(name));
    }
    let exchanges: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let served = Served::demo(ServeOptions {
        port: 0,
        shown: ShownNames {
            model: "embedded demo".to_owned(), // requests name it
            ..options().shown
        },
        ..ServeOptions::default()
    });
    assert!(!exchanges.is_empty());
    for exchange in exchanges {
        let path = exchange["path"].as_str().expect("a path");
        let headers = exchange["headers"].as_object().expect("headers").iter();
        let headers = headers.filter(|(name, _)| name.as_str() != "content-type");
        let headers: Vec<(&str, &str)> = headers
            .map(|(name, value)| (&name[..], value.as_str().expect("a text")))
            .collect();
        let sent = &exchange["body"];
        let answer = match exchange["method"].as_str() {
            Some("POST") => served.post_with(path, sent, &headers),
            _ => served.get(path),
        };
        let recorded = &exchange["answer"];
        let place = format!("{client}: {path} {:.300}", sent.to_string());
        let status = recorded["status"].as_u64().expect("a status");
        assert_eq!(
            u64::from(answer.status),
            status,
            "{place}: {}",
            answer.text()
        );
        let is_drawn = sent["temperature"]
            .as_f64()
            .is_some_and(|temperature| temperature > 0.0);
        let same = match is_drawn || status != 200 {
            true => Same::Form,
            false => Same::Values,
        };
        check(same, &place, &recorded["body"], &body(&answer));
    }
}

#[test]
fn the_openai_package() {
    replay("openai");
}

#[test]
fn open_webui() {
    replay("open-webui");
}

#[test]
fn neuronpedias_client() {
    replay("neuronpedia");
}

#[test]
fn lm_evaluation_harness() {
    replay("lm-eval");
}
