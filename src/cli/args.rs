//! Arguments that several commands share; each flag is defined once.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use llava_sae_cpp::chat::{Chat, ChatTemplate};
use llava_sae_cpp::pictures::ScanPrompt;
use llava_sae_cpp::probe::{ProbeOptions, probe};
use llava_sae_cpp::{
    CancelFlag, FlashAttention, ImageCache, ImageEmbeddings, ImagePrep, KvType, ModelFiles,
    Picture, Prompt, PromptForm, PromptStore, Sampling, Session, SessionOptions, demo,
};

use super::one_of::one_of;
use super::processor;
use super::progress::{Spinner, Verbosity};
#[cfg(feature = "pull")]
use super::pull::HubArgs;

/// Which model, and how it computes.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// The language model, a GGUF file [default: the embedded demo]
    #[arg(short, long, value_name = "FILE", help_heading = "Model")]
    model: Option<PathBuf>,
    /// Its vision encoder and projector, a GGUF file
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    mmproj: Option<PathBuf>,
    /// Its sparse autoencoder, a GGUF file. Repeatable: several are read in one pass, and a feature is then
    /// written `SAE/FEATURE`, where SAE is the id in the file, or else the file's name without its extension
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    sae: Vec<PathBuf>,
    /// A folder that `convert` wrote, with all three; or the name of a published model, which is downloaded if
    /// it is not here (`pull --list`)
    #[arg(short = 'd', long, value_name = "DIR|NAME", help_heading = "Model")]
    #[cfg_attr(feature = "pull", arg(conflicts_with_all = ["hf_repo", "sae_hf", "sae_release"]))]
    model_dir: Option<PathBuf>,
    #[cfg(feature = "pull")]
    #[command(flatten)]
    hub: HubArgs,
    /// The chat template, a Jinja file, instead of the one in the model's file
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    chat_template: Option<PathBuf>,
    /// The context's length in tokens; 0 means as long as the run needs
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Computation"
    )]
    ctx_size: usize,
    /// Processor threads [default: all cores]
    #[arg(short, long, value_name = "N", help_heading = "Computation", value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Layers kept on a device (also `-ngl`); -1 is all of them
    #[arg(long, value_name = "N", default_value_t = -1, allow_hyphen_values = true, help_heading = "Computation")]
    gpu_layers: i32,
    /// Number type of the KV cache
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f16",
        value_parser = one_of([KvType::F32, KvType::F16, KvType::Q8_0], KvType::name),
        help_heading = "Computation"
    )]
    kv_type: KvType,
    /// Flash attention (also `-fa`)
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        value_parser = one_of(
            [FlashAttention::Auto, FlashAttention::On, FlashAttention::Off],
            FlashAttention::name,
        ),
        help_heading = "Computation"
    )]
    flash_attn: FlashAttention,
    /// How a picture that is not square becomes square, for LLaVA [default: crop]; Gemma 3 stretches it, LLaVA-1.6,
    /// SmolVLM, Idefics3 and InternVL cut it into tiles besides, and Qwen's models take it with sides near its own
    #[arg(long, value_name = "HOW", help_heading = "Computation")]
    image_prep: Option<ImagePrepArg>,
    /// Repack quantised weights for the processor: loading takes longer and a copy stays in memory, but
    /// some processors generate tokens faster
    #[arg(long, help_heading = "Computation")]
    repack: bool,
    /// Megabytes of image embeddings to keep on disk for later runs; 0 keeps none
    #[arg(
        long,
        value_name = "MB",
        default_value_t = 1000,
        help_heading = "Computation"
    )]
    image_cache: u32,
    /// Megabytes of prompts that were read to keep on disk, and as many in memory: another run of the same prompt
    /// computes only what its interventions change; 0 keeps none
    #[arg(
        long,
        value_name = "MB",
        default_value_t = 1000,
        help_heading = "Computation"
    )]
    prompt_cache: u32,
    /// Load files that are new to this machine without first trying them in a separate process
    #[arg(long, help_heading = "Computation")]
    no_probe: bool,
}

