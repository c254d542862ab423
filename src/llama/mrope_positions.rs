//! The fourth position of rows, by which the carried llama.cpp turns some pairs of Qwen3-VL's heads.
//!
//! Its interleaved M-RoPE takes time, row and column in turn; what the sections leave over turns by time in
//! transformers (`apply_interleaved_mrope` in `modeling_qwen3_vl.py`), and by the fourth position in ggml
//! (`ggml_mrope_cache_init` in `ggml-cpu/ops.cpp`), which llama.cpp sets to 0 for text. In published models these are
//! two slow pairs, in others more. So the fourth becomes the first before rows are turned. A test
//! (`pairs_that_are_left_over_turn_by_time`) says when this can go.

use llama_cpp_sys_2 as sys;

use super::node::{Node, read_bytes, write_bytes};
use crate::{Error, Result};

/// The architectures whose graphs have it.
const ARCHITECTURES: [&str; 2] = ["qwen3vl", "qwen3vlmoe"];

/// Whether an architecture's rows are turned so.
pub(super) fn are_interleaved(architecture: &str) -> bool {
    ARCHITECTURES.contains(&architecture)
}

/// Sets the fourth positions in a node that is not computed yet, if it turns rows.
///
/// # Errors
/// Positions of another form.
pub(super) fn put_in(node: Node) -> Result<()> {
    let Some(positions) = (node.get().op == sys::GGML_OP_ROPE)
        .then(|| node.operand(1))
        .flatten()
    else {
        return Ok(());
    };
    // `llm_graph_input_pos` in `llama-graph.cpp`: all first positions, then all second ones, …
    let [n_numbers, 1, 1, 1] = positions.get().ne else {
        return Err(unexpected(positions));
    };
    let n_numbers = usize::try_from(n_numbers).expect("ggml's sizes are not negative");
    if positions.get().type_ != sys::GGML_TYPE_I32 || !n_numbers.is_multiple_of(4) {
        return Err(unexpected(positions));
    }
    let mut bytes = vec![0; n_numbers * size_of::<i32>()];
    read_bytes(positions.get(), &mut bytes);
    let (others, fourth) = bytes.split_at_mut(n_numbers / 4 * 3 * size_of::<i32>());
    let first = &others[..fourth.len()];
    // Most graphs turn rows by one tensor, which the first node of them has put right.
    if fourth != first {
        fourth.copy_from_slice(first);
        write_bytes(positions, &bytes);
    }
    Ok(())
}

fn unexpected(positions: Node) -> Error {
    let shape = positions.get().ne;
    Error::invalid(format!(
        "expected four positions a row in the graph, got shape {shape:?}"
    ))
}
