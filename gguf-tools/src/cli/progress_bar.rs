//! Progress on stderr, where that is a terminal, and Ctrl-C or `kill`.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressStyle;

/// The bar of one conversion. Ctrl-C, `kill` and a closed terminal end the conversion at its next
/// step, so that it can clean up.
pub(super) struct ProgressBar {
    bar: indicatif::ProgressBar,
    is_interrupted: Arc<AtomicBool>,
}

impl ProgressBar {
    /// Shows an empty bar and catches the signals from now on.
    pub(super) fn start() -> Self {
        let is_interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_interrupted);
        if let Err(error) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
            log::warn!("Ctrl-C will end the program at once: {error}");
        }
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {eta}")
                .expect("the template is valid");
            indicatif::ProgressBar::new(0).with_style(style)
        } else {
            indicatif::ProgressBar::hidden()
        };
        Self {
            bar,
            is_interrupted,
        }
    }

    /// Moves the bar; breaks after a signal.
    pub(super) fn update(&self, n_done: u64, n_in_all: u64) -> ControlFlow<()> {
        self.bar.set_length(n_in_all);
        self.bar.set_position(n_done);
        if self.is_interrupted.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Clears the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        self.finish();
    }
}
