//! `baseline`: what features usually do on pictures, measured and written into copies of the SAEs.

use std::path::{Path, PathBuf};

use clap::Args;
use gguf_tools::new_file::Overwrite;
use gguf_tools::output_dir::OutputDir;
use llava_sae_cpp::baseline::measure;
use llava_sae_cpp::pictures::{ItemKind, Reading, Scan};
use llava_sae_cpp::{CancelFlag, Error};

use super::args::{ModelArgs, TextArgs};
use super::folder::{items_in, warn_of_gap};
use super::outcome::{CommandResult, Outcome};
use super::progress::{Counter, Verbosity};
use super::seen::note_as_seen;

/// Measure what features usually do on pictures, so that rankings show what is particular to one
#[derive(Args)]
pub(super) struct BaselineArgs {
    /// A folder of varied pictures, those in folders below it included
    dir: PathBuf,
    /// The SAE file to write: a copy of the model's, with the baseline. With several SAEs, which are measured in
    /// one pass, the folder to write their copies to, each under its file's name
    #[arg(short, long, value_name = "SAE.gguf|DIR")]
    output: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    prompt: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: BaselineArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    let files = args.model.announced_files(verbosity, &cancel)?;
    let targets = targets(&files.saes, &args.output)?;
    for target in &targets {
        overwrite.check(target)?;
    }
    // It goes again where nothing is written to it.
    let _dir = match &targets[..] {
        [_] => None,
        _ => Some(OutputDir::create(&args.output)?),
    };
    let pictures = items_in(&args.dir, ItemKind::Pictures, verbosity)?;
    let saes = files.open_saes()?;
    files.projector()?;
    let options = args.model.options()?;
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let counter = Counter::start("pictures", pictures.len(), verbosity);
    let mut n_skipped = 0;
    let scan = Scan {
        files: &files,
        options: &options,
        reading: Reading::Pictures(args.prompt.scanned()),
        dir: &args.dir,
        jobs: 1,
        cancel: &cancel,
    };
    let measured = measure(&scan, &pictures, &saes, &mut |read| {
        if let Err(error) = read {
            n_skipped += 1;
            counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
        }
        counter.advance();
    });
    counter.finish();
    let baselines = measured?;
    if n_skipped > 0 {
        warn_of_gap(&format!(
            "skipped {n_skipped} of {} pictures",
            pictures.len()
        ));
    }
    for ((sae, baseline), target) in saes.iter().zip(&baselines).zip(&targets) {
        let sae = sae.file().expect("it was opened from a file");
        baseline.write(sae, target, overwrite)?;
        note_as_seen(target);
    }
    Ok(Outcome::Done)
}

/// The file to write for each SAE: the output, or, for several, files of their names in it.
fn targets(saes: &[PathBuf], output: &Path) -> llava_sae_cpp::Result<Vec<PathBuf>> {
    if let [_] = saes {
        return Ok(vec![output.to_owned()]);
    }
    let is_named_as_file = output.extension().is_some_and(|name| name == "gguf");
    if !output.is_dir() && (output.exists() || is_named_as_file) {
        let shown = output.display();
        let what = format!(
            "`{shown}` is one file, and {} SAEs are measured",
            saes.len()
        );
        return Err(Error::invalid(what)
            .with_hint("give a folder: the copies get the names of the SAEs' files"));
    }
    let mut targets = Vec::new();
    for sae in saes {
        let name = sae.file_name().unwrap_or_default();
        let target = output.join(name);
        if targets.contains(&target) {
            let name = name.to_string_lossy();
            let what = format!("two of the SAEs' files are called `{name}`");
            return Err(Error::invalid(what)
                .with_hint("measure one after the other, or rename one of the files"));
        }
        targets.push(target);
    }
    Ok(targets)
}
