//! Single rows of a matrix in a GGUF file, multiplied on the processor.

use std::path::Path;

use gguf_tools::gguf::{TensorInfo, TensorType};
use llama_cpp_sys_2 as sys;

use super::backend;
use super::mapped_file::MappedFile;
use crate::{Error, MatrixRows, Result};

/// A matrix of f32 or f16 numbers as it lies in the memory-mapped file.
pub struct WeightRows {
    file: MappedFile,
    start: usize,
    n_columns: usize,
    tensor_type: TensorType,
}

impl WeightRows {
    /// Maps the matrix `tensor` of the file at `path`, whose header has been checked.
    ///
    /// # Errors
    /// When the file cannot be mapped, or holds other numbers than f32 and f16.
    pub fn open(path: &Path, tensor: &TensorInfo) -> Result<Self> {
        backend::start(); // fills ggml's table for f16
        let file = MappedFile::open(path)?;
        let size = |n: u64| usize::try_from(n).expect("the file is mapped, so its sizes fit");
        let (start, n_bytes) = (size(tensor.offset), size(tensor.n_bytes));
        let is_whole = file.bytes().len() >= start + n_bytes;
        let is_aligned = start.is_multiple_of(align_of::<f32>());
        let is_plain = matches!(tensor.tensor_type, TensorType::F32 | TensorType::F16);
        if !(is_whole && is_aligned && is_plain) {
            return Err(Error::invalid(format!(
                "the rows of `{}` in `{}` cannot be read in place",
                tensor.name,
                path.display()
            )));
        }
        Ok(Self {
            n_columns: size(tensor.dims[0]),
            tensor_type: tensor.tensor_type,
            file,
            start,
        })
    }
}

impl MatrixRows for WeightRows {
    fn row<'a>(&'a self, row_idx: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        let row_bytes = self.tensor_type.row_bytes(self.n_columns);
        let row_bytes = row_bytes.expect("rows of such numbers have any length");
        let start = self.start + row_idx * row_bytes;
        let bytes = &self.file.bytes()[start..start + row_bytes];
        if self.tensor_type == TensorType::F32 {
            // SAFETY: any four bytes are a number, and `open` proved the alignment.
            return unsafe { bytes.align_to::<f32>() }.1;
        }
        buffer.resize(self.n_columns, 0.0);
        // SAFETY: both hold `n_columns` numbers, of f16 and f32.
        unsafe {
            sys::ggml_cpu_fp16_to_fp32(
                bytes.as_ptr().cast(),
                buffer.as_mut_ptr(),
                self.n_columns as i64,
            );
        }
        buffer
    }

    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// The dot product of two rows of the same length, by ggml, in f32.
///
/// # Panics
/// When their lengths differ.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "rows of the same length");
    let n = i32::try_from(a.len()).expect("ggml counts columns in 32 bits");
    // SAFETY: f32 is one of ggml's types.
    let traits = unsafe { sys::ggml_get_type_traits_cpu(sys::GGML_TYPE_F32) };
    // SAFETY: the traits live as long as ggml.
    let vec_dot = unsafe { (*traits).vec_dot }.expect("ggml multiplies f32");
    let mut sum = 0.0;
    let (a, b) = (a.as_ptr().cast(), b.as_ptr().cast());
    // SAFETY: both are `n` numbers of f32, and the sum is one.
    unsafe { vec_dot(n, &raw mut sum, 0, a, 0, b, 0, 1) };
    sum
}
