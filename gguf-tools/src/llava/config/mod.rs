//! `config.json` and `preprocessor_config.json` of a checkpoint, checked once.
//!
//! Published configs are abbreviated: a key that is missing takes the default that transformers
//! gives its `model_type` (`LlavaConfig`, `LlavaNextConfig`, `Gemma3Config`, `Gemma4Config` and those of their
//! parts, versions 4.38 to 5.x). What llama.cpp's graphs cannot compute is refused here, so that a [`Config`]
//! can be converted.

mod checks;
mod gemma4;
mod gemma4_vision;
mod preprocessor;
mod rope;
mod text;
mod text_family;
mod tiles;
mod vision;

use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use self::checks::{expect, in_range};
use self::gemma4_vision::RawGemma4Vision;
use self::preprocessor::read_preprocessor;
use self::text::RawText;
use self::vision::RawVision;
use crate::json_file::read_json;
use crate::{Error, Result};

pub(super) use self::checks::OneOrSeveral;
pub(super) use self::gemma4::Gemma4;
pub(super) use self::gemma4_vision::Pooler;
pub(super) use self::rope::RopeScaling;
pub(super) use self::text::{OutputMatrix, Text, TextConfig};
pub(super) use self::text_family::Architecture;
pub(super) use self::tiles::Tiles;
pub(super) use self::vision::{Tower, VisionActivation, VisionConfig};

/// What a checkpoint says about itself.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) family: Family,
    pub(super) text: Text,
    /// What sees; `None` where the language model alone is converted.
    pub(super) sight: Option<Sight>,
    /// The token that stands for an image in a prompt.
    pub(super) image_token_id: usize,
}

/// A vision tower, and what stands between it and the language model.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) vision: VisionConfig,
    pub(super) projector: Projector,
}

/// A `model_type` of vision-language models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llava,
    LlavaNext,
    Gemma3,
    Idefics3,
    SmolVlm,
    InternVl,
    Gemma4,
}

/// What stands between the vision tower and the language model.
#[derive(Debug)]
pub(super) enum Projector {
    /// LLaVA's two linear layers, with the tiles that a picture is cut into, if it is.
    Mlp {
        bias: ProjectorBias,
        tiles: Option<Tiles>,
    },
    /// Gemma 3's: the average of `pool` × `pool` patches, a norm, and one matrix.
    Gemma3 { pool: usize },
    /// Idefics3's and SmolVLM's: `merge` × `merge` patches side by side, and one matrix; pictures are scaled to that
    /// longest side, and cut into tiles.
    Idefics3 { merge: usize, longest_edge: usize },
    /// InternVL's: `merge` × `merge` patches side by side, a norm, and two linear layers; pictures are cut into so many
    /// tiles, at least and at most.
    InternVl { merge: usize, n_tiles: [usize; 2] },
    /// Gemma 4's: the average of patches, and one matrix.
    Gemma4(Pooler),
}

/// Whether the projector's two layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProjectorBias {
    Present,
    Absent,
}

impl Family {
    const ALL: [Self; 7] = [
        Self::Llava,
        Self::LlavaNext,
        Self::Gemma3,
        Self::Gemma4,
        Self::Idefics3,
        Self::SmolVlm,
        Self::InternVl,
    ];

    fn model_type(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::LlavaNext => "llava_next",
            Self::Gemma3 => "gemma3",
            Self::Idefics3 => "idefics3",
            Self::SmolVlm => "smolvlm",
            Self::InternVl => "internvl",
            Self::Gemma4 => "gemma4",
        }
    }

    /// The `model_type` of a language model that has none.
    fn default_text(self) -> &'static str {
        match self {
            Self::Llava | Self::LlavaNext | Self::Idefics3 | Self::SmolVlm => "llama",
            Self::Gemma3 => "gemma3_text",
            Self::InternVl => "qwen2",
            Self::Gemma4 => "gemma4_text",
        }
    }

    fn default_image_token(self) -> usize {
        match self {
            Self::Llava | Self::LlavaNext => 32_000,
            Self::Gemma3 => 262_144,
            Self::Idefics3 | Self::SmolVlm => 128_257,
            Self::InternVl => 151_667,
            Self::Gemma4 => 258_880,
        }
    }
}

