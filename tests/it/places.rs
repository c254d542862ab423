//! Interventions at places of their own, under conditions, and along vectors.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::{Change, Condition, Intervention, Positions, Target, Vector};
use llava_sae_cpp::{
    FeatureId, HookPoint, Keep, ModelFiles, Prompt, PromptForm, Run, RunOptions, Session, TokenKind,
};
use serde_json::json;

use crate::bad_input;
use crate::command_line::json as json_of;
use crate::command_line::text;
use crate::fixture::{Fixture, exact_options, prompt, temporary_root};
use crate::hook_points::{model, sae_at, with_ubatch};

fn options(session: &Session, interventions: Vec<Intervention>) -> RunOptions {
    let steering = session.model().steering(interventions).expect("it fits");
    RunOptions {
        steering: (!steering.interventions().is_empty()).then_some(steering),
        keep: Keep::ALL,
        max_tokens: 6,
        ..RunOptions::default()
    }
}

fn run(session: &mut Session, prompt: &Prompt, interventions: Vec<Intervention>) -> Run {
    let options = options(session, interventions);
    session.run(prompt, options).expect("the run succeeds")
}

/// The rows that were changed where an SAE reads.
fn changed(run: &Run, sae: usize) -> Vec<usize> {
    let seen = &run.trace.saes[sae];
    let d_in = seen.residuals.len() / run.trace.tokens.len();
    let after = seen.steered_residuals.chunks_exact(d_in);
    let rows = seen.residuals.chunks_exact(d_in).zip(after);
    let rows = rows
        .enumerate()
        .filter(|(_, (before, after))| before != after);
    rows.map(|(row_idx, _)| row_idx).collect()
}

#[test]
fn each_form_touches_the_rows_that_it_names() {
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        let mut session = fixture.exact_session();
        let picture = fixture.open_picture("00.png");
        let image = session.encode_image(&picture).expect("it is encoded");
        let grid = image.only_chunk().and_then(|chunk| chunk.grid);
        let grid = grid.expect("a square picture is a grid");
        let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[&image]);
        let prompt = prompt.expect("it is tokenised");
        let n_prompt = prompt.tokens().len();
        let is_image = |kind| kind == TokenKind::Image;
        let first = prompt
            .tokens()
            .iter()
            .position(|token| is_image(token.kind));
        let first = first.expect("there is an image");
        let n_image = grid.n_rows * grid.n_columns;
        let patch = |row: usize, column: usize| first + row * grid.n_columns + column;
        let mut check = |at: &str, expected: &[usize]| {
            let add = Intervention {
                at: Positions::parse(at).expect("valid positions"),
                ..Intervention::new(FeatureId::of_only(3), Change::steer(2.0))
            };
            let run = run(&mut session, &prompt, vec![add]);
            assert!(run.trace.tokens.len() > n_prompt, "tokens were generated");
            assert_eq!(changed(&run, 0), expected, "{fixture:?}, {at}");
        };
        check("last", &[n_prompt - 1]);
        check("-1", &[n_prompt - 1]);
        check("0", &[0]);
        check("-3..-2", &[n_prompt - 3, n_prompt - 2]);
        check("5..9", &[5, 6, 7, 8, 9]);
        check("patch:0,0", &[first]);
        check("patch:1,2", &[patch(1, 2)]);
        check(
            "patch:1..2,0..1",
            &[patch(1, 0), patch(1, 1), patch(2, 0), patch(2, 1)],
        );
        let image: Vec<usize> = (first..first + n_image).collect();
        check("image", &image);
        check(
            "image,0,last",
            &[&[0], &image[..], &[n_prompt - 1]].concat(),
        );
    }
}

