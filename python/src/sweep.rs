//! A sweep's report.

use llava_sae_cpp::report::sweep::Report;
use pyo3::prelude::*;

/// A sweep.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Sweep(pub(crate) Report);

#[pymethods]
impl Sweep {
    /// The object that `sweep --json` prints.
    fn report(&self) -> String {
        serde_json::to_string(&self.0).expect("plain data")
    }

    /// The page that `sweep --html` writes.
    fn page(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.html())
    }
}
