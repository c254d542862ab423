//! A server of the demo model for tests, and clients of it.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use llava_sae_cpp::serve::{ServeOptions, Server, ShownNames};
use llava_sae_cpp::{CancelFlag, HookedModel, Result, SessionOptions, demo};
use serde_json::{Value, json};
use ureq::Agent;

use crate::fixture;

/// A server that runs as long as this lives.
pub(crate) struct Served {
    pub(crate) address: String, // host and port
    pub(crate) model: Arc<HookedModel>,
    cancel: CancelFlag,
    thread: Option<JoinHandle<Result<()>>>,
}

/// An answer that has come whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// How the tests' server serves where nothing else is said: one thread of the model, two runs at once.
pub(crate) fn options() -> ServeOptions {
    ServeOptions {
        port: 0,
        parallel: 2,
        shown: ShownNames {
            model: "demo".to_owned(),
            sae: "demo".to_owned(),
            arguments: Vec::new(),
        },
        ..ServeOptions::default()
    }
}

impl Served {
    /// A server of the demo model.
    pub(crate) fn demo(options: ServeOptions) -> Self {
        let session = SessionOptions {
            threads: fixture::threads(),
            gpu_layers: 0,
            ..SessionOptions::default()
        };
        let files = demo::files().expect("the demo");
        let model = HookedModel::open(&files, session).expect("it loads");
        Self::of(model, options)
    }

    /// A server of a model.
    pub(crate) fn of(model: Arc<HookedModel>, options: ServeOptions) -> Self {
        let server = Server::bind(options).expect("a port is free");
        let address = server.address().expect("it listens").to_string();
        let cancel = CancelFlag::default();
        let (of_thread, flag) = (Arc::clone(&model), cancel.clone());
        let thread = std::thread::spawn(move || server.serve(&of_thread, &flag));
        Self {
            address,
            model,
            cancel,
            thread: Some(thread),
        }
    }

    /// Ends it as Ctrl-C does, and waits for it.
    pub(crate) fn stop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic").expect("it ends well");
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        answer(agent().get(self.url(path)).call().expect("it answers"))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, body, &[])
    }

    pub(crate) fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        answer(self.send(path, body, headers))
    }

    /// The answer's JSON.
    ///
    /// # Panics
    /// When it is a refusal.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// The frames of a stream, as they come.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let response = self.send(path, body, &[]);
        assert_eq!(response.status(), 200, "{path}");
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        let lines = lines.map_while(std::result::Result::ok);
        lines.filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned()))
    }

    fn send(
        &self,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> ureq::http::Response<ureq::Body> {
        let mut request = agent().post(self.url(path));
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send(body.to_string()).expect("it answers")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)));
    config.build().into()
}

fn answer(response: ureq::http::Response<ureq::Body>) -> Answer {
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), value)
    });
    let (status, headers) = (response.status().as_u16(), headers.collect());
    let mut body = Vec::new();
    let mut reader = response.into_body().into_reader();
    reader.read_to_end(&mut body).expect("it comes whole");
    Answer {
        status,
        headers,
        body,
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = self.headers.iter().find(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The sentence of a refusal with this status.
    pub(crate) fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let sentence = self.json()["error"]["message"].as_str().map(str::to_owned);
        sentence.unwrap_or_else(|| panic!("no sentence: {}", self.text()))
    }
}

/// A picture of the demo's as a `data:` URL.
pub(crate) fn picture_url(name: &str) -> String {
    let path = format!("{}/assets/pictures/{name}.png", env!("CARGO_MANIFEST_DIR"));
    let png = std::fs::read(path).expect("a picture of the demo");
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// A user's turn about a picture of the demo's.
pub(crate) fn about_picture(name: &str) -> Value {
    json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": picture_url(name)}},
        {"type": "text", "text": "Describe the image."},
    ]}])
}
