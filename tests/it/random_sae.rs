//! Random SAEs, made as `SAELens` stores them and converted.

use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

/// Normally distributed numbers, the same in each run (splitmix64, Box and Muller).
pub(crate) struct Random(pub(crate) u64);

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

    /// Rows with some entries that are far larger than the others, as residual streams have.
    pub(crate) fn rows(&mut self, n_rows: usize, d_in: usize) -> Vec<f32> {
        let mut rows = self.normals(n_rows * d_in);
        for row in rows.chunks_exact_mut(d_in) {
            row[7] *= 80.0;
            row[d_in - 56] += 30.0;
        }
        rows
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A random SAE of this architecture, written and converted in `dir`. What `h` must exceed is 2.4 times
/// what `h` usually is on [`Random::rows`], so that some per cent of its features are active.
pub(crate) fn make(
    dir: &Path,
    architecture: &str,
    [d_in, d_sae]: [usize; 2],
    weight_type: TensorType,
) -> SaeFile {
    std::fs::create_dir_all(dir).expect("a folder of our own");
    let mut random = Random(2);
    let usual = (d_in as f32 + 80.0_f32.powi(2) + 30.0_f32.powi(2)).sqrt();
    let mut tensors = vec![
        ("W_enc", vec![d_in, d_sae], random.normals(d_in * d_sae)),
        ("W_dec", vec![d_sae, d_in], random.normals(d_in * d_sae)),
        ("b_dec", vec![d_in], random.normals(d_in)),
    ];
    let b_enc = random.normals(d_sae).into_iter();
    let b_enc = b_enc.map(|b| b - 2.4 * usual).collect();
    tensors.push(("b_enc", vec![d_sae], b_enc));
    let mut config = json!({
        "architecture": architecture, "d_in": d_in, "d_sae": d_sae, "dtype": "float32",
        "apply_b_dec_to_input": true, "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_post"},
    });
    match architecture {
        "jumprelu" => {
            let threshold = random.normals(d_sae).into_iter().map(|t| 10.0 * t.abs());
            tensors.push(("threshold", vec![d_sae], threshold.collect()));
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
    sae::convert(dir, &target, &options, progress).expect("the SAE converts");
    SaeFile::open(&target).expect("just written")
}

pub(crate) fn write_safetensors(path: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)]) {
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
