//! A product of many rows, as threads of ggml compute it together.

use std::cell::{RefCell, UnsafeCell};

use llama_cpp_sys_2 as sys;

use super::kernel::{self, PANEL, STEP, Step, Sums};
use crate::llama::callback_state::CallbackState;
use crate::llama::node::{Node, is_in_memory, to_usize};
use crate::llama::shared_work::{Progress, SharedWork};

/// The fewest rows that are multiplied here: less than a panel is mostly padding.
const MIN_ROWS: usize = PANEL;

/// Panels of weights that a thread multiplies with all rows, and steps of each: half a megabyte, which stays in its
/// cache.
const PANELS_AT_ONCE: usize = 4;
const STEPS_AT_ONCE: usize = 32;

/// Memory that the products of an encoder share, which are computed one after another.
#[derive(Default)]
pub(super) struct Workspace {
    rows: Vec<UnsafeCell<Step>>, // [n_row_panels, n_steps] of the product at hand
}

/// What a thread keeps between products.
struct Scratch {
    weights: Vec<Step>, // [PANELS_AT_ONCE, STEPS_AT_ONCE]
    sums: Vec<Sums>,    // [n_row_panels, PANELS_AT_ONCE]
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { weights: Vec::new(), sums: Vec::new() })
    };
}

/// A product, and how far it is.
pub(super) struct Product {
    weights: *const u8, // [n_out, n_in] in f16
    inputs: *const f32, // [n_rows, n_in]
    outputs: *mut f32,  // [n_rows, n_out]
    n_in: usize,
    n_rows: usize,
    n_out: usize,
    workspace: *const Workspace,
    progress: Progress,
}

// SAFETY: threads read its numbers, and each writes panels and outputs that are no other's.
unsafe impl Sync for Product {}

impl Product {
    /// What computes a node that multiplies matrices, if it is one of those that are computed here. The workspace
    /// has room for it.
    pub(super) fn of(node: Node, workspace: &mut CallbackState<Workspace>) -> Option<Self> {
        let output = node.get();
        let weights = node.operand(0)?;
        let weights = weights.get();
        let input = node.operand(1)?;
        let input = input.get();
        let [n_in, n_out, 1, 1] = weights.ne.map(to_usize) else {
            return None;
        };
        let [_, n_rows, 1, 1] = input.ne.map(to_usize) else {
            return None;
        };
        let has_types = weights.type_ == sys::GGML_TYPE_F16
            && [output, input]
                .iter()
                .all(|it| it.type_ == sys::GGML_TYPE_F32);
        if n_rows < MIN_ROWS
            || !has_types
            || ![output, input, weights].into_iter().all(is_in_memory)
        {
            return None;
        }
        let n_steps = n_in.div_ceil(STEP) * n_rows.div_ceil(PANEL);
        let rows = &mut workspace.get().rows;
        rows.resize_with(rows.len().max(n_steps), || Step::ZERO.into());
        Some(Self {
            weights: weights.data.cast(),
            inputs: input.data.cast(),
            outputs: output.data.cast(),
            n_in,
            n_rows,
            n_out,
            workspace: workspace.as_ptr(),
            progress: Progress::default(),
        })
    }

    fn n_steps(&self) -> usize {
        self.n_in.div_ceil(STEP)
    }

    /// Packs the weights of a panel from this step on.
    fn pack_weights(&self, panel: usize, first_step: usize, steps: &mut [Step]) {
        let outputs = panel * PANEL..self.n_out.min((panel + 1) * PANEL);
        for (step_idx, step) in (first_step..).zip(steps) {
            let numbers = step_idx * STEP..self.n_in.min((step_idx + 1) * STEP);
            let rows = outputs.clone().map(|output| {
                // SAFETY: each output has `n_in` weights of two bytes.
                let start = unsafe { self.weights.add(2 * (output * self.n_in + numbers.start)) };
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts(start, 2 * numbers.len()) }
            });
            // SAFETY: the processor was asked before there was a product.
            unsafe { kernel::pack_weights(step, rows) };
        }
    }

    /// Writes the sums of a panel of weights with a panel of rows.
    fn write(&self, panel: usize, row_panel: usize, sums: &Sums) {
        // SAFETY: the processor was asked before there was a product.
        let sums = unsafe { sums.by_row() };
        let first = panel * PANEL;
        let n_outputs = PANEL.min(self.n_out - first);
        for (row, sums) in (row_panel * PANEL..self.n_rows).zip(&sums) {
            // SAFETY: each row has `n_out` outputs, and these are no other thread's.
            let target = unsafe { self.outputs.add(row * self.n_out + first) };
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(sums.as_ptr(), target, n_outputs) };
        }
    }
}

