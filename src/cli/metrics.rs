//! `metrics`: how well the SAE fits the model on this input.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::metrics::{self, Metrics};
use llava_sae_cpp::report::{self, json};
use llava_sae_cpp::{
    CancelFlag, Error, ImageCache, ImageEmbeddings, Picture, Sae, SaeSet, Session,
};
use serde::Serialize;

use super::args::{Asked, ModelArgs, PromptArgs};
use super::folder::warn_of_gap;
use super::outcome::{CommandResult, Failure, Outcome};
use super::progress::{Counter, Verbosity};

/// Measure how well the SAE fits the model on pictures and texts
///
/// The measures are those of SAELens' evaluation (sae_lens/evals.py), for text and image rows separately:
/// L0 is the mean number of active features; explained variance is 1 - E|x - y|^2 / (E|x|^2 - |E x|^2)
/// of rows x and reconstructions y; MSE is E|x - y|^2, a sum over dimensions; cosine is the mean cosine
/// of x and y; "never active" is the share of features that no row activates. The loss is the
/// cross-entropy of the text's tokens in nats, as the model is, with reconstructions in place of all
/// rows, and with zeros; the score is the share of the cost of zeros that reconstructions avoid. Rows of
/// special tokens, such as `<bos>` and the marks of turns, do not count and are not replaced, as in
/// SAELens. Of a transcoder, x is the row where it writes.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct MetricsArgs {
    /// The pictures; without any, `--text` or `--prompt` is text only
    #[arg(required_unless_present_any = ["text", "prompt", "chat"])]
    image: Vec<PathBuf>,
    /// A text file for the text rows and the loss, which otherwise come from the prompt; it is read in
    /// contexts of 128 tokens
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print one JSON object instead of a table; with several SAEs, one for each, on its own line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    sae: String,
    #[serde(flatten)]
    measured: report::metrics::Report,
}

pub(super) fn run(args: MetricsArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let text = args.text.as_deref().map(read_text).transpose()?;
    let asked = args.prompt.read()?;
    let files = args.model.announced_files(verbosity, &cancel)?;
    if !args.image.is_empty() {
        files.projector()?;
    }
    let mut options = args.model.options()?;
    options.prompt_store = None; // no prompt is read twice
    if args.image.len() > 1 {
        options.image_cache = options.image_cache.map(ImageCache::read_only);
    }
    let mut session = args.model.open_files(&files, options, verbosity, &cancel)?;
    let saes = session.model().saes().clone();
    let all = (0..saes.len()).map(|sae| Metrics::new(&session, sae));
    let mut all: Vec<Metrics> = all.collect();
    measure(
        &args,
        &asked,
        text.as_deref(),
        &mut session,
        &mut all,
        verbosity,
        &cancel,
    )?;
    let mut out = io::stdout().lock();
    for (sae, metrics) in saes.iter().zip(&all) {
        let report = report(&args, &saes, sae, metrics);
        if args.json {
            json::print(&mut out, &report).map_err(Failure::Output)?;
            continue;
        }
        if saes.len() > 1 {
            writeln!(out, "{}:", one_line(sae.id())).map_err(Failure::Output)?;
        }
        print_table(&mut out, &report).map_err(Failure::Output)?;
    }
    if !args.json && args.text.is_none() && !args.image.is_empty() {
        let what = "Text rows are those of the prompt around each image, the same tokens every time; `--text FILE` measures on a text.";
        writeln!(out, "{what}").map_err(Failure::Output)?;
    }
    Ok(Outcome::Done)
}

fn report(args: &MetricsArgs, saes: &SaeSet, sae: &Sae, metrics: &Metrics) -> Report {
    Report {
        model: args.model.shown_model(),
        sae: match saes.len() {
            1 => args.model.shown_sae(),
            _ => sae.id().to_owned(),
        },
        measured: report::metrics::Report::new(metrics),
    }
}