impl Config {
    /// Reads and checks the configuration of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A missing or malformed file, and every setting that llama.cpp cannot compute.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let mut raw: RawConfig = read_json(&path)?;
        let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));

        raw.refuse_own_forms().map_err(|what| {
            refuse(what).with_hint(
                "use the model's Hugging Face conversion, whose name often ends in `-hf`",
            )
        })?;
        let family = raw.family().map_err(|what| {
            refuse(what).with_hint(
                "llama.cpp's `convert_hf_to_gguf.py` converts other models, and their projectors",
            )
        })?;
        let text = raw.text(family).map_err(|what| {
            refuse(what).with_hint(
                "if the setting is right, take a published GGUF file of the language model, \
                 or convert it with llama.cpp's `convert_hf_to_gguf.py`",
            )
        })?;
        let mut config = raw.check(family, text).map_err(refuse)?;
        if let Some(sight) = &mut config.sight {
            read_preprocessor(dir, family, sight)?;
            if let Projector::Gemma4(pooler) = &sight.projector {
                pooler.check_positions().map_err(refuse)?;
            }
        }
        Ok(config)
    }

    /// The same with its article.
    pub(super) fn one(&self) -> String {
        let name = self.name();
        let article = match name.starts_with(['A', 'E', 'I', 'O', 'U']) {
            true => "an",
            false => "a",
        };
        format!("{article} {name}")
    }

    /// What such models are called.
    pub(super) fn name(&self) -> &'static str {
        match (self.family, &self.text) {
            (Family::Llava, Text::Known(text)) if text.architecture == Architecture::Gemma => {
                "LLaVA-Gemma"
            }
            (Family::Llava, _) => "LLaVA",
            (Family::LlavaNext, _) => "LLaVA-NeXT",
            (Family::Gemma3, _) => "Gemma 3",
            (Family::Idefics3, _) => "Idefics3",
            (Family::SmolVlm, _) => "SmolVLM",
            (Family::InternVl, _) => "InternVL",
            (Family::Gemma4, _) => "Gemma 4",
        }
    }
}

/// The vision tower's part, if there is one.
fn vision_of<T: DeserializeOwned>(part: Option<Value>) -> std::result::Result<Option<T>, String> {
    let malformed = |error| format!("`vision_config`: {error}");
    part.map(|part| serde_json::from_value(part).map_err(malformed))
        .transpose()
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    text_config: Option<RawText>,
    /// Read by family.
    vision_config: Option<Value>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
    vision_feature_layer: Option<OneOrSeveral>,
    vision_feature_select_strategy: Option<String>,
    image_grid_pinpoints: Option<Vec<Vec<usize>>>,
    /// Rows of an image of Gemma 3.
    mm_tokens_per_image: Option<usize>,
    /// Patches a side that Idefics3 lays side by side.
    scale_factor: Option<usize>,
    /// What a side of InternVL's grid is multiplied by.
    downsample_ratio: Option<f64>,
    image_token_index: Option<i64>,
    image_token_id: Option<i64>,
    tie_word_embeddings: Option<bool>,
    /// The vision tower in the configs of LLaVA's own code.
    mm_vision_tower: Option<IgnoredAny>,
}

impl RawConfig {
    fn text(&mut self, family: Family) -> std::result::Result<Text, String> {
        let text = self.text_config.take().unwrap_or_default();
        text.check(family.default_text(), self.tie_word_embeddings)
    }

    fn check(self, family: Family, text: Text) -> std::result::Result<Config, String> {
        let image_token_id = self.image_token_index.or(self.image_token_id);
        let image_token_id = image_token_id.map_or(family.default_image_token(), |id| {
            id.unsigned_abs() as usize
        });
        if let Text::Known(text) = &text
            && image_token_id >= text.vocab_size
        {
            return Err(format!(
                "`image_token_index` is {image_token_id}, `vocab_size` is only {}",
                text.vocab_size
            ));
        }
        let sight = match family {
            Family::Llava | Family::LlavaNext => Some(self.llava(family)?),
            Family::Gemma3 => Some(self.gemma3()?),
            Family::Idefics3 | Family::SmolVlm => Some(self.idefics3()?),
            Family::InternVl => Some(self.internvl()?),
            Family::Gemma4 => {
                let vision: Option<RawGemma4Vision> = vision_of(self.vision_config)?;
                vision.map(RawGemma4Vision::check).transpose()?
            }
        };
        Ok(Config {
            family,
            text,
            sight: sight.map(|(vision, projector)| Sight { vision, projector }),
            image_token_id,
        })
    }

    fn family(&self) -> std::result::Result<Family, String> {
        let name = self.model_type.as_deref().unwrap_or("(none)");
        let found = Family::ALL
            .into_iter()
            .find(|family| family.model_type() == name);
        found.ok_or_else(|| {
            let supported = Family::ALL.map(Family::model_type).join("`, `");
            format!("`model_type` is `{name}`, supported: `{supported}`")
        })
    }

    /// Checks what LLaVA and InternVL alike say of the way from the tower to the language model.
    fn check_connection(&self) -> std::result::Result<(), String> {
        for (value, key, supported) in [
            (
                &self.vision_feature_select_strategy,
                "vision_feature_select_strategy",
                "default",
            ),
            (&self.projector_hidden_act, "projector_hidden_act", "gelu"),
        ] {
            expect(value, key, supported, &[supported])?;
        }
        Ok(())
    }

