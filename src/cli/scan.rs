//! `scan`: the features of a folder of pictures, as a Parquet file.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::{Overwrite, check_is_no_input};
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::scan::{Scan, ScanEvent, check_output, jobs_at_once, scan_folder};

use super::args::{ModelArgs, TextArgs};
use super::folder::{pictures_in, warn_of_gap};
use super::outcome::{CommandResult, Outcome};
use super::progress::{Counter, Spinner, Verbosity};

/// Write the features of a folder of pictures into a Parquet file
#[derive(Args)]
#[command(after_long_help = COLUMNS)]
pub(super) struct ScanArgs {
    /// The folder; pictures in folders below it have a class, their folder's name
    dir: PathBuf,
    /// The Parquet file to write
    #[arg(short, long, value_name = "FILE.parquet")]
    output: PathBuf,
    /// Pictures that are read at once; they share the threads and the language model's weights
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: NonZeroUsize,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    prompt: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const COLUMNS: &str = "\
A row for each picture and feature that it activates (on the image's rows), pictures by path, SAEs as they
are given, features by index:
  path     string          below the folder, with / between its parts
  class    string or null  the name of the folder that it lies in; null directly in the scanned one
  sae      string          the SAE's id; with several SAEs alone
  feature  int32           the feature's index
  label    string or null  its label
  sum      float32         its activations over the image's rows, summed
  max      float32         the largest of them
  count    int32           the number of image rows on which it is active

FILE.parquet.json says how many images of each class there are, how many were skipped, with which model
and settings, and the table's checksum; `top` reads both.

What is done is kept in FILE.parquet.parts until all is: after an interruption, the same command resumes. A
picture that cannot be read is reported and skipped. Hidden files, and those that systems keep for
themselves, are left out; a file is a picture by its name or by its first bytes.

Examples:
  llava-sae-cpp scan -d llava-gemma-2b pictures/ -o features.parquet
      One picture after the other, with all cores
  llava-sae-cpp scan --jobs 4 -d llava-gemma-2b pictures/ -o features.parquet
      Four at once, with a quarter of the cores each
  llava-sae-cpp scan -d gemma --sae layer-6.gguf --sae layer-12.gguf pictures/ -o both.parquet
      Two SAEs in one pass of the model, at the cost of both encoders
  llava-sae-cpp top features.parquet --class pizza
      What pictures in folders called `pizza` activate more than the others";

pub(super) fn run(args: ScanArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    check_output(&args.output, overwrite)?;
    let pictures = pictures_in(&args.dir, verbosity)?;
    let inputs = pictures.iter().map(|picture| picture.in_folder(&args.dir));
    check_is_no_input(&args.output, inputs.chain(args.model.given_files()))?;
    let files = args.model.announced_files(verbosity, &cancel)?;
    files.check()?;
    files.projector()?;
    let options = args.model.options()?;
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let jobs = jobs_at_once(&options, args.jobs.get());
    if jobs < args.jobs.get() && !verbosity.is_quiet() {
        eprintln!("reading one picture at a time, since all sessions share the device");
    }
    let scan = Scan {
        files: &files,
        options: &options,
        prompt: args.prompt.scanned(),
        dir: &args.dir,
        jobs,
        cancel: &cancel,
    };
    let totals = scan_folder(
        &scan,
        &pictures,
        &args.output,
        overwrite,
        &mut shown(pictures.len(), verbosity),
    )?;
    if totals.n_skipped > 0 {
        let n_pictures = totals.n_images + totals.n_skipped;
        warn_of_gap(&format!(
            "skipped {} of {n_pictures} pictures",
            totals.n_skipped
        ));
    }
    Ok(Outcome::Done)
}

/// Shows what happens in a scan of so many pictures, on stderr.
fn shown(n_pictures: usize, verbosity: Verbosity) -> impl FnMut(ScanEvent<'_>) {
    let (mut spinner, mut counter) = (None, None);
    let say = move |what: &str| {
        if !verbosity.is_quiet() {
            eprintln!("{what}");
        }
    };
    move |event| match event {
        ScanEvent::Checking => {
            spinner.replace(Spinner::start("checking the model's files", verbosity));
        }
        ScanEvent::Reading { n_done } => {
            spinner.take();
            if n_done > 0 {
                let n_left = n_pictures - n_done;
                say(&format!("resuming with {n_left} of {n_pictures} pictures"));
            }
            counter = Some(Counter::start("pictures", n_pictures, verbosity).begun_at(n_done));
        }
        ScanEvent::Read => counter.iter().for_each(Counter::advance),
        ScanEvent::Skipped(error) => counter.iter().for_each(|counter| {
            counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
            counter.advance();
        }),
        ScanEvent::Joining => {
            counter = None;
            spinner.replace(Spinner::start("writing the table", verbosity));
        }
        ScanEvent::Kept { n_done } => {
            spinner.take();
            counter = None;
            say(&format!(
                "{n_done} of {n_pictures} pictures are done; the same command resumes the scan"
            ));
        }
    }
}
