//! Which files a conversion leaves, and which it leaves alone.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::Error;
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
    assert_eq!(files.model, out_dir.join("model-q8_0.gguf"));
    assert_eq!(files.mmproj, out_dir.join("mmproj-f16.gguf"));
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
        error.to_string().ends_with("mmproj-f32.gguf`: it exists"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--force"));
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
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(names(out.path()), [""; 0]);
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    check_interrupted(1);
    check_interrupted(20); // in the second file
}
