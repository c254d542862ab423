//! The sets of shapes of Gemma 4 with pictures (`tests/fixtures/make_gemma4_pictures.py`): projectors for the language
//! models of `gemma4.rs`.

use std::ops::Deref;

use llava_sae_cpp::ModelFiles;

use crate::fixture::bound;
use crate::hook_points::sae_at;
use crate::picture_set::{PictureSet, resid_post, root};

pub(crate) const FAMILY: &str = "gemma4_pictures";

/// As without pictures (`gemma4::ROWS`), but image rows have many more GELUs of which one may be rounded the other way: in
/// transformers, where GELUs are rounded so too, weights that move by 10⁻⁷ move a row by up to 6e-3, and logits by 8e-4.
const LANGUAGE_MODEL: f64 = bound(1e-2, 3e-2, 3e-2);

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
        Self(PictureSet {
            language_model: LANGUAGE_MODEL,
            ..PictureSet::named(FAMILY, name)
        })
    }

    /// Nothing was fitted to the second of each kind.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let names = ["dense-a", "dense-b", "shared-a", "shared-b", "experts-a"];
        names.into_iter().map(Self::named)
    }

    /// Whether image rows see only those before, as in E2B and E4B.
    pub(crate) fn is_causal(&self) -> bool {
        self.name.starts_with("shared")
    }

    /// Its files, with an SAE at a hook point, whose rows are of `width`.
    pub(crate) fn files_with(&self, hook: &str, width: usize) -> ModelFiles {
        ModelFiles {
            model: root("gemma4").join(format!("{}.gguf", self.name)),
            ..self.files_of(vec![sae_at(hook, width)])
        }
    }

    /// Its files, with an SAE of the residual stream behind a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(&resid_post(layer), self.number("d_model"))
    }
}
