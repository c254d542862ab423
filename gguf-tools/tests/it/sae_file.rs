//! SAE files that are not as the schema says.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Overwrite, TensorType, Value, Writer};
use gguf_tools::sae::SaeFile;

/// What goes into a file, as [`right`] has it or changed by a test.
struct Contents {
    metadata: Vec<(&'static str, Value)>,
    tensors: Vec<(&'static str, Vec<u64>, TensorType, Vec<f32>)>,
}

impl Contents {
    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.remove(key);
        self.metadata.push((key, value.into()));
    }

    fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| *name != key);
        self.tensors.retain(|tensor| tensor.0 != key);
    }

    fn tensor(&mut self, name: &'static str, dims: &[u64], tensor_type: TensorType) {
        self.remove(name);
        let values = crate::random_values(1, dims.iter().product::<u64>() as usize);
        self.tensors
            .push((name, dims.to_vec(), tensor_type, values));
    }

    fn vector(&mut self, name: &'static str, values: &[f32]) {
        self.remove(name);
        let dims = vec![values.len() as u64];
        self.tensors
            .push((name, dims, TensorType::F32, values.to_vec()));
    }

    fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("sae.gguf");
        let mut writer = Writer::create(&path, Overwrite::Replace).expect("the folder is there");
        for (key, value) in &self.metadata {
            writer.set(key, value.clone());
        }
        for (name, dims, tensor_type, _) in &self.tensors {
            writer.declare(name, dims, *tensor_type);
        }
        let mut writer = writer.begin().expect("a right header");
        for (_, _, _, values) in &self.tensors {
            writer.write_f32(values).expect("whole rows");
        }
        writer.finish().expect("complete");
        path
    }
}

/// A jumprelu SAE of 32 inputs and 3 features, written out by hand after DESIGN's schema.
fn right() -> Contents {
    let mut contents = Contents {
        metadata: Vec::new(),
        tensors: Vec::new(),
    };
    contents.set("general.architecture", "sae");
    contents.set("sae.format_version", 1_u32);
    contents.set("sae.architecture", "jumprelu");
    contents.set("sae.d_in", 32_u32);
    contents.set("sae.d_sae", 3_u32);
    contents.set("sae.hook_name", "blocks.1.hook_resid_post");
    contents.set("sae.apply_b_dec_to_input", false);
    contents.set("sae.normalize_activations", "expected_average_only_in");
    contents.set("sae.norm_factor", 0.5_f32);
    contents.set(
        "sae.labels",
        vec!["a".to_owned(), String::new(), "c".to_owned()],
    );
    contents.tensor("sae.w_enc", &[32, 3], TensorType::Q8_0);
    contents.tensor("sae.w_dec", &[32, 3], TensorType::F16);
    contents.tensor("sae.b_enc", &[3], TensorType::F32);
    contents.tensor("sae.b_dec", &[32], TensorType::F32);
    contents.vector("sae.decoder_norm", &[3.0, 4.0, 5.0]);
    contents.tensor("sae.threshold", &[3], TensorType::F32);
    contents
}

#[test]
fn a_right_file_is_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = right().write(dir.path());
    let file = SaeFile::open(&path).expect("the schema holds");
    assert_eq!(file.path(), path);
    assert_eq!(file.meta.labels, ["a", "", "c"]);
    assert_eq!(file.meta.norm_factor, Some(0.5));
    assert_eq!(
        file.threshold()
            .expect("readable")
            .map(|threshold| threshold.len()),
        Some(3)
    );
    let w_dec = Gguf::open(&path)
        .and_then(|gguf| gguf.read_f32(file.w_dec()))
        .expect("readable");
    let mut row = [0.0; 32];
    file.decoder_row(1, &mut row).expect("readable");
    assert_eq!(row[..], w_dec[32..64]);
}