/// Whether the model's files must hold an SAE.
#[derive(Clone, Copy)]
enum SaeIs {
    Required,
    Optional,
}

#[derive(Clone, Copy, ValueEnum)]
enum ImagePrepArg {
    /// Scale the shortest side and cut out the centre, as transformers does
    Crop,
    /// Pad with CLIP's mean colour, as LLaVA was trained
    Pad,
}

impl From<ImagePrepArg> for ImagePrep {
    fn from(prep: ImagePrepArg) -> Self {
        match prep {
            ImagePrepArg::Crop => Self::Crop,
            ImagePrepArg::Pad => Self::Pad,
        }
    }
}

impl ModelArgs {
    /// Opens the session that these arguments describe.
    pub(super) fn open(
        &self,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Session> {
        let files = self.announced_files(verbosity, cancel)?;
        self.open_files(&files, self.options()?, verbosity, cancel)
    }

    /// As [`ModelArgs::open`], for what needs no SAE.
    pub(super) fn open_sae_or_none(
        &self,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Session> {
        self.announce(verbosity, cancel)?;
        let files = self.files(SaeIs::Optional)?;
        self.open_files(&files, self.options()?, verbosity, cancel)
    }

    /// Opens a session on files that these arguments gave.
    pub(super) fn open_files(
        &self,
        files: &ModelFiles,
        options: SessionOptions,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Session> {
        self.probe(files, &options, verbosity, cancel)?;
        Session::open(files, options)
    }

    /// Tries files that this machine has not seen yet, and says so; the embedded demo needs no trial.
    pub(super) fn probe(
        &self,
        files: &ModelFiles,
        options: &SessionOptions,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<()> {
        if self.no_probe || self.is_demo() {
            return Ok(());
        }
        let mut announce = |unseen: &[&Path]| {
            if !verbosity.is_quiet() {
                let names: Vec<_> = unseen
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                eprintln!(
                    "trying files that are new to this machine in a separate process: {}",
                    names.join(", ")
                );
            }
        };
        let probe_options = ProbeOptions {
            cancel: cancel.clone(),
            ..ProbeOptions::default()
        };
        probe(files, options, &probe_options, &mut announce)
    }

    /// How the session computes.
    ///
    /// # Errors
    /// A chat template that cannot be read.
    pub(super) fn options(&self) -> llava_sae_cpp::Result<SessionOptions> {
        let defaults = SessionOptions::default();
        let chat_template = self.chat_template.as_deref();
        Ok(SessionOptions {
            chat_template: chat_template.map(ChatTemplate::read_file).transpose()?,
            threads: self.threads.map_or(defaults.threads, usize::from),
            gpu_layers: self.gpu_layers,
            repack: self.repack,
            kv_type: self.kv_type,
            flash_attention: self.flash_attn,
            context_size: self.ctx_size,
            image_prep: self.image_prep.map(Into::into),
            image_cache: match self.image_cache {
                0 => None,
                megabytes => ImageCache::of_user(u64::from(megabytes) * 1_000_000),
            },
            prompt_store: match self.prompt_cache {
                0 => None,
                megabytes => Some(PromptStore::of_user(megabytes as usize * 1_000_000)),
            },
            ..defaults
        })
    }

    /// The model as reports name it.
    pub(super) fn shown_model(&self) -> String {
        self.shown(self.model.as_ref())
    }

    /// The SAE as reports name it.
    pub(super) fn shown_sae(&self) -> String {
        match &self.sae[..] {
            [] => self.shown(None),
            saes => {
                let shown: Vec<_> = saes.iter().map(|path| path.display().to_string()).collect();
                shown.join(", ")
            }
        }
    }

    /// The options that choose this model, and how pictures and chats are prepared for it.
    #[cfg(feature = "serve")]
    pub(super) fn arguments(&self) -> Vec<String> {
        let option = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
        let named = [
            ("-m", &self.model),
            ("--mmproj", &self.mmproj),
            ("-d", &self.dir()),
            ("--chat-template", &self.chat_template),
        ];
        let named = named
            .into_iter()
            .filter_map(|(name, path)| Some((name, path.as_deref()?)));
        let saes = self.sae.iter().map(|path| ("--sae", path.as_path()));
        named
            .chain(saes)
            .flat_map(|(name, path)| option(name, path))
            .collect()
    }

    fn shown(&self, file: Option<&PathBuf>) -> String {
        let given = file.or(self.model_dir.as_ref()).cloned();
        match given.or_else(|| self.dir()) {
            Some(path) => path.display().to_string(),
            None => "embedded demo".to_owned(),
        }
    }

    /// The model's files, as far as they are named or lie in the folder.
    pub(super) fn given_files(&self) -> Vec<PathBuf> {
        let in_dir = self.dir().and_then(|dir| dir.read_dir().ok());
        let in_dir = in_dir.into_iter().flatten().flatten();
        let named = [&self.model, &self.mmproj].into_iter().flatten();
        named
            .chain(&self.sae)
            .cloned()
            .chain(in_dir.map(|entry| entry.path()))
            .collect()
    }

    fn is_demo(&self) -> bool {
        let given = [&self.model_dir, &self.model, &self.mmproj];
        #[cfg(feature = "pull")]
        if self.hub.are_given() {
            return false;
        }
        self.sae.is_empty() && given.into_iter().all(Option::is_none)
    }

    /// The model's folder: the one that is given, or that of a published model which was pulled.
    fn dir(&self) -> Option<PathBuf> {
        #[cfg(feature = "pull")]
        return self.hub.folder(self.model_dir.as_deref());
        #[cfg(not(feature = "pull"))]
        self.model_dir.clone()
    }

    /// The model's files, which are downloaded where they are published and not here; where they are the
    /// embedded demo's, it says so.
    pub(super) fn announced_files(
        &self,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<ModelFiles> {
        self.announce(verbosity, cancel)?;
        self.files(SaeIs::Required)
    }

    #[cfg_attr(
        not(feature = "pull"),
        allow(unused_variables, clippy::unnecessary_wraps)
    )]
    fn announce(&self, verbosity: Verbosity, cancel: &CancelFlag) -> llava_sae_cpp::Result<()> {
        if let Some(advice) = processor::advice() {
            log::warn!("{advice}");
        }
        if self.is_demo() && cfg!(feature = "demo") && !verbosity.is_quiet() {
            eprintln!("using the embedded demo model; choose another with `-d DIR`");
        }
        #[cfg(feature = "pull")]
        self.hub
            .pull_what_is_missing(self.model_dir.as_deref(), verbosity, cancel)?;
        Ok(())
    }

    fn files(&self, sae: SaeIs) -> llava_sae_cpp::Result<ModelFiles> {
        if self.is_demo() {
            return demo::files();
        }
        let find = match sae {
            SaeIs::Required => ModelFiles::find,
            SaeIs::Optional => ModelFiles::find_sae_or_none,
        };
        find(
            self.dir().as_deref(),
            self.model.clone(),
            self.mmproj.clone(),
            self.sae.clone(),
        )
    }
}

/// The text that goes with the image.
#[derive(Args)]
pub(super) struct TextArgs {
    /// The user's turn: the images, then this text, in the model's chat template [default: `Describe the image.`]
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Use the prompt as it is, without the chat template; `<image>` marks an image, and `<bos>` is put in
    /// front if it is missing
    #[arg(long)]
    raw_prompt: bool,
}

impl TextArgs {
    /// The prompt of a scan, or another one that is given.
    #[cfg(feature = "scan")]
    pub(super) fn scanned_again<'a>(&'a self, scanned: Option<ScanPrompt<'a>>) -> ScanPrompt<'a> {
        let is_given = self.prompt.is_some() || self.raw_prompt;
        scanned.filter(|_| !is_given).unwrap_or(self.scanned())
    }

    /// The prompt for each of many pictures.
    pub(super) fn scanned(&self) -> ScanPrompt<'_> {
        ScanPrompt {
            text: self.prompt.as_deref().unwrap_or("Describe the image."),
            form: match self.raw_prompt {
                true => PromptForm::Raw,
                false => PromptForm::Chat,
            },
        }
    }
}

/// What goes with the image: a text, or a chat.
#[derive(Args)]
pub(super) struct PromptArgs {
    #[command(flatten)]
    text: TextArgs,
    /// A chat instead: a JSON file with OpenAI's `messages`, images in any of them; a part {"type": "image"}
    /// takes the next IMAGE of the command line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "raw_prompt"])]
    chat: Option<PathBuf>,
}

impl PromptArgs {
    /// What is asked.
    pub(super) fn read(&self) -> llava_sae_cpp::Result<Asked<'_>> {
        Ok(match &self.chat {
            Some(path) => Asked::Chat(Chat::open(path)?),
            None => Asked::Text(self.text.scanned()),
        })
    }

    /// The chat's file.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.chat.as_ref()
    }
}

