//! How a context computes.

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// The KV cache's number type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvType {
    /// 32-bit floats: for comparisons with a reference.
    F32,
    /// 16-bit floats, llama.cpp's default.
    F16,
    /// 8-bit blocks; needs flash attention.
    Q8_0,
}

impl KvType {
    /// Its name, as options and files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }
}

/// Whether attention is computed without materialising the score matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlashAttention {
    /// llama.cpp decides.
    Auto,
    /// Always.
    On,
    /// Never: for comparisons with a reference.
    Off,
}

impl FlashAttention {
    /// Its name, as options and files have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }

    pub(super) fn to_c(self) -> sys::llama_flash_attn_type {
        match self {
            Self::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            Self::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            Self::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        }
    }
}

/// How a context computes.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// The longest sequence, in rows.
    pub n_tokens: usize,
    /// Sequences that are decoded side by side, from 1 to [`MAX_SEQUENCES`].
    pub n_sequences: usize,
    /// Rows of one graph; the hook sees that many at most, but for those of `n_together`.
    pub n_ubatch: usize,
    /// The largest number of embeddings that see one another ([`Embeddings::is_causal`](super::Embeddings::is_causal)):
    /// they are in one graph, however many they are. 0 if there are none.
    pub n_together: usize,
    /// Processor threads.
    pub threads: usize,
    /// The KV cache's number type.
    pub kv_type: KvType,
    /// Whether to use flash attention.
    pub flash_attention: FlashAttention,
    /// Whether llama.cpp gets a callback; without one, the hook sees nothing.
    pub eval_callback: bool,
}

/// Rows that a context takes at once, at least: as many as it may have sequences.
const MIN_BATCH: usize = 512;

/// `LLAMA_MAX_SEQ` (`llama-cparams.h`), above which llama.cpp refuses a context.
pub const MAX_SEQUENCES: usize = 256;

impl ContextOptions {
    /// The rows that one graph has room for.
    pub(super) fn max_ubatch(&self) -> usize {
        self.n_ubatch.max(self.n_together)
    }

    /// llama.cpp's parameters, without the callbacks.
    ///
    /// # Errors
    /// Numbers that it does not take; a combination that it does not support.
    pub(super) fn to_c(&self) -> Result<sys::llama_context_params> {
        if self.kv_type == KvType::Q8_0 && self.flash_attention == FlashAttention::Off {
            return Err(Error::new(
                ErrorKind::KvType,
                "a q8_0 KV cache needs flash attention, which is off",
            )
            .with_hint("use an f16 KV cache, or flash attention"));
        }
        for (n, what) in [
            (self.n_sequences, "sequences"),
            (self.n_ubatch, "rows of a graph"),
            (self.threads, "processor threads"),
        ] {
            if n == 0 {
                return Err(Error::invalid(format!(
                    "a context of 0 {what} computes nothing"
                )));
            }
        }
        let in_u32 = |n: usize| {
            u32::try_from(n).map_err(|_| Error::invalid(format!("a context of {n} is too large")))
        };
        let threads = i32::try_from(self.threads)
            .map_err(|_| Error::invalid(format!("{} threads are too many", self.threads)))?;
        let kv_type = match self.kv_type {
            KvType::F32 => sys::GGML_TYPE_F32,
            KvType::F16 => sys::GGML_TYPE_F16,
            KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        };
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = in_u32(self.n_tokens.saturating_mul(self.n_sequences))?;
        params.n_batch = in_u32(self.max_ubatch().max(MIN_BATCH))?;
        params.n_ubatch = in_u32(self.max_ubatch())?;
        params.n_seq_max = in_u32(self.n_sequences)?;
        // With one cache for all sequences, ubatches keep the order of the rows, which the hook counts.
        params.kv_unified = true;
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.flash_attn_type = self.flash_attention.to_c();
        params.type_k = kv_type;
        params.type_v = kv_type;
        Ok(params)
    }
}
