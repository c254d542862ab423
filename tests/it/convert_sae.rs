//! `convert` with SAEs as people have them: what it refuses, what it says, and that runs use it.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::bad_input::check;
use crate::command_line::{run, stdout, text};
use crate::hook_points;

/// A folder of SAELens with the fixture's weights of width 32, at the hook point `hook`.
pub(crate) fn saelens(dir: &Path, hook: Option<&str>) -> PathBuf {
    let weights = "sae_weights.safetensors";
    let from = hook_points::root().join("sae-32").join(weights);
    let source = dir.join("saelens");
    std::fs::create_dir_all(&source).expect("a folder of our own");
    std::fs::copy(from, source.join(weights)).expect("a committed file");
    let config = json!({
        "architecture": "standard", "d_in": 32, "d_sae": 16, "dtype": "float32",
        "apply_b_dec_to_input": false, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.22.2", "hook_name": hook},
    });
    std::fs::write(source.join("cfg.json"), config.to_string()).expect("a file of our own");
    source
}

#[test]
fn blocks_of_hugging_face_are_read_as_their_outputs() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let features = |hook: Option<&str>, more: &[&str]| {
        let source = saelens(dir.path(), hook);
        let out = dir.path().join("out");
        let arguments = [
            "convert",
            "--sae",
            text(&source),
            "-o",
            text(&out),
            "--force",
        ];
        stdout(&[&arguments[..], more].concat());
        let (model, sae) = (hook_points::model("llama"), out.join("sae-f16.gguf"));
        stdout(&[
            "features",
            "-q",
            "-m",
            text(&model),
            "--sae",
            text(&sae),
            "--raw-prompt",
            "-p",
            "a b c",
        ])
    };
    let expected = features(Some("blocks.1.hook_resid_post"), &[]);
    assert!(expected.lines().count() > 3, "{expected}");
    for hook in [
        "model.layers.1",
        "model.language_model.layers.1",
        "language_model.model.layers.1",
        "transformer.h.1",
        "gpt_neox.layers.1",
    ] {
        assert_eq!(features(Some(hook), &[]), expected, "{hook}");
    }
    assert_ne!(features(Some("model.layers.0"), &[]), expected);
    // What is given counts, whatever the files say, and where they say nothing.
    for hook in [Some("model.layers.0"), Some("blocks.1.hook_mlp_in"), None] {
        for given in ["blocks.1.hook_resid_post", "model.layers.1"] {
            assert_eq!(
                features(hook, &["--hook-name", given]),
                expected,
                "{hook:?}"
            );
        }
    }
}

#[test]
fn hook_points_that_nothing_can_run() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let out = dir.path().join("out");
    for hook in [
        "blocks.1.hook_mlp_in",
        "blocks.01.hook_resid_post",
        "blocks.+1.hook_resid_post",
        "blocks.0.hook_resid_pre",
        "model.layers.1.mlp",
        "vision_tower.vision_model.encoder.layers.1",
    ] {
        let source = saelens(dir.path(), Some(hook));
        let arguments = ["convert", "--sae", text(&source), "-o", text(&out)];
        check(
            &arguments,
            1,
            &[
                hook,
                "hint: ",
                "`hook_resid_post`",
                "`model.layers.L`",
                "`--hook-name`",
            ],
        );
        assert!(!out.exists());
    }
    let source = saelens(dir.path(), None);
    let arguments = ["convert", "--sae", text(&source), "-o", text(&out)];
    check(&arguments, 1, &["cfg.json", "`hook_name`", "--hook-name"]);
    check(
        &[&arguments[..], &["--hook-name", "blocks.01.hook_z"]].concat(),
        1,
        &["`blocks.01.hook_z`"],
    );
}

#[test]
fn what_was_read_and_decided_is_said() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let out = dir.path().join("out");
    let sae = [
        "convert",
        "--sae",
        "tests/fixtures/tiny/sae",
        "--norm-factor",
        "0.11",
        "-o",
        text(&out),
    ];
    let stderr = |args: &[&str]| {
        let output = run(args);
        assert!(output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let file = out.join("sae-f16.gguf");
    let said = [
        "read an SAE of SAELens: standard, 200 features at blocks.1.hook_resid_post".to_owned(),
        "48 inputs × 200 features; hook point from the SAE's files; norm factor 0.11 as given, folded into the weights".to_owned(),
        format!("wrote `{}`", text(&file)),
        format!(
            "next: `llava-sae-cpp -m MODEL.gguf --mmproj MMPROJ.gguf --sae {} IMAGE`",
            text(&file)
        ),
    ];
    assert_eq!(stderr(&sae).lines().collect::<Vec<_>>(), said);
    assert_eq!(stderr(&[&sae[..], &["-q", "--force"]].concat()), "");

    let llava = ["--llava", "tests/fixtures/tiny/llava", "--force"];
    let both = stderr(&[&sae[..], &llava].concat());
    let next = format!("next: `llava-sae-cpp -d {} IMAGE`", text(&out));
    assert_eq!(both.lines().last(), Some(&*next), "{both}");
    assert_eq!(both.matches("wrote `").count(), 3, "{both}");
}
