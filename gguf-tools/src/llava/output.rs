//! The tensors of an output file: what each is made of, checked before anything is written.

use std::path::Path;

use super::checkpoint::Checkpoint;
use crate::Result;
use crate::gguf::{TensorType, TensorWriter, Writer};
use crate::progress::Meter;
use crate::weights::StoredTensor;

/// The type of matrices whose rows do not fit the wanted one.
const FALLBACK: TensorType = TensorType::F16;

/// Warns once if there are matrices in `file` that could not have the `wanted` type.
pub(super) fn warn_of_fallback(file: &Path, tensors: &[OutputTensor], wanted: TensorType) {
    let mut others = tensors
        .iter()
        .filter(|tensor| wanted != FALLBACK && tensor.tensor_type == FALLBACK);
    if let Some(first) = others.next() {
        log::warn!(
            "`{}`: {} matrices are stored as {} because the blocks of `{}` do not divide their rows, \
             such as `{}` with rows of {} numbers",
            file.display(),
            1 + others.count(),
            FALLBACK.name(),
            wanted.name(),
            first.name,
            first.shape.last().expect("matrices have columns")
        );
    }
}

/// One tensor of an output file.
#[derive(Debug)]
pub(super) struct OutputTensor {
    /// In the GGUF file.
    name: String,
    source: Source,
    /// Row-major, as PyTorch has it; ggml counts dimensions the other way round.
    shape: Vec<usize>,
    /// The checkpoint's, where that is another.
    source_shape: Option<Vec<usize>>,
    tensor_type: TensorType,
}

#[derive(Debug)]
enum Source {
    /// The checkpoint's tensor of that plain name, with a number added to each value.
    Stored { name: String, offset: f32 },
    /// The same with the two halves of each head's rows interleaved.
    Interleaved { name: String, d_head: usize },
    /// The same with rows of colours of each pixel turned into pixels of each colour.
    Turned { name: String },
    /// Values that the checkpoint does not have.
    Computed(Vec<f32>),
}

impl OutputTensor {
    /// The checkpoint's tensor `source`, of row-major `shape`.
    pub(super) fn new(
        name: String,
        source: String,
        shape: &[usize],
        tensor_type: TensorType,
    ) -> Self {
        Self {
            name,
            source: Source::Stored {
                name: source,
                offset: 0.0,
            },
            shape: shape.to_vec(),
            source_shape: None,
            tensor_type,
        }
    }

    /// As [`OutputTensor::new`], for a matrix in `wanted` type: q8_0 has blocks of 32 numbers, and a
    /// matrix with rows that they do not fill stays f16.
    pub(super) fn matrix(
        name: String,
        source: String,
        shape: [usize; 2],
        wanted: TensorType,
    ) -> Self {
        Self::matrices(name, source, &shape, wanted)
    }

    /// The same for a matrix or for several, one behind the other.
    pub(super) fn matrices(
        name: String,
        source: String,
        shape: &[usize],
        wanted: TensorType,
    ) -> Self {
        let n_columns = *shape.last().expect("a matrix has columns");
        let tensor_type = match wanted.row_bytes(n_columns) {
            Some(_) => wanted,
            None => FALLBACK,
        };
        Self::new(name, source, shape, tensor_type)
    }

    /// One number, which has no dimension in the checkpoint.
    pub(super) fn scalar(name: String, source: String) -> Self {
        Self {
            source_shape: Some(Vec::new()),
            ..Self::new(name, source, &[1], TensorType::F32)
        }
    }

    /// The kernel of a convolution, `[d_out, n_colours, side, side]`, of a matrix that takes the colours of each pixel
    /// together.
    pub(super) fn kernel(
        name: String,
        source: String,
        [d_out, n_colours, side]: [usize; 3],
    ) -> Self {
        Self {
            name,
            source: Source::Turned { name: source },
            shape: vec![d_out, n_colours, side, side],
            source_shape: Some(vec![d_out, n_colours * side * side]),
            tensor_type: TensorType::F32,
        }
    }

    /// The same with 1 added to every value.
    pub(super) fn plus_one(mut self) -> Self {
        if let Source::Stored { offset, .. } = &mut self.source {
            *offset = 1.0;
        }
        self
    }

