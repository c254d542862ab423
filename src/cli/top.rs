//! `top`: what a file of `scan` says of a feature or a class.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use gguf_tools::terminal::one_line;
use llava_sae_cpp::compare::Sort;
use llava_sae_cpp::pictures::{InContext, ItemKind};
use llava_sae_cpp::report::json;
use llava_sae_cpp::scan::{
    By, ClassFeatures, Contents, FeatureImages, NoContents, ScanFile, features_of_class,
    images_of_feature,
};
use llava_sae_cpp::{FeatureName, Result};
use serde::Serialize;

use super::compared::{self, Entry};
use super::folder::warn_of_gap;
use super::globs::expanded;
use super::one_of::one_of;
use super::outcome::{CommandResult, print};

/// Missing shards that a line names.
const MAX_SHARDS: usize = 8;

/// List the images or texts that activate a feature most, or the features of a class, from a file of `scan`
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
#[command(group(ArgGroup::new("subject").required(true).args(["feature", "class"])))]
pub(super) struct TopArgs {
    /// The Parquet file that `scan` wrote, or what another program has made of its rows; or several, shards
    /// of a scan among them, and patterns such as `'shard-*.parquet'`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The images that activate this feature most: an index, or a label of a feature that some image activates;
    /// in a table of several SAEs, `SAE/FEATURE`
    #[arg(long, value_name = "FEATURE", allow_hyphen_values = true)]
    feature: Option<String>,
    /// The features that this class's images activate more than all other images, on average, SAE by SAE
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// The value of a feature on an image: its largest activation, their sum, or the number of image
    /// rows on which it is active
    #[arg(long, value_name = "VALUE", default_value = "max", value_parser = one_of([By::Max, By::Sum, By::Count], By::name))]
    by: By,
    /// The order of a class's features: by the difference of means, by the effect size (Hedges' g) or by the area
    /// under the ROC curve, the chance that an image of the class has the larger value than another image
    #[arg(long, value_name = "ORDER", default_value = "difference", conflicts_with = "feature", value_parser = compared::sorts())]
    sort: Sort,
    /// How many images, or features of each SAE
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp top features.parquet --feature 7310
      The images that activate feature 7310 most
  llava-sae-cpp top features.parquet --feature dog --by sum --top 3
      … the feature that is labelled so, by the sum of its activations
  llava-sae-cpp top shard-*.parquet --feature dog
      … in shards of a scan that were not merged
  llava-sae-cpp top both.parquet --feature gemma-2b-layer-6/7310
      … a feature of one of several SAEs
  llava-sae-cpp top texts.parquet --feature dog
      … in a scan of texts: the token that activates it most, as <<dog>>, in its context
  llava-sae-cpp top features.parquet --class pizza --sort auroc --json
      What images in folders called `pizza` activate more than the others, and tells them apart best";

/// What `--feature … --json` prints.
#[derive(Serialize)]
struct FeatureReport<'a> {
    file: String,
    feature: &'a FeatureName,
    label: Option<&'a str>,
    by: By,
    n_images: Option<u64>,
    n_firing: u64,
    images: Vec<ImageEntry<'a>>,
}

#[derive(Serialize)]
struct ImageEntry<'a> {
    rank: usize,
    path: &'a str,
    class: Option<&'a str>,
    sum: f32,
    max: f32,
    count: usize,
    #[serde(flatten)]
    token: Option<&'a InContext>,
}

/// What `--class … --json` prints.
#[derive(Serialize)]
struct ClassReport<'a> {
    file: String,
    class: &'a str,
    by: By,
    sort: Sort,
    n_inside: u64,
    n_outside: u64,
    counts_known: bool,
    features: Vec<Entry<'a>>,
}

pub(super) fn run(args: &TopArgs) -> CommandResult {
    let file = open_tables(&args.files)?;
    let (by, top) = (args.by, args.top.get());
    let contents = file.contents();
    if let Some(name) = &args.feature {
        let found = images_of_feature(&file, name, by, top)?;
        let n_images = contents.map(Contents::n_images);
        return print(|out| match args.json {
            true => json::print(out, &feature_report(args, &found, n_images)),
            false => print_images(out, &file, &found, by, n_images),
        });
    }
    let class = args.class.as_deref().unwrap_or_default();
    let found = features_of_class(&file, class, by, args.sort, top)?;
    let counts_known = contents.is_some();
    print(|out| match args.json {
        true => json::print(out, &class_report(args, class, &found, counts_known)),
        false => print_features(out, &file, class, &found, by),
    })
}

/// Opens tables, which may be patterns, and says what is not known of them.
///
/// # Errors
/// Those of [`ScanFile::open_all`], a pattern that no file matches.
pub(super) fn open_tables(files: &[PathBuf]) -> Result<ScanFile> {
    silence_panics_of_crates();
    let file = ScanFile::open_all(&expanded(files)?)?;
    for (table, reason) in file.unknown() {
        warn_of_gap(&gap(table, reason));
    }
    if let Some(missing) = missing(file.missing_shards()) {
        warn_of_gap(&missing);
    }
    Ok(file)
}

