//! The two fixture checkpoints, converted, and the numbers that transformers gives for them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::{Mutex, OnceLock};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::steering::{Change, Intervention, Positions, Steering};
use llava_sae_cpp::{
    FeatureId, FlashAttention, ImageEmbeddings, Keep, KvType, ModelFiles, Picture, Prompt,
    PromptForm, RunOptions, Session, SessionOptions,
};
use safetensors::{Dtype, SafeTensors};

/// A bound for the processor, for a Vulkan device, whose shaders approximate `exp` and `erf`, and for CUDA,
/// where f32 matrices are multiplied in TF32: with 10 bits behind the point, as f16 has.
pub(crate) const fn bound(processor: f64, vulkan: f64, cuda: f64) -> f64 {
    match (cfg!(feature = "vulkan"), cfg!(feature = "cuda")) {
        (_, true) => cuda,
        (true, false) => vulkan,
        (false, false) => processor,
    }
}

/// Whether a device computes, whose rounding hides what is little.
pub(crate) const ON_DEVICE: bool = cfg!(any(feature = "vulkan", feature = "cuda"));

/// Image embeddings are this far from transformers' at most.
pub(crate) const IMAGE_EMBEDDINGS: f64 = bound(1e-5, 2e-4, 1e-3);
/// What is computed in f32 is this far from transformers' at most: the language model's GELU is looked up
/// in a table of f16.
pub(crate) const F32: f64 = bound(1e-3, 1e-3, 5e-3);
/// What another order of f32 sums changes at most; 2.1e-4 was seen on a Vulkan device.
pub(crate) const ROUNDING: f64 = bound(1e-5, 5e-4, 1e-3);
/// What other sequences in the context change at most: attention sums over their cells too, as zeros,
/// in another order, and a GELU that is rounded the other way in ggml's table of f16 is 2e-5.
pub(crate) const NEIGHBOURS: f64 = bound(1e-4, 5e-4, 2e-3);

/// A fixture checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fixture {
    /// Trained, small.
    Demo,
    /// Random, of other shapes.
    Tiny,
}

impl Fixture {
    pub(crate) fn dir(self) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        root.join(match self {
            Self::Demo => "demo",
            Self::Tiny => "tiny",
        })
    }

    pub(crate) fn picture(self, name: &str) -> PathBuf {
        self.dir().join("pictures").join(name)
    }

    pub(crate) fn open_picture(self, name: &str) -> Picture {
        Picture::open(&self.picture(name)).expect("a committed file")
    }

    pub(crate) fn picture_names(self) -> Vec<String> {
        let n_pictures = match self {
            Self::Demo => 16,
            Self::Tiny => 3,
        };
        (0..n_pictures).map(|i| format!("{i:02}.png")).collect()
    }

    /// The pictures that come with the program, and what the same ones are called here.
    pub(crate) fn shipped() -> Vec<(PathBuf, String)> {
        let read = |path: &Path| std::fs::read(path).expect("a committed file");
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pictures");
        let here = Self::Demo.picture_names();
        let here: Vec<_> = here
            .into_iter()
            .map(|name| (read(&Self::Demo.picture(&name)), name))
            .collect();
        crate::command_line::names(&assets)
            .into_iter()
            .map(|asset| {
                let path = assets.join(asset);
                let bytes = read(&path);
                let same = here.iter().find(|(other, _)| *other == bytes);
                (path, same.expect("it is one of the fixture's").1.clone())
            })
            .collect()
    }

    /// A folder of GGUF files of this number type, converted once a test run.
    pub(crate) fn converted(self, tensor_type: TensorType) -> PathBuf {
        static CONVERTED: Mutex<Option<HashMap<(Fixture, TensorType), PathBuf>>> = Mutex::new(None);
        let mut converted = CONVERTED.lock().expect("no conversion panicked");
        let converted = converted.get_or_insert_default();
        let make = || {
            let dir = temporary_root().join(format!("{self:?}-{}", tensor_type.name()));
            self.convert_to(&dir, tensor_type);
            dir
        };
        converted
            .entry((self, tensor_type))
            .or_insert_with(make)
            .clone()
    }

    fn convert_to(self, dir: &Path, tensor_type: TensorType) {
        let progress = &mut |_, _| std::ops::ControlFlow::Continue(());
        let llava_options = LlavaOptions {
            model_type: tensor_type,
            mmproj_type: tensor_type,
            overwrite: Overwrite::Replace,
        };
        llava::convert(&self.dir().join("llava"), dir, &llava_options, progress)
            .expect("the fixture converts");
        let sae_options = SaeOptions {
            weight_type: tensor_type,
            norm_factor: (self == Self::Tiny).then_some(0.11), // `norm_factor` in its oracle.json
            hook_name: None,
            labels: match self {
                Self::Demo => vec![self.dir().join("sae/labels.json")],
                Self::Tiny => Vec::new(),
            },
            overwrite: Overwrite::Replace,
        };
        let target = dir.join("sae.gguf");
        sae::convert(&self.dir().join("sae"), &target, &sae_options, progress)
            .expect("the fixture converts");
    }

    /// The model in f32, computed as the reference was.
    pub(crate) fn exact_session(self) -> Session {
        self.session(TensorType::F32, exact_options())
    }

    pub(crate) fn session(self, tensor_type: TensorType, options: SessionOptions) -> Session {
        let dir = self.converted(tensor_type);
        let files =
            ModelFiles::find(Some(&dir), None, None, Vec::new()).expect("all files are there");
        Session::open(&files, options).expect("the fixture loads")
    }

    pub(crate) fn oracle(self) -> Oracle {
        Oracle::read(&self.dir())
    }
}

