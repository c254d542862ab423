//! Reading and writing GGUF, llama.cpp's file format: a header of metadata and tensor shapes, then
//! the tensors' data.
//!
//! Source of the format: `ggml/src/gguf.cpp` of llama.cpp. This module knows nothing of what the
//! keys and tensors mean.

mod edits;
mod header;
mod reader;
mod shards;
mod source;
mod tensor_type;
mod value;
mod writer;

pub use edits::Edits;
pub use reader::Gguf;
pub use shards::ShardName;
pub use source::TensorInfo;
pub use tensor_type::TensorType;
pub use value::{Array, Value};
pub(crate) use writer::checksum;
pub use writer::{TensorWriter, Writer};

pub use crate::new_file::Overwrite;

const MAGIC: [u8; 4] = *b"GGUF";

/// Where tensors start, in bytes, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// ggml's limit on dimensions (`GGML_MAX_DIMS`).
const MAX_DIMS: usize = 4;

/// ggml's limit on the bytes of a tensor's name (`GGML_MAX_NAME` less its NUL).
const MAX_NAME_BYTES: usize = 63;

/// Bytes of a tensor; `None` if there is no value, blocks do not divide the rows, or the number of
/// values or bytes does not fit in a signed 64-bit number, ggml's own limit.
fn tensor_bytes(tensor_type: TensorType, dims: &[u64]) -> Option<u64> {
    let n_values = dims.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim))?;
    let row_bytes = tensor_type.row_bytes(usize::try_from(dims[0]).ok()?)?;
    let n_rows = n_values.checked_div(dims[0])?;
    let n_bytes = n_rows.checked_mul(row_bytes as u64)?;
    let fits = |n: u64| (1..=i64::MAX as u64 / 2).contains(&n);
    (fits(n_values) && fits(n_bytes)).then_some(n_bytes)
}
