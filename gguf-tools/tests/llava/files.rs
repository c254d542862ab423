//! Which files a conversion leaves, and which it leaves alone.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use gguf_tools::ErrorKind;
use gguf_tools::gguf::{Gguf, Overwrite, TensorType};
use gguf_tools::llava::{LlavaOptions, convert};

use super::checkpoint::Checkpoint;
use super::{convert_quietly, options};

fn checkpoint_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::new().write(dir.path());
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn names_say_the_types() {
    let (dir, out) = (checkpoint_dir(), tempfile::tempdir().unwrap());
    let out_dir = out.path().join("a/b");
    let mixed = LlavaOptions {
        mmproj_type: TensorType::F16,
        ..options(TensorType::Q8_0)
    };
    let files = convert(dir.path(), &out_dir, &mixed, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(files.model, Some(out_dir.join("model-q8_0.gguf")));
    assert_eq!(files.mmproj, Some(out_dir.join("mmproj-f16.gguf")));
    assert_eq!(names(&out_dir), ["mmproj-f16.gguf", "model-q8_0.gguf"]);
}

#[test]
fn progress_ends_at_the_total() {
    let (dir, out) = (checkpoint_dir(), tempfile::tempdir().unwrap());
    let mut reports = Vec::new();
    convert(
        dir.path(),
        out.path(),
        &options(TensorType::F32),
        &mut |n_done, n_in_all| {
            reports.push((n_done, n_in_all));
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert!(reports.is_sorted());
    let (n_done, n_in_all) = *reports.last().unwrap();
    assert_eq!(n_done, n_in_all);
    assert!(
        n_done
            < fs::metadata(dir.path().join("model.safetensors"))
                .unwrap()
                .len()
    );
}

#[test]
fn an_existing_file_is_kept_unless_asked() {
    let (dir, out) = (checkpoint_dir(), tempfile::tempdir().unwrap());
    let target = out.path().join("mmproj-f32.gguf");
    fs::write(&target, "precious").unwrap();
    let error = convert_quietly(dir.path(), out.path(), TensorType::F32).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("mmproj-f32.gguf`: it already exists"),
        "{error}"
    );
    assert!(error.kind() == ErrorKind::Exists && error.hint().is_some());
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(names(out.path()), ["mmproj-f32.gguf"]);

    let replace = LlavaOptions {
        overwrite: Overwrite::Replace,
        ..options(TensorType::F32)
    };
    convert(dir.path(), out.path(), &replace, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    Gguf::open(&target).unwrap();
}

/// Checks that a stop after `n_reports` reports of progress leaves nothing.
fn check_interrupted(n_reports: usize) {
    let (dir, out) = (checkpoint_dir(), tempfile::tempdir().unwrap());
    let mut n_left = n_reports;
    let result = convert(
        dir.path(),
        &out.path().join("new/folder"),
        &options(TensorType::F32),
        &mut |_, _| {
            n_left -= 1;
            if n_left == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(
        matches!(&result, Err(error) if error.is_interrupted()),
        "{result:?}"
    );
    assert_eq!(names(out.path()), [""; 0]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    check_interrupted(1);
    check_interrupted(20); // in the second file
}

/// Checks that `name`, which comes into being when all weights are read, is kept, alone.
fn check_kept(name: &str) {
    let (dir, out) = (checkpoint_dir(), tempfile::tempdir().unwrap());
    let target = out.path().join(name);
    let error = convert(
        dir.path(),
        out.path(),
        &options(TensorType::F32),
        &mut |n_done, n_in_all| {
            if n_done == n_in_all {
                fs::write(&target, "precious").unwrap();
            }
            ControlFlow::Continue(())
        },
    )
    .unwrap_err();
    let expected = format!("{name}`: it already exists");
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert_eq!(names(out.path()), [name]);
}

#[test]
fn a_file_that_comes_into_being_meanwhile_is_kept() {
    check_kept("model-f32.gguf");
    check_kept("mmproj-f32.gguf");
}

/// Converts `dir` to q8_0 with the program, and returns what it says.
fn said(dir: &Path) -> Vec<String> {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
        .args(["llava", "--mmproj-type", "q8_0", "-o"])
        .args([out.path(), dir])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr.lines().map(str::to_owned).collect()
}

fn warnings(dir: &Path) -> Vec<String> {
    let mut lines = said(dir);
    lines.retain(|line| line.starts_with("warning: "));
    lines
}

#[test]
fn what_was_read_and_decided_is_said() {
    let lines = said(checkpoint_dir().path());
    let expected = [
        "read a LLaVA-Gemma: `gemma` of 1 blocks of width 32, 272 rows of vocabulary, tokens from `tokenizer.json`",
        "vision tower: CLIP of 3 blocks of width 24, of which 2 run, since `vision_feature_layer` is -2",
        "pictures: 12 × 12 pixels in patches of 4; mean (0.4815, 0.4578, 0.4082), deviation (0.2686, 0.2613, 0.2758)",
        "weights: f32, written as q8_0 (language model) and q8_0 (vision tower and projector)",
    ];
    assert!(lines.ends_with(&expected.map(str::to_owned)), "{lines:?}");
}

#[test]
fn warnings_come_once() {
    let dir = checkpoint_dir();
    // Of three layers two are used, with five matrices each that have rows of 24, and one of 40;
    // another of 24 is the projector's first.
    let fallback = "mmproj-q8_0.gguf`: 13 matrices are stored as f16";
    let lines = warnings(dir.path());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(fallback), "{lines:?}");

    Checkpoint::new().write_sharded(dir.path());
    let lines = warnings(dir.path());
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("model.safetensors` is not used") && lines[0].contains("index.json"),
        "{lines:?}"
    );

    // An index of one file is no reason to warn.
    let weight_map: serde_json::Map<_, _> = Checkpoint::new()
        .tensors
        .into_keys()
        .map(|name| (name, "model.safetensors".into()))
        .collect();
    let index = serde_json::json!({ "weight_map": weight_map }).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(warnings(dir.path()).len(), 1);
}
