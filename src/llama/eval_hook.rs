//! The eval callback of a context: hands the rows of one graph node to Rust and writes them back.
//!
//! `llama_context_params.cb_eval` is asked about every node (`ask`), and called again with the
//! computed tensor of those it wanted (the data phase). Returning false in the data phase is no
//! error to llama.cpp (`ggml-backend.cpp`, `ggml_backend_sched_compute_splits`): the rest of the
//! split is skipped and `llama_decode` still returns 0. So errors and panics wait in a slot that
//! every decode looks at.

use std::ffi::{CStr, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use llama_cpp_sys_2 as sys;

use super::recording::Recording;
use crate::{Error, Result};

/// A node of a graph, by what tells it from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphNode {
    /// It has this name, such as `l_out-12`.
    Named(String),
    /// It multiplies by the weight of this name, such as `blk.12.attn_output.weight`.
    MultipliesBy(String),
}

impl GraphNode {
    fn is(&self, tensor: &sys::ggml_tensor) -> bool {
        match self {
            Self::Named(wanted) => name(tensor) == wanted.as_bytes(),
            Self::MultipliesBy(wanted) => tensor.src[..2].iter().any(|&operand| {
                // SAFETY: an operand is null or a tensor of the same graph.
                let operand = unsafe { operand.as_ref() };
                // A weight that was copied to a device is called `DEVICE#NAME#COPY`
                // (`ggml_backend_sched_split_graph`).
                operand.is_some_and(|operand| {
                    let mut parts = name(operand).split(|&byte| byte == b'#');
                    parts.any(|part| part == wanted.as_bytes())
                })
            }),
        }
    }
}

impl fmt::Display for GraphNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "`{name}`"),
            Self::MultipliesBy(weight) => write!(f, "the product with `{weight}`"),
        }
    }
}

/// A tensor's name, whole, so that `l_out-1` is not `l_out-12`.
fn name(tensor: &sys::ggml_tensor) -> &[u8] {
    // SAFETY: ggml ends names with NUL.
    unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_bytes()
}

/// A node of the graph at hand, as the pointer that C gave, by which alone it is changed. It is alive
/// until llama.cpp builds the next graph, and none is kept longer.
#[derive(Clone, Copy)]
pub(super) struct Node(*mut sys::ggml_tensor);

impl Node {
    pub(super) fn get(&self) -> &sys::ggml_tensor {
        // SAFETY: it is alive, and what changes it takes `self` by value and keeps no reference.
        unsafe { &*self.0 }
    }

    pub(super) fn set_op(self, op: sys::ggml_op) {
        // SAFETY: it is alive, and not being computed.
        unsafe { (*self.0).op = op };
    }

    /// What it is computed from.
    pub(super) fn operand(self, idx: usize) -> Option<Self> {
        let operand = self.get().src[idx];
        (!operand.is_null()).then_some(Self(operand))
    }
}

/// Receives the rows of the hooked node.
pub trait RowHook {
    /// Called once a ubatch with its rows, `[n_rows, width]`, in the order of submission.
    ///
    /// # Errors
    /// An error stops the graph; the decode returns it.
    fn on_rows(&mut self, rows: &mut [f32]) -> Result<Edited>;
}

/// Whether a hook changed the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    /// They are written back, and the graph goes on with them.
    Yes,
    /// The graph goes on with what it computed.
    No,
}

/// How much of a graph is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All of it, as if there were no callback: the hook sees nothing.
    Unhooked,
    /// All of it.
    Whole,
    /// What leads to the hooked node. What the context holds of these rows above it is undefined, and
    /// so are logits. Where a graph is computed in several parts, as with some blocks on a device and
    /// others not, only the part with the hooked node ends there; the parts behind it cost what they
    /// cost, and give nothing.
    UpToHook,
    /// All of it, and what stands below the hooked node is kept.
    Recorded,
    /// What stands above the hooked node. The rest is what [`Pass::Recorded`] kept of the same rows.
    Replayed,
}

#[cfg(test)]
thread_local! {
    /// A pass that goes wrong, as it might on a device: its rows do, and without a hook the control vector.
    pub(crate) static SPOILED: std::cell::Cell<Option<Pass>> = const { std::cell::Cell::new(None) };
}

/// What the callback needs, at an address that llama.cpp keeps.
pub(super) struct EvalHook<H> {
    pub(super) hook: H,
    pass: Pass,
    recording: Recording,
    is_below: bool, // the graph has not come to the hooked node
    node: GraphNode,
    width: usize,
    rows: Vec<f32>, // [n_rows, width], reused
    fault: Option<Error>,
}

impl<H: RowHook> EvalHook<H> {
    pub(super) fn new(hook: H, node: GraphNode, width: usize) -> Self {
        Self {
            hook,
            pass: Pass::Unhooked,
            recording: Recording::default(),
            is_below: true,
            node,
            width,
            rows: Vec::new(),
            fault: None,
        }
    }

    /// How much is computed of the graphs that follow. A first recorded pass forgets earlier ones, and
    /// each replay begins at the first recorded graph.
    pub(super) fn set_pass(&mut self, pass: Pass) {
        match pass {
            Pass::Recorded | Pass::Unhooked => self.recording.clear(),
            Pass::Replayed => self.recording.rewind(),
            Pass::Whole | Pass::UpToHook => {}
        }
        self.pass = pass;
    }

    pub(super) fn begin_graph(&mut self) {
        self.is_below = true;
        if self.pass == Pass::Recorded {
            self.recording.begin_graph();
        }
    }

