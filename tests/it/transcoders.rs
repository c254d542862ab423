//! Transcoders beside transformers: what they read before the feed-forward part, what steering makes of what that part
//! gives, and what it costs to put their reconstruction in its place (`tests/fixtures/make_transcoders.py`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llava_sae_cpp::metrics::Metrics;
use llava_sae_cpp::steering::{Change, Intervention, Positions, Steering, Vector};
use llava_sae_cpp::{
    CancelFlag, FeatureId, HookPoint, Keep, ModelFiles, RunOptions, Session, SessionOptions,
};
use serde_json::json;

use crate::bad_input::check;
use crate::command_line::text;
use crate::fixture::{F32, Oracle, everything, exact_options, relative_error, temporary_root};
use crate::gemma3_set::Set;
use crate::hook_points::{convert_sae, model, prompt, root, run, sae_at, with_ubatch, worst_row};
use crate::oracle::{check_activations, check_steered};

const OUT: &str = "blocks.1.hook_mlp_out";
pub(crate) const WIDTH: usize = 32;

pub(crate) fn fixtures() -> PathBuf {
    root().with_file_name("transcoders")
}

pub(crate) fn oracle() -> Oracle {
    Oracle::read(&fixtures())
}

/// The fixture's transcoder from one place to another, with these keys of its configuration instead.
fn transcoder_with(from: &str, to: &str, keys: &serde_json::Value) -> PathBuf {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let source = dir.path().join("source");
    std::fs::create_dir(&source).expect("a folder of our own");
    let weights = "sae_weights.safetensors";
    let committed = fixtures().join("models").join(weights);
    std::fs::copy(committed, source.join(weights)).expect("a committed file");
    let mut config = json!({
        "architecture": "jumprelu_skip_transcoder", "d_in": WIDTH, "d_out": WIDTH, "d_sae": 16,
        "apply_b_dec_to_input": false, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": from, "hook_name_out": to},
    });
    let known = config.as_object_mut().expect("an object");
    known.extend(keys.as_object().expect("an object").clone());
    std::fs::write(source.join("cfg.json"), config.to_string()).expect("a file of our own");
    let target = dir.keep().join("sae.gguf");
    convert_sae(&source, &target, None);
    target
}

fn transcoder(from: &str) -> PathBuf {
    transcoder_with(from, OUT, &json!({}))
}

pub(crate) fn open(architecture: &str, saes: Vec<PathBuf>, options: SessionOptions) -> Session {
    let files = ModelFiles {
        model: model(architecture),
        mmproj: None,
        saes,
    };
    Session::open(&files, options).expect("they fit together")
}

/// The oracle's models and places: `gemma/blocks.1.mlp.hook_in`.
fn cases(oracle: &Oracle) -> Vec<(String, String, String)> {
    let cases = oracle.json["steered"].as_object().expect("an object");
    let cases = cases.keys().map(|name| {
        let (architecture, place) = name.split_once('/').expect("two names");
        (name.clone(), architecture.to_owned(), place.to_owned())
    });
    cases.collect()
}

fn number(oracle: &Oracle, name: &str, key: &str) -> f32 {
    let case = &oracle.json["steered"][name];
    case[key].as_f64().expect("a number") as f32
}

