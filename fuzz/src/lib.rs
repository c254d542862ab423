//! What the fuzz targets share: right folders, in which a target replaces one file by its input.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::write::GzEncoder;
use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use tempfile::TempDir;

/// Files of a LLaVA folder that the input takes the place of, chosen by its first byte.
pub const LLAVA_FILES: [&str; 11] = [
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];

/// Files of the repository's SAE folders that the input takes the place of, chosen by its first byte.
pub const SAE_FILES: [(&str, &str); 20] = [
    ("saelens-0-standard", "cfg.json"),
    ("saelens-0-standard", "sae_weights.safetensors"),
    ("saelens-3-gated", "cfg.json"),
    ("saelens-3-gated", "sae_weights.safetensors"),
    ("saelens-3-topk", "cfg.json"),
    ("saelens-5-jumprelu", "cfg.json"),
    ("saelens-5-jumprelu", "sae_weights.safetensors"),
    ("saelens-5-jumprelu", "sparsity.safetensors"),
    ("saelens-6-topk-rescaled-normalised", "cfg.json"),
    (
        "saelens-6-topk-rescaled-normalised",
        "sae_weights.safetensors",
    ),
    ("saelens-6-layer-norm", "cfg.json"),
    (GEMMA_SCOPE, "params.npz"),
    (DEFLATED_GEMMA_SCOPE, "params.npz"),
    (
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "config.json",
    ),
    (
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "params.safetensors",
    ),
    ("sparsify/layers.1", "cfg.json"),
    ("sparsify/layers.1", "sae.safetensors"),
    ("sparsify", "config.json"),
    ("llama-scope/Llama3_1-8B-Base-L1R-8x", "hyperparams.json"),
    (
        "llama-scope/Llama3_1-8B-Base-L1R-8x/checkpoints",
        "final.safetensors",
    ),
];

pub const GEMMA_SCOPE: &str = "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71";
pub const DEFLATED_GEMMA_SCOPE: &str = "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71";
pub const STANDARD: &str = "saelens-3-standard";

/// A folder of the repository's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Folders for inputs and outputs, below `TMPDIR`.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// The process's own, made at the first call.
    pub fn get() -> &'static Self {
        static SCRATCH: OnceLock<Scratch> = OnceLock::new();
        SCRATCH.get_or_init(|| {
            let scratch = Self {
                dir: TempDir::new().expect("a temporary folder"),
            };
            copy(&fixture("saes"), &scratch.path("saes"));
            copy(&fixture("tiny/llava"), &scratch.path("llava"));
            scratch
        })
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts `bytes` in the place of a file while `run` runs.
    pub fn with_file(&self, name: &str, bytes: &[u8], run: impl FnOnce()) {
        let path = self.path(name);
        let original = fs::read(&path).ok();
        fs::write(&path, bytes).expect("writable");
        run();
        match original {
            Some(original) => fs::write(&path, original).expect("writable"),
            None => fs::remove_file(&path).expect("just written"),
        }
    }

    /// Converts the LLaVA folder; where that works, the files that come of it must be readable.
    pub fn convert_llava(&self) -> bool {
        let options = LlavaOptions {
            model_type: TensorType::F16,
            mmproj_type: TensorType::Q8_0,
            overwrite: Overwrite::Replace,
        };
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let Ok(files) = llava::convert(&self.path("llava"), &self.path("out"), &options, go_on)
        else {
            return false;
        };
        for path in files.model.into_iter().chain(files.mmproj) {
            gguf_tools::gguf::Gguf::open(&path).expect("what is written can be read");
        }
        true
    }

    /// Converts an SAE folder; where that works, the file that comes of it must be readable.
    pub fn convert_sae(&self, folder: &str, labels: Vec<PathBuf>) -> bool {
        let options = SaeOptions {
            weight_type: TensorType::Q8_0,
            norm_factor: None,
            hook_name: None,
            labels,
            overwrite: Overwrite::Replace,
        };
        let target = self.path("sae.gguf");
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let source = self.path("saes").join(folder);
        if sae::convert(&source, &target, &options, go_on).is_err() {
            return false;
        }
        SaeFile::open(&target).expect("what is written can be read");
        true
    }
}

fn copy(source: &Path, target: &Path) {
    fs::create_dir_all(target).expect("writable");
    for entry in fs::read_dir(source).expect("a committed folder") {
        let path = entry.expect("readable").path();
        let target = target.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("writable");
        }
    }
}

/// Splits an input into a choice out of `n` and the rest.
pub fn choose(input: &[u8], n: usize) -> Option<(usize, &[u8])> {
    let (choice, rest) = input.split_first()?;
    Some((usize::from(*choice) % n, rest))
}

/// A zip that stores one file.
pub fn stored_zip(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    let length = (bytes.len() as u32).to_le_bytes();
    // The fields that local header and directory share: version, flags, method and time are 0.
    let mut shared = vec![0; 10];
    shared.extend(crc.sum().to_le_bytes());
    shared.extend(length.repeat(2));
    shared.extend((name.len() as u16).to_le_bytes());
    shared.extend([0; 2]);
    let mut zip = b"PK\x03\x04".to_vec();
    zip.extend(&shared);
    zip.extend(name.as_bytes());
    zip.extend(bytes);
    let start = zip.len() as u32;
    zip.extend(b"PK\x01\x02\0\0");
    zip.extend(&shared);
    zip.extend([0; 14]); // no comment, and the local header is at 0
    zip.extend(name.as_bytes());
    let n_directory = zip.len() as u32 - start;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend(n_directory.to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend([0; 2]);
    zip
}

/// The bytes, gzipped.
pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}
