//! What goes to stderr besides errors: messages, and progress where it is a terminal.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;
use gguf_tools::terminal::printable;
use indicatif::{ProgressBar, ProgressStyle};
use llava_sae_cpp::CancelFlag;

/// How much goes to stderr.
#[derive(Args, Clone, Copy)]
pub(super) struct Verbosity {
    /// Print more, llama.cpp's messages included
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Print only results and errors
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Verbosity {
    pub(super) fn start_logging(self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => log::LevelFilter::Off,
            (_, true) => log::LevelFilter::Debug,
            _ => log::LevelFilter::Warn,
        };
        // What HTTP is made of is of no use to users.
        let of_http = level.min(log::LevelFilter::Warn);
        env_logger::Builder::new()
            .filter_level(level)
            .filter_module("rustls", of_http)
            .filter_module("ureq", of_http)
            .filter_module("ureq_proto", of_http)
            .format(|out, record| {
                let level = match record.level() {
                    log::Level::Error => "error",
                    log::Level::Warn => "warning",
                    _ => record.target(),
                };
                writeln!(out, "{level}: {}", printable(&record.args().to_string()))
            })
            .init();
    }

    pub(super) fn is_quiet(self) -> bool {
        self.quiet
    }
}

/// A spinner that disappears when it is dropped.
pub(super) struct Spinner(ProgressBar);

impl Spinner {
    pub(super) fn start(message: &'static str, verbosity: Verbosity) -> Self {
        if !wanted(verbosity) {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(message);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Clears the line, so that results can be printed.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A bar over things to do, which disappears when it is dropped.
pub(super) struct Counter(ProgressBar);

impl Counter {
    pub(super) fn start(message: &'static str, n_things: usize, verbosity: Verbosity) -> Self {
        if !wanted(verbosity) {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
        let style = style.expect("a constant template");
        let bar = ProgressBar::new(n_things as u64).with_message(message);
        Self(bar.with_style(style))
    }

    /// The same bar with things that are done already, which say nothing about the time that is left.
    #[cfg(feature = "scan")]
    pub(super) fn begun_at(self, n_done: usize) -> Self {
        self.0.set_position(n_done as u64);
        self.0.reset_eta();
        self
    }

    /// Lets something print without the bar in its way.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    /// Says how many are done, and how many there are, as far as is known.
    pub(super) fn set(&self, n_done: usize, n_things: usize) {
        self.0.set_length(n_things as u64);
        self.0.set_position(n_done as u64);
    }

    pub(super) fn advance(&self) {
        self.0.inc(1);
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A bar over bytes, as a progress callback of the conversions; it stops them when `cancel` is
/// set.
pub(super) fn byte_bar(
    message: &'static str,
    verbosity: Verbosity,
    cancel: CancelFlag,
) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    let bar = if wanted(verbosity) {
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {eta}";
        let style = ProgressStyle::with_template(style).expect("a constant template");
        ProgressBar::new(0).with_message(message).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
        if cancel.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn wanted(verbosity: Verbosity) -> bool {
    !verbosity.is_quiet() && std::io::stderr().is_terminal()
}
