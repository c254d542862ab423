//! The server: who may ask, what is refused, and how requests share the engine.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use llava_sae_cpp::serve::{ApiKey, ServeOptions, Server};
use llava_sae_cpp::{Keep, Picture, PromptForm, RunOptions, Sampling, Session};
use serde_json::{Value, json};

use crate::fixture;
use crate::serve_fixture::{Served, about_picture, options};

const CHAT: &str = "/v1/chat/completions";

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text")
}

fn chat() -> Value {
    json!({"messages": about_picture("carrot-mushroom")})
}

fn steered() -> Value {
    let mut chat = chat();
    chat["steering"] = json!([{"kind": "steer", "feature": "mushroom", "value": -12}]);
    chat
}

/// Sends these bytes and gives what comes back until the server closes, or says nothing more for a second.
pub(crate) fn raw(served: &Served, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(&served.address).expect("it listens");
    let wait = stream.set_read_timeout(Some(Duration::from_secs(1)));
    wait.expect("a time of more than nothing");
    let _ = stream.write_all(bytes); // it may close before it has read all
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_chat_is_answered_whole_and_as_a_stream() {
    let served = Served::demo(options());
    let plain = served.ask(CHAT, &chat());
    let changed = served.ask(CHAT, &steered());
    assert!(text(&plain).contains("mushroom"), "{plain}");
    assert!(!text(&changed).contains("mushroom"), "{changed}");
    let mut request = steered();
    request["stream"] = json!(true);
    request["stream_options"] = json!({"include_usage": true});
    let frames: Vec<String> = served.stream(CHAT, &request).collect();
    let (done, frames) = frames.split_last().expect("some frames");
    assert_eq!(done, "[DONE]");
    let frames = frames.iter().map(|frame| serde_json::from_str(frame));
    let frames: Vec<Value> = frames.collect::<Result<_, _>>().expect("JSON");
    let (usage, frames) = frames.split_last().expect("some frames");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], changed["usage"]);
    let contents = frames
        .iter()
        .map(|frame| &frame["choices"][0]["delta"]["content"]);
    let streamed: String = contents.filter_map(Value::as_str).collect();
    assert_eq!(streamed, text(&changed));
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    let last = &frames.last().expect("some frames")["choices"][0];
    assert_eq!(last["finish_reason"], "stop");
}

#[test]
fn what_a_request_cannot_have_is_said() {
    let served = Served::demo(options());
    let check = |member: &str, value: Value, said: &str| {
        let mut request = chat();
        request[member] = value;
        let answer = served.post(CHAT, &request);
        let sentence = answer.refused(400);
        assert!(sentence.contains(said), "{member}: {sentence}");
        if ["temperature", "top_p", "n", "tools", "steering"].contains(&member) {
            assert_eq!(answer.json()["error"]["param"], member, "{sentence}");
        }
    };
    check("messages", json!([]), "`messages` is empty");
    check("temperature", json!("hot"), "`temperature`: invalid type");
    check("temperature", json!(-1), "temperature");
    check("n", json!(0), "0 answers are asked for");
    check("n", json!(1000), "1000 answers are asked for");
    check("top_p", json!(0), "`top_p` is 0");
    check("stop", json!([""]), "`stop` is empty");
    check("tools", json!([{}]), "not run here");
    check(
        "response_format",
        json!({"type": "json_object"}),
        "not followed",
    );
    check(
        "steering",
        json!([{"kind": "tickle"}]),
        "unknown kind `tickle`",
    );
    check(
        "steering",
        json!([{"kind": "steer", "feature": "nothing", "value": 1}]),
        "no label",
    );
    check(
        "steering",
        json!([{"kind": "steer", "feature": 1 << 20, "value": 1}]),
        "features",
    );
    check("steering", json!("mushroom:-6"), "list of interventions");
    let image = |url: &str| json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]);
    check("messages", image("http://127.0.0.1:1/a.png"), "web address");
    check("messages", image("file:///etc/passwd"), "`messages[0]");
    check("messages", image("/etc/passwd"), "`messages[0]");
    check("messages", image("data:image/png;base64,AAAA"), "image 1");
    let long = json!([{"role": "user", "content": "a ".repeat(5000)}]);
    check("messages", long, "has room for");
    let unknown = served.ask(
        CHAT,
        &json!({"messages": about_picture("boat"), "colour": "red"}),
    );
    assert_eq!(unknown["ignored"], json!(["colour"]));
    assert_eq!(
        served.post("/v1/none", &json!({})).refused(404),
        "there is nothing at `/v1/none`"
    );
    assert!(served.get(CHAT).refused(405).contains("does not take GET"));
}

