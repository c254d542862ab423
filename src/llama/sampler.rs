//! Choosing the next token.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::guard::{self, guarded};
use super::model::Model;
use crate::error::runtime;
use crate::{Error, Result};

/// How the next token is chosen: by default, the most likely one is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token, 1 leaves the model's probabilities as they are.
    pub temperature: f32,
    /// The same seed gives the same text; [`u32::MAX`] is none.
    pub seed: u32,
    /// One of so many most likely tokens is chosen; 0 for all.
    pub top_k: usize,
    /// One of the most likely tokens that have this probability together is chosen; 1 for all.
    pub top_p: f32,
    /// The least probability of a token that is chosen, as a share of the most likely one's; 0 for all.
    pub min_p: f32,
    /// What a token's logit is lowered by for each time that it was generated, from -2 to 2.
    pub frequency_penalty: f32,
    /// What a token's logit is lowered by if it was generated, from -2 to 2.
    pub presence_penalty: f32,
}

impl Default for Sampling {
    /// The most likely token; with a temperature, llama.cpp's defaults for the rest.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            seed: 0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

impl Sampling {
    /// Below it, the most likely token is taken: logits that are divided by less may leave the range of f32.
    const LEAST_TEMPERATURE: f32 = 1e-6;

    /// Checks that each number is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<()> {
        let check = |name, value: f32, range: RangeInclusive<f32>, expected| {
            if range.contains(&value) {
                return Ok(());
            }
            let what = format!("`{name}` is {value}, and has to be {expected}");
            Err(Error::invalid(what))
        };
        let (frequency, presence) = (self.frequency_penalty, self.presence_penalty);
        check("temperature", self.temperature, 0.0..=f32::MAX, "0 or more")?;
        check(
            "top_p",
            self.top_p,
            f32::MIN_POSITIVE..=1.0,
            "above 0 and at most 1",
        )?;
        check("min_p", self.min_p, 0.0..=1.0, "from 0 to 1")?;
        check("frequency_penalty", frequency, -2.0..=2.0, "from -2 to 2")?;
        check("presence_penalty", presence, -2.0..=2.0, "from -2 to 2")?;
        if self.seed == u32::MAX {
            let what = format!("`seed` is {}, which llama.cpp takes for any", self.seed);
            return Err(Error::invalid(what).with_hint("give a smaller one"));
        }
        Ok(())
    }
}

/// A chain of llama.cpp's samplers for one text. Filler tokens are never chosen.
pub struct Sampler {
    ptr: NonNull<sys::llama_sampler>,
    candidates: Vec<sys::llama_token_data>, // [n_vocab], reused
    sampling: Sampling,
    counts: HashMap<usize, u32>, // of the tokens that were chosen, by id
}

// SAFETY: llama.cpp ties a sampler to no thread, and `ptr` is its only owner.
unsafe impl Send for Sampler {}

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
            sampling,
            counts: HashMap::new(),
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
        if sampling.temperature < Sampling::LEAST_TEMPERATURE {
            // SAFETY: no arguments.
            sampler.add(unsafe { sys::llama_sampler_init_greedy() });
            return sampler;
        }
        let top_k = i32::try_from(sampling.top_k).unwrap_or(i32::MAX);
        // SAFETY: plain numbers, here and below.
        sampler.add(unsafe { sys::llama_sampler_init_top_k(top_k) });
        // SAFETY: see above.
        sampler.add(unsafe { sys::llama_sampler_init_top_p(sampling.top_p, 1) });
        // SAFETY: see above.
        sampler.add(unsafe { sys::llama_sampler_init_min_p(sampling.min_p, 1) });
        // SAFETY: see above.
        sampler.add(unsafe { sys::llama_sampler_init_temp(sampling.temperature) });
        // SAFETY: see above.
        sampler.add(unsafe { sys::llama_sampler_init_dist(sampling.seed) });
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
        self.penalise();
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
        let index = usize::try_from(id).expect("ids are not negative");
        *self.counts.entry(index).or_default() += 1;
        Ok(id)
    }

    /// Lowers the logits of tokens that were chosen before: `logit − n · frequency − presence` (OpenAI's API
    /// reference). llama.cpp's sampler of penalties gives the same, and looks each token of the vocabulary up for it.
    fn penalise(&mut self) {
        for (&index, &n) in &self.counts {
            let penalty = n as f32 * self.sampling.frequency_penalty;
            self.candidates[index].logit -= penalty + self.sampling.presence_penalty;
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: made in `new` and freed once, with its links.
        unsafe { sys::llama_sampler_free(self.ptr.as_ptr()) };
    }
}
