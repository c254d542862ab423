//! `config.json` and `preprocessor_config.json` of a LLaVA-Gemma checkpoint, checked once.
//!
//! Published configs are abbreviated: a key that is missing takes the default that transformers
//! gives its `model_type` (`GemmaConfig`, `CLIPVisionConfig`, `LlavaConfig`, versions 4.38 to 5.x).
//! What llama.cpp's graphs cannot compute is refused here, so that a [`Config`] can be converted.

mod checks;
mod preprocessor;
mod text;
mod vision;

use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use self::checks::expect;
use self::preprocessor::read_preprocessor;
use self::text::RawText;
use self::vision::RawVision;
use crate::json_file::read_json;
use crate::{Error, Result};

pub(super) use self::checks::OneOrSeveral;
pub(super) use self::text::{OutputMatrix, TextConfig};
pub(super) use self::vision::{VisionActivation, VisionConfig};

/// What a checkpoint says about itself.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) text: TextConfig,
    pub(super) vision: VisionConfig,
    pub(super) projector_bias: ProjectorBias,
    /// The token that stands for an image in a prompt.
    pub(super) image_token_id: usize,
}

/// Whether the projector's two layers have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProjectorBias {
    Present,
    Absent,
}

impl Config {
    /// Reads and checks the configuration of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A missing or malformed file, and every setting that llama.cpp cannot compute.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let raw: RawConfig = read_json(&path)?;
        let refuse = |what: String| Error::invalid(format!("`{}`: {what}", path.display()));

        raw.refuse_llavas_own().map_err(|what| {
            refuse(what).with_hint(
                "use the model's Hugging Face conversion, whose name often ends in `-hf`",
            )
        })?;
        expect(&raw.model_type, "model_type", "(none)", &["llava"]).map_err(refuse)?;
        expect(
            &raw.vision_feature_select_strategy,
            "vision_feature_select_strategy",
            "default",
            &["default"],
        )
        .map_err(refuse)?;
        expect(
            &raw.projector_hidden_act,
            "projector_hidden_act",
            "gelu",
            &["gelu"],
        )
        .map_err(refuse)?;

        let text = raw
            .text_config
            .unwrap_or_default()
            .check(raw.tie_word_embeddings)
            .map_err(refuse)?;
        let mut vision = raw
            .vision_config
            .unwrap_or_else(RawVision::of_llava)
            .check(raw.vision_feature_layer.unwrap_or(OneOrSeveral::One(-2)))
            .map_err(refuse)?;
        read_preprocessor(dir, &mut vision)?;

        let image_token_id = raw.image_token_index.or(raw.image_token_id);
        let image_token_id = image_token_id.map_or(32000, i64::unsigned_abs) as usize;
        if image_token_id >= text.vocab_size {
            return Err(refuse(format!(
                "`image_token_index` is {image_token_id}, `vocab_size` is only {}",
                text.vocab_size
            )));
        }
        Ok(Self {
            text,
            vision,
            projector_bias: match raw.multimodal_projector_bias {
                Some(false) => ProjectorBias::Absent,
                _ => ProjectorBias::Present,
            },
            image_token_id,
        })
    }
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    text_config: Option<RawText>,
    vision_config: Option<RawVision>,
    projector_hidden_act: Option<String>,
    multimodal_projector_bias: Option<bool>,
    vision_feature_layer: Option<OneOrSeveral>,
    vision_feature_select_strategy: Option<String>,
    image_token_index: Option<i64>,
    image_token_id: Option<i64>,
    tie_word_embeddings: Option<bool>,
    /// The vision tower in the configs of LLaVA's own code.
    mm_vision_tower: Option<IgnoredAny>,
}

impl RawConfig {
    /// Checks that the config is not one of LLaVA's own code (github.com/haotian-liu/LLaVA), which
    /// names and splits weights in another way. There -200 marks an image's place among the tokens
    /// (`IMAGE_TOKEN_INDEX` in `llava/constants.py`).
    fn refuse_llavas_own(&self) -> std::result::Result<(), String> {
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
            _ if self.mm_vision_tower.is_some() => Err(
                "it has `mm_vision_tower`: the folder is in the form of LLaVA's own code"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}
