//! `/v1/activation/…`.

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{Keep, Prompt, PromptForm, RunOptions, Session, Token, TokenKind};
use serde_json::{Value, json};

use super::{Folded, TEXT, chat, dot, near, tiny};
use crate::command_line;
use crate::fixture::{self, Fixture};
use crate::serve_fixture::{Served, about_picture, options};

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
