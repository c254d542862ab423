//! The command line: arguments, messages on stderr, exit codes.

mod arguments;
mod progress_bar;
mod show;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gguf_tools::llava::{self, LlavaOptions};
use gguf_tools::new_file::Overwrite;
use gguf_tools::sae::{self, SaeOptions};
use gguf_tools::{Error, ErrorKind, Result};

use self::arguments::{Arguments, Command, LlavaArguments, SaeArguments};
use self::progress_bar::ProgressBar;

/// The exit code for Ctrl-C, and for `kill`: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the program.
pub(super) fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log::set_logger(&Stderr).expect("set once");
    log::set_max_level(log::LevelFilter::Warn);
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has seen enough.
        Err(error) if error.io_kind() == Some(io::ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            match error.is_interrupted() {
                true => ExitCode::from(INTERRUPTED),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Llava(arguments) => convert_llava(&arguments),
        Command::Sae(arguments) => convert_sae(arguments),
        Command::Show(arguments) => show::show(&arguments),
    }
}

fn convert_llava(arguments: &LlavaArguments) -> Result<()> {
    let options = LlavaOptions {
        model_type: arguments.model_type,
        mmproj_type: arguments.mmproj_type,
        overwrite: Overwrite::if_forced(arguments.force),
    };
    let bar = ProgressBar::start();
    let files = llava::convert(
        &arguments.dir,
        &arguments.out_dir,
        &options,
        &mut |n_done, n_in_all| bar.update(n_done, n_in_all),
    )?;
    bar.finish();
    for line in &files.report {
        let _ = writeln!(io::stderr(), "{line}");
    }
    for path in files.model.iter().chain(&files.mmproj) {
        print_line(&path.display().to_string())?;
    }
    Ok(())
}

fn convert_sae(arguments: SaeArguments) -> Result<()> {
    let options = SaeOptions {
        weight_type: arguments.weight_type,
        norm_factor: arguments.norm_factor,
        hook_name: arguments.hook_name,
        labels: arguments.labels,
        overwrite: Overwrite::if_forced(arguments.force),
    };
    let bar = ProgressBar::start();
    let converted = sae::convert(
        &arguments.source,
        &arguments.target,
        &options,
        &mut |n_done, n_in_all| bar.update(n_done, n_in_all),
    )?;
    bar.finish();
    for line in &converted.report {
        let _ = writeln!(io::stderr(), "{line}");
    }
    print_line(&arguments.target.display().to_string())
}

fn print_line(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").map_err(Error::io("write to", "stdout".as_ref()))
}

fn print_error(error: &Error) {
    // Nothing is left to tell the user with when stderr is closed.
    let _ = writeln!(io::stderr(), "error: {error}");
    let option = match error.kind() {
        ErrorKind::Exists => " (`--force`)",
        ErrorKind::HookPointMissing => " (`--hook-name`)",
        ErrorKind::NormFactorMissing => " (`--norm-factor`)",
        _ => "",
    };
    if let Some(hint) = error.hint() {
        let _ = writeln!(io::stderr(), "hint: {hint}{option}");
    }
}

/// The library's warnings, on stderr.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let _ = writeln!(io::stderr(), "warning: {}", record.args());
        }
    }

    fn flush(&self) {}
}
