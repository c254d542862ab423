//! Where ggml keeps what it knows of tensors.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::backend;
use crate::Result;

/// Nodes that a graph of one product has room for.
pub(super) const GRAPH_NODES: usize = 8;

/// Memory for tensors' descriptions and one small graph, not for the tensors' data.
pub(super) struct TensorContext(NonNull<sys::ggml_context>);

impl TensorContext {
    pub(super) fn new(n_tensors: usize) -> Result<Self> {
        // SAFETY: no arguments.
        let tensor_bytes = unsafe { sys::ggml_tensor_overhead() };
        // SAFETY: plain arguments.
        let graph_bytes = unsafe { sys::ggml_graph_overhead_custom(GRAPH_NODES, false) };
        let params = sys::ggml_init_params {
            mem_size: n_tensors * tensor_bytes + graph_bytes,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        };
        // SAFETY: ggml allocates the memory itself.
        let ptr = unsafe { sys::ggml_init(params) };
        NonNull::new(ptr)
            .map(Self)
            .ok_or_else(|| backend::failure("ggml_init", "out of memory"))
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ggml_context {
        self.0.as_ptr()
    }
}

impl Drop for TensorContext {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init` and freed once.
        unsafe { sys::ggml_free(self.0.as_ptr()) };
    }
}
