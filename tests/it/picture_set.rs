//! Models with projectors of a family that sees, and what transformers computes with them: a folder a set of shapes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    ImageEmbeddings, Keep, ModelFiles, Picture, Prompt, PromptForm, PromptStore, Run, RunOptions,
    Session, SessionOptions, VisionGraph,
};

use crate::fixture::{
    IMAGE_EMBEDDINGS, ON_DEVICE, Oracle, bound, everything, exact_options, relative_error, steering,
};
use crate::hook_points::{with_ubatch, worst_row};
use crate::oracle::{NEAR_THRESHOLD, check_activations_near};

/// The pictures of Qwen's sets and of those that see in tiles.
pub(crate) const PICTURES: [&str; 7] = [
    "square", "wide", "tall", "tiny", "multiple", "strip", "huge",
];
/// The prompts of which rows at one site are known (`ROWS_CASES` in `picture_runs.py`).
const ROWS_CASES: [&str; 3] = ["wide", "two", "text"];
/// The prompt of which rows at every site are known.
const SITES_CASE: &str = "wide";
/// There is no GELU in Llama's, Qwen2's and Qwen3's language models, so they are computed in f32 throughout.
pub(crate) const LANGUAGE_MODEL: f64 = bound(1e-4, 1e-3, 2e-3);

/// A model and its projector, and what transformers computes with them.
pub(crate) struct PictureSet {
    pub(crate) family: &'static str,
    pub(crate) name: &'static str,
    pub(crate) oracle: Oracle,
    /// How far rows and logits of the language model may be from transformers'.
    pub(crate) language_model: f64,
}

impl PictureSet {
    /// The set of this name in the folder of its family.
    pub(crate) fn named(family: &'static str, name: &'static str) -> Self {
        let oracle = Oracle::read(&root(family).join(name));
        Self {
            family,
            name,
            oracle,
            language_model: LANGUAGE_MODEL,
        }
    }

    /// The rows and columns of a picture's image rows.
    pub(crate) fn grid(&self, picture: &str) -> [usize; 2] {
        let grid = self.oracle.json["grids"][picture].clone();
        serde_json::from_value(grid).expect("two numbers")
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
            .map(|name| self.image(session, name.as_str().expect("a name")))
            .collect();
        let images: Vec<&ImageEmbeddings> = images.iter().collect();
        let prompt = session.prompt(text, form, &images);
        prompt.expect("it is tokenised")
    }