/// A transcoder from rows of 32 to rows of 64, at this many places.
fn right_transcoder(n_places: usize) -> Contents {
    let mut contents = right();
    contents.set("sae.format_version", 3_u32);
    contents.set("sae.normalize_activations", "none");
    contents.remove("sae.norm_factor");
    let names = (1..=n_places).map(|layer| format!("blocks.{layer}.hook_mlp_out"));
    contents.set("sae.hook_names_out", names.collect::<Vec<_>>());
    contents.set("sae.d_out", 64_u32);
    let width = 64 * n_places as u64;
    contents.tensor("sae.w_dec", &[width, 3], TensorType::F16);
    contents.tensor("sae.b_dec", &[64], TensorType::F32);
    contents.tensor("sae.w_skip", &[32, 64], TensorType::F16);
    contents
}

#[test]
fn a_right_transcoder_is_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for n_places in [1, 3] {
        let path = right_transcoder(n_places).write(dir.path());
        let file = SaeFile::open(&path).expect("the schema holds");
        file.verify().expect("the numbers are finite");
        assert_eq!((file.meta.d_in, file.meta.d_out), (32, 64));
        assert_eq!(file.meta.decoder_width(), 64 * n_places);
        assert_eq!(file.b_dec().expect("readable").len(), 64);
        let gguf = Gguf::open(&path).expect("readable");
        let read = |tensor| gguf.read_f32(tensor).expect("readable");
        let (w_dec, w_skip) = (read(file.w_dec()), read(file.w_skip().expect("it has one")));
        let mut row = vec![0.0; 64 * n_places];
        file.decoder_row(1, &mut row).expect("readable");
        assert_eq!(row[..], w_dec[row.len()..2 * row.len()]);
        let mut row = vec![0.0; 32];
        file.skip_row(63, &mut row).expect("readable");
        assert_eq!(row[..], w_skip[63 * 32..]);
    }
}

#[test]
fn each_fault_of_a_transcoder_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |expected: &str, change: &dyn Fn(&mut Contents)| {
        let mut contents = right_transcoder(2);
        change(&mut contents);
        let error = SaeFile::open(&contents.write(dir.path()))
            .expect_err(expected)
            .to_string();
        assert!(
            error.contains(expected) && error.contains("sae.gguf"),
            "{error}"
        );
    };
    let names = |sae: &mut Contents, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        sae.set("sae.hook_names_out", names);
    };
    check("`sae.hook_names_out` is empty", &|sae| names(sae, &[]));
    check("`sae.hook_names_out`", &|sae| {
        sae.set("sae.hook_names_out", 1_u32)
    });
    check("the hook point has no name", &|sae| {
        names(sae, &["", "blocks.2.hook_mlp_out"])
    });
    check("`blocks.2.hook_mlp_out` twice", &|sae| {
        names(sae, &["blocks.2.hook_mlp_out"; 2])
    });
    check("`blocks.1.hook_resid_post` twice", &|sae| {
        names(sae, &["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"]);
    });
    check("`sae.w_dec`", &|sae| names(sae, &["blocks.2.hook_mlp_out"]));
    check("0 outputs", &|sae| sae.set("sae.d_out", 0_u32));
    check("`sae.w_dec`", &|sae| sae.set("sae.d_out", 32_u32));
    check("`sae.w_dec`", &|sae| sae.set("sae.d_out", u32::MAX));
    check("`b_dec` from its input", &|sae| {
        sae.set("sae.apply_b_dec_to_input", true)
    });
    check("`layer_norm`", &|sae| {
        sae.set("sae.normalize_activations", "layer_norm")
    });
    check("`sae.w_skip`", &|sae| {
        sae.tensor("sae.w_skip", &[64, 32], TensorType::F16)
    });
    check("`sae.w_skip`", &|sae| {
        sae.tensor("sae.w_skip", &[32, 64], TensorType::Bf16)
    });
    // In a file that is none.
    let mut contents = right();
    contents.tensor("sae.w_skip", &[32, 32], TensorType::F16);
    let error = SaeFile::open(&contents.write(dir.path()))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("belongs to a transcoder alone"), "{error}");
}

