//! The sets of shapes of models that see pictures in tiles, SmolVLM, Idefics3 and InternVL
//! (`tests/fixtures/make_tiles.py`), converted.

use std::ops::Deref;

use llava_sae_cpp::{ImageEmbeddings, ModelFiles, Picture, Session};

use crate::families::converted_from;
use crate::hook_points::sae_at;
use crate::picture_set::{self, PictureSet};

pub(crate) use crate::picture_set::{open, resid_post, rows};

const FAMILY: &str = "tiles";

/// A model and its projector, and what transformers computes with them.
pub(crate) struct Set(PictureSet);

impl Deref for Set {
    type Target = PictureSet;

    fn deref(&self) -> &PictureSet {
        &self.0
    }
}

impl Set {
    pub(crate) fn named(name: &'static str) -> Self {
        Self(PictureSet::named(FAMILY, name))
    }

    /// Two of each way to cut; nothing was fitted to the second.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let names = ["smolvlm", "idefics3", "internvl-qwen2", "internvl-qwen3"];
        names.into_iter().map(Self::named)
    }

    /// Whether tiles have text between them.
    pub(crate) fn has_tags(&self) -> bool {
        !self.name.starts_with("internvl")
    }

    /// The rows and columns of a picture's tiles; none where it is one.
    pub(crate) fn tiles(&self, picture: &str) -> [usize; 2] {
        let tiles = self.oracle.json["tiles"][picture].clone();
        serde_json::from_value(tiles).expect("two numbers")
    }

    /// Its files, with an SAE at a hook point, whose rows are of `width`.
    pub(crate) fn files_with(&self, hook: &str, width: usize) -> ModelFiles {
        let made = converted_from(&self.dir());
        ModelFiles {
            model: made.model.expect("it is one that is converted"),
            mmproj: made.mmproj,
            saes: vec![sae_at(hook, width)],
        }
    }

    /// Its files, with an SAE of the residual stream behind a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(&resid_post(layer), self.number("d_model"))
    }
}

pub(crate) fn picture(name: &str) -> Picture {
    picture_set::picture(FAMILY, name)
}

pub(crate) fn image(session: &Session, name: &str) -> ImageEmbeddings {
    picture_set::image(session, FAMILY, name)
}
