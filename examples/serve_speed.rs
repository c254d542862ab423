//! Times what `scripts/bench.sh` says of the server:
//! `serve_speed MODEL MMPROJ SAE PICTURE ROUNDS N_TOKENS [TABLE...]`.
//!
//! The server and what it is compared with take turns in one process, on the same weights; clients reach it through
//! loopback. A line of JSON for each row: its table, its name, and one time a round, in milliseconds.

use std::error::Error;
use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use llava_sae_cpp::serve::{ServeOptions, Server};
use llava_sae_cpp::steering::{Change, Intervention};
use llava_sae_cpp::{
    CancelFlag, FeatureId, HookedModel, ModelFiles, Picture, PromptForm, PromptStore, RunOptions,
    Session, SessionOptions,
};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const PROMPT: &str = "Describe the image.";
/// Requests at once.
const N_CLIENTS: usize = 8;
const FEATURE: usize = 1;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, mmproj, sae, picture, rounds, n_tokens, tables @ ..] = &args[..] else {
        return Err("expected six arguments, and the tables, which are all by default".into());
    };
    let files = ModelFiles {
        model: PathBuf::from(model),
        mmproj: Some(PathBuf::from(mmproj)),
        saes: vec![PathBuf::from(sae)],
    };
    let with_store = |prompt_store| SessionOptions {
        prompt_store,
        ..SessionOptions::default()
    };
    let forgetful = HookedModel::open(&files, with_store(None))?;
    let store = PromptStore::in_memory(1 << 30);
    let remembering = forgetful.open_beside(&files, with_store(Some(store)))?;
    let cancel = CancelFlag::default();
    std::thread::scope(|scope| {
        let serve = |model: &Arc<HookedModel>| -> Outcome<String> {
            let server = Server::bind(ServeOptions {
                port: 0,
                parallel: N_CLIENTS,
                ..ServeOptions::default()
            })?;
            let address = server.address()?.to_string();
            let (model, cancel) = (Arc::clone(model), cancel.clone());
            scope.spawn(move || server.serve(&model, &cancel).expect("it serves"));
            Ok(address)
        };
        let bench = Bench {
            forgetful: Client(serve(&forgetful)?),
            remembering: Client(serve(&remembering)?),
            picture: Picture::open(Path::new(picture))?.rgb().clone(),
            n_tokens: n_tokens.parse()?,
            rounds: rounds.parse()?,
            tables: tables.to_vec(),
        };
        let done = bench.measure(&forgetful);
        cancel.cancel();
        done
    })
}

struct Bench {
    /// A server that remembers no prompts.
    forgetful: Client,
    /// One that does.
    remembering: Client,
    picture: RgbImage,
    n_tokens: usize,
    rounds: usize,
    tables: Vec<String>, // empty for all
}

/// What is timed: a name, and the work, which tells its own time in milliseconds.
type Timed<'a> = (&'a str, Box<dyn FnMut(usize) -> Outcome<f64> + 'a>);

impl Bench {
    fn measure(&self, model: &Arc<HookedModel>) -> Outcome<()> {
        let mut session = Session::new(Arc::clone(model));
        let n = self.n_tokens;
        let one = &self.request(0, 0);
        let (forgetful, remembering) = (&self.forgetful, &self.remembering);
        self.time(
            "serve",
            0,
            vec![
                (
                    "a run of the command line",
                    Box::new(|_| self.alone(&mut session)),
                ),
                (
                    "the same request",
                    Box::new(|_| timed(|| forgetful.ask(one))),
                ),
            ],
        )?;
        // About pictures that no round had before, so that no server knows them.
        for (table, of_several) in [("serve_picture", false), ("serve_pictures", true)] {
            let requests = |round| self.requests(round, of_several);
            self.time(
                table,
                1,
                vec![
                    (
                        "one after another, nothing remembered",
                        Box::new(|round| {
                            let requests = requests(round);
                            timed(|| forgetful.ask_in_turn(&requests))
                        }),
                    ),
                    (
                        "eight at once",
                        Box::new(|round| {
                            let requests = requests(round);
                            timed(|| remembering.ask_at_once(&requests))
                        }),
                    ),
                ],
            )?;
        }
        // Strengths that no round had before.
        let other = |round: usize| self.streamed(100 + round, n, false);
        self.time(
            "serve_first",
            0,
            vec![
                (
                    "a prompt's first token",
                    Box::new(|round| forgetful.first(&other(round))),
                ),
                (
                    "another strength on a prompt that is remembered",
                    Box::new(|round| remembering.first(&other(round))),
                ),
            ],
        )?;
        let listing = |round: usize| self.streamed(200 + round, 1, true);
        self.time(
            "serve_features",
            0,
            vec![(
                "the list of the image's features",
                Box::new(|round| forgetful.behind_prompt(&listing(round))),
            )],
        )
    }

