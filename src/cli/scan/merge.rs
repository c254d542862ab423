//! `scan merge`: the tables of shards become that of the scan.

use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::{Overwrite, check_is_no_input};
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::scan::merge;

use super::warn_of_skipped;
use crate::cli::globs::expanded;
use crate::cli::outcome::{CommandResult, Outcome};
use crate::cli::progress::{Spinner, Verbosity};

/// Join the shards of a scan into its table
///
/// All shards are needed, in any order, each with the `.json` that was written beside it. The table and the
/// `.json` beside it are, to the byte, those of one scan, if one kind of processor computed all shards.
#[derive(Args)]
pub(in crate::cli) struct MergeArgs {
    /// The shards, or patterns such as `'part-*.parquet'`
    #[arg(required = true, value_name = "SHARD.parquet")]
    shards: Vec<PathBuf>,
    /// The Parquet file to write
    #[arg(short, long, value_name = "FILE.parquet")]
    output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &MergeArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    let shards = expanded(&args.shards)?;
    check_is_no_input(&args.output, shards.iter().cloned())?;
    let spinner = Spinner::start("joining the shards", verbosity);
    let merged = merge(&shards, &args.output, overwrite, cancel);
    spinner.finish();
    warn_of_skipped(&merged?);
    Ok(Outcome::Done)
}