    /// The same with the rows of each head of `d_head` in another order: the first of its first half,
    /// the first of its second, and so on.
    pub(super) fn interleaved(mut self, d_head: usize) -> Self {
        if let Source::Stored { name, .. } = self.source {
            self.source = Source::Interleaved { name, d_head };
        }
        self
    }

    /// The same with zeros for values; the checkpoint does not have it.
    pub(super) fn zeros(self) -> Self {
        let n_values = self.shape.iter().product();
        Self {
            source: Source::Computed(vec![0.0; n_values]),
            ..self
        }
    }

    /// A vector of values that the checkpoint does not have.
    pub(super) fn computed(name: String, values: Vec<f32>) -> Self {
        Self {
            name,
            shape: vec![values.len()],
            source_shape: None,
            source: Source::Computed(values),
            tensor_type: TensorType::F32,
        }
    }

    /// The plain name of the checkpoint's tensor that it is made of.
    pub(super) fn source(&self) -> Option<&str> {
        match &self.source {
            Source::Stored { name, .. }
            | Source::Interleaved { name, .. }
            | Source::Turned { name } => Some(name),
            Source::Computed(_) => None,
        }
    }

    /// Finds the tensor's source and checks its shape and number type.
    ///
    /// # Errors
    /// Where it is missing or does not fit.
    pub(super) fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        let Some(name) = self.source() else {
            return Ok(());
        };
        let stored = checkpoint.require(name)?;
        stored.check(self.source_shape.as_ref().unwrap_or(&self.shape))
    }

    /// Bytes that [`OutputTensor::write`] will read.
    pub(super) fn n_source_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let stored = self.source().and_then(|name| checkpoint.get(name));
        stored.map_or(0, StoredTensor::n_bytes)
    }

    /// Announces the tensor in the file's header.
    pub(super) fn declare(&self, writer: &mut Writer) {
        let dims: Vec<u64> = self.shape.iter().rev().map(|&n| n as u64).collect();
        writer.declare(&self.name, &dims, self.tensor_type);
    }

    /// Streams the values into the file.
    ///
    /// # Errors
    /// Those of reading and writing, and a value that is not finite or too large for the type.
    pub(super) fn write(
        &self,
        checkpoint: &Checkpoint,
        writer: &mut TensorWriter,
        meter: &mut Meter,
    ) -> Result<()> {
        match &self.source {
            Source::Stored { name, offset } => {
                let mut blocks = checkpoint.require(name)?.blocks()?;
                while let Some((values, n_bytes)) = blocks.next()? {
                    // Not for all: adding 0 would turn -0 into 0.
                    if *offset != 0.0 {
                        values.iter_mut().for_each(|value| *value += offset);
                    }
                    writer.write_f32(values)?;
                    meter.advance(n_bytes)?;
                }
                Ok(())
            }
            Source::Interleaved { name, d_head } => {
                let stored = checkpoint.require(name)?;
                let mut rows = stored.open()?;
                let mut row = vec![0.0; self.shape[1]];
                for row_idx in 0..self.shape[0] {
                    let (head, place) = (row_idx / d_head * d_head, row_idx % d_head);
                    let first_idx = (head + place / 2 + place % 2 * (d_head / 2)) * row.len();
                    let n_bytes = rows.read_at(first_idx, &mut row)?;
                    stored.check_finite(&row, first_idx)?;
                    writer.write_f32(&row)?;
                    meter.advance(n_bytes)?;
                }
                Ok(())
            }
            Source::Turned { name } => {
                let [d_out, n_colours, side, _] = self.shape[..] else {
                    unreachable!("a kernel has four dimensions");
                };
                let stored = checkpoint.require(name)?;
                let mut rows = stored.open()?;
                let mut row = vec![0.0; n_colours * side * side];
                for row_idx in 0..d_out {
                    let first_idx = row_idx * row.len();
                    let n_bytes = rows.read_at(first_idx, &mut row)?;
                    stored.check_finite(&row, first_idx)?;
                    let colour = |colour| row[colour..].iter().step_by(n_colours).copied();
                    let turned: Vec<f32> = (0..n_colours).flat_map(colour).collect();
                    writer.write_f32(&turned)?;
                    meter.advance(n_bytes)?;
                }
                Ok(())
            }
            Source::Computed(values) => writer.write_f32(values),
        }
    }
}
