//! A context: decodes rows with a hook in the graph.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use serde::{Deserialize, Serialize};

use super::backend;
use super::callback_state::CallbackState;
use super::eval_hook::{EvalHook, HookedNode, Pass, RowHook, on_eval};
use super::guard::{self, guarded};
use super::model::Model;
use super::recording::RecordedGraphs;
use super::waiting;
use crate::error::runtime;
use crate::{CancelFlag, Error, ErrorKind, Result};

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
    /// The longest sequence, in tokens.
    pub n_tokens: usize,
    /// Sequences that are decoded side by side, from 1 to [`MAX_SEQUENCES`].
    pub n_sequences: usize,
    /// Rows of one graph; the hook sees that many at most.
    pub n_ubatch: usize,
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

/// What is decoded.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Token ids.
    Tokens(&'a [i32]),
    /// Embeddings, `[n_rows, d_model]`, as the projector gives them.
    Embeddings(&'a [f32]),
}

/// The rows that logits are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// None.
    None,
    /// The last row.
    LastRow,
    /// Every row; there may be 512 of them at once.
    EveryRow,
}

/// A row of the last batch whose logits were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRow {
    /// The last one.
    Last,
    /// By its index in the batch.
    Index(usize),
}

impl OutputRow {
    pub(super) fn to_c(self) -> i32 {
        match self {
            Self::Last => -1,
            Self::Index(index) => to_i32(index),
        }
    }
}

/// The error of a prompt or a text that is longer than the context.
pub(crate) fn context_too_small(what: String) -> Error {
    Error::new(ErrorKind::ContextTooSmall, what)
        .with_hint("give a longer context, or 0 for one that is long enough")
}

fn to_i32(n: usize) -> i32 {
    i32::try_from(n).expect("rows and sequences are counted in 32 bits")
}

/// A row's sequence and its position in it.
type Place = (usize, usize);

/// A context of one or several sequences, with a hook of type `H` on one graph node.
pub struct Context<H: RowHook> {
    ptr: ContextPtr, // freed first: it keeps pointers to the hook, the flags and the model
    hook: CallbackState<EvalHook<H>>,
    watched: CallbackState<Vec<CancelFlag>>,
    model: Arc<Model>,
    options: ContextOptions,
    n_past: Vec<usize>, // [n_sequences]: rows of each
    has_control_vector: bool,
}

impl<H: RowHook> Context<H> {
    /// Makes a context; `hook` will see the rows of `nodes`.
    ///
    /// # Errors
    /// When llama.cpp refuses, for want of memory or because of a combination it does not support;
    /// options of 0.
    pub fn new(
        model: Arc<Model>,
        options: ContextOptions,
        nodes: Vec<HookedNode>,
        hook: H,
    ) -> Result<Self> {
        let hook = CallbackState::new(EvalHook::new(hook, nodes));
        let watched = CallbackState::new(Vec::new());
        Ok(Self {
            ptr: init(&model, &options, on_eval::<H>, hook.as_c(), watched.as_c())?,
            hook,
            watched,
            model,
            n_past: vec![0; options.n_sequences],
            has_control_vector: false,
            options,
        })
    }

    /// The hook.
    pub fn hook(&mut self) -> &mut H {
        &mut self.hook.get().hook
    }

    /// Hooks these nodes instead of those before. The pass is [`Pass::Unhooked`] until another is set.
    pub fn set_nodes(&mut self, nodes: Vec<HookedNode>) {
        self.hook.get().set_nodes(nodes);
    }

    /// What passes of [`Pass::Recorded`] have kept since the last one was set.
    pub fn take_recording(&mut self) -> RecordedGraphs {
        self.hook.get().recording().take()
    }

    /// What passes of [`Pass::Replayed`] replay from here on.
    pub fn replay(&mut self, recorded: Arc<RecordedGraphs>) {
        self.hook.get().recording().set_replayed(recorded);
    }

    /// Says how much is computed of what is decoded from here on. [`Pass::Recorded`] begins a recording, and
    /// [`Pass::Replayed`] at the start of one.
    pub fn set_pass(&mut self, pass: Pass) {
        self.hook.get().set_pass(pass);
    }

