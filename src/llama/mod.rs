//! Thin owners over llama.cpp's C interface: the only unsafe code of this project.
//!
//! This folder knows tensors, rows and tokens, and nothing of features or SAEs. llama-cpp-2 is not
//! used: it has no way to set `cb_eval` and gives out no raw pointer, so a context with a hook has
//! to be made here.
//!
//! Each C function is wrapped once. An owner frees in `Drop`; [`Context`] and [`Mtmd`] keep the
//! [`Model`] they were made from alive.

#![allow(unsafe_code)]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod amx {
    //! Products as ggml computes them.
    #[derive(Default)]
    pub(super) struct AmxProducts;

    impl AmxProducts {
        pub(super) fn put_in(&mut self, _: super::node::Node) {}
        pub(super) fn end_graph(&mut self) -> crate::Result<()> {
            Ok(())
        }
    }

    pub(super) fn is_supported() -> bool {
        false
    }
}
mod backend;
mod callback_state;
mod context;
mod context_options;
mod eval_hook;
mod exact_gelu;
#[cfg(target_arch = "x86_64")]
mod few_rows;
#[cfg(not(target_arch = "x86_64"))]
mod few_rows {
    //! Products as ggml computes them.
    pub(super) struct FewRows;

    impl FewRows {
        pub(super) fn new() -> Self {
            Self
        }
        pub(super) fn begin_step(&mut self) {}
        pub(super) fn put_in(&mut self, _: super::node::Node) {}
        pub(super) fn end_graph(&mut self) -> crate::Result<()> {
            Ok(())
        }
    }
}
mod guard;
mod image_mask;
mod log_router;
mod mapped_file;
mod matrix_product;
mod model;
mod mrope_positions;
mod mtmd;
mod node;
mod norm_epsilon;
mod patch_embedding;
mod projector_type;
mod quantize;
mod recording;
mod rows;
mod sampler;
#[cfg(target_arch = "x86_64")]
mod shared_work;
mod tensor_context;
#[cfg(all(test, target_arch = "x86_64"))]
mod test_products;
mod tokenize;
mod vision;
mod vocabulary;
#[cfg(target_os = "linux")]
mod waiting;
#[cfg(not(target_os = "linux"))]
mod waiting {
    //! No OpenMP to speak to.
    pub(super) fn adapt() {}
}
mod weight_rows;

pub(crate) use backend::{BINDINGS_VERSION, computes_elsewhere, free_device_bytes, has_gpu};
pub use backend::{computed_by, exit_at_once, leave_models_to_the_system};
pub use context::Context;
pub(crate) use context::context_too_small;
pub use context_options::{ContextOptions, FlashAttention, KvType, MAX_SEQUENCES};
#[cfg(test)]
pub(crate) use eval_hook::SPOILED;
pub use eval_hook::{Edited, HookedNode, Pass, Reach, RowHook};
pub use matrix_product::{Matrix, MatrixProduct};
pub use model::{AddBos, Model, ModelOptions, Special};
pub use mtmd::{EncodedImage, Mtmd, Piece};
pub(crate) use projector_type::FAKE_TOKEN;
pub use projector_type::ProjectorType;
pub use quantize::{Quant, quantize};
pub use recording::RecordedGraph;
pub(crate) use recording::{CacheWrite, NodePlace, RecordedNode};
pub use rows::{Embeddings, Extent, MropePosition, Output, OutputRow, Rows};
pub use sampler::{Sampler, Sampling};
pub use vision::{Vision, VisionGraph, VisionOptions};
pub use weight_rows::WeightRows;
