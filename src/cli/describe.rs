//! The main command: describe an image, steered or not.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use gguf_tools::terminal::printable;
use llava_sae_cpp::rank::{self, FeatureScore, Over, Pool};
use llava_sae_cpp::report::json;
use llava_sae_cpp::report::table::{self, Score};
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{
    CancelFlag, ImageEmbeddings, Keep, Kinds, Prompt, Run, RunOptions, Sae, SaeSet, SaeTrace,
    Session, Stop, random_control, saved_set,
};
use serde::Serialize;

use super::args::{GenerateArgs, ModelArgs, PromptArgs};
use super::interventions::{ANY, InterventionArgs, parse_control};
use super::outcome::{CommandResult, Failure, Outcome};
use super::progress::{Spinner, Verbosity};

/// The main command's arguments.
#[derive(Args)]
pub(super) struct DescribeArgs {
    /// The picture to describe (`demo:apple` is one of the demo's); several make one prompt, and without any, `--prompt` is text only, and `--chat` has its own
    #[arg(required_unless_present_any = ["prompt", "chat"])]
    image: Vec<PathBuf>,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    interventions: InterventionArgs,
    /// Print the original output too
    #[arg(long, requires = ANY)]
    compare: bool,
    /// Print the output of a control too: the same interventions on random features (and along random directions), which
    /// add as much to a row; `random:SEED` draws others
    ///
    /// A random feature is one of the SAE's, of those that usually add about as much to pictures' rows where the SAE's
    /// file has a baseline. Strengths and clamp values are scaled by the lengths of the decoder rows. What the control
    /// changes too is no effect of the feature.
    #[arg(long, value_name = "random[:SEED]", requires = ANY, value_parser = parse_control)]
    control: Option<u64>,
    /// After the text, list the N features that the image activated most
    #[arg(long, value_name = "N", default_value_t = 0)]
    top: usize,
    #[command(flatten)]
    generate: GenerateArgs,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    sae: Option<String>,
    prompt: String,
    image: Option<String>,
    images: Vec<String>,
    interventions: Vec<saved_set::Entry>,
    original: Option<json::Output>,
    steered: Option<json::Output>,
    control: Option<ControlReport>,
    features: Vec<json::FeatureEntry>,
    n_prompt_tokens: usize,
    n_image_tokens: usize,
    timings: Timings,
}

/// The same interventions on random targets.
#[derive(Serialize)]
struct ControlReport {
    seed: u64,
    interventions: Vec<saved_set::Entry>,
    #[serde(flatten)]
    output: json::Output,
}

/// Wall-clock times; of several runs, the prompts' are summed, and all generate at the same time.
#[derive(Serialize)]
struct Timings {
    load_ms: f64,
    image_ms: f64,
    prompt_ms: f64,
    generate_ms: f64,
    generated_tokens: usize,
}

pub(super) fn run(args: DescribeArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let start = Instant::now();
    let interventions = args.interventions.read()?;
    let asked = args.prompt.read()?;
    let mut session = match args.top == 0 && interventions.are_vectors() {
        true => args.model.open_sae_or_none(verbosity, &cancel)?,
        false => args.model.open(verbosity, &cancel)?,
    };
    let steering = interventions.steering(session.model())?;
    let control = args.control.zip(steering.as_deref());
    let control = control.map(|(seed, steering)| {
        let model = session.model();
        let interventions = random_control(steering.interventions(), model.saes(), seed)?;
        model.steering(interventions)
    });
    let control = control.transpose()?;
    let load_time = start.elapsed();
    let images = asked.encode(&session, &args.image, verbosity)?;
    let prompt = asked.build(&session, &images, &cancel)?;
    let over = match images.is_empty() {
        true => Over::PROMPT,
        false => Over::IMAGE,
    };

    let original = (args.compare || steering.is_none()).then_some(Which::Original);
    let steered = steering.as_ref().map(Which::Steered);
    let beside = control.as_ref().map(Which::Control);
    let wanted: Vec<_> = original.into_iter().chain(steered).chain(beside).collect();
    let runs = describe(
        &mut session,
        &prompt,
        &wanted,
        &over,
        &args,
        verbosity,
        &cancel,
    )?;
    let was_interrupted = runs.iter().any(|run| run.stop == Stop::Interrupted);
    let output = |is_it: fn(&Which<'_>) -> bool| {
        let run = wanted.iter().position(is_it).map(|i| &runs[i]);
        run.map(json::Output::new)
    };

    let scores = match args.top {
        0 => Vec::new(),
        top => top_features(&runs[0], session.model().saes(), &over, top)?,
    };
    let saes = session.model().saes();
    if args.json {
        let paths = json::paths(&args.image);
        let report = Report {
            model: args.model.shown_model(),
            sae: (!saes.is_empty()).then(|| args.model.shown_sae()),
            prompt: asked.shown(&session)?,
            image: paths.first().cloned(),
            images: paths,
            interventions: saved_set::entries(steering.as_deref(), session.model().saes()),
            original: output(|which| matches!(which, Which::Original)),
            steered: output(|which| matches!(which, Which::Steered(_))),
            control: output(|which| matches!(which, Which::Control(_))).map(|output| {
                ControlReport {
                    seed: args.control.unwrap_or_default(),
                    interventions: saved_set::entries(control.as_deref(), saes),
                    output,
                }
            }),
            features: (scores.iter().enumerate())
                .flat_map(|(sae, scores)| json::features(scores, saes, sae))
                .collect(),
            n_prompt_tokens: prompt.tokens().len(),
            n_image_tokens: images.iter().map(ImageEmbeddings::n_rows).sum(),
            timings: Timings {
                load_ms: milliseconds(load_time),
                image_ms: milliseconds(images.iter().map(|image| image.time).sum()),
                prompt_ms: milliseconds(runs.iter().map(|run| run.prompt_time).sum()),
                generate_ms: milliseconds(runs[0].generate_time),
                generated_tokens: runs.iter().map(|run| run.token_ids.len()).sum(),
            },
        };
        json::print(&mut io::stdout(), &report).map_err(Failure::Output)?;
    } else if args.top > 0 {
        let mut out = io::stdout().lock();
        for ((sae_idx, sae), scores) in saes.iter().enumerate().zip(&scores) {
            let of = match (over == Over::IMAGE, sae.baseline()) {
                (true, Some(_)) => {
                    "the image activated most (largest activation over its tokens, minus the usual one)"
                }
                (true, None) => "the image activated most (largest activation over its tokens)",
                (false, _) => {
                    "the prompt activated most (largest activation over its tokens, special ones left out)"
                }
            };
            let title = match saes.shown_id(sae_idx) {
                None => format!("Features that {of}:"),
                Some(id) => format!("Features of {id} that {of}:"),
            };
            writeln!(out)
                .and_then(|()| table::print_features(&mut out, &title, scores, Score::Max, sae))
                .map_err(Failure::Output)?;
        }
    }
    if was_interrupted {
        return Ok(Outcome::Interrupted);
    }
    Ok(Outcome::Done)
}

