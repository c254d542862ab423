//! Gemma 4's vision tower and what follows it (`Gemma4VisionConfig` in transformers 5.24's `configuration_gemma4.py`,
//! and llama.cpp's `tools/mtmd/models/gemma4v.cpp`).

use serde::Deserialize;

use super::Projector;
use super::checks::{MAX_LAYERS, MAX_SIZE, expect, in_range, positive};
use super::vision::{Tower, VisionActivation, VisionConfig};

/// What follows Gemma 4's vision tower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pooler {
    /// Patches a side whose rows become one image row.
    pub(crate) pool: usize,
    /// Position embeddings of each direction.
    pub(crate) n_positions: usize,
    /// Whether products and what they take are kept within limits, which the checkpoint has.
    pub(crate) is_clipped: bool,
    /// Whether a vector is subtracted from pooled rows, and another multiplied.
    pub(crate) is_standardised: bool,
    /// Image rows of a picture, at most.
    pub(crate) max_rows: usize,
}

/// The numbers of rows that transformers takes (`_SUPPORTED_SOFT_TOKENS` in `image_processing_gemma4.py`).
pub(super) const MAX_ROWS: [usize; 5] = [70, 140, 280, 560, 1120];
/// Its default, and the published models'.
const DEFAULT_MAX_ROWS: usize = 280;
/// llama.cpp's converter writes it, and nothing reads it.
const NO_IMAGE_SIZE: usize = 224;

#[derive(Default, Deserialize)]
pub(super) struct RawGemma4Vision {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_activation: Option<String>,
    rms_norm_eps: Option<f32>,
    attention_bias: Option<bool>,
    rope_parameters: Option<Rope>,
    patch_size: Option<usize>,
    pooling_kernel_size: Option<usize>,
    position_embedding_size: Option<usize>,
    use_clipped_linears: Option<bool>,
    standardize: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

impl RawGemma4Vision {
    pub(super) fn check(self) -> std::result::Result<(VisionConfig, Projector), String> {
        for (value, key, supported) in [
            (&self.model_type, "model_type", "gemma4_vision"),
            (
                &self.hidden_activation,
                "hidden_activation",
                "gelu_pytorch_tanh",
            ),
        ] {
            expect(
                value,
                &format!("vision_config.{key}"),
                supported,
                &[supported],
            )?;
        }
        if let Some(rope) = &self.rope_parameters {
            // Before 5.2x, the type had the name of the default one.
            let key = "vision_config.rope_parameters.rope_type";
            expect(&rope.rope_type, key, "axial", &["axial", "default"])?;
            if rope.rope_theta.is_some_and(|theta| theta != 100.0) {
                return Err("`vision_config.rope_parameters.rope_theta` is not 100, which llama.cpp computes with".to_owned());
            }
        }
        if self.attention_bias == Some(true) {
            return Err(
                "`vision_config.attention_bias` is true, only false is supported".to_owned(),
            );
        }
        let n_layers = self.num_hidden_layers.unwrap_or(16);
        let vision = VisionConfig {
            tower: Tower::Gemma4,
            d_model: self.hidden_size.unwrap_or(768),
            d_ffn: self.intermediate_size.unwrap_or(3072),
            n_layers,
            n_feature_layers: n_layers,
            n_heads: self.num_attention_heads.unwrap_or(12),
            image_size: NO_IMAGE_SIZE,
            patch_size: self.patch_size.unwrap_or(16),
            layer_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            activation: VisionActivation::Gelu,
            image_mean: [0.0; 3],
            image_std: [1.0; 3],
        };
        let pooler = Pooler {
            pool: self.pooling_kernel_size.unwrap_or(3),
            n_positions: self.position_embedding_size.unwrap_or(10_240),
            is_clipped: self.use_clipped_linears.unwrap_or(false),
            is_standardised: self.standardize.unwrap_or(false),
            max_rows: DEFAULT_MAX_ROWS,
        };
        for (key, size, max) in [
            ("hidden_size", vision.d_model, MAX_SIZE),
            ("intermediate_size", vision.d_ffn, MAX_SIZE),
            ("num_hidden_layers", n_layers, MAX_LAYERS),
            ("num_attention_heads", vision.n_heads, vision.d_model),
            // What llava-sae-cpp runs.
            ("patch_size", vision.patch_size, 32),
            ("pooling_kernel_size", pooler.pool, 8),
            ("position_embedding_size", pooler.n_positions, 1 << 16),
        ] {
            in_range(&format!("vision_config.{key}"), size, max)?;
        }
        positive("vision_config.rms_norm_eps", vision.layer_norm_eps)?;
        let d_head = self.head_dim.unwrap_or(64);
        if d_head.checked_mul(vision.n_heads) != Some(vision.d_model) || !d_head.is_multiple_of(4) {
            return Err(format!(
                "`vision_config.head_dim` is {d_head}, and llama.cpp computes with a multiple of 4 that {} heads make {} of",
                vision.n_heads, vision.d_model
            ));
        }
        let n_kv_heads = self.num_key_value_heads.unwrap_or(12);
        if n_kv_heads != vision.n_heads {
            return Err(format!(
                "`vision_config.num_key_value_heads` is {n_kv_heads}, expected as many as heads, {}",
                vision.n_heads
            ));
        }
        Ok((vision, Projector::Gemma4(pooler)))
    }
}

impl Pooler {
    /// Checks that there are position embeddings for the longest side of a picture.
    pub(super) fn check_positions(&self) -> std::result::Result<(), String> {
        let longest = self.max_rows * self.pool;
        if longest <= self.n_positions {
            return Ok(());
        }
        Err(format!(
            "`vision_config.position_embedding_size` is {}, and a picture may have {longest} patches a side",
            self.n_positions
        ))
    }
}
