//! Vectors as numpy's arrays, which take them over without a copy.

use llava_sae_cpp::Activations;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

/// `indptr`, `indices` and `data` of a CSR matrix.
pub(crate) type Csr<'py> = (
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<f32>>,
);

/// A matrix with rows of `width`.
pub(crate) fn matrix<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    width: usize,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let n_rows = values.len() / width.max(1);
    values.into_pyarray(py).reshape([n_rows, width])
}

/// The active features of rows.
pub(crate) fn csr<'py>(py: Python<'py>, activations: &Activations) -> Csr<'py> {
    let ends = std::iter::once(&0).chain(activations.ends());
    let indptr: Vec<i64> = ends.map(|&end| end as i64).collect();
    (
        indptr.into_pyarray(py),
        activations.indices().to_vec().into_pyarray(py),
        activations.data().to_vec().into_pyarray(py),
    )
}
