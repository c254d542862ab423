//! What a probe's child does, step by step, and what it reports.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::model::files::ModelFiles;

/// What to do about a file that fails in one.
pub(super) const DAMAGED: &str =
    "the file is damaged or of an unknown kind: fetch or convert it again";

/// A step of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    CheckSae,
    LoadModel,
    ReadText,
    RunToken,
    ComputeFeatures,
    LoadProjector,
    EncodeImage,
    RunImage,
}

impl Stage {
    /// In words, behind "while".
    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::CheckSae => "checking the SAE",
            Self::LoadModel => "loading the language model",
            Self::ReadText => "reading a text",
            Self::RunToken => "running a token",
            Self::ComputeFeatures => "computing features",
            Self::LoadProjector => "loading the projector",
            Self::EncodeImage => "encoding an image",
            Self::RunImage => "running an image's rows",
        }
    }

    /// The file that is to blame where it fails.
    pub(super) fn file(self, files: &ModelFiles) -> &Path {
        match self {
            Self::CheckSae | Self::ComputeFeatures => files.saes.first().unwrap_or(&files.model),
            Self::LoadModel | Self::ReadText | Self::RunToken => &files.model,
            Self::LoadProjector | Self::EncodeImage | Self::RunImage => {
                files.mmproj.as_deref().unwrap_or(&files.model)
            }
        }
    }
}

/// A line on a child's stdout.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// This begins.
    Stage(Stage),
    /// An error, as a session would give it.
    Refused(Error),
    /// All went well.
    Passed,
}
