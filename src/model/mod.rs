//! A language model with its projector and SAEs, loaded once and shared; and sessions on it.

mod encoders;
pub(crate) mod files;
pub(crate) mod fingerprint;
mod memory;
mod session;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use gguf_tools::gguf::{Gguf, Overwrite};

use self::files::{CheckedFiles, Graph};
use self::fingerprint::fingerprint;
use crate::llama::{
    self, AddBos, Context, ContextOptions, FlashAttention, KvType, MAX_SEQUENCES, Model,
    ModelOptions, Special, VisionGraph,
};
use crate::picture::ImageCache;
use crate::picture::encoder::{ImageEncoder, VisionSettings};
use crate::picture::{ImagePrep, Picture};
use crate::prompt::{ImageEmbeddings, Prompt, PromptForm};
use crate::run::{Engine, Forward, HookedSite, Hooks, PromptKey, Shortcuts, TryShortcuts};
use crate::steering::{Intervention, Steering};
use crate::{
    CancelFlag, Encoder, Error, ErrorKind, FeatureId, HookPoint, Result, Sae, SaeSet, Site, Token,
};

pub use self::encoders::{EncoderOptions, encoder};
pub use self::files::ModelFiles;
pub use self::session::Session;

/// How a model computes.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Processor threads.
    pub threads: usize,
    /// Layers kept on a device; negative means all of them, 0 none (SAEs and the vision encoder
    /// follow).
    pub gpu_layers: i32,
    /// Whether quantised weights are repacked for the processor, which takes time and memory for a copy.
    pub repack: bool,
    /// The KV cache's number type.
    pub kv_type: KvType,
    /// Whether to use flash attention.
    pub flash_attention: FlashAttention,
    /// Rows of one graph.
    pub n_ubatch: usize,
    /// The context's length in tokens; 0 is enough for each run, up to an answer of the length
    /// that the model was trained on.
    pub context_size: usize,
    /// Whether llama.cpp gets a callback, without which nothing can be read or steered: for measuring
    /// what it costs.
    pub eval_callback: bool,
    /// Whether features are computed by way of an SAE file's screen, where it has one.
    pub screen: bool,
    /// Whether the prompts of runs side by side share the blocks below the lowest edit, which changes no bit.
    pub share_prompts: bool,
    /// When what runs leave out is tried against the whole graph, and the vision encoder's graph, which is
    /// changed, against the processor's.
    pub try_shortcuts: TryShortcuts,
    /// How a picture becomes square.
    pub image_prep: ImagePrep,
    /// Whether llama.cpp's graph of the vision encoder is put right.
    pub vision_graph: VisionGraph,
    /// Where image embeddings are kept for other models loaded from the same files.
    pub image_cache: Option<ImageCache>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            gpu_layers: -1,
            repack: false,
            kv_type: KvType::F16,
            flash_attention: FlashAttention::Auto,
            n_ubatch: 512,
            context_size: 0,
            eval_callback: true,
            screen: true,
            share_prompts: true,
            try_shortcuts: TryShortcuts::OnDevices,
            image_prep: ImagePrep::Crop,
            vision_graph: VisionGraph::Corrected,
            image_cache: None,
        }
    }
}

impl SessionOptions {
    fn check(&self) -> Result<()> {
        for (n, what) in [
            (self.threads, "processor threads"),
            (self.n_ubatch, "rows of a graph"),
        ] {
            if n == 0 || i32::try_from(n).is_err() {
                return Err(Error::invalid(format!(
                    "{n} {what} are none that llama.cpp can compute with"
                ))
                .with_hint(format!("take at least 1, and at most {}", i32::MAX)));
            }
        }
        Ok(())
    }

    fn use_gpu(&self) -> bool {
        self.gpu_layers != 0
    }
}

/// What an engine has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSize {
    /// Tokens of each run, its prompt's among them.
    pub n_tokens: usize,
    /// Runs at once.
    pub n_sequences: usize,
    /// Tokens of the longest prompt that runs share.
    pub n_shared: usize,
}

/// A loaded model with its projector and its SAEs. Nothing of it changes, so that any number of threads
/// can share one; what computes is an [`Engine`].
pub struct HookedModel {
    language_model: Arc<Model>,
    graph: Graph,
    image_encoder: Option<ImageEncoder>,
    saes: SaeSet,
    options: SessionOptions,
    shortcuts: Shortcuts,
    fingerprint: OnceLock<blake3::Hash>,
}

