//! A product of a few rows, as threads of ggml compute it together.

use std::cell::UnsafeCell;
use std::ffi::c_void;

use llama_cpp_sys_2 as sys;

use super::MAX_ROWS;
use super::kernels::{self, BLOCK, Kernel, MAX_AT_ONCE, Q8K, RowBlock};
use crate::llama::callback_state::CallbackState;
use crate::llama::node::{Node, is_in_memory, to_usize};
use crate::llama::shared_work::{Progress, SharedWork};

/// Outputs that a thread computes at a time: a cache line of each row's.
const OUTPUTS_AT_ONCE: usize = 16;

/// Memory that the products of a context share, which are computed one after another.
#[derive(Default)]
pub(super) struct Workspace {
    rows: Vec<UnsafeCell<RowBlock>>, // [n_blocks, n_rows] of the product at hand
}

/// A product, and how far it is.
pub(super) struct Product {
    weights: *const u8, // [n_out, n_blocks]
    bytes_of_output: usize,
    inputs: *const f32, // [n_rows, n_blocks · BLOCK]
    outputs: *mut f32,  // [n_rows, n_out]
    n_blocks: usize,
    n_rows: usize,
    n_out: usize,
    kernels: &'static [Kernel; MAX_AT_ONCE],
    quantise: unsafe extern "C" fn(*const f32, *mut c_void, i64),
    workspace: *const Workspace,
    progress: Progress,
}

impl Product {
    /// What computes a node that multiplies matrices, if it is one of those that are computed here. The workspace
    /// has room for it.
    pub(super) fn of(node: Node, workspace: &mut CallbackState<Workspace>) -> Option<Self> {
        let output = node.get();
        let weights = node.operand(0)?;
        let weights = weights.get();
        let kernels = kernels::kernels(weights.type_)?;
        let input = node.operand(1)?;
        let input = input.get();
        let [n_in, n_out, 1, 1] = weights.ne.map(to_usize) else {
            return None;
        };
        let [_, n_rows @ 2..=MAX_ROWS, 1, 1] = input.ne.map(to_usize) else {
            return None;
        };
        let has_hint = output.op_params[1] != 0; // that the weights are a known matrix (`ggml_mul_mat_set_hint`)
        let is_f32 = [output, input]
            .iter()
            .all(|it| it.type_ == sys::GGML_TYPE_F32);
        let is_here = [output, input, weights].into_iter().all(is_in_memory);
        if has_hint || !is_f32 || !is_here {
            return None;
        }
        let quantise = quantiser()?;
        let n_blocks = n_in / BLOCK;
        let n_row_blocks = n_blocks * n_rows;
        let rows = &mut workspace.get().rows;
        rows.resize_with(rows.len().max(n_row_blocks), || RowBlock::ZERO.into());
        Some(Self {
            weights: weights.data.cast(),
            bytes_of_output: weights.nb[1],
            inputs: input.data.cast(),
            outputs: output.data.cast(),
            n_blocks,
            n_rows,
            n_out,
            kernels,
            quantise,
            workspace: workspace.as_ptr(),
            progress: Progress::default(),
        })
    }
}

// SAFETY: threads read its numbers, and each writes rows and outputs that are no other's.
unsafe impl Sync for Product {}

impl SharedWork for Product {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn n_preparations(&self) -> usize {
        self.n_rows
    }

    /// Quantises a row, as ggml does for this product.
    fn prepare(&self, row: usize) {
        // SAFETY: the context's workspace, which is changed between computations only.
        let blocks = UnsafeCell::raw_get(unsafe { &*self.workspace }.rows.as_ptr());
        let n_values = self.n_blocks * BLOCK;
        for block in 0..self.n_blocks {
            let mut quantised = Q8K::ZERO;
            // SAFETY: the inputs have so many values.
            let values = unsafe { self.inputs.add(row * n_values + block * BLOCK) };
            let target = (&raw mut quantised).cast();
            // SAFETY: a block's values, and room for one block.
            unsafe { (self.quantise)(values, target, BLOCK as i64) };
            // SAFETY: the workspace has room for all, and this row is no other thread's.
            let target = unsafe { blocks.add(block * self.n_rows + row) };
            // SAFETY: as above.
            unsafe { target.write(RowBlock::from(&quantised)) };
        }
    }

    fn n_parts(&self) -> usize {
        self.n_out.div_ceil(OUTPUTS_AT_ONCE)
    }

    /// Multiplies some of the weights' rows with all rows.
    fn compute(&self, part: usize) {
        // SAFETY: as in `prepare`.
        let blocks = unsafe { &*self.workspace }.rows.as_ptr().cast();
        // SAFETY: all are written, and nobody writes before the next product.
        let rows = unsafe { std::slice::from_raw_parts(blocks, self.n_blocks * self.n_rows) };
        let n_passes = self.n_rows.div_ceil(MAX_AT_ONCE);
        let at_once = self.n_rows.div_ceil(n_passes);
        let mut sums = [0.0; MAX_AT_ONCE];
        let start = part * OUTPUTS_AT_ONCE;
        for output in start..self.n_out.min(start + OUTPUTS_AT_ONCE) {
            // SAFETY: there are weights for each output.
            let weights = unsafe { self.weights.add(output * self.bytes_of_output) };
            for first in (0..self.n_rows).step_by(at_once) {
                let sums = &mut sums[..at_once.min(self.n_rows - first)];
                let kernel = self.kernels[sums.len() - 1];
                // SAFETY: `Product::of` saw that the processor has what it takes, and the weights' type.
                unsafe { kernel(weights, rows, self.n_rows, first, sums) };
                for (row, sum) in (first..).zip(&*sums) {
                    // SAFETY: each row has so many outputs, and this one is no other thread's.
                    let target = unsafe { self.outputs.add(row * self.n_out + output) };
                    // SAFETY: as above.
                    unsafe { target.write(*sum) };
                }
            }
        }
    }
}

/// ggml's function that quantises rows for the kernels, where these compute what ggml would.
fn quantiser() -> Option<unsafe extern "C" fn(*const f32, *mut c_void, i64)> {
    // SAFETY: the type is in ggml's table.
    let traits = unsafe { sys::ggml_get_type_traits_cpu(sys::GGML_TYPE_Q8_K) };
    // SAFETY: the table lives as long as ggml.
    let from_float = unsafe { (*traits).from_float };
    from_float.filter(|_| kernels::is_supported())
}
