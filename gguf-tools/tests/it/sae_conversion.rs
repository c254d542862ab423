//! What SAE files hold after conversion.

use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::gguf::{Gguf, Overwrite, TensorType};
use gguf_tools::sae::{self, Architecture, NormalizeActivations, SaeFile, SaeOptions};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::sae_folder::{D_IN, D_SAE, Folder};
use crate::{demo, random_values};

pub(crate) fn options() -> SaeOptions {
    SaeOptions {
        weight_type: TensorType::F32,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Refuse,
    }
}

/// Converts the folder in a new temporary folder, which goes with the file.
pub(crate) fn convert(folder: &Folder, options: &SaeOptions) -> (tempfile::TempDir, SaeFile) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = folder.write(dir.path());
    let target = dir.path().join("sae.gguf");
    let mut go_on = |_, _| ControlFlow::Continue(());
    let converted = sae::convert(&source, &target, options, &mut go_on).expect("convertible");
    let file = SaeFile::open(&target).expect("the schema holds");
    assert_eq!(file.meta, converted.meta);
    (dir, file)
}

/// The rows of a matrix, each feature's after another's.
pub(crate) fn matrix(file: &SaeFile, name: &str) -> Vec<f32> {
    let gguf = Gguf::open(file.path()).expect("a right file");
    gguf.read_f32(gguf.tensor(name).expect("a tensor of the schema"))
        .expect("readable")
}

fn transposed(values: &[f32], n_columns: usize) -> Vec<f32> {
    let column = |idx| values.iter().skip(idx).step_by(n_columns);
    (0..n_columns).flat_map(column).copied().collect()
}

/// The screen is the stored encoder in q8_0, and its bounds are their formulas'.
#[test]
fn the_screen_is_of_the_stored_encoder() {
    for weight_type in [TensorType::F32, TensorType::F16, TensorType::Q8_0] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let target = dir.path().join("sae.gguf");
        let options = SaeOptions {
            weight_type,
            ..options()
        };
        let mut go_on = |_, _| ControlFlow::Continue(());
        sae::convert(&demo().join("sae"), &target, &options, &mut go_on).expect("convertible");
        let file = SaeFile::open(&target).expect("the schema holds");
        let Some(screen) = file.screen().expect("readable") else {
            assert_eq!(weight_type, TensorType::Q8_0);
            continue;
        };
        assert_eq!(screen.tensor.tensor_type, TensorType::Q8_0);
        let (stored, screened) = (
            matrix(&file, "sae.w_enc"),
            matrix(&file, "sae.w_enc_screen"),
        );
        let rows = stored.chunks_exact(192).zip(screened.chunks_exact(192));
        for (feature, (w, rounded)) in rows.enumerate() {
            let mut bytes = Vec::new();
            TensorType::Q8_0.quantize(w, &mut bytes);
            let mut expected = [0.0; 192];
            TensorType::Q8_0.dequantize(&bytes, &mut expected);
            assert_eq!(rounded, expected);
            let norm = |values: &mut dyn Iterator<Item = f64>| {
                values.map(|value| value * value).sum::<f64>().sqrt()
            };
            let difference = w.iter().zip(rounded).map(|(w, r)| f64::from(w - r));
            for (found, expected) in [
                (screen.error[feature], norm(&mut difference.into_iter())),
                (
                    screen.norm[feature],
                    norm(&mut rounded.iter().map(|&r| f64::from(r))),
                ),
            ] {
                let found = f64::from(found);
                assert!(
                    (found - expected).abs() <= 1e-6 * expected,
                    "{found}, {expected}"
                );
            }
        }
    }
}

