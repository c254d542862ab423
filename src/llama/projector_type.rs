//! The projectors that images can go through.

use std::path::Path;

use super::model::{AddBos, Model};
use crate::chat::ImageToken;
use crate::{Error, ErrorKind, Result};

/// What stands around each image and each part of one, in Idefics3's prompts.
pub(crate) const FAKE_TOKEN: &str = "<fake_token_around_image>";

/// What stands around Gemma 4's images (`replace_image_token` in transformers' `processing_gemma4.py`).
const GEMMA_4: [&str; 2] = ["<|image>", "<image|>"];

/// What stands around InternVL's images.
const INTERN_VL: [&str; 2] = ["<img>", "</img>"];

/// What stands between a vision encoder and a language model (`clip.projector_type` in GGUF files).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectorType {
    /// LLaVA's: CLIP and two linear layers.
    Mlp,
    /// Gemma 3's: SigLIP, whose patches are averaged, and one linear layer.
    Gemma3,
    /// Gemma 4's: a picture's own sides, gated blocks, patches that are averaged, and one linear layer.
    Gemma4,
    /// Qwen2-VL's: a picture's own sides, patches of two frames, four of which become one row.
    Qwen2Vl,
    /// Qwen2.5-VL's: the same, with windows in most blocks.
    Qwen25Vl,
    /// Qwen3-VL's: with position embeddings, and rows that hold what blocks of the language model add (deepstack).
    Qwen3Vl,
    /// Idefics3's and SmolVLM's: SigLIP, squares of whose patches are laid side by side, and one linear layer.
    Idefics3,
    /// InternVL's: a class row, squares of patches laid side by side, a norm, and two linear layers.
    InternVl,
}

impl ProjectorType {
    /// What stands before an image and behind it in a prompt's text, where the model has words of its own for that.
    pub(crate) fn markers(self) -> Option<[&'static str; 2]> {
        match self {
            // Idefics3's depend on how a picture is cut.
            Self::Mlp | Self::Idefics3 => None,
            // `_insert_media_placeholders` in transformers' `processing_internvl.py`.
            Self::InternVl => Some(INTERN_VL),
            Self::Gemma4 => Some(GEMMA_4),
            // `full_image_sequence` in transformers' `processing_gemma3.py`.
            Self::Gemma3 => Some(["\n\n<start_of_image>", "<end_of_image>\n\n"]),
            // The published chat templates.
            Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl => {
                Some(["<|vision_start|>", "<|vision_end|>"])
            }
        }
    }

    /// What the model's chat templates write for an image.
    pub(crate) fn image_token(self) -> ImageToken {
        match self {
            Self::Mlp => ImageToken::LLAVA,
            Self::Gemma3 => ImageToken {
                text: "<start_of_image>",
                behind: "",
            },
            Self::Gemma4 => ImageToken {
                text: "<|image|>",
                behind: "",
            },
            Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl => ImageToken {
                text: "<|vision_start|><|image_pad|><|vision_end|>",
                behind: "",
            },
            // A text of one message has a line end behind it, as in its own code.
            Self::InternVl => ImageToken {
                text: "<IMG_CONTEXT>",
                behind: "\n",
            },
            Self::Idefics3 => ImageToken {
                text: "<image>",
                behind: "",
            },
        }
    }

    /// Of what stands around images, what published models have one token for. Idefics3 spells the rest out, and
    /// SmolVLM does not.
    fn marker_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Mlp | Self::Gemma3 => &[],
            Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl => {
                &["<|vision_start|>", "<|vision_end|>"]
            }
            Self::Idefics3 => &[FAKE_TOKEN],
            Self::Gemma4 => &GEMMA_4,
            Self::InternVl => &INTERN_VL,
        }
    }

    /// Checks that these are one token of the model's each, since they would be spelled out otherwise; `path` is its
    /// file.
    ///
    /// # Errors
    /// A vocabulary without one.
    pub(crate) fn check_markers(self, model: &Model, path: &Path) -> Result<()> {
        for marker in self.marker_tokens() {
            let ids = model.tokenize(marker, AddBos::No);
            if ids.is_ok_and(|ids| ids.len() == 1) {
                continue;
            }
            let what = format!(
                "the model's vocabulary has no token `{marker}`, which stands at images for `{}`",
                path.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("the projector belongs to another model"));
        }
        Ok(())
    }

    /// Whether it is one of Qwen's.
    pub(crate) fn is_qwen(self) -> bool {
        matches!(self, Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl)
    }

    /// Whether its encoder takes pictures with sides of their own.
    pub(crate) fn takes_own_sides(self) -> bool {
        self.is_qwen() || self == Self::Gemma4
    }
}
