//! Models with projectors of a family that sees, and what transformers computes with them: a folder a set of shapes.

use std::path::{Path, PathBuf};

use llava_sae_cpp::{
    ImageEmbeddings, ModelFiles, Picture, Prompt, PromptForm, Run, Session, SessionOptions,
};

use crate::fixture::Oracle;
use crate::hook_points::worst_row;

/// A model and its projector, and what transformers computes with them.
pub(crate) struct PictureSet {
    family: &'static str,
    pub(crate) name: &'static str,
    pub(crate) oracle: Oracle,
}

impl PictureSet {
    /// The set of this name in the folder of its family.
    pub(crate) fn named(family: &'static str, name: &'static str) -> Self {
        let oracle = Oracle::read(&root(family).join(name));
        Self {
            family,
            name,
            oracle,
        }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        root(self.family).join(self.name)
    }

    pub(crate) fn number(&self, key: &str) -> usize {
        self.oracle.json[key].as_u64().expect("a number") as usize
    }

    /// The layers at which runs are steered, and of which rows are known.
    pub(crate) fn layers(&self) -> [usize; 2] {
        [0, 1].map(|i| self.oracle.json["layers"][i].as_u64().expect("a number") as usize)
    }

    /// Its files, with these SAEs.
    pub(crate) fn files_of(&self, saes: Vec<PathBuf>) -> ModelFiles {
        ModelFiles {
            model: self.dir().join("model.gguf"),
            mmproj: Some(self.dir().join("mmproj.gguf")),
            saes,
        }
    }

    pub(crate) fn case(&self, name: &str) -> &serde_json::Value {
        &self.oracle.json["cases"][name]
    }

    /// The names of all prompts.
    pub(crate) fn case_names(&self) -> impl Iterator<Item = &str> {
        let cases = self.oracle.json["cases"].as_object().expect("an object");
        cases.keys().map(String::as_str)
    }

    pub(crate) fn prompt(&self, session: &Session, case_name: &str) -> Prompt {
        let case = self.case(case_name);
        let text = case["text"].as_str().expect("a text");
        let form = match case["form"].as_str() {
            Some("chat") => PromptForm::Chat,
            _ => PromptForm::Raw,
        };
        let pictures = case["pictures"].as_array().expect("a list").iter();
        let images: Vec<ImageEmbeddings> = pictures
            .map(|name| image(session, self.family, name.as_str().expect("a name")))
            .collect();
        let images: Vec<&ImageEmbeddings> = images.iter().collect();
        let prompt = session.prompt(text, form, &images);
        prompt.expect("it is tokenised")
    }

    /// The largest error of a row of the prompt at a hook point.
    pub(crate) fn row_error(&self, run: &Run, case: &str, hook: &str) -> f64 {
        let theirs = self.oracle.f32(&format!("{case}/{hook}/rows"));
        let width = theirs.len() / self.oracle.ids(&format!("{case}/prompt_ids")).len();
        worst_row(&run.trace.saes[0].residuals[..theirs.len()], &theirs, width)
    }
}

/// The folder of a family.
pub(crate) fn root(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(family)
}

pub(crate) fn picture(family: &str, name: &str) -> Picture {
    let path = root(family).join("pictures").join(format!("{name}.png"));
    Picture::open(&path).expect("a committed file")
}

pub(crate) fn image(session: &Session, family: &str, name: &str) -> ImageEmbeddings {
    let image = session.encode_image(&picture(family, name));
    image.expect("the picture is encoded")
}

pub(crate) fn resid_post(layer: usize) -> String {
    format!("blocks.{layer}.hook_resid_post")
}

pub(crate) fn open(files: &ModelFiles, options: SessionOptions) -> Session {
    Session::open(files, options).expect("it loads")
}