/// A damaged table makes the `parquet` crate panic, which the library turns into an error; panics of our
/// own are shown as ever.
fn silence_panics_of_crates() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(|location| location.file());
        if place.is_none_or(|file| file.starts_with("src")) {
            show(panic);
        }
    }));
}

/// What is not known of a table without a sidecar of its own.
fn gap(table: &Path, reason: NoContents) -> String {
    let table = table.display();
    let why = match reason {
        NoContents::NoSidecar => format!("there is no `{table}.json`"),
        NoContents::Rewritten => {
            format!(
                "another program has written `{table}` since the scan that `{table}.json` describes"
            )
        }
    };
    format!(
        "{why}, so the number of images, of each class and in all, is not known: only images with a row count"
    )
}

/// Which shards of a scan are not among the files.
fn missing(shards: &[u32]) -> Option<String> {
    let listed = shards.iter().take(MAX_SHARDS).map(u32::to_string);
    let listed: Vec<_> = listed.collect();
    let more = if shards.len() > MAX_SHARDS {
        ", …"
    } else {
        ""
    };
    let shown = listed.join(", ");
    let what = "shards of the scan that are not given, whose images are left out";
    (!shards.is_empty()).then(|| format!("{what}: {shown}{more}"))
}

fn shown(files: &[PathBuf]) -> String {
    let shown: Vec<_> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

fn feature_report<'a>(
    args: &TopArgs,
    found: &'a FeatureImages,
    n_images: Option<u64>,
) -> FeatureReport<'a> {
    let images = found.images.iter().enumerate();
    FeatureReport {
        file: shown(&args.files),
        feature: &found.feature,
        label: found.label.as_deref(),
        by: args.by,
        n_images,
        n_firing: found.n_firing,
        images: images
            .map(|(i, image)| ImageEntry {
                rank: i + 1,
                path: &image.path,
                class: image.class.as_deref(),
                sum: image.active.sum,
                max: image.active.max,
                count: image.active.count,
                token: image.token.as_ref(),
            })
            .collect(),
    }
}

fn class_report<'a>(
    args: &TopArgs,
    class: &'a str,
    found: &'a ClassFeatures,
    counts_known: bool,
) -> ClassReport<'a> {
    let features = found.saes.iter().flat_map(|of_sae| {
        let sae = of_sae.sae.as_deref();
        compared::entries(&of_sae.features, sae)
    });
    ClassReport {
        file: shown(&args.files),
        class,
        by: args.by,
        sort: args.sort,
        n_inside: found.n_inside,
        n_outside: found.n_outside,
        counts_known,
        features: features.collect(),
    }
}

fn print_images(
    out: &mut dyn Write,
    file: &ScanFile,
    found: &FeatureImages,
    by: By,
    n_images: Option<u64>,
) -> io::Result<()> {
    let label = found.label.as_deref().map(|label| format!(" `{label}`"));
    let of_all = n_images.map(|n_images| format!(" of {n_images}"));
    let title = format!(
        "Feature {}{}: {}{} {}s activate it; by {}",
        found.feature,
        label.unwrap_or_default(),
        found.n_firing,
        of_all.unwrap_or_default(),
        file.kind().noun(),
        phrase(file, by)
    );
    writeln!(out, "{}", one_line(&title))?;
    if found.images.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "  rank       sum       max  tokens  {}",
        file.kind().noun()
    )?;
    for (i, image) in found.images.iter().enumerate() {
        let active = &image.active;
        writeln!(
            out,
            "{:>6}  {:>8.3}  {:>8.3}  {:>6}  {}",
            i + 1,
            active.sum,
            active.max,
            active.count,
            one_line(&image.path)
        )?;
        if let Some(token) = &image.token {
            let (before, after) = (one_line(&token.before), one_line(&token.after));
            let line = format!("{:34}{before}<<{}>>{after}", "", one_line(&token.token));
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

fn print_features(
    out: &mut dyn Write,
    file: &ScanFile,
    class: &str,
    found: &ClassFeatures,
    by: By,
) -> io::Result<()> {
    for of_sae in &found.saes {
        let sae = of_sae.sae.as_ref().map(|sae| format!(", {sae}"));
        let title = format!(
            "Features that {}s of `{class}` ({}) activate more than the others ({}); by {}{}",
            file.kind().noun(),
            found.n_inside,
            found.n_outside,
            phrase(file, by),
            sae.unwrap_or_default()
        );
        writeln!(out, "{}", one_line(&title))?;
        compared::print_table(out, &format!("{}s", file.kind().noun()), &of_sae.features)?;
    }
    Ok(())
}

fn phrase(file: &ScanFile, by: By) -> &'static str {
    match (by, file.kind()) {
        (By::Max, _) => "largest activation",
        (By::Sum, _) => "sum of activations",
        (By::Count, ItemKind::Pictures) => "number of image tokens",
        (By::Count, ItemKind::Texts) => "number of tokens",
    }
}
