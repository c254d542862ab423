//! `export-cvec`: the file says what llama.cpp's control vector needs, and that does the same.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Value};
use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{Keep, RunOptions};

use crate::bad_input::check;
use crate::command_line::{stdout, text};
use crate::fixture::{Fixture, exact_options, prompt, relative_error, steering, temporary_root};
use crate::hook_points;
use gguf_tools::gguf::TensorType;

fn target(name: &str) -> PathBuf {
    let dir = temporary_root().join("control-vectors");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir.join(name)
}

/// Reads a control vector as llama.cpp does (`common_control_vector_load_one` in its
/// `common/common.cpp`): f32 tensors of one dimension called `direction.L`, L from 1 on.
fn read(path: &Path) -> Vec<(usize, Vec<f32>)> {
    let file = Gguf::open(path).expect("a valid file");
    let tensors = file.tensors().iter().map(|tensor| {
        let layer = tensor.name.strip_prefix("direction.").expect("a direction");
        assert_eq!(
            (tensor.tensor_type, tensor.dims.len()),
            (TensorType::F32, 1)
        );
        let values = file.read_f32(tensor).expect("a whole tensor");
        (layer.parse().expect("a layer"), values)
    });
    tensors.collect()
}

#[test]
fn an_exported_vector_does_the_same_in_llama_cpp() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let files = ["-d", text(&dir)];
    let mut session = Fixture::Demo.session(TensorType::F32, exact_options());
    let layer = session.sae().hook_point().layer();
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let path = target("steered.gguf");
    let change = format!("{feature}:{strength}");
    let command = ["export-cvec", "--steer", &change, "-o", text(&path)];
    stdout(&[&command[..], &files].concat());

    let file = Gguf::open(&path).expect("a valid file");
    let string = |key: &str| file.get(key).cloned();
    let kind = string("general.architecture");
    assert_eq!(kind, Some(Value::from("controlvector")));
    let model = string("controlvector.model_hint");
    assert_eq!(model, Some(Value::from("gemma")));
    let [(found, direction)] = &read(&path)[..] else {
        panic!("one direction");
    };
    assert_eq!(*found, layer);

    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let plain = RunOptions {
        steering: None,
        // What reads rows is steered by the hook, not by a control vector.
        keep: Keep {
            residuals: true,
            logits: true,
            ..Keep::default()
        },
        max_tokens: 24,
        ..RunOptions::default()
    };
    let steering = steering(&mut session, feature, strength, Positions::ALL);
    let ours = RunOptions {
        steering: Some(steering.clone()),
        ..plain.clone()
    };
    let ours = session.run(&prompt, ours).expect("it runs");
    let set = session.set_control_vector(&prompt, 24, direction);
    set.expect("a vector of this width");
    let theirs = session.run(&prompt, plain).expect("it runs");
    assert_eq!(ours.token_ids, theirs.token_ids);
    let error = relative_error(&ours.logits, &theirs.logits);
    assert!(error < 1e-4, "logits {error:.2e}");
}

#[test]
fn several_additions_become_one_vector() {
    let path = target("several.gguf");
    let out = ["-o", text(&path), "--force"];
    let one = |changes: &[&str]| {
        stdout(&[&["export-cvec"], changes, &out].concat());
        read(&path).remove(0).1
    };
    let (carrot, mushroom) = (
        one(&["--steer", "carrot:2"]),
        one(&["--steer", "mushroom:-3"]),
    );
    let both = one(&["--steer", "carrot:2,mushroom:-3"]);
    let sum: Vec<f32> = carrot.iter().zip(&mushroom).map(|(a, b)| a + b).collect();
    assert!(relative_error(&both, &sum) < 1e-6);
    // Everywhere, said in another way.
    let listed = one(&["--steer", "carrot:2", "--at", "image,prompt,generated"]);
    assert_eq!(listed, carrot);
}

#[test]
fn what_no_control_vector_expresses_is_refused() {
    let path = target("refused.gguf");
    let out = ["-o", text(&path)];
    let refused = |args: &[&str], words: &[&str]| {
        check(&[&["export-cvec"], args, &out].concat(), 1, words);
        assert!(!path.exists(), "{args:?}");
    };
    let only = "only steering at all positions fits";
    refused(&["--clamp", "carrot:3"], &[only, "hint: "]);
    refused(&["--ablate", "carrot"], &[only]);
    refused(&["--scale", "carrot:2"], &[only]);
    refused(&["--steer", "carrot:2", "--at", "image"], &[only]);
    refused(&["--steer", "carrot:2", "--ablate", "mushroom"], &[only]);
    refused(&["--steer", "nonsense:2"], &["`nonsense`"]);
    let at = |hook: &str| {
        let model = hook_points::model("llama");
        let sae = hook_points::sae_at(hook, 32);
        let files = ["--model", text(&model), "--sae", text(&sae)];
        [&["--steer", "3:2"], &files[..]].concat().join("\n")
    };
    for (hook, word) in [
        ("blocks.0.hook_resid_post", "begin at layer 1"),
        ("blocks.1.hook_attn_out", "`blocks.1.hook_attn_out`"),
    ] {
        let args = at(hook);
        refused(&args.lines().collect::<Vec<_>>(), &[word]);
    }
    check(&["export-cvec", "-o", "x.gguf"], 2, &["--steer"]);
    std::fs::write(&path, "mine").expect("a file of our own");
    check(
        &["export-cvec", "--steer", "carrot:2", "-o", text(&path)],
        1,
        &["already exists", "--force"],
    );
    assert_eq!(std::fs::read(&path).expect("readable"), b"mine");
}
