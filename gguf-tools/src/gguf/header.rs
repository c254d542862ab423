//! Headers as they lie in the file.

use super::format::{DEFAULT_ALIGNMENT, MAGIC};
use super::tensor_type::TensorType;
use super::value::{Scalar, Value};

/// The version written.
const VERSION: u32 = 3;

/// A header that is being put together, keys first.
pub(super) struct Header {
    bytes: Vec<u8>,
    data_bytes: u64, // of the tensors so far, each with its padding
}

impl Header {
    pub(super) fn new(n_tensors: usize, n_keys: usize) -> Self {
        let mut bytes = Vec::from(MAGIC);
        VERSION.encode(&mut bytes);
        (n_tensors as u64).encode(&mut bytes);
        (n_keys as u64).encode(&mut bytes);
        Self {
            bytes,
            data_bytes: 0,
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn key(&mut self, key: &String, value: &Value) {
        key.encode(&mut self.bytes);
        value.encode(&mut self.bytes);
    }

    pub(super) fn tensor(
        &mut self,
        name: &String,
        dims: &[u64],
        tensor_type: TensorType,
        n_bytes: u64,
    ) {
        name.encode(&mut self.bytes);
        (dims.len() as u32).encode(&mut self.bytes);
        dims.iter().for_each(|dim| dim.encode(&mut self.bytes));
        tensor_type.code().encode(&mut self.bytes);
        self.data_bytes.encode(&mut self.bytes);
        self.data_bytes += n_bytes.next_multiple_of(DEFAULT_ALIGNMENT);
    }

    /// The header, and the padding behind it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend(padding(self.bytes.len() as u64));
        self.bytes
    }
}

/// The zeros between `n_bytes` and what follows on them.
pub(super) fn padding(n_bytes: u64) -> &'static [u8] {
    let n_padding = n_bytes.next_multiple_of(DEFAULT_ALIGNMENT) - n_bytes;
    &[0; DEFAULT_ALIGNMENT as usize][..n_padding as usize]
}
