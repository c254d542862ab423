//! SAELens folders made for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::random_values;

/// Not multiples of anything, and different, so that no mix-up goes unnoticed.
pub(crate) const D_IN: usize = 37;
pub(crate) const D_SAE: usize = 101;

/// A SAELens folder before it is written: random weights, and the configuration of SAELens 3 to 5.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

/// A tensor's number type, shape and values.
pub(crate) type Tensor = (Dtype, Vec<usize>, Vec<f32>);

impl Folder {
    pub(crate) fn standard() -> Self {
        let tensor = |seed, shape: &[usize]| -> Tensor {
            (
                Dtype::F32,
                shape.to_vec(),
                random_values(seed, shape.iter().product()),
            )
        };
        Self {
            config: json!({
                "architecture": "standard",
                "d_in": D_IN,
                "d_sae": D_SAE,
                "dtype": "torch.float32",
                "model_name": "some-model",
                "hook_name": "blocks.4.hook_resid_post",
                "activation_fn_str": "relu",
                "apply_b_dec_to_input": true,
                "normalize_activations": "none",
            }),
            tensors: BTreeMap::from([
                ("W_enc".to_owned(), tensor(1, &[D_IN, D_SAE])),
                ("b_enc".to_owned(), tensor(2, &[D_SAE])),
                ("W_dec".to_owned(), tensor(3, &[D_SAE, D_IN])),
                ("b_dec".to_owned(), tensor(4, &[D_IN])),
            ]),
        }
    }

    pub(crate) fn jumprelu() -> Self {
        let mut folder = Self::standard();
        folder.config["architecture"] = json!("jumprelu");
        let thresholds = random_values(5, D_SAE)
            .iter()
            .map(|value| value.abs())
            .collect();
        folder.tensors.insert(
            "threshold".to_owned(),
            (Dtype::F32, vec![D_SAE], thresholds),
        );
        folder
    }

    /// The same with another value in the configuration; `null` removes the key.
    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        let config = self.config.as_object_mut().expect("an object");
        config.remove(key);
        if !value.is_null() {
            config.insert(key.to_owned(), value);
        }
        self
    }

    pub(crate) fn values(&self, name: &str) -> &[f32] {
        &self.tensors[name].2
    }

    pub(crate) fn values_mut(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self
            .tensors
            .get_mut(name)
            .expect("a tensor of the folder")
            .2
    }

    /// Writes the folder `sae` into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join("sae");
        std::fs::create_dir_all(&path).expect("writable");
        std::fs::write(path.join("cfg.json"), self.config.to_string()).expect("writable");
        write_safetensors(&path.join("sae_weights.safetensors"), &self.tensors);
        path
    }
}

pub(crate) fn write_safetensors(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let encoded: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor, encode(tensor)))
        .collect();
    let views = encoded.iter().map(|(name, (dtype, shape, _), bytes)| {
        (
            name,
            TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape has"),
        )
    });
    std::fs::write(
        path,
        safetensors::serialize(views, None).expect("serialisable"),
    )
    .expect("writable");
}

fn encode((dtype, _, values): &Tensor) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
        Dtype::I32 => (*value as i32).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}
