//! `sweep`: a feature at several strengths at once.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use gguf_tools::gguf::Overwrite;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::llama::MAX_SEQUENCES;
use llava_sae_cpp::report::json;
use llava_sae_cpp::report::sweep::{Control, Point, Report};
use llava_sae_cpp::steering::{Change, Intervention, Positions, Units};
use llava_sae_cpp::{CancelFlag, Error, FeatureName, RunOptions, ScoredRun, random_control};

use super::args::{GenerateArgs, ModelArgs, PromptArgs};
use super::interventions::{parse_control, parse_positions, units};
use super::outcome::{CommandResult, Failure, Outcome};
use super::page;
use super::progress::{Spinner, Verbosity};

/// Steer one feature with several strengths at once, and compare the results
/// The image is encoded once, and the tokens of all strengths are generated together. For each strength, the
/// table has: KL, how far the model's predictions along the original's text are from the original's (the mean
/// over its tokens of KL(original ‖ steered), in nats); logprob, the mean log-probability of the steered text
/// in the model without interventions (the lower, the more broken the text); and the text. A good first range
/// of strengths is from minus twice the feature's `max`, as `features` shows it, to 0.
#[derive(Args)]
pub(super) struct SweepArgs {
    /// The picture; several make one prompt, and without any, `--prompt` is text only, and `--chat` has its own
    #[arg(required_unless_present_any = ["prompt", "chat"])]
    image: Vec<PathBuf>,
    /// The feature and its strengths, both ends included, such as `4501:-8..0:2`
    #[arg(long, value_name = "FEATURE:FROM..TO:STEP", value_parser = parse_range, allow_hyphen_values = true)]
    steer: Range,
    /// The positions to steer, as for `--at` of the main command: all, image, prompt,
    /// special, generated, last, an index or a range, token:TEXT, image:N, patch:ROW,COL, or a list of them; no-special
    /// leaves the special tokens out
    #[arg(long, value_name = "WHERE", default_value = "all", value_parser = parse_positions, allow_hyphen_values = true)]
    at: Positions,
    /// The unit of strengths, as for `--units` of the main command: raw, unit, or usual, the feature's usual activation
    #[arg(long, value_name = "UNITS", default_value = "raw", value_parser = units())]
    units: Units,
    /// Steer a random feature too, which adds as much to a row, with the same strengths; `random:SEED` draws another
    ///
    /// As for `--control` of the main command: what the control changes too is no effect of the feature.
    #[arg(long, value_name = "random[:SEED]", value_parser = parse_control)]
    control: Option<u64>,
    /// Say for each text whether it contains this word (or words), ignoring case
    #[arg(long, value_name = "WORD")]
    word: Option<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Write a page of the texts, with their differences marked, and of the curves: one HTML file that needs nothing else
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

/// A feature's name and its strengths.
#[derive(Clone, Debug, PartialEq)]
struct Range {
    feature: String,
    strengths: Vec<f32>,
}

/// The most strengths in one sweep: the original takes a sequence too.
const MAX_STRENGTHS: usize = MAX_SEQUENCES - 1;

fn parse_range(text: &str) -> Result<Range, String> {
    let form = || {
        "expected a feature, two ends and a step, such as `4501:-8..0:2` or `dog:0..-6:-1`"
            .to_owned()
    };
    let (rest, step) = text.rsplit_once(':').ok_or_else(form)?;
    let (feature, ends) = rest.rsplit_once(':').ok_or_else(form)?;
    let (from, to) = ends.split_once("..").ok_or_else(form)?;
    let number = |text: &str| match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(form()),
    };
    let (from, to, step) = (number(from)?, number(to)?, number(step)?);
    let feature = feature.trim();
    if feature.is_empty() {
        return Err(form());
    }
    if step == 0.0 {
        return Err("a step of 0 leads nowhere".to_owned());
    }
    // Steps such as 0.1 are not exact, so that the end may be missed by a rounding error.
    let n_steps = ((to - from) / step + 1e-6).floor();
    if n_steps < 0.0 {
        return Err(format!("steps of {step} do not lead from {from} to {to}"));
    }
    if n_steps >= MAX_STRENGTHS as f64 {
        return Err(format!(
            "{} strengths are too many: at most {MAX_STRENGTHS} fit into one sweep",
            n_steps + 1.0
        ));
    }
    let strengths = (0..=n_steps as usize).map(|i| (from + i as f64 * step) as f32);
    Ok(Range {
        feature: feature.to_owned(),
        strengths: strengths.collect(),
    })
}

