//! A context: decodes rows with a hook in the graph.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::backend;
use super::callback_state::CallbackState;
use super::context_options::ContextOptions;
use super::eval_hook::{EvalHook, HookedNode, Pass, RowHook, on_eval};
use super::guard::{self, guarded};
use super::model::Model;
use super::recording::RecordedGraph;
use super::rows::{Embeddings, Extent, Output, OutputRow, Rows};
use super::waiting;
use crate::error::runtime;
use crate::{CancelFlag, Error, ErrorKind, Result};

/// The error of a prompt or a text that is longer than the context.
pub(crate) fn context_too_small(what: String) -> Error {
    Error::new(ErrorKind::ContextTooSmall, what)
        .with_hint("give a longer context, or 0 for one that is long enough")
}

impl OutputRow {
    pub(super) fn to_c(self) -> i32 {
        match self {
            Self::Last => -1,
            Self::Index(index) => to_i32(index),
        }
    }
}

fn to_i32(n: usize) -> i32 {
    i32::try_from(n).expect("rows and sequences are counted in 32 bits")
}

/// A context of one or several sequences, with a hook of type `H` on one graph node.
pub struct Context<H: RowHook> {
    ptr: ContextPtr, // freed first: it keeps pointers to the hook, the flags and the model
    hook: CallbackState<EvalHook<H>>,
    watched: CallbackState<Vec<CancelFlag>>,
    model: Arc<Model>,
    options: ContextOptions,
    held: Vec<Extent>, // [n_sequences]
    has_control_vector: bool,
}

