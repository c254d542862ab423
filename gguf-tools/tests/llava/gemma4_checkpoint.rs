//! Checkpoints of Gemma 4 as transformers saves them: names, shapes and settings of
//! `tests/fixtures/make_gemma4_checkpoints.py`, values of the files of `make_gemma4.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::Gguf;
use serde_json::Value;

use super::checkpoint::{Checkpoint, Tensor};

fn root() -> PathBuf {
    // The main crate has this module, too.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = Path::new("tests/fixtures/gemma4");
    match root.ends_with("gguf-tools") {
        true => root.join("..").join(fixtures),
        false => root.join(fixtures),
    }
}

/// The file that was written by hand.
pub(crate) fn written_by_hand(name: &str) -> PathBuf {
    root().join(format!("{name}.gguf"))
}

/// The checkpoint whose conversion should be that file.
pub(crate) fn gemma4_checkpoint(name: &str) -> Checkpoint {
    let facts = std::fs::read(root().join("checkpoints.json")).unwrap();
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
    let file = Gguf::open(&written_by_hand(name)).unwrap();
    for (saved, of_saved) in set["tensors"].as_object().unwrap() {
        let shape: Vec<usize> = serde_json::from_value(of_saved[1].clone()).unwrap();
        let Some(source) = of_saved[0].as_str() else {
            checkpoint.add(saved, &shape);
            continue;
        };
        let mut values = file.read_f32(file.tensor(source).unwrap()).unwrap();
        // Tokens that the file does not have.
        values.resize(shape.iter().product(), 0.0);
        let tensor = Tensor::f32(&shape, &values);
        checkpoint.tensors.insert(saved.clone(), tensor);
    }
    checkpoint
}
