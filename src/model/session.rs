//! Runs one after another on a model, each in a context that is long enough.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::engine::EngineSize;
use super::files::ModelFiles;
use super::hooked_model::HookedModel;
use super::options::SessionOptions;
use crate::llama::{self, Model};
use crate::picture::Picture;
use crate::prompt::{ImageEmbeddings, Prompt, PromptForm};
use crate::run::{EditorAt, Engine, Request, Run, RunOptions, Step};
use crate::{CancelFlag, Error, Result, Sae, Site, Token};

/// A model with an [`Engine`] that grows as runs ask for it.
pub struct Session {
    model: Arc<HookedModel>,
    engine: Option<Engine>, // none before the first run says how long it is
}

impl Session {
    /// Checks that the files belong together and loads them.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn open(files: &ModelFiles, options: SessionOptions) -> Result<Self> {
        HookedModel::open(files, options).map(Self::new)
    }

    /// A session on a model, which others may use too.
    pub fn new(model: Arc<HookedModel>) -> Self {
        Self {
            model,
            engine: None,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<HookedModel> {
        &self.model
    }

    /// The language model.
    pub fn language_model(&self) -> &Model {
        self.model.language_model()
    }

    /// The first SAE.
    ///
    /// # Panics
    /// When there is none.
    pub fn sae(&self) -> &Arc<Sae> {
        &self.model.saes()[0]
    }

    /// As [`HookedModel::encode_image`].
    ///
    /// # Errors
    /// As there.
    pub fn encode_image(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        self.model.encode_image(picture)
    }

    /// As [`HookedModel::prompt`], to the end.
    ///
    /// # Errors
    /// As there.
    pub fn prompt(
        &self,
        text: &str,
        form: PromptForm,
        images: &[&ImageEmbeddings],
    ) -> Result<Prompt> {
        self.model
            .prompt(text, form, images, &CancelFlag::default())
    }

    /// As [`HookedModel::token_text`].
    pub fn token_text(&self, token: Token) -> Option<String> {
        self.model.token_text(token)
    }

    /// Sets llama.cpp's own control vector, `[d_model]`, at the first SAE's layer for the runs of this
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
        let hook_point = self.sae().hook_point();
        if hook_point.site() != Site::ResidPost {
            return Err(Error::invalid(format!(
                "llama.cpp has no control vector for `{hook_point}`"
            )));
        }
        let engine = self.engine_for(prompt, max_tokens, 1)?;
        engine.set_control_vector(hook_point.layer(), direction)
    }

    /// Runs a prompt and generates.
    ///
    /// # Errors
    /// As [`RunOptions::check`]; a prompt that is longer than the context, a cancellation before the first token, an error
    /// in a hook, a failure of llama.cpp, logits that are no numbers, with the text up to there. A
    /// generation that is cancelled is no error: it returns what there is.
    pub fn run(&mut self, prompt: &Prompt, options: RunOptions) -> Result<Run> {
        self.run_with(prompt, options, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Session::run`]; `on_step` gets the text and what the hooks saw as it comes, and may end it.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_with(
        &mut self,
        prompt: &Prompt,
        options: RunOptions,
        on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Run> {
        self.run_edited(prompt, options, Vec::new(), on_step)
    }

    /// As [`Session::run_with`], with editors besides the options' interventions.
    ///
    /// # Errors
    /// As [`Session::run`], those of editors, and hook points that this model does not have.
    pub fn run_edited(
        &mut self,
        prompt: &Prompt,
        options: RunOptions,
        editors: Vec<EditorAt>,
        on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Run> {
        let prompt = Arc::new(prompt.clone());
        let engine = self.engine_for(&prompt, options.max_tokens, 1)?;
        let request = Request {
            prompt,
            options,
            editors,
        };
        let mut runs = engine.run(vec![request], &mut |_, step| on_step(step))?;
        Ok(runs.pop().expect("a run for each request"))
    }

    /// Runs a prompt once for each of `options`, as sequences of their own: one prompt after the other,
    /// then their tokens side by side, so that the weights are read once for all. `on_step` gets a run's
    /// index and what came of it.
    ///
    /// # Errors
    /// As [`Session::run`], and more runs than llama.cpp has sequences.
    pub fn run_side_by_side(
        &mut self,
        prompt: &Prompt,
        options: Vec<RunOptions>,
        on_step: &mut dyn FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Run>> {
        let max_tokens = options.iter().map(|run| run.max_tokens).max().unwrap_or(0);
        let n_sequences = options.len().max(1);
        let prompt = Arc::new(prompt.clone());
        let engine = self.engine_for(&prompt, max_tokens, n_sequences)?;
        let requests = options.into_iter();
        let requests = requests.map(|options| Request::new(Arc::clone(&prompt), options));
        engine.run(requests.collect(), on_step)
    }

    /// The engine, made anew where the last one is too short or has too few sequences.
    pub(crate) fn engine_for(
        &mut self,
        prompt: &Prompt,
        max_tokens: usize,
        n_sequences: usize,
    ) -> Result<&mut Engine> {
        let n_prompt = prompt.tokens().len();
        let fixed = self.model.options().context_size;
        if fixed > 0 && n_prompt > fixed {
            return Err(llama::context_too_small(format!(
                "the prompt has {n_prompt} tokens, and the context holds {fixed}"
            )));
        }
        // However many tokens are asked for, an answer has room for a whole trained context.
        let trained = self.model.language_model().trained_context();
        let needed = match fixed {
            0 => {
                let whole = n_prompt.saturating_add(max_tokens.min(trained));
                let longest = self.model.longest_context().unwrap_or(usize::MAX);
                whole.min(longest.max(n_prompt))
            }
            fixed => fixed,
        };
        let n_together = prompt.n_together();
        let is_enough = |engine: &Engine| {
            engine.capacity() >= needed
                && engine.n_sequences() >= n_sequences
                && engine.n_together() >= n_together
        };
        if !self.engine.as_ref().is_some_and(is_enough) {
            self.engine = None; // its memory first
            self.engine = Some(self.model.engine(EngineSize {
                n_tokens: needed,
                n_sequences,
                n_shared: match n_sequences > 1 || self.model.store_for(n_prompt).is_some() {
                    true => n_prompt,
                    false => 0,
                },
                n_together,
            })?);
        }
        Ok(self.engine.as_mut().expect("made above"))
    }

    /// The engine that the last run left.
    pub(crate) fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("there was a run")
    }
}
