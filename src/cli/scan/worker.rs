//! `scan --worker`: a process that stays warm and answers lines on stdin.

use std::io::{self, BufReader, ErrorKind};
use std::path::Path;

use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::pictures::Scan;
use llava_sae_cpp::scan::answer;

use super::ScanArgs;
use crate::cli::outcome::{CommandResult, Outcome};
use crate::cli::progress::Verbosity;

/// Bytes that are read at once; pictures in base64 are long lines.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) fn run(args: &ScanArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let files = args.opened_files(verbosity, cancel)?;
    let options = args.model.options()?;
    args.model.probe(&files, &options, verbosity, cancel)?;
    let scan = Scan {
        files: &files,
        options: &options,
        reading: args.items.reading(&args.prompt),
        dir: Path::new("."),
        jobs: 1,
        cancel,
    };
    let mut questions = BufReader::with_capacity(BUFFER_BYTES, io::stdin().lock());
    match answer(&scan, &mut questions, &mut io::stdout().lock()) {
        // Whoever reads the answers has seen enough.
        Err(error) if error.io_kind() == Some(ErrorKind::BrokenPipe) => Ok(Outcome::Done),
        answered => {
            answered?;
            Ok(Outcome::Done)
        }
    }
}