#[test]
fn other_hosts_and_origins_are_refused() {
    let served = Served::demo(ServeOptions {
        allow_origins: vec!["https://friend.example".to_owned()],
        allow_hosts: vec!["sae.example".to_owned()],
        ..options()
    });
    let port = served
        .address
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    let check = |headers: &[(&str, &str)], status: u16| {
        let answer = served.post_with(CHAT, &json!({}), headers);
        // An empty request is malformed: it was looked at.
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
        answer
    };
    check(&[], 400);
    check(&[("host", &format!("localhost:{port}"))], 400);
    check(&[("host", "[::1]:80")], 400);
    check(&[("host", "SAE.example:8080")], 400);
    check(&[("host", "evil.example")], 403);
    check(&[("host", &format!("evil.example:{port}"))], 403);
    check(&[("host", "127.0.0.1.evil.example")], 403);
    check(&[("host", "")], 403);
    check(&[("origin", &format!("http://{}", served.address))], 400);
    check(&[("origin", "http://evil.example")], 403);
    check(&[("origin", "null")], 403);
    check(&[("origin", "http://127.0.0.1:1")], 403);
    let friend = check(&[("origin", "https://friend.example")], 400);
    assert_eq!(
        friend.header("access-control-allow-origin"),
        Some("https://friend.example")
    );
    let own = check(&[], 400);
    assert_eq!(own.header("access-control-allow-origin"), None);
}

