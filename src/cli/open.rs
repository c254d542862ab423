//! Models for other front ends that take the command line's options.

use std::ffi::OsString;

use clap::{CommandFactory, Parser};
use llava_sae_cpp::{CancelFlag, Error, Result, Session};

use super::args::ModelArgs;
use super::llama_flags;
use super::progress::Verbosity;

/// A model that arguments of the command line choose.
pub struct Opened {
    /// Runs on it.
    pub session: Session,
    /// What reports call the model.
    pub model: String,
    /// What reports call its SAEs.
    pub sae: String,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct OpenArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// Opens the model that `arguments` choose, as each command would: what is published and not here is downloaded, and
/// files that are new to this machine are tried first. An SAE is none where there is none.
///
/// # Errors
/// Arguments that no command would take; what opening meets.
pub fn open(arguments: impl IntoIterator<Item = OsString>, cancel: &CancelFlag) -> Result<Opened> {
    let arguments = llama_flags::with_long_names(&OpenArgs::command(), arguments.into_iter());
    let OpenArgs { model, verbosity } = OpenArgs::try_parse_from(arguments).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Error::invalid(first.trim_start_matches("error: "))
    })?;
    Ok(Opened {
        session: model.open_sae_or_none(verbosity, cancel)?,
        model: model.shown_model(),
        sae: model.shown_sae(),
    })
}
