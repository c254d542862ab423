//! Features by way of a screen are those of the whole encoder.

use std::path::PathBuf;
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use gguf_tools::sae::{Architecture, SaeFile};
use llava_sae_cpp::{Activations, EncoderOptions, EncoderWeights, Sae};

use crate::fixture::temporary_root;
use crate::random_sae::{self, Random};

const D_IN: usize = 256;
const D_SAE: usize = 1024;
const N_ROWS: usize = 100;

/// The first one is all zeros.
fn rows() -> Vec<f32> {
    let mut rows = Random(1).rows(N_ROWS, D_IN);
    rows[..D_IN].fill(0.0);
    rows
}

fn convert(test: &str, architecture: &str, weight_type: TensorType) -> SaeFile {
    let name = format!("screen-{test}-{architecture}-{}", weight_type.name());
    let dir = temporary_root().join(name);
    random_sae::make(&dir, architecture, [D_IN, D_SAE], weight_type)
}

fn encode(path: PathBuf, screen: bool, threads: usize, rows: &[f32]) -> Activations {
    let options = EncoderOptions {
        use_gpu: false,
        threads,
        screen,
    };
    let file = SaeFile::open(&path).expect("just written");
    let sae = Arc::new(Sae::from_file(file).expect("a valid file"));
    let mut activations = Activations::default();
    let mut encoder = EncoderWeights::load(&sae, options)
        .and_then(|weights| weights.encoder())
        .expect("a valid file");
    encoder.encode(rows, &mut activations).expect("it encodes");
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
            let file = convert("formula", architecture, weight_type);
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

/// Half of all features are active on rows that are large beside the biases: enough to be shared by threads.
#[test]
fn threads_change_nothing() {
    let file = convert("threads", "standard", TensorType::F16);
    let path = file.path().to_owned();
    let rows: Vec<f32> = rows().iter().map(|x| 1e3 * x).collect();
    let one = encode(path.clone(), true, 1, &rows);
    let n_active: usize = (0..N_ROWS).map(|row_idx| one.row(row_idx).count()).sum();
    assert!(n_active * D_IN > 8 << 20, "{n_active} are active");
    assert_eq!(encode(path, true, 3, &rows), one);
}

/// A screen does not change what an encoder in f32 gives, but for the order of its sums.
#[test]
fn features_are_those_without_a_screen() {
    let rows = rows();
    for architecture in ["standard", "jumprelu", "topk"] {
        let file = convert("whole", architecture, TensorType::F32);
        let path = file.path().to_owned();
        let whole = encode(path.clone(), false, 1, &rows);
        let screened = encode(path, true, 1, &rows);
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
    let file = convert("beyond", "standard", TensorType::F32);
    let path = file.path().to_owned();
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
