//! Reading and writing GGUF, llama.cpp's file format: a header of metadata and tensor shapes, then
//! the tensors' data.
//!
//! Source of the format: `ggml/src/gguf.cpp` of llama.cpp. This module knows nothing of what the
//! keys and tensors mean.

mod edits;
mod format;
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