#[test]
fn tokens_are_found_by_their_text() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let plain = run(&mut session, &prompt, Vec::new());
    let text_of = |session: &Session, row_idx: usize| {
        let text = session.token_text(plain.trace.tokens[row_idx]);
        text.unwrap_or_default().trim().to_owned()
    };
    let n_prompt = prompt.tokens().len();
    // A word of the prompt, a special token, and what comes last before the end.
    let mut texts = vec!["image".to_owned(), "<bos>".to_owned()];
    texts.push(text_of(&session, n_prompt));
    for text in texts {
        let add = Intervention {
            at: Positions::parse(&format!("token:{text}")).expect("valid positions"),
            // Too little to change the text.
            ..Intervention::new(FeatureId::of_only(3), Change::steer(1e-3))
        };
        let run = run(&mut session, &prompt, vec![add]);
        assert_eq!(run.token_ids, plain.token_ids, "the text is the same");
        let rows = 0..run.trace.tokens.len();
        let expected: Vec<_> = rows.filter(|&i| text_of(&session, i) == text).collect();
        assert!(!expected.is_empty(), "{text}");
        assert_eq!(changed(&run, 0), expected, "{text}");
    }
}

/// Of each text in the vocabulary, all tokens are found that have it, and no others.
#[test]
fn tokens_with_a_text_are_all_found() {
    let session = Fixture::Demo.exact_session();
    let model = session.model();
    let mut by_text = BTreeMap::<String, Vec<i32>>::new();
    let tokens = (0..).map_while(|id| Some((id, model.token_bytes(id)?)));
    for (id, bytes) in tokens {
        if let Ok(text) = String::from_utf8(bytes) {
            by_text.entry(text.trim().to_owned()).or_default().push(id);
        }
    }
    assert!(by_text.values().any(|ids| ids.len() > 1));
    for (text, ids) in by_text {
        assert_eq!(model.tokens_of(&text).expect("it is found"), ids, "{text}");
        let other = format!("{text}\u{e000}");
        assert!(model.tokens_of(&other).expect("no failure").is_empty());
    }
}

#[test]
fn what_is_not_there_is_refused_before_anything_runs() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let limited = |at: &str| Intervention {
        at: Positions::parse(at).expect("valid positions"),
        ..Intervention::new(FeatureId::of_only(3), Change::clamp(2.0))
    };
    for (at, said) in [("900", "no position 900"), ("patch:99,0", "no patch 99,0")] {
        let options = options(&session, vec![limited(at)]);
        let go_on = &mut |_: llava_sae_cpp::Step<'_>| panic!("nothing runs");
        let error = session.run_with(&prompt, options, go_on).expect_err(at);
        assert!(error.to_string().contains(said), "{error}");
    }
    let no_token = session
        .model()
        .steering(vec![limited("token:unpronounceable")]);
    assert!(
        no_token
            .expect_err("no token")
            .to_string()
            .contains("`unpronounceable`")
    );
    let both = options(&session, vec![limited("last"), limited("-1")]);
    let error = session.run(&prompt, both).expect_err("a contradiction");
    assert!(error.to_string().contains("clamped twice"), "{error}");

    // A page starts with the run without interventions, for which this context is too small.
    let page = folder().join("never.html");
    let picture = Fixture::Demo.picture("00.png");
    let args = ["features", "--html", text(&page), "-c", "8", text(&picture)];
    let said =
        |more: &[&str], words: &[&str]| bad_input::check(&[&args[..], more].concat(), 1, words);
    said(&["--steer", "3:1", "--at", "5"], &["context"]);
    said(&["--steer", "3:1", "--at", "900"], &["no position 900"]);
}

/// A number that about a third of the activations of a feature exceed, far from each.
fn a_gap(activations: &[f32]) -> f32 {
    let mut sorted = activations.to_vec();
    sorted.sort_by(f32::total_cmp);
    let gaps = sorted.windows(2).skip(sorted.len() / 2);
    let widest = gaps.max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0])));
    let widest = widest.expect("there are rows");
    (widest[0] + widest[1]) / 2.0
}