/// What is asked of the model.
pub(super) enum Asked<'a> {
    /// A text, with all images before it or where it says.
    Text(ScanPrompt<'a>),
    /// A chat, with images of its own or places for them.
    Chat(Chat),
}

impl Asked<'_> {
    /// The pictures in it; `given` are the command line's.
    pub(super) fn pictures(&self, given: Vec<Picture>) -> llava_sae_cpp::Result<Vec<Picture>> {
        match self {
            Self::Text(_) => Ok(given),
            Self::Chat(chat) => chat.pictures(given),
        }
    }

    /// Reads the pictures in it; `given` are the command line's.
    pub(super) fn open<'a>(
        &self,
        given: impl IntoIterator<Item = &'a PathBuf>,
    ) -> llava_sae_cpp::Result<Vec<Picture>> {
        let given = given.into_iter().map(|path| Picture::open(path));
        self.pictures(given.collect::<Result<_, _>>()?)
    }

    /// Reads and encodes the pictures in it, with a spinner; `given` are the command line's.
    pub(super) fn encode<'a>(
        &self,
        session: &Session,
        given: impl IntoIterator<Item = &'a PathBuf>,
        verbosity: Verbosity,
    ) -> llava_sae_cpp::Result<Vec<ImageEmbeddings>> {
        encode_pictures(session, &self.open(given)?, verbosity)
    }

    /// The prompt, with these images.
    pub(super) fn build(
        &self,
        session: &Session,
        images: &[ImageEmbeddings],
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Prompt> {
        let images: Vec<_> = images.iter().collect();
        match self {
            Self::Text(prompt) => session
                .model()
                .prompt(prompt.text, prompt.form, &images, cancel),
            Self::Chat(chat) => session.model().chat_prompt(&chat.messages, &images, cancel),
        }
    }

    /// The prompt as reports show it: the text, or what the chat template makes of the chat.
    pub(super) fn shown(&self, session: &Session) -> llava_sae_cpp::Result<String> {
        match self {
            Self::Text(prompt) => Ok(prompt.text.to_owned()),
            Self::Chat(chat) => session.model().chat_text(&chat.messages),
        }
    }
}

/// Encodes pictures, with a spinner.
pub(super) fn encode_pictures(
    session: &Session,
    pictures: &[Picture],
    verbosity: Verbosity,
) -> llava_sae_cpp::Result<Vec<ImageEmbeddings>> {
    let _spinner = Spinner::start("encoding the image", verbosity);
    let images = pictures.iter().map(|picture| session.encode_image(picture));
    images.collect()
}

/// How text is generated.
#[derive(Args)]
pub(super) struct GenerateArgs {
    /// The largest number of tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub(super) max_tokens: usize,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    temp: f32,
    /// Seed for a temperature above 0
    // llama.cpp takes the largest number for "any".
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..i64::from(u32::MAX)))]
    seed: u32,
}

impl GenerateArgs {
    pub(super) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("a temperature is a number from 0 up".to_owned()),
    }
}
