//! The two sets of shapes of Gemma 3 (`tests/fixtures/make_gemma3.py`).

use std::ops::Deref;
use std::path::PathBuf;

use llava_sae_cpp::{ImageEmbeddings, ModelFiles, Picture, Prompt, Session};

use crate::fixture::{F32, temporary_root};
use crate::hook_points::convert_sae;
use crate::picture_set::{self, PictureSet};
use crate::rewritten::rewritten;

pub(crate) use crate::picture_set::{open, resid_post};

/// The site of the residual stream, as Gemma Scope 2's folder is called.
pub(crate) const RESID_POST: &str = "resid_post";
/// How the names of prompts end that are run with a short window.
const SHORT_WINDOW: &str = ", short window";

const FAMILY: &str = "gemma3";

/// A model, its projector and SAEs, and what transformers computes with them.
pub(crate) struct Set(PictureSet);

impl Deref for Set {
    type Target = PictureSet;

    fn deref(&self) -> &PictureSet {
        &self.0
    }
}

impl Set {
    pub(crate) fn small() -> Self {
        Self::named("3-layers")
    }

    pub(crate) fn named(name: &'static str) -> Self {
        Self(PictureSet::named(FAMILY, name))
    }

    pub(crate) fn all() -> [Self; 2] {
        ["3-layers", "5-layers"].map(Self::named)
    }

    /// How far logits, and rows at `hook_mlp_out`, may be from transformers' in f32. ggml looks GELUs up in a table of
    /// f16, and in the narrow layers of the second set that is 1.1e-3 there, in transformers too when it rounds GELUs
    /// as ggml does.
    pub(crate) fn bound(&self) -> f64 {
        match self.name {
            "3-layers" => F32,
            _ => 2.0 * F32,
        }
    }

    /// An SAE of Gemma Scope 2, at its own hook point or at another.
    pub(crate) fn sae(&self, site: &str, hook: Option<&str>) -> PathBuf {
        let folder = format!(
            "gemma-scope-2/{site}/layer_{}_width_16_l0_small",
            self.layers()[1]
        );
        let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
        let target = dir.keep().join("sae.gguf");
        convert_sae(&self.dir().join(folder), &target, hook);
        target
    }

    /// Its files, with an SAE of the residual stream after a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(self.sae(RESID_POST, Some(&resid_post(layer))))
    }

    pub(crate) fn files_with(&self, sae: PathBuf) -> ModelFiles {
        self.files_of(vec![sae])
    }

    /// Its files, as other tests use them.
    pub(crate) fn files(&self) -> ModelFiles {
        self.files_at(self.layers()[1])
    }

    /// The files with a sliding window that is shorter than an image.
    pub(crate) fn with_short_window(&self, files: ModelFiles) -> ModelFiles {
        let window = self.number("short_window") as u32;
        let model = rewritten(&files.model, &|parts| {
            parts.set("gemma3.attention.sliding_window", window);
        });
        ModelFiles { model, ..files }
    }

    /// The prompts' names: those of the model as it is, and those of one with a short window.
    pub(crate) fn cases(&self) -> [Vec<String>; 2] {
        let names = self.case_names().map(str::to_owned);
        let (short, whole) = names.partition(|name| name.ends_with(SHORT_WINDOW));
        [whole, short]
    }

    pub(crate) fn check_ids(&self, prompt: &Prompt, case: &str) {
        let ids = prompt.tokens().iter().map(|token| token.id);
        let soft_token = 7; // stands for the image's rows
        let expected = self.oracle.ids(&format!("{case}/prompt_ids")).into_iter();
        let expected = expected.map(|id| (id != soft_token).then_some(id));
        let shown = format!("{}, {case}", self.name);
        assert_eq!(
            ids.collect::<Vec<_>>(),
            expected.collect::<Vec<_>>(),
            "{shown}"
        );
    }
}

pub(crate) fn root() -> PathBuf {
    picture_set::root(FAMILY)
}

pub(crate) fn picture(name: &str) -> Picture {
    picture_set::picture(FAMILY, name)
}

pub(crate) fn image(session: &Session, name: &str) -> ImageEmbeddings {
    picture_set::image(session, FAMILY, name)
}
