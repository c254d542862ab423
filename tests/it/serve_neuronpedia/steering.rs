//! `/v1/steer/…`.

use std::sync::{Arc, Mutex};

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::llama::Edited;
use llava_sae_cpp::{
    Editor, EditorAt, EngineSize, HookedModel, Prompt, PromptForm, Request, Result, Run,
    RunOptions, Token,
};
use serde_json::{Value, json};

use super::{Folded, HOOK, TEXT, chat, dot, is_within, steer_request, tiny};
use crate::command_line::{self, stdout};
use crate::fixture::{self, F32, Fixture};
use crate::serve_fixture::{Served, about_picture, options};

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