    /// Watches these flags during the decodes that follow: one that is set stops a decode within a node's
    /// time on the processor, and behind the ubatch on a device.
    pub fn watch(&mut self, flags: impl IntoIterator<Item = CancelFlag>) {
        let watched = self.watched.get();
        watched.clear();
        watched.extend(flags);
    }

    /// Forgets what a decode that failed has left of a sequence.
    ///
    /// # Errors
    /// As [`Context::truncate`].
    pub fn drop_unfinished(&mut self, sequence: usize) -> Result<()> {
        self.truncate(sequence, self.n_past[sequence])
    }

    /// The longest sequence, in tokens.
    pub fn capacity(&self) -> usize {
        self.options.n_tokens
    }

    /// Sequences that there is room for.
    pub fn n_sequences(&self) -> usize {
        self.options.n_sequences
    }

    /// Whether a sequence has no room for another row.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn is_full(&self, sequence: usize) -> bool {
        self.n_past[sequence] >= self.options.n_tokens
    }

    /// The residual stream's width.
    pub fn d_model(&self) -> usize {
        self.model.d_model()
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive.
        let memory = unsafe { sys::llama_get_memory(self.ptr.0.as_ptr()) };
        // SAFETY: the memory belongs to the context.
        unsafe { sys::llama_memory_clear(memory, true) };
        self.n_past.fill(0);
    }

    /// Forgets what a sequence holds behind its first `n_kept` rows.
    ///
    /// # Errors
    /// A sequence that the context does not have; when llama.cpp cannot: some models keep a state
    /// that has no positions.
    pub fn truncate(&mut self, sequence: usize, n_kept: usize) -> Result<()> {
        self.check_room(sequence, 0)?;
        // SAFETY: the context is alive.
        let memory = unsafe { sys::llama_get_memory(self.ptr.0.as_ptr()) };
        // SAFETY: the memory belongs to the context; -1 means to the end.
        let done =
            unsafe { sys::llama_memory_seq_rm(memory, to_i32(sequence), to_i32(n_kept), -1) };
        if !done {
            return Err(runtime(
                "llama_memory_seq_rm",
                "this model's state has no positions",
            ));
        }
        self.n_past[sequence] = self.n_past[sequence].min(n_kept);
        Ok(())
    }

    /// Checks that a sequence exists and has room for `n_rows` more.
    fn check_room(&self, sequence: usize, n_rows: usize) -> Result<()> {
        let n_past = self.n_past.get(sequence).ok_or_else(|| {
            Error::invalid(format!(
                "there is no sequence {sequence}: the context has {}",
                self.n_past.len()
            ))
        })?;
        if n_past + n_rows > self.options.n_tokens {
            let what = format!(
                "the context holds {} tokens, and {} are needed",
                self.options.n_tokens,
                n_past + n_rows
            );
            return Err(context_too_small(what));
        }
        Ok(())
    }

    /// Appends rows to a sequence.
    ///
    /// # Errors
    /// The hook's error or panic; [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted); more rows than the context has room for;
    /// embeddings that are no whole rows; a sequence or a token that does not exist; a failure of
    /// llama.cpp. After an error the sequence is undefined: [`Context::clear`] it.
    pub fn decode(&mut self, sequence: usize, rows: Rows<'_>, output: Output) -> Result<()> {
        let d_model = self.model.d_model();
        let n_rows = match rows {
            Rows::Tokens(ids) => ids.len(),
            Rows::Embeddings(values) if values.len() % d_model == 0 => values.len() / d_model,
            Rows::Embeddings(values) => {
                return Err(Error::invalid(format!(
                    "expected rows of {d_model} values, got {} values",
                    values.len()
                )));
            }
        };
        self.check_room(sequence, n_rows)?;
        let n_past = self.n_past[sequence];
        let mut start = 0;
        while start < n_rows {
            let end = n_rows.min(start + self.options.n_ubatch);
            let chunk = match rows {
                Rows::Tokens(ids) => Rows::Tokens(&ids[start..end]),
                Rows::Embeddings(values) => {
                    Rows::Embeddings(&values[start * d_model..end * d_model])
                }
            };
            let places: Vec<Place> = (n_past + start..n_past + end)
                .map(|position| (sequence, position))
                .collect();
            let output = match output {
                Output::LastRow if end < n_rows => Output::None,
                output => output,
            };
            self.decode_chunk(chunk, &places, output)?;
            start = end;
        }
        Ok(())
    }

    /// Appends one token to each of several sequences, in one batch, with logits for each.
    ///
    /// # Errors
    /// As [`Context::decode`]; another number of tokens than of sequences; a sequence twice.
    pub fn decode_side_by_side(&mut self, sequences: &[usize], ids: &[i32]) -> Result<()> {
        let is_twice = |(i, sequence): (usize, &usize)| sequences[..i].contains(sequence);
        if sequences.len() != ids.len() || sequences.iter().enumerate().any(is_twice) {
            return Err(Error::invalid(format!(
                "expected one token for each sequence, got {} for {sequences:?}",
                ids.len()
            )));
        }
        for &sequence in sequences {
            self.check_room(sequence, 1)?;
        }
        if sequences.is_empty() {
            return Ok(());
        }
        let places: Vec<Place> = sequences
            .iter()
            .map(|&sequence| (sequence, self.n_past[sequence]))
            .collect();
        self.decode_chunk(Rows::Tokens(ids), &places, Output::EveryRow)
    }

    fn decode_chunk(&mut self, rows: Rows<'_>, places: &[Place], output: Output) -> Result<()> {
        let n_rows = places.len();
        let mut positions: Vec<i32> = places.iter().map(|place| to_i32(place.1)).collect();
        let mut sequences: Vec<i32> = places.iter().map(|place| to_i32(place.0)).collect();
        let mut n_seq_id = vec![1; n_rows];
        let mut seq_id: Vec<*mut i32> = sequences.iter_mut().map(std::ptr::from_mut).collect();
        let mut wanted = vec![i8::from(output == Output::EveryRow); n_rows];
        wanted[n_rows - 1] = i8::from(output != Output::None);
        let batch = sys::llama_batch {
            n_tokens: to_i32(n_rows),
            token: match rows {
                Rows::Tokens(ids) => ids.as_ptr().cast_mut(),
                Rows::Embeddings(_) => std::ptr::null_mut(),
            },
            embd: match rows {
                Rows::Tokens(_) => std::ptr::null_mut(),
                Rows::Embeddings(values) => values.as_ptr().cast_mut(),
            },
            pos: positions.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: wanted.as_mut_ptr(),
        };
        waiting::adapt();
        self.hook.get().begin_graph();
        let code = guarded("llama_decode", || {
            // SAFETY: all arrays have `n_tokens` entries (embeddings: rows), live for the call, and
            // llama.cpp only reads them. The hook's state is not borrowed here.
            unsafe { guard::llama_decode(self.ptr.0.as_ptr(), batch) }
        });
        if let Some(fault) = self.hook.get().end_graph() {
            return Err(fault);
        }
        match code? {
            0 => {
                for place in places {
                    self.n_past[place.0] = place.1 + 1;
                }
                Ok(())
            }
            2 => Err(Error::interrupted()),
            code => Err(backend::failure("llama_decode", &format!("code {code}"))),
        }
    }

    /// Logits of a row of the last batch, `[n_vocab]`; empty where none were asked for.
    pub fn logits(&mut self, row: OutputRow) -> &[f32] {
        // SAFETY: the context is alive.
        let logits = unsafe { sys::llama_get_logits_ith(self.ptr.0.as_ptr(), row.to_c()) };
        if logits.is_null() {
            return &[];
        }
        // SAFETY: llama.cpp keeps `n_vocab` logits a row until the next decode, which needs
        // `&mut self`.
        unsafe { std::slice::from_raw_parts(logits, self.model.n_vocab()) }
    }

    /// Sets llama.cpp's own control vector: `direction` (`[d_model]`) is added to the output of
    /// block `layer` in every row, before the hook sees it. An empty slice removes it.
    ///
    /// # Errors
    /// When llama.cpp refuses; block 0 has no control vector.
    pub fn set_control_vector(&mut self, layer: usize, direction: &[f32]) -> Result<()> {
        let d_model = self.model.d_model();
        // llama.cpp's data starts at layer 1.
        let mut data = vec![0.0_f32; d_model * self.model.n_layers()];
        if !direction.is_empty() {
            let Some(start) = layer.checked_sub(1).map(|row| row * d_model) else {
                return Err(Error::invalid(
                    "llama.cpp has no control vector for layer 0",
                ));
            };
            data[start..start + d_model].copy_from_slice(direction);
        }
        #[cfg(test)]
        if super::SPOILED.get() == Some(Pass::Unhooked) {
            data.iter_mut().for_each(|x| *x *= 2.0);
        }
        let pointer = if direction.is_empty() {
            std::ptr::null()
        } else {
            data.as_ptr()
        };
        let code = guarded("llama_set_adapter_cvec", || {
            // SAFETY: `data` has a row for each layer from 1 on and is copied during the call.
            unsafe {
                guard::llama_set_adapter_cvec(
                    self.ptr.0.as_ptr(),
                    pointer,
                    data.len(),
                    to_i32(d_model),
                    to_i32(layer),
                    to_i32(layer),
                )
            }
        })?;
        if code == 0 {
            self.has_control_vector = !direction.is_empty();
            return Ok(());
        }
        Err(backend::failure(
            "llama_set_adapter_cvec",
            &format!("code {code}"),
        ))
    }

    /// Whether there is a control vector.
    pub fn has_control_vector(&self) -> bool {
        self.has_control_vector
    }

    pub(super) fn as_ptr(&mut self) -> *mut sys::llama_context {
        self.ptr.0.as_ptr()
    }
}

