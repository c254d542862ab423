//! Cross-layer transcoders beside transformers: features that are read in one layer and written in each from there on
//! (`tests/fixtures/make_transcoders.py`).

use std::ops::ControlFlow;

use gguf_tools::gguf::{Gguf, Overwrite};
use llava_sae_cpp::llama::Edited;
use llava_sae_cpp::steering::{Change, Intervention};
use llava_sae_cpp::{Editor, EditorAt, FeatureId, HookPoint, Result, RunOptions, Step, Token};

use crate::bad_input::check;
use crate::command_line::{json, text};
use crate::fixture::{everything, exact_options, temporary_root};
use crate::hook_points::{convert_sae, model, prompt, run, with_ubatch};
use crate::oracle::{check_activations, check_steered};
use crate::transcoders::{WIDTH, fixtures, open, oracle, steered};

/// Features of one layer of a cross-layer transcoder: read once, written at every layer from there to the last, where
/// llama.cpp keeps only the rows that need logits.
#[test]
fn cross_layer_features_are_written_at_each_layer() {
    let oracle = oracle();
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let max_tokens = oracle.json["max_tokens"].as_u64().expect("a number") as usize;
    let cases = oracle.json["cross_layer"].as_object().expect("an object");
    assert_eq!(cases.len(), 3);
    for (architecture, case) in cases {
        let layer = case["layer"].as_u64().expect("a number");
        let number = |key: &str| case[key].as_f64().expect("a number") as f32;
        let target = dir.path().join(format!("{architecture}.gguf"));
        let source = fixtures().join(format!("cross-layer/W_enc_{layer}.safetensors"));
        convert_sae(&source, &target, None);
        for n_ubatch in [512, 5] {
            let mut session = open(architecture, vec![target.clone()], with_ubatch(n_ubatch));
            assert_eq!(session.sae().outputs().len() as u64, 3 - layer);
            let plain = run(&mut session, everything(0));
            let acts = oracle.f32(&format!("cross-layer/{architecture}/acts"));
            check_activations(session.sae(), &plain, &acts, architecture);
            let feature = FeatureId::of_only(number("feature") as usize);
            for (kind, change) in [
                ("steer", Change::steer(number("steer"))),
                ("clamp", Change::clamp(number("clamp"))),
                ("scale", Change::scale(number("scale"))),
                ("ablate", Change::ablate()),
            ] {
                let steering = steered(&session, Intervention::new(feature, change));
                let shown = format!("cross-layer/{architecture}/{kind}");
                check_steered(&mut session, &oracle, &shown, Some(&steering), max_tokens);
            }
            let plain = RunOptions {
                max_tokens,
                ..everything(0)
            };
            let steering = steered(&session, Intervention::new(feature, Change::steer(1.5)));
            let edited = RunOptions {
                steering: Some(steering),
                ..plain.clone()
            };
            let prompt = prompt(&session);
            let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
            let runs = session.run_side_by_side(&prompt, vec![plain, edited], go_on);
            let ids = oracle.ids(&format!("cross-layer/{architecture}/steer/ids"));
            assert_eq!(runs.expect("they run")[1].token_ids, ids, "{architecture}");
        }
    }
}

/// What one layer of a cross-layer transcoder cannot say.
#[test]
fn cross_layer_features_alone_reconstruct_nothing() {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let target = dir.path().join("sae.gguf");
    convert_sae(
        &fixtures().join("cross-layer/W_enc_0.safetensors"),
        &target,
        None,
    );
    let model = model("llama");
    let files = ["-m", text(&model), "--sae", text(&target)];
    let of = |command: &str, args: &[&str]| {
        let args = [&[command], &files[..], args].concat();
        args.join("\n")
    };
    let refused = |command: &str, args: &[&str], words: &[&str]| {
        let args = of(command, args);
        check(&args.lines().collect::<Vec<_>>(), 1, words);
    };
    refused(
        "metrics",
        &["-p", "a cat", "--raw-prompt"],
        &["sum over the features of several layers", "hint: "],
    );
    let out = dir.path().join("x.gguf");
    let cvec = ["--steer", "3:2", "-o", text(&out)];
    refused("export-cvec", &cvec, &["layer 0"]);
    let one = dir.path().join("one.gguf");
    convert_sae(
        &fixtures().join("cross-layer/W_enc_1.safetensors"),
        &one,
        None,
    );
    let session = open("gemma2", vec![one], exact_options());
    let steering = Intervention::new(FeatureId::of_only(3), Change::steer(2.0));
    let steering = steered(&session, steering);
    let replace = Overwrite::Replace;
    let written = session
        .model()
        .write_control_vector(&steering, &out, replace);
    written.expect("it is the same everywhere");
    let file = Gguf::open(&out).expect("just written");
    let row = session.sae().decoder_row(3).expect("it is there");
    for (layer, part) in (1..).zip(row.chunks_exact(WIDTH)) {
        let tensor = file
            .tensor(&format!("direction.{layer}"))
            .expect("one a layer");
        let expected: Vec<f32> = part.iter().map(|x| 2.0 * x).collect();
        assert_eq!(file.read_f32(tensor).expect("just written"), expected);
    }
    assert_eq!(file.tensors().len(), 2);
    let steer = ["-p", "a", "-n", "1", "--project", "3:0"];
    let args = [&files[..], &steer].concat();
    check(
        &args,
        1,
        &["another direction at each of 3 places", "hint: "],
    );
    let card = json(&[
        "feature", "3", "--json", files[0], files[1], files[2], files[3],
    ]);
    let places = card["features"][0]["hook_points_out"]
        .as_array()
        .expect("a list")
        .len();
    assert_eq!(places, 3);
    assert!(card["features"][0]["tokens"].is_object());

    // Where not all rows are seen, functions are not called.
    struct Nothing;
    impl Editor for Nothing {
        fn write(&mut self, _: &mut [f32], _: &[Token]) -> Result<Edited> {
            Ok(Edited::No)
        }
    }
    let mut session = open("llama", vec![target], exact_options());
    let place = HookPoint::parse("blocks.2.hook_mlp_out").expect("a known name");
    let editor = EditorAt {
        read: place,
        write: place,
        editor: Box::new(Nothing),
    };
    let prompt = prompt(&session);
    let go_on = &mut |_: Step<'_>| ControlFlow::Continue(());
    let error = session.run_edited(&prompt, everything(0), vec![editor], go_on);
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("last layer"), "{error}");
}
