//! Neuronpedia's endpoints: requests as its clients send them, and numbers beside formulas in f64 on SAEs whose decoder
//! rows were brought to length 1, as its server loads them.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::gguf::TensorType;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::llama::Edited;
use llava_sae_cpp::serve::{ApiKey, ServeOptions};
use llava_sae_cpp::{
    Editor, EditorAt, EngineSize, HookedModel, Keep, Prompt, PromptForm, Request, Result, Run,
    RunOptions, Session, Token, TokenKind,
};
use serde_json::{Value, json};

use crate::command_line::{self, stdout};
use crate::fixture::{self, F32, Fixture, exact_options};
use crate::serve;
use crate::serve_fixture::{Answer, Served, about_picture, options};

const HOOK: &str = "blocks.1.hook_resid_post";
/// Sums of f32 numbers around 1, beside other sequences in one context.
const TOLERANCE: f64 = 1e-4;

fn near(ours: &Value, expected: f64) -> bool {
    is_within(TOLERANCE, ours, expected)
}

fn is_within(tolerance: f64, ours: &Value, expected: f64) -> bool {
    let ours = ours.as_f64().expect("a number");
    (ours - expected).abs() <= tolerance * (1.0 + expected.abs())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// An SAE whose decoder rows have length 1 (`fold_W_dec_norm` in SAELens), in f64.
struct Folded {
    w_enc: Vec<Vec<f64>>, // [d_sae, d_in]
    w_dec: Vec<Vec<f64>>, // [d_sae, d_in]
    b_enc: Vec<f64>,      // [d_sae]
    threshold: Vec<f64>,  // [d_sae]
    b_dec: Vec<f64>,      // [d_in]; zeros where it is not subtracted from rows
}

impl Folded {
    fn open(fixture: Fixture, tensor_type: TensorType) -> Self {
        let path = fixture.converted(tensor_type).join("sae.gguf");
        let file = SaeFile::open(&path).expect("converted");
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let (d_in, d_sae) = (file.meta.d_in, file.meta.d_sae);
        let row = |read: &dyn Fn(&mut [f32])| {
            let mut row = vec![0.0; d_in];
            read(&mut row);
            wide(row)
        };
        let mut folded = Self {
            w_enc: (0..d_sae)
                .map(|i| row(&|row| file.encoder_row(i, row).expect("readable")))
                .collect(),
            w_dec: (0..d_sae)
                .map(|i| row(&|row| file.decoder_row(i, row).expect("readable")))
                .collect(),
            b_enc: wide(file.b_enc().expect("readable")),
            threshold: match file.threshold().expect("readable") {
                Some(threshold) => wide(threshold),
                None => vec![0.0; d_sae],
            },
            b_dec: match file.meta.apply_b_dec_to_input {
                true => wide(file.b_dec().expect("readable")),
                false => vec![0.0; d_in],
            },
        };
        for i in 0..d_sae {
            let norm = dot(&folded.w_dec[i], &folded.w_dec[i]).sqrt();
            folded.w_dec[i].iter_mut().for_each(|x| *x /= norm);
            folded.w_enc[i].iter_mut().for_each(|x| *x *= norm);
            folded.b_enc[i] *= norm;
            folded.threshold[i] *= norm;
        }
        folded
    }

    fn activation(&self, feature: usize, row: &[f64]) -> f64 {
        let x: Vec<f64> = row.iter().zip(&self.b_dec).map(|(x, b)| x - b).collect();
        let h = dot(&x, &self.w_enc[feature]) + self.b_enc[feature];
        match h > self.threshold[feature].max(0.0) {
            true => h,
            false => 0.0,
        }
    }

    /// `[d_sae]`
    fn encode(&self, row: &[f64]) -> Vec<f64> {
        (0..self.w_enc.len())
            .map(|feature| self.activation(feature, row))
            .collect()
    }
}

/// The fixture with random weights, whose decoder rows have any length, in f32.
fn tiny() -> (Served, Session) {
    let session = Fixture::Tiny.session(TensorType::F32, exact_options());
    let served = Served::of(Arc::clone(session.model()), options());
    (served, session)
}

/// A prompt's rows as the model has them at the hook, `[n_rows, d_in]`.
fn rows(session: &mut Session, prompt: &Prompt) -> Vec<Vec<f64>> {
    let options = RunOptions {
        keep: Keep::ALL,
        ..RunOptions::default()
    };
    let run = session.run(prompt, options).expect("it runs");
    let trace = &run.trace.saes[0];
    let n_rows = prompt.tokens().len();
    let rows = trace.residuals.chunks_exact(trace.residuals.len() / n_rows);
    rows.map(|row| row.iter().copied().map(f64::from).collect())
        .collect()
}

fn picture_url(fixture: Fixture, name: &str) -> String {
    let png = std::fs::read(fixture.picture(name)).expect("a committed file");
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

fn chat(fixture: Fixture, name: &str) -> Value {
    json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": picture_url(fixture, name)}},
        {"type": "text", "text": "Describe the image."},
    ]}])
}

const TEXT: &str = "Describe the image, and the one behind it.";

