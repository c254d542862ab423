//! What an image's rows see of one another where sliding windows are shorter than the image.
//!
//! llama.cpp keeps the window among rows that see one another (`set_input_kq_mask_impl` in
//! `src/llama-kv-cache.cpp`), and transformers does not (`token_type_ids_mask_function` in
//! `modeling_gemma3.py`). So masks are put right before attention reads them. A test
//! (`windows_shorter_than_an_image_do_not_part_its_rows`) says when this can go.

use llama_cpp_sys_2 as sys;

use super::node::{Node, read_bytes, write_bytes};
use crate::{Error, Result};

/// Lets all rows of an image see one another in an attention node that is not computed yet. The graph's rows are
/// the image's, which are more than `window`.
///
/// # Errors
/// A mask of another form.
pub(super) fn put_in(node: Node, window: usize) -> Result<()> {
    // `ggml_soft_max_ext` and `ggml_flash_attn_ext` in `ggml.c`.
    let mask = match node.get().op {
        sys::GGML_OP_SOFT_MAX => node.operand(1),
        sys::GGML_OP_FLASH_ATTN_EXT => node.operand(3),
        _ => None,
    };
    let Some(mask) = mask else {
        return Ok(());
    };
    let [_, n_rows, 1, 1] = mask.get().ne else {
        return Err(unexpected(mask));
    };
    let n_rows = usize::try_from(n_rows).expect("ggml's sizes are not negative");
    // SAFETY: the tensor is alive.
    let is_contiguous = unsafe { sys::ggml_is_contiguous(mask.get()) };
    // SAFETY: as above.
    let n_bytes = unsafe { sys::ggml_nbytes(mask.get()) };
    if !is_contiguous || n_rows <= window {
        return Err(unexpected(mask));
    }
    let mut bytes = vec![0; n_bytes];
    read_bytes(mask.get(), &mut bytes);
    // The window of the row before `behind` ends where the image begins, and it sees all that comes behind: it sees the
    // image alone. In a block without windows, the rows behind it see all that it sees already.
    let (head, behind) = bytes.split_at_mut(n_bytes / n_rows * window);
    let sees_image = &head[n_bytes / n_rows * (window - 1)..];
    for row in behind.chunks_exact_mut(sees_image.len()) {
        // What is seen is 0, whose bits are 0, and the rest −∞.
        row.iter_mut()
            .zip(sees_image)
            .for_each(|(row, seen)| *row &= seen);
    }
    write_bytes(mask, &bytes);
    Ok(())
}

fn unexpected(mask: Node) -> Error {
    let shape = mask.get().ne;
    Error::invalid(format!(
        "expected an attention mask of an image's rows, got shape {shape:?}"
    ))
}
