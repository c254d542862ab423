//! The projectors that images can go through.

use std::path::Path;

use super::model::{AddBos, Model};
use crate::chat::ImageToken;
use crate::{Error, ErrorKind, Result};

/// What stands between a vision encoder and a language model (`clip.projector_type` in GGUF files).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectorType {
    /// LLaVA's: CLIP and two linear layers.
    Mlp,
    /// Gemma 3's: SigLIP, whose patches are averaged, and one linear layer.
    Gemma3,
    /// Qwen2-VL's: a picture's own sides, patches of two frames, four of which become one row.
    Qwen2Vl,
    /// Qwen2.5-VL's: the same, with windows in most blocks.
    Qwen25Vl,
    /// Qwen3-VL's: with position embeddings, and rows that hold what blocks of the language model add (deepstack).
    Qwen3Vl,
}

impl ProjectorType {
    /// What stands before an image and behind it in a prompt's text, where the model has words of its own for that.
    pub(crate) fn markers(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Mlp => None,
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
            Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl => ImageToken {
                text: "<|vision_start|><|image_pad|><|vision_end|>",
                behind: "",
            },
        }
    }

    /// Checks that each of its markers is one token of the model's, where they are, since it would be spelled out
    /// otherwise; `path` is its file.
    ///
    /// # Errors
    /// A vocabulary without one.
    pub(crate) fn check_markers(self, model: &Model, path: &Path) -> Result<()> {
        let markers = self.markers().filter(|_| self.is_qwen());
        for marker in markers.into_iter().flatten() {
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

    /// Whether it is one of Qwen's, whose encoders take pictures with sides of their own.
    pub(crate) fn is_qwen(self) -> bool {
        matches!(self, Self::Qwen2Vl | Self::Qwen25Vl | Self::Qwen3Vl)
    }
}
