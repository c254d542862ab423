//! Whether a context's cache fits into memory, since a system that overcommits kills what does not.

use sysinfo::System;

use crate::llama::{self, KvType, Model};
use crate::{Error, ErrorKind, Result};

const GIGABYTE: f64 = 1e9;

/// Checks that a KV cache of `n_sequences` times `n_tokens`, and `others` bytes, fit into the memory
/// that is free, of the first device if `use_gpu` and there is one.
///
/// # Errors
/// When it does not: how much it takes, how much there is, and how many sequences fit.
pub(crate) fn check_cache(
    model: &Model,
    kv_type: KvType,
    use_gpu: bool,
    n_tokens: usize,
    n_sequences: usize,
    others: f64,
) -> Result<()> {
    let sequence = cache_bytes(model, kv_type, n_tokens);
    let needed = sequence * n_sequences as f64 + others;
    let free = free_bytes(use_gpu);
    if needed <= free {
        return Ok(());
    }
    let sizes = format!(
        "{:.1} GB of memory, and {:.1} GB are free",
        needed / GIGABYTE,
        free / GIGABYTE
    );
    if n_sequences == 1 {
        return Err(
            Error::invalid(format!("a context of {n_tokens} tokens takes {sizes}"))
                .of_kind(ErrorKind::OutOfMemory)
                .with_hint("give a shorter context, or a q8_0 KV cache"),
        );
    }
    let n_fit = ((free - others) / sequence) as usize;
    Err(Error::invalid(format!(
        "{n_sequences} runs of {n_tokens} tokens side by side take {sizes}: {n_fit} runs fit"
    ))
    .of_kind(ErrorKind::OutOfMemory)
    .with_hint("take fewer strengths at once, fewer tokens, a shorter context, or a q8_0 KV cache"))
}

/// Bytes of a KV cache of `n_tokens`; less with sliding windows.
pub(crate) fn cache_bytes(model: &Model, kv_type: KvType, n_tokens: usize) -> f64 {
    let value_bytes = match kv_type {
        KvType::F32 => 4.0,
        KvType::F16 => 2.0,
        KvType::Q8_0 => 34.0 / 32.0, // blocks of 32 bytes with a scale in f16
    };
    n_tokens as f64 * model.cache_values_per_token() as f64 * value_bytes
}

/// Bytes of what is kept of a prompt of `n_rows`: what is written to the cache, in f16 only for such a one, and the
/// rows at a place or two.
pub(crate) fn prompt_bytes(model: &Model, kv_type: KvType, n_rows: usize) -> f64 {
    let kept_as = match kv_type {
        KvType::F16 => KvType::F16,
        KvType::F32 | KvType::Q8_0 => KvType::F32,
    };
    let rows = 2 * n_rows * model.d_model() * size_of::<f32>();
    cache_bytes(model, kept_as, n_rows) + rows as f64
}

fn free_bytes(use_gpu: bool) -> f64 {
    let device = llama::free_device_bytes().filter(|_| use_gpu);
    let bytes = device.unwrap_or_else(|| {
        let mut system = System::new();
        system.refresh_memory();
        system.available_memory()
    });
    bytes as f64
}