#[test]
fn the_demo_keeps_every_number() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("sae.gguf");
    let options = SaeOptions {
        labels: vec![demo().join("sae/labels.json")],
        ..options()
    };
    let mut last = (0, 0);
    sae::convert(
        &demo().join("sae"),
        &target,
        &options,
        &mut |n_done, n_in_all| {
            last = (n_done, n_in_all);
            ControlFlow::Continue(())
        },
    )
    .expect("convertible");
    // Encoder, twice because of its screen, and decoder, f32.
    assert_eq!(last, (3 * 192 * 768 * 4, 3 * 192 * 768 * 4));

    let file = SaeFile::open(&target).expect("the schema holds");
    let bytes = std::fs::read(demo().join("sae/sae_weights.safetensors")).expect("readable");
    let weights = SafeTensors::deserialize(&bytes).expect("a right file");
    let source = |name: &str| -> Vec<f32> {
        let view = weights.tensor(name).expect("a tensor of the demo");
        view.data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    };
    assert_eq!(file.w_enc().dims, [192, 768]);
    assert_eq!(
        matrix(&file, "sae.w_enc"),
        transposed(&source("W_enc"), 768)
    );
    assert_eq!(matrix(&file, "sae.w_dec"), source("W_dec"));
    assert_eq!(file.b_enc().expect("readable"), source("b_enc"));
    assert_eq!(file.b_dec().expect("readable"), source("b_dec"));
    assert_eq!(
        file.threshold().expect("readable"),
        Some(source("threshold"))
    );
    let mut row = [0.0; 192];
    file.decoder_row(767, &mut row).expect("readable");
    assert_eq!(row[..], source("W_dec")[767 * 192..]);
    // Trained with decoder rows of unit length, then rounded to f16.
    assert!(
        file.decoder_norm()
            .expect("readable")
            .iter()
            .all(|norm| (norm - 1.0).abs() < 1e-3)
    );

    let meta = &file.meta;
    assert_eq!(
        (meta.architecture, meta.d_in, meta.d_sae),
        (Architecture::JumpRelu, 192, 768)
    );
    assert_eq!(meta.hook_name, "blocks.1.hook_resid_post");
    assert_eq!(meta.model_name.as_deref(), Some("llava-gemma-emoji"));
    assert!(meta.apply_b_dec_to_input && meta.norm_factor.is_none());
    assert_eq!(meta.labels.len(), 768);
    assert_eq!(meta.labels[..3], ["white, saw, <eos>", "doughnut", "know"]);
    assert_eq!(
        meta.labels_source.as_deref(),
        Some("llava-gemma-emoji/1-res")
    );
}

#[test]
fn matrices_take_the_type_asked_for_where_rows_allow() {
    let check = |wanted, expected: TensorType, d_in: usize, tolerance: f32| {
        let mut folder = Folder::standard().with("d_in", json!(d_in));
        for (name, shape) in [
            ("W_enc", vec![d_in, D_SAE]),
            ("W_dec", vec![D_SAE, d_in]),
            ("b_dec", vec![d_in]),
        ] {
            let values = random_values(d_in as u64, shape.iter().product());
            folder
                .tensors
                .insert(name.to_owned(), (Dtype::F32, shape, values));
        }
        let (_dir, file) = convert(
            &folder,
            &SaeOptions {
                weight_type: wanted,
                ..options()
            },
        );
        assert_eq!(
            (file.w_enc().tensor_type, file.w_dec().tensor_type),
            (expected, expected)
        );
        for (value, read) in folder
            .values("W_dec")
            .iter()
            .zip(matrix(&file, "sae.w_dec"))
        {
            assert!(
                (value - read).abs() <= tolerance,
                "{value} became {read} as {wanted:?}"
            );
        }
    };
    // Half a step below 1: 2^-12 for f16; for q8_0 1/254, and the scale's rounding.
    check(TensorType::F16, TensorType::F16, D_IN, 2.0_f32.powi(-12));
    check(TensorType::Q8_0, TensorType::Q8_0, 64, 0.54 / 127.0);
    check(TensorType::Q8_0, TensorType::F16, D_IN, 2.0_f32.powi(-12));
}

#[test]
fn half_precision_sources_are_read() {
    for (dtype, tolerance) in [
        (Dtype::F16, 2.0_f32.powi(-12)),
        (Dtype::BF16, 2.0_f32.powi(-9)),
    ] {
        let mut folder = Folder::jumprelu();
        folder
            .tensors
            .values_mut()
            .for_each(|tensor| tensor.0 = dtype);
        let (_dir, file) = convert(&folder, &options());
        let expected = transposed(folder.values("W_enc"), D_SAE);
        for (value, read) in expected.iter().zip(matrix(&file, "sae.w_enc")) {
            assert!(
                (value - read).abs() <= tolerance,
                "{value} became {read} through {dtype:?}"
            );
        }
    }
}