    /// Ends a graph; the error or panic in it, if any.
    pub(super) fn end_graph(&mut self) -> Option<Error> {
        self.recording.restore();
        self.fault.take()
    }

    fn on_ask(&mut self, node: Node) -> Result<bool> {
        if self.pass == Pass::Unhooked || self.fault.is_some() {
            return Ok(false);
        }
        let is_hooked = self.node.is(node.get());
        if !self.is_below {
            return Ok(is_hooked);
        }
        match self.pass {
            Pass::Recorded => Ok(is_hooked || Recording::wants(node.get())),
            Pass::Replayed => Ok(self.recording.replay(node)? || is_hooked),
            Pass::Unhooked | Pass::Whole | Pass::UpToHook => Ok(is_hooked),
        }
    }

    /// Whether the graph goes on.
    fn on_data(&mut self, node: Node) -> Result<bool> {
        if self.fault.is_some() {
            return Ok(false);
        }
        if !self.node.is(node.get()) {
            if self.pass == Pass::Recorded {
                self.recording.record_cache_write(node)?;
            }
            return Ok(true);
        }
        let is_second = !std::mem::replace(&mut self.is_below, false);
        if is_second && matches!(self.pass, Pass::Recorded | Pass::Replayed) {
            return Err(Error::invalid(format!(
                "{} came twice in a decode, so that runs cannot share it",
                self.node
            )));
        }
        let n_rows = n_rows(node.get(), self.width)?;
        self.rows.resize(n_rows * self.width, 0.0);
        if self.pass == Pass::Replayed {
            self.recording.replay_rows(&mut self.rows)?;
        } else {
            read_rows(node.get(), &mut self.rows);
        }
        #[cfg(test)]
        if SPOILED.get() == Some(self.pass) {
            self.rows[0] += 100.0;
        }
        if self.pass == Pass::Recorded {
            self.recording.record_rows(&self.rows);
        }
        let edited = self.hook.on_rows(&mut self.rows)? == Edited::Yes;
        if edited || self.pass == Pass::Replayed {
            write_rows(node.0, &self.rows);
        }
        Ok(self.pass != Pass::UpToHook)
    }
}

/// The callback for `cb_eval`; `user_data` is an [`EvalHook<H>`].
pub(super) unsafe extern "C" fn on_eval<H: RowHook>(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the context's owner gave this pointer and touches it only between decodes.
    let state = unsafe { &mut *user_data.cast::<EvalHook<H>>() };
    let node = Node(tensor); // of the graph that ggml is computing
    let answer = catch_panic(|| match ask {
        true => state.on_ask(node),
        false => state.on_data(node),
    });
    // A node is wanted after an error too: that ends the graph, since its data phase says so.
    answer.unwrap_or_else(|error| {
        state.fault = Some(error);
        ask
    })
}

/// Runs `work`; a panic becomes an error, since it must not cross into C.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::invalid(format!("a hook panicked: {message}")))
    })
}

/// The number of rows of an f32 tensor of rows of `width`.
pub(super) fn n_rows(tensor: &sys::ggml_tensor, width: usize) -> Result<usize> {
    let [n_columns, n_rows, 1, 1] = tensor.ne else {
        return Err(unexpected_tensor(tensor, width));
    };
    // SAFETY: the tensor is part of a graph that is being computed.
    let is_contiguous = unsafe { sys::ggml_is_contiguous(tensor) };
    if tensor.type_ != sys::GGML_TYPE_F32
        || usize::try_from(n_columns) != Ok(width)
        || !is_contiguous
    {
        return Err(unexpected_tensor(tensor, width));
    }
    Ok(usize::try_from(n_rows).expect("ggml's sizes are not negative"))
}

fn unexpected_tensor(tensor: &sys::ggml_tensor, width: usize) -> Error {
    Error::invalid(format!(
        "expected contiguous f32 rows of {width} in the graph, got shape {:?} of ggml type {}",
        tensor.ne, tensor.type_
    ))
}

/// Copies a tensor out of its backend's memory; `rows` holds exactly its values.
pub(super) fn read_rows(tensor: &sys::ggml_tensor, rows: &mut [f32]) {
    let n_bytes = size_of_val(rows);
    // SAFETY: the backend has been synchronised, and `n_rows` proved that the tensor holds
    // `rows.len()` contiguous f32 values.
    unsafe { sys::ggml_backend_tensor_get(tensor, rows.as_mut_ptr().cast(), 0, n_bytes) };
}

/// Copies a contiguous tensor's `bytes.len()` bytes out of its backend's memory.
pub(super) fn read_bytes(tensor: &sys::ggml_tensor, bytes: &mut [u8]) {
    // SAFETY: the backend has been synchronised, and the tensor holds that many bytes.
    unsafe {
        sys::ggml_backend_tensor_get(tensor, bytes.as_mut_ptr().cast(), 0, bytes.len());
    }
}

/// Copies `bytes`, all that a contiguous tensor holds, into its backend's memory.
pub(super) fn write_bytes(node: Node, bytes: &[u8]) {
    // SAFETY: the tensor holds that many bytes, and is not being computed.
    unsafe { sys::ggml_backend_tensor_set(node.0, bytes.as_ptr().cast(), 0, bytes.len()) };
}

/// Copies `rows` over a tensor in its backend's memory.
pub(super) fn write_rows(tensor: *mut sys::ggml_tensor, rows: &[f32]) {
    let n_bytes = size_of_val(rows);
    // SAFETY: as for reading; the graph does not go on before this call returns.
    unsafe { sys::ggml_backend_tensor_set(tensor, rows.as_ptr().cast(), 0, n_bytes) };
}
