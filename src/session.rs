//! Model, vision, SAE and steering together: the one place where they meet.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gguf_tools::gguf::Overwrite;

use crate::control_vector;
use crate::decoder::Decoder;
use crate::encoder::EncoderOptions;
use crate::hook_point::{HookPoint, Site};
use crate::image_cache::ImageCache;
use crate::image_encoder::ImageEncoder;
use crate::llama::{
    self, AddBos, Context, ContextOptions, FlashAttention, GraphNode, KvType, MAX_SEQUENCES, Model,
    ModelOptions, Sampling, Special, VisionGraph,
};
use crate::memory;
use crate::model_files::{self, CheckedFiles, ModelFiles};
use crate::picture::{ImagePrep, Picture};
use crate::prompt::{ImageEmbeddings, Prompt, PromptForm};
use crate::run::{self, Run, RunOptions, Runner};
use crate::sae::Sae;
use crate::shortcuts::{Shortcut, Shortcuts, TryShortcuts};
use crate::steering::Steering;
use crate::sweep::{self, Sweep};
use crate::tap::{Substitute, Tap};
use crate::tokens::Token;
use crate::{Error, Result};

/// How a session computes.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Processor threads.
    pub threads: usize,
    /// Layers kept on a device; negative means all of them, 0 none (the SAE and the vision encoder
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
    /// Whether features are computed by way of the SAE file's screen, where it has one.
    pub screen: bool,
    /// Whether the prompts of runs side by side share the blocks below the hook, which changes no bit.
    pub share_prompts: bool,
    /// When what runs leave out is tried against the whole graph, and the vision encoder's graph, which is
    /// changed, against the processor's.
    pub try_shortcuts: TryShortcuts,
    /// How a picture becomes square.
    pub image_prep: ImagePrep,
    /// Whether llama.cpp's graph of the vision encoder is put right.
    pub vision_graph: VisionGraph,
    /// Where image embeddings are kept for other sessions.
    pub image_cache: Option<ImageCache>,
    /// Set from elsewhere, it stops what is running.
    pub interrupt: Arc<AtomicBool>,
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
            interrupt: Arc::default(),
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
}

/// A loaded model with its SAE.
pub struct Session {
    model: Arc<Model>,
    image_encoder: Option<ImageEncoder>,
    options: SessionOptions,
    node: GraphNode,
    // One of the two holds the hook: a context is made when the first run says how long it is.
    context: Option<Context<Tap>>,
    tap: Option<Tap>,
    shortcuts: Shortcuts,
}

