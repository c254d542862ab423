//! A way to stop a run from elsewhere.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops what it was given to when another thread says so; its copies are one flag.
#[derive(Clone, Default)]
pub struct CancelFlag {
    is_set: Arc<AtomicBool>,
    ask: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl CancelFlag {
    /// A flag that asks `ask` too, until that says yes. It is asked often, from all threads that look at the flag.
    pub fn asking(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            is_set: Arc::default(),
            ask: Some(Arc::new(ask)),
        }
    }

    /// Asks to stop.
    pub fn cancel(&self) {
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn is_cancelled(&self) -> bool {
        if !self.is_set.load(Ordering::Relaxed) && self.ask.as_ref().is_some_and(|ask| ask()) {
            self.cancel();
        }
        self.is_set.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for CancelFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = self.is_set.load(Ordering::Relaxed);
        f.debug_tuple("CancelFlag").field(&is_set).finish()
    }
}

impl From<Arc<AtomicBool>> for CancelFlag {
    /// A flag that something else sets, such as a signal handler.
    fn from(is_set: Arc<AtomicBool>) -> Self {
        Self { is_set, ask: None }
    }
}
