//! `reproduce`: whether a published experiment's claims hold on the user's pictures.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use gguf_tools::new_file::{NewFile, Overwrite, check_is_no_input};
use gguf_tools::terminal::one_line;
use llava_sae_cpp::pictures::ItemKind;
use llava_sae_cpp::report::json;
use llava_sae_cpp::reproduce::{
    ClassPictures, Event, Experiment, Protocol, Report, Verdict, only_sae,
};
use llava_sae_cpp::{CancelFlag, Error};

use super::args::ModelArgs;
use super::folder::{items_in, warn_of_gap};
use super::outcome::{CommandResult, Failure, Outcome};
use super::progress::{Counter, Verbosity};

/// Stands for stdout in the place of a file.
const STDOUT: &str = "-";

/// Repeat a published experiment on pictures of your own, and say whether its claims hold
///
/// A protocol names classes of pictures and the features that were published for each, a feature that is
/// subtracted and the words that must go from the captions, and from when on each claim holds: `reading`,
/// `steering` and `control`. The program has one for `llava-gemma-2b`, the original experiment, one for
/// `gemma-3-4b`, whose features are found by their labels, and one for the embedded `demo`.
///
/// A claim that could not be tested counts as one that fails, unless `--allow-missing` is given. The report
/// names versions, the files' hashes and the machine, and of your files nothing but their names; it holds no
/// pictures, but what the model says of them.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ReproduceArgs {
    /// The pictures: a folder with one for each class, named as the class
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The protocol: `llava-gemma-2b`, `gemma-3-4b`, `demo`, or a file [default: the one that fits the SAE]
    #[arg(long, value_name = "NAME|FILE", alias = "expect")]
    protocol: Option<String>,
    /// Write the report as one self-contained page
    #[arg(short = 'o', long, value_name = "FILE", visible_alias = "output")]
    html: Option<PathBuf>,
    /// Write the report as JSON; without a file, print it instead of the text
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    json: Option<PathBuf>,
    /// Succeed although something could not be tested
    #[arg(long)]
    allow_missing: bool,
    /// Overwrite the files of `--html` and `--json`
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp reproduce -d llava-gemma-2b --images pictures/ -o report.html --json report.json
      The original experiment; its classes are the folders pizza, golden retriever, lakeside,
      coral reef, alps, goldfish and rocking chair, with 16 pictures or more in each
  llava-sae-cpp reproduce --images reproduce/demo
      The embedded demo, which tests the command itself

Exit codes: 0 every claim holds, 1 one does not (or an error), 2 wrong usage, 130 interrupted.";

pub(super) fn run(args: ReproduceArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let (page, json_file) = args.start_outputs()?;
    let files = args.model.announced_files(verbosity, &cancel)?;
    let sae = only_sae(&files)?;
    files.projector()?;
    let protocol = match &args.protocol {
        Some(name) => Protocol::open(name)?,
        None => Protocol::for_sae(&sae)?,
    };
    protocol.check_sae(&sae)?;
    let pictures = pictures_of_classes(&args.images, &protocol, verbosity)?;
    let mut options = args.model.options()?;
    // Each picture is read several times, and not again later.
    options.prompt_store = options.prompt_store.map(|store| store.without_disk());
    let mut session = args.model.open_files(&files, options, verbosity, &cancel)?;
    let experiment = Experiment {
        protocol: &protocol,
        pictures: &pictures,
        files: &files,
        cancel: &cancel,
    };
    let mut counter = None;
    let report = experiment.run(&mut session, &mut |event| match event {
        Event::Start { n_steps } => counter = Some(Counter::start("pictures", n_steps, verbosity)),
        Event::Step => counter.iter().for_each(Counter::advance),
        Event::Skipped(error) => {
            let warn = || warn_of_gap(&format!("skipped: {error}"));
            counter.iter().for_each(|counter| counter.suspend(warn));
        }
    });
    drop(counter);
    let report = report?;
    if let Some(file) = page {
        file.finish_with(report.html().as_bytes())?;
    }
    let is_json = args.json.is_some();
    match json_file {
        Some(file) => {
            let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
            file.finish_with(format!("{text}\n").as_bytes())?;
        }
        None if is_json => json::print(&mut io::stdout(), &report).map_err(Failure::Output)?,
        None => {}
    }
    if !is_json || args.writes_json_file() {
        print_claims(&mut io::stdout().lock(), &report).map_err(Failure::Output)?;
    }
    Ok(match report.verdict {
        Verdict::Holds => Outcome::Done,
        Verdict::NotTested if args.allow_missing => Outcome::Done,
        Verdict::NotTested | Verdict::Fails => Outcome::Refuted,
    })
}

impl ReproduceArgs {
    fn writes_json_file(&self) -> bool {
        self.json.as_deref().is_some_and(|path| path != STDOUT)
    }

    /// Checks, before any work, that the outputs can be written, and starts their files.
    fn start_outputs(&self) -> llava_sae_cpp::Result<(Option<NewFile>, Option<NewFile>)> {
        let start = |path: &Path| {
            let protocol = self.protocol.iter().map(PathBuf::from);
            let inputs = self.model.given_files().into_iter().chain(protocol);
            check_is_no_input(path, inputs)?;
            NewFile::create(path, Overwrite::if_forced(self.force))
        };
        let json = self.json.as_deref().filter(|_| self.writes_json_file());
        if json.is_some() && json == self.html.as_deref() {
            return Err(Error::invalid("the page and the JSON are one file")
                .with_hint("give them different names"));
        }
        Ok((
            self.html.as_deref().map(start).transpose()?,
            json.map(start).transpose()?,
        ))
    }
}

/// The pictures in the folders that are named as classes; what is missing is said.
fn pictures_of_classes(
    dir: &Path,
    protocol: &Protocol,
    verbosity: Verbosity,
) -> llava_sae_cpp::Result<Vec<ClassPictures>> {
    std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut found = Vec::new();
    for class in &protocol.reading.classes {
        let folder = dir.join(&class.name);
        let pictures = match folder.is_dir() {
            true => items_in(&folder, ItemKind::Pictures, verbosity),
            false => Err(Error::invalid(format!("no folder `{}`", folder.display()))),
        };
        let pictures = pictures.unwrap_or_else(|error| {
            warn_of_gap(&format!(
                "the class `{}` is not tested: {error}",
                class.name
            ));
            Vec::new()
        });
        let paths = pictures.iter().map(|picture| picture.file(&folder));
        found.push(ClassPictures {
            name: class.name.clone(),
            paths: paths.collect(),
        });
    }
    if found.iter().all(|class| class.paths.is_empty()) {
        let names: Vec<_> = found
            .iter()
            .map(|class| format!("`{}`", class.name))
            .collect();
        let what = format!(
            "no class of the protocol has pictures in `{}`",
            dir.display()
        );
        return Err(Error::invalid(what).with_hint(format!(
            "make a folder of pictures for each class: {}",
            names.join(", ")
        )));
    }
    Ok(found)
}

fn print_claims(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(
        out,
        "Protocol `{}`: {}",
        one_line(&report.protocol.name),
        report.verdict.name()
    )?;
    for prompt in &report.prompts {
        let role = match prompt.is_judged {
            true => "by which claims are judged",
            false => "for comparison",
        };
        writeln!(
            out,
            "\nWith the prompt `{}`, {role}:",
            one_line(&prompt.name)
        )?;
        for claim in &prompt.claims {
            let (name, verdict) = (claim.claim.name(), claim.verdict.name());
            writeln!(out, "  {name:<9} {verdict:<11} {}", claim.found)?;
        }
    }
    Ok(())
}
