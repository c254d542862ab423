//! `labels`: features by words in their labels.

use std::num::NonZeroUsize;

use clap::Args;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::report::json;
use llava_sae_cpp::{CancelFlag, FeatureName};
use serde::Serialize;

use super::args::ModelArgs;
use super::outcome::{CommandResult, print};
use super::progress::Verbosity;

/// Find features by the words in their labels
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LabelsArgs {
    /// Words, or parts of words, each of which the label must hold, in upper or lower case
    text: String,
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
      The features of the embedded demo whose labels hold `mushroom`
  llava-sae-cpp labels \"ice cream\" --top 50 --json -d llava-gemma-2b
      … of another model, both words, as JSON";

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    sae: String,
    text: &'a str,
    n_found: usize,
    features: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    rank: usize,
    feature: FeatureName,
    label: Option<&'a str>,
}

pub(super) fn run(args: &LabelsArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let saes = args.model.announced_files(verbosity, cancel)?.open_saes()?;
    let found = saes.search_labels(&args.text)?;
    let ranked = (1..).zip(&found).take(args.top.get());
    let report = Report {
        sae: args.model.shown_sae(),
        text: &args.text,
        n_found: found.len(),
        features: ranked
            .map(|(rank, &feature)| Entry {
                rank,
                feature: saes.shown(feature),
                label: saes.label(feature),
            })
            .collect(),
    };
    print(|out| {
        if args.json {
            return json::print(out, &report);
        }
        let title = format!("{} labels hold `{}`", report.n_found, args.text);
        writeln!(out, "{}", one_line(&title))?;
        for Entry {
            rank,
            feature,
            label,
        } in &report.features
        {
            let line = format!("{rank:>6}  {feature:>7}  {}", label.unwrap_or_default());
            writeln!(out, "{}", one_line(&line))?;
        }
        Ok(())
    })
}
