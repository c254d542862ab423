//! SAEs of rows less their mean, beside TransformerLens with its centred weights (`tests/fixtures/make_centred.py`).

use std::path::PathBuf;
use std::sync::Arc;

use gguf_tools::gguf::{Gguf, Value};
use llava_sae_cpp::metrics::Metrics;
use llava_sae_cpp::steering::{Change, Intervention, Positions};
use llava_sae_cpp::{CancelFlag, FeatureId, Keep, ModelFiles, RunOptions, Session};
use serde_json::json;

use crate::bad_input::check;
use crate::command_line::{stdout, text};
use crate::fixture::{F32, Oracle, exact_options, relative_error};
use crate::hook_points::{model, prompt, root, run, sae_with, worst_row};
use crate::oracle::check_steered;

const ARCHITECTURES: [&str; 2] = ["gpt2", "gptneox"];
const WIDTH: usize = 32;

fn oracle() -> Oracle {
    Oracle::read(&root().with_file_name("centred"))
}

/// An SAE that says how the model's rows were centred, in the place where versions of SAELens say it.
fn sae(hook: &str, is_centred: bool, in_metadata: bool) -> PathBuf {
    let said = json!({"center_writing_weights": is_centred});
    let keys = match in_metadata {
        true => json!({"metadata": {"hook_name": hook, "model_from_pretrained_kwargs": said}}),
        false => json!({"hook_name": hook, "metadata": null, "model_from_pretrained_kwargs": said}),
    };
    let mut all = json!({"apply_b_dec_to_input": true});
    let object = all.as_object_mut().expect("an object");
    object.extend(keys.as_object().expect("an object").clone());
    sae_with(hook, WIDTH, all)
}

fn open(architecture: &str, sae: PathBuf) -> Session {
    let files = ModelFiles {
        model: model(architecture),
        mmproj: None,
        saes: vec![sae],
    };
    Session::open(&files, exact_options()).expect("they fit together")
}

fn centred(rows: &[f32]) -> Vec<f32> {
    let rows = rows.chunks_exact(WIDTH);
    let centred = rows.flat_map(|row| {
        let mean = row.iter().sum::<f32>() / WIDTH as f32;
        row.iter().map(move |x| x - mean)
    });
    centred.collect()
}

#[test]
fn rows_and_features_are_those_of_transformer_lens() {
    let oracle = oracle();
    for architecture in ARCHITECTURES {
        for site in [
            "hook_resid_pre",
            "hook_resid_post",
            "hook_mlp_out",
            "hook_attn_out",
        ] {
            let hook = format!("blocks.1.{site}");
            let shown = format!("{architecture}/{hook}");
            let theirs = oracle.f32(&format!("{shown}/rows"));
            let acts = oracle.f32(&format!("{shown}/acts"));
            for in_metadata in [false, true] {
                let mut session = open(architecture, sae(&hook, true, in_metadata));
                let options = RunOptions {
                    keep: Keep::ALL,
                    max_tokens: 0,
                    ..RunOptions::default()
                };
                let seen = &run(&mut session, options).trace.saes[0];
                // f32 throughout. The rows are the model's own, whose means are far from zero.
                assert!(relative_error(&seen.residuals, &theirs) > 1e-2, "{shown}");
                let error = worst_row(&centred(&seen.residuals), &theirs, WIDTH);
                assert!(error < F32, "{shown}: rows {error:.2e}");
                let d_sae = session.sae().meta().d_sae;
                let n_rows = seen.activations.n_rows();
                let ours: Vec<f32> = (0..n_rows)
                    .flat_map(|row| (0..d_sae).map(move |feature| (row, feature)))
                    .map(|(row, feature)| seen.activations.get(row, feature))
                    .collect();
                let error = relative_error(&ours, &acts);
                println!("{shown}: features {error:.1e}");
                assert!(error < F32, "{shown}: features {error:.2e}");
            }
        }
    }
}

