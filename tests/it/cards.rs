//! A feature's card beside what the raw tensors say, in f64; `feature` and `labels` on the command line.

use std::collections::BTreeMap;
use std::path::Path;

use gguf_tools::gguf::{Array, Edits, Gguf, TensorType, Value};
use llava_sae_cpp::{ErrorKind, FeatureCard, FeatureId, Session, TokenEffect, demo};
use serde_json::json;

use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::fixture::{Fixture, exact_options, picture, temporary_root};
use crate::hook_points::{self, ARCHITECTURES};
use crate::several_saes::{sae_at, with};

const TOP: usize = 5;

fn matrix(file: &Gguf, name: &str) -> Vec<Vec<f64>> {
    let tensor = file.tensor(name).expect(name);
    let values = file.read_f32(tensor).expect("a whole tensor");
    let rows = values.chunks_exact(tensor.dims[0] as usize);
    rows.map(|row| row.iter().copied().map(f64::from).collect())
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `W_U` as `TransformerLens` has it, `[n_vocab, d_model]`: the final norm folded in, then centred.
fn folded_unembedding(model: &Gguf) -> Vec<Vec<f64>> {
    let shared = model.tensor("output.weight").is_none();
    let name = ["output.weight", "token_embd.weight"][usize::from(shared)];
    let mut rows = matrix(model, name);
    let norm = matrix(model, "output_norm.weight").remove(0);
    let n_vocab = rows.len() as f64;
    for (column, weight) in norm.iter().enumerate() {
        rows.iter_mut().for_each(|row| row[column] *= weight);
        let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n_vocab;
        rows.iter_mut().for_each(|row| row[column] -= mean);
    }
    rows
}

/// Tokens that texts have, by what the vocabulary says of them.
fn is_plain(model: &Gguf, id: usize) -> bool {
    let Some(Value::Array(Array::I32(types))) = model.get("tokenizer.ggml.token_type") else {
        panic!("types of tokens");
    };
    let is_named = ["bos", "eos", "seperator", "padding"].iter().any(|name| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        model.get(&key) == Some(&Value::U32(id as u32))
    });
    !is_named && !matches!(types[id], 3 | 5) // control, unused
}

/// Whether the tokens are the first of those with these logits, in order, within `tolerance`.
fn check_tokens(ours: &[TokenEffect], expected: &BTreeMap<i32, f64>, sign: f64, tolerance: f64) {
    let mut sorted: Vec<_> = expected.values().map(|logit| sign * logit).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(ours.len(), TOP);
    for (token, expected_here) in ours.iter().zip(sorted) {
        let logit = f64::from(token.logit);
        let of_token = expected.get(&token.id).expect("a plain token");
        assert!((logit - of_token).abs() <= tolerance, "{token:?}");
        assert!(
            (sign * logit - expected_here).abs() <= tolerance,
            "{token:?}"
        );
    }
}

fn check_card(card: &FeatureCard, index: usize, model: &Gguf, sae: &Gguf, tolerance: f64) {
    let decoder = matrix(sae, "sae.w_dec");
    let of_encoder = &matrix(sae, "sae.w_enc")[index];
    let direction = &decoder[index];
    let is_layer_norm = model.tensor("output_norm.bias").is_some();
    let mean = match is_layer_norm {
        true => direction.iter().sum::<f64>() / direction.len() as f64,
        false => 0.0,
    };
    let read: Vec<f64> = direction.iter().map(|x| x - mean).collect();
    let length = |row: &[f64]| dot(row, row).sqrt();
    let near = |ours: f32, theirs: f64| (f64::from(ours) - theirs).abs() <= tolerance;
    assert!(near(card.encoder_norm, length(of_encoder)), "{card:?}");
    assert!(near(card.decoder_norm, length(direction)), "{card:?}");
    let bias = matrix(sae, "sae.b_enc").remove(0)[index];
    assert!(near(card.encoder_bias, bias), "{card:?}");

    let cosine = |row: &Vec<f64>| dot(row, direction) / length(row) / length(direction);
    let cosines: Vec<_> = decoder.iter().map(cosine).collect();
    let mut sorted = cosines.clone();
    sorted.remove(index);
    sorted.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(card.neighbours.len(), TOP);
    for (neighbour, expected) in card.neighbours.iter().zip(sorted) {
        let other: usize = neighbour.feature.to_string().parse().expect("an index");
        assert_ne!(other, index);
        assert!(near(neighbour.cosine, cosines[other]), "{neighbour:?}");
        assert!(near(neighbour.cosine, expected), "{neighbour:?}");
    }

    let unembedding = folded_unembedding(model).into_iter().enumerate();
    let plain = unembedding.filter(|(id, _)| is_plain(model, *id));
    let logits = plain.map(|(id, row)| (id as i32, dot(&row, &read) / length(direction)));
    let logits: BTreeMap<_, _> = logits.collect();
    let tokens = card.tokens.as_ref().expect("it is in the residual stream");
    check_tokens(&tokens.promoted, &logits, 1.0, tolerance);
    check_tokens(&tokens.suppressed, &logits, -1.0, tolerance);
}

