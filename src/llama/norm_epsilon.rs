//! The epsilon of Qwen2-VL's norms, which llama.cpp does not read.
//!
//! The carried `src/models/qwen2vl.cpp` reads the sections of M-RoPE and no epsilon, which is 0 then: a row of
//! zeros becomes one of NaN, and small rows are off. So the norms get theirs before they are computed. A test
//! (`norms_get_the_epsilon_that_llama_cpp_misses`) says when this can go.

use std::path::Path;

use gguf_tools::gguf::{Gguf, Value};
use llama_cpp_sys_2 as sys;

use super::node::Node;
use crate::{Error, Result};

/// The architectures whose epsilon is missed.
const MISSED_IN: [&str; 1] = ["qwen2vl"];

/// The epsilon of a model's norms, where llama.cpp misses it.
///
/// # Errors
/// A file that cannot be read, or has none.
pub(super) fn missed(path: &Path, architecture: &str) -> Result<Option<f32>> {
    if !MISSED_IN.contains(&architecture) {
        return Ok(None);
    }
    let key = format!("{architecture}.attention.layer_norm_rms_epsilon");
    match Gguf::open_with_shards(path)?.get(&key) {
        Some(&Value::F32(epsilon)) => Ok(Some(epsilon)),
        _ => Err(Error::invalid(format!(
            "`{}` has no key `{key}`",
            path.display()
        ))),
    }
}

/// Gives a node that is not computed yet its epsilon, if it is a norm (`ggml_rms_norm` in `ggml.c`).
pub(super) fn put_in(node: Node, epsilon: f32) {
    if node.get().op == sys::GGML_OP_RMS_NORM {
        node.set_first_parameter(epsilon.to_bits().cast_signed());
    }
}
