//! The two sets of shapes of Gemma 3 (`tests/fixtures/make_gemma3.py`).

use std::path::{Path, PathBuf};

use llava_sae_cpp::{
    ImageEmbeddings, ModelFiles, Picture, Prompt, PromptForm, Run, Session, SessionOptions,
};

use crate::fixture::{F32, Oracle, temporary_root};
use crate::hook_points::{convert_sae, worst_row};
use crate::rewritten::rewritten;

/// The site of the residual stream, as Gemma Scope 2's folder is called.
pub(crate) const RESID_POST: &str = "resid_post";
/// How the names of prompts end that are run with a short window.
const SHORT_WINDOW: &str = ", short window";

/// A model, its projector and SAEs, and what transformers computes with them.
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) oracle: Oracle,
}

impl Set {
    pub(crate) fn small() -> Self {
        Self::named("3-layers")
    }

    pub(crate) fn named(name: &'static str) -> Self {
        let oracle = Oracle::read(&root().join(name));
        Self { name, oracle }
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

    pub(crate) fn number(&self, key: &str) -> usize {
        self.oracle.json[key].as_u64().expect("a number") as usize
    }

    /// The layers at which runs are steered, and of which rows are known.
    pub(crate) fn layers(&self) -> [usize; 2] {
        [0, 1].map(|i| self.oracle.json["layers"][i].as_u64().expect("a number") as usize)
    }

    /// An SAE of Gemma Scope 2, at its own hook point or at another.
    pub(crate) fn sae(&self, site: &str, hook: Option<&str>) -> PathBuf {
        let folder = format!(
            "gemma-scope-2/{site}/layer_{}_width_16_l0_small",
            self.layers()[1]
        );
        let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
        let target = dir.keep().join("sae.gguf");
        convert_sae(&root().join(self.name).join(folder), &target, hook);
        target
    }

    /// Its files, with an SAE of the residual stream after a layer.
    pub(crate) fn files_at(&self, layer: usize) -> ModelFiles {
        self.files_with(self.sae(RESID_POST, Some(&resid_post(layer))))
    }

    pub(crate) fn files_with(&self, sae: PathBuf) -> ModelFiles {
        let dir = root().join(self.name);
        ModelFiles {
            model: dir.join("model.gguf"),
            mmproj: Some(dir.join("mmproj.gguf")),
            saes: vec![sae],
        }
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

    pub(crate) fn case(&self, name: &str) -> &serde_json::Value {
        &self.oracle.json["cases"][name]
    }

    /// The prompts' names: those of the model as it is, and those of one with a short window.
    pub(crate) fn cases(&self) -> [Vec<String>; 2] {
        let cases = self.oracle.json["cases"].as_object().expect("an object");
        let names = cases.keys().cloned();
        let (short, whole) = names.partition(|name| name.ends_with(SHORT_WINDOW));
        [whole, short]
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

    /// The largest error of a row of the prompt at a hook point.
    pub(crate) fn row_error(&self, run: &Run, case: &str, hook: &str) -> f64 {
        let theirs = self.oracle.f32(&format!("{case}/{hook}/rows"));
        let width = theirs.len() / self.oracle.ids(&format!("{case}/prompt_ids")).len();
        worst_row(&run.trace.saes[0].residuals[..theirs.len()], &theirs, width)
    }
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma3")
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
