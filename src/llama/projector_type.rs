//! The projectors that images can go through.

use crate::chat::ImageToken;

/// What stands between a vision encoder and a language model (`clip.projector_type` in GGUF files).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectorType {
    /// LLaVA's: CLIP and two linear layers.
    Mlp,
    /// Gemma 3's: SigLIP, whose patches are averaged, and one linear layer.
    Gemma3,
}

impl ProjectorType {
    /// What stands before an image and behind it in a prompt's text, where the model has words of its own for that.
    pub(crate) fn markers(self) -> Option<[&'static str; 2]> {
        match self {
            Self::Mlp => None,
            // `full_image_sequence` in transformers' `processing_gemma3.py`.
            Self::Gemma3 => Some(["\n\n<start_of_image>", "<end_of_image>\n\n"]),
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
        }
    }
}
