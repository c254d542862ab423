//! `features`: the features that images fire.

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

/// List the features that images fire
#[derive(Args)]
pub(super) struct FeaturesArgs {
    /// The pictures
    #[arg(required = true)]
    image: Vec<PathBuf>,
    /// How many features
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// The positions pooled: image, prompt, all, or one position (negative: from the prompt's end)
    #[arg(long, value_name = "WHERE", default_value = "image", value_parser = parse_over, allow_hyphen_values = true)]
    over: Over,
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

/// What `--json` prints for an image.
#[derive(Serialize)]
struct Report {
    image: String,
    n_image_tokens: usize,
    grid: [usize; 2],
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
        show(&mut session, path, &args, verbosity)?;
    }
    Ok(Outcome::Done)
}

fn show(
    session: &mut Session,
    path: &Path,
    args: &FeaturesArgs,
    verbosity: Verbosity,
) -> Result<(), Failure> {
    let pool = match args.pool {
        PoolArg::Max => Pool::Max,
        PoolArg::Sum => Pool::Sum,
        PoolArg::Mean => Pool::Mean,
        PoolArg::Count => Pool::Count,
    };
    let image = args::encode_image(session, path, verbosity)?;
    let prompt = args.prompt.build(session, Some(&image))?;
    let positions = features::pooled_positions(prompt.tokens(), args.over)?;
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
            .filter(|_| pool == Pool::Max && args.over == Over::Image),
    };
    let d_sae = sae.meta().d_sae;
    let acts = &run.trace.activations;
    let mut scores = features::rank(acts, &positions, d_sae, pool, baseline);
    scores.truncate(args.top.get());

    let shown = path.display();
    if !args.json {
        let title = format!(
            "{shown}: {} of {}",
            args.pool.phrase(),
            described(args.over)
        );
        return table::print_features(&mut io::stdout().lock(), &title, &scores, session.sae())
            .map_err(Failure::Output);
    }
    let standings = json::features(&scores, session.sae());
    let report = Report {
        image: shown.to_string(),
        n_image_tokens: image.grid.iter().product(),
        grid: image.grid,
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
