//! What Python has raised in the middle of a run.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

/// What Python has raised, which ends a run.
#[derive(Clone, Default)]
pub(crate) struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    /// Keeps what it has raised.
    pub(crate) fn put(&self, error: PyErr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// What a run gave, unless something was raised.
    pub(crate) fn or<T>(&self, given: PyResult<T>) -> PyResult<T> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(raised) => Err(raised),
            None => given,
        }
    }
}