/// SAELens' forward pass in double precision, on weights as SAELens has them: activations and
/// reconstruction of `x` (`saes/standard_sae.py` and `saes/jumprelu_sae.py`).
struct Reference {
    w_enc: Vec<f64>, // [D_IN, D_SAE]
    b_enc: Vec<f64>, // [D_SAE]
    w_dec: Vec<f64>, // [D_SAE, D_IN]
    b_dec: Vec<f64>, // [D_IN]
}

impl Reference {
    fn encode(&self, x: &[f64]) -> Vec<f64> {
        let pre_activation = |feature: usize| -> f64 {
            let product: f64 = (0..D_IN)
                .map(|i| (x[i] - self.b_dec[i]) * self.w_enc[i * D_SAE + feature])
                .sum();
            product + self.b_enc[feature]
        };
        (0..D_SAE)
            .map(|feature| pre_activation(feature).max(0.0))
            .collect()
    }

    fn decode(&self, activations: &[f64]) -> Vec<f64> {
        let value = |i: usize| -> f64 {
            let product: f64 = (0..D_SAE)
                .map(|feature| activations[feature] * self.w_dec[feature * D_IN + i])
                .sum();
            product + self.b_dec[i]
        };
        (0..D_IN).map(value).collect()
    }
}

fn double(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn of_folder(folder: &Folder) -> Reference {
    Reference {
        w_enc: double(folder.values("W_enc")),
        b_enc: double(folder.values("b_enc")),
        w_dec: double(folder.values("W_dec")),
        b_dec: double(folder.values("b_dec")),
    }
}

fn of_file(file: &SaeFile) -> Reference {
    Reference {
        w_enc: double(&transposed(&matrix(file, "sae.w_enc"), D_IN)),
        b_enc: double(&file.b_enc().expect("readable")),
        w_dec: double(&matrix(file, "sae.w_dec")),
        b_dec: double(&file.b_dec().expect("readable")),
    }
}

/// Each weight is rounded to f32 once or twice (2^-24 each), in sums of about a hundred terms.
fn assert_close(got: &[f64], expected: &[f64]) {
    let scale = expected
        .iter()
        .fold(0.0_f64, |max, value| max.max(value.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= 1e-5 * scale,
            "got {got}, expected {expected}"
        );
    }
}

#[test]
fn a_folded_sae_does_to_x_what_the_original_does_to_s_x() {
    for normalization in [json!(true), json!("expected_average_only_in")] {
        let folder = Folder::standard().with("normalize_activations", normalization);
        let s = 0.213_f32;
        let (_dir, file) = convert(
            &folder,
            &SaeOptions {
                norm_factor: Some(s),
                ..options()
            },
        );
        assert_eq!(file.meta.norm_factor, Some(s));
        assert_eq!(
            file.meta.normalize_activations,
            NormalizeActivations::ExpectedAverageOnlyIn
        );

        let (original, folded) = (of_folder(&folder), of_file(&file));
        let s = f64::from(s);
        let x = double(&random_values(7, D_IN));
        let scaled: Vec<f64> = x.iter().map(|value| s * value).collect();
        let activations = original.encode(&scaled);
        assert!(activations.iter().any(|a| *a > 0.0) && activations.contains(&0.0));
        assert_close(&folded.encode(&x), &activations);
        let expected: Vec<f64> = original
            .decode(&activations)
            .iter()
            .map(|value| value / s)
            .collect();
        assert_close(&folded.decode(&activations), &expected);

        let rows = matrix(&file, "sae.w_dec");
        let norms = rows
            .chunks(D_IN)
            .map(|row| row.iter().map(|value| value * value).sum::<f32>().sqrt());
        for (norm, expected) in file.decoder_norm().expect("readable").iter().zip(norms) {
            assert!(
                (norm - expected).abs() <= 1e-6 * expected,
                "norm {norm}, expected {expected}"
            );
        }
    }
}

#[test]
fn fine_tuning_factors_go_into_the_decoder() {
    let mut folder = Folder::standard().with("finetuning_scaling_factor", json!(true));
    let factors: Vec<f32> = random_values(8, D_SAE)
        .iter()
        .map(|value| 1.5 + value)
        .collect();
    let tensor = (Dtype::F32, vec![D_SAE], factors.clone());
    folder.tensors.insert("scaling_factor".to_owned(), tensor);
    let (_dir, file) = convert(&folder, &options());

    let (original, baked) = (of_folder(&folder), of_file(&file));
    let activations = original.encode(&double(&random_values(9, D_IN)));
    let scaled: Vec<f64> = activations
        .iter()
        .zip(&factors)
        .map(|(a, factor)| a * f64::from(*factor))
        .collect();
    assert_close(&baked.decode(&activations), &original.decode(&scaled));

    // SAELens used to write ones whatever the configuration said.
    let mut folder = Folder::standard();
    folder.tensors.insert(
        "scaling_factor".to_owned(),
        (Dtype::F32, vec![D_SAE], vec![1.0; D_SAE]),
    );
    let (_dir, file) = convert(&folder, &options());
    assert_eq!(matrix(&file, "sae.w_dec"), folder.values("W_dec"));
}

#[test]
fn configurations_of_all_ages_are_read() {
    let check =
        |config: serde_json::Value, hook_name: &str, model: Option<&str>, minus_b_dec: bool| {
            let folder = Folder {
                config,
                ..Folder::standard()
            };
            let (_dir, file) = convert(&folder, &options());
            assert_eq!(file.meta.architecture, Architecture::Standard);
            assert_eq!(file.meta.hook_name, hook_name);
            assert_eq!(file.meta.model_name.as_deref(), model);
            assert_eq!(file.meta.apply_b_dec_to_input, minus_b_dec);
            assert_eq!((file.meta.d_in, file.meta.d_sae), (D_IN, D_SAE));
            assert!(file.meta.labels.is_empty() && file.meta.labels_source.is_none());
        };
    let oldest = json!({
        "model_name": "gpt2-small", "hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": 8,
        "d_in": D_IN, "d_sae": D_SAE, "activation_fn": "relu", "normalize_activations": false,
        "apply_b_dec_to_input": false, "dtype": "torch.float32",
    });
    check(oldest, "blocks.8.hook_resid_pre", Some("gpt2-small"), false);
    let third = json!({
        "architecture": "standard", "model_name": "m", "hook_name": "blocks.8.hook_resid_pre", "hook_layer": 8,
        "hook_head_index": null, "activation_fn_str": "relu", "activation_fn_kwargs": {},
        "finetuning_scaling_factor": false, "normalize_activations": null, "dtype": "float32",
    });
    check(third, "blocks.8.hook_resid_pre", Some("m"), true);
    let sixth = json!({
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "normalize_activations": "none",
        "reshape_activations": "none", "apply_b_dec_to_input": true,
        "metadata": {"sae_lens_version": "6.54.0", "model_name": "m", "hook_name": "blocks.2.hook_resid_post"},
    });
    check(sixth, "blocks.2.hook_resid_post", Some("m"), true);
    let listed = json!({
        "hook_point": "blocks.{layer}.hook_resid_pre", "hook_point_layer": [12], "metadata": null,
    });
    check(listed, "blocks.12.hook_resid_pre", None, true);
    check(
        json!({"hook_name": "blocks.0.hook_resid_post"}),
        "blocks.0.hook_resid_post",
        None,
        true,
    );
}

#[test]
fn a_file_of_the_folder_stands_for_it() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::standard().write(dir.path());
    let convert = |source: &Path, name: &str| {
        let target = dir.path().join(name);
        let mut go_on = |_, _| ControlFlow::Continue(());
        sae::convert(source, &target, &options(), &mut go_on).expect("convertible");
        std::fs::read(target).expect("there")
    };
    let expected = convert(&source, "folder.gguf");
    for file in ["cfg.json", "sae_weights.safetensors"] {
        assert!(convert(&source.join(file), file) == expected, "{file}");
    }
}
