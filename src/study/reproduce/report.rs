//! A report that says everything that another person needs, and holds no path of the user's.

use std::path::Path;

use gguf_tools::gguf::Gguf;
use serde::Serialize;

use super::protocol::Protocol;
use super::verdict::{Claim, ClassReading, SteeredPicture, Verdict};
use crate::llama;
use crate::study::identity::identity;
use crate::{CancelFlag, ModelFiles, Result, SessionOptions};

/// What became of a protocol, and of what it was run with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// All claims together.
    pub verdict: Verdict,
    /// The claims, with the prompt that they are judged with.
    pub claims: Vec<Claim>,
    /// The protocol, all of it.
    pub protocol: Protocol,
    /// This program's version.
    pub program: String,
    /// The version of the bindings, and so of the llama.cpp that they carry.
    pub llama_cpp: String,
    /// What it ran on.
    pub machine: Machine,
    /// How the model computed.
    pub settings: Settings,
    /// The model's files.
    pub files: Vec<File>,
    /// What there was to read.
    pub pictures: Vec<PicturesOfClass>,
    /// What came of each prompt.
    pub prompts: Vec<PromptReport>,
}

/// What a run was made on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Processor threads.
    pub threads: usize,
    /// What computes, and with which instructions, as llama.cpp says.
    pub device: String,
    /// The operating system and the processor's architecture.
    pub system: String,
}

/// What numbers depend on, besides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// How a picture becomes square.
    pub image_prep: String,
    /// The KV cache's number type.
    pub kv_type: String,
    /// Whether flash attention is used.
    pub flash_attention: String,
    /// Layers kept on a device, where there is one; negative means all.
    pub gpu_layers: i32,
    /// Whether weights are repacked for the processor.
    pub repack: bool,
}

/// One of the model's files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct File {
    /// What it is: `model`, `projector` or `SAE`.
    pub role: &'static str,
    /// Its name, without the folder.
    pub name: String,
    /// Its length and its BLAKE3 hash.
    pub contents: String,
}

/// The pictures of a class that were found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PicturesOfClass {
    /// The class.
    pub class: String,
    /// How many there are.
    pub n_pictures: usize,
    /// The names of those that could not be read.
    pub unreadable: Vec<String>,
}

/// A text token that is read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReadToken {
    /// Its position in the prompt.
    pub position: usize,
    /// Its text.
    pub text: String,
}

/// What came of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptReport {
    /// The prompt's name.
    pub name: String,
    /// Whether the claims are judged with it.
    pub is_judged: bool,
    /// The text tokens that were read, where they are few.
    pub read_tokens: Vec<ReadToken>,
    /// What would become of the claims with this prompt.
    pub claims: Vec<Claim>,
    /// The classes.
    pub reading: Vec<ClassReading>,
    /// The described pictures.
    pub steering: Vec<SteeredPicture>,
}

impl Report {
    pub(super) fn new(
        protocol: &Protocol,
        machine: Machine,
        files: Vec<File>,
        settings: Settings,
        pictures: Vec<PicturesOfClass>,
        prompts: Vec<PromptReport>,
    ) -> Self {
        let judged = prompts.iter().find(|prompt| prompt.is_judged);
        let claims = judged.expect("one is judged").claims.clone();
        Self {
            verdict: Verdict::of_all(claims.iter().map(|claim| claim.verdict)),
            claims,
            protocol: protocol.clone(),
            program: format!("{} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")),
            llama_cpp: format!("llama-cpp-sys-2 {}", llama::BINDINGS_VERSION),
            machine,
            settings,
            files,
            pictures,
            prompts,
        }
    }
}

impl Machine {
    pub(super) fn of(options: &SessionOptions) -> Self {
        let cpus = sysinfo::CpuRefreshKind::nothing();
        let refresh = sysinfo::RefreshKind::nothing().with_cpu(cpus);
        let system = sysinfo::System::new_with_specifics(refresh);
        let processor = system.cpus().first().map(|cpu| cpu.brand().trim());
        Self {
            processor: processor.unwrap_or_default().to_owned(),
            threads: options.threads,
            device: llama::computed_by(options.gpu_layers != 0),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

impl Settings {
    pub(super) fn of(options: &SessionOptions, image_prep: &str) -> Self {
        Self {
            image_prep: image_prep.to_owned(),
            kv_type: options.kv_type.name().to_owned(),
            flash_attention: options.flash_attention.name().to_owned(),
            gpu_layers: options.gpu_layers,
            repack: options.repack,
        }
    }
}

impl File {
    /// The files of a model, read through.
    ///
    /// # Errors
    /// A file that cannot be read, an interruption.
    pub(super) fn of_model(files: &ModelFiles, cancel: &CancelFlag) -> Result<Vec<Self>> {
        let model = Gguf::open_with_shards(&files.model)?;
        let model = model.paths().iter().map(|path| ("model", &**path));
        let projector = files.mmproj.iter().map(|path| ("projector", &**path));
        let saes = files.saes.iter().map(|path| ("SAE", &**path));
        let all = model.chain(projector).chain(saes);
        all.map(|(role, path): (_, &Path)| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(Self {
                role,
                name: name.into_owned(),
                contents: identity(path, cancel)?,
            })
        })
        .collect()
    }
}
