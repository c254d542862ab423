//! Pictures to image rows, by the way of their projector.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chat::ImageToken;
use crate::llama::{Model, VisionOptions};
use crate::model::SessionOptions;
use crate::model::files::CheckedProjector;
use crate::picture::ImagePrep;
use crate::picture::Picture;
use crate::picture::cache::ImageCache;
use crate::picture::corrected_encoder::ImageEncoder;
use crate::picture::plain_encoder::PlainEncoder;
use crate::prompt::ImageEmbeddings;
use crate::run::TryShortcuts;
use crate::{Error, ErrorKind, Result};

/// What makes image rows of pictures.
pub(crate) enum PictureEncoder {
    /// What llama.cpp does is put right.
    Corrected(Box<ImageEncoder>),
    /// All is as llama.cpp does it.
    Plain(PlainEncoder),
}

impl PictureEncoder {
    /// An encoder of the checked file at `path`, for `model`.
    ///
    /// # Errors
    /// A way to prepare pictures that is not the projector's.
    pub(crate) fn new(
        path: PathBuf,
        projector: CheckedProjector,
        model: Arc<Model>,
        settings: VisionSettings,
    ) -> Result<Self> {
        Ok(match projector {
            CheckedProjector::Compared(shape) => {
                let encoder = ImageEncoder::new(path, shape, model, settings)?;
                Self::Corrected(Box::new(encoder))
            }
            CheckedProjector::Other(edits) => {
                ImagePrep::of(&[], settings.image_prep)?;
                Self::Plain(PlainEncoder::new(path, edits, model, settings.options))
            }
        })
    }

    /// What the model's chat templates write for an image, where that is known.
    pub(crate) fn image_token(&self) -> Option<ImageToken> {
        match self {
            Self::Corrected(encoder) => Some(encoder.image_token()),
            Self::Plain(_) => None,
        }
    }

    /// Gives a picture's embeddings.
    pub(crate) fn encode(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        match self {
            Self::Corrected(encoder) => encoder.encode(picture),
            Self::Plain(encoder) => encoder.encode(picture),
        }
    }

    /// Loads the projector, where that was not done yet.
    pub(crate) fn load(&self) -> Result<()> {
        match self {
            Self::Corrected(encoder) => encoder.load(),
            Self::Plain(encoder) => encoder.load(),
        }
    }
}

/// How pictures are encoded.
#[derive(Clone, Debug)]
pub(crate) struct VisionSettings {
    pub(super) options: VisionOptions,
    pub(super) image_prep: Option<ImagePrep>,
    pub(super) image_cache: Option<ImageCache>,
    pub(super) try_shortcuts: TryShortcuts,
}

impl VisionSettings {
    pub(crate) fn new(options: &SessionOptions) -> Self {
        Self {
            options: VisionOptions {
                use_gpu: options.gpu_layers != 0,
                threads: options.threads,
                flash_attention: options.flash_attention,
                vision_graph: options.vision_graph,
            },
            image_prep: options.image_prep,
            image_cache: options.image_cache.clone(),
            try_shortcuts: options.try_shortcuts,
        }
    }
}

/// The error for rows that are not numbers.
pub(super) fn not_numbers(projector: &Path) -> Error {
    Error::invalid(format!(
        "the image rows of the projector `{}` are not numbers",
        projector.display()
    ))
    .of_kind(ErrorKind::Damaged)
    .with_hint("the file is damaged: download or convert it again")
}
