//! Converting takes memory for a block of weights, not for the weights. It is a binary of its own,
//! since it measures the whole process.
#![cfg(target_os = "linux")]

#[allow(dead_code)]
#[path = "llava/checkpoint.rs"]
mod checkpoint;

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{LlavaOptions, convert};
use serde_json::{Map, Value, json};

use checkpoint::{Checkpoint, serialize};

const D_MODEL: usize = 32;
const D_FFN: usize = 1 << 18;

/// 34 MB each as f32, and the last with rows of 1 MB.
const LARGE: [(&str, [usize; 2]); 3] = [
    ("gate_proj", [D_FFN, D_MODEL]),
    ("up_proj", [D_FFN, D_MODEL]),
    ("down_proj", [D_MODEL, D_FFN]),
];

/// A block of 4 MiB read and its values, the tokenizer, the test's own small tensors.
const MAX_PEAK_BYTES: usize = 32 << 20;

#[test]
fn weights_pass_through_in_blocks() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path());
    let options = LlavaOptions {
        model_type: TensorType::F16,
        mmproj_type: TensorType::F16,
        overwrite: Overwrite::Refuse,
    };
    let out_dir = dir.path().join("out");
    let files = convert(dir.path(), &out_dir, &options, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let n_output_bytes = fs::metadata(files.model.unwrap()).unwrap().len() as usize;
    assert!(n_output_bytes > 3 * D_FFN * D_MODEL * 2);
    let peak = peak_memory_bytes();
    assert!(
        peak < MAX_PEAK_BYTES,
        "peak memory {peak} bytes for {n_output_bytes} bytes of output"
    );
}

/// Writes the large tensors as holes of a sparse file, which read as zeros.
fn write_checkpoint(dir: &Path) {
    let mut checkpoint = Checkpoint::new();
    checkpoint.config["text_config"]["intermediate_size"] = D_FFN.into();
    let (mut header, mut weight_map, mut n_bytes) = (Map::new(), Map::new(), 0);
    for (part, shape) in LARGE {
        let name = format!("language_model.model.layers.0.mlp.{part}.weight");
        checkpoint.tensors.remove(&name).unwrap();
        let end = n_bytes + shape[0] * shape[1] * 4;
        header.insert(
            name.clone(),
            json!({ "dtype": "F32", "shape": shape, "data_offsets": [n_bytes, end] }),
        );
        weight_map.insert(name, "large.safetensors".into());
        n_bytes = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(dir.join("large.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + n_bytes) as u64).unwrap();

    checkpoint.write_settings(dir);
    fs::write(
        dir.join("small.safetensors"),
        serialize(checkpoint.tensors.iter()),
    )
    .unwrap();
    weight_map.extend(
        checkpoint
            .tensors
            .keys()
            .map(|name| (name.clone(), "small.safetensors".into())),
    );
    let index = json!({ "weight_map": weight_map }).to_string();
    fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

/// The most memory that the process has had, as Linux counts it.
fn peak_memory_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}
