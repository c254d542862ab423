//! What runs leave out, and what is known of that.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something that a run leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// Prompts share the blocks below the hook.
    SharedPrompts,
    /// The model stops at the hook.
    StopAtHook,
    /// An addition at all positions is llama.cpp's control vector.
    ControlVector,
}

/// When shortcuts are tried against the whole graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TryShortcuts {
    /// Where another device than the processor computes, and with models whose graph is not known.
    #[default]
    OnDevices,
    /// Always.
    Always,
}

/// What is known of the shortcuts, by all contexts of a model.
#[derive(Debug)]
pub(crate) struct Shortcuts(Mutex<[Option<bool>; 3]>); // by `Shortcut`; none where it has not been tried

impl Shortcuts {
    /// Shortcuts that are tried before they are taken, or that are taken as they are.
    pub(crate) fn new(is_tried: bool) -> Self {
        Self(Mutex::new([(!is_tried).then_some(true); 3]))
    }

    /// Whether each holds, by `Shortcut`.
    pub(super) fn known(&self) -> MutexGuard<'_, [Option<bool>; 3]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `‖a − b‖ / ‖b − mean(b)‖`.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let mean = b.iter().map(|&b| f64::from(b)).sum::<f64>() / b.len() as f64;
    let square = |x: f64| x * x;
    let spread: f64 = b.iter().map(|&b| square(f64::from(b) - mean)).sum();
    let pairs = a.iter().zip(b);
    let difference: f64 = pairs
        .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
        .sum();
    (difference / spread).sqrt()
}
