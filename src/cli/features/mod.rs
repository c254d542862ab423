//! `features`: the features that images, or a text, activate.

mod against;
mod args;
mod seen;

use std::io::{self, Write};
use std::sync::Arc;

use gguf_tools::new_file::NewFile;
use gguf_tools::output_dir::OutputDir;
use llava_sae_cpp::report::page::Page;
use llava_sae_cpp::{CancelFlag, Picture};

use super::outcome::{CommandResult, Failure, Outcome};
use super::page;
use super::progress::Verbosity;

pub(super) use self::args::FeaturesArgs;

pub(super) fn run(args: FeaturesArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    if !args.against.is_empty() {
        return against::run(&args, verbosity, &cancel);
    }
    let outputs = start_outputs(&args)?;
    let interventions = args.interventions.read()?;
    let asked = args.prompt.read()?;
    let mut session = args.model.open(verbosity, &cancel)?;
    let steering = interventions.steering(session.model())?;
    let model = Arc::clone(session.model());
    let ranking = args.ranking(model.saes())?;
    let mut page = Page::new(args.about(&asked, steering.as_deref(), &ranking, &session)?);
    let mut group = Vec::new();
    for (i, name) in args.names().iter().enumerate() {
        let path = args.image.get(i);
        let picture = path.map(|path| Picture::open(path)).transpose()?;
        let subject = seen::Subject::new(&session, &asked, picture, verbosity, &cancel)?;
        let (ranking, steering) = (ranking.clone(), steering.as_ref());
        let looked_at = seen::look(
            &mut session,
            subject,
            steering,
            ranking,
            &args,
            verbosity,
            &cancel,
        )?;
        let seen = looked_at.seen(model.saes())?;
        if args.group {
            group.push(seen.scores);
            continue;
        }
        if i > 0 && !args.json {
            writeln!(io::stdout()).map_err(Failure::Output)?;
        }
        let shown = path.map_or("text".to_owned(), |path| path.display().to_string());
        seen::print(&seen, &shown, &args, &model)?;
        if let Some(dir) = &args.heatmap {
            seen::draw(&seen, dir, name, &args, model.saes())?;
        }
        if args.html.is_some() {
            page.add(&looked_at.shown(&seen, name), &session);
        }
    }
    if args.group {
        seen::print_group(&group, &ranking, &args, model.saes())?;
    }
    if let Some(file) = outputs.page {
        file.finish_with(page.html().as_bytes())?;
    }
    Ok(Outcome::Done)
}

/// Where results go, apart from stdout.
struct Outputs {
    /// The heat maps' folder, which is removed again if nothing was written to it.
    _maps: Option<OutputDir>,
    page: Option<NewFile>,
}

/// Checks, before any work, that the outputs can be written, makes the heat maps' folder, and starts
/// the page's file.
fn start_outputs(args: &FeaturesArgs) -> llava_sae_cpp::Result<Outputs> {
    let maps = args.heatmap.as_deref().map(OutputDir::create).transpose()?;
    let others = args.image.iter().chain(args.interventions.file());
    let inputs = others.chain(args.prompt.file()).cloned();
    Ok(Outputs {
        _maps: maps,
        page: page::start(args.html.as_deref(), args.overwrite(), &args.model, inputs)?,
    })
}
