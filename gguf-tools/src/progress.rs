//! Progress of long work, and the way to stop it.

use std::ops::ControlFlow;

use crate::{Error, Result};

/// Called with the bytes done and the bytes in all; [`ControlFlow::Break`] stops the work with
/// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted).
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// Counts the bytes done and reports them.
pub(crate) struct Meter<'a> {
    progress: Progress<'a>,
    n_done: u64,
    n_in_all: u64,
}

impl<'a> Meter<'a> {
    /// Starts at nothing done.
    pub(crate) fn new(progress: Progress<'a>, n_in_all: u64) -> Self {
        Self {
            progress,
            n_done: 0,
            n_in_all,
        }
    }

    /// Reports `n_bytes` more.
    ///
    /// # Errors
    /// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) when the caller wants to stop.
    pub(crate) fn advance(&mut self, n_bytes: u64) -> Result<()> {
        self.n_done += n_bytes;
        match (self.progress)(self.n_done, self.n_in_all) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::interrupted()),
        }
    }
}