fn features(value: &Value) -> Vec<(usize, f64)> {
    let features = value.as_array().expect("a list").iter();
    let feature = |one: &Value| {
        let index = one["featureIndex"].as_u64().expect("an index") as usize;
        (index, one["activationValue"].as_f64().expect("a number"))
    };
    features.map(feature).collect()
}

/// All of what the endpoints say of a prompt, beside the formulas.
fn check_activations(
    served: &Served,
    sae: &Folded,
    prompt: &Value,
    tokens: &[Token],
    rows: &[Vec<f64>],
) {
    let n_rows = rows.len();
    let (model, source) = ("tiny-llava-gemma", "1-sae");
    let expected: Vec<Vec<f64>> = rows.iter().map(|row| sae.encode(row)).collect();
    let is_special = |token: &Token| token.is_special || token.kind == TokenKind::Image;

    // Every feature of every token.
    let by_token = served.ask(
        "/v1/activation/topk-by-token",
        &json!({"prompt": prompt, "model": model, "source": source, "topK": 10_000, "ignoreBos": false}),
    );
    let results = by_token["results"].as_array().expect("a list");
    assert_eq!(results.len(), n_rows);
    assert_eq!(by_token["tokens"].as_array().map(Vec::len), Some(n_rows));
    let mut n_active = 0;
    for (i, result) in results.iter().enumerate() {
        assert_eq!(result["tokenPosition"], i);
        assert_eq!(result["token"], by_token["tokens"][i]);
        assert_eq!(result["isSpecial"], is_special(&tokens[i]), "{result}");
        let is_image = tokens[i].kind == TokenKind::Image;
        assert_eq!(result["token"] == "<image>", is_image);
        let active = features(&result["topFeatures"]);
        assert!(active.is_sorted_by(|a, b| a.1 >= b.1));
        n_active += active.len();
        let mut of_row = vec![0.0; sae.w_enc.len()];
        active
            .iter()
            .for_each(|&(index, value)| of_row[index] = value);
        for (ours, theirs) in of_row.iter().zip(&expected[i]) {
            assert!(near(&json!(ours), *theirs), "{ours}, expected {theirs}");
        }
    }
    assert!(n_active > n_rows, "the features do something");

    let best = served.ask(
        "/v1/activation/topk-by-token",
        &json!({"prompt": prompt, "model": model, "source": source, "ignore_bos": true}),
    );
    assert_eq!(best["results"].as_array().map(Vec::len), Some(n_rows - 1));
    assert_eq!(best["tokens"][0], by_token["tokens"][1]);
    assert_eq!(best["results"][0]["tokenPosition"], 1);
    for (best, all) in best["results"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(&results[1..])
    {
        let (best, all) = (
            features(&best["topFeatures"]),
            features(&all["topFeatures"]),
        );
        assert_eq!(best, all[..5.min(all.len())]);
    }

    let sparse = served.ask(
        "/v1/activation/source",
        &json!({"prompts": [prompt], "model": model, "source": source}),
    );
    let sparse = &sparse["results"][0];
    assert_eq!(sparse["tokens"], by_token["tokens"]);
    let of_source: usize = sparse["activeFeatures"]
        .as_object()
        .expect("features")
        .iter()
        .map(|(feature, places)| {
            let feature: usize = feature.parse().expect("an index");
            let places = places.as_array().expect("a list");
            for place in places {
                let row_idx = place[0].as_u64().expect("a position") as usize;
                assert!(row_idx > 0, "the beginning of the sequence is left out");
                assert!(near(&place[1], expected[row_idx][feature]), "{place}");
            }
            places.len()
        })
        .sum();
    let of_first = features(&results[0]["topFeatures"]).len();
    assert_eq!(of_source, n_active - of_first);

    let of_all = |ignore_bos: bool, by: &[usize], n: usize| {
        let answer = served.ask(
            "/v1/activation/all",
            &json!({"prompt": prompt, "model": model, "sourceSet": "sae", "selectedSources": [source],
                "sortByTokenIndexes": by, "ignoreBos": ignore_bos, "numResults": n}),
        );
        assert_eq!(answer["tokens"], by_token["tokens"]);
        answer["activations"].as_array().expect("a list").clone()
    };
    for ignore_bos in [false, true] {
        let first = usize::from(ignore_bos);
        let all = of_all(ignore_bos, &[], 7);
        assert_eq!(all.len(), 7);
        let max = |feature: usize| {
            let values = expected[first..].iter().map(|row| row[feature]);
            values.fold(0.0, f64::max)
        };
        let mut largest: Vec<f64> = (0..sae.w_enc.len()).map(max).collect();
        largest.sort_by(|a, b| b.total_cmp(a));
        for (feature, largest) in all.iter().zip(largest) {
            assert_eq!(feature["source"], source);
            assert_eq!(feature["sumValues"], 0.0);
            assert!(near(&feature["maxValue"], largest), "{feature}");
            let index = feature["index"].as_u64().expect("an index") as usize;
            let values = feature["values"].as_array().expect("a list");
            assert_eq!(values.len(), n_rows);
            for (i, value) in values.iter().enumerate() {
                let value_here = if i < first { 0.0 } else { expected[i][index] };
                assert!(near(value, value_here), "{value}, expected {value_here}");
            }
            let at = feature["maxValueIndex"].as_u64().expect("a position") as usize;
            assert_eq!(values[at], feature["maxValue"]);
        }
    }
    let by = [n_rows - 1, n_rows - 2];
    let sorted = of_all(true, &by, 3);
    let sum = |feature: usize| expected[by[0]][feature] + expected[by[1]][feature];
    let mut sums: Vec<f64> = (0..sae.w_enc.len()).map(sum).collect();
    sums.sort_by(|a, b| b.total_cmp(a));
    for (feature, sum) in sorted.iter().zip(sums) {
        assert!(near(&feature["sumValues"], sum), "{feature}");
    }

    let index = of_all(true, &[], 1)[0]["index"].as_u64().expect("an index") as usize;
    let single = served.ask(
        "/v1/activation/single",
        &json!({"prompt": prompt, "model": model, "source": source, "index": index.to_string()}),
    );
    assert_eq!(single["tokens"], best["tokens"]);
    let values = single["activation"]["values"].as_array().expect("a list");
    assert_eq!(values.len(), n_rows - 1);
    for (i, value) in values.iter().enumerate() {
        assert!(near(value, expected[i + 1][index]), "{value}");
        assert_eq!(single["tokensIsSpecial"][i], is_special(&tokens[i + 1]));
    }
    let at = single["activation"]["maxValueIndex"]
        .as_u64()
        .expect("a position");
    assert_eq!(values[at as usize], single["activation"]["maxValue"]);

    // A vector, twice: the second time, the prompt may be remembered.
    let vector: Vec<f64> = (0..rows[0].len()).map(|i| (i as f64).sin()).collect();
    for _ in 0..2 {
        let along = served.ask(
            "/v1/activation/single",
            &json!({"prompt": prompt, "model": model, "vector": vector, "hook": "blocks.2.hook_resid_pre"}),
        );
        assert_eq!(along["tokens"], by_token["tokens"]);
        let values = along["activation"]["values"].as_array().expect("a list");
        assert_eq!(values.len(), n_rows);
        for (value, row) in values.iter().zip(rows) {
            assert!(near(value, dot(row, &vector)), "{value}");
        }
    }
}

#[test]
fn activations_are_those_of_unit_length_decoder_rows() {
    let (served, mut session) = tiny();
    let sae = Folded::open(Fixture::Tiny, TensorType::F32);
    let text = session.prompt(TEXT, PromptForm::Raw, &[]).expect("tokens");
    let of_text = rows(&mut session, &text);
    check_activations(&served, &sae, &json!(TEXT), text.tokens(), &of_text);
    let with_image = fixture::prompt(&mut session, Fixture::Tiny, "00.png");
    let of_image = rows(&mut session, &with_image);
    let chat = chat(Fixture::Tiny, "00.png");
    check_activations(&served, &sae, &chat, with_image.tokens(), &of_image);
}

/// Each of several prompts gets what it gets alone, up to what neighbours in the context change.
#[test]
fn batches_are_lists_of_the_same() {
    let (served, _session) = tiny();
    let prompts = [json!(TEXT), chat(Fixture::Tiny, "01.png"), json!("one")];
    let check = |path: &str, mut request: Value, compare: &dyn Fn(&Value, &Value)| {
        request["model"] = json!("demo");
        let alone = prompts.iter().map(|prompt| {
            let mut request = request.clone();
            request["prompt"] = prompt.clone();
            served.ask(path, &request)
        });
        let alone: Vec<Value> = alone.collect();
        request["prompts"] = json!(prompts);
        let together = served.ask(&format!("{path}-batch"), &request);
        let together = together["results"].as_array().expect("a list");
        assert_eq!(together.len(), alone.len());
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together["tokens"], alone["tokens"]);
            compare(together, alone);
        }
    };
    let same = |a: &Value, b: &Value| {
        let (a, b) = (a.as_array().expect("a list"), b.as_array().expect("a list"));
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).for_each(|(a, b)| {
            assert!(near(a, b.as_f64().expect("a number")), "{a}, alone {b}");
        });
    };
    check(
        "/v1/activation/single",
        json!({"source": "1-sae", "index": "17"}),
        &|a, b| same(&a["activation"]["values"], &b["activation"]["values"]),
    );
    check(
        "/v1/activation/all",
        json!({"sourceSet": "sae", "selectedSources": [], "sortByTokenIndexes": [], "ignoreBos": true, "numResults": 1}),
        &|a, b| {
            same(
                &a["activations"][0]["values"],
                &b["activations"][0]["values"],
            )
        },
    );
    check(
        "/v1/activation/topk-by-token",
        json!({"source": "sae", "topK": 1, "ignoreBos": true}),
        &|a, b| {
            let values = |answer: &Value| -> Value {
                let results = answer["results"].as_array().expect("a list").iter();
                results
                    .map(|one| {
                        one["topFeatures"][0]["activationValue"]
                            .as_f64()
                            .unwrap_or(0.0)
                    })
                    .collect()
            };
            same(&values(a), &values(b));
        },
    );
}

