//! Choosing the next token.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::guard::{self, guarded};
use super::model::Model;
use crate::error::runtime;
use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Sampling {
    /// The most likely token.
    #[default]
    Greedy,
    /// At random, with llama.cpp's defaults for the rest (top-k 40, top-p 0.95, min-p 0.05).
    Temperature {
        /// Above 0; 1 leaves the model's probabilities as they are.
        temperature: f32,
        /// The same seed gives the same text.
        seed: u32,
    },
}

/// A chain of llama.cpp's samplers. Filler tokens are never chosen.
pub struct Sampler {
    ptr: NonNull<sys::llama_sampler>,
    candidates: Vec<sys::llama_token_data>, // [n_vocab], reused
}

impl Sampler {
    /// Makes a sampler for a model's vocabulary.
    pub fn new(model: &Model, sampling: Sampling) -> Self {
        // SAFETY: returns a plain struct by value.
        let params = unsafe { sys::llama_sampler_chain_default_params() };
        // SAFETY: plain parameters.
        let ptr = unsafe { sys::llama_sampler_chain_init(params) };
        let sampler = Self {
            ptr: NonNull::new(ptr).expect("llama.cpp allocates a sampler chain or aborts"),
            candidates: Vec::new(),
        };
        let never: Vec<sys::llama_logit_bias> = model
            .unused_tokens()
            .into_iter()
            .map(|token| sys::llama_logit_bias {
                token,
                bias: f32::NEG_INFINITY,
            })
            .collect();
        let in_i32 = |n: usize| i32::try_from(n).expect("vocabularies are counted in 32 bits");
        // SAFETY: the biases are copied during the call.
        sampler.add(unsafe {
            sys::llama_sampler_init_logit_bias(
                in_i32(model.n_vocab()),
                in_i32(never.len()),
                never.as_ptr(),
            )
        });
        match sampling {
            // SAFETY: no arguments.
            Sampling::Greedy => sampler.add(unsafe { sys::llama_sampler_init_greedy() }),
            Sampling::Temperature { temperature, seed } => {
                // SAFETY: plain numbers, here and below.
                sampler.add(unsafe { sys::llama_sampler_init_top_k(40) });
                // SAFETY: see above.
                sampler.add(unsafe { sys::llama_sampler_init_top_p(0.95, 1) });
                // SAFETY: see above.
                sampler.add(unsafe { sys::llama_sampler_init_min_p(0.05, 1) });
                // SAFETY: see above.
                sampler.add(unsafe { sys::llama_sampler_init_temp(temperature) });
                // SAFETY: see above.
                sampler.add(unsafe { sys::llama_sampler_init_dist(seed) });
            }
        }
        sampler
    }

    fn add(&self, link: *mut sys::llama_sampler) {
        // SAFETY: the chain takes ownership of the link.
        unsafe { sys::llama_sampler_chain_add(self.ptr.as_ptr(), link) };
    }

    /// The token that follows a row with these logits, `[n_vocab]`.
    ///
    /// # Errors
    /// No logits; a failure of llama.cpp.
    pub fn sample(&mut self, logits: &[f32]) -> Result<i32> {
        if logits.is_empty() {
            return Err(Error::invalid("there are no logits to choose a token by"));
        }
        self.candidates.clear();
        let candidates = logits.iter().zip(0..);
        let candidates = candidates.map(|(&logit, id)| sys::llama_token_data { id, logit, p: 0.0 });
        self.candidates.extend(candidates);
        let mut candidates = sys::llama_token_data_array {
            data: self.candidates.as_mut_ptr(),
            size: self.candidates.len(),
            selected: -1,
            sorted: false,
        };
        guarded("llama_sampler_apply", || {
            // SAFETY: the chain is alive, and the candidates are as many as is said.
            unsafe { guard::llama_sampler_apply(self.ptr.as_ptr(), &raw mut candidates) }
        })?;
        // The chain may have put another order, or other candidates, in their place.
        let selected = usize::try_from(candidates.selected).ok();
        let selected = selected.filter(|&selected| selected < candidates.size);
        let selected =
            selected.ok_or_else(|| runtime("llama_sampler_apply", "no token was chosen"))?;
        // SAFETY: the array holds `size` candidates.
        let chosen = unsafe { candidates.data.add(selected) };
        // SAFETY: as above.
        let id = unsafe { (*chosen).id };
        // SAFETY: the chain is alive.
        unsafe { sys::llama_sampler_accept(self.ptr.as_ptr(), id) };
        Ok(id)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once, with its links.
        unsafe { sys::llama_sampler_free(self.ptr.as_ptr()) };
    }
}
