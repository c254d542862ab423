//! `explain`: why the model said a word.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use gguf_tools::gguf::Overwrite;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::explain::{Answer, ExplainOptions};
use llava_sae_cpp::report::explain::{CauseEntry, PatchEntry, Question, Report};
use llava_sae_cpp::report::json;

use super::args::{GenerateArgs, ModelArgs, PromptArgs, encode_pictures};
use super::outcome::{CommandResult, Failure, Outcome};
use super::page;
use super::progress::{Counter, Verbosity};

/// Say which features, at which positions, raised a word of the answer
///
/// The model answers, and the first place of the word in the answer is taken. Candidates are features at the rows of
/// an image, at one token of the prompt's text (special ones are left out), or at the answer's tokens before the word:
/// those whose part of these rows, activation times decoder row, is longest. Each is ablated there by itself, and
/// its effect is what that takes from the word's log-probability, in nats; a negative one lowered the word. Effects
/// need not sum. The three features that raised the word most at an image are then ablated at single patches, by row
/// and column from 0 at the top left, where they are most active, and at all of those together. The direct effect is what the feature does to the logit of the word's first token in the
/// row that predicts it, straight through the unembedding, before the final norm's division: activation times its
/// decoder row's logit above the mean. Other positions have none.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ExplainArgs {
    /// The picture; several make one prompt, and without any, `--prompt` is text only, and `--chat` has its own
    #[arg(required_unless_present_any = ["prompt", "chat"])]
    image: Vec<PathBuf>,
    /// The word, or words, in upper or lower case; of several tokens, the log-probabilities are summed
    #[arg(long, value_name = "TEXT")]
    word: String,
    /// Explain the word in this answer, whatever the model would say
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["max_tokens", "temp", "seed"])]
    answer: Option<String>,
    /// How many causes to list
    #[arg(long, value_name = "N", default_value = "10")]
    top: NonZeroUsize,
    /// How many features and positions to ablate
    #[arg(long, value_name = "N", default_value = "32")]
    candidates: NonZeroUsize,
    /// How many patches of each of three features to ablate alone
    #[arg(long, value_name = "N", default_value_t = 8)]
    patches: usize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Write a page of the causes, with the patches over the picture: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Overwrite the file of `--html`
    #[arg(long, requires = "html")]
    force: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp explain --word mushroom assets/pictures/carrot-mushroom.png
      Why the embedded demo says `mushroom`
  llava-sae-cpp explain --word dog --html why.html -d llava-gemma-2b photo.jpg
      … another model, and a page besides
  llava-sae-cpp explain --word cat --answer \"A photo of a cat.\" -d llava-gemma-2b photo.jpg
      … why it would say what it did not";

pub(super) fn run(args: ExplainArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let inputs = args.image.iter().chain(args.prompt.file()).cloned();
    let overwrite = Overwrite::if_forced(args.force);
    let page = page::start(args.html.as_deref(), overwrite, &args.model, inputs)?;
    let asked = args.prompt.read()?;
    let mut session = args.model.open(verbosity, &cancel)?;
    let pictures = asked.open(&args.image)?;
    let images = encode_pictures(&session, &pictures, verbosity)?;
    let prompt = asked.build(&session, &images, &cancel)?;
    let options = ExplainOptions {
        answer: match &args.answer {
            Some(text) => Answer::Given(text.clone()),
            None => Answer::Generated {
                max_tokens: args.generate.max_tokens,
                sampling: args.generate.sampling(),
            },
        },
        n_candidates: args.candidates.get(),
        n_patches: args.patches,
        cancel,
    };
    let counter = Counter::start("ablating", options.n_candidates, verbosity);
    let found = session.explain(&prompt, &args.word, &options, &mut |progress| {
        counter.set(progress.n_done, progress.n_in_all);
    })?;
    counter.finish();
    let shown = json::paths(&args.image);
    let question = Question {
        model: args.model.shown_model(),
        sae: args.model.shown_sae(),
        prompt: asked.shown(&session)?,
        image: shown.first().cloned(),
        images: shown,
        word: args.word.trim().to_owned(),
    };
    let report = Report::new(question, found, &prompt, session.model(), args.top.get());
    let mut out = io::stdout().lock();
    let printed = match args.json {
        true => json::print(&mut out, &report),
        false => print_table(&mut out, &report),
    };
    printed.map_err(Failure::Output)?;
    if let Some(file) = page {
        file.finish_with(report.html(&prompt, &pictures).as_bytes())?;
    }
    Ok(Outcome::Done)
}

fn print_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "Answer: {}", one_line(report.answer().trim()))?;
    let word = report.word_tokens.iter();
    let word: String = word.filter_map(|token| token.text.as_deref()).collect();
    writeln!(
        out,
        "Word `{}`: log-probability {:.3} nats. What ablating takes from it, of {} candidates among {}:",
        one_line(word.trim()),
        report.log_prob,
        report.n_candidates,
        report.n_active
    )?;
    if report.causes.is_empty() {
        return writeln!(out, "  none is active");
    }
    let at: Vec<String> = report.causes.iter().map(shown_at).collect();
    let width = at.iter().map(|at| at.chars().count()).max().unwrap_or(0);
    writeln!(
        out,
        "  rank  feature  {:<width$}    effect    direct       max  tokens  label",
        "at"
    )?;
    for (cause, at) in report.causes.iter().zip(&at) {
        let direct = cause
            .direct_effect
            .map_or("-".to_owned(), |x| format!("{x:.3}"));
        let line = format!(
            "{:>6}  {:>7}  {at:<width$}  {:>8.3}  {direct:>8}  {:>8.3}  {:>6}  {}",
            cause.rank,
            cause.feature.to_string(),
            cause.effect,
            cause.max,
            cause.n_tokens,
            one_line(cause.label.as_deref().unwrap_or_default()),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    for cause in &report.causes {
        if let Some(together) = cause.patches_effect {
            print_patches(out, cause, together)?;
        }
    }
    Ok(())
}

fn print_patches(out: &mut dyn Write, cause: &CauseEntry, together: f64) -> io::Result<()> {
    let place = |one: &PatchEntry| match one.patch {
        Some([row, column]) => format!("{row},{column}"),
        None => one.position.to_string(),
    };
    let alone = |one: &PatchEntry| format!("{:.3}", one.effect);
    let places: Vec<String> = cause.patches.iter().map(place).collect();
    let effects: Vec<String> = cause.patches.iter().map(alone).collect();
    writeln!(
        out,
        "Feature {} at the patches {} raised it by {together:.3}, at each alone by {}",
        cause.feature,
        places.join(" "),
        effects.join(" ")
    )
}

/// Where a cause is, with the token there.
fn shown_at(cause: &CauseEntry) -> String {
    let token = cause.token.as_ref().map(|text| format!(" {text:?}"));
    one_line(&format!("{}{}", cause.at, token.unwrap_or_default()))
}