/// A picture that comes with the program, as the command line is given it, and transformers' runs on
/// it: its caption, and one that is steered by the feature of what it shows.
pub(crate) struct Example {
    pub(crate) path: String,
    pub(crate) caption: String,
    pub(crate) feature: usize,
    pub(crate) label: String,
    pub(crate) strength: f32,
    pub(crate) steered: String,
}

/// The first of the shipped pictures whose caption steering changes.
pub(crate) fn example() -> &'static Example {
    static EXAMPLE: OnceLock<Example> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let oracle = Fixture::Demo.oracle();
        let labels = std::fs::read(Fixture::Demo.dir().join("sae/labels.json"));
        let labels: serde_json::Value =
            serde_json::from_slice(&labels.expect("a committed file")).expect("JSON");
        let label = |feature: usize| {
            let index = feature.to_string();
            let mut entries = labels.as_array().expect("a list").iter();
            let entry = entries.find(|entry| entry["index"] == index);
            let text = entry.and_then(|entry| entry["description"].as_str());
            text.expect("a class's feature has a label").to_owned()
        };
        let changed = |(path, name): (PathBuf, String)| {
            let caption = oracle.caption(&name);
            let mut runs = oracle.steered(&name);
            runs.sort_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
            let is_sentence =
                |text: &str| text.starts_with("The image shows") && text.ends_with('.');
            let changed = |run: &(usize, f32, String)| run.2 != caption && is_sentence(&run.2);
            let (feature, strength, steered) = runs.into_iter().find(changed)?;
            let file = path.file_name().expect("a file").to_string_lossy();
            Some(Example {
                path: format!("assets/pictures/{file}"),
                caption,
                feature,
                label: label(feature),
                strength,
                steered,
            })
        };
        let found = Fixture::shipped().into_iter().find_map(changed);
        found.expect("some picture's caption changes")
    })
}

/// The path of [`example`].
pub(crate) fn picture() -> &'static str {
    &example().path
}

/// f32 KV cache, no flash attention, no repacking: what an f32 reference is compared with.
pub(crate) fn exact_options() -> SessionOptions {
    SessionOptions {
        kv_type: KvType::F32,
        flash_attention: FlashAttention::Off,
        repack: false,
        threads: threads(),
        ..SessionOptions::default()
    }
}

/// Threads of what is compared with a reference: one, since tests run side by side, unless
/// `TEST_THREADS` says otherwise.
pub(crate) fn threads() -> usize {
    std::env::var("TEST_THREADS").map_or(1, |threads| threads.parse().expect("a number"))
}

/// A folder for this test run, under cargo's own.
pub(crate) fn temporary_root() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("it");
        let _ = std::fs::remove_dir_all(&root); // what an earlier run left
        std::fs::create_dir_all(&root).expect("cargo's folder can be written");
        root
    })
    .clone()
}

/// The prompt of all reference runs, on a picture.
pub(crate) fn prompt(session: &mut Session, fixture: Fixture, picture: &str) -> Prompt {
    let picture = fixture.open_picture(picture);
    let image = session
        .encode_image(&picture)
        .expect("the picture is encoded");
    session
        .prompt("Describe the image.", PromptForm::Chat, &[&image])
        .expect("the prompt is tokenised")
}

