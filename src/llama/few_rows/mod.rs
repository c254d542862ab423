//! Steps of several sequences: a few rows, multiplied with K-quantised weights.
//!
//! For fewer than 8 rows the carried ggml multiplies each row by itself, and unpacks the weights anew for each
//! (`ggml_compute_forward_mul_mat_one_chunk` in `ggml-cpu.c`); from 8 rows on its kernel computes 16
//! (`ggml-cpu/tiled`). Here weights are unpacked once for all rows, and each row gets the numbers of a step of its
//! own. A node of the graph gets the operation that calls back, before it is computed, and its own one back
//! at the graph's end, since llama.cpp uses graphs again.
//!
//! Left to ggml are weights of other types, repacked ones, devices, and processors without AVX2.

mod kernels;
mod product;
#[cfg(test)]
mod tests;

use llama_cpp_sys_2 as sys;

use self::product::{Product, Workspace};
use super::callback_state::CallbackState;
use super::node::Node;
use super::shared_work::{self, SharedWork};
use crate::{Error, Result};

/// The most rows that are multiplied here; with more, ggml is as fast.
const MAX_ROWS: usize = 16;

/// The products of a step that are computed here.
pub(super) struct FewRows {
    is_step: bool,
    replaced: Vec<Replaced>, // of the graph at hand
    workspace: CallbackState<Workspace>,
}

/// A node, with what it was, and what computes it.
struct Replaced {
    node: Node,
    op: sys::ggml_op,
    op_params: [i32; 16],
    product: CallbackState<Product>,
}

impl FewRows {
    pub(super) fn new() -> Self {
        Self {
            is_step: false,
            replaced: Vec::new(),
            workspace: CallbackState::new(Workspace::default()),
        }
    }

    /// Says that the graph until [`Self::end_graph`], and no other, is a step.
    pub(super) fn begin_step(&mut self) {
        self.is_step = true;
    }

    /// Changes a node of a step, not computed yet, if it is better computed here.
    pub(super) fn put_in(&mut self, node: Node) {
        if !self.is_step || node.get().op != sys::GGML_OP_MUL_MAT {
            return;
        }
        let Some(product) = Product::of(node, &mut self.workspace) else {
            return;
        };
        let product = CallbackState::new(product);
        self.replaced.push(Replaced {
            node,
            op: node.get().op,
            op_params: node.get().op_params,
            product,
        });
        let product = &self.replaced.last().expect("it was added").product;
        shared_work::put_in(node, product.as_ptr());
    }

    /// Gives the graph's nodes their operations back.
    ///
    /// # Errors
    /// A panic in one of the products.
    pub(super) fn end_graph(&mut self) -> Result<()> {
        self.is_step = false;
        let mut has_failed = false;
        for mut replaced in self.replaced.drain(..) {
            replaced.node.set_operation(replaced.op, replaced.op_params);
            has_failed |= replaced.product.get().progress().has_failed();
        }
        match has_failed {
            true => Err(Error::invalid("a product of a step's rows panicked")),
            false => Ok(()),
        }
    }
}
