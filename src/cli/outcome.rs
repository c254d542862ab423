//! How commands end, and what they print.

use std::io::{self, Write};

use gguf_tools::terminal::printable;
use llava_sae_cpp::Error;

use super::hints;

/// Why a command ended early.
pub(super) enum Failure {
    Library(Error),
    /// Stdout could not be written.
    Output(io::Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Library(error.into())
    }
}

/// How a command that did not fail ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// What was asked for was done, and its answer is no.
    Refuted,
    /// The user asked to stop; what there is has been printed.
    Interrupted,
}

pub(super) type CommandResult = Result<Outcome, Failure>;

const DONE: u8 = 0;
const FAILED: u8 = 1;
pub(super) const INTERRUPTED: u8 = 130;

pub(super) fn exit_code(result: CommandResult) -> u8 {
    match result {
        Ok(Outcome::Done) => DONE,
        Ok(Outcome::Refuted) => FAILED,
        Ok(Outcome::Interrupted) => INTERRUPTED,
        // Whoever reads our output has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
        Err(Failure::Output(error)) => {
            eprintln!("error: cannot write the output: {error}");
            FAILED
        }
        Err(Failure::Library(error)) if error.is_interrupted() => {
            eprintln!("error: interrupted");
            INTERRUPTED
        }
        Err(Failure::Library(error)) => {
            eprintln!("error: {}", printable(&error.to_string()));
            if let Some(hint) = hints::hint(&error) {
                eprintln!("hint: {}", printable(&hint));
            }
            FAILED
        }
    }
}

/// Runs a printer of results on stdout.
pub(super) fn print(printer: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> CommandResult {
    let mut stdout = io::stdout().lock();
    printer(&mut stdout)
        .and_then(|()| stdout.flush())
        .map_err(Failure::Output)?;
    Ok(Outcome::Done)
}