/// What is done to a row, in f64.
type Edit = Arc<dyn Fn(&[f64], Token) -> Vec<f64> + Send + Sync>;

/// Edits rows by a formula of the test's own.
struct ByFormula(Edit);

impl Editor for ByFormula {
    fn write(&mut self, rows: &mut [f32], tokens: &[Token]) -> Result<Edited> {
        let width = rows.len() / tokens.len();
        for (row, &token) in rows.chunks_exact_mut(width).zip(tokens) {
            let wide: Vec<f64> = row.iter().copied().map(f64::from).collect();
            for (x, edited) in row.iter_mut().zip((self.0)(&wide, token)) {
                *x = edited as f32;
            }
        }
        Ok(Edited::Yes)
    }
}

/// A run whose rows are edited so.
fn run_by_formula(model: &Arc<HookedModel>, prompt: &Prompt, max_tokens: usize, edit: Edit) -> Run {
    let place = model.saes()[0].hook_point();
    let size = EngineSize {
        n_tokens: 256,
        n_sequences: 1,
        n_shared: 0,
        n_together: 0,
    };
    let mut engine = model.engine(size).expect("there is memory");
    let options = RunOptions {
        max_tokens,
        top_log_probs: Some(2),
        ..RunOptions::default()
    };
    let mut request = Request::new(Arc::new(prompt.clone()), options);
    request.editors.push(EditorAt {
        read: place,
        write: place,
        editor: Box::new(ByFormula(edit)),
    });
    let go_on = &mut |_, _: llava_sae_cpp::Step<'_>| std::ops::ControlFlow::Continue(());
    let mut runs = engine.run(vec![request], go_on).expect("it runs");
    runs.remove(0)
}