    /// Lets all take turns, once a round; a round 0 is to warm up.
    fn time(&self, table: &str, first_round: usize, mut timed: Vec<Timed<'_>>) -> Outcome<()> {
        if !self.tables.is_empty() && !self.tables.iter().any(|wanted| wanted == table) {
            return Ok(());
        }
        let mut samples = vec![Vec::new(); timed.len()];
        for round in first_round..=self.rounds {
            for ((_, work), samples) in timed.iter_mut().zip(&mut samples) {
                let milliseconds = work(round)?;
                if round > 0 {
                    samples.push(milliseconds);
                }
            }
        }
        for ((name, _), samples) in timed.iter().zip(samples) {
            println!("{}", json!({"table": table, "row": name, "ms": samples}));
        }
        Ok(())
    }

    /// The prompt and the generation as the command line computes them.
    fn alone(&self, session: &mut Session) -> Outcome<f64> {
        let image = session.encode_image(&Picture::from_rgb(self.picture.clone()))?;
        let prompt = session.prompt(PROMPT, PromptForm::Chat, &[&image])?;
        let change = Change::steer(strength(0));
        let steer = Intervention::new(FeatureId::of_only(FEATURE), change);
        let options = RunOptions {
            steering: Some(session.model().steering(vec![steer])?),
            max_tokens: self.n_tokens,
            ..RunOptions::default()
        };
        timed(|| Ok(session.run(&prompt, options).map(drop)?))
    }

    /// A steered request about the picture, or another one of its size.
    fn request(&self, picture_idx: usize, strength_idx: usize) -> Value {
        let mut picture = self.picture.clone();
        // Every pixel, since the model sees but a part of some pictures.
        for pixel in picture.pixels_mut() {
            pixel.0[0] = pixel.0[0].wrapping_add(picture_idx as u8);
        }
        let mut png = Cursor::new(Vec::new());
        let written = picture.write_to(&mut png, ImageFormat::Png);
        written.expect("memory takes it");
        let url = format!(
            "data:image/png;base64,{}",
            STANDARD.encode(png.into_inner())
        );
        json!({
            "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": PROMPT},
            ]}],
            "max_tokens": self.n_tokens,
            "steering": [{"kind": "steer", "feature": FEATURE, "value": strength(strength_idx)}],
        })
    }

    /// Eight of them, each with another strength; about as many pictures, or about one.
    fn requests(&self, round: usize, of_several: bool) -> Vec<Value> {
        let first = match of_several {
            true => N_CLIENTS * round,
            false => 128 + round,
        };
        let request = |i| self.request(first + if of_several { i } else { 0 }, i);
        (0..N_CLIENTS).map(request).collect()
    }

    fn streamed(&self, strength_idx: usize, max_tokens: usize, with_features: bool) -> Value {
        let mut request = self.request(0, strength_idx);
        request["stream"] = json!(true);
        request["max_tokens"] = json!(max_tokens);
        if with_features {
            request["sae"] = json!({"top": 20});
        }
        request
    }
}

/// Whoever asks a server, at its address.
struct Client(String);

impl Client {
    fn send(&self, request: &Value) -> Outcome<BufReader<ureq::BodyReader<'static>>> {
        let url = format!("http://{}/v1/chat/completions", self.0);
        let response = ureq::post(url).send(request.to_string())?;
        Ok(BufReader::new(response.into_body().into_reader()))
    }

    fn ask(&self, request: &Value) -> Outcome<()> {
        let answer: Value = serde_json::from_reader(self.send(request)?)?;
        match answer["choices"][0]["message"]["content"].is_string() {
            true => Ok(()),
            false => Err(format!("no answer: {answer}").into()),
        }
    }

    fn ask_in_turn(&self, requests: &[Value]) -> Outcome<()> {
        requests.iter().try_for_each(|request| self.ask(request))
    }

    fn ask_at_once(&self, requests: &[Value]) -> Outcome<()> {
        std::thread::scope(|scope| {
            let asked = requests
                .iter()
                .map(|request| scope.spawn(|| self.ask(request)));
            let asked: Vec<_> = asked.collect();
            asked
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })
    }

    /// The time to the first event with a text.
    fn first(&self, request: &Value) -> Outcome<f64> {
        self.streamed(request, "\"content\":").map(|(time, _)| time)
    }

    /// The time from the prompt's end, by the server's word, to the first event with features: the request's way and
    /// its preparation are part of it.
    fn behind_prompt(&self, request: &Value) -> Outcome<f64> {
        let (time, last) = self.streamed(request, "\"sae\":")?;
        let prompt = last["timings"]["prompt_ms"].as_f64();
        Ok(time - prompt.ok_or("the stream says no times")?)
    }

    /// The time to the first event with `member`, and the last event.
    fn streamed(&self, request: &Value, member: &str) -> Outcome<(f64, Value)> {
        let start = Instant::now();
        let mut found = None;
        let mut last = Value::Null;
        // To the end, lest the next one waits for it.
        for line in self.send(request)?.lines() {
            let line = line?;
            if line.contains(member) && found.is_none() {
                found = Some(milliseconds(start));
            }
            if let Some(frame) = line.strip_prefix("data: {") {
                last = serde_json::from_str(&["{", frame].concat())?;
            }
        }
        let found = found.ok_or("the stream lacks it")?;
        Ok((found, last))
    }
}

/// Strengths that leave the text about as it is, each another.
fn strength(idx: usize) -> f32 {
    1.0 + idx as f32 * 1e-3
}

fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let start = Instant::now();
    work()?;
    Ok(milliseconds(start))
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
