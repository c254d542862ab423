//! Checkpoints of Gemma 4 as transformers saves them: names, shapes and settings of
//! `tests/fixtures/make_gemma4_checkpoints.py`, values of the files of `make_gemma4.py` and `make_gemma4_pictures.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::Gguf;
use serde_json::Value;

use super::checkpoint::{Checkpoint, Tensor};

fn root() -> PathBuf {
    // The main crate has this module, too.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = Path::new("tests/fixtures");
    match root.ends_with("gguf-tools") {
        true => root.join("..").join(fixtures),
        false => root.join(fixtures),
    }
}

/// The file that was written by hand.
pub(crate) fn written_by_hand(name: &str) -> PathBuf {
    root().join(format!("gemma4/{name}.gguf"))
}

/// The projector's, if there is one.
pub(crate) fn projector_by_hand(name: &str) -> Option<PathBuf> {
    let path = root().join(format!("gemma4_pictures/{name}/mmproj.gguf"));
    path.exists().then_some(path)
}

/// The checkpoint whose conversion should be these files.
pub(crate) fn gemma4_checkpoint(name: &str) -> Checkpoint {
    let facts = std::fs::read(root().join("gemma4/checkpoints.json")).unwrap();
    let facts: Value = serde_json::from_slice(&facts).unwrap();
    let set = &facts["sets"][name];
    let mut checkpoint = Checkpoint {
        config: set["config"].clone(),
        tokenizer: facts["tokenizer"].clone(),
        files: ["tokenizer_config", "generation_config"]
            .map(|kind| match kind {
                "tokenizer_config" => ("tokenizer_config.json", facts[kind].clone()),
                _ => ("generation_config.json", facts[kind].clone()),
            })
            .into(),
        tensors: BTreeMap::new(),
    };
    let settings = checkpoint.files.get_mut("tokenizer_config.json").unwrap();
    settings["chat_template"] = facts["chat_template"].clone();
    if let Some(processor) = set.get("processor_config") {
        let files = &mut checkpoint.files;
        files.insert("processor_config.json", processor.clone());
    }
    let paths = [Some(written_by_hand(name)), projector_by_hand(name)];
    let files: Vec<Gguf> = paths
        .iter()
        .flatten()
        .map(|path| Gguf::open(path).unwrap())
        .collect();
    let read = |source: &str| {
        let mut found = files
            .iter()
            .filter_map(|file| Some((file, file.tensor(source)?)));
        let (file, tensor) = found.next().unwrap();
        file.read_f32(tensor).unwrap()
    };
    for (saved, of_saved) in set["tensors"].as_object().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(of_saved[1].clone()).unwrap();
        let Some(source) = of_saved[0].as_str() else {
            checkpoint.add(saved, &shape);
            continue;
        };
        let mut values = read(source);
        // Tokens that the file does not have.
        values.resize(shape.iter().product(), 0.0);
        if source == "v.patch_embd.weight" {
            values = with_colours_together(&values, &shape);
        }
        let tensor = Tensor::f32(&shape, &values);
        checkpoint.tensors.insert(saved.clone(), tensor);
    }
    checkpoint
}

/// A kernel's rows, of three planes each, with the colours of a pixel one after another.
fn with_colours_together(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let n_pixels = shape[1] / 3;
    let row = |row: &[f32]| -> Vec<f32> {
        let pixel = |pixel: usize| (0..3).map(move |colour| colour * n_pixels + pixel);
        (0..n_pixels).flat_map(pixel).map(|idx| row[idx]).collect()
    };
    values.chunks_exact(shape[1]).flat_map(row).collect()
}