fn read_text(path: &Path) -> llava_sae_cpp::Result<String> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        Error::invalid(format!("`{shown}` is not UTF-8 text"))
            .with_hint("convert it, for example with iconv")
    })?;
    if text.trim().is_empty() {
        return Err(Error::invalid(format!("`{shown}` contains no text")));
    }
    Ok(text)
}

/// Encodes the pictures in what is asked.
fn encode(
    session: &Session,
    asked: &Asked,
    given: Vec<Picture>,
) -> llava_sae_cpp::Result<Vec<ImageEmbeddings>> {
    let pictures = asked.pictures(given)?;
    let encode = |picture| session.encode_image(picture);
    pictures.iter().map(encode).collect()
}

fn measure(
    args: &MetricsArgs,
    asked: &Asked,
    text: Option<&str>,
    session: &mut Session,
    all: &mut [Metrics],
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<()> {
    let mut texts = match text {
        Some(text) => metrics::text_prompts(session, text, cancel)?,
        None => Vec::new(),
    };
    if args.image.is_empty() && text.is_none() {
        texts.push(asked.build(session, &encode(session, asked, Vec::new())?, cancel)?);
    }
    let counter = Counter::start("prompts", texts.len() + args.image.len(), verbosity);
    for prompt in &texts {
        for metrics in &mut *all {
            metrics.add(session, prompt, cancel)?;
        }
        counter.advance();
    }
    let mut n_skipped = 0;
    for path in &args.image {
        let images =
            match Picture::open(path).and_then(|picture| encode(session, asked, vec![picture])) {
                Ok(images) => images,
                Err(error) if error.is_of_input() && args.image.len() > 1 => {
                    n_skipped += 1;
                    counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
                    counter.advance();
                    continue;
                }
                Err(error) => return Err(error),
            };
        let prompt = asked.build(session, &images, cancel)?;
        for metrics in &mut *all {
            match text {
                Some(_) => metrics.add_image(session, &prompt, cancel)?,
                None => metrics.add(session, &prompt, cancel)?,
            }
        }
        counter.advance();
    }
    counter.finish();
    if n_skipped > 0 {
        let n_pictures = args.image.len();
        if n_skipped == n_pictures {
            let what = format!("none of the {n_pictures} pictures could be read");
            return Err(Error::invalid(what).with_hint("the warnings say why"));
        }
        warn_of_gap(&format!("skipped {n_skipped} of {n_pictures} pictures"));
    }
    Ok(())
}

fn print_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    writeln!(
        out,
        "rows     number       L0  explained variance         MSE  cosine  never active"
    )?;
    let measured = &report.measured;
    for (name, fit) in [("text", &measured.text), ("image", &measured.image)] {
        let share = fit
            .never_active
            .map(|share| format!("{:.1} %", 100.0 * share));
        writeln!(
            out,
            "{name:<5}  {:>8}  {:>7}  {:>18}  {:>10}  {:>6}  {:>12}",
            fit.n_rows,
            fit.l0.map_or("-".to_owned(), |l0| format!("{l0:.1}")),
            number(fit.explained_variance),
            number(fit.mse),
            number(fit.cossim),
            share.unwrap_or("-".to_owned()),
        )?;
    }
    let loss = &measured.loss;
    let increase = loss.ce_loss_with_sae.zip(loss.ce_loss_without_sae);
    writeln!(
        out,
        "\nLoss on {} text tokens, nats: {} as the model is, {} with reconstructions (a rise of {}), {} with zeros; score {}",
        loss.n_tokens,
        number(loss.ce_loss_without_sae),
        number(loss.ce_loss_with_sae),
        number(increase.map(|(with, without)| with - without)),
        number(loss.ce_loss_with_ablation),
        number(loss.ce_loss_score),
    )?;
    if loss.zeros_cost_nothing {
        writeln!(
            out,
            "The score says nothing here: with zeros, the text is at least as likely as with the model itself."
        )?;
    }
    Ok(())
}