#[test]
fn conditions_pick_the_rows_where_a_feature_is_active() {
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        let mut session = fixture.exact_session();
        let prompt = prompt(&mut session, fixture, "00.png");
        let plain = run(&mut session, &prompt, Vec::new());
        let n_rows = plain.trace.tokens.len();
        let d_sae = session.sae().meta().d_sae;
        let of = |run: &Run, feature: usize| -> Vec<f32> {
            let seen = &run.trace.saes[0].activations;
            (0..run.trace.tokens.len())
                .map(|row| seen.get(row, feature))
                .collect()
        };
        let n_active = |feature: &usize| {
            let active = of(&plain, *feature).into_iter().filter(|&a| a > 0.0);
            active.count()
        };
        let usual = (0..d_sae).filter(|f| (n_rows / 8..n_rows).contains(&n_active(f)));
        let feature = usual.max_by_key(n_active).expect("there is such a feature");
        let above = a_gap(&of(&plain, feature));
        for change in [Change::steer(2.0), Change::project(0.0)] {
            let limited = Intervention {
                when: Some(Condition {
                    feature: FeatureId::of_only(feature),
                    above,
                }),
                ..Intervention::new(FeatureId::of_only(5), change)
            };
            let run = run(&mut session, &prompt, vec![limited]);
            let active = of(&run, feature);
            let expected: Vec<_> = (0..active.len()).filter(|&i| active[i] > above).collect();
            assert!(!expected.is_empty() && expected.len() < active.len());
            assert_eq!(changed(&run, 0), expected, "{fixture:?}, {change:?}");
        }
    }
}

/// The feature's SAE reads a block below the edit; in ubatches, and side by side, where runs share the blocks
/// below.
#[test]
fn conditions_of_a_lower_hook_are_of_the_same_row() {
    let (lower, upper) = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post");
    for n_ubatch in [512, 3] {
        let files = ModelFiles {
            model: model("gemma2"),
            mmproj: None,
            saes: [lower, upper].map(|hook| sae_at(hook, 32)).to_vec(),
        };
        let mut session = Session::open(&files, with_ubatch(n_ubatch)).expect("they fit");
        let text = "a cat on the grass and a dog in the house";
        let prompt = session.prompt(text, PromptForm::Raw, &[]).expect("a text");
        let plain = run(&mut session, &prompt, Vec::new());
        let of = |run: &Run, feature: usize| -> Vec<f32> {
            let seen = &run.trace.saes[0].activations;
            (0..run.trace.tokens.len())
                .map(|row| seen.get(row, feature))
                .collect()
        };
        let d_sae = session.model().saes()[0].meta().d_sae;
        let spread = |feature: &usize| {
            let active = of(&plain, *feature);
            active
                .iter()
                .filter(|&&a| a > 0.0)
                .count()
                .min(active.len() - 2)
        };
        let feature = (0..d_sae).max_by_key(spread).expect("features");
        let above = a_gap(&of(&plain, feature));
        let limited = |sae: usize, when: usize| Intervention {
            when: Some(Condition {
                feature: FeatureId {
                    sae: when,
                    index: feature,
                },
                above,
            }),
            ..Intervention::new(FeatureId { sae, index: 3 }, Change::steer(4.0))
        };
        let steered = run(&mut session, &prompt, vec![limited(1, 0)]);
        let active = of(&steered, feature);
        let expected: Vec<_> = (0..active.len()).filter(|&i| active[i] > above).collect();
        assert!(!expected.is_empty() && expected.len() < active.len());
        assert_eq!(changed(&steered, 1), expected, "ubatches of {n_ubatch}");
        assert!(changed(&steered, 0).is_empty());

        // Nothing is kept, and the prompt is shared.
        let mut kept_less = options(&session, vec![limited(1, 0)]);
        kept_less.keep = Keep {
            logits: true,
            ..Keep::default()
        };
        let plain_options = RunOptions {
            steering: None,
            ..kept_less.clone()
        };
        let both = vec![plain_options, kept_less.clone()];
        let go_on = &mut |_, _: llava_sae_cpp::Step<'_>| ControlFlow::Continue(());
        let both = session
            .run_side_by_side(&prompt, both, go_on)
            .expect("they run");
        let alone = session.run(&prompt, kept_less).expect("it runs");
        for run in [&both[1], &alone] {
            assert_eq!(run.token_ids, steered.token_ids, "ubatches of {n_ubatch}");
        }
        assert_eq!(alone.logits, steered.logits);
        assert_ne!(alone.logits, plain.logits);

        let above_it = session.model().steering(vec![limited(0, 1)]);
        let error = above_it.expect_err("a higher hook").to_string();
        assert!(error.contains(upper) && error.contains("after"), "{error}");
    }
}