/// The four kinds that the oracle knows.
fn changes(oracle: &Oracle, name: &str) -> [(&'static str, Change); 4] {
    let number = |key| number(oracle, name, key);
    [
        ("steer", Change::steer(number("steer"))),
        ("clamp", Change::clamp(number("clamp"))),
        ("scale", Change::scale(number("scale"))),
        ("ablate", Change::ablate()),
    ]
}

pub(crate) fn steered(session: &Session, one: Intervention) -> Arc<Steering> {
    session.model().steering(vec![one]).expect("it is known")
}

#[test]
fn rows_and_features_are_those_of_transformers() {
    let oracle = oracle();
    let cases = cases(&oracle);
    assert_eq!(cases.len(), 25);
    for (name, architecture, place) in cases {
        let theirs = oracle.f32(&format!("{name}/rows"));
        let acts = oracle.f32(&format!("{name}/acts"));
        for n_ubatch in [512, 5] {
            let mut session = open(
                &architecture,
                vec![transcoder(&place)],
                with_ubatch(n_ubatch),
            );
            let run = run(&mut session, everything(0));
            // f32 throughout.
            let error = worst_row(&run.trace.saes[0].residuals, &theirs, WIDTH);
            println!("{name}, ubatches of {n_ubatch}: {error:.1e}");
            assert!(error < F32, "{name}: {error:.2e}");
            check_activations(session.sae(), &run, &acts, &name);
        }
    }
}

#[test]
fn steering_is_that_of_transformers() {
    let oracle = oracle();
    let max_tokens = oracle.json["max_tokens"].as_u64().expect("a number") as usize;
    for (name, architecture, place) in cases(&oracle) {
        let feature = FeatureId::of_only(number(&oracle, &name, "feature") as usize);
        for n_ubatch in [512, 5] {
            let mut session = open(
                &architecture,
                vec![transcoder(&place)],
                with_ubatch(n_ubatch),
            );
            for (kind, change) in changes(&oracle, &name) {
                let steering = steered(&session, Intervention::new(feature, change));
                let shown = format!("{name}/{kind}");
                check_steered(&mut session, &oracle, &shown, Some(&steering), max_tokens);
            }
        }
    }
}

/// Vectors are added where transcoders read, too.
#[test]
fn vectors_at_these_places_are_those_of_transformers() {
    let oracle = oracle();
    let logits = |session: &mut Session, place: &str, values: Vec<f32>| {
        let place = HookPoint::parse(place).expect("a known name");
        let vector = Vector::new("v", place, values).expect("finite");
        let steering = steered(session, Intervention::new(vector, Change::vector(1.0)));
        let options = RunOptions {
            steering: Some(steering),
            ..everything(0)
        };
        run(session, options).logits
    };
    for (name, architecture, place) in cases(&oracle) {
        let mut session = open(&architecture, vec![transcoder(&place)], exact_options());
        let feature = number(&oracle, &name, "feature") as usize;
        let row = session.sae().decoder_row(feature).expect("it is there");
        let strength = number(&oracle, &name, "steer");
        let values: Vec<f32> = row.iter().map(|x| x * strength).collect();
        let ours = logits(&mut session, &place, values.clone());
        let theirs = match place.ends_with("hook_resid_mid") {
            // What is added to what attention gives is added to the stream behind it.
            true => logits(&mut session, "blocks.1.hook_attn_out", values),
            false => oracle.f32(&format!("{name}/vector/logits")),
        };
        let error = relative_error(&ours, &theirs);
        println!("{name}: {error:.1e}");
        assert!(error < F32, "{name}: {error:.2e}");
    }
}

/// What is added to what the feed-forward part gives, is added to the stream behind the block.
#[test]
fn additions_are_control_vectors() {
    let oracle = oracle();
    let name = "llama/blocks.1.mlp.hook_in";
    let feature = number(&oracle, name, "feature") as usize;
    let mut session = open(
        "llama",
        vec![transcoder("blocks.1.mlp.hook_in")],
        exact_options(),
    );
    let target = temporary_root().join("transcoder-cvec.gguf");
    let steer = Intervention::new(
        FeatureId::of_only(feature),
        Change::steer(number(&oracle, name, "steer")),
    );
    let steering = steered(&session, steer);
    let replace = gguf_tools::gguf::Overwrite::Replace;
    let written = session
        .model()
        .write_control_vector(&steering, &target, replace);
    written.expect("it is the same everywhere");
    let file = gguf_tools::gguf::Gguf::open(&target).expect("just written");
    let tensor = file.tensor("direction.1").expect("the block's").clone();
    let direction = file.read_f32(&tensor).expect("just written");

    // llama.cpp's own control vector, which it adds behind the block.
    let mut stream = open(
        "llama",
        vec![sae_at("blocks.1.hook_resid_post", WIDTH)],
        exact_options(),
    );
    let prompt = prompt(&stream);
    stream
        .set_control_vector(&prompt, 0, &direction)
        .expect("a block behind the first");
    let options = RunOptions {
        keep: Keep {
            logits: true,
            ..Keep::default()
        },
        ..RunOptions::default()
    };
    let theirs = stream
        .run(&prompt, options.clone())
        .expect("it runs")
        .logits;
    let ours = RunOptions {
        steering: Some(steering),
        ..options
    };
    let ours = run(&mut session, ours).logits;
    // The same sum in another order.
    let error = relative_error(&ours, &theirs);
    assert!(error < 1e-5, "{error:.2e}");
    let expected = oracle.f32(&format!("{name}/steer/logits"));
    assert!(relative_error(&theirs, &expected) < F32);

    let ablate = Intervention::new(FeatureId::of_only(feature), Change::ablate());
    let steering = steered(&session, ablate);
    let error = session
        .model()
        .write_control_vector(&steering, &target, replace);
    let error = error.expect_err("it depends on the row").to_string();
    assert!(error.contains("one vector to every row"), "{error}");
}

/// The fit compares what the transcoder writes with what is there, and losses are those with that in its place.
#[test]
fn metrics_are_of_what_is_written() {
    let oracle = oracle();
    for (name, architecture, place) in cases(&oracle) {
        let mut session = open(&architecture, vec![transcoder(&place)], exact_options());
        let prompt = prompt(&session);
        let mut metrics = Metrics::new(&session, 0);
        metrics
            .add(&mut session, &prompt, &CancelFlag::default())
            .expect("it is measured");
        let losses = &oracle.json["losses"][&name];
        for (key, ours) in [
            ("without_sae", metrics.loss.without_sae()),
            ("with_sae", metrics.loss.with_sae()),
            ("with_ablation", metrics.loss.with_ablation()),
        ] {
            let (ours, theirs) = (ours.expect("text"), losses[key].as_f64().expect("a number"));
            // Logits within F32 of the reference's, of which a loss is a difference.
            let error = (ours - theirs).abs() / theirs;
            println!("{name}, {key}: {error:.1e}");
            assert!(error < F32, "{name}, {key}: {ours}, expected {theirs}");
        }
        let special = session.language_model().special_tokens();
        let is_counted = |id: &i32| !special.contains(id);
        let counted: Vec<bool> = oracle_ids(&architecture).iter().map(is_counted).collect();
        let [written, decoded] = ["rows_out", "decoded"].map(|key| {
            let rows = oracle.f32(&format!("{name}/{key}"));
            let rows = rows.chunks_exact(WIDTH).map(<[f32]>::to_vec).zip(&counted);
            let rows = rows.filter(|(_, is_counted)| **is_counted);
            rows.map(|(row, _)| row).collect::<Vec<_>>()
        });
        let distance = |(a, b): (&Vec<f32>, &Vec<f32>)| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let squares: f64 = written.iter().zip(&decoded).map(distance).sum();
        let expected = squares / written.len() as f64;
        let mse = metrics.text.mse().expect("text");
        // Rows within F32 of the reference's, squared.
        assert!(
            (mse - expected).abs() / expected < 3.0 * F32,
            "{name}: {mse}, not {expected}"
        );
    }
}

fn oracle_ids(architecture: &str) -> Vec<i32> {
    Oracle::read(&root()).ids(&format!("{architecture}/prompt_ids"))
}

/// Gemma Scope 2's layout in Gemma 3 with vision: features of text and image rows, steering at the image's.
#[test]
fn pictures_are_read_as_transformers_reads_them() {
    let oracle = oracle();
    let set = Set::small();
    let target = temporary_root().join("transcoder-gemma-scope-2.gguf");
    let source = fixtures().join("gemma-scope-2/layer_1_width_16_l0_small_affine");
    convert_sae(&source, &target, None);
    for n_ubatch in [512, 5] {
        let files = set.files_with(target.clone());
        let mut session = Session::open(&files, with_ubatch(n_ubatch)).expect("they fit together");
        for case in ["wide", "around"] {
            let prompt = set.prompt(&session, case);
            let plain = session.run(&prompt, everything(0)).expect("it runs");
            let theirs = oracle.f32(&format!("{case}/rows"));
            let error = worst_row(&plain.trace.saes[0].residuals, &theirs, WIDTH);
            println!("{case}, ubatches of {n_ubatch}: {error:.1e}");
            assert!(error < F32, "{case}: {error:.2e}");
            let acts = oracle.f32(&format!("{case}/acts"));
            check_activations(session.sae(), &plain, &acts, case);
            let facts = &oracle.json["pictures"][case];
            let feature = facts["feature"].as_u64().expect("a number") as usize;
            let strength = facts["number"].as_f64().expect("a number") as f32;
            for (kind, change) in [
                ("steer", Change::steer(strength)),
                ("clamp", Change::clamp(strength)),
                ("ablate", Change::ablate()),
            ] {
                let one = Intervention::new(FeatureId::of_only(feature), change);
                let options = RunOptions {
                    steering: Some(steered(&session, one.at(Positions::IMAGE))),
                    ..everything(0)
                };
                let run = session.run(&prompt, options).expect("it runs");
                let theirs = oracle.f32(&format!("{case}/{kind}/logits"));
                let error = relative_error(&run.logits, &theirs);
                println!("{case}, {kind}: {error:.1e}");
                assert!(error < F32, "{case}, {kind}: {error:.2e}");
            }
        }
    }
}

/// Side by side with a plain run, and from a prompt that is remembered, the bits are those of a run alone.
#[test]
fn shortcuts_change_nothing() {
    let oracle = oracle();
    let name = "gemma3/blocks.1.mlp.hook_in";
    let feature = FeatureId::of_only(number(&oracle, name, "feature") as usize);
    let sae = transcoder("blocks.1.mlp.hook_in");
    let options = |share_prompts| SessionOptions {
        threads: 1,
        gpu_layers: 0,
        share_prompts,
        ..SessionOptions::default()
    };
    let mut session = open("gemma3", vec![sae.clone()], options(true));
    let mut whole = open("gemma3", vec![sae], options(false));
    for (_, change) in changes(&oracle, name) {
        let both = |session: &mut Session| {
            let options = everything(4);
            let steering = steered(session, Intervention::new(feature, change));
            let edited = RunOptions {
                steering: Some(steering),
                ..options.clone()
            };
            let prompt = prompt(session);
            let go_on = &mut |_, _: llava_sae_cpp::Step<'_>| std::ops::ControlFlow::Continue(());
            let runs = session.run_side_by_side(&prompt, vec![options, edited], go_on);
            runs.expect("they run")
        };
        let (ours, theirs) = (both(&mut session), both(&mut whole));
        assert_ne!(ours[0].logits, ours[1].logits);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours.logits, theirs.logits);
            assert_eq!(ours.token_ids, theirs.token_ids);
            let [ours, theirs] = [ours, theirs].map(|run| &run.trace.saes[0]);
            assert_eq!(ours.residuals, theirs.residuals);
            assert_eq!(ours.activations, theirs.activations);
        }
    }
}

