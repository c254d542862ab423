//! The SAE formats' configurations and `params.npz`.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::Result;
use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{SaeFile, SaeOptions};

use crate::{Reader, copy, faults};

/// Converts an SAE; what comes of it must be a right file.
pub(crate) fn convert(source: &Path, labels: Vec<PathBuf>) -> Result<()> {
    let options = SaeOptions {
        weight_type: TensorType::F16,
        norm_factor: None,
        hook_name: None,
        labels,
        overwrite: Overwrite::Replace,
    };
    let out = tempfile::tempdir().expect("a temporary folder");
    let target = out.path().join("sae.gguf");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    gguf_tools::sae::convert(source, &target, &options, go_on)?;
    SaeFile::open(&target).expect("what is written can be read");
    Ok(())
}

#[test]
fn configurations() {
    for (folder, file) in [
        ("saelens-0-standard", "cfg.json"),
        ("saelens-3-gated", "cfg.json"),
        ("saelens-3-topk", "cfg.json"),
        ("saelens-5-jumprelu", "cfg.json"),
        ("saelens-6-topk-rescaled-normalised", "cfg.json"),
        ("saelens-6-layer-norm", "cfg.json"),
        (
            "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
            "config.json",
        ),
        ("sparsify/layers.1", "cfg.json"),
        ("sparsify/layers.1", "../config.json"),
        ("llama-scope/Llama3_1-8B-Base-L1R-8x", "hyperparams.json"),
        ("../transcoders/saes/saelens-skip-transcoder", "cfg.json"),
        (
            "../transcoders/saes/saelens-jumprelu-skip-transcoder",
            "cfg.json",
        ),
        ("../transcoders/saes/sparsify-skip/layers.1.mlp", "cfg.json"),
        (
            "../transcoders/saes/gemma-scope-2-270m-pt/transcoder_all/layer_1_width_16k_l0_small_affine",
            "config.json",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (fixture, folder) = match folder.strip_prefix("../") {
            Some(folder) => ("", folder),
            None => ("saes/", folder),
        };
        let root = folder.split('/').next().expect("a name");
        copy(&format!("{fixture}{root}"), dir.path());
        let source = dir.path().join(fixture).join(folder);
        let right = fs::read(source.join(file)).expect("committed");
        let reader = Reader {
            file: source.join(file),
            read: &|| convert(&source, Vec::new()),
        };
        let right = serde_json::from_slice(&right).expect("JSON");
        faults::json(&right, &mut |fault, bytes, expected| {
            reader.check(fault, bytes, expected);
        });
    }
}

/// All of a zip but its arrays' numbers.
#[test]
fn npz() {
    for folder in [
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71",
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy(&format!("saes/{folder}"), dir.path());
        let file = source.join("params.npz");
        let right = fs::read(&file).expect("committed");
        let reader = Reader {
            file,
            read: &|| convert(&source, Vec::new()),
        };
        reader.check_right(&right);
        let check = &mut |fault: &str, bytes: &[u8], expected| reader.check(fault, bytes, expected);
        faults::cut(&right, (0..right.len()).step_by(31), check);
        let directory = right
            .windows(4)
            .position(|bytes| bytes == b"PK\x01\x02")
            .expect("a zip");
        faults::overwrite(&right, (0..60).chain(directory..right.len()), check);
    }
}
