//! The vision tower's part of `config.json`.

use serde::Deserialize;

use super::checks::{MAX_LAYERS, MAX_SIZE, OneOrSeveral, expect, in_range, multiple, positive};

/// A vision transformer.
#[derive(Debug)]
pub(crate) struct VisionConfig {
    pub(crate) tower: Tower,
    pub(crate) d_model: usize,
    pub(crate) d_ffn: usize,
    pub(crate) n_layers: usize,
    /// Layers that run before the projector reads: `hidden_states[n_feature_layers]`.
    pub(crate) n_feature_layers: usize,
    pub(crate) n_heads: usize,
    /// Pixels on a side of the image.
    pub(crate) image_size: usize,
    /// Pixels on a side of a patch.
    pub(crate) patch_size: usize,
    pub(crate) layer_norm_eps: f32,
    pub(crate) activation: VisionActivation,
    /// Of the red, green and blue values in 0 to 1.
    pub(crate) image_mean: [f32; 3],
    pub(crate) image_std: [f32; 3],
}

/// Which vision transformer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tower {
    /// With a class row, a norm in front, and none behind.
    Clip {
        /// As the config has it: counted from the end if negative.
        feature_layer: i64,
    },
    /// With biases of patches, no class row, and a norm behind all blocks.
    Siglip,
}

impl Tower {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip { .. } => "CLIP",
            Self::Siglip => "SigLIP",
        }
    }
}

/// The activation of feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VisionActivation {
    QuickGelu,
    /// By `erf` or by `tanh`, as the tower has it.
    Gelu,
}

/// What transformers' config class has for defaults.
struct Defaults {
    model_type: &'static str,
    patch_size: usize,
    layer_norm_eps: f32,
    activations: &'static [&'static str], // the default in front
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

/// `CLIPVisionConfig`, with the mean and deviation of `CLIPImageProcessor`.
const CLIP: Defaults = Defaults {
    model_type: "clip_vision_model",
    patch_size: 32,
    layer_norm_eps: 1e-5,
    activations: &["quick_gelu", "gelu"],
    image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// `SiglipVisionConfig`, with the mean and deviation of `Gemma3ImageProcessor`.
const SIGLIP: Defaults = Defaults {
    model_type: "siglip_vision_model",
    patch_size: 16,
    layer_norm_eps: 1e-6,
    activations: &["gelu_pytorch_tanh"],
    image_mean: [0.5; 3],
    image_std: [0.5; 3],
};

#[derive(Default, Deserialize)]
pub(super) struct RawVision {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
}

impl RawVision {
    /// CLIP ViT-L/14-336, which `LlavaConfig` takes where there is no `vision_config` at all.
    pub(super) fn of_llava() -> Self {
        Self {
            hidden_size: Some(1024),
            intermediate_size: Some(4096),
            num_hidden_layers: Some(24),
            num_attention_heads: Some(16),
            image_size: Some(336),
            patch_size: Some(14),
            ..Self::default()
        }
    }

    /// A CLIP that is read after one of its layers.
    pub(super) fn check_clip(
        self,
        feature_layer: OneOrSeveral,
    ) -> std::result::Result<VisionConfig, String> {
        let &[feature_layer] = feature_layer.as_slice() else {
            return Err(format!(
                "`vision_feature_layer` is {:?}, only one layer is supported",
                feature_layer.as_slice()
            ));
        };
        let mut vision = self.check(Tower::Clip { feature_layer }, &CLIP)?;
        vision.n_feature_layers = n_feature_layers(feature_layer, vision.n_layers)?;
        Ok(vision)
    }

    /// A SigLIP that is read behind all of its layers.
    pub(super) fn check_siglip(self) -> std::result::Result<VisionConfig, String> {
        self.check(Tower::Siglip, &SIGLIP)
    }

    fn check(self, tower: Tower, defaults: &Defaults) -> std::result::Result<VisionConfig, String> {
        expect(
            &self.model_type,
            "vision_config.model_type",
            defaults.model_type,
            &[defaults.model_type],
        )?;
        expect(
            &self.hidden_act,
            "vision_config.hidden_act",
            defaults.activations[0],
            defaults.activations,
        )?;
        let n_layers = self.num_hidden_layers.unwrap_or(12);
        in_range("vision_config.num_hidden_layers", n_layers, MAX_LAYERS)?;
        let activation = self.hidden_act.as_deref();
        let vision = VisionConfig {
            tower,
            d_model: self.hidden_size.unwrap_or(768),
            d_ffn: self.intermediate_size.unwrap_or(3072),
            n_layers,
            n_feature_layers: n_layers,
            n_heads: self.num_attention_heads.unwrap_or(12),
            image_size: self.image_size.unwrap_or(224),
            patch_size: self.patch_size.unwrap_or(defaults.patch_size),
            layer_norm_eps: self.layer_norm_eps.unwrap_or(defaults.layer_norm_eps),
            activation: match activation.unwrap_or(defaults.activations[0]) {
                "quick_gelu" => VisionActivation::QuickGelu,
                _ => VisionActivation::Gelu,
            },
            image_mean: defaults.image_mean,
            image_std: defaults.image_std,
        };
        for (key, size, max) in [
            ("hidden_size", vision.d_model, MAX_SIZE),
            ("intermediate_size", vision.d_ffn, MAX_SIZE),
            ("num_attention_heads", vision.n_heads, vision.d_model),
            ("image_size", vision.image_size, MAX_IMAGE_SIZE),
            ("patch_size", vision.patch_size, vision.image_size),
        ] {
            in_range(&format!("vision_config.{key}"), size, max)?;
        }
        for (key, size, of_key, of) in [
            (
                "hidden_size",
                vision.d_model,
                "num_attention_heads",
                vision.n_heads,
            ),
            (
                "image_size",
                vision.image_size,
                "patch_size",
                vision.patch_size,
            ),
        ] {
            multiple(&format!("vision_config.{key}"), size, of_key, of)?;
        }
        positive("vision_config.layer_norm_eps", vision.layer_norm_eps)?;
        if self.num_channels.is_some_and(|n| n != 3) {
            return Err("`vision_config.num_channels` is not 3".to_owned());
        }
        // llama.cpp's clip.cpp takes such files for old ones with the two layers swapped.
        if vision.d_ffn == vision.d_model {
            return Err("`vision_config.intermediate_size` equals `hidden_size`, \
                        which llama.cpp's vision loader cannot tell from an older file layout"
                .to_owned());
        }
        Ok(vision)
    }
}

impl VisionConfig {
    /// Patches on a side of the image.
    pub(crate) fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }
}

const MAX_IMAGE_SIZE: usize = 1 << 14;

/// transformers indexes `hidden_states`, which has the embeddings at 0 and the output of layer
/// `i` (from 1) at `i`, so the index, counted from the front, is the number of layers that run.
fn n_feature_layers(layer: i64, n_layers: usize) -> std::result::Result<usize, String> {
    let n_layers = n_layers as i64;
    let from_front = if layer < 0 {
        n_layers + 1 + layer
    } else {
        layer
    };
    if (1..=n_layers).contains(&from_front) {
        return Ok(from_front as usize);
    }
    Err(format!(
        "`vision_feature_layer` is {layer}, expected 1 to {n_layers} or -{n_layers} to -1"
    ))
}