/// A run of the prompt.
#[derive(Clone, Copy)]
enum Which<'a> {
    Original,
    Steered(&'a Arc<Steering>),
    Control(&'a Arc<Steering>),
}

impl Which<'_> {
    fn steering(self) -> Option<Arc<Steering>> {
        match self {
            Self::Original => None,
            Self::Steered(steering) | Self::Control(steering) => Some(Arc::clone(steering)),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Original => "Original output:\n",
            Self::Steered(_) => "Output after intervention:\n",
            Self::Control(_) => "Output after the same on random features:\n",
        }
    }
}

/// Runs the prompt in all ways that are wanted, side by side. The first run's text is printed as it comes.
fn describe(
    session: &mut Session,
    prompt: &Prompt,
    wanted: &[Which<'_>],
    over: &Over,
    args: &DescribeArgs,
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> Result<Vec<Run>, Failure> {
    // Features are read before interventions, so either run shows the same ones: the first is asked.
    let options = (0..)
        .zip(wanted)
        .map(|(i, which)| RunOptions {
            steering: which.steering(),
            keep: Keep {
                features: match args.top > 0 && i == 0 {
                    true => over.kinds(),
                    false => Kinds::NONE,
                },
                ..Keep::default()
            },
            max_tokens: args.generate.max_tokens,
            sampling: args.generate.sampling(),
            cancel: cancel.clone(),
            ..RunOptions::default()
        })
        .collect();
    let spinner = Spinner::start("reading the prompt", verbosity);
    let mut printer = Printer::new(!args.json, wanted.len() > 1);
    printer.start(wanted[0]);
    let runs = session.run_side_by_side(prompt, options, &mut |run_idx, step| {
        if run_idx == 0 && !step.text.is_empty() {
            spinner.finish();
            printer.text(step.text);
        }
        ControlFlow::Continue(())
    })?;
    spinner.finish();
    printer.end()?;
    for (run, which) in runs.iter().zip(wanted).skip(1) {
        printer.text("\n");
        printer.start(*which);
        printer.text(&run.text);
        printer.end()?;
    }
    Ok(runs)
}

/// The first `top` of each SAE.
fn top_features(
    run: &Run,
    saes: &SaeSet,
    over: &Over,
    top: usize,
) -> llava_sae_cpp::Result<Vec<Vec<FeatureScore>>> {
    let positions = rank::pooled_positions(&run.trace.tokens, over)?;
    let of_sae = |(sae, seen): (&Arc<Sae>, &SaeTrace)| {
        let baseline = sae.baseline().filter(|_| *over == Over::IMAGE);
        let d_sae = sae.meta().d_sae;
        let mut scores = rank::rank(&seen.activations, &positions, d_sae, Pool::Max, baseline);
        scores.truncate(top);
        scores
    };
    Ok(saes.iter().zip(&run.trace.saes).map(of_sae).collect())
}

/// Prints the text as it comes. An error waits until the run is over.
struct Printer {
    on: bool,
    has_titles: bool,
    is_terminal: bool,
    pending_title: Option<&'static str>,
    outcome: io::Result<()>,
}

impl Printer {
    fn new(on: bool, has_titles: bool) -> Self {
        Self {
            on,
            has_titles,
            is_terminal: io::stdout().is_terminal(),
            pending_title: None,
            outcome: Ok(()),
        }
    }

    fn start(&mut self, which: Which<'_>) {
        self.pending_title = self.has_titles.then(|| which.title());
    }

    fn text(&mut self, text: &str) {
        let title = self.pending_title.take().unwrap_or_default();
        self.write(title);
        self.write(text);
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.text("\n");
        std::mem::replace(&mut self.outcome, Ok(())).map_err(Failure::Output)
    }

    /// A vocabulary may hold control characters, which a terminal is not given; a file or a pipe gets
    /// what the model wrote.
    fn write(&mut self, text: &str) {
        if !self.on || self.outcome.is_err() {
            return;
        }
        let mut out = io::stdout();
        self.outcome = match self.is_terminal {
            true => out
                .write_all(printable(text).as_bytes())
                .and_then(|()| out.flush()),
            false => out.write_all(text.as_bytes()),
        };
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
