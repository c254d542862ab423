//! The sets of shapes of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (`tests/fixtures/make_qwen.py`).

use std::path::{Path, PathBuf};

use llava_sae_cpp::{
    ImageEmbeddings, ModelFiles, Picture, Prompt, PromptForm, Run, Session, SessionOptions,
};

use crate::fixture::Oracle;
use crate::hook_points::{sae_at, worst_row};

/// A model and its projector, and what transformers computes with them.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) oracle: Oracle,
}

impl Set {
    pub(crate) fn named(name: &'static str) -> Self {
        let oracle = Oracle::read(&root().join(name));
        Self { name, oracle }
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

    pub(crate) fn number(&self, key: &str) -> usize {
        self.oracle.json[key].as_u64().expect("a number") as usize
    }

    /// The layers at which runs are steered, and of which rows are known.
    pub(crate) fn layers(&self) -> [usize; 2] {
        [0, 1].map(|i| self.oracle.json["layers"][i].as_u64().expect("a number") as usize)
    }

    /// The rows and columns of a picture's image rows.
    pub(crate) fn grid(&self, picture: &str) -> [usize; 2] {
        let grid = self.oracle.json["grids"][picture].clone();
        serde_json::from_value(grid).expect("two numbers")
    }

    pub(crate) fn dir(&self) -> PathBuf {
        root().join(self.name)
    }

    /// Its files, with an SAE at a hook point, whose rows are of `width`.
    pub(crate) fn files_with(&self, hook: &str, width: usize) -> ModelFiles {
        ModelFiles {
            model: self.dir().join("model.gguf"),
            mmproj: Some(self.dir().join("mmproj.gguf")),
            saes: vec![sae_at(hook, width)],
        }
    }

    /// Its files, with an SAE of the residual stream behind a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(&resid_post(layer), self.number("d_model"))
    }

    pub(crate) fn case(&self, name: &str) -> &serde_json::Value {
        &self.oracle.json["cases"][name]
    }

    /// The prompts' names.
    pub(crate) fn cases(&self) -> Vec<&str> {
        let cases = self.oracle.json["cases"].as_object().expect("an object");
        cases.keys().map(String::as_str).collect()
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
            .map(|name| image(session, name.as_str().expect("a name")))
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

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen")
}

pub(crate) fn resid_post(layer: usize) -> String {
    format!("blocks.{layer}.hook_resid_post")
}

pub(crate) fn picture(name: &str) -> Picture {
    let path = root().join("pictures").join(format!("{name}.png"));
    Picture::open(&path).expect("a committed file")
}

pub(crate) fn image(session: &Session, name: &str) -> ImageEmbeddings {
    let image = session.encode_image(&picture(name));
    image.expect("the picture is encoded")
}

pub(crate) fn open(files: &ModelFiles, options: SessionOptions) -> Session {
    Session::open(files, options).expect("it loads")
}
