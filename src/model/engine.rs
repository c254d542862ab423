//! Engines of a model, and the memory that they need.

use std::sync::Arc;

use super::hooked_model::HookedModel;
use super::memory;
use crate::llama::{Context, ContextOptions, MAX_SEQUENCES};
use crate::run::{Engine, Forward, Hooks};
use crate::{Error, Result};

/// What an engine has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSize {
    /// Tokens of each run, its prompt's among them.
    pub n_tokens: usize,
    /// Runs at once.
    pub n_sequences: usize,
    /// Tokens of the longest prompt that runs share, or that is remembered.
    pub n_shared: usize,
    /// Rows of the largest image whose rows see one another ([`Prompt::n_together`](crate::Prompt::n_together)).
    pub n_together: usize,
}

impl HookedModel {
    /// Makes an engine.
    ///
    /// # Errors
    /// A context longer than the model has positions; more memory than is free; more runs than llama.cpp has
    /// sequences; a failure of llama.cpp.
    pub fn engine(self: &Arc<Self>, size: EngineSize) -> Result<Engine> {
        let EngineSize {
            n_tokens,
            n_sequences,
            n_shared,
            n_together,
        } = size;
        if n_sequences > MAX_SEQUENCES {
            return Err(Error::invalid(format!(
                "{n_sequences} runs side by side are too many: llama.cpp has {MAX_SEQUENCES} sequences"
            )));
        }
        if let Some(longest) = self.longest_context()
            && n_tokens > longest
        {
            return Err(Error::invalid(format!(
                "{n_tokens} tokens are too many: this model has {longest} positions"
            ))
            .with_hint("give a shorter prompt, and a context of no more than that"));
        }
        let trained = self.language_model().trained_context();
        if n_tokens > trained {
            log::warn!(
                "{n_tokens} tokens are more than the {trained} that the model was trained on"
            );
        }
        let kv_type = self.options().kv_type;
        let shared = memory::prompt_bytes(self.language_model(), kv_type, n_shared);
        memory::check_cache(
            self.language_model(),
            self.options().kv_type,
            self.options().use_gpu(),
            n_tokens,
            n_sequences,
            shared,
        )?;
        let encoders = (0..self.saes().len()).map(|sae| self.encoder(sae));
        let hooks = Hooks::new(encoders.collect::<Result<_>>()?, n_sequences);
        let options = ContextOptions {
            n_tokens,
            n_sequences,
            n_ubatch: self.options().n_ubatch,
            n_together,
            threads: self.options().threads,
            kv_type: self.options().kv_type,
            flash_attention: self.options().flash_attention,
            eval_callback: self.options().eval_callback,
        };
        let model = Arc::clone(self.language_model());
        let context = Context::new(model, options, Vec::new(), hooks)?;
        Ok(Engine::new(Arc::clone(self), Forward::new(context)))
    }
}