    pub(crate) fn image(&self, session: &Session, name: &str) -> ImageEmbeddings {
        image(session, self.family, name)
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

/// The rows of all of an image's chunks.
pub(crate) fn rows(image: &ImageEmbeddings) -> Vec<f32> {
    image
        .chunks()
        .flat_map(|chunk| chunk.rows.to_vec())
        .collect()
}

/// Image rows of the pictures, which are transformers' where llama.cpp's graph is corrected, and are not where it is as
/// it stands; `check` gets each image with its error.
pub(crate) fn check_image_rows(
    set: &PictureSet,
    files: &ModelFiles,
    pictures: &[&str],
    check: &dyn Fn(&str, &ImageEmbeddings, f64),
) {
    for (vision_graph, is_right) in [
        (VisionGraph::Corrected, true),
        (VisionGraph::AsLlamaCpp, false),
    ] {
        let options = SessionOptions {
            vision_graph,
            ..exact_options()
        };
        let session = open(files, options);
        for name in pictures {
            let image = set.image(&session, name);
            let theirs = set.oracle.f32(&format!("picture/{name}/image_embeddings"));
            let error = relative_error(&rows(&image), &theirs);
            let shown = format!("{}, {name}, {vision_graph:?}", set.name);
            println!("{shown}: {error:.1e}");
            check(name, &image, error);
            // If this fails for `AsLlamaCpp`, patches and GELUs are no longer rounded to f16 on the processor; with
            // InternVL's class row, positions are no longer those of neighbours.
            if is_right || !ON_DEVICE {
                assert_eq!(error < IMAGE_EMBEDDINGS, is_right, "{shown}: {error:.2e}");
            }
        }
    }
}

/// The logits of a plain run and of two that are steered, one after another.
pub(crate) fn steered_logits(session: &mut Session, prompt: &Prompt) -> Vec<f32> {
    let runs = [None, Some(2.0), Some(3.0)].map(|strength| {
        let steering = strength.map(|strength| steering(session, 5, strength, Positions::ALL));
        let options = RunOptions {
            steering,
            ..everything(3)
        };
        session.run(prompt, options).expect("it runs").logits
    });
    runs.concat()
}

/// Prompts that are remembered, and steered above a hook, give what they give without a store, to the bit.
pub(crate) fn check_remembered(set: &PictureSet, files: &ModelFiles) {
    let run = |store: Option<PromptStore>, case: &str| {
        let options = SessionOptions {
            prompt_store: store,
            ..with_ubatch(64)
        };
        let mut session = open(files, options);
        let prompt = set.prompt(&session, case);
        steered_logits(&mut session, &prompt)
    };
    for case in ["wide", "text", "two"] {
        let store = PromptStore::in_memory(1 << 24);
        assert_eq!(
            run(None, case),
            run(Some(store), case),
            "{}, {case}",
            set.name
        );
    }
}

/// Ids, rows at the upper layer, features, logits and texts of all prompts, and texts that are steered at the lower one.
pub(crate) fn check_runs(
    set: &PictureSet,
    files_at: &dyn Fn(usize) -> ModelFiles,
    n_ubatch: usize,
) {
    let [steered_layer, layer] = set.layers();
    let max_tokens = set.number("max_tokens");
    let mut plain = open(&files_at(layer), with_ubatch(n_ubatch));
    let mut steered = open(&files_at(steered_layer), with_ubatch(n_ubatch));
    for case in set.case_names() {
        let shown = format!("{}, {case}, ubatches of {n_ubatch}", set.name);
        let check = |run: &Run, logits: &str, ids: &str| {
            let theirs = set.oracle.f32(&format!("{case}/{logits}"));
            let error = relative_error(&run.logits, &theirs);
            println!("{shown}: {logits} {error:.1e}");
            assert!(error < set.language_model, "{shown}: {logits} {error:.2e}");
            let ids = set.oracle.ids(&format!("{case}/{ids}"));
            assert_eq!(run.token_ids, ids, "{shown}");
        };
        let prompt = set.prompt(&plain, case);
        let image_pad = set.number("image_pad") as i32;
        let ids = prompt
            .tokens()
            .iter()
            .map(|token| token.id.unwrap_or(image_pad));
        assert_eq!(
            ids.collect::<Vec<_>>(),
            set.oracle.ids(&format!("{case}/prompt_ids")),
            "{shown}"
        );
        let run = plain.run(&prompt, everything(max_tokens)).expect("it runs");
        if ROWS_CASES.contains(&case) {
            let hook = resid_post(layer);
            let error = set.row_error(&run, case, &hook);
            println!("{shown}: rows {error:.1e}");
            assert!(error < set.language_model, "{shown}: rows {error:.2e}");
            let acts = set.oracle.f32(&format!("{case}/{hook}/acts"));
            let near = NEAR_THRESHOLD.max(set.language_model as f32);
            check_activations_near(plain.sae(), &run, &acts, near, &shown);
        }
        check(&run, "logits", "greedy_ids");
        let strength = set.case(case)["strength"].as_f64().expect("a number") as f32;
        let feature = set.number("feature");
        // Texts without pictures are steered everywhere, which a control vector could do.
        let at = match case {
            "text" => Positions::ALL,
            _ => Positions::IMAGE,
        };
        let options = RunOptions {
            steering: Some(steering(&mut steered, feature, strength, at)),
            ..everything(max_tokens)
        };
        let run = steered.run(&prompt, options.clone()).expect("it runs");
        check(&run, "steered_logits", "steered_ids");
        let logits_alone = RunOptions {
            steering: options.steering.clone(),
            max_tokens,
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            ..RunOptions::default()
        };
        let run = steered.run(&prompt, logits_alone).expect("it runs");
        check(&run, "steered_logits", "steered_ids");
        // The second shares what the first computes below the hook, if everything above depends on that alone.
        let both = vec![everything(max_tokens), options];
        let both = steered.run_side_by_side(&prompt, both, &mut |_, _| ControlFlow::Continue(()));
        let both = both.expect("they run");
        check(&both[0], "logits", "greedy_ids");
        check(&both[1], "steered_logits", "steered_ids");
    }
}

/// The sites of a block besides the stream behind it.
pub(crate) const SITES: [&str; 3] = ["hook_mlp_out", "hook_attn_out", "attn.hook_z"];

/// Rows behind each block but the last, and at other sites of the upper layer.
pub(crate) fn check_sites(
    set: &PictureSet,
    sites: &[&str],
    files_with: &dyn Fn(&str, usize) -> ModelFiles,
) {
    let [_, upper] = set.layers();
    let others = sites.iter().map(|site| format!("blocks.{upper}.{site}"));
    let streams = (0..set.number("n_layers") - 1).map(resid_post);
    for hook in streams.chain(others) {
        let theirs = set.oracle.f32(&format!("{SITES_CASE}/{hook}/rows"));
        let n_rows = set.oracle.ids(&format!("{SITES_CASE}/prompt_ids")).len();
        let width = theirs.len() / n_rows;
        let mut session = open(&files_with(&hook, width), exact_options());
        let prompt = set.prompt(&session, SITES_CASE);
        let run = session.run(&prompt, everything(0)).expect("it runs");
        let error = set.row_error(&run, SITES_CASE, &hook);
        println!("{}, {hook}: {error:.1e}", set.name);
        assert!(
            error < set.language_model,
            "{}, {hook}: {error:.2e}",
            set.name
        );
    }
}