/// Makes the C context. `user_data`, which `on_eval` gets, and the flags that are `watched` must outlive it.
fn init(
    model: &Model,
    options: &ContextOptions,
    on_eval: unsafe extern "C" fn(*mut sys::ggml_tensor, bool, *mut c_void) -> bool,
    user_data: *mut c_void,
    watched: *mut c_void,
) -> Result<ContextPtr> {
    if options.kv_type == KvType::Q8_0 && options.flash_attention == FlashAttention::Off {
        return Err(Error::new(
            ErrorKind::KvType,
            "a q8_0 KV cache needs flash attention, which is off",
        )
        .with_hint("use an f16 KV cache, or flash attention"));
    }
    for (n, what) in [
        (options.n_sequences, "sequences"),
        (options.n_ubatch, "rows of a graph"),
        (options.threads, "processor threads"),
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
    let threads = i32::try_from(options.threads)
        .map_err(|_| Error::invalid(format!("{} threads are too many", options.threads)))?;
    let kv_type = match options.kv_type {
        KvType::F32 => sys::GGML_TYPE_F32,
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
    };
    // SAFETY: returns a plain struct by value.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = in_u32(options.n_tokens.saturating_mul(options.n_sequences))?;
    params.n_batch = in_u32(options.n_ubatch.max(MIN_BATCH))?;
    params.n_ubatch = in_u32(options.n_ubatch)?;
    params.n_seq_max = in_u32(options.n_sequences)?;
    // With one cache for all sequences, ubatches keep the order of the rows, which the hook counts.
    params.kv_unified = true;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.flash_attn_type = options.flash_attention.to_c();
    params.type_k = kv_type;
    params.type_v = kv_type;
    if options.eval_callback {
        params.cb_eval = Some(on_eval);
        params.cb_eval_user_data = user_data;
    }
    params.abort_callback = Some(is_cancelled);
    params.abort_callback_data = watched;
    let ptr = guarded("llama_init_from_model", || {
        // SAFETY: the model is alive, and the caller keeps `user_data` and the flag.
        unsafe { guard::llama_init_from_model(model.as_ptr(), params) }
    })?;
    NonNull::new(ptr).map(ContextPtr).ok_or_else(|| {
        backend::failure(
            "llama_init_from_model",
            "not enough memory, or an unsupported combination of options",
        )
    })
}

/// The C context.
struct ContextPtr(NonNull<sys::llama_context>);

impl Drop for ContextPtr {
    fn drop(&mut self) {
        // SAFETY: made by `llama_init_from_model` and freed once.
        unsafe { sys::llama_free(self.0.as_ptr()) };
    }
}

unsafe extern "C" fn is_cancelled(watched: *mut c_void) -> bool {
    // SAFETY: points to the flags that the context owns, which are changed between decodes only.
    let watched = unsafe { &*watched.cast::<Vec<CancelFlag>>() };
    watched.iter().any(CancelFlag::is_cancelled)
}
