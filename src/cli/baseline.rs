//! `baseline`: what features usually do on pictures, measured and written into a copy of the SAE.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use gguf_tools::sae::Baseline;
use llava_sae_cpp::scan::read_image;
use llava_sae_cpp::{Error, Session, TokenKind};

use super::args::{self, ModelArgs, PromptArgs, Verbosity};
use super::new_file::overwrite;
use super::progress::Counter;
use super::{CommandResult, Outcome};

/// Measure what features usually do on pictures, so that rankings show what is particular to one
#[derive(Args)]
pub(super) struct BaselineArgs {
    /// A folder of varied pictures
    dir: PathBuf,
    /// The SAE file to write: a copy of the model's, with the baseline
    #[arg(short, long, value_name = "SAE.gguf")]
    output: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(
    args: BaselineArgs,
    verbosity: Verbosity,
    interrupt: Arc<AtomicBool>,
) -> CommandResult {
    let overwrite = overwrite(args.force);
    overwrite.check(&args.output)?;
    let pictures = files_in(&args.dir)?;
    let mut session = args.model.open(verbosity, Arc::clone(&interrupt))?;
    let mut sums = Sums::new(session.sae().meta().d_sae);
    let counter = Counter::start("pictures", pictures.len(), verbosity);
    for path in &pictures {
        if interrupt.load(Ordering::Relaxed) {
            return Err(Error::Interrupted.into());
        }
        match sums.add_picture(&mut session, path, &args.prompt) {
            Err(error) if error.is_interrupted() => return Err(error.into()),
            Err(error) => log::warn!("skipped: {error}"),
            Ok(()) => {}
        }
        counter.advance();
    }
    counter.finish();
    let baseline = sums.baseline().ok_or_else(|| {
        Error::invalid(format!(
            "no picture in `{}` could be read",
            args.dir.display()
        ))
        .with_hint("give a folder of PNG, JPEG, GIF, WebP, BMP or TIFF files")
    })?;
    baseline.write(session.sae().file(), &args.output, overwrite)?;
    Ok(Outcome::Done)
}

/// The folder's files, by name.
fn files_in(dir: &Path) -> llava_sae_cpp::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(gguf_tools::Error::io("read", dir))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(gguf_tools::Error::io("read", dir))?.path();
        if path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What has been seen so far.
struct Sums {
    max: Vec<f64>,         // [d_sae]: largest activations, summed over pictures
    active_rows: Vec<u64>, // [d_sae]
    n_rows: u64,
    n_pictures: u32,
}

impl Sums {
    fn new(d_sae: usize) -> Self {
        Self {
            max: vec![0.0; d_sae],
            active_rows: vec![0; d_sae],
            n_rows: 0,
            n_pictures: 0,
        }
    }

    fn add_picture(
        &mut self,
        session: &mut Session,
        path: &Path,
        prompt: &PromptArgs,
    ) -> llava_sae_cpp::Result<()> {
        let image = args::encode_quietly(session, path)?;
        let trace = read_image(session, &image, prompt.scanned())?;
        let mut max = vec![0.0_f32; self.max.len()];
        for (row_idx, token) in trace.tokens.iter().enumerate() {
            if token.kind != TokenKind::Image {
                continue;
            }
            self.n_rows += 1;
            for (feature, value) in trace.activations.row(row_idx) {
                max[feature] = max[feature].max(value);
                self.active_rows[feature] += 1;
            }
        }
        for (sum, value) in self.max.iter_mut().zip(max) {
            *sum += f64::from(value);
        }
        self.n_pictures += 1;
        Ok(())
    }

    /// The means; none without a picture.
    fn baseline(&self) -> Option<Baseline> {
        if self.n_pictures == 0 {
            return None;
        }
        let mean = |sum: &f64| (sum / f64::from(self.n_pictures)) as f32;
        let share = |&n_active: &u64| (n_active as f64 / self.n_rows as f64) as f32;
        Some(Baseline {
            mean_max: self.max.iter().map(mean).collect(),
            frequency: self.active_rows.iter().map(share).collect(),
            n_pictures: self.n_pictures,
        })
    }
}