impl HookedModel {
    /// Checks that the files belong together and loads them.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn open(files: &ModelFiles, options: SessionOptions) -> Result<Arc<Self>> {
        options.check()?;
        let checked = files::check(files)?;
        let model = load_language_model(&checked, &options)?;
        Self::with(model, checked, files, options)
    }

    /// Opens another model on this one's language model, whose file `files` has to name too.
    ///
    /// # Errors
    /// As [`HookedModel::open`].
    pub fn open_beside(&self, files: &ModelFiles, options: SessionOptions) -> Result<Arc<Self>> {
        options.check()?;
        let model = Arc::clone(&self.language_model);
        Self::with(model, files::check(files)?, files, options)
    }

    fn with(
        language_model: Arc<Model>,
        checked: CheckedFiles,
        files: &ModelFiles,
        options: SessionOptions,
    ) -> Result<Arc<Self>> {
        let saes = checked.saes.into_iter().map(Sae::from_file);
        let saes: Vec<_> = saes.map(|sae| sae.map(Arc::new)).collect::<Result<_>>()?;
        let image_encoder = files
            .mmproj
            .clone()
            .zip(checked.vision)
            .map(|(path, shape)| {
                let settings = VisionSettings::new(&options);
                ImageEncoder::new(path, shape, Arc::clone(&language_model), settings)
            });
        let is_tried = match options.try_shortcuts {
            TryShortcuts::OnDevices => llama::computes_elsewhere(options.use_gpu()),
            TryShortcuts::Always => true,
        };
        let model = Self {
            language_model,
            graph: checked.graph,
            image_encoder,
            saes: SaeSet::new(saes)?,
            shortcuts: Shortcuts::new(is_tried),
            fingerprint: OnceLock::new(),
            options,
        };
        for sae in &model.saes {
            model.site(sae.hook_point())?;
        }
        Ok(Arc::new(model))
    }

    /// The language model.
    pub fn language_model(&self) -> &Arc<Model> {
        &self.language_model
    }

    /// The SAEs.
    pub fn saes(&self) -> &SaeSet {
        &self.saes
    }

    /// How it computes.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    pub(crate) fn shortcuts(&self) -> &Shortcuts {
        &self.shortcuts
    }

    /// A place to hook, with the SAEs that read there.
    pub(crate) fn site(&self, hook_point: HookPoint) -> Result<HookedSite> {
        if hook_point.site() == Site::Z && self.options.kv_type == KvType::Q8_0 {
            // `build_attn` in llama.cpp's `llama-graph.cpp`: it rotates the values in such a cache,
            // and undoes that behind the node.
            let what = format!("llama.cpp does not show `{hook_point}` with a q8_0 KV cache");
            return Err(Error::new(ErrorKind::KvType, what).with_hint("use an f16 KV cache"));
        }
        let saes = self.saes.iter().enumerate();
        let saes = saes.filter(|(_, sae)| sae.hook_point() == hook_point);
        Ok(HookedSite {
            hook_point,
            hooked: self.graph.node(hook_point)?,
            saes: saes.map(|(i, _)| i).collect(),
        })
    }

    /// An encoder of one of the SAEs, by its place among them.
    ///
    /// # Errors
    /// A file that cannot be read, or a device without room.
    ///
    /// # Panics
    /// When there is no such SAE.
    pub fn encoder(&self, sae: usize) -> Result<Encoder> {
        let options = EncoderOptions {
            use_gpu: self.options.use_gpu(),
            threads: self.options.threads,
            screen: self.options.screen,
        };
        encoder(&self.saes[sae], options)
    }

    /// The feature that `name` means ([`SaeSet::find_feature`]).
    ///
    /// # Errors
    /// A name that means none, or several.
    pub fn find_feature(&self, name: &str) -> Result<FeatureId> {
        self.saes.find_feature(name)
    }

    /// Prepares interventions.
    ///
    /// # Errors
    /// As [`Steering::new`].
    pub fn steering(&self, interventions: Vec<Intervention>) -> Result<Arc<Steering>> {
        Steering::new(interventions, &self.saes).map(Arc::new)
    }

    /// Prepares and encodes a picture.
    ///
    /// # Errors
    /// A model without a projector, a picture that cannot be made square, a failure of llama.cpp.
    pub fn encode_image(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        let encoder = self.image_encoder.as_ref();
        encoder.ok_or_else(files::no_projector)?.encode(picture)
    }

    /// Loads the projector, which else waits for a picture that is in no cache.
    pub(crate) fn load_projector(&self) -> Result<()> {
        self.image_encoder
            .as_ref()
            .map_or(Ok(()), ImageEncoder::load)
    }

    /// Builds a prompt of a text and at most one image. `cancel` stops it, where the text is long.
    ///
    /// # Errors
    /// A raw prompt whose `<image>` marks do not match the image, a chat prompt that holds one, a
    /// model without a chat template, characters that the vocabulary has no token for.
    pub fn prompt(
        &self,
        text: &str,
        form: PromptForm,
        image: Option<&ImageEmbeddings>,
        cancel: &CancelFlag,
    ) -> Result<Prompt> {
        Prompt::new(&self.language_model, text, form, image, cancel)
    }

    /// The key of a prompt that is recorded below a place.
    ///
    /// # Errors
    /// When the model's file, whose fingerprint is part of it, cannot be read.
    pub fn prompt_key(&self, prompt: &Prompt, below: HookPoint) -> Result<PromptKey> {
        let fingerprint = match self.fingerprint.get() {
            Some(known) => *known,
            None => {
                let found = fingerprint(&Gguf::open_with_shards(self.graph.path())?)?;
                *self.fingerprint.get_or_init(|| found)
            }
        };
        Ok(PromptKey::new(&fingerprint, &self.options, below, prompt))
    }

    /// Token ids of a text, as [`Model::tokenize`] gives them, until it is cancelled.
    pub(crate) fn tokenize(
        &self,
        text: &str,
        add_bos: AddBos,
        cancel: &CancelFlag,
    ) -> Result<Vec<i32>> {
        self.language_model.tokenize_until(text, add_bos, cancel)
    }

    /// The text of a token, control tokens by name; an image row has none, nor has an id that is not
    /// in the vocabulary.
    pub fn token_text(&self, token: Token) -> Option<String> {
        let mut bytes = Vec::new();
        self.language_model
            .append_piece(token.id?, Special::Show, &mut bytes)
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes `steering` as a control vector, which llama.cpp's own programs read.
    ///
    /// # Errors
    /// Interventions that no control vector expresses: those that depend on the row or do not touch
    /// all positions alike, and those of layer 0 or of places but the residual stream; a file that
    /// cannot be written.
    pub fn write_control_vector(
        &self,
        steering: &Steering,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<()> {
        crate::study::control_vector::write(&self.language_model, steering, target, overwrite)
    }

    /// Makes an engine.
    ///
    /// # Errors
    /// More memory than is free; more runs than llama.cpp has sequences; a failure of llama.cpp.
    pub fn engine(self: &Arc<Self>, size: EngineSize) -> Result<Engine> {
        let EngineSize {
            n_tokens,
            n_sequences,
            n_shared,
        } = size;
        if n_sequences > MAX_SEQUENCES {
            return Err(Error::invalid(format!(
                "{n_sequences} runs side by side are too many: llama.cpp has {MAX_SEQUENCES} sequences"
            )));
        }
        let trained = self.language_model.trained_context();
        if n_tokens > trained {
            log::warn!(
                "{n_tokens} tokens are more than the {trained} that the model was trained on"
            );
        }
        // What prompts share is kept as it was written to the cache, in f32.
        let shared = memory::cache_bytes(&self.language_model, KvType::F32, n_shared);
        memory::check_cache(
            &self.language_model,
            self.options.kv_type,
            self.options.use_gpu(),
            n_tokens,
            n_sequences,
            shared,
        )?;
        let encoders = (0..self.saes.len()).map(|sae| self.encoder(sae));
        let hooks = Hooks::new(encoders.collect::<Result<_>>()?, n_sequences);
        let options = ContextOptions {
            n_tokens,
            n_sequences,
            n_ubatch: self.options.n_ubatch,
            threads: self.options.threads,
            kv_type: self.options.kv_type,
            flash_attention: self.options.flash_attention,
            eval_callback: self.options.eval_callback,
        };
        let model = Arc::clone(&self.language_model);
        let context = Context::new(model, options, Vec::new(), hooks)?;
        Ok(Engine::new(Arc::clone(self), Forward::new(context)))
    }
}

/// Loads the language model alone.
pub(crate) fn load_language_model(
    files: &CheckedFiles,
    options: &SessionOptions,
) -> Result<Arc<Model>> {
    let options = ModelOptions {
        gpu_layers: options.gpu_layers,
        repack: options.repack,
    };
    Ok(Arc::new(Model::load(&files.model, options)?))
}
