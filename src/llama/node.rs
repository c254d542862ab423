//! Nodes of a graph, and the values that they hold.

use std::ffi::{CStr, c_int, c_void};

use llama_cpp_sys_2 as sys;

use crate::{Error, Result};

/// What computes a node in place of ggml (`ggml_custom_op_t`): with the node, which of the threads it is, of how many, and
/// the user data.
pub(super) type Function = unsafe extern "C" fn(*mut sys::ggml_tensor, c_int, c_int, *mut c_void);

/// A node of the graph at hand, as the pointer that C gave, by which alone it is changed. It is alive
/// until llama.cpp builds the next graph, and none is kept longer.
#[derive(Clone, Copy)]
pub(super) struct Node(pub(super) *mut sys::ggml_tensor);

impl Node {
    pub(super) fn get(&self) -> &sys::ggml_tensor {
        // SAFETY: it is alive, and what changes it takes `self` by value and keeps no reference.
        unsafe { &*self.0 }
    }

    pub(super) fn set_op(self, op: sys::ggml_op) {
        // SAFETY: it is alive, and not being computed.
        unsafe { (*self.0).op = op };
    }

    pub(super) fn set_operation(self, op: sys::ggml_op, params: [i32; 16]) {
        self.set_op(op);
        // SAFETY: it is alive, and not being computed.
        unsafe { (*self.0).op_params = params };
    }

    /// Has it computed by a function, which each of ggml's threads calls; `user_data` lives until the graph has ended.
    pub(super) fn set_function(self, function: Function, user_data: *mut c_void) {
        /// `ggml_custom_op_params` in `ggml-impl.h`.
        #[repr(C)]
        struct Custom {
            function: Function,
            n_tasks: c_int,
            user_data: *mut c_void,
        }
        let custom = Custom {
            function,
            n_tasks: -1, // `GGML_N_TASKS_MAX`: as many as there are threads
            user_data,
        };
        let mut params = [0_i32; 16];
        const { assert!(size_of::<Custom>() <= size_of::<[i32; 16]>()) };
        // SAFETY: there is room for it, at any address.
        unsafe { params.as_mut_ptr().cast::<Custom>().write_unaligned(custom) };
        self.set_operation(sys::GGML_OP_CUSTOM, params);
    }

    pub(super) fn set_first_parameter(self, value: i32) {
        // SAFETY: it is alive, and not being computed.
        unsafe { (*self.0).op_params[0] = value };
    }

    /// What it is computed from.
    pub(super) fn operand(self, idx: usize) -> Option<Self> {
        let operand = self.get().src[idx];
        (!operand.is_null()).then_some(Self(operand))
    }
}

/// A tensor's size in one dimension.
#[cfg(target_arch = "x86_64")]
pub(super) fn to_usize(n: i64) -> usize {
    usize::try_from(n).expect("ggml's sizes are not negative")
}

/// Whether a tensor lies in the processor's memory, in one piece, and in no layout of a backend's own.
#[cfg(target_arch = "x86_64")]
pub(super) fn is_in_memory(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: the tensor is alive.
    let is_contiguous = unsafe { sys::ggml_is_contiguous(tensor) };
    is_contiguous
        && !tensor.buffer.is_null()
        // SAFETY: its buffer is alive.
        && unsafe { sys::ggml_backend_buffer_is_host(tensor.buffer) }
}

/// A tensor's name, whole, so that `l_out-1` is not `l_out-12`.
pub(super) fn name(tensor: &sys::ggml_tensor) -> &[u8] {
    // SAFETY: ggml ends names with NUL.
    unsafe { CStr::from_ptr(tensor.name.as_ptr()) }.to_bytes()
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

/// A tensor's values without what lies between its rows, which may be another tensor's; none where its rows do not lie
/// together themselves.
pub(super) fn read_packed(tensor: &sys::ggml_tensor) -> Option<Vec<u8>> {
    let (n_bytes, offsets) = runs(tensor)?;
    let mut packed = vec![0; n_bytes * offsets.len()];
    for (run, offset) in packed.chunks_exact_mut(n_bytes.max(1)).zip(offsets) {
        // SAFETY: the backend has been synchronised, and the tensor has `n_bytes` at this offset.
        unsafe { sys::ggml_backend_tensor_get(tensor, run.as_mut_ptr().cast(), offset, n_bytes) };
    }
    Some(packed)
}

/// Puts back what [`read_packed`] gave; false where that is not of a tensor of this shape.
pub(super) fn write_packed(node: Node, packed: &[u8]) -> bool {
    let Some((n_bytes, offsets)) = runs(node.get()) else {
        return false;
    };
    if packed.len() != n_bytes * offsets.len() {
        return false;
    }
    for (run, offset) in packed.chunks_exact(n_bytes.max(1)).zip(offsets) {
        // SAFETY: the tensor has `n_bytes` at this offset, and is not being computed.
        unsafe { sys::ggml_backend_tensor_set(node.0, run.as_ptr().cast(), offset, n_bytes) };
    }
    true
}

/// The parts of a tensor that lie together: the bytes of each, and where they begin.
fn runs(tensor: &sys::ggml_tensor) -> Option<(usize, Vec<usize>)> {
    // SAFETY: the tensor is alive, here and below.
    if unsafe { sys::ggml_is_contiguous(tensor) } {
        // SAFETY: see above.
        return Some((unsafe { sys::ggml_nbytes(tensor) }, vec![0]));
    }
    // SAFETY: a type of ggml's.
    let n_bytes = unsafe { sys::ggml_row_size(tensor.type_, tensor.ne[0]) };
    // SAFETY: as above.
    if tensor.nb[0] != unsafe { sys::ggml_type_size(tensor.type_) } {
        return None;
    }
    let size =
        |dim: usize| 0..usize::try_from(tensor.ne[dim]).expect("ggml's sizes are not negative");
    let [_, nb1, nb2, nb3] = tensor.nb;
    let offsets = size(3).flat_map(|i3| {
        let of_matrix = move |i2| size(1).map(move |i1| i3 * nb3 + i2 * nb2 + i1 * nb1);
        size(2).flat_map(of_matrix)
    });
    Some((n_bytes, offsets.collect()))
}

/// Copies `rows` over a tensor in its backend's memory.
pub(super) fn write_rows(tensor: *mut sys::ggml_tensor, rows: &[f32]) {
    let n_bytes = size_of_val(rows);
    // SAFETY: as for reading; the graph does not go on before this call returns.
    unsafe { sys::ggml_backend_tensor_set(tensor, rows.as_ptr().cast(), 0, n_bytes) };
}