    fn llava(self, family: Family) -> std::result::Result<(VisionConfig, Projector), String> {
        self.check_connection()?;
        let vision = vision_of(self.vision_config)?
            .unwrap_or_else(RawVision::of_llava)
            .check_clip(self.vision_feature_layer.unwrap_or(OneOrSeveral::One(-2)))?;
        let tiles = match family {
            Family::LlavaNext => Some(Tiles::check(self.image_grid_pinpoints, vision.image_size)?),
            _ => None,
        };
        let bias = match self.multimodal_projector_bias {
            Some(false) => ProjectorBias::Absent,
            _ => ProjectorBias::Present,
        };
        Ok((vision, Projector::Mlp { bias, tiles }))
    }

    /// `Gemma3MultiModalProjector` of transformers.
    fn gemma3(self) -> std::result::Result<(VisionConfig, Projector), String> {
        let vision: RawVision = vision_of(self.vision_config)?.unwrap_or_default();
        let vision = vision.check_siglip()?;
        let n_rows = self.mm_tokens_per_image.unwrap_or(256);
        in_range("mm_tokens_per_image", n_rows, vision.grid().pow(2))?;
        let (side, grid) = (n_rows.isqrt(), vision.grid());
        if side * side != n_rows || !grid.is_multiple_of(side) {
            return Err(format!(
                "`mm_tokens_per_image` is {n_rows}, expected a square that {grid} × {grid} patches can be averaged to"
            ));
        }
        Ok((vision, Projector::Gemma3 { pool: grid / side }))
    }

    /// `Idefics3Connector` of transformers.
    fn idefics3(self) -> std::result::Result<(VisionConfig, Projector), String> {
        let vision: RawVision = vision_of(self.vision_config)?.unwrap_or_default();
        let vision = vision.check_idefics3()?;
        let merge = self.scale_factor.unwrap_or(2);
        check_merge("scale_factor", merge, &vision)?;
        // As in all published checkpoints, unless the preprocessor says otherwise.
        let longest_edge = 4 * vision.image_size;
        Ok((
            vision,
            Projector::Idefics3 {
                merge,
                longest_edge,
            },
        ))
    }

    /// `InternVLModel` of transformers.
    fn internvl(self) -> std::result::Result<(VisionConfig, Projector), String> {
        self.check_connection()?;
        let vision: RawVision = vision_of(self.vision_config)?.unwrap_or_default();
        let vision = vision.check_intern_vit()?;
        let layers = self.vision_feature_layer.as_ref();
        let layers = layers.map_or(&[-1][..], OneOrSeveral::as_slice);
        if layers != [-1] {
            return Err(format!(
                "`vision_feature_layer` is {layers:?}, supported: -1"
            ));
        }
        let ratio = self.downsample_ratio.unwrap_or(0.5);
        let merge = (1.0 / ratio) as usize;
        if merge as f64 * ratio != 1.0 {
            return Err(format!(
                "`downsample_ratio` is {ratio}, expected one by a whole number"
            ));
        }
        check_merge("downsample_ratio", merge, &vision)?;
        let n_tiles = [1, 12];
        Ok((vision, Projector::InternVl { merge, n_tiles }))
    }

    /// Checks that the config is not one of LLaVA's own code (github.com/haotian-liu/LLaVA) or of InternVL's, which
    /// name and split weights in another way. There -200 marks an image's place among the tokens
    /// (`IMAGE_TOKEN_INDEX` in `llava/constants.py`).
    fn refuse_own_forms(&self) -> std::result::Result<(), String> {
        const TYPES: [&str; 5] = [
            "llava_gemma",
            "llava_llama",
            "llava_mistral",
            "llava_mpt",
            "llava_qwen",
        ];
        for (key, id) in [
            ("image_token_index", self.image_token_index),
            ("image_token_id", self.image_token_id),
        ] {
            if let Some(id) = id.filter(|&id| id < 0) {
                return Err(format!(
                    "`{key}` is {id}, which is not a token: LLaVA's own code marks the place of an image with it"
                ));
            }
        }
        match self.model_type.as_deref() {
            Some(name) if TYPES.contains(&name) => Err(format!(
                "`model_type` is `{name}`: the folder is in the form of LLaVA's own code"
            )),
            Some(name @ "internvl_chat") => Err(format!(
                "`model_type` is `{name}`: the folder is in the form of InternVL's own code"
            )),
            _ if self.mm_vision_tower.is_some() => Err(
                "it has `mm_vision_tower`: the folder is in the form of LLaVA's own code"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

/// Checks that a grid of patches can be laid together by `merge` a side.
fn check_merge(key: &str, merge: usize, vision: &VisionConfig) -> std::result::Result<(), String> {
    let grid = vision.grid();
    if merge > 1 && grid.is_multiple_of(merge) {
        return Ok(());
    }
    Err(format!(
        "`{key}` lays {merge} × {merge} patches side by side, expected at least 2 and a divisor of the {grid} a side"
    ))
}