fn card(session: &Session, index: usize) -> FeatureCard {
    let card = session.model().feature_card(FeatureId::of_only(index), TOP);
    card.expect("the feature is there")
}

fn gguf(path: &Path) -> Gguf {
    Gguf::open(path).expect("a valid file")
}

/// Models with an output of their own, and with a shared one. Sums of f32 numbers below 10.
#[test]
fn cards_of_every_architecture_are_what_the_tensors_say() {
    for architecture in ARCHITECTURES {
        let model = gguf(&hook_points::model(architecture));
        let width = model.tensor("output_norm.weight").expect("a norm").dims[0] as usize;
        let hook = "blocks.1.hook_resid_post";
        let session = hook_points::open(architecture, hook, width, exact_options());
        let session = session.expect("the fixture loads");
        let sae = gguf(session.sae().file().expect("a file").path());
        for index in [0, 7] {
            let card = card(&session, index);
            assert_eq!((card.hook_point.as_str(), card.threshold), (hook, None));
            check_card(&card, index, &model, &sae, 1e-4);
        }
    }
}

/// With q8_0, ggml rounds the direction as well: 1 of 127 in the largest of 32 numbers.
#[test]
fn cards_of_quantised_weights_are_near_what_the_tensors_say() {
    for (tensor_type, tolerance) in [
        (TensorType::F32, 1e-4),
        (TensorType::F16, 2e-3),
        (TensorType::Q8_0, 2e-2),
    ] {
        let session = Fixture::Demo.session(tensor_type, exact_options());
        let dir = Fixture::Demo.converted(tensor_type);
        let model = gguf(&dir.join(format!("model-{}.gguf", tensor_type.name())));
        let sae = gguf(&dir.join("sae.gguf"));
        let mushroom = session.model().find_feature("mushroom");
        let index = mushroom.expect("a label").index;
        let card = card(&session, index);
        check_card(&card, index, &model, &sae, tolerance);
        let threshold = f64::from(card.threshold.expect("a jumprelu"));
        let expected = matrix(&sae, "sae.threshold").remove(0)[index];
        assert!((threshold - expected).abs() < 1e-6, "{card:?}");
        // What it was trained to see is what it says.
        let tokens = card.tokens.expect("it is in the residual stream");
        assert_eq!(tokens.promoted[0].text.trim(), "mushroom");
    }
}

#[test]
fn a_card_is_printed_and_has_the_same_as_json() {
    let text = stdout(&["feature", "mushroom", "0", "--top", "3"]);
    let report = json(&["feature", "mushroom", "0", "--top", "3", "--json"]);
    assert_eq!(report["model"], "embedded demo");
    let features = report["features"].as_array().expect("a list");
    assert_eq!(features.len(), 2);
    let keys = features[0].as_object().expect("an object").keys();
    let mut keys: Vec<_> = keys.map(String::as_str).collect();
    keys.sort_unstable();
    let expected = "decoder_norm encoder_bias encoder_norm feature hook_point label neighbours neuronpedia threshold tokens usual";
    assert_eq!(keys.join(" "), expected);

    let mushroom = &features[0];
    assert_eq!(mushroom["label"], "mushroom");
    let title = format!(
        "Feature {} `mushroom`, at `blocks.1.hook_resid_post`",
        mushroom["feature"]
    );
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], title);
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    for key in [
        "threshold",
        "encoder_bias",
        "encoder_norm",
        "decoder_norm",
        "usual",
    ] {
        let shown = format!(
            "  {:<12}  {:>8.3}",
            key.replace('_', " "),
            number(&mushroom[key])
        );
        assert!(lines.contains(&shown.as_str()), "{shown}: {text}");
    }
    for way in ["promoted", "suppressed"] {
        let tokens = mushroom["tokens"][way].as_array().expect("a list");
        assert_eq!(tokens.len(), 3);
        for (i, token) in tokens.iter().enumerate() {
            let shown = format!(
                "{:>6}  {:>8.3}  {}",
                i + 1,
                number(&token["logit"]),
                token["text"]
            );
            assert!(lines.contains(&shown.as_str()), "{shown}: {text}");
            assert!(token["id"].is_i64());
        }
    }
    for (i, near) in mushroom["neighbours"]
        .as_array()
        .expect("a list")
        .iter()
        .enumerate()
    {
        let start = format!(
            "{:>6}  {:>7}  {:>6.3}",
            i + 1,
            near["feature"].as_u64().expect("an index"),
            number(&near["cosine"])
        );
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "{start}: {text}"
        );
    }
    assert!(
        lines.iter().any(|line| line.starts_with("Feature 0 `")),
        "{text}"
    );
}