fn folder() -> PathBuf {
    let dir = temporary_root().join("places");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

fn write_vector(path: &Path, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = vec![values.len()];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes);
    let view = view.expect("as many bytes");
    safetensors::serialize_to_file([("v", view)], None, path).expect("our own folder");
}

/// A feature's direction as a vector, in a model without an SAE, does what steering does.
#[test]
fn vectors_need_no_sae() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let with_sae = ModelFiles::find(Some(&dir), None, None, Vec::new()).expect("all are there");
    let without = ModelFiles {
        saes: Vec::new(),
        ..with_sae.clone()
    };
    let files = with_sae.clone();
    let [mut with_sae, mut without] =
        [with_sae, without].map(|files| Session::open(&files, exact_options()).expect("they fit"));
    let [first, second] =
        [&mut with_sae, &mut without].map(|session| prompt(session, Fixture::Demo, "00.png"));
    let sae = Arc::clone(with_sae.sae());
    let values = sae.decoder_row(3).expect("it is there");
    let hook_point: HookPoint = sae.hook_point();
    for at in ["all", "image", "last,generated"] {
        let at = Positions::parse(at).expect("valid positions");
        let logits = |session: &mut Session, prompt: &Prompt, target: Target, change| {
            let intervention = Intervention {
                at: at.clone(),
                ..Intervention::new(target, change)
            };
            let mut options = options(session, vec![intervention]);
            options.keep = Keep {
                logits: true,
                ..Keep::default()
            };
            let run = session.run(prompt, options).expect("it runs");
            (run.logits, run.token_ids)
        };
        let feature = FeatureId::of_only(3).into();
        let steered = logits(&mut with_sae, &first, feature, Change::steer(20.0));
        let vector = Vector::new("v", hook_point, values.clone()).expect("finite numbers");
        let added = logits(&mut without, &second, vector.into(), Change::vector(20.0));
        assert_eq!(steered, added, "{at}");
    }
    let short = Vector::new("v", hook_point, vec![1.0; 3]).expect("finite numbers");
    let short = Intervention::new(short, Change::vector(1.0));
    let error = without
        .model()
        .steering(vec![short])
        .expect_err("too short");
    assert!(error.to_string().contains("3 values"), "{error}");

    // The same from the command line, and from what it prints.
    let (model, mmproj) = (files.model, files.mmproj.expect("it sees"));
    let file = folder().join("dog.safetensors");
    write_vector(&file, &values);
    let picture = Fixture::Demo.picture("00.png");
    let alone = [
        "-m",
        text(&model),
        "--mmproj",
        text(&mmproj),
        "--json",
        "-n",
        "6",
    ];
    let whole = ["-d", text(&dir), "--json", "-n", "6"];
    let more = ["--image-cache", "0", text(&picture)];
    let at_hook = format!("{}@{hook_point}:20", text(&file));
    let default = format!("{}:20", text(&file));
    let places = ["--at", "patch:0..1,2,-1,generated"];
    let report = |args: &[&str]| json_of(&[args, &places, &more].concat());
    let steered = report(&[&whole[..], &["--steer", "3:20"]].concat());
    let added = report(&[&alone[..], &["--vector", &at_hook]].concat());
    let defaulted = report(&[&whole[..], &["--vector", &default]].concat());
    assert_eq!(added["steered"], steered["steered"]);
    assert_eq!(defaulted["steered"], steered["steered"]);
    assert!(added["sae"].is_null());
    let entry = &added["interventions"][0];
    assert_eq!(entry["hook"], hook_point.to_string());
    assert_eq!(entry["at"], "generated,patch:0..1,2,-1");
    let set = folder().join("vector.json");
    std::fs::write(&set, added["interventions"].to_string()).expect("our own folder");
    let set_args = [&whole[..], &["--interventions", text(&set)], &more].concat();
    assert_eq!(json_of(&set_args)["steered"], steered["steered"]);
    let lost = [&alone[..], &["--vector", &default], &more].concat();
    bad_input::check(&lost, 1, &["FILE@HOOK", "hint: "]);

    // A saved set needs none either, nor does a folder.
    let of_set = ["--interventions", text(&set)];
    let replayed = json_of(&[&alone[..], &of_set, &more].concat());
    assert_eq!(replayed["steered"], steered["steered"]);
    assert!(replayed["sae"].is_null());
    let bare = folder().join("bare");
    std::fs::create_dir_all(&bare).expect("our own folder");
    for (file, name) in [(&model, "model.gguf"), (&mmproj, "mmproj.gguf")] {
        std::fs::copy(file, bare.join(name)).expect("a copy");
    }
    let bare = ["-d", text(&bare), "--json", "-n", "6"];
    let replayed = json_of(&[&bare[..], &of_set, &more].concat());
    assert_eq!(replayed["steered"], steered["steered"]);

    let check = |args: &[&str], words: &[&str]| {
        bad_input::check(&[&bare[..], args, &more].concat(), 1, words);
    };
    check(&[], &["no `sae*.gguf`"]);
    check(&["--vector", &at_hook, "--top", "1"], &["no `sae*.gguf`"]);
    check(&["--steer", "3:1"], &["no `sae*.gguf`"]);
    check(
        &["--vector", &at_hook, "--when", "3>0"],
        &["no `sae*.gguf`"],
    );
    let nowhere = format!("{}@blocks.60.hook_resid_post:1", text(&file));
    check(
        &["--vector", &nowhere],
        &["error: cannot hook `blocks.60.hook_resid_post`"],
    );
}

