//! `feature`: what the weights say of features.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use clap::Args;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::report::json;
use llava_sae_cpp::{CancelFlag, FeatureCard, TokenEffect};
use serde::Serialize;

use super::args::ModelArgs;
use super::outcome::{CommandResult, print};
use super::progress::Verbosity;

/// Say what the weights tell of features: their norms, their neighbours, the tokens that they promote and suppress
///
/// No picture or text is run. Tokens are those whose logits the feature's decoder direction raises or lowers most,
/// at unit length and straight through the unembedding, past the blocks between: the logit lens, as Neuronpedia
/// shows it. Special and unused tokens are left out.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct FeatureArgs {
    /// Indices or labels; with several SAEs, `SAE/FEATURE`
    #[arg(required = true, value_name = "FEATURE")]
    features: Vec<String>,
    /// How many neighbours, and tokens each way
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
  llava-sae-cpp feature mushroom
      A feature of the embedded demo, by its label
  llava-sae-cpp feature 4501 7310 --top 20 --json -d llava-gemma-2b
      … two of another model, by their indices, as JSON";

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    sae: String,
    features: &'a [FeatureCard],
}

pub(super) fn run(args: &FeatureArgs, verbosity: Verbosity, cancel: &CancelFlag) -> CommandResult {
    let session = args.model.open(verbosity, cancel)?;
    let model = session.model();
    let features = args.features.iter().map(|name| model.find_feature(name));
    let features: Vec<_> = features.collect::<Result<_, _>>()?;
    let cards = features.into_iter();
    let cards = cards.map(|feature| model.feature_card(feature, args.top.get()));
    let cards: Vec<_> = cards.collect::<Result<_, _>>()?;
    print(|out| {
        if args.json {
            let report = Report {
                model: args.model.shown_model(),
                sae: args.model.shown_sae(),
                features: &cards,
            };
            return json::print(out, &report);
        }
        for (i, card) in cards.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            print_card(out, card)?;
        }
        Ok(())
    })
}

fn print_card(out: &mut dyn Write, card: &FeatureCard) -> io::Result<()> {
    let label = card.label.as_ref().map(|label| format!(" `{label}`"));
    let label = label.unwrap_or_default();
    let place = match card.hook_points_out.join("`, `") {
        written if written.is_empty() => format!("at `{}`", card.hook_point),
        written => format!("from `{}` to `{written}`", card.hook_point),
    };
    let title = format!("Feature {}{label}, {place}", card.feature);
    writeln!(out, "{}", one_line(&title))?;
    for (name, value) in [
        ("threshold", card.threshold),
        ("encoder bias", Some(card.encoder_bias)),
        ("encoder norm", Some(card.encoder_norm)),
        ("decoder norm", Some(card.decoder_norm)),
        ("usual", card.usual),
    ] {
        if let Some(value) = value {
            writeln!(out, "  {name:<12}  {value:>8.3}")?;
        }
    }
    if let Some(page) = &card.neuronpedia {
        writeln!(out, "  {:<12}  {}", "Neuronpedia", one_line(page))?;
    }
    writeln!(out, "Neighbours (by cosine of decoder directions):")?;
    writeln!(out, "  rank  feature  cosine  label")?;
    for (i, near) in card.neighbours.iter().enumerate() {
        let label = near.label.as_deref().unwrap_or_default();
        let (rank, feature, cosine) = (i + 1, &near.feature, near.cosine);
        let line = format!("{rank:>6}  {feature:>7}  {cosine:>6.3}  {label}");
        writeln!(out, "{}", one_line(line.trim_end()))?;
    }
    let Some(tokens) = &card.tokens else {
        return writeln!(
            out,
            "Tokens: only directions that are added to the residual stream as they are are taken through the unembedding"
        );
    };
    print_tokens(out, "promotes", &tokens.promoted)?;
    print_tokens(out, "suppresses", &tokens.suppressed)
}

fn print_tokens(out: &mut dyn Write, verb: &str, tokens: &[TokenEffect]) -> io::Result<()> {
    writeln!(out, "Tokens that its direction {verb}:")?;
    writeln!(out, "  rank     logit  token")?;
    for (i, token) in tokens.iter().enumerate() {
        // Quoted: a space belongs to the token.
        let (rank, logit, text) = (i + 1, token.logit, &token.text);
        let line = format!("{rank:>6}  {logit:>8.3}  {text:?}");
        writeln!(out, "{}", one_line(&line))?;
    }
    Ok(())
}
