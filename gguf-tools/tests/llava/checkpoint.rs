//! A checkpoint made in memory, small and random, for tests to spoil before it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

/// A tensor to be stored.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }

    pub(crate) fn values(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => {
                let numbers = self.bytes.as_chunks().0.iter();
                numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            Dtype::BF16 => {
                let numbers = self.bytes.as_chunks().0.iter();
                let numbers = numbers.map(|bytes| half::bf16::from_le_bytes(*bytes));
                numbers.map(half::bf16::to_f32).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// The same values, rounded to f16.
    pub(crate) fn to_f16(&self) -> Self {
        let halves = self.values().into_iter().map(half::f16::from_f32);
        Self {
            dtype: Dtype::F16,
            shape: self.shape.clone(),
            bytes: halves.flat_map(half::f16::to_le_bytes).collect(),
        }
    }
}

/// A checkpoint folder's contents.
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    /// Further files, by name.
    pub(crate) files: BTreeMap<&'static str, Value>,
    /// In the spelling of transformers up to 4.51.
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

pub(crate) const VOCAB_SIZE: usize = 272;

/// Pixels on a side of the image.
pub(crate) const IMAGE_SIZE: usize = 12;
const D_MODEL: usize = 32;
const D_FFN: usize = 64;
const D_HEAD: usize = 16;
const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
const VISION_D_MODEL: usize = 24;
const VISION_D_FFN: usize = 40;
const N_VISION_LAYERS: usize = 3;
const PATCH_SIZE: usize = 4;
const N_PATCHES: usize = 9;

impl Checkpoint {
    /// One layer of language model, three of vision of which the projector reads the second.
    pub(crate) fn new() -> Self {
        let mut checkpoint = Self {
            config: json!({
                "model_type": "llava",
                "image_token_index": 5,
                "text_config": {
                    "model_type": "gemma",
                    "vocab_size": VOCAB_SIZE,
                    "hidden_size": D_MODEL,
                    "intermediate_size": D_FFN,
                    "num_hidden_layers": 1,
                    "num_attention_heads": N_HEADS,
                    "num_key_value_heads": N_KV_HEADS,
                    "head_dim": D_HEAD,
                },
                "vision_config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": VISION_D_MODEL,
                    "intermediate_size": VISION_D_FFN,
                    "num_hidden_layers": N_VISION_LAYERS,
                    "num_attention_heads": 3,
                    "image_size": IMAGE_SIZE,
                    "patch_size": PATCH_SIZE,
                },
            }),
            tokenizer: tokenizer(),
            files: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.add_language_model();
        checkpoint.add_vision();
        checkpoint
    }

    /// A checkpoint that lies in `dir`, as transformers saves one.
    #[allow(dead_code)] // another binary has this module, too
    pub(crate) fn read(dir: &Path) -> Self {
        let json = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
        };
        let others = [
            "preprocessor_config.json",
            "tokenizer_config.json",
            "generation_config.json",
        ];
        let mut tensors = BTreeMap::new();
        let index = json("model.safetensors.index.json");
        let files = index["weight_map"].as_object().unwrap().values();
        for file in files
            .map(|file| file.as_str().unwrap())
            .collect::<BTreeSet<_>>()
        {
            let bytes = fs::read(dir.join(file)).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let tensor = Tensor {
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    bytes: tensor.data().to_vec(),
                };
                tensors.insert(name, tensor);
            }
        }
        Self {
            config: json("config.json"),
            tokenizer: json("tokenizer.json"),
            files: others.map(|name| (name, json(name))).into(),
            tensors,
        }
    }

    fn add_language_model(&mut self) {
        let mut add = |name: &str, shape: &[usize]| {
            self.add(&format!("language_model.model.{name}.weight"), shape)
        };
        add("embed_tokens", &[VOCAB_SIZE, D_MODEL]);
        add("norm", &[D_MODEL]);
        add("layers.0.input_layernorm", &[D_MODEL]);
        add("layers.0.post_attention_layernorm", &[D_MODEL]);
        add("layers.0.self_attn.q_proj", &[N_HEADS * D_HEAD, D_MODEL]);
        add("layers.0.self_attn.k_proj", &[N_KV_HEADS * D_HEAD, D_MODEL]);
        add("layers.0.self_attn.v_proj", &[N_KV_HEADS * D_HEAD, D_MODEL]);
        add("layers.0.self_attn.o_proj", &[D_MODEL, N_HEADS * D_HEAD]);
        add("layers.0.mlp.gate_proj", &[D_FFN, D_MODEL]);
        add("layers.0.mlp.up_proj", &[D_FFN, D_MODEL]);
        add("layers.0.mlp.down_proj", &[D_MODEL, D_FFN]);
    }

    fn add_vision(&mut self) {
        let width = VISION_D_MODEL;
        let mut add = |name: &str, shape: &[usize]| {
            self.add(&format!("vision_tower.vision_model.{name}"), shape)
        };
        add("embeddings.class_embedding", &[width]);
        add(
            "embeddings.patch_embedding.weight",
            &[width, 3, PATCH_SIZE, PATCH_SIZE],
        );
        add(
            "embeddings.position_embedding.weight",
            &[N_PATCHES + 1, width],
        );
        for norm in ["pre_layrnorm", "post_layernorm"] {
            add(&format!("{norm}.weight"), &[width]);
            add(&format!("{norm}.bias"), &[width]);
        }
        for layer_idx in 0..N_VISION_LAYERS {
            for (part, d_out, d_in) in [
                ("self_attn.q_proj", width, width),
                ("self_attn.k_proj", width, width),
                ("self_attn.v_proj", width, width),
                ("self_attn.out_proj", width, width),
                ("mlp.fc1", VISION_D_FFN, width),
                ("mlp.fc2", width, VISION_D_FFN),
            ] {
                add(
                    &format!("encoder.layers.{layer_idx}.{part}.weight"),
                    &[d_out, d_in],
                );
                add(&format!("encoder.layers.{layer_idx}.{part}.bias"), &[d_out]);
            }
            for norm in ["layer_norm1", "layer_norm2"] {
                add(
                    &format!("encoder.layers.{layer_idx}.{norm}.weight"),
                    &[width],
                );
                add(&format!("encoder.layers.{layer_idx}.{norm}.bias"), &[width]);
            }
        }
        for (layer, d_in) in [("linear_1", width), ("linear_2", D_MODEL)] {
            self.add(
                &format!("multi_modal_projector.{layer}.weight"),
                &[D_MODEL, d_in],
            );
            self.add(&format!("multi_modal_projector.{layer}.bias"), &[D_MODEL]);
        }
    }

    /// Adds a tensor with values in -1 to 1, none of them zero, other ones for each name.
    pub(crate) fn add(&mut self, name: &str, shape: &[usize]) {
        let mut state = name.bytes().fold(0x2545_f491_u32, |state, byte| {
            (state ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 + 0.5) / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.tensors
            .insert(name.to_owned(), Tensor::f32(shape, &values));
    }

    /// Gives each tensor the name that `rename` makes of it.
    pub(crate) fn rename(&mut self, rename: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (rename(&name), tensor))
            .collect();
    }

    /// Writes everything but the weights.
    pub(crate) fn write_settings(&self, dir: &Path) {
        let files = self.files.iter().map(|(name, value)| (*name, value));
        let own = [
            ("config.json", &self.config),
            ("tokenizer.json", &self.tokenizer),
        ];
        for (name, value) in own.into_iter().chain(files) {
            fs::write(dir.join(name), value.to_string()).unwrap();
        }
    }

    /// Writes a folder with one file of weights.
    pub(crate) fn write(&self, dir: &Path) {
        self.write_settings(dir);
        fs::write(
            dir.join("model.safetensors"),
            serialize(self.tensors.iter()),
        )
        .unwrap();
    }

    /// Writes a folder with the weights in two files behind an index.
    pub(crate) fn write_sharded(&self, dir: &Path) {
        self.write_settings(dir);
        let mut weight_map = serde_json::Map::new();
        for (shard_idx, shard) in [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]
        .into_iter()
        .enumerate()
        {
            let tensors = || self.tensors.iter().skip(shard_idx).step_by(2);
            fs::write(dir.join(shard), serialize(tensors())).unwrap();
            weight_map.extend(tensors().map(|(name, _)| (name.clone(), shard.into())));
        }
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

pub(crate) fn serialize<'a>(tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) -> Vec<u8> {
    let views = tensors.map(|(name, tensor)| {
        (
            name,
            TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

/// Five special tokens, a chat marker, the bytes, a few letters and their merges: 271 tokens, so that
/// one filler is left.
fn tokenizer() -> Value {
    let special = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<end_of_turn>",
        "<image>",
    ];
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "a", "b", "c", "ab", "▁a", "▁ab", "abc", "\n"];
    let pieces = special
        .into_iter()
        .map(str::to_owned)
        .chain(bytes)
        .chain(pieces.map(str::to_owned));
    let vocab: serde_json::Map<String, Value> = pieces
        .enumerate()
        .map(|(id, piece)| (piece, id.into()))
        .collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| json!({ "id": id, "content": content, "special": true }))
        .collect();
    json!({
        "added_tokens": added,
        "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": true,
            "vocab": vocab,
            "merges": ["a b", "▁ a", "▁ ab", "▁a b", "ab c"],
        },
    })
}
