//! Neuronpedia's endpoints: requests as its clients send them, and numbers beside formulas in f64 on SAEs whose decoder
//! rows were brought to length 1, as its server loads them.

mod activations;
mod known;
mod refusals;
mod steering;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::gguf::TensorType;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::Session;
use serde_json::{Value, json};

use crate::fixture::{Fixture, exact_options};
use crate::serve_fixture::{Served, options};

const HOOK: &str = "blocks.1.hook_resid_post";
/// Sums of f32 numbers around 1, beside other sequences in one context.
const TOLERANCE: f64 = 1e-4;

fn near(ours: &Value, expected: f64) -> bool {
    is_within(TOLERANCE, ours, expected)
}

fn is_within(tolerance: f64, ours: &Value, expected: f64) -> bool {
    let ours = ours.as_f64().expect("a number");
    (ours - expected).abs() <= tolerance * (1.0 + expected.abs())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// An SAE whose decoder rows have length 1 (`fold_W_dec_norm` in SAELens), in f64.
struct Folded {
    w_enc: Vec<Vec<f64>>, // [d_sae, d_in]
    w_dec: Vec<Vec<f64>>, // [d_sae, d_in]
    b_enc: Vec<f64>,      // [d_sae]
    threshold: Vec<f64>,  // [d_sae]
    b_dec: Vec<f64>,      // [d_in]; zeros where it is not subtracted from rows
}

impl Folded {
    fn open(fixture: Fixture, tensor_type: TensorType) -> Self {
        let path = fixture.converted(tensor_type).join("sae.gguf");
        let file = SaeFile::open(&path).expect("converted");
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        let (d_in, d_sae) = (file.meta.d_in, file.meta.d_sae);
        let row = |read: &dyn Fn(&mut [f32])| {
            let mut row = vec![0.0; d_in];
            read(&mut row);
            wide(row)
        };
        let mut folded = Self {
            w_enc: (0..d_sae)
                .map(|i| row(&|row| file.encoder_row(i, row).expect("readable")))
                .collect(),
            w_dec: (0..d_sae)
                .map(|i| row(&|row| file.decoder_row(i, row).expect("readable")))
                .collect(),
            b_enc: wide(file.b_enc().expect("readable")),
            threshold: match file.threshold().expect("readable") {
                Some(threshold) => wide(threshold),
                None => vec![0.0; d_sae],
            },
            b_dec: match file.meta.apply_b_dec_to_input {
                true => wide(file.b_dec().expect("readable")),
                false => vec![0.0; d_in],
            },
        };
        for i in 0..d_sae {
            let norm = dot(&folded.w_dec[i], &folded.w_dec[i]).sqrt();
            folded.w_dec[i].iter_mut().for_each(|x| *x /= norm);
            folded.w_enc[i].iter_mut().for_each(|x| *x *= norm);
            folded.b_enc[i] *= norm;
            folded.threshold[i] *= norm;
        }
        folded
    }

    fn activation(&self, feature: usize, row: &[f64]) -> f64 {
        let x: Vec<f64> = row.iter().zip(&self.b_dec).map(|(x, b)| x - b).collect();
        let h = dot(&x, &self.w_enc[feature]) + self.b_enc[feature];
        match h > self.threshold[feature].max(0.0) {
            true => h,
            false => 0.0,
        }
    }

    /// `[d_sae]`
    fn encode(&self, row: &[f64]) -> Vec<f64> {
        (0..self.w_enc.len())
            .map(|feature| self.activation(feature, row))
            .collect()
    }
}

/// The fixture with random weights, whose decoder rows have any length, in f32.
fn tiny() -> (Served, Session) {
    let session = Fixture::Tiny.session(TensorType::F32, exact_options());
    let served = Served::of(Arc::clone(session.model()), options());
    (served, session)
}

fn picture_url(fixture: Fixture, name: &str) -> String {
    let png = std::fs::read(fixture.picture(name)).expect("a committed file");
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

fn chat(fixture: Fixture, name: &str) -> Value {
    json!([{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": picture_url(fixture, name)}},
        {"type": "text", "text": "Describe the image."},
    ]}])
}

const TEXT: &str = "Describe the image, and the one behind it.";

fn steer_request(method: &str) -> Value {
    json!({
        "prompt": TEXT, "model": "tiny-llava-gemma", "steerMethod": method, "normalizeSteering": false,
        "types": ["STEERED", "DEFAULT"], "nCompletionTokens": 6, "temperature": 0, "strengthMultiplier": 2,
        "freqPenalty": 0, "seed": 16, "nLogprobs": 2,
    })
}