fn steer_request(method: &str) -> Value {
    json!({
        "prompt": TEXT, "model": "tiny-llava-gemma", "steerMethod": method, "normalizeSteering": false,
        "types": ["STEERED", "DEFAULT"], "nCompletionTokens": 6, "temperature": 0, "strengthMultiplier": 2,
        "freqPenalty": 0, "seed": 16, "nLogprobs": 2,
    })
}

fn check_run(output: &Value, expected: &Run) {
    assert_eq!(output["output"], expected.text.as_str(), "{output}");
    check_log_probs(&output["logprobs"], expected);
}

fn check_log_probs(log_probs: &Value, expected: &Run) {
    let log_probs = log_probs.as_array().expect("a list");
    assert_eq!(log_probs.len(), expected.token_ids.len());
    for (ours, theirs) in log_probs.iter().zip(&expected.log_probs) {
        assert!(
            is_within(F32, &ours["logprob"], theirs.log_prob),
            "{ours}, expected {theirs:?}"
        );
        let top = ours["topLogprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 2);
        assert!(
            is_within(F32, &top[1]["logprob"], theirs.top[1].1),
            "{ours}"
        );
    }
}

/// Features and vectors, by each method, beside the method's formula applied to the model's rows.
#[test]
fn each_method_does_what_its_formula_says() {
    let (served, session) = tiny();
    let sae = Folded::open(Fixture::Tiny, TensorType::F32);
    let model = Arc::clone(&served.model);
    let prompt = session.prompt(TEXT, PromptForm::Raw, &[]).expect("tokens");
    let unit = &sae.w_dec[141];
    let long: Vec<f64> = unit.iter().map(|x| 3.0 * x).collect();
    let scaled =
        |direction: &[f64], k: f64| -> Vec<f64> { direction.iter().map(|x| k * x).collect() };
    let add = |row: &[f64], more: Vec<f64>| -> Vec<f64> {
        row.iter().zip(more).map(|(x, y)| x + y).collect()
    };
    let plain = run_by_formula(&model, &prompt, 6, Arc::new(|row, _| row.to_vec()));
    // The strength as it is sent, and what the row becomes; strengths are doubled.
    let formula = |method: &str, strength: f64, length: f64| -> Edit {
        let unit = unit.clone();
        let method = method.to_owned();
        Arc::new(move |row, _| {
            let (c, p) = (2.0 * strength, dot(row, &unit));
            let k = match &method[..] {
                "SIMPLE_ADDITIVE" => c * length,
                "ORTHOGONAL_DECOMP" => (c - 1.0) * p,
                _ => p.min(c) - p,
            };
            add(row, scaled(&unit, k))
        })
    };
    for (method, strength) in [
        ("SIMPLE_ADDITIVE", 3.0),
        ("ORTHOGONAL_DECOMP", -4.0),
        ("PROJECTION_CAP", -2.5),
    ] {
        let feature =
            json!({"model": "demo", "source": "1-sae", "index": 141, "strength": strength});
        let vector = |values: &[f64]| json!([{"steeringVector": values, "strength": strength, "hook": HOOK}]);
        for (steered_by, normalize, length) in [
            (json!({"features": [feature]}), false, 1.0),
            (json!({"features": [feature]}), true, 1.0),
            (json!({"vectors": vector(&long)}), false, 3.0),
            (json!({"vectors": vector(&long)}), true, 1.0),
        ] {
            let mut request = steer_request(method);
            let members = steered_by.as_object().expect("members").clone();
            request.as_object_mut().expect("members").extend(members);
            request["normalizeSteering"] = json!(normalize);
            let answer = served.ask("/v1/steer/completion", &request);
            let [steered, default] = &answer["outputs"].as_array().expect("a list")[..] else {
                panic!("two outputs: {answer}");
            };
            assert_eq!(steered["type"], "STEERED");
            assert_eq!(default["type"], "DEFAULT");
            check_run(default, &plain);
            let expected = run_by_formula(&model, &prompt, 6, formula(method, strength, length));
            assert_ne!(
                expected.log_probs, plain.log_probs,
                "{method} does something"
            );
            check_run(steered, &expected);
        }
    }
}

/// Without `steerSpecialTokens`, special tokens' rows stay; an image's do not.
#[test]
fn chats_are_steered_with_and_without_special_tokens() {
    let (served, mut session) = tiny();
    let sae = Folded::open(Fixture::Tiny, TensorType::F32);
    let model = Arc::clone(&served.model);
    let prompt = fixture::prompt(&mut session, Fixture::Tiny, "00.png");
    for steers_special in [false, true] {
        let mut request = steer_request("SIMPLE_ADDITIVE");
        request["prompt"] = chat(Fixture::Tiny, "00.png");
        request["features"] =
            json!([{"model": "demo", "source": "1-sae", "index": 141, "strength": 1.5}]);
        request["steerSpecialTokens"] = json!(steers_special);
        request["types"] = json!(["DEFAULT", "STEERED"]);
        let answer = served.ask("/v1/steer/completion-chat", &request);
        let unit = sae.w_dec[141].clone();
        let seen = Arc::new(Mutex::new(0));
        let n_special = Arc::clone(&seen);
        let edit = move |row: &[f64], token: Token| {
            *n_special.lock().expect("no panic") += usize::from(token.is_special);
            match token.is_special && !steers_special {
                true => row.to_vec(),
                false => row.iter().zip(&unit).map(|(x, u)| x + 3.0 * u).collect(),
            }
        };
        let expected = run_by_formula(&model, &prompt, 6, Arc::new(edit));
        assert!(
            *seen.lock().expect("no panic") > 2,
            "there are special tokens"
        );
        let input = &answer["input"];
        let turn = json!({"role": "user", "content": "<image>Describe the image."});
        assert_eq!(input["chatTemplate"], json!([turn]));
        let raw = input["raw"].as_str().expect("a text");
        assert!(
            raw.starts_with("<bos><start_of_turn>user\n<image>"),
            "{raw}"
        );
        assert!(input.get("type").is_none() && input.get("logprobs").is_none());
        let steered = &answer["outputs"][1];
        assert_eq!(answer["outputs"][0]["type"], "DEFAULT");
        assert_eq!(steered["type"], "STEERED");
        let said = json!({"role": "assistant", "content": expected.text});
        assert_eq!(steered["chatTemplate"], json!([turn, said]));
        assert_eq!(steered["raw"], format!("{raw}{}", expected.text));
        check_log_probs(&steered["logprobs"], &expected);
    }
}

/// A request as Neuronpedia's web application sends it, to the demo, beside the command line.
#[test]
fn a_steered_chat_comes_whole_and_as_a_stream() {
    let served = Served::demo(options());
    let path = "assets/pictures/carrot-mushroom.png";
    let feature = feature_called("mushroom");
    let mut request = json!({
        "prompt": about_picture("carrot-mushroom"), "model": "llava-gemma-emoji",
        "steerMethod": "SIMPLE_ADDITIVE", "normalizeSteering": false, "types": ["STEERED", "DEFAULT"],
        "features": [{"model": "llava-gemma-emoji", "source": "1-res", "index": feature, "strength": -6}],
        "nCompletionTokens": 48, "temperature": 0, "strengthMultiplier": 2, "freqPenalty": 0, "seed": 16,
        "steerSpecialTokens": true, "stream": false,
    });
    let whole = served.ask("/v1/steer/completion-chat", &request);
    let content = |answer: &Value, i: usize| {
        let turns = answer["outputs"][i]["chatTemplate"].as_array().cloned();
        let last = turns.expect("a list").pop().expect("a turn");
        last["content"].as_str().expect("a text").to_owned()
    };
    let steer = format!("{feature}:-12");
    let steered = stdout(&["--steer", &steer, "--units", "unit", path]);
    assert_eq!(content(&whole, 0), steered.trim_end());
    assert_eq!(content(&whole, 1), stdout(&[path]).trim_end());
    assert_ne!(content(&whole, 0), content(&whole, 1));
    assert!(whole["outputs"][0].get("logprobs").is_none());

    request["stream"] = json!(true);
    request["nLogprobs"] = json!(1);
    let mut frames: Vec<Value> = served
        .stream("/v1/steer/completion-chat", &request)
        .map(|frame| serde_json::from_str(&frame).expect("each frame is JSON"))
        .collect();
    assert!(frames.len() > 10);
    for pair in frames.windows(2) {
        for i in 0..2 {
            assert!(content(&pair[1], i).starts_with(&content(&pair[0], i)));
            let n_log_probs = |frame: &Value| {
                let log_probs = frame["outputs"][i]["logprobs"].as_array();
                log_probs.map_or(0, Vec::len)
            };
            assert!(n_log_probs(&pair[0]) <= n_log_probs(&pair[1]));
            assert!(content(&pair[0], i).is_empty() || n_log_probs(&pair[0]) > 0);
        }
    }
    let mut last = frames.pop().expect("some frames");
    for output in last["outputs"].as_array_mut().expect("a list") {
        output
            .as_object_mut()
            .expect("an object")
            .remove("logprobs");
    }
    assert_eq!(last, whole);

    // In snake case, and with the words of Gemma's template.
    let older = json!({
        "prompt": [{"role": "user", "content": "Hello"}, {"role": "model", "content": "The"}],
        "model": "demo", "steer_method": "SIMPLE_ADDITIVE", "normalize_steering": false, "types": ["DEFAULT"],
        "n_completion_tokens": 3, "temperature": 1.0, "strength_multiplier": 1.0, "freq_penalty": 1.0,
        "seed": 1.0, "steer_special_tokens": false, "n_logprobs": 0, "reads": [],
    });
    let answer = served.ask("/v1/steer/completion-chat", &older);
    let turns = answer["outputs"][0]["chatTemplate"]
        .as_array()
        .expect("a list");
    assert_eq!(
        turns.len(),
        2,
        "the answer that was begun goes on: {answer}"
    );
    assert_eq!(turns[1]["role"], "model");
    assert_eq!(served.ask("/v1/steer/completion-chat", &older), answer);
}

fn feature_called(label: &str) -> usize {
    let found = command_line::json(&["labels", label, "--json"]);
    let feature = found["features"][0]["feature"].as_u64();
    feature.expect("a feature") as usize
}

/// The image's features as the command line has them, in units of the decoder rows' lengths.
#[test]
fn features_are_those_of_the_command_line() {
    let served = Served::demo(options());
    let path = "assets/pictures/boat.png";
    let args = ["features", "--json", "--over", "image", "--top", "3", path];
    let report = command_line::json(&args);
    for entry in report["features"].as_array().expect("a list") {
        let feature = entry["feature"].as_u64().expect("an index");
        let single = served.ask(
            "/v1/activation/single",
            &json!({"prompt": about_picture("boat"), "model": "demo", "source": "1-res", "index": feature.to_string()}),
        );
        let is_image = |i: &usize| single["tokens"][*i] == "<image>";
        let values = single["activation"]["values"].as_array().expect("a list");
        let image = (0..values.len())
            .filter(is_image)
            .map(|i| values[i].as_f64());
        let max = image
            .map(|value| value.expect("a number"))
            .fold(0.0, f64::max);
        let card = command_line::json(&["feature", &feature.to_string(), "--json"]);
        let norm = card["features"][0]["decoder_norm"]
            .as_f64()
            .expect("a norm");
        let expected = norm * entry["max"].as_f64().expect("a number");
        assert!(
            (max - expected).abs() < 1e-2 * expected,
            "{max}, expected {expected}"
        );
    }
}

#[test]
fn what_is_known_without_a_run() {
    let (served, session) = tiny();
    let sae = Folded::open(Fixture::Tiny, TensorType::F32);
    let told = served.get("/v1/capabilities").json();
    assert_eq!(told["model"], "demo"); // as the server of the tests calls what it serves
    assert_eq!(told["backend"], "llama.cpp");
    assert_eq!(told["max_concurrent_requests"], 2);
    assert_eq!(
        told["num_layers"],
        session.model().language_model().n_layers()
    );
    assert_eq!(told["sae_sets"], json!(["sae"]));
    assert_eq!(told["sources"], json!(["1-sae"]));
    assert_eq!(told["endpoints"]["activation_topk_by_token"], true);
    assert_eq!(told["endpoints"]["lens_logit"], false);

    let tokenize = |more: Value| {
        let mut request = json!({"text": "the image", "model": "demo"});
        request
            .as_object_mut()
            .expect("members")
            .extend(more.as_object().expect("members").clone());
        served.ask("/v1/tokenize", &request)
    };
    let usual = tokenize(json!({}));
    assert_eq!(usual["prependBos"], true);
    assert_eq!(usual["tokenStrings"][0], "<bos>");
    let prompt = session
        .prompt("the image", PromptForm::Raw, &[])
        .expect("tokens");
    let ids: Vec<i32> = prompt
        .tokens()
        .iter()
        .filter_map(|token| token.id)
        .collect();
    assert_eq!(usual["tokens"], json!(ids));
    let without = tokenize(json!({"prependBos": false}));
    assert_eq!(without["tokens"], json!(ids[1..]));
    assert_eq!(without["prependBos"], false);
    let strings = without["tokenStrings"].as_array().expect("a list").iter();
    let text: String = strings
        .map(|piece| piece.as_str().expect("a text"))
        .collect();
    assert_eq!(text.trim_start(), "the image");
    assert_eq!(tokenize(json!({"prepend_bos": true})), usual);
    let begun = tokenize(json!({"text": "<bos>the image"}));
    assert_eq!(begun["tokens"][0], ids[0]);
    assert_eq!(begun["prependBos"], false);

    let vector = served.ask(
        "/v1/util/sae-vector",
        &json!({"model": "demo", "source": "1-sae", "index": 17}),
    );
    assert_eq!(vector["hookName"], HOOK);
    let values = vector["vector"].as_array().expect("a list");
    assert_eq!(values.len(), sae.w_enc[17].len());
    assert!(
        values
            .iter()
            .zip(&sae.w_enc[17])
            .all(|(ours, theirs)| near(ours, *theirs))
    );

    let feature = json!({"model": "demo", "source": "1-sae", "index": 17});
    let by_feature = served.ask(
        "/v1/util/sae-topk-by-decoder-cossim",
        &json!({"model": "demo", "source": "1-sae", "numResults": 4, "feature": feature}),
    );
    assert_eq!(by_feature["feature"], feature);
    let mut cosines: Vec<f64> = sae
        .w_dec
        .iter()
        .map(|row| dot(row, &sae.w_dec[17]))
        .collect();
    let found = by_feature["topkDecoderCossimFeatures"]
        .as_array()
        .expect("a list");
    assert_eq!(found.len(), 4);
    assert_eq!(found[0]["feature"], feature);
    for one in found {
        let index = one["feature"]["index"].as_u64().expect("an index") as usize;
        assert!(near(&one["cosineSimilarity"], cosines[index]), "{one}");
    }
    cosines.sort_by(|a, b| b.total_cmp(a));
    assert!(near(&found[3]["cosineSimilarity"], cosines[3]));
    let long: Vec<f64> = sae.w_dec[17].iter().map(|x| 5.0 * x).collect();
    let by_vector = served.ask(
        "/v1/util/sae-topk-by-decoder-cossim",
        &json!({"model": "demo", "source": "sae", "num_results": 1_000, "vector": long}),
    );
    assert!(by_vector.get("feature").is_none());
    let found = by_vector["topkDecoderCossimFeatures"]
        .as_array()
        .expect("a list");
    assert_eq!(found.len(), 128);
    assert_eq!(found[0]["feature"]["index"], 17);
}

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

#[test]
fn what_cannot_be_had_is_said_in_neuronpedias_form() {
    let (served, _session) = tiny();
    let mut steer = steer_request("SIMPLE_ADDITIVE");
    steer["features"] = json!([{"model": "demo", "source": "1-sae", "index": 1, "strength": 1}]);
    let mut chat = steer.clone();
    chat["prompt"] = json!([{"role": "user", "content": "Hello"}]);
    chat["steerSpecialTokens"] = json!(true);
    let single = json!({"prompt": "one", "model": "demo", "source": "1-sae", "index": "1"});
    let all = json!({"prompt": "one", "model": "demo", "sourceSet": "sae", "selectedSources": [],
        "sortByTokenIndexes": [], "ignoreBos": true});
    let nearest = json!({"model": "demo", "source": "1-sae", "numResults": 1});
    let check = |path: &str, request: &Value, member: &str, value: Value, said: &str| {
        let mut request = request.clone();
        request[member] = value;
        let sentence = refused(&served.post(path, &request), 400);
        assert!(sentence.contains(said), "{path}, {member}: {sentence}");
    };
    let completion = "/v1/steer/completion";
    check(completion, &steer, "vectors", json!([]), "not both");
    check(
        completion,
        &steer,
        "features",
        Value::Null,
        "nothing to steer by",
    );
    check(
        completion,
        &steer,
        "model",
        json!("gpt2-small"),
        "there is `demo`, `tiny-llava-gemma`",
    );
    check(completion, &steer, "freqPenalty", json!(3), "from -2 to 2");
    check(completion, &steer, "temperature", json!(-1), "temperature");
    let feature = |source: &str, index: usize| json!([{"model": "demo", "source": source, "index": index, "strength": 1}]);
    check(
        completion,
        &steer,
        "features",
        feature("0-res-jb", 1),
        "there is `1-sae`",
    );
    check(
        completion,
        &steer,
        "features",
        feature("1-sae", 200),
        "this SAE has 200 features",
    );
    let mut by_vector = steer.clone();
    by_vector["features"] = Value::Null;
    let vector = |n: usize, hook: &str| json!([{"steeringVector": vec![1.0; n], "strength": 1, "hook": hook}]);
    check(
        completion,
        &by_vector,
        "vectors",
        vector(3, HOOK),
        "3 values",
    );
    check(
        completion,
        &by_vector,
        "vectors",
        vector(48, "blocks.1.hook_x"),
        "is not supported",
    );
    check(
        completion,
        &by_vector,
        "vectors",
        vector(48, "blocks.99.hook_resid_post"),
        "layers",
    );
    check(
        "/v1/steer/completion-chat",
        &chat,
        "reads",
        json!([{"id": "a"}]),
        "not done here",
    );
    check(
        "/v1/steer/completion-chat",
        &chat,
        "prompt",
        json!([]),
        "is empty",
    );
    check(
        "/v1/activation/single",
        &single,
        "vector",
        json!([1.0]),
        "and not both",
    );
    check(
        "/v1/activation/single",
        &single,
        "index",
        Value::Null,
        "and not both",
    );
    check(
        "/v1/activation/single",
        &single,
        "index",
        json!("200"),
        "this SAE has 200 features",
    );
    check(
        "/v1/activation/single",
        &single,
        "prompt",
        json!(""),
        "empty",
    );
    check(
        "/v1/activation/all",
        &all,
        "sourceSet",
        json!("res-jb"),
        "there is `sae`",
    );
    check(
        "/v1/activation/all",
        &all,
        "selectedSources",
        json!(["0-sae"]),
        "there is `1-sae`",
    );
    check(
        "/v1/activation/all",
        &all,
        "sortByTokenIndexes",
        json!([100]),
        "no token 100",
    );
    let batch = |n: usize| json!({"prompts": vec!["one"; n], "model": "demo", "source": "1-sae"});
    check(
        "/v1/activation/source",
        &batch(5),
        "source",
        json!("1-sae"),
        "1 to 4",
    );
    check(
        "/v1/activation/source",
        &batch(0),
        "source",
        json!("1-sae"),
        "1 to 4",
    );
    check(
        "/v1/util/sae-vector",
        &nearest,
        "index",
        json!(200),
        "this SAE has 200 features",
    );
    check(
        "/v1/util/sae-topk-by-decoder-cossim",
        &nearest,
        "vector",
        json!([1.0]),
        "1 values",
    );
    check(
        "/v1/util/sae-topk-by-decoder-cossim",
        &nearest,
        "vector",
        Value::Null,
        "not both",
    );
    check(
        "/v1/tokenize",
        &json!({"text": "a"}),
        "model",
        json!("other"),
        "there is no model `other` here",
    );

    let malformed = |path: &str, body: &Value, kind: &str, place: Value| {
        let answer = served.post(path, body);
        assert_eq!(answer.status, 422, "{}", answer.text());
        let detail = &answer.json()["detail"][0];
        assert_eq!(detail["type"], kind, "{detail}");
        assert_eq!(detail["loc"], place, "{detail}");
        assert!(detail["msg"].is_string());
    };
    malformed(
        "/v1/tokenize",
        &json!({"text": "a"}),
        "missing",
        json!(["body", "model"]),
    );
    malformed(
        "/v1/tokenize",
        &json!({"text": 1, "model": "demo"}),
        "value_error",
        json!(["body", "text"]),
    );
    malformed("/v1/tokenize", &json!([]), "value_error", json!(["body"]));
    let with = |member: &str, value: Value| {
        let mut request = steer.clone();
        request[member] = value;
        request
    };
    let strong = with(
        "features",
        json!([{"model": "demo", "source": "1-sae", "index": 1, "strength": "much"}]),
    );
    malformed(
        completion,
        &strong,
        "value_error",
        json!(["body", "features", 0, "strength"]),
    );
    malformed(
        completion,
        &with("types", json!([])),
        "value_error",
        json!(["body", "types"]),
    );
    malformed(
        completion,
        &with("types", json!(["DEFAULT", "DEFAULT"])),
        "value_error",
        json!(["body", "types"]),
    );
    malformed(
        completion,
        &with("nLogprobs", json!(11)),
        "value_error",
        json!(["body", "nLogprobs"]),
    );
    malformed(
        completion,
        &with("nCompletionTokens", json!(0)),
        "value_error",
        json!(["body", "nCompletionTokens"]),
    );
    malformed(
        completion,
        &with("steerMethod", json!("PUSH")),
        "value_error",
        json!(["body", "steerMethod"]),
    );
    chat["steerSpecialTokens"] = Value::Null;
    malformed(
        "/v1/steer/completion-chat",
        &chat,
        "missing",
        json!(["body", "steerSpecialTokens"]),
    );

    // Refusals that come from elsewhere, and those of other paths.
    assert!(refused(&served.post("/v1/steer/sideways", &json!({})), 404).contains("nothing at"));
    assert!(refused(&served.get("/v1/activation/all"), 405).contains("does not take GET"));
    let foreign = served.post_with(
        "/v1/tokenize",
        &json!({}),
        &[("origin", "http://evil.example")],
    );
    assert!(refused(&foreign, 403).contains("may not use this server"));
    let long = format!(
        "POST /v1/tokenize HTTP/1.1\r\nhost: {}\r\ncontent-length: 10737418240\r\n\r\n",
        served.address
    );
    let long = serve::raw(&served, long.as_bytes());
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    assert!(
        long.contains("{\"error\":\"the request's body is longer"),
        "{long}"
    );
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
