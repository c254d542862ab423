//! Products of rows with a matrix: what a runtime brings, and one in memory.

use gguf_tools::Result;
use ndarray::ArrayView2;

/// Products of rows with all rows of a matrix.
pub trait RowProduct: Send {
    /// The rows' width.
    fn n_in(&self) -> usize;

    /// Multiplies: `rows` is `[n_rows, n_in]`, the result `[n_rows, n_out]`, and entry `(r, j)` the
    /// product of row `r` with the matrix's row `j`.
    ///
    /// # Errors
    /// When the runtime cannot compute.
    fn apply(&mut self, rows: &[f32]) -> Result<&[f32]>;
}

/// Single rows of a matrix, and their products.
pub trait MatrixRows: Send + Sync {
    /// Row `row_idx` in f32, `[n_columns]`; `buffer` holds it where it is stored otherwise.
    ///
    /// # Panics
    /// When there is no such row.
    fn row<'a>(&'a self, row_idx: usize, buffer: &'a mut Vec<f32>) -> &'a [f32];

    /// The dot product of two rows of the same length.
    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// A matrix of f32 numbers in memory.
pub struct InMemory {
    matrix: Vec<f32>, // [n_out, n_in]
    n_in: usize,
    outputs: Vec<f32>, // [n_rows, n_out], reused
}

impl InMemory {
    /// The matrix `[n_out, n_in]`.
    ///
    /// # Panics
    /// When it is not of whole rows.
    pub fn new(matrix: Vec<f32>, n_in: usize) -> Self {
        assert_eq!(matrix.len() % n_in, 0, "whole rows");
        Self {
            matrix,
            n_in,
            outputs: Vec::new(),
        }
    }
}

impl RowProduct for InMemory {
    fn n_in(&self) -> usize {
        self.n_in
    }

    fn apply(&mut self, rows: &[f32]) -> Result<&[f32]> {
        let shaped = |values| {
            let n_rows = <[f32]>::len(values) / self.n_in;
            ArrayView2::from_shape((n_rows, self.n_in), values).expect("whole rows")
        };
        let products = shaped(rows).dot(&shaped(&self.matrix).t());
        self.outputs.clear();
        self.outputs.extend(products.iter());
        Ok(&self.outputs)
    }
}

/// Sums side by side, which the compiler computes in vector registers.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}