impl Session {
    /// Checks that the files belong together and loads them.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn open(files: &ModelFiles, options: SessionOptions) -> Result<Self> {
        options.check()?;
        let checked = model_files::check(files)?;
        let model = load_model(&checked, &options)?;
        Self::with_model(model, checked, files, options)
    }

    /// Opens another session on this one's language model, whose file `files` has to name too.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_beside(&self, files: &ModelFiles, options: SessionOptions) -> Result<Self> {
        Self::open_on(Arc::clone(&self.model), files, options)
    }

    /// As [`Session::open`], with a language model that other sessions use too: `model` must have
    /// been loaded from these files.
    pub(crate) fn open_on(
        model: Arc<Model>,
        files: &ModelFiles,
        options: SessionOptions,
    ) -> Result<Self> {
        options.check()?;
        Self::with_model(model, model_files::check(files)?, files, options)
    }

    fn with_model(
        model: Arc<Model>,
        checked: CheckedFiles,
        files: &ModelFiles,
        options: SessionOptions,
    ) -> Result<Self> {
        if checked.hook_point.site() == Site::Z && options.kv_type == KvType::Q8_0 {
            // `build_attn` in llama.cpp's `llama-graph.cpp`: it rotates the values in such a cache,
            // and undoes that behind the node.
            return Err(Error::invalid(format!(
                "the SAE belongs to `{}`, which llama.cpp does not show with a q8_0 KV cache",
                checked.hook_point
            ))
            .with_hint("use `--kv-type f16`"));
        }
        let use_gpu = options.gpu_layers != 0;
        let encoder = EncoderOptions {
            use_gpu,
            threads: options.threads,
            screen: options.screen,
        };
        let sae = Sae::new(checked.sae, encoder)?;
        let projector = files.mmproj.clone().zip(checked.vision);
        let image_encoder = projector.map(|(path, shape)| ImageEncoder::new(path, shape));
        let is_tried = match options.try_shortcuts {
            TryShortcuts::OnDevices => llama::computes_elsewhere(use_gpu),
            TryShortcuts::Always => true,
        };
        Ok(Self {
            shortcuts: Shortcuts::new(is_tried),
            node: checked.node,
            tap: Some(Tap::new(sae)),
            model,
            image_encoder,
            options,
            context: None,
        })
    }

    /// The language model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The SAE.
    pub fn sae(&mut self) -> &mut Sae {
        &mut self.tap().sae
    }

    #[cfg(test)]
    pub(crate) fn shortcuts(&self) -> &Shortcuts {
        &self.shortcuts
    }

    /// Where the SAE reads.
    pub fn hook_point(&mut self) -> HookPoint {
        self.sae().hook_point()
    }

    fn tap(&mut self) -> &mut Tap {
        match (&mut self.context, &mut self.tap) {
            (Some(context), _) => context.hook(),
            (None, Some(tap)) => tap,
            (None, None) => unreachable!("the hook is in the context or beside it"),
        }
    }

    /// Loads the projector, which else waits for a picture that is in no cache.
    pub(crate) fn load_projector(&mut self) -> Result<()> {
        match &mut self.image_encoder {
            Some(encoder) => encoder.load(&self.model, &self.options).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Prepares and encodes a picture.
    ///
    /// # Errors
    /// A model without a projector, a picture that cannot be made square, a failure of llama.cpp.
    pub fn encode_image(&mut self, picture: &Picture) -> Result<ImageEmbeddings> {
        let encoder = self.image_encoder.as_mut();
        let encoder = encoder.ok_or_else(model_files::no_projector)?;
        encoder.encode(picture, &self.model, &self.options)
    }

    /// Builds a prompt of a text and at most one image.
    ///
    /// # Errors
    /// A raw prompt whose `<image>` marks do not match the image, a chat prompt that holds one, a
    /// model without a chat template, characters that the vocabulary has no token for.
    pub fn prompt(
        &self,
        text: &str,
        form: PromptForm,
        image: Option<&ImageEmbeddings>,
    ) -> Result<Prompt> {
        Prompt::new(&self.model, text, form, image, &self.options.interrupt)
    }

    /// Token ids of a text, as [`Model::tokenize`] gives them, until the session is interrupted.
    pub(crate) fn tokenize(&self, text: &str, add_bos: AddBos) -> Result<Vec<i32>> {
        self.model
            .tokenize_until(text, add_bos, &self.options.interrupt)
    }

    /// The text of a token, control tokens by name; an image row has none, nor has an id that is not
    /// in the vocabulary.
    pub fn token_text(&self, token: Token) -> Option<String> {
        let mut bytes = Vec::new();
        self.model
            .append_piece(token.id?, Special::Show, &mut bytes)
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sets llama.cpp's own control vector, `[d_model]`, at the SAE's layer for the runs of this
    /// prompt and length that follow, or removes it where it is empty: an independent
    /// implementation of steering everywhere, for comparison.
    ///
    /// # Errors
    /// When llama.cpp refuses; layer 0 has no control vector, nor has any place but the residual
    /// stream.
    pub fn set_control_vector(
        &mut self,
        prompt: &Prompt,
        max_tokens: usize,
        direction: &[f32],
    ) -> Result<()> {
        let hook_point = self.hook_point();
        if hook_point.site() != Site::ResidPost {
            return Err(Error::invalid(format!(
                "llama.cpp has no control vector for `{hook_point}`"
            )));
        }
        let layer = hook_point.layer();
        self.context_for(prompt, max_tokens, 1)?
            .set_control_vector(layer, direction)
    }

    /// Writes `steering` as a control vector, which llama.cpp's own programs read.
    ///
    /// # Errors
    /// Interventions that no control vector expresses: those that depend on the row or do not touch
    /// all positions alike, and those of layer 0 or of places but the residual stream; a file that
    /// cannot be written.
    pub fn write_control_vector(
        &mut self,
        steering: &Steering,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<()> {
        control_vector::write(self, steering, target, overwrite)
    }

    /// Runs a prompt and generates. `on_text` gets the text as it comes, in whole characters.
    ///
    /// # Errors
    /// A prompt that is longer than the context, an interruption before the first token, an error
    /// in the hook, a failure of llama.cpp, logits that are no numbers, with the text up to there. An
    /// interrupted generation is no error: it returns what there is.
    pub fn run(
        &mut self,
        prompt: &Prompt,
        options: RunOptions<'_>,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Run> {
        let mut on_text = |_, text: &str| on_text(text);
        let mut runs = self.run_side_by_side(prompt, &[options], &mut on_text)?;
        Ok(runs.pop().expect("a run for each of the options"))
    }

    /// Runs a prompt once for each of `options`, as sequences of their own: one prompt after the other,
    /// then their tokens side by side, so that the weights are read once for all. `on_text` gets a run's
    /// index and its text as it comes.
    ///
    /// # Errors
    /// As [`Session::run`], and more runs than llama.cpp has sequences.
    pub fn run_side_by_side(
        &mut self,
        prompt: &Prompt,
        options: &[RunOptions<'_>],
        on_text: &mut dyn FnMut(usize, &str),
    ) -> Result<Vec<Run>> {
        if options.len() > MAX_SEQUENCES {
            return Err(Error::invalid(format!(
                "{} runs side by side are too many: llama.cpp has {MAX_SEQUENCES} sequences",
                options.len()
            )));
        }
        let model = Arc::clone(&self.model);
        let node = self.node.clone();
        let interrupt = Arc::clone(&self.options.interrupt);
        let share_prompts = self.options.share_prompts;
        let max_tokens = options.iter().map(|run| run.max_tokens).max().unwrap_or(0);
        self.context_for(prompt, max_tokens, options.len().max(1))?;
        let mut runner = Runner {
            context: self.context.as_mut().expect("made above"),
            node: &node,
            model: &model,
            interrupt: &interrupt,
            share_prompts,
            shortcuts: &mut self.shortcuts,
        };
        runner.run(prompt, options, on_text)
    }

    /// Runs a prompt without interventions and with each of `steerings`, side by side.
    ///
    /// # Errors
    /// As [`Session::run_side_by_side`].
    pub fn sweep(
        &mut self,
        prompt: &Prompt,
        steerings: &[Steering],
        max_tokens: usize,
        sampling: Sampling,
    ) -> Result<Sweep> {
        sweep::sweep(self, prompt, steerings, max_tokens, sampling)
    }

    /// The cross-entropy of a prompt's text tokens, with `substitute` at the hook
    /// ([`run::cross_entropies`]).
    pub(crate) fn cross_entropies(
        &mut self,
        prompt: &Prompt,
        substitute: Option<Substitute>,
        except: &[i32],
    ) -> Result<Vec<f64>> {
        let node = self.node.clone();
        let context = self.context_for(prompt, 0, 1)?;
        run::cross_entropies(context, &node, prompt, substitute, except)
    }

    /// Logits of `ids` behind a prompt that the last runs left in the first `n_sequences` sequences
    /// ([`run::replay`]).
    pub(crate) fn replay(
        &mut self,
        prompt: &Prompt,
        n_sequences: usize,
        ids: &[i32],
        on_logits: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let context = self.context.as_mut().expect("there was a run");
        let shares_prompts = self.options.share_prompts
            && run::can_share(context)
            && self.shortcuts.holds(Shortcut::SharedPrompts);
        let mut decoder = Decoder::resume(context, &self.node);
        decoder.shares_prompts = shares_prompts;
        run::replay(
            &mut decoder,
            prompt.tokens().len(),
            n_sequences,
            ids,
            on_logits,
        )
    }

    /// The context, made anew where the last one is too short or has too few sequences.
    fn context_for(
        &mut self,
        prompt: &Prompt,
        max_tokens: usize,
        n_sequences: usize,
    ) -> Result<&mut Context<Tap>> {
        let n_prompt = prompt.tokens().len();
        let fixed = self.options.context_size;
        if fixed > 0 && n_prompt > fixed {
            return Err(Error::invalid(format!(
                "the prompt has {n_prompt} tokens, and the context holds {fixed}"
            ))
            .with_hint("give a larger `--ctx-size`, or 0 for enough"));
        }
        // However many tokens are asked for, an answer has room for a whole trained context.
        let trained = self.model.trained_context();
        let needed = match fixed {
            0 => n_prompt.saturating_add(max_tokens.min(trained)),
            fixed => fixed,
        };
        if self.context.as_ref().is_none_or(|context| {
            context.capacity() < needed || context.n_sequences() < n_sequences
        }) {
            if needed > trained {
                log::warn!(
                    "{needed} tokens are more than the {trained} that the model was trained on"
                );
            }
            let kv_type = self.options.kv_type;
            let replaced = self.context.as_ref().map_or(0.0, |context| {
                let n_tokens = context.capacity() * context.n_sequences();
                memory::cache_bytes(&self.model, kv_type, n_tokens)
            });
            // What prompts share is kept as it was written to the cache, in f32.
            let shared = match n_sequences {
                1 => 0.0,
                _ => memory::cache_bytes(&self.model, KvType::F32, n_prompt),
            };
            memory::check_cache(
                &self.model,
                kv_type,
                self.options.gpu_layers != 0,
                needed,
                n_sequences,
                shared,
                replaced,
            )?;
            let tap = match self.context.take() {
                Some(context) => context.into_hook(),
                None => self
                    .tap
                    .take()
                    .expect("the hook is in the context or beside it"),
            };
            let options = ContextOptions {
                n_tokens: needed,
                n_sequences,
                n_ubatch: self.options.n_ubatch,
                threads: self.options.threads,
                kv_type,
                flash_attention: self.options.flash_attention,
                eval_callback: self.options.eval_callback,
                interrupt: Arc::clone(&self.options.interrupt),
            };
            let d_in = tap.sae.meta().d_in;
            let (model, node) = (Arc::clone(&self.model), self.node.clone());
            let made = Context::new(model, options, node, d_in, tap);
            self.context = match made {
                Ok(context) => Some(context),
                Err((error, tap)) => {
                    self.tap = Some(tap);
                    return Err(error);
                }
            };
        }
        Ok(self.context.as_mut().expect("made above"))
    }
}

/// Loads the language model alone.
pub(crate) fn load_model(files: &CheckedFiles, options: &SessionOptions) -> Result<Arc<Model>> {
    let options = ModelOptions {
        gpu_layers: options.gpu_layers,
        repack: options.repack,
    };
    Ok(Arc::new(Model::load(&files.model, options)?))
}