/// Beside an SAE that reads where the transcoder writes, whose features are those before any edit.
#[test]
fn saes_read_where_transcoders_write() {
    let oracle = oracle();
    let name = "llama/blocks.1.hook_resid_mid";
    let saes = vec![transcoder("blocks.1.hook_resid_mid"), sae_at(OUT, WIDTH)];
    let mut session = open("llama", saes, exact_options());
    let index = number(&oracle, name, "feature") as usize;
    let plain = run(&mut session, everything(0));
    for (kind, change) in changes(&oracle, name) {
        let one = Intervention::new(FeatureId { sae: 0, index }, change);
        let options = RunOptions {
            steering: Some(steered(&session, one)),
            ..everything(0)
        };
        let run = run(&mut session, options);
        let theirs = oracle.f32(&format!("{name}/{kind}/logits"));
        let error = relative_error(&run.logits, &theirs);
        assert!(error < F32, "{kind}: {error:.2e}");
        for (seen, before) in run.trace.saes.iter().zip(&plain.trace.saes) {
            assert_eq!(seen.activations, before.activations, "{kind}");
        }
        // The reader behind sees what was written.
        let [read, written] = [0, 1].map(|i| &run.trace.saes[i]);
        assert_eq!(read.residuals, read.steered_residuals);
        assert_ne!(written.residuals, written.steered_residuals);
    }
}

