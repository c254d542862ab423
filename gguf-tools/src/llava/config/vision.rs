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
    /// InternVL's: with biases of patches, a class row, factors behind attention and MLP, and no norm behind all blocks.
    InternVit,
    /// With gates, norms behind attention and feed-forward parts, and pictures of any shape.
    Gemma4,
}

impl Tower {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clip { .. } => "CLIP",
            Self::Siglip => "SigLIP",
            Self::InternVit => "InternViT",
            Self::Gemma4 => "Gemma 4",
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
    model_types: &'static [&'static str], // the default in front
    d_model: usize,
    d_ffn: usize,
    n_layers: usize,
    n_heads: usize,
    image_size: usize,
    patch_size: usize,
    layer_norm_eps: f32,
    activations: &'static [&'static str], // the default in front
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

/// `CLIPVisionConfig`, with the mean and deviation of `CLIPImageProcessor`.
const CLIP: Defaults = Defaults {
    model_types: &["clip_vision_model"],
    d_model: 768,
    d_ffn: 3072,
    n_layers: 12,
    n_heads: 12,
    image_size: 224,
    patch_size: 32,
    layer_norm_eps: 1e-5,
    activations: &["quick_gelu", "gelu"],
    image_mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    image_std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// `SiglipVisionConfig`, with the mean and deviation of `Gemma3ImageProcessor`.
const SIGLIP: Defaults = Defaults {
    model_types: &["siglip_vision_model"],
    patch_size: 16,
    layer_norm_eps: 1e-6,
    activations: &["gelu_pytorch_tanh"],
    image_mean: [0.5; 3],
    image_std: [0.5; 3],
    ..CLIP
};

/// `Idefics3VisionConfig` and `SmolVLMVisionConfig`, with the mean and deviation of their image processors. The first
/// checkpoints call it as the whole model.
const IDEFICS3: Defaults = Defaults {
    model_types: &["idefics3_vision", "smolvlm_vision", "idefics3", "smolvlm"],
    d_model: 1152,
    n_heads: 16,
    patch_size: 32,
    ..SIGLIP
};

/// `InternVLVisionConfig`, with the mean and deviation of published checkpoints.
const INTERN_VIT: Defaults = Defaults {
    model_types: &["internvl_vision"],
    d_model: 1024,
    d_ffn: 4096,
    n_layers: 24,
    n_heads: 16,
    image_size: 448,
    patch_size: 14,
    layer_norm_eps: 1e-6,
    activations: &["gelu"],
    image_mean: [0.485, 0.456, 0.406],
    image_std: [0.229, 0.224, 0.225],
};

#[derive(Default, Deserialize)]
pub(super) struct RawVision {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<OneOrSeveral>,
    patch_size: Option<OneOrSeveral>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    use_qk_norm: Option<bool>,
    use_mask_token: Option<bool>,
    use_absolute_position_embeddings: Option<bool>,
    use_mean_pooling: Option<bool>,
    norm_type: Option<String>,
}

impl RawVision {
    /// CLIP ViT-L/14-336, which `LlavaConfig` takes where there is no `vision_config` at all.
    pub(super) fn of_llava() -> Self {
        Self {
            hidden_size: Some(1024),
            intermediate_size: Some(4096),
            num_hidden_layers: Some(24),
            num_attention_heads: Some(16),
            image_size: Some(OneOrSeveral::One(336)),
            patch_size: Some(OneOrSeveral::One(14)),
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

    /// The SigLIP of Idefics3 and SmolVLM, whose patches need not cover all of a picture.
    pub(super) fn check_idefics3(self) -> std::result::Result<VisionConfig, String> {
        self.check(Tower::Siglip, &IDEFICS3)
    }

    /// The one of InternVL's smaller models (the largest have other norms).
    pub(super) fn check_intern_vit(self) -> std::result::Result<VisionConfig, String> {
        expect(
            &self.norm_type,
            "vision_config.norm_type",
            "layer_norm",
            &["layer_norm"],
        )?;
        for (key, value, default, supported) in [
            ("attention_bias", self.attention_bias, false, true),
            ("use_qk_norm", self.use_qk_norm, false, false),
            ("use_mask_token", self.use_mask_token, false, false),
            (
                "use_absolute_position_embeddings",
                self.use_absolute_position_embeddings,
                true,
                true,
            ),
            ("use_mean_pooling", self.use_mean_pooling, true, true),
        ] {
            if value.unwrap_or(default) != supported {
                return Err(format!(
                    "`vision_config.{key}` is {}, only {supported} is supported",
                    !supported
                ));
            }
        }
        self.check(Tower::InternVit, &INTERN_VIT)
    }

    fn check(self, tower: Tower, defaults: &Defaults) -> std::result::Result<VisionConfig, String> {
        expect(
            &self.model_type,
            "vision_config.model_type",
            defaults.model_types[0],
            defaults.model_types,
        )?;
        expect(
            &self.hidden_act,
            "vision_config.hidden_act",
            defaults.activations[0],
            defaults.activations,
        )?;
        let n_layers = self.num_hidden_layers.unwrap_or(defaults.n_layers);
        in_range("vision_config.num_hidden_layers", n_layers, MAX_LAYERS)?;
        let activation = self.hidden_act.as_deref();
        let vision = VisionConfig {
            tower,
            d_model: self.hidden_size.unwrap_or(defaults.d_model),
            d_ffn: self.intermediate_size.unwrap_or(defaults.d_ffn),
            n_layers,
            n_feature_layers: n_layers,
            n_heads: self.num_attention_heads.unwrap_or(defaults.n_heads),
            image_size: side("image_size", self.image_size, defaults.image_size)?,
            patch_size: side("patch_size", self.patch_size, defaults.patch_size)?,
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
        let (key, of_key) = ("vision_config.hidden_size", "num_attention_heads");
        multiple(key, vision.d_model, of_key, vision.n_heads)?;
        if !std::ptr::eq(defaults, &IDEFICS3) {
            let (key, of_key) = ("vision_config.image_size", "patch_size");
            multiple(key, vision.image_size, of_key, vision.patch_size)?;
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

/// A square's side, which may stand there for both directions.
fn side(
    key: &str,
    value: Option<OneOrSeveral>,
    default: usize,
) -> std::result::Result<usize, String> {
    let value = value.as_ref().map(OneOrSeveral::as_slice);
    let one = match value {
        None => return Ok(default),
        Some(&[side]) => Some(side),
        Some(&[height, width]) if height == width => Some(height),
        Some(_) => None,
    };
    one.and_then(|side| usize::try_from(side).ok())
        .ok_or_else(|| {
            let value = value.unwrap_or_default();
            format!("`vision_config.{key}` is {value:?}, expected the side of a square")
        })
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