pub(super) fn run(args: SweepArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    if args.generate.max_tokens == 0 {
        return Err(
            Error::invalid("a sweep that generates no tokens has no texts to compare")
                .with_hint("give `-n` at least 1")
                .into(),
        );
    }
    let inputs = args.image.iter().chain(args.prompt.file()).cloned();
    let overwrite = Overwrite::if_forced(args.force);
    let page = page::start(args.html.as_deref(), overwrite, &args.model, inputs)?;
    let asked = args.prompt.read()?;
    let mut session = args.model.open(verbosity, &cancel)?;
    let model = session.model().clone();
    let feature = model.find_feature(&args.steer.feature)?;
    let strengths = &args.steer.strengths;
    let intervention = |&strength: &f32| Intervention {
        units: args.units,
        at: args.at.clone(),
        ..Intervention::new(feature, Change::steer(strength))
    };
    let mut interventions: Vec<_> = strengths.iter().map(intervention).collect();
    if let Some(seed) = args.control {
        interventions.extend(random_control(&interventions, model.saes(), seed)?);
    }
    if interventions.len() > MAX_STRENGTHS {
        let most = MAX_STRENGTHS / 2;
        let what = format!(
            "{} strengths with their controls are too many",
            strengths.len()
        );
        return Err(Error::invalid(what)
            .with_hint(format!("at most {most} fit into one sweep"))
            .into());
    }
    let steerings = interventions
        .iter()
        .map(|one| model.steering(vec![one.clone()]));
    let steerings: Vec<_> = steerings.collect::<Result<_, _>>()?;
    let images = asked.encode(&session, &args.image, verbosity)?;
    let prompt = asked.build(&session, &images, &cancel)?;
    let spinner = Spinner::start("running all strengths", verbosity);
    let options = RunOptions {
        max_tokens: args.generate.max_tokens,
        sampling: args.generate.sampling(),
        cancel: cancel.clone(),
        ..RunOptions::default()
    };
    let mut sweep = session.sweep(&prompt, &steerings, &options)?;
    spinner.finish();
    let of_control = sweep.steered.split_off(strengths.len());
    let saes = model.saes();
    let word = args.word.as_deref();
    let points = |runs: &[ScoredRun]| Point::of_each(strengths, runs, word);
    let images = json::paths(&args.image);
    let report = Report {
        model: args.model.shown_model(),
        sae: args.model.shown_sae(),
        prompt: asked.shown(&session)?,
        image: images.first().cloned(),
        images,
        feature: saes.shown(feature),
        label: saes.label(feature).map(str::to_owned),
        units: args.units,
        at: args.at.to_string(),
        word: args.word.clone(),
        original: Point::new(0.0, &sweep.original, word),
        steered: points(&sweep.steered),
        control: args.control.map(|seed| {
            let target = &interventions[strengths.len()].target;
            let random = target.feature().expect("a feature's control is a feature");
            Control {
                seed,
                feature: saes.shown(random),
                label: saes.label(random).map(str::to_owned),
                steered: points(&of_control),
            }
        }),
    };
    let mut out = io::stdout().lock();
    if args.json {
        json::print(&mut out, &report).map_err(Failure::Output)?;
    } else {
        print_table(&mut out, &report).map_err(Failure::Output)?;
    }
    if cancel.is_cancelled() {
        return Ok(Outcome::Interrupted);
    }
    if let Some(file) = page {
        file.finish_with(report.html().as_bytes())?;
    }
    Ok(Outcome::Done)
}

fn print_table(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let shown = |feature: &FeatureName, label: &Option<String>| {
        let label = label
            .as_deref()
            .map(|label| format!(" `{}`", one_line(label)));
        format!("{feature}{}", label.unwrap_or_default())
    };
    let feature = shown(&report.feature, &report.label);
    writeln!(out, "Feature {feature} steered at {}:", report.at)?;
    let word = report.word.as_deref().map(one_line);
    let width = word.as_ref().map_or(0, |word| word.chars().count().max(3));
    let title = word.map_or(String::new(), |word| format!("  {word:<width$}"));
    writeln!(out, "  strength       KL  logprob{title}  text")?;
    let row = |strength: &str, point: &Point| {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |x| format!("{x:.3}"));
        let (kl, log_prob) = (number(point.kl), number(point.mean_log_prob));
        let answer = point.has_word.map(|has| if has { "yes" } else { "no" });
        let answer = answer.map_or(String::new(), |answer| format!("  {answer:<width$}"));
        let text = one_line(point.output.text().trim());
        format!("{strength:>10}  {kl:>7}  {log_prob:>7}{answer}  {text}")
    };
    writeln!(out, "{}", row("original", &report.original))?;
    for point in &report.steered {
        writeln!(out, "{}", row(&point.strength.to_string(), point))?;
    }
    let Some(control) = &report.control else {
        return Ok(());
    };
    let random = shown(&control.feature, &control.label);
    writeln!(out, "The same on random feature {random}:")?;
    for point in &control.steered {
        writeln!(out, "{}", row(&point.strength.to_string(), point))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges() {
        let check = |text: &str, feature: &str, expected: &[f32]| {
            let range = parse_range(text).expect("a range");
            assert_eq!(
                (range.feature.as_str(), &range.strengths[..]),
                (feature, expected)
            );
        };
        check("4501:-8..0:4", "4501", &[-8.0, -4.0, 0.0]);
        check("dog:0..-2:-1", "dog", &[0.0, -1.0, -2.0]);
        check(
            "that is: dogs:1..2.05:.5",
            "that is: dogs",
            &[1.0, 1.5, 2.0],
        );
        check("7:3..3:1", "7", &[3.0]);
        check("7:0..0.3:0.1", "7", &[0.0, 0.1, 0.2, 0.3]);
        for bad in [
            "",
            "dog",
            "dog:1",
            "dog:1..2",
            "dog:1..2:0",
            "dog:1..2:-1",
            "dog:2..1:1",
            ":1..2:1",
            "dog:1..x:1",
            "dog:1..2:nan",
            "dog:0..1000:1",
            "dog:0..1:1e-300",
        ] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }
}
