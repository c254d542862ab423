//! `scan`: the features of many pictures or texts, as a Parquet file.

mod items;
mod merge;
mod worker;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use gguf_tools::new_file::{Overwrite, check_is_no_input};
use llava_sae_cpp::pictures::{ItemKind, Scan, jobs_at_once};
use llava_sae_cpp::scan::{ScanEvent, Totals, check_output, scan_items};
use llava_sae_cpp::{CancelFlag, ModelFiles};

use self::items::ItemArgs;
use self::merge::MergeArgs;
use super::args::{ModelArgs, TextArgs};
use super::folder::warn_of_gap;
use super::outcome::{CommandResult, Outcome};
use super::progress::{Counter, Spinner, Verbosity};

/// Write the features of many pictures or texts into a Parquet file
#[derive(Args)]
#[command(after_long_help = COLUMNS)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
pub(super) struct ScanArgs {
    #[command(subcommand)]
    command: Option<ScanCommand>,
    #[command(flatten)]
    items: ItemArgs,
    /// The Parquet file to write
    #[arg(
        short,
        long,
        value_name = "FILE.parquet",
        required_unless_present = "worker"
    )]
    output: Option<PathBuf>,
    /// Stay warm: read paths, pictures or texts from stdin, a line each, and answer each with a batch of rows on stdout, in
    /// Arrow's stream format
    #[arg(long, conflicts_with_all = ["dir", "manifest", "null", "shard", "text_column", "output", "jobs", "force"])]
    worker: bool,
    /// Pictures or texts that are read at once; they share the threads and the language model's weights
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

/// What else can be done with scans; a folder of such a name is `./merge`.
#[derive(Subcommand)]
enum ScanCommand {
    Merge(MergeArgs),
}

const COLUMNS: &str = "\
A row for each picture or text and feature that it activates (on the image's rows; in a text, on all tokens but
special ones), pictures by path, texts by name, SAEs as they are given, features by index:
  path     string          below the folder, with / between its parts; of a list, as it stands there
  class    string or null  the manifest's; without one, the name of the folder in the path
  sae      string          the SAE's id; with several SAEs alone
  feature  int32           the feature's index
  label    string or null  its label
  sum      float32         its activations over these rows, summed
  max      float32         the largest of them
  count    int32           the number of these rows on which it is active
and of texts besides:
  position int32           the place of the token that activates it most, from 0, without <bos>
  before   string          up to 12 tokens before it, of those that were read with it
  token    string          that token
  after    string          up to 12 tokens behind it

A text's name (`path`) is in its column `path` or `id`, or it is the corpus's name and the text's number; its class is in
`class`, or the folder in its `path`. Longer texts than a context are read in parts, each with <bos>; their
features are pooled over all parts.

FILE.parquet.json says how many images of each class there are, how many were skipped, with which model
and settings, what computed them, which pictures they are of, and the table's checksum; `top` reads both.

What is done is kept in FILE.parquet.parts until all is: after an interruption, the same command resumes. A
picture that cannot be read or is not there is reported and skipped. In a folder, hidden files, and those that systems keep for
themselves, are left out, and a file is a picture by its name or by its first bytes.

Examples:
  llava-sae-cpp scan -d llava-gemma-2b pictures/ -o features.parquet
      One picture after the other, with all cores
  llava-sae-cpp scan --jobs 4 -d llava-gemma-2b pictures/ -o features.parquet
      Four at once, with a quarter of the cores each
  llava-sae-cpp scan -d gemma --sae layer-6.gguf --sae layer-12.gguf pictures/ -o both.parquet
      Two SAEs in one pass of the model, at the cost of both encoders
  llava-sae-cpp scan -d llava-gemma-2b --manifest train.csv -o features.parquet
      The pictures that a table lists, with its classes
  find photos -name '*.jpg' -print0 | llava-sae-cpp scan -d llava-gemma-2b -0 - -o features.parquet
      … or that another program does
  llava-sae-cpp scan -d llava-gemma-2b pictures/ --shard 3/64 -o shard-3.parquet
      The third of 64 shards, on one of many machines
  llava-sae-cpp scan merge shard-*.parquet -o features.parquet
      … and all of them become the table of one scan
  llava-sae-cpp scan --texts -d gemma corpus.jsonl -o features.parquet
      Texts instead of pictures; `top` shows the tokens in their contexts
  echo photo.jpg | llava-sae-cpp scan -d llava-gemma-2b --worker > answers.arrows
      A process that other programs keep, and give pictures one after another (docs/scans.md)
  llava-sae-cpp top features.parquet --class pizza
      What pictures in folders called `pizza` activate more than the others";

impl ScanArgs {
    /// Whether it is a worker, which writes nothing but its answers and so may end at any time.
    pub(super) fn is_worker(&self) -> bool {
        self.worker
    }

    /// The model's files, which have been looked at.
    fn opened_files(
        &self,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<ModelFiles> {
        let mut files = self.model.announced_files(verbosity, cancel)?;
        files.check()?;
        match self.items.kind() {
            ItemKind::Pictures => files.projector().map(drop)?,
            ItemKind::Texts => files.mmproj = None,
        }
        Ok(files)
    }
}

pub(super) fn run(args: ScanArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    if let Some(ScanCommand::Merge(args)) = &args.command {
        return merge::run(args, verbosity, &cancel);
    }
    if args.worker {
        return worker::run(&args, verbosity, &cancel);
    }
    let output = args.output.as_ref().expect("clap requires it");
    let overwrite = Overwrite::if_forced(args.force);
    check_output(output, overwrite)?;
    let items = args.items.read(verbosity)?;
    let dir = args.items.base();
    let inputs = items.items().iter().map(|item| item.file(&dir));
    let other_inputs = args.model.given_files().into_iter();
    let other_inputs = other_inputs.chain(args.items.list().cloned());
    check_is_no_input(output, inputs.chain(other_inputs))?;
    let files = args.opened_files(verbosity, &cancel)?;
    let options = args.model.options()?;
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let jobs = jobs_at_once(&options, args.jobs.get());
    if jobs < args.jobs.get() && !verbosity.is_quiet() {
        eprintln!("reading one item at a time, since all sessions share the device");
    }
    let scan = Scan {
        files: &files,
        options: &options,
        reading: args.items.reading(&args.prompt),
        dir: &dir,
        jobs,
        cancel: &cancel,
    };
    let shown = &mut shown(args.items.kind(), items.items().len(), verbosity);
    let totals = scan_items(&scan, &items, output, overwrite, shown)?;
    warn_of_skipped(&totals);
    Ok(Outcome::Done)
}

/// Says that items are missing.
fn warn_of_skipped(totals: &Totals) {
    if totals.n_skipped > 0 {
        let n_items = totals.n_images + totals.n_skipped;
        let (n_skipped, items) = (totals.n_skipped, totals.kind.name());
        warn_of_gap(&format!("skipped {n_skipped} of {n_items} {items}"));
    }
}

/// Shows what happens in a scan of so many items, on stderr.
fn shown(kind: ItemKind, n_items: usize, verbosity: Verbosity) -> impl FnMut(ScanEvent<'_>) {
    let items = kind.name();
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
                let n_left = n_items - n_done;
                say(&format!("resuming with {n_left} of {n_items} {items}"));
            }
            counter = Some(Counter::start(items, n_items, verbosity).begun_at(n_done));
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
                "{n_done} of {n_items} {items} are done; the same command resumes the scan"
            ));
        }
    }
}
