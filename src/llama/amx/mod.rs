//! Products of an image encoder with weights in f16, by AMX, the matrix units of Intel's server processors since 2023.
//!
//! ggml has no instructions for f16 there: it turns both factors to f32, 16 numbers at a time, having rounded the
//! rows to f16. The units multiply bfloat16, 16 times as many numbers in the same time, but that has 8 bits where f16
//! has 11: image rows would be off by 0.4 %. So each number is split into two of bfloat16, which for a weight is
//! exact, and for a row's number leaves an error of 2⁻¹⁷, and three of the four products of such parts are summed;
//! the fourth, of both lower parts, is below 2⁻¹⁶ of the product. The sums are more exact than ggml's.
//!
//! Left to ggml are weights of other types, few rows, devices, and other processors.

mod kernel;
mod product;
#[cfg(test)]
mod tests;

use llama_cpp_sys_2 as sys;

pub(super) use self::kernel::is_supported;
use self::product::{Product, Workspace};
use super::callback_state::CallbackState;
use super::node::Node;
use super::shared_work::{self, SharedWork};
use crate::{Error, Result};

/// The products of an image that are computed here.
#[derive(Default)]
pub(super) struct AmxProducts {
    products: Vec<CallbackState<Product>>, // of the graph at hand
    workspace: CallbackState<Workspace>,
}

impl AmxProducts {
    /// Changes a node, not computed yet, if it is computed faster here. It stays changed: mtmd builds a graph for
    /// each image.
    pub(super) fn put_in(&mut self, node: Node) {
        if node.get().op != sys::GGML_OP_MUL_MAT || !is_supported() {
            return;
        }
        let Some(product) = Product::of(node, &mut self.workspace) else {
            return;
        };
        let product = CallbackState::new(product);
        shared_work::put_in(node, product.as_ptr());
        self.products.push(product);
    }

    /// Forgets the products of a graph that has ended.
    ///
    /// # Errors
    /// A panic in one of them.
    pub(super) fn end_graph(&mut self) -> Result<()> {
        let mut has_failed = false;
        for mut product in self.products.drain(..) {
            has_failed |= product.get().progress().has_failed();
        }
        match has_failed {
            true => Err(Error::invalid("a product of the image encoder panicked")),
            false => Ok(()),
        }
    }
}
