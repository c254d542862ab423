//! Features by way of a screen are those of the whole encoder.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, Architecture, SaeFile, SaeOptions};
use llava_sae_cpp::{Activations, EncoderOptions, Sae};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::fixture::temporary_root;

const D_IN: usize = 256;
const D_SAE: usize = 1024;
const N_ROWS: usize = 100;

/// Normally distributed numbers, the same in each run (splitmix64, Box and Muller).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Rows with some entries that are far larger than the others, as residual streams have.
fn rows() -> Vec<f32> {
    let mut random = Random(1);
    let mut rows = random.normals(N_ROWS * D_IN);
    for row in rows.chunks_exact_mut(D_IN) {
        row[7] *= 80.0;
        row[200] += 30.0;
    }
    rows[..D_IN].fill(0.0);
    rows
}

/// A random SAE of `SAELens`, converted.
fn convert(architecture: &str, weight_type: TensorType) -> SaeFile {
    let dir = temporary_root().join(format!("screen-{architecture}-{}", weight_type.name()));
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let mut random = Random(2);
    let mut tensors = vec![
        ("W_enc", vec![D_IN, D_SAE], random.normals(D_IN * D_SAE)),
        ("W_dec", vec![D_SAE, D_IN], random.normals(D_IN * D_SAE)),
        ("b_dec", vec![D_IN], random.normals(D_IN)),
    ];
    // So that some per cent are active.
    let b_enc = random.normals(D_SAE).iter().map(|b| b - 100.0).collect();
    tensors.push(("b_enc", vec![D_SAE], b_enc));
    let mut config = json!({
        "architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32",
        "apply_b_dec_to_input": true, "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    });
    match architecture {
        "jumprelu" => {
            let threshold = random.normals(D_SAE).into_iter().map(|t| 10.0 * t.abs());
            tensors.push(("threshold", vec![D_SAE], threshold.collect()));
        }
        "topk" => config["k"] = json!(20),
        _ => {}
    }
    std::fs::write(dir.join("cfg.json"), config.to_string()).expect("our own folder");
    write_safetensors(&dir.join("sae_weights.safetensors"), &tensors);
    let target = dir.join("sae.gguf");
    let options = SaeOptions {
        weight_type,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    let progress = &mut |_, _| ControlFlow::Continue(());
    sae::convert(&dir, &target, &options, progress).expect("the SAE converts");
    SaeFile::open(&target).expect("just written")
}

fn write_safetensors(path: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (*name, view.expect("as many bytes as the shape says"))
    });
    safetensors::serialize_to_file(views, None, path).expect("our own folder");
}

fn encode(path: PathBuf, screen: bool, threads: usize, rows: &[f32]) -> Activations {
    let options = EncoderOptions {
        use_gpu: false,
        threads,
        screen,
    };
    let file = SaeFile::open(&path).expect("just written");
    let mut sae = Sae::new(file, options).expect("a valid file");
    let mut activations = Activations::default();
    sae.encode(rows, &mut activations).expect("it encodes");
    activations
}

/// Pre-activations in f64, `[n_rows, d_sae]`, from the encoder as it is stored.
fn pre_activations(file: &SaeFile, rows: &[f32]) -> Vec<f64> {
    let (b_enc, b_dec) = (file.b_enc().expect("there"), file.b_dec().expect("there"));
    let mut weights = vec![vec![0.0; D_IN]; D_SAE];
    for (feature, w) in weights.iter_mut().enumerate() {
        file.encoder_row(feature, w).expect("there");
    }
    let h = |row: &[f32], feature: usize| {
        let products = row.iter().zip(&b_dec).zip(&weights[feature]);
        let product: f64 = products
            .map(|((&x, &b), &w)| f64::from(x - b) * f64::from(w))
            .sum();
        product + f64::from(b_enc[feature])
    };
    rows.chunks_exact(D_IN)
        .flat_map(|row| (0..D_SAE).map(move |feature| (row, feature)))
        .map(|(row, feature)| h(row, feature))
        .collect()
}

#[test]
fn features_are_those_of_the_formula() {
    let rows = rows();
    for architecture in ["standard", "jumprelu", "topk"] {
        for weight_type in [TensorType::F32, TensorType::F16] {
            let file = convert(architecture, weight_type);
            assert!(file.screen().expect("readable").is_some());
            let pre = pre_activations(&file, &rows);
            let threshold = file.threshold().expect("readable");
            let threshold = threshold.unwrap_or_else(|| vec![0.0; D_SAE]);
            let activations = encode(file.path().to_owned(), true, 2, &rows);
            let mut n_active = 0;
            for (row_idx, h) in pre.chunks_exact(D_SAE).enumerate() {
                let mut expected: Vec<(usize, f64)> = h
                    .iter()
                    .copied()
                    .enumerate()
                    .filter(|&(feature, h)| h > f64::from(threshold[feature]))
                    .collect();
                if let Architecture::TopK { k } = file.meta.architecture {
                    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
                    expected.truncate(k);
                    expected.sort_by_key(|entry| entry.0);
                }
                n_active += expected.len();
                let found: Vec<(usize, f32)> = activations.row(row_idx).collect();
                let name = format!("{architecture}, {}, row {row_idx}", weight_type.name());
                assert_eq!(found.len(), expected.len(), "{name}");
                for ((feature, value), (expected_feature, h)) in found.iter().zip(expected) {
                    assert_eq!(*feature, expected_feature, "{name}");
                    // f32 sums of terms of up to 80 · 4.
                    assert!((f64::from(*value) - h).abs() < 1e-3, "{name}: {value}, {h}");
                }
            }
            let share = n_active as f64 / pre.len() as f64;
            assert!(
                (0.005..0.3).contains(&share),
                "{architecture}: {share} active"
            );
        }
    }
}

/// Neither the screen nor threads change what an encoder in f32 gives, but for the order of its sums.
#[test]
fn features_are_those_without_a_screen() {
    let rows = rows();
    for architecture in ["standard", "jumprelu", "topk"] {
        let path = convert(architecture, TensorType::F32).path().to_owned();
        let whole = encode(path.clone(), false, 1, &rows);
        let screened = encode(path.clone(), true, 1, &rows);
        assert_eq!(encode(path, true, 3, &rows), screened, "{architecture}");
        for row_idx in 0..N_ROWS {
            let [ours, theirs] =
                [&screened, &whole].map(|activations| activations.row(row_idx).collect::<Vec<_>>());
            assert_eq!(ours.len(), theirs.len(), "{architecture}, row {row_idx}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours.0, theirs.0, "{architecture}, row {row_idx}");
                assert!(
                    (ours.1 - theirs.1).abs() < 1e-3,
                    "{architecture}, row {row_idx}"
                );
            }
        }
    }
}

/// Numbers that q8_0 cannot hold, or that are none, leave no feature out.
#[test]
fn rows_beyond_the_screen_are_computed_whole() {
    let path = convert("standard", TensorType::F32).path().to_owned();
    let mut rows = rows()[D_IN..3 * D_IN].to_vec();
    rows[3] = 1e9;
    rows[D_IN + 3] = f32::NAN;
    let whole = encode(path.clone(), false, 1, &rows);
    let screened = encode(path, true, 1, &rows);
    for row_idx in 0..2 {
        let features = |activations: &Activations| {
            let row = activations.row(row_idx);
            row.map(|entry| entry.0).collect::<Vec<_>>()
        };
        assert_eq!(features(&screened), features(&whole), "row {row_idx}");
    }
    assert!(whole.row(0).count() > D_SAE / 3);
}