#[test]
fn a_key_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let path = dir.path().join("key");
    std::fs::write(&path, "se-cret\n").expect("a file");
    let served = Served::demo(ServeOptions {
        api_key: Some(ApiKey::read(&path).expect("a key")),
        ..options()
    });
    let check = |headers: &[(&str, &str)], status: u16| {
        let answer = served.post_with(CHAT, &json!({}), headers);
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    };
    check(&[], 401);
    check(&[("authorization", "Bearer se-cre")], 401);
    check(&[("authorization", "Bearer se-cret2")], 401);
    check(&[("authorization", "Basic se-cret")], 401);
    check(&[("authorization", "Bearer se-cret")], 400);
    check(&[("authorization", "bearer se-cret")], 400);
    check(&[("x-secret-key", "se-cret")], 400);
    check(&[("x-secret-key", "")], 401);
    assert_eq!(served.get("/health").status, 200);
    assert_eq!(served.get("/v1/models").status, 401);
    for (text, said) in [
        ("", "holds no key"),
        ("a b", "holds no key"),
        ("ü", "holds no key"),
    ] {
        std::fs::write(&path, text).expect("a file");
        let error = ApiKey::read(&path).expect_err("no key");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn without_a_key_only_this_machine_is_served() {
    let check = |host: &str, said: &str| {
        let host = host.to_owned();
        let bound = Server::bind(ServeOptions { host, ..options() });
        let error = bound.err().expect("it is refused");
        assert!(error.to_string().contains(said), "{error}");
    };
    check("0.0.0.0", "no API key is asked");
    check("::", "no API key is asked");
    check("no such host", "cannot listen");
    let first = Server::bind(options()).expect("a port is free");
    let port = first.address().expect("it listens").port();
    let taken = Server::bind(ServeOptions { port, ..options() });
    let error = taken.err().expect("the port is taken");
    assert!(
        error.to_string().contains("cannot listen on 127.0.0.1"),
        "{error}"
    );
    for origin in ["*", "example.org", "https://", "https://a.example/path"] {
        let allow_origins = vec![origin.to_owned()];
        let bound = Server::bind(ServeOptions {
            allow_origins,
            ..options()
        });
        let error = bound.err().expect("it is no origin");
        assert!(error.to_string().contains("no origin"), "{error}");
    }
}

/// Nothing is read of a body that is announced as too long, nor of one whose sender may not ask.
#[test]
fn long_bodies_are_refused_unread() {
    let served = Served::demo(options());
    let head = |host: &str| {
        format!("POST {CHAT} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 10737418240\r\n\r\n{{")
    };
    let answer = raw(&served, head(&served.address).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let answer = raw(&served, head("evil.example").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    // One that does not say how long it is ends at the bound.
    let mut chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        served.address
    )
    .into_bytes();
    let mebibyte = [&b"100000\r\n"[..], &[b' '; 1 << 20], b"\r\n"].concat();
    (0..70).for_each(|_| chunked.extend(&mebibyte));
    let answer = raw(&served, &chunked);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let served = Served::demo(ServeOptions {
        parallel: 1,
        queue: 0,
        ..options()
    });
    let mut long = chat();
    long["stream"] = json!(true);
    long["messages"] = json!([{"role": "user", "content": "Hello"}]);
    long["steering"] = json!([{"kind": "scale", "feature": 1, "value": 1}]);
    long["n"] = json!(16);
    let mut stream = served.stream(CHAT, &long);
    stream.next().expect("it has begun");
    let refused = served.post(CHAT, &chat());
    // It may be through already.
    if refused.status != 200 {
        assert!(refused.refused(503).contains("try again"));
        assert_eq!(refused.header("retry-after"), Some("2"));
    }
    drop(stream); // whoever leaves makes room
    let start = std::time::Instant::now();
    while served.post(CHAT, &chat()).status != 200 {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "the place is free"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number that was written in full, as far as serde_json reads it, which is to the last bit but one.
fn assert_same_number(said: &Value, number: f64) {
    let said = said.as_f64().expect("a number");
    let error = (said - number).abs();
    assert!(
        error <= 2.0 * f64::EPSILON * number.abs(),
        "{said} {number}"
    );
}

/// A request alone gives the tokens of a run of the library, which the command line prints; and says how likely they
/// were.
#[test]
fn a_request_alone_is_a_run() {
    let served = Served::demo(options());
    let mut session = Session::new(Arc::clone(&served.model));
    let path = format!("{}/assets/pictures/boat.png", env!("CARGO_MANIFEST_DIR"));
    let picture = Picture::open(path.as_ref()).expect("a picture of the demo");
    let image = session.encode_image(&picture).expect("it is encoded");
    let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[&image]);
    let prompt = prompt.expect("a prompt");
    for temperature in [0.0, 1.5] {
        let options = RunOptions {
            max_tokens: 24,
            top_log_probs: Some(3),
            sampling: Sampling {
                temperature,
                seed: 7,
                ..Sampling::default()
            },
            ..RunOptions::default()
        };
        let run = session.run(&prompt, options).expect("it runs");
        let answer = served.ask(
            CHAT,
            &json!({
                "messages": about_picture("boat"),
                "max_completion_tokens": 24,
                "temperature": temperature,
                "seed": 7,
                "logprobs": true,
                "top_logprobs": 3,
            }),
        );
        assert_eq!(text(&answer), run.text);
        let said = &answer["choices"][0]["logprobs"]["content"];
        let said = said.as_array().expect("log-probabilities");
        assert_eq!(said.len(), run.token_ids.len());
        for (said, found) in said.iter().zip(&run.log_probs) {
            assert_same_number(&said["logprob"], found.log_prob);
            assert_eq!(said["top_logprobs"].as_array().map(Vec::len), Some(3));
            assert_same_number(&said["top_logprobs"][0]["logprob"], found.top[0].1);
        }
    }
}

#[test]
fn texts_are_gone_on_with() {
    let served = Served::demo(options());
    let complete = |request: &Value| served.ask("/v1/completions", request);
    let prompts = json!(["A picture of", "The image shows a"]);
    let both = complete(&json!({"prompt": prompts, "max_tokens": 5, "logprobs": 2, "n": 2}));
    let choices = both["choices"].as_array().expect("answers");
    let indices: Vec<_> = choices
        .iter()
        .map(|choice| choice["index"].as_u64())
        .collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2), Some(3)]);
    for (i, prompt) in prompts.as_array().expect("two").iter().enumerate() {
        let alone = complete(&json!({"prompt": prompt, "max_tokens": 5}));
        assert_eq!(alone["choices"][0]["text"], choices[2 * i]["text"]);
        assert_eq!(alone["choices"][0]["text"], choices[2 * i + 1]["text"]);
        let echoed = complete(&json!({"prompt": prompt, "max_tokens": 5, "echo": true}));
        let echoed = echoed["choices"][0]["text"].as_str().expect("a text");
        let text = alone["choices"][0]["text"].as_str().expect("a text");
        let prompt = prompt.as_str().expect("a text");
        assert_eq!(echoed, format!("{prompt}{text}"));
        let log_probs = &choices[2 * i]["logprobs"];
        assert_eq!(log_probs["tokens"].as_array().map(Vec::len), Some(5));
        let first = &log_probs["top_logprobs"][0];
        let most = first.as_object().expect("tokens").values();
        let most = most
            .filter_map(Value::as_f64)
            .fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(log_probs["token_logprobs"][0], most);
    }
    let stream: String = served
        .stream(
            "/v1/completions",
            &json!({"prompt": "A picture of", "max_tokens": 5, "stream": true}),
        )
        .filter_map(|frame| serde_json::from_str::<Value>(&frame).ok())
        .filter_map(|frame| Some(frame["choices"][0]["text"].as_str()?.to_owned()))
        .collect();
    assert_eq!(choices[0]["text"], stream);
    let check = |request: Value, said: &str| {
        let sentence = served.post("/v1/completions", &request).refused(400);
        assert!(sentence.contains(said), "{sentence}");
    };
    check(json!({"prompt": [1 << 30]}), "vocabulary");
    check(json!({"prompt": [[]]}), "no tokens");
    check(json!({"prompt": []}), "0 answers");
    check(json!({"prompt": vec!["a"; 129]}), "1 to 128");
    check(json!({"prompt": 5}), "`prompt`");
    check(json!({"prompt": "a", "suffix": "b"}), "`suffix`");
    check(json!({"prompt": "a", "logprobs": 21}), "20 at most");
}