// SAFETY: llama.cpp ties a context to no thread. What the hook keeps besides `H` are pointers to graphs that lie in
// this context and to weights of the model, followed only while the context decodes.
unsafe impl<H: RowHook + Send> Send for Context<H> {}

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
        let hook = CallbackState::new(EvalHook::new(hook, nodes, model.corrected));
        let watched = CallbackState::new(Vec::new());
        Ok(Self {
            ptr: init(&model, &options, on_eval::<H>, hook.as_c(), watched.as_c())?,
            hook,
            watched,
            model,
            held: vec![Extent::default(); options.n_sequences],
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

    /// What the last decode has recorded, of one graph; none where what it wrote to the cache does not lie together.
    pub fn take_recording(&mut self) -> Option<RecordedGraph> {
        self.hook.get().take_recording()
    }

    /// What decodes replay from here on, each of them one graph.
    pub fn replay(&mut self, recorded: Arc<RecordedGraph>) {
        self.hook.get().set_replayed(recorded);
    }

    /// Says how much is computed of what is decoded from here on.
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
        self.truncate(sequence, self.held[sequence])
    }

    /// The longest sequence, in rows.
    pub fn capacity(&self) -> usize {
        self.options.n_tokens
    }

    /// Rows of one graph, but for those that see one another.
    pub fn n_ubatch(&self) -> usize {
        self.options.n_ubatch
    }

    /// The rows that one graph has room for, which is more than that where an image asks for it.
    pub fn max_ubatch(&self) -> usize {
        self.options.max_ubatch()
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
        self.held[sequence].n_rows >= self.options.n_tokens
    }

    /// Forgets all sequences.
    pub fn clear(&mut self) {
        // SAFETY: the context is alive.
        let memory = unsafe { sys::llama_get_memory(self.ptr.0.as_ptr()) };
        // SAFETY: the memory belongs to the context.
        unsafe { sys::llama_memory_clear(memory, true) };
        self.held.fill(Extent::default());
    }

    /// Forgets what a sequence holds behind its beginning, `kept`, which cuts no embeddings with four
    /// positions apart.
    ///
    /// # Errors
    /// A sequence that the context does not have; when llama.cpp cannot: some models keep a state
    /// that has no positions.
    pub fn truncate(&mut self, sequence: usize, kept: Extent) -> Result<()> {
        self.check_room(sequence, 0)?;
        // SAFETY: the context is alive.
        let memory = unsafe { sys::llama_get_memory(self.ptr.0.as_ptr()) };
        // SAFETY: the memory belongs to the context; -1 means to the end.
        let done = unsafe {
            sys::llama_memory_seq_rm(memory, to_i32(sequence), to_i32(kept.n_positions), -1)
        };
        if !done {
            return Err(runtime(
                "llama_memory_seq_rm",
                "this model's state has no positions",
            ));
        }
        if kept.n_rows < self.held[sequence].n_rows {
            self.held[sequence] = kept;
        }
        Ok(())
    }

    /// Checks that a sequence exists and has room for `n_rows` more.
    fn check_room(&self, sequence: usize, n_rows: usize) -> Result<()> {
        let held = self.held.get(sequence).ok_or_else(|| {
            Error::invalid(format!(
                "there is no sequence {sequence}: the context has {}",
                self.held.len()
            ))
        })?;
        if held.n_rows + n_rows > self.options.n_tokens {
            let what = format!(
                "the context holds {} tokens, and {} are needed",
                self.options.n_tokens,
                held.n_rows + n_rows
            );
            return Err(context_too_small(what));
        }
        Ok(())
    }

    /// Appends rows to a sequence, in graphs of [`ContextOptions::n_ubatch`] rows, and embeddings that see one
    /// another in a graph of their own.
    ///
    /// # Errors
    /// The hook's error or panic; [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted); more rows than the context has room for;
    /// embeddings that are no rows of this model ([`Model::check_embeddings`]), or more that see one another
    /// than a graph has room for; a sequence or a token that does not exist; a failure of llama.cpp. After
    /// an error the sequence is undefined: [`Context::clear`] it.
    pub fn decode(&mut self, sequence: usize, rows: Rows<'_>, output: Output) -> Result<()> {
        let n_rows = rows.n_rows();
        if let Rows::Embeddings(embeddings) = &rows {
            self.model.check_embeddings(embeddings)?;
            if !embeddings.is_causal {
                self.check_together(n_rows)?;
            }
        }
        let n_at_once = rows.n_at_once(self.options.n_ubatch);
        self.check_room(sequence, n_rows)?;
        let mut start = 0;
        while start < n_rows {
            let end = n_rows.min(start + n_at_once);
            let output = match output {
                Output::LastRow if end < n_rows => Output::None,
                output => output,
            };
            self.decode_part(sequence, rows.part(start..end), output)?;
            start = end;
        }
        Ok(())
    }

    /// Checks that a graph has room for as many embeddings that see one another; llama.cpp ends the process
    /// where it has not.
    ///
    /// # Errors
    /// When it has not.
    pub fn check_together(&self, n_rows: usize) -> Result<()> {
        let room = self.options.max_ubatch();
        if n_rows <= room {
            return Ok(());
        }
        let what = format!(
            "an image has {n_rows} rows that see one another, and a graph has room for {room}"
        );
        Err(Error::new(ErrorKind::ContextTooSmall, what)
            .with_hint("make the context with room for them"))
    }

    /// Appends rows of one graph.
    fn decode_part(&mut self, sequence: usize, rows: Rows<'_>, output: Output) -> Result<()> {
        let n_rows = rows.n_rows();
        let next = self.held[sequence].n_positions;
        let positions: Vec<i32> = match rows {
            Rows::Embeddings(embeddings) => self.model.batch_positions(&embeddings, to_i32(next)),
            Rows::Tokens(_) => (next..next + n_rows).map(to_i32).collect(),
        };
        let is_causal = match rows {
            Rows::Embeddings(embeddings) => embeddings.is_causal,
            Rows::Tokens(_) => true,
        };
        let window = self.model.sliding_window();
        let short_window = window.filter(|&window| {
            !is_causal && window < n_rows && !self.model.keeps_windows_in_images()
        });
        self.hook.get().short_window = short_window;
        self.set_causal(is_causal);
        let decoded = self.decode_batch(rows, vec![sequence; n_rows], positions, output);
        self.set_causal(true);
        self.hook.get().short_window = None;
        decoded?;
        self.held[sequence] += rows.extent();
        Ok(())
    }

    /// Whether rows that are decoded from here on see only those before.
    fn set_causal(&mut self, is_causal: bool) {
        // SAFETY: the context is alive.
        unsafe { sys::llama_set_causal_attn(self.ptr.0.as_ptr(), is_causal) };
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
        let positions = sequences.iter();
        let positions = positions.map(|&sequence| to_i32(self.held[sequence].n_positions));
        let rows = Rows::Tokens(ids);
        if sequences.len() <= self.max_ubatch() {
            self.hook.get().few_rows.begin_step(); // in one graph
        }
        self.decode_batch(
            rows,
            sequences.to_vec(),
            positions.collect(),
            Output::EveryRow,
        )?;
        for (sequence, i) in sequences.iter().zip(0..) {
            self.held[*sequence] += rows.part(i..i + 1).extent();
        }
        Ok(())
    }

    /// Decodes rows in one graph: `sequences` of each, `[n_rows]`, and `positions` as llama.cpp takes them,
    /// `[n_rows]`, or `[4, n_rows]` for embeddings with M-RoPE.
    fn decode_batch(
        &mut self,
        rows: Rows<'_>,
        sequences: Vec<usize>,
        mut positions: Vec<i32>,
        output: Output,
    ) -> Result<()> {
        let n_rows = rows.n_rows();
        let mut sequences: Vec<i32> = sequences.into_iter().map(to_i32).collect();
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
                Rows::Embeddings(Embeddings { values, .. }) => values.as_ptr().cast_mut(),
            },
            pos: positions.as_mut_ptr(),
            n_seq_id: n_seq_id.as_mut_ptr(),
            seq_id: seq_id.as_mut_ptr(),
            logits: wanted.as_mut_ptr(),
        };
        waiting::adapt();
        self.hook.get().begin_graph()?;
        let code = guarded("llama_decode", || {
            // SAFETY: all arrays have `n_tokens` entries (embeddings: rows of the model's width, and with
            // M-RoPE four times as many positions: `Model::check_embeddings`), live for the call, and
            // llama.cpp only reads them. The hook's state is not borrowed here.
            unsafe { guard::llama_decode(self.ptr.0.as_ptr(), batch) }
        });
        let is_computed = matches!(code, Ok(0));
        if let Some(fault) = self.hook.get().end_graph(is_computed) {
            return Err(fault);
        }
        match code? {
            0 => Ok(()),
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

    #[cfg(test)]
    pub(super) fn as_ptr(&mut self) -> *mut sys::llama_context {
        self.ptr.0.as_ptr()
    }

    /// Whether there is a control vector.
    pub fn has_control_vector(&self) -> bool {
        self.has_control_vector
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
    let mut params = options.to_c()?;
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
