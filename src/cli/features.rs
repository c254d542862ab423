//! `features`: the features that images, or a text, fire.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use llava_sae_cpp::features::{self, FeatureScore, Over, Pool};
use llava_sae_cpp::{Activations, Error, Keep, RunOptions, Sampling, Session, Token, TokenKind};
use serde::Serialize;

use super::args::{self, ModelArgs, PromptArgs, Verbosity};
use super::progress::Spinner;
use super::{CommandResult, Failure, Outcome, json, table};

/// List the features that images, or a text, fire
#[derive(Args)]
pub(super) struct FeaturesArgs {
    /// The pictures; without one, `--prompt` is text only
    #[arg(required_unless_present = "prompt")]
    image: Vec<PathBuf>,
    /// How many features
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// The positions pooled: image, prompt, all, or one position (negative: from the prompt's end)
    /// [default: image, and prompt for text only]
    #[arg(long, value_name = "WHERE", value_parser = parse_over, allow_hyphen_values = true)]
    over: Option<Over>,
    /// How activations of several positions become a score
    #[arg(long, value_name = "HOW", default_value = "max")]
    pool: PoolArg,
    /// Order: by `lift`, the largest activation less the feature's usual one on pictures, or by
    /// `activation`, the score [default: lift for the image's maxima where the SAE's file has a
    /// baseline]
    #[arg(long, value_name = "ORDER")]
    rank: Option<RankArg>,
    /// Print one JSON object an image, a line each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum RankArg {
    Lift,
    Activation,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolArg {
    Max,
    Sum,
    Mean,
    /// The number of positions where the feature is active
    Count,
}

fn parse_over(word: &str) -> Result<Over, String> {
    Over::parse(word).map_err(args::with_hint)
}

/// What `--json` prints for an image, or for a text.
#[derive(Serialize)]
struct Report {
    image: Option<String>,
    n_image_tokens: usize,
    grid: Option<[usize; 2]>,
    tokens: Vec<json::TokenEntry>,
    features: Vec<FeatureReport>,
}

#[derive(Serialize)]
struct FeatureReport {
    #[serde(flatten)]
    standing: json::FeatureEntry,
    lift: Option<f32>,
    argmax_position: usize,
    patches: Vec<f32>, // [rows · columns] of the grid
}

pub(super) fn run(
    args: FeaturesArgs,
    verbosity: Verbosity,
    interrupt: Arc<AtomicBool>,
) -> CommandResult {
    let mut session = args.model.open(verbosity, interrupt)?;
    for (i, path) in args.image.iter().enumerate() {
        if i > 0 && !args.json {
            writeln!(io::stdout()).map_err(Failure::Output)?;
        }
        show(&mut session, Some(path), &args, verbosity)?;
    }
    if args.image.is_empty() {
        show(&mut session, None, &args, verbosity)?;
    }
    Ok(Outcome::Done)
}

fn show(
    session: &mut Session,
    path: Option<&Path>,
    args: &FeaturesArgs,
    verbosity: Verbosity,
) -> Result<(), Failure> {
    let pool = match args.pool {
        PoolArg::Max => Pool::Max,
        PoolArg::Sum => Pool::Sum,
        PoolArg::Mean => Pool::Mean,
        PoolArg::Count => Pool::Count,
    };
    let image = path
        .map(|path| args::encode_image(session, path, verbosity))
        .transpose()?;
    let prompt = args.prompt.build(session, image.as_ref())?;
    let over = args.over.unwrap_or(match path {
        Some(_) => Over::Image,
        None => Over::Prompt,
    });
    let positions = features::pooled_positions(prompt.tokens(), over)?;
    let spinner = Spinner::start("reading the prompt", verbosity);
    let options = RunOptions {
        steering: None,
        keep: Keep {
            features: true,
            residuals: false,
        },
        max_tokens: 0,
        sampling: Sampling::Greedy,
    };
    let run = session.run(&prompt, options, &mut |_| {})?;
    spinner.finish();
    let sae = session.sae();
    let baseline = match args.rank {
        Some(RankArg::Activation) => None,
        Some(RankArg::Lift) => Some(sae.baseline().ok_or_else(no_baseline)?),
        None => sae
            .baseline()
            .filter(|_| pool == Pool::Max && over == Over::Image),
    };
    let d_sae = sae.meta().d_sae;
    let acts = &run.trace.activations;
    let mut scores = features::rank(acts, &positions, d_sae, pool, baseline);
    scores.truncate(args.top.get());

    let shown = path.map(|path| path.display().to_string());
    if !args.json {
        let subject = shown.as_deref().unwrap_or("text");
        let title = format!("{subject}: {} of {}", args.pool.phrase(), described(over));
        return table::print_features(&mut io::stdout().lock(), &title, &scores, session.sae())
            .map_err(Failure::Output);
    }
    let standings = json::features(&scores, session.sae());
    let report = Report {
        image: shown,
        n_image_tokens: image
            .as_ref()
            .map_or(0, |image| image.grid.iter().product()),
        grid: image.map(|image| image.grid),
        tokens: json::tokens(prompt.tokens(), session),
        features: standings
            .into_iter()
            .zip(&scores)
            .map(|(standing, score)| FeatureReport {
                standing,
                lift: score.lift,
                argmax_position: score.argmax_position,
                patches: patches(score, prompt.tokens(), &run.trace.activations),
            })
            .collect(),
    };
    let report = serde_json::to_string(&report).expect("a report holds nothing but plain data");
    writeln!(io::stdout(), "{report}").map_err(Failure::Output)
}

fn no_baseline() -> Error {
    Error::invalid("the SAE's file has no baseline, so there is no lift")
        .with_hint("measure one with `llava-sae-cpp baseline`, or use `--rank activation`")
}

/// A feature's activation at each image row, in reading order.
fn patches(score: &FeatureScore, tokens: &[Token], activations: &Activations) -> Vec<f32> {
    let image_rows = (0..tokens.len()).filter(|&i| tokens[i].kind == TokenKind::Image);
    image_rows
        .map(|position| activations.get(position, score.feature))
        .collect()
}

impl PoolArg {
    fn phrase(self) -> &'static str {
        match self {
            Self::Max => "largest activation",
            Self::Sum => "sum of activations",
            Self::Mean => "mean activation",
            Self::Count => "number of active positions",
        }
    }
}

fn described(over: Over) -> String {
    match over {
        Over::Image => "the image tokens".to_owned(),
        Over::Prompt => "the prompt's text tokens".to_owned(),
        Over::All => "all tokens of the prompt".to_owned(),
        Over::Position(position) => format!("position {position}"),
    }
}