/// Beside others, rows are summed in another order: log-probabilities stay within twice the bound of logits, and
/// tokens are the same up to the first step at which the likeliest is ahead by less than that much.
#[test]
fn answers_beside_others_are_those_alone() {
    let served = Served::demo(ServeOptions {
        parallel: 8,
        ..options()
    });
    let names = [
        "apple",
        "boat",
        "carrot-cow",
        "carrot-mushroom",
        "elephant-carrot",
        "frog",
    ];
    let requests: Vec<Value> = (0..24)
        .map(|i| {
            json!({
                "messages": about_picture(names[i % names.len()]),
                "max_tokens": 32,
                "logprobs": true,
                "top_logprobs": 2,
                "steering": [{"kind": "steer", "feature": i, "value": 0.5 * i as f64, "at": "all"}],
            })
        })
        .collect();
    let said = |answer: Value| answer["choices"][0]["logprobs"]["content"].clone();
    let alone: Vec<Value> = requests
        .iter()
        .map(|request| said(served.ask(CHAT, request)))
        .collect();
    let beside: Vec<Value> = std::thread::scope(|scope| {
        let (served, said) = (&served, &said);
        let ask = |request| scope.spawn(move || said(served.ask(CHAT, request)));
        let asked: Vec<_> = requests.iter().map(ask).collect();
        asked
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    // The bound is a share of the largest logit.
    let mut session = Session::new(Arc::clone(&served.model));
    let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
    let options = RunOptions {
        keep: Keep {
            logits: true,
            ..Keep::default()
        },
        ..RunOptions::default()
    };
    let run = session.run(&prompt.expect("a prompt"), options);
    let logits = run.expect("it runs").logits;
    let largest = logits.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    let bound = 2.0 * fixture::NEIGHBOURS * f64::from(largest);
    let log_prob = |said: &Value| said["logprob"].as_f64().expect("a number");
    let (mut n_steps, mut n_compared) = (0, 0);
    for (alone, beside) in alone.iter().zip(&beside) {
        let alone = alone.as_array().expect("tokens");
        n_steps += alone.len();
        for (i, one) in alone.iter().enumerate() {
            let other = &beside[i];
            n_compared += 1;
            let [first, second] = [0, 1].map(|i: usize| log_prob(&one["top_logprobs"][i]));
            if first - second < bound && one["token"] != other["token"] {
                break; // from here on, both read different texts
            }
            assert_eq!(one["token"], other["token"], "step {i}");
            let apart = (log_prob(one) - log_prob(other)).abs();
            assert!(apart <= bound, "{apart:e} at step {i}");
        }
    }
    println!("{n_compared} of {n_steps} steps were compared");
    assert!(
        n_compared * 100 >= n_steps * 95,
        "{n_compared} of {n_steps}"
    );
}

/// Each gets its own answer, whoever else asks.
#[test]
fn requests_beside_each_other_have_their_own_answers() {
    let served = Served::demo(ServeOptions {
        parallel: 3,
        ..options()
    });
    let names = ["apple", "boat", "carrot-cow", "carrot-mushroom", "frog"];
    let request = |name: &str| json!({"messages": about_picture(name)});
    let alone: Vec<String> = names
        .iter()
        .map(|name| text(&served.ask(CHAT, &request(name))).to_owned())
        .collect();
    std::thread::scope(|scope| {
        for turn in 0..3 {
            for (i, name) in names.iter().enumerate() {
                let (served, alone) = (&served, &alone);
                scope.spawn(move || {
                    let (asked, expected) = match turn {
                        0 => (request(name), alone[i].clone()),
                        _ => (steered(), String::new()),
                    };
                    let answer = served.ask(CHAT, &asked);
                    match turn {
                        0 => assert_eq!(text(&answer), expected, "{name}"),
                        _ => assert!(!text(&answer).contains("mushroom"), "{answer}"),
                    }
                });
            }
        }
    });
}

/// What has been asked for is answered, and nothing else is taken in.
#[test]
fn the_end_waits_for_answers() {
    let mut served = Served::demo(options());
    let mut request = chat();
    request["stream"] = json!(true);
    let mut stream = served.stream(CHAT, &request);
    stream.next().expect("it has begun");
    served.stop();
    assert_eq!(stream.last().as_deref(), Some("[DONE]"));
    assert!(TcpStream::connect(&served.address).is_err());
}

#[test]
fn the_document_names_what_there_is() {
    let served = Served::demo(options());
    let document = served.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths");
    for (path, method) in [
        ("/health", "get"),
        ("/v1/models", "get"),
        (CHAT, "post"),
        ("/v1/completions", "post"),
        ("/api/features", "post"),
        ("/api/features/{feature}", "get"),
    ] {
        let operation = &paths[path][method];
        let summary = operation["summary"].as_str();
        assert!(summary.is_some_and(|text| !text.is_empty()), "{path}");
        assert!(operation["responses"]["200"].is_object(), "{path}");
        assert!(operation["responses"]["default"].is_object(), "{path}");
    }
    // What it names is there.
    for (path, item) in paths {
        let path = path
            .replace("{feature}", "0")
            .replace("{name}", "apple.png");
        let answer = match item.get("get") {
            Some(_) => served.get(&path),
            None => served.post(&path, &json!({})),
        };
        assert!(
            ![404, 405, 500].contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
}
