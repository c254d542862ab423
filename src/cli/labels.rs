//! `labels`: features by words in their labels.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use clap::Args;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::labels::Matching;
use llava_sae_cpp::report::json;
use llava_sae_cpp::{CancelFlag, FeatureName};
use serde::Serialize;

use super::args::ModelArgs;
use super::one_of::one_of;
use super::outcome::{CommandResult, print};
use super::progress::Verbosity;

/// Find features by the words in their labels
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LabelsArgs {
    /// Words, or parts of words, in upper or lower case
    text: String,
    /// How labels match: contains (each word, or as a part of one), prefix (the label begins so), or fuzzy (each word
    /// but for a typing error or two) [default: contains, and fuzzy where that finds nothing]
    #[arg(long = "match", value_name = "HOW", value_parser = one_of(Matching::ALL, Matching::name))]
    matching: Option<Matching>,
    /// How many features, best match first
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp labels mushroom
      The features of the embedded demo whose labels hold `mushroom`; `mushrom` finds them too
  llava-sae-cpp labels mush --match prefix
      … whose labels begin so
  llava-sae-cpp labels \"ice cream\" --top 50 --json -d llava-gemma-2b
      … of another model, both words, as JSON";

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    sae: String,
    text: &'a str,
    matching: Matching,
    n_found: usize,
    features: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    rank: usize,
    feature: FeatureName,
    label: Option<&'a str>,
    usual: Option<f32>,
}

pub(super) fn run(args: &LabelsArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let saes = args.model.announced_files(verbosity, cancel)?.open_saes()?;
    let found = saes.search_labels(&args.text, args.matching)?;
    let ranked = (1..).zip(&found.features).take(args.top.get());
    let report = Report {
        sae: args.model.shown_sae(),
        text: &args.text,
        matching: found.matching,
        n_found: found.features.len(),
        features: ranked
            .map(|(rank, &feature)| Entry {
                rank,
                feature: saes.shown(feature),
                label: saes.label(feature),
                usual: saes.usual(feature),
            })
            .collect(),
    };
    print(|out| {
        if args.json {
            return json::print(out, &report);
        }
        print_table(out, &report)
    })
}

fn print_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let verb = match report.matching {
        Matching::Contains => "hold",
        Matching::Prefix => "begin with",
        Matching::Fuzzy => "hold, but for typing errors,",
    };
    let title = format!("{} labels {verb} `{}`", report.n_found, report.text);
    writeln!(out, "{}", one_line(&title))?;
    if report.features.is_empty() {
        return Ok(());
    }
    // What is usual is known of all features of an SAE or of none.
    let has_usual = report.features.iter().any(|entry| entry.usual.is_some());
    let title = if has_usual { "    usual" } else { "" };
    writeln!(out, "  rank  feature{title}  label")?;
    for entry in &report.features {
        let usual = match entry.usual {
            Some(usual) => format!("  {usual:>7.3}"),
            None if has_usual => format!("  {:>7}", "-"),
            None => String::new(),
        };
        let (rank, feature) = (entry.rank, &entry.feature);
        let line = format!(
            "{rank:>6}  {feature:>7}{usual}  {}",
            entry.label.unwrap_or_default()
        );
        writeln!(out, "{}", one_line(&line))?;
    }
    Ok(())
}