#[test]
fn names_say_which_sae_is_meant() {
    let models = Fixture::Demo.converted(TensorType::F16);
    let dir = models.join("cards");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let saes = [
        ("stream", "blocks.1.hook_resid_post"),
        ("mlp", "blocks.1.hook_mlp_out"),
        ("attention", "blocks.1.hook_attn_out"),
    ];
    let saes = saes.map(|(name, hook)| sae_at(hook, &dir.join(format!("{name}.gguf"))));
    let with = with(&models, &saes);
    let run = |command: &[&str]| json(&[command, &["--json"], &with].concat());
    let report = run(&["feature", "stream/3", "mlp/3", "attention/3"]);
    let [stream, mlp, attention] = &report["features"].as_array().expect("a list")[..] else {
        panic!("three features");
    };
    // What the MLP gives is added to the stream behind the block; what attention gives, the MLP reads first.
    assert!(stream["tokens"].is_object() && attention["tokens"].is_null());
    assert_eq!(mlp["tokens"], stream["tokens"]);
    assert_eq!(mlp["feature"], "mlp/3");
    let near = mlp["neighbours"][0]["feature"].as_str().expect("a name");
    assert!(near.starts_with("mlp/"), "{near}");
    let text = stdout(&[&["feature", "attention/3"], &with[..]].concat());
    assert!(
        text.ends_with("are taken through the unembedding\n"),
        "{text}"
    );

    let report = run(&["labels", "mushroom"]);
    let names: Vec<_> = report["features"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    let is_of = |sae: &str| {
        names.iter().any(|entry| {
            entry["feature"]
                .as_str()
                .is_some_and(|name| name.starts_with(sae))
        })
    };
    assert!(is_of("stream/"), "{report}");
    check(
        &[&["feature", "3"], &with[..]].concat(),
        1,
        &["`3`", "SAE/FEATURE"],
    );
}

/// Where Neuronpedia has the SAE, and nowhere else.
#[cfg(feature = "pull")]
#[test]
fn cards_and_pages_lead_to_neuronpedia() {
    let files = demo::files().expect("the cache folder can be written");
    let mut edits = Edits::default();
    edits.set("sae.labels_source", "gemma-2b/12-res-jb");
    let original = Gguf::open(&files.saes[0]).expect("a GGUF file");
    let known = original.edited_copy(&edits).expect("a copy");
    let path = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let mmproj = files.mmproj.as_deref().expect("the demo sees");
    let known = [path(&files.model), path(mmproj), path(&known)];
    let known = ["-m", &known[0], "--mmproj", &known[1], "--sae", &known[2]];
    let address = "https://www.neuronpedia.org/gemma-2b/12-res-jb/430";
    let card = |more: &[&str]| {
        json(&[&["feature", "430", "--json"], more].concat())["features"][0].clone()
    };
    assert_eq!(card(&known)["neuronpedia"], address);
    assert!(card(&[])["neuronpedia"].is_null(), "the demo is not there");
    let text = stdout(&[&["feature", "430"], &known[..]].concat());
    assert!(
        text.contains(&format!("  Neuronpedia   {address}\n")),
        "{text}"
    );
    assert!(!stdout(&["feature", "430"]).contains("Neuronpedia"));

    let page = temporary_root().join("neuronpedia.html");
    let of_page = |more: &[&str]| {
        let args = [
            "features",
            "--force",
            "-n",
            "1",
            "--html",
            page.to_str().expect("plain"),
            picture(),
        ];
        stdout(&[&args[..], more].concat());
        let html = std::fs::read_to_string(&page).expect("just written");
        let (_, data) = html.split_once("\"neuronpedia\":").expect("a page's data");
        data.split_once('}').expect("an object").0.to_owned() + "}"
    };
    assert_eq!(
        of_page(&known),
        r#"{"":"https://www.neuronpedia.org/gemma-2b/12-res-jb"}"#
    );
    assert_eq!(of_page(&[]), "{}");
}

#[test]
fn labels_are_searched_by_words() {
    let report = json(&["labels", "MUSHROOM", "--json"]);
    let first = &report["features"][0];
    assert_eq!(
        (&first["rank"], &first["label"]),
        (&json!(1), &json!("mushroom"))
    );
    assert_eq!(report["text"], "MUSHROOM");
    let n_found = report["n_found"].as_u64().expect("a count");
    let text = stdout(&["labels", "MUSHROOM", "--top", "1"]);
    let usual = first["usual"].as_f64().expect("the demo has a baseline");
    let expected = format!(
        "{n_found} labels hold `MUSHROOM`\n  rank  feature    usual  label\n     1  {:>7}  {usual:>7.3}  mushroom\n",
        first["feature"].as_u64().expect("an index")
    );
    assert_eq!(text, expected);
    assert_eq!(report["matching"], "contains");
    let card = json(&["feature", "mushroom", "--json"]);
    assert_eq!(card["features"][0]["usual"], first["usual"]);
    let card = stdout(&["feature", "mushroom"]);
    assert!(
        card.contains(&format!("  usual         {usual:>8.3}\n")),
        "{card}"
    );
    assert_eq!(stdout(&["labels", "quux"]), "0 labels hold `quux`\n");
    assert_eq!(json(&["labels", "quux", "--json"])["features"], json!([]));
}

#[test]
fn labels_are_searched_by_beginnings_and_in_spite_of_typing_errors() {
    let search = |args: &[&str]| json(&[&["labels", "--json", "--top", "1000"], args].concat());
    let labels = |report: &serde_json::Value| -> Vec<String> {
        let entries = report["features"].as_array().expect("a list").iter();
        let labels = entries.map(|entry| entry["label"].as_str().expect("a label").to_owned());
        labels.collect()
    };
    let held = search(&["mushroom"]);
    let typo = search(&["mushrom"]);
    assert_eq!(typo["matching"], "fuzzy");
    assert_eq!(labels(&typo)[0], "mushroom");
    assert_eq!(
        labels(&typo),
        labels(&search(&["mushroom", "--match", "fuzzy"]))
    );
    assert_eq!(search(&["mushrom", "--match", "contains"])["n_found"], 0);
    let begin = search(&["mush", "--match", "prefix"]);
    assert_eq!(begin["matching"], "prefix");
    let expected = labels(&held)
        .into_iter()
        .filter(|label| label.starts_with("mush"));
    assert_eq!(labels(&begin), expected.collect::<Vec<_>>());
    assert!(labels(&begin).len() < labels(&held).len());
    let text = stdout(&["labels", "mushrom", "--top", "1"]);
    assert!(
        text.contains("labels hold, but for typing errors, `mushrom`\n"),
        "{text}"
    );
    check(
        &["labels", "dog", "--match", "regex"],
        2,
        &["--match", "fuzzy"],
    );
}

#[test]
fn what_cannot_be_shown_is_refused() {
    check(&["feature", "768"], 1, &["no feature `768`", "0 to 767"]);
    check(&["feature", "quux"], 1, &["no label contains `quux`"]);
    check(&["feature"], 2, &["FEATURE"]);
    check(&["feature", "1", "--top", "0"], 2, &["--top"]);
    check(&["labels", "?"], 1, &["`?`", "no letter or digit"]);
    let dir = Fixture::Tiny.converted(TensorType::F32);
    let dir = dir.to_str().expect("a plain path");
    check(
        &["labels", "dog", "-d", dir],
        1,
        &["there are none", "`convert --labels`"],
    );
    let session = Fixture::Tiny.exact_session();
    let error = session
        .model()
        .saes()
        .search_labels("dog", None)
        .expect_err("no labels");
    assert_eq!(error.kind(), ErrorKind::NoLabels);
}