#[test]
fn options_of_directions_and_conditions() {
    let picture = Fixture::Demo.picture("00.png");
    let report = |args: &[&str]| json_of(&[args, &["--json", "-n", "2", text(&picture)]].concat());
    let shown = report(&[
        "--cap",
        "3:-1.5",
        "--project",
        "4:0",
        "--when",
        "5>0.5",
        "--at",
        "last",
    ]);
    let entry = |kind: &str, feature: u32, value: f32| {
        let label = shown["interventions"]
            .as_array()
            .and_then(|list| list.iter().find(|entry| entry["kind"] == kind))
            .map(|entry| entry["label"].clone());
        json!({
            "kind": kind, "feature": feature, "label": label, "value": value, "units": "raw",
            "at": "last", "when": {"feature": 5, "above": 0.5},
        })
    };
    let expected = json!([entry("project", 4, 0.0), entry("cap", 3, -1.5)]);
    assert_eq!(shown["interventions"], expected);
    let check = |args: &[&str], code, words: &[&str]| {
        bad_input::check(&[args, &[text(&picture)]].concat(), code, words);
    };
    check(&["--cap", "3"], 2, &["--cap"]);
    check(&["--when", "3>0"], 2, &["--steer", "--cap"]);
    check(&["--cap", "3:1", "--when", "3"], 2, &["--when"]);
    check(&["--cap", "3:1", "--at", "patch:1"], 2, &["--at"]);
    check(
        &["--cap", "3:1", "--at", "900"],
        1,
        &["no position 900", "hint: "],
    );
    check(
        &["--cap", "3:1", "--at", "token:unpronounceable"],
        1,
        &["hint: "],
    );
    check(
        &["--cap", "3:1", "--project", "3:0"],
        1,
        &["projected and capped"],
    );
    check(
        &["--vector", "missing.safetensors:1"],
        1,
        &["missing.safetensors"],
    );
}
