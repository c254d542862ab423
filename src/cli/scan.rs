//! `scan`: the features of a folder of pictures, as a Parquet file.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::{Overwrite, check_is_no_input};
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::scan::{
    FoundPicture, Parts, PictureFeatures, Scan, Settings, Totals, check_output, jobs_at_once, scan,
};
use llava_sae_cpp::{CancelFlag, Error, ModelFiles, SessionOptions};

use super::args::{ModelArgs, PromptArgs, Verbosity};
use super::folder::{none_read, pictures_in, warn_of_gap};
use super::progress::{Counter, Spinner};
use super::{CommandResult, Outcome};

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
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const COLUMNS: &str = "\
A row for each picture and feature that it activates (on the image's rows), pictures by path, features by
index:
  path     string          below the folder, with / between its parts
  class    string or null  the name of the folder that it lies in; null directly in the scanned one
  feature  int32           the feature's index
  label    string or null  its label
  sum      float32         its activations over the image's rows, summed
  max      float32         the largest of them
  count    int32           the number of image rows on which it is active

FILE.parquet.json says how many images of each class there are, how many were skipped, with which model
and settings, and the table's checksum; `top` reads both.

What is done is kept in FILE.parquet.parts until all is: interrupted, the same command goes on. A
picture that cannot be read is reported and skipped. Hidden files, and those that systems keep for
themselves, are left out; a file is a picture by its name or by how it begins.

Examples:
  llava-sae-cpp scan -d llava-gemma-2b pictures/ -o features.parquet
      One picture after the other, with all cores
  llava-sae-cpp scan --jobs 4 -d llava-gemma-2b pictures/ -o features.parquet
      Four at once, with a quarter of the cores each
  llava-sae-cpp top features.parquet --class pizza
      What pictures in folders called `pizza` activate more than the others";

pub(super) fn run(args: ScanArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    check_output(&args.output, overwrite)?;
    let pictures = pictures_in(&args.dir, verbosity)?;
    let inputs = pictures.iter().map(|picture| picture.in_folder(&args.dir));
    check_is_no_input(&args.output, inputs.chain(args.model.given_files()))?;
    let files = args.model.announced_files(verbosity)?;
    files.check()?;
    files.projector()?;
    let options = args.model.options();
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let jobs = jobs_at_once(&options, args.jobs.get());
    if jobs < args.jobs.get() && !verbosity.is_quiet() {
        eprintln!("reading one picture at a time, since all sessions share the device");
    }
    let mut parts = open_parts(&args, &files, &options, &pictures, verbosity, &cancel)?;
    let scan = Scan {
        files: &files,
        options: &options,
        prompt: args.prompt.scanned(),
        dir: &args.dir,
        jobs,
        cancel: &cancel,
    };
    let totals = match read_pictures(&mut parts, &scan, &pictures, verbosity) {
        Ok(()) => join(parts, &args, overwrite, &cancel, verbosity),
        Err(error) => {
            // Where there is no room, this fails for the reason that is told already.
            let _ = parts.finish_part();
            Err((error, parts.progress().n_done))
        }
    };
    let totals = totals.map_err(|(error, n_kept)| {
        if n_kept > 0 && !verbosity.is_quiet() {
            let n_pictures = pictures.len();
            eprintln!("{n_kept} of {n_pictures} pictures are done; the same command goes on");
        }
        error
    })?;
    if totals.n_skipped > 0 {
        let n_pictures = totals.n_images + totals.n_skipped;
        warn_of_gap(&format!(
            "skipped {} of {n_pictures} pictures",
            totals.n_skipped
        ));
    }
    Ok(Outcome::Done)
}

fn open_parts(
    args: &ScanArgs,
    files: &ModelFiles,
    options: &SessionOptions,
    pictures: &[FoundPicture],
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<Parts> {
    let _spinner = Spinner::start("checking the model's files", verbosity);
    let settings = Settings::new(files, options, args.prompt.scanned(), &args.dir, cancel)?;
    let sae = SaeFile::open(&files.saes[0])?;
    let (d_sae, labels) = (sae.meta.d_sae, sae.meta.labels);
    Parts::open(&args.output, settings, d_sae, labels, pictures)
}

/// Reads the pictures that are in no part yet.
fn read_pictures(
    parts: &mut Parts,
    options: &Scan<'_>,
    pictures: &[FoundPicture],
    verbosity: Verbosity,
) -> llava_sae_cpp::Result<()> {
    let left: Vec<_> = pictures.iter().filter(|found| !parts.has(found)).collect();
    let n_done = pictures.len() - left.len();
    if n_done > 0 && !verbosity.is_quiet() {
        eprintln!(
            "going on with {} of {} pictures",
            left.len(),
            pictures.len()
        );
    }
    let counter = Counter::start("pictures", pictures.len(), verbosity);
    counter.begin_at(n_done);
    let mut on_picture = |i: usize, result: llava_sae_cpp::Result<PictureFeatures>| {
        if let Err(error) = &result {
            counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
        }
        counter.advance();
        parts.add(left[i], result.map(|features| features.active))
    };
    let result = scan(options, &left, &mut on_picture);
    counter.finish();
    result
}

/// Joins the parts into the output; an error comes with the number of pictures that are kept.
fn join(
    mut parts: Parts,
    args: &ScanArgs,
    overwrite: Overwrite,
    cancel: &CancelFlag,
    verbosity: Verbosity,
) -> Result<Totals, (Error, usize)> {
    parts
        .finish_part()
        .map_err(|error| (error, parts.progress().n_done))?;
    let progress = parts.progress();
    if progress.n_done == progress.n_skipped {
        let error = parts.discard().err();
        let error = error.unwrap_or_else(|| none_read(&args.dir, progress.n_done));
        return Err((error, 0));
    }
    let _spinner = Spinner::start("writing the table", verbosity);
    let mut on_part = |_, _| match cancel.is_cancelled() {
        true => Err(Error::interrupted()),
        false => Ok(()),
    };
    parts
        .join(overwrite, &mut on_part)
        .map_err(|error| (error, progress.n_done))
}