impl SharedWork for Product {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn n_preparations(&self) -> usize {
        self.n_rows.div_ceil(PANEL)
    }

    /// Packs a panel of rows.
    fn prepare(&self, row_panel: usize) {
        let n_steps = self.n_steps();
        // SAFETY: the encoder's workspace, which is changed between graphs only.
        let steps = unsafe { &(&(*self.workspace).rows)[row_panel * n_steps..][..n_steps] };
        for (step_idx, step) in steps.iter().enumerate() {
            let numbers = step_idx * STEP..self.n_in.min((step_idx + 1) * STEP);
            let rows = row_panel * PANEL..self.n_rows.min((row_panel + 1) * PANEL);
            let rows = rows.map(|row| {
                // SAFETY: each row has `n_in` numbers.
                let start = unsafe { self.inputs.add(row * self.n_in + numbers.start) };
                // SAFETY: as above.
                unsafe { std::slice::from_raw_parts(start, numbers.len()) }
            });
            // SAFETY: this panel is no other thread's.
            let step = unsafe { &mut *step.get() };
            // SAFETY: the processor was asked before there was a product.
            unsafe { kernel::pack_rows(step, rows) };
        }
    }

    fn n_parts(&self) -> usize {
        self.n_out.div_ceil(PANEL).div_ceil(PANELS_AT_ONCE)
    }

    /// Multiplies some panels of weights with all rows.
    fn compute(&self, part: usize) {
        let (n_steps, n_row_panels) = (self.n_steps(), self.n_preparations());
        // SAFETY: as in `prepare`.
        let rows = unsafe { &*self.workspace }.rows.as_ptr().cast::<Step>();
        // SAFETY: all are written, and nobody writes before the next product.
        let rows = unsafe { std::slice::from_raw_parts(rows, n_row_panels * n_steps) };
        let first = part * PANELS_AT_ONCE;
        let panels = first..self.n_out.div_ceil(PANEL).min(first + PANELS_AT_ONCE);
        SCRATCH.with_borrow_mut(|Scratch { weights, sums }| {
            weights.resize(PANELS_AT_ONCE * STEPS_AT_ONCE, Step::ZERO);
            sums.clear();
            sums.resize(n_row_panels * panels.len(), Sums::ZERO);
            for first_step in (0..n_steps).step_by(STEPS_AT_ONCE) {
                let steps = first_step..n_steps.min(first_step + STEPS_AT_ONCE);
                let packed = weights.chunks_exact_mut(STEPS_AT_ONCE);
                for (panel, packed) in panels.clone().zip(packed) {
                    self.pack_weights(panel, first_step, &mut packed[..steps.len()]);
                }
                for (rows, sums) in rows
                    .chunks_exact(n_steps)
                    .zip(sums.chunks_exact_mut(panels.len()))
                {
                    for (weights, sums) in weights.chunks_exact(STEPS_AT_ONCE).zip(sums) {
                        // SAFETY: the processor was asked before there was a product.
                        unsafe { kernel::multiply(weights, &rows[steps.clone()], sums) };
                    }
                }
            }
            for (row_panel, sums) in sums.chunks_exact(panels.len()).enumerate() {
                for (panel, sums) in panels.clone().zip(sums) {
                    self.write(panel, row_panel, sums);
                }
            }
        });
    }
}
