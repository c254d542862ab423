//! `scan`: the features of a folder of pictures, as a Parquet file.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use gguf_tools::gguf::Overwrite;
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::scan::{
    FoundPicture, PICTURE_EXTENSIONS, Parts, Settings, Totals, pictures_in, scan,
};
use llava_sae_cpp::{Error, ModelFiles, SessionOptions};

use super::args::{ModelArgs, PromptArgs, Verbosity};
use super::new_file::{check_is_no_input, overwrite};
use super::progress::{Counter, Spinner};
use super::table::one_line;
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
A row for each picture and feature that it fires (on the image's rows), pictures by path, features by
index:
  path     string          below the folder, with / between its parts
  class    string or null  the name of the folder that it lies in; null directly in the scanned one
  feature  int32           the feature's index
  label    string or null  its label
  sum      float32         its activations over the image's rows, summed
  max      float32         the largest of them
  count    int32           the number of image rows on which it fires

What is done is kept in FILE.parquet.parts until all is: interrupted, the same command goes on. A
picture that cannot be read is reported and skipped.

Examples:
  llava-sae-cpp scan -d llava-gemma-2b pictures/ -o features.parquet
      One picture after the other, with all cores
  llava-sae-cpp scan --jobs 4 -d llava-gemma-2b pictures/ -o features.parquet
      Four at once, with a quarter of the cores each
  llava-sae-cpp top features.parquet --class pizza
      What pictures in folders called `pizza` fire more than the others";

pub(super) fn run(
    args: ScanArgs,
    verbosity: Verbosity,
    interrupt: Arc<AtomicBool>,
) -> CommandResult {
    let overwrite = overwrite(args.force);
    overwrite.check(&args.output)?;
    let pictures = pictures_in(&args.dir)?;
    if pictures.is_empty() {
        return Err(
            Error::invalid(format!("no pictures in `{}`", args.dir.display()))
                .with_hint(format!(
                    "give a folder with files that end in {}",
                    PICTURE_EXTENSIONS.join(", ")
                ))
                .into(),
        );
    }
    let inputs = pictures.iter().map(|picture| args.dir.join(&picture.path));
    check_is_no_input(&args.output, inputs.chain(args.model.given_files()))?;
    let files = args.model.announced_files(verbosity)?;
    files.check()?;
    if files.mmproj.is_none() {
        return Err(
            Error::invalid("this model has no projector, so it cannot see images")
                .with_hint("give the projector's file with `--mmproj`")
                .into(),
        );
    }
    let options = args.model.options(interrupt);
    let mut parts = open_parts(&args, &files, &options, &pictures, verbosity)?;
    let totals = match read_pictures(&mut parts, &args, &files, &options, &pictures, verbosity) {
        Ok(()) => join(parts, &args, overwrite, &options.interrupt, verbosity),
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
        log::warn!("skipped {} of {n_pictures} pictures", totals.n_skipped);
    }
    Ok(Outcome::Done)
}

fn open_parts(
    args: &ScanArgs,
    files: &ModelFiles,
    options: &SessionOptions,
    pictures: &[FoundPicture],
    verbosity: Verbosity,
) -> llava_sae_cpp::Result<Parts> {
    let _spinner = Spinner::start("checking the model's files", verbosity);
    let settings = Settings::new(files, options, args.prompt.scanned(), &args.dir)?;
    let sae = SaeFile::open(&files.sae)?;
    let (d_sae, labels) = (sae.meta.d_sae, sae.meta.labels);
    Parts::open(&args.output, settings, d_sae, labels, pictures)
}

/// Reads the pictures that are in no part yet.
fn read_pictures(
    parts: &mut Parts,
    args: &ScanArgs,
    files: &ModelFiles,
    options: &SessionOptions,
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
    let mut on_picture = |i: usize, result| {
        if let Err(error) = &result {
            counter.suspend(|| log::warn!("skipped: {}", one_line(&Error::to_string(error))));
        }
        counter.advance();
        parts.add(left[i], result)
    };
    let (prompt, jobs) = (args.prompt.scanned(), args.jobs.get());
    let result = scan(
        files,
        options,
        prompt,
        &args.dir,
        &left,
        jobs,
        &mut on_picture,
    );
    counter.finish();
    result
}

/// Joins the parts into the output; an error comes with the number of pictures that are kept.
fn join(
    mut parts: Parts,
    args: &ScanArgs,
    overwrite: Overwrite,
    interrupt: &AtomicBool,
    verbosity: Verbosity,
) -> Result<Totals, (Error, usize)> {
    parts
        .finish_part()
        .map_err(|error| (error, parts.progress().n_done))?;
    let progress = parts.progress();
    if progress.n_done == progress.n_skipped {
        let error = parts.discard().err().unwrap_or_else(|| {
            let shown = Path::display(&args.dir);
            Error::invalid(format!(
                "none of the {} pictures in `{shown}` could be read",
                progress.n_done
            ))
            .with_hint("the warnings say why")
        });
        return Err((error, 0));
    }
    let _spinner = Spinner::start("writing the table", verbosity);
    let mut on_part = |_, _| match interrupt.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    };
    parts
        .join(overwrite, &mut on_part)
        .map_err(|error| (error, progress.n_done))
}
