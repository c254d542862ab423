//! Converting checkpoints: values, metadata, tokens and bad input.

mod bad_input;
mod checkpoint;
mod families;
mod files;
mod gemma4;
mod gemma4_checkpoint;
mod llama_tokenizer;
mod preprocessor;
mod spellings;
mod tokens;
mod values;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Array, Gguf, Overwrite, TensorType, Value};
use gguf_tools::llava::{LlavaFiles, LlavaOptions, convert};

/// A folder of the repository's fixtures.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn options(tensor_type: TensorType) -> LlavaOptions {
    LlavaOptions {
        model_type: tensor_type,
        mmproj_type: tensor_type,
        overwrite: Overwrite::Refuse,
    }
}

fn convert_quietly(
    dir: &Path,
    out_dir: &Path,
    tensor_type: TensorType,
) -> gguf_tools::Result<LlavaFiles> {
    convert(dir, out_dir, &options(tensor_type), &mut |_, _| {
        ControlFlow::Continue(())
    })
}

/// The two files of a conversion, opened, in a folder that lives as long.
struct Converted {
    model: Gguf,
    mmproj: Gguf,
    _out_dir: tempfile::TempDir,
}

fn converted(dir: &Path, tensor_type: TensorType) -> Converted {
    let out_dir = tempfile::tempdir().unwrap();
    let files = convert_quietly(dir, out_dir.path(), tensor_type).unwrap();
    Converted {
        model: Gguf::open(&files.model.unwrap()).unwrap(),
        mmproj: Gguf::open(&files.mmproj.unwrap()).unwrap(),
        _out_dir: out_dir,
    }
}

fn strings<'a>(file: &'a Gguf, key: &str) -> &'a [String] {
    match file.get(key) {
        Some(Value::Array(Array::String(values))) => values,
        other => panic!("{key}: {other:?}"),
    }
}

fn numbers<'a>(file: &'a Gguf, key: &str) -> &'a [i32] {
    match file.get(key) {
        Some(Value::Array(Array::I32(values))) => values,
        other => panic!("{key}: {other:?}"),
    }
}

fn floats<'a>(file: &'a Gguf, key: &str) -> &'a [f32] {
    match file.get(key) {
        Some(Value::Array(Array::F32(values))) => values,
        other => panic!("{key}: {other:?}"),
    }
}