#[test]
fn steering_is_that_of_transformer_lens() {
    let oracle = oracle();
    let number = |key: &str| oracle.json[key].as_f64().expect("a number");
    let feature = FeatureId::of_only(number("feature") as usize);
    for architecture in ARCHITECTURES {
        let mut session = open(architecture, sae("blocks.1.hook_resid_post", true, true));
        for (name, change) in [
            ("plain", None),
            ("steered", Some(Change::steer(number("strength") as f32))),
            ("clamped", Some(Change::clamp(number("clamp") as f32))),
        ] {
            let steering = change.map(|change| {
                let one = Intervention {
                    at: Positions::ALL,
                    ..Intervention::new(feature, change)
                };
                session.model().steering(vec![one]).expect("a feature")
            });
            let shown = format!("{architecture}/{name}");
            let max_tokens = number("max_tokens") as usize;
            check_steered(&mut session, &oracle, &shown, steering.as_ref(), max_tokens);
        }
    }
}

/// What the SAE misses is measured on the rows that it reads.
#[test]
fn the_fit_is_that_of_centred_rows() {
    let oracle = oracle();
    let hook = "blocks.1.hook_resid_post";
    for architecture in ARCHITECTURES {
        let mut session = open(architecture, sae(hook, true, true));
        let rows = oracle.f32(&format!("{architecture}/{hook}/rows"));
        let acts = oracle.f32(&format!("{architecture}/{hook}/acts"));
        let sae = Arc::clone(&session.model().saes()[0]);
        let decoder: Vec<_> = (0..sae.meta().d_sae)
            .map(|feature| sae.decoder_row(feature).expect("it is there"))
            .collect();
        let (mut missed, mut squares, mut sums) = (0.0, 0.0, vec![0.0; WIDTH]);
        let n_rows = rows.len() / WIDTH;
        for (row, acts) in rows
            .chunks_exact(WIDTH)
            .zip(acts.chunks_exact(decoder.len()))
        {
            for (i, x) in row.iter().map(|&x| f64::from(x)).enumerate() {
                let parts = acts.iter().zip(&decoder);
                let parts = parts.map(|(a, row)| f64::from(a * row[i]));
                let reconstructed = f64::from(sae.b_dec()[i]) + parts.sum::<f64>();
                missed += (x - reconstructed).powi(2);
                squares += x * x;
                sums[i] += x;
            }
        }
        let n = n_rows as f64;
        let variance = squares / n - sums.iter().map(|sum| (sum / n).powi(2)).sum::<f64>();
        let prompt = prompt(&session);
        let mut metrics = Metrics::new(&session, 0);
        let added = metrics.add(&mut session, &prompt, &CancelFlag::default());
        added.expect("it runs");
        let near = |ours: Option<f64>, theirs: f64| {
            let ours = ours.expect("there are rows");
            assert!(
                (ours / theirs - 1.0).abs() < F32,
                "{architecture}: {ours}, {theirs}"
            );
        };
        near(metrics.text.mse(), missed / n);
        near(
            metrics.text.explained_variance(),
            1.0 - missed / n / variance,
        );
    }
}

#[test]
fn files_say_whether_rows_are_centred() {
    let version = |hook: &str, is_centred: bool| {
        let gguf = Gguf::open(&sae(hook, is_centred, true)).expect("a valid file");
        let version = gguf.require_u32("sae.format_version").expect("a number");
        (version, gguf.get("sae.centred").cloned())
    };
    // Programs that know no centred rows refuse the second version.
    let hook = "blocks.1.hook_resid_post";
    assert_eq!(version(hook, true), (2, Some(Value::Bool(true))));
    assert_eq!(version(hook, false), (1, None));
    // What is not written to the stream is not centred.
    assert_eq!(version("blocks.1.attn.hook_z", true), (1, None));

    let report = stdout(&[
        "feature",
        "3",
        "-m",
        text(&model("gpt2")),
        "--sae",
        text(&sae(hook, true, true)),
    ]);
    assert!(report.contains("blocks.1.hook_resid_post"), "{report}");
    let (sae, model) = (sae(hook, true, true), model("llama"));
    let args = [
        "features",
        "-m",
        text(&model),
        "--sae",
        text(&sae),
        "-p",
        "a",
    ];
    check(&args, 1, &["less their mean", "layer norms", "hint: "]);
}