/// The rows of an image of one view.
pub(crate) fn image_rows(image: &ImageEmbeddings) -> &[f32] {
    &image
        .only_chunk()
        .expect("a square picture is one view")
        .rows
}

/// A run that generates up to `max_tokens` tokens and keeps all that is seen.
pub(crate) fn everything(max_tokens: usize) -> RunOptions {
    RunOptions {
        keep: Keep::ALL,
        max_tokens,
        ..RunOptions::default()
    }
}

/// One feature added everywhere.
pub(crate) fn steering(
    session: &mut Session,
    feature: usize,
    strength: f32,
    at: Positions,
) -> Arc<Steering> {
    let add = Intervention {
        at,
        ..Intervention::new(FeatureId::of_only(feature), Change::steer(strength))
    };
    let steering = session.model().steering(vec![add]);
    steering.expect("the feature exists")
}

/// `oracle.safetensors` and `oracle.json`.
pub(crate) struct Oracle {
    bytes: Vec<u8>,
    /// `oracle.json`.
    pub(crate) json: serde_json::Value,
}

impl Oracle {
    /// Reads the two files in `dir`.
    pub(crate) fn read(dir: &Path) -> Self {
        let read = |name: &str| std::fs::read(dir.join(name)).expect("a committed file");
        Self {
            bytes: read("oracle.safetensors"),
            json: serde_json::from_slice(&read("oracle.json")).expect("valid JSON"),
        }
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        self.data(name)
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
            .collect()
    }

    /// Token ids, stored as I64 or I32.
    pub(crate) fn ids(&self, name: &str) -> Vec<i32> {
        let width = match self.tensors().tensor(name).expect("known").dtype() {
            Dtype::I64 => 8,
            Dtype::I32 => 4,
            other => panic!("token ids are integers, and `{name}` is {other:?}"),
        };
        let data = self.data(name);
        let low_bytes = data.chunks_exact(width).map(|bytes| &bytes[..4]);
        low_bytes
            .map(|bytes| i32::from_le_bytes(bytes.try_into().expect("four bytes")))
            .collect()
    }

    pub(crate) fn u8(&self, name: &str) -> Vec<u8> {
        self.data(name)
    }

    pub(crate) fn caption(&self, picture: &str) -> String {
        self.picture(picture)["caption"]
            .as_str()
            .expect("a text")
            .to_owned()
    }

    /// How far the two best logits are apart at the closest step of a picture's caption, as a part of
    /// the logits' norm.
    pub(crate) fn margin(&self, picture: &str) -> f64 {
        let margin = &self.picture(picture)["margin"];
        margin.as_f64().expect("`demo/margins.py` was run")
    }

    /// A picture's steered runs: feature, strength, caption.
    pub(crate) fn steered(&self, picture: &str) -> Vec<(usize, f32, String)> {
        let entry = self.picture(picture);
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let index = |value: &serde_json::Value| value.as_u64().expect("an index") as usize;
        match &entry["steered"] {
            serde_json::Value::Object(runs) => runs
                .iter()
                .map(|(strength, caption)| {
                    let strength = strength.parse().expect("a number");
                    (index(&entry["feature"]), strength, text(caption))
                })
                .collect(),
            runs => runs
                .as_array()
                .expect("a list")
                .iter()
                .map(|run| {
                    let strength = run["strength"].as_f64().expect("a number") as f32;
                    (index(&run["feature"]), strength, text(&run["caption"]))
                })
                .collect(),
        }
    }

    fn picture(&self, name: &str) -> &serde_json::Value {
        let pictures = self.json["pictures"].as_array().expect("a list");
        let found = pictures.iter().find(|picture| picture["picture"] == name);
        found.expect("the oracle knows the picture")
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("a valid file")
    }

    fn data(&self, name: &str) -> Vec<u8> {
        let tensors = self.tensors();
        tensors
            .tensor(name)
            .unwrap_or_else(|_| panic!("no `{name}`"))
            .data()
            .to_vec()
    }
}

/// `‖a − b‖ / ‖b‖` in f64.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a
        .iter()
        .zip(b)
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    let norm: f64 = b.iter().map(|&b| square(f64::from(b))).sum();
    (difference / norm).sqrt()
}

/// `‖a − b‖∞ / ‖b‖₂` in f64.
pub(crate) fn largest_error(a: &[f32], b: &[f32]) -> f64 {
    let differences = a.iter().zip(b).map(|(&a, &b)| f64::from((a - b).abs()));
    let norm: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    differences.fold(0.0, f64::max) / norm.sqrt()
}
