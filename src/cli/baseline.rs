//! `baseline`: what features usually do on pictures, measured and written into a copy of the SAE.

use std::path::PathBuf;

use clap::Args;
use gguf_tools::new_file::Overwrite;
use gguf_tools::sae::{Baseline, SaeFile};
use llava_sae_cpp::CancelFlag;
use llava_sae_cpp::scan::{PictureFeatures, Scan, scan};

use super::args::{ModelArgs, PromptArgs, Verbosity, note_as_seen};
use super::folder::{none_read, pictures_in, warn_of_gap};
use super::progress::Counter;
use super::{CommandResult, Outcome};

/// Measure what features usually do on pictures, so that rankings show what is particular to one
#[derive(Args)]
pub(super) struct BaselineArgs {
    /// A folder of varied pictures, those in folders below it included
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

pub(super) fn run(args: BaselineArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    let overwrite = Overwrite::if_forced(args.force);
    overwrite.check(&args.output)?;
    let pictures = pictures_in(&args.dir, verbosity)?;
    let files = args.model.announced_files(verbosity)?;
    files.projector()?;
    let options = args.model.options();
    args.model.probe(&files, &options, verbosity, &cancel)?;
    let sae = SaeFile::open(&files.saes[0])?;
    let mut sums = Sums::new(sae.meta.d_sae);
    let counter = Counter::start("pictures", pictures.len(), verbosity);
    let mut n_skipped = 0;
    let all = Scan {
        files: &files,
        options: &options,
        prompt: args.prompt.scanned(),
        dir: &args.dir,
        jobs: 1,
        cancel: &cancel,
    };
    scan(
        &all,
        &pictures.iter().collect::<Vec<_>>(),
        &mut |_, result| {
            match result {
                Ok(features) => sums.add(&features),
                Err(error) => {
                    n_skipped += 1;
                    counter.suspend(|| warn_of_gap(&format!("skipped: {error}")));
                }
            }
            counter.advance();
            Ok(())
        },
    )?;
    counter.finish();
    let baseline = sums
        .baseline()
        .ok_or_else(|| none_read(&args.dir, pictures.len()))?;
    if n_skipped > 0 {
        warn_of_gap(&format!(
            "skipped {n_skipped} of {} pictures",
            pictures.len()
        ));
    }
    baseline.write(&sae, &args.output, overwrite)?;
    note_as_seen(&args.output);
    Ok(Outcome::Done)
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

    fn add(&mut self, picture: &PictureFeatures) {
        for active in &picture.active {
            self.max[active.feature] += f64::from(active.max);
            self.active_rows[active.feature] += active.count as u64;
        }
        self.n_rows += picture.n_rows as u64;
        self.n_pictures += 1;
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
