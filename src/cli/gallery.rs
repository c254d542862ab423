//! `gallery`: what a file of `scan` says, as a folder of pages.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_dir::NewDir;
use gguf_tools::new_file::Overwrite;
use llava_sae_cpp::gallery::{Choice, Gallery, Which, gather};
use llava_sae_cpp::pictures::{ItemKind, for_many_items};
use llava_sae_cpp::report::gallery::{About, CONTENTS, HeatMaps, Items, n_items, write};
use llava_sae_cpp::scan::{ScanFile, Settings};
use llava_sae_cpp::{CancelFlag, Error, Result, Session, neuronpedia_addresses};

use super::args::{ModelArgs, TextArgs};
use super::folder::warn_of_gap;
use super::outcome::{CommandResult, Outcome};
use super::progress::{Counter, Spinner, Verbosity};
use super::top::open_tables;

/// Features that are listed of a class.
const OF_CLASS: usize = 50;

/// Write pages about the features in a file of `scan`: a folder to open in a browser
#[derive(Args)]
#[command(after_long_help = ABOUT)]
pub(super) struct GalleryArgs {
    /// The Parquet file that `scan` wrote, or what another program has made of its rows; or several, as `top` takes
    /// them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// This feature only: an index, or a label of a feature that some image activates; in a table of several SAEs,
    /// `SAE/FEATURE`. Repeatable
    #[arg(long, value_name = "FEATURE", allow_hyphen_values = true, conflicts_with_all = ["class", "top"])]
    feature: Vec<String>,
    /// Only the features that this class's images activate more than all other images, on average: 50 of each SAE, or
    /// `--top`. Repeatable
    #[arg(long, value_name = "CLASS")]
    class: Vec<String>,
    /// Only the N features of each SAE with the largest activations; with `--class`, N of each class
    #[arg(long, value_name = "N")]
    top: Option<NonZeroUsize>,
    /// How many of the images that activate a feature most
    #[arg(long, value_name = "N", default_value = "12")]
    examples: NonZeroUsize,
    /// The folder that was scanned, or in which the paths of its list begin: pictures are read again where they are
    /// shown. Without it, pages have their names
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Show the pictures alone, without a model
    #[arg(long, requires = "images")]
    no_heatmaps: bool,
    /// Replace a gallery that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    prompt: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const ABOUT: &str = "\
A feature's page has the histogram of its activations over the images (an image's is the largest on its rows), the
images that activate it most, some of each tenth of its range, its share of each class, and the features that
go with it. A class's page has the features that `top --class` lists. The index is searched and sorted. Pages
load nothing from elsewhere, and need no server.

With `--images` and the model of the scan, each picture that is shown is run once, with the scan's prompt, and has heat
maps. A picture that has gone or changed is said, and shown as missing; without a model, changes go unseen.

Examples:
  llava-sae-cpp gallery features.parquet --images pictures/ -d llava-gemma-2b -o gallery
      All features that some picture activates, with heat maps; open gallery/index.html
  llava-sae-cpp gallery features.parquet --images pictures/ --no-heatmaps --class pizza --top 20 -o pizza
      The twenty features that distinguish pictures of pizza, without a model
  llava-sae-cpp gallery features.parquet --feature dog -o dog
      One feature, with the pictures' names";

pub(super) fn run(args: GalleryArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    let dir = NewDir::create(&args.output, overwrite, CONTENTS)?;
    if let Some(images) = args.images.as_ref().filter(|images| !images.is_dir()) {
        let what = format!("`{}` is not a folder", images.display());
        return Err(Error::invalid(what)
            .with_hint("give the folder that was scanned")
            .into());
    }
    let file = open_tables(&args.files)?;
    if args.images.is_some() && file.kind() == ItemKind::Texts {
        let what = format!("`{}` is of texts, and has no pictures", args.table());
        return Err(Error::invalid(what)
            .with_hint("leave out `--images`")
            .into());
    }
    let settings = file.contents().map(|contents| &contents.settings);
    // What is wrong with the model is said before the work.
    let mut session = args.session(verbosity, &cancel)?;
    let neuronpedia = session
        .as_ref()
        .map(|session| neuronpedia_addresses(session.model().saes()));
    let heat_maps = session.as_mut().map(|session| {
        let scanned = settings.and_then(Settings::prompt);
        let prompt = args.prompt.scanned_again(scanned);
        HeatMaps::new(session, prompt, file.saes())
    });
    let heat_maps = heat_maps.transpose()?;
    let gallery = {
        let _spinner = Spinner::start("reading the table", verbosity);
        gather(&file, &args.choice(), &cancel)?
    };
    let items = match &args.images {
        None => Items::default(),
        Some(images) => {
            let n_shown = n_items(&gallery);
            let counter = Counter::start("pictures", n_shown, verbosity);
            let mut n_missing = 0;
            let read = Items::read(
                &gallery,
                images,
                dir.path(),
                heat_maps,
                &cancel,
                &mut |read| {
                    if let Err(error) = read {
                        n_missing += 1;
                        counter.suspend(|| warn_of_gap(&format!("missing: {error}")));
                    }
                    counter.advance();
                },
            );
            counter.finish();
            let items = read?;
            if n_missing > 0 {
                warn_of_gap(&format!(
                    "missing, of {n_shown} pictures that are shown: {n_missing}"
                ));
            }
            items
        }
    };
    let about = About {
        table: args.table(),
        settings,
        neuronpedia: neuronpedia.unwrap_or_default(),
    };
    {
        let _spinner = Spinner::start("writing the pages", verbosity);
        write(dir.path(), &gallery, &items, &about, &cancel)?;
    }
    dir.finish()?;
    say_what_is_there(&args, &file, &gallery, verbosity);
    Ok(Outcome::Done)
}

impl GalleryArgs {
    fn choice(&self) -> Choice {
        let top = self.top.map(NonZeroUsize::get);
        let which = match (&self.feature[..], &self.class[..], top) {
            ([], [], None) => Which::Active,
            ([], [], Some(top)) => Which::Largest(top),
            ([], classes, _) => Which::OfClasses(classes.to_vec()),
            (features, ..) => Which::Named(features.to_vec()),
        };
        let of_class = top.filter(|_| !self.class.is_empty());
        Choice {
            which,
            n_examples: self.examples.get(),
            class_features: of_class.unwrap_or(OF_CLASS),
        }
    }

    /// What pages call the table; no path of the machine is in it.
    fn table(&self) -> String {
        let name = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let names: Vec<_> = self.files.iter().map(name).collect();
        names.join(", ")
    }

    /// The model, where heat maps are wanted.
    fn session(&self, verbosity: Verbosity, cancel: &CancelFlag) -> Result<Option<Session>> {
        if self.images.is_none() || self.no_heatmaps {
            return Ok(None);
        }
        let files = self.model.announced_files(verbosity, cancel)?;
        files.check()?;
        files.projector()?;
        let options = for_many_items(&self.model.options()?);
        let session = self.model.open_files(&files, options, verbosity, cancel)?;
        Ok(Some(session))
    }
}

fn say_what_is_there(args: &GalleryArgs, file: &ScanFile, gallery: &Gallery, verbosity: Verbosity) {
    if !verbosity.is_quiet() {
        eprintln!(
            "{} pages of features and {} of classes, from {} rows: {}",
            gallery.features.len(),
            gallery.classes.len(),
            file.n_rows(),
            args.output.join("index.html").display()
        );
    }
}
