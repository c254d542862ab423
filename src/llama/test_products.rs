//! Products of random matrices, for tests of those that are not ggml's.

use std::ptr;

use llama_cpp_sys_2 as sys;

use super::backend;
use super::node::Node;
use super::tensor_context::{GRAPH_NODES, TensorContext};

/// What changes nodes.
pub(super) trait Products {
    fn put_in(&mut self, node: Node);
    fn end_graph(&mut self, node: Node);
}

/// Numbers that are the same each time, from -1 to 1, one in 16 of them much larger.
pub(super) fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
        if state.is_multiple_of(16) {
            30.0 * number
        } else {
            number
        }
    };
    (0..n).map(|_| next()).collect()
}

/// A matrix of this type, `[n_out, width]`, as ggml quantises random numbers.
pub(super) fn weights(weights: sys::ggml_type, width: usize, n_out: usize) -> Vec<u8> {
    let numbers = numbers(n_out * width);
    let [n_rows, n_columns] = [n_out, width].map(|n| n as i64);
    // SAFETY: the type is one of ggml's, and rows are whole blocks.
    let mut bytes = vec![0; n_out * unsafe { sys::ggml_row_size(weights, n_columns) }];
    let target = bytes.as_mut_ptr().cast();
    // SAFETY: as many numbers as it is told, and room for their blocks.
    unsafe {
        sys::ggml_quantize_chunk(
            weights,
            numbers.as_ptr(),
            target,
            0,
            n_rows,
            n_columns,
            ptr::null(),
        );
    }
    bytes
}

/// The product of rows, `[n_rows, width]`, with a matrix, on so many threads, and whether it was computed here.
pub(super) fn multiply(
    products: &mut impl Products,
    (weights_type, weights): (sys::ggml_type, &[u8]),
    (width, rows): (usize, &[f32]),
    threads: usize,
) -> (Vec<f32>, bool) {
    backend::start();
    let context = TensorContext::new(3).expect("memory");
    let context = context.as_ptr();
    // SAFETY: a type of ggml's, here and below: all is alive to the end, and shapes agree.
    let n_out = weights.len() / unsafe { sys::ggml_row_size(weights_type, width as i64) };
    let n_rows = rows.len() / width;
    let [n_in, n_out_, n_rows_] = [width, n_out, n_rows].map(|n| n as i64);
    // SAFETY: see above.
    let w = unsafe { sys::ggml_new_tensor_2d(context, weights_type, n_in, n_out_) };
    // SAFETY: see above.
    let x = unsafe { sys::ggml_new_tensor_2d(context, sys::GGML_TYPE_F32, n_in, n_rows_) };
    // SAFETY: see above.
    let y = unsafe { sys::ggml_mul_mat(context, w, x) };
    // SAFETY: see above.
    let cpu = unsafe { sys::ggml_backend_cpu_init() };
    // SAFETY: see above.
    unsafe { sys::ggml_backend_cpu_set_n_threads(cpu, threads as i32) };
    // SAFETY: see above.
    let buffer = unsafe { sys::ggml_backend_alloc_ctx_tensors(context, cpu) };
    // SAFETY: the tensor has that many bytes.
    unsafe { sys::ggml_backend_tensor_set(w, weights.as_ptr().cast(), 0, weights.len()) };
    // SAFETY: as above.
    unsafe { sys::ggml_backend_tensor_set(x, rows.as_ptr().cast(), 0, size_of_val(rows)) };
    // SAFETY: the context has room for it.
    let graph = unsafe { sys::ggml_new_graph_custom(context, GRAPH_NODES, false) };
    // SAFETY: see above.
    unsafe { sys::ggml_build_forward_expand(graph, y) };
    products.put_in(Node(y));
    let is_ours = Node(y).get().op == sys::GGML_OP_CUSTOM;
    // SAFETY: see above.
    let status = unsafe { sys::ggml_backend_graph_compute(cpu, graph) };
    assert_eq!(status, sys::GGML_STATUS_SUCCESS);
    products.end_graph(Node(y));
    let mut outputs = vec![0.0_f32; n_rows * n_out];
    let target = outputs.as_mut_ptr().cast();
    // SAFETY: the tensor has that many bytes.
    unsafe { sys::ggml_backend_tensor_get(y, target, 0, size_of_val(&outputs[..])) };
    // SAFETY: made above and freed once.
    unsafe { sys::ggml_backend_buffer_free(buffer) };
    // SAFETY: as above.
    unsafe { sys::ggml_backend_free(cpu) };
    (outputs, is_ours)
}
