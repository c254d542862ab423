//! The sets of shapes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (`tests/fixtures/make_qwen.py`).

use std::ops::Deref;

use llava_sae_cpp::ModelFiles;

use crate::hook_points::sae_at;
use crate::picture_set::PictureSet;

pub(crate) use crate::picture_set::{open, resid_post};

const FAMILY: &str = "qwen";

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

    /// Nothing was fitted to the second of each.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let names = [
            "qwen2vl-a",
            "qwen2vl-b",
            "qwen2.5vl-a",
            "qwen2.5vl-b",
            "qwen3vl-a",
            "qwen3vl-b",
        ];
        names.into_iter().map(Self::named)
    }

    /// Its files, with an SAE at a hook point, whose rows are of `width`.
    pub(crate) fn files_with(&self, hook: &str, width: usize) -> ModelFiles {
        self.files_of(vec![sae_at(hook, width)])
    }

    /// Its files, with an SAE of the residual stream behind a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(&resid_post(layer), self.number("d_model"))
    }
}