#[test]
fn places_that_graphs_do_not_show_are_refused() {
    let refused = |architecture: &str, sae: &Path, expected: &[&str]| {
        let (model, sae) = (model(architecture), text(sae));
        let args = ["features", "-m", text(&model), "--sae", sae, "-p", "a"];
        check(&args, 1, expected);
    };
    let sae = transcoder("blocks.1.ln2.hook_normalized");
    for architecture in ["gpt2", "gptneox", "olmo2", "phi3"] {
        let of = format!("architecture `{architecture}`");
        let expected = ["`blocks.1.ln2.hook_normalized`", &of, "gemma3", "hint: "];
        refused(architecture, &sae, &expected);
    }
    let last = transcoder_with("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", &json!({}));
    refused("llama", &last, &["last layer", "hint: "]);
    let last = transcoder_with("blocks.1.mlp.hook_in", "blocks.2.hook_mlp_out", &json!({}));
    refused("llama", &last, &["`blocks.2.hook_mlp_out`", "last layer"]);
    let wide = transcoder_with("blocks.1.mlp.hook_in", "blocks.1.attn.hook_z", &json!({}));
    refused("llama", &wide, &["does not compute after it"]);
    let back = transcoder_with("blocks.1.hook_resid_post", OUT, &json!({}));
    refused(
        "llama",
        &back,
        &[
            "reads `blocks.1.hook_resid_post`",
            "writes `blocks.1.hook_mlp_out`",
        ],
    );
    let unknown = transcoder_with("blocks.1.hook_mlp_in", OUT, &json!({}));
    refused(
        "llama",
        &unknown,
        &["`blocks.1.hook_mlp_in`", "`mlp.hook_in`"],
    );
}
