//! Errors as Python's exceptions.

use std::io;

use llava_sae_cpp::{Error, ErrorKind, Result};
use pyo3::prelude::*;

/// The exception of `error`, which `llava_sae.errors` makes.
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let name = match (error.kind(), error.io_kind()) {
        (ErrorKind::Io, Some(io::ErrorKind::NotFound)) => "not_found",
        (ErrorKind::Io, Some(io::ErrorKind::PermissionDenied)) => "permission_denied",
        (kind, _) => kind.name(),
    };
    of_kind(py, name, &error.to_string(), error.hint())
}

/// The exception of a kind of failure.
pub(crate) fn of_kind(py: Python<'_>, name: &str, what: &str, hint: Option<&str>) -> PyErr {
    let made = py
        .import("llava_sae.errors")
        .and_then(|errors| errors.call_method1("of_kind", (name, what, hint)));
    made.map_or_else(|failure| failure, PyErr::from_value)
}

/// Turns our results into Python's.
pub(crate) trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}