#[test]
fn each_fault_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |expected: &str, change: &dyn Fn(&mut Contents)| {
        let mut contents = right();
        change(&mut contents);
        let error = SaeFile::open(&contents.write(dir.path()))
            .expect_err(expected)
            .to_string();
        assert!(
            error.contains(expected) && error.contains("sae.gguf"),
            "{error}"
        );
    };
    check("architecture `gemma`, not an SAE", &|sae| {
        sae.set("general.architecture", "gemma")
    });
    check("format version 4", &|sae| {
        sae.set("sae.format_version", 4_u32)
    });
    check("`sae.centred`", &|sae| sae.set("sae.format_version", 2_u32));
    check("unknown value `gated`", &|sae| {
        sae.set("sae.architecture", "gated")
    });
    check("unknown value `sometimes`", &|sae| {
        sae.set("sae.normalize_activations", "sometimes")
    });
    check("takes no norm factor", &|sae| {
        sae.set("sae.normalize_activations", "layer_norm")
    });
    check("`sae.k`", &|sae| sae.set("sae.architecture", "topk"));
    check("`k` is 4, expected 1 to 3", &|sae| {
        sae.set("sae.architecture", "topk");
        sae.set("sae.k", 4_u32);
    });
    check("0 inputs", &|sae| sae.set("sae.d_in", 0_u32));
    check(
        "`sae.d_in` must be of type u32, but is of type string",
        &|sae| sae.set("sae.d_in", "32"),
    );
    check("hook point", &|sae| sae.set("sae.hook_name", ""));
    check("3 features have 1 labels", &|sae| {
        sae.set("sae.labels", vec!["a".to_owned()])
    });
    check("array of string", &|sae| {
        sae.set("sae.labels", vec![1_u32, 2, 3])
    });
    check("above 0", &|sae| sae.set("sae.norm_factor", -1.0_f32));
    check("above 0", &|sae| sae.set("sae.norm_factor", f32::NAN));
    check("`expected_average_only_in` needs a norm factor", &|sae| {
        sae.remove("sae.norm_factor")
    });
    check("`none` takes no norm factor", &|sae| {
        sae.set("sae.normalize_activations", "none")
    });
    check("`sae.threshold` does not belong", &|sae| {
        sae.set("sae.architecture", "standard")
    });
    check("`sae.release` must be of type string", &|sae| {
        sae.set("sae.release", 1_u32)
    });
    check("[32, 3], but has [3, 32]", &|sae| {
        sae.tensor("sae.w_enc", &[3, 32], TensorType::F32)
    });
    check("type bf16", &|sae| {
        sae.tensor("sae.w_dec", &[32, 3], TensorType::Bf16)
    });
    check("type f16", &|sae| {
        sae.tensor("sae.b_enc", &[3], TensorType::F16)
    });
    check("belong together", &|sae| {
        sae.tensor("sae.screen_norm", &[3], TensorType::F32)
    });
    check("type f16", &|sae| {
        sae.tensor("sae.w_enc_screen", &[32, 3], TensorType::F16)
    });
    check("[3], but has [4]", &|sae| {
        sae.tensor("sae.image_baseline", &[4], TensorType::F32)
    });
    for key in right().metadata.iter().map(|(key, _)| *key) {
        let expected = if key == "sae.norm_factor" {
            "norm factor"
        } else {
            key
        };
        check(expected, &|sae| sae.remove(key));
    }
    for name in right().tensors.iter().map(|tensor| tensor.0) {
        check(&format!("no tensor `{name}`"), &|sae| sae.remove(name));
    }
}

#[test]
fn numbers_that_are_not_finite_are_found() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = right().write(dir.path());
    let offset = Gguf::open(&path)
        .expect("right")
        .tensor("sae.b_enc")
        .expect("there")
        .offset as usize;
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[offset + 4..offset + 8].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).expect("writable");
    let error = SaeFile::open(&path)
        .and_then(|file| file.b_enc())
        .expect_err("NaN")
        .to_string();
    assert!(
        error.contains("`sae.b_enc` holds NaN at index 1"),
        "{error}"
    );
}
