//! What the format fixes: how files start, and ggml's limits.

use super::tensor_type::TensorType;

/// What a file starts with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensors start, in bytes, unless `general.alignment` says otherwise.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// ggml's limit on dimensions (`GGML_MAX_DIMS`).
pub(super) const MAX_DIMS: usize = 4;

/// ggml's limit on the bytes of a tensor's name (`GGML_MAX_NAME` without its NUL).
pub(super) const MAX_NAME_BYTES: usize = 63;

/// Bytes of a tensor; `None` if there is no value, blocks do not divide the rows, or the number of
/// values or bytes does not fit in a signed 64-bit number, ggml's own limit.
pub(super) fn tensor_bytes(tensor_type: TensorType, dims: &[u64]) -> Option<u64> {
    let n_values = dims.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim))?;
    let row_bytes = tensor_type.row_bytes(usize::try_from(dims[0]).ok()?)?;
    let n_rows = n_values.checked_div(dims[0])?;
    let n_bytes = n_rows.checked_mul(row_bytes as u64)?;
    let fits = |n: u64| (1..=i64::MAX as u64 / 2).contains(&n);
    (fits(n_values) && fits(n_bytes)).then_some(n_bytes)
}
