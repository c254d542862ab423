//! A probe's child: loads and runs files as a session would, and reports how far it comes.

use std::ffi::OsString;
use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use gguf_tools::sae::SaeFile;
use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use super::stage::{DAMAGED, Report, Stage};
use crate::llama::{FlashAttention, KvType};
use crate::model::Session;
use crate::model::files::ModelFiles;
use crate::picture::{ImagePrep, Picture};
use crate::prompt::{Prompt, PromptForm, Segment};
use crate::run::{Keep, Run, RunOptions};
use crate::{Activations, Error, ErrorKind, Result, SessionOptions};

/// Set in the environment of a probe's child.
pub(super) const CHILD_VARIABLE: &str = "LLAVA_SAE_CPP_PROBE";
/// Rows of each part of the image that go through the language model, which does the same with each.
const IMAGE_ROWS: usize = 16;
const TEXT: &str = "Describe the image.";
/// Sides of the parts that projectors cut a picture into, at most; those that cut none may take larger ones.
const MAX_PART: u32 = 512;

/// What a child is to try.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    model: OsString,
    mmproj: Option<OsString>, // where it is to be run
    saes: Vec<OsString>,
    threads: usize,
    gpu_layers: i32,
    repack: bool,
    kv_type: KvType,
    flash_attention: FlashAttention,
    n_ubatch: usize,
}

impl Job {
    pub(super) fn new(files: &ModelFiles, options: &SessionOptions, runs_images: bool) -> Self {
        let mmproj = files.mmproj.clone().filter(|_| runs_images);
        Self {
            model: files.model.clone().into(),
            mmproj: mmproj.map(PathBuf::into_os_string),
            saes: files.saes.iter().map(|path| path.clone().into()).collect(),
            threads: options.threads,
            gpu_layers: options.gpu_layers,
            repack: options.repack,
            kv_type: options.kv_type,
            flash_attention: options.flash_attention,
            n_ubatch: options.n_ubatch,
        }
    }

    fn files(&self) -> ModelFiles {
        ModelFiles {
            model: self.model.clone().into(),
            mmproj: self.mmproj.clone().map(PathBuf::from),
            saes: self.saes.iter().map(PathBuf::from).collect(),
        }
    }

    fn options(&self) -> SessionOptions {
        SessionOptions {
            threads: self.threads,
            gpu_layers: self.gpu_layers,
            repack: self.repack,
            kv_type: self.kv_type,
            flash_attention: self.flash_attention,
            n_ubatch: self.n_ubatch,
            ..SessionOptions::default()
        }
    }
}

/// Does the work of a probe's child, where this process was started as one; else returns `None` at
/// once. To be called first of all in `main`, which then ends with that code.
pub fn child_main() -> Option<ExitCode> {
    std::env::var_os(CHILD_VARIABLE)?;
    // What llama.cpp says last is what the parent shows.
    let logger = env_logger::Builder::new()
        .filter_level(log::LevelFilter::Debug)
        .format(|out, record| std::io::Write::write_fmt(out, format_args!("{}\n", record.args())))
        .try_init();
    if let Err(error) = logger {
        eprintln!("llama.cpp's messages go elsewhere: {error}");
    }
    let mut line = String::new();
    let job = match std::io::stdin().lock().read_line(&mut line) {
        Ok(_) => serde_json::from_str::<Job>(&line).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let job = match job {
        Ok(job) => job,
        Err(error) => {
            eprintln!("`{CHILD_VARIABLE}` is set, and no job was given: {error}");
            return Some(ExitCode::FAILURE);
        }
    };
    std::thread::spawn(|| {
        // It ends with the parent.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        crate::llama::exit_at_once(1);
    });
    report(&match run(&job) {
        Ok(()) => Report::Passed,
        Err(error) => Report::Refused(error),
    });
    Some(ExitCode::SUCCESS)
}

/// Writes a line, and so flushes it.
fn report(report: &Report) {
    println!("{}", serde_json::to_string(report).expect("plain data"));
}

/// Does a step, and adds to its error which file it was about.
fn step<T>(files: &ModelFiles, stage: Stage, work: impl FnOnce() -> Result<T>) -> Result<T> {
    report(&Report::Stage(stage));
    work().map_err(|error| {
        let (file, doing) = (stage.file(files).display(), stage.doing());
        let what = format!("`{file}` fails while {doing}: {error}");
        error.with_message(what)
    })
}

fn run(job: &Job) -> Result<()> {
    let (files, options) = (job.files(), job.options());
    report(&Report::Stage(Stage::CheckSae));
    for sae in &files.saes {
        SaeFile::open(sae)?.verify()?;
    }
    report(&Report::Stage(Stage::LoadModel));
    let mut session = Session::open(&files, options)?;
    let text = step(&files, Stage::ReadText, || {
        // Not every vocabulary has all characters; any model has a first token.
        // A chat template that takes memory without end does so in here.
        let _ = session.prompt(TEXT, PromptForm::Chat, &[]);
        let text = session.prompt(TEXT, PromptForm::Raw, &[]);
        let first = session.language_model().special_tokens().first().copied();
        text.or_else(|_| Prompt::of_text(session.language_model(), vec![first.unwrap_or(0)]))
    })?;
    let run = step(&files, Stage::RunToken, || run_prompt(&mut session, &text))?;
    step(&files, Stage::ComputeFeatures, || {
        for (sae, trace) in run.trace.saes.iter().enumerate() {
            let mut active = Activations::default();
            let mut encoder = session.model().encoder(sae)?;
            encoder.encode(&trace.residuals, &mut active)?;
            check_finite(active.data(), "its activations")?;
        }
        Ok(())
    })?;
    if files.mmproj.is_none() {
        return Ok(());
    }
    step(&files, Stage::LoadProjector, || {
        session.model().load_projector()
    })?;
    let image = step(&files, Stage::EncodeImage, || {
        let mut image = session.encode_image(&picture(&files)?)?;
        for segment in &mut image.segments {
            if let Segment::Image(chunk) = segment {
                check_finite(&chunk.rows, "its image embeddings")?;
                *chunk = chunk.beginning(IMAGE_ROWS);
            }
        }
        Ok(image)
    })?;
    step(&files, Stage::RunImage, || {
        let prompt = session.prompt(TEXT, PromptForm::Chat, &[&image]);
        let raw = format!("<image>{TEXT}");
        match prompt.or_else(|_| session.prompt(&raw, PromptForm::Raw, &[&image])) {
            Ok(prompt) => run_prompt(&mut session, &prompt).map(|_| ()),
            // As above: it may not have the characters.
            Err(_) => Ok(()),
        }
    })
}

/// Runs a prompt and a generated token through all blocks.
fn run_prompt(session: &mut Session, prompt: &Prompt) -> Result<Run> {
    let keep = Keep {
        residuals: true,
        logits: true,
        ..Keep::default()
    };
    let options = RunOptions {
        keep,
        max_tokens: 2, // the first is chosen, and run to choose the second
        ..RunOptions::default()
    };
    let run = session.run(prompt, options)?;
    for trace in &run.trace.saes {
        check_finite(&trace.residuals, "its residual stream")?;
    }
    check_finite(&run.logits, "its logits")?;
    Ok(run)
}

fn check_finite(values: &[f32], what: &str) -> Result<()> {
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => {
            let what = format!("{what} are not numbers");
            Err(Error::new(ErrorKind::Damaged, what).with_hint(DAMAGED))
        }
    }
}

/// A picture with something in it: a square as the projector takes it, or one that is to be prepared.
fn picture(files: &ModelFiles) -> Result<Picture> {
    let size = files.image_size()?;
    let [width, height] = match files.image_prep(None)? {
        // Any sides will do, and few rows.
        Some(ImagePrep::Resize) => [224, 112],
        // Of a square, SmolVLM makes 17 tiles, and of this five.
        Some(ImagePrep::Tiles) => [size, size.div_ceil(4)],
        Some(_) => [size; 2],
        // Larger than one of the parts that llama.cpp may cut it into, and no square.
        None => {
            let size = size.min(MAX_PART);
            [size + 2, size / 2 + 1]
        }
    };
    let shade = |at: u32| (at * 255 / width.max(height)) as u8;
    let pixel = |x, y| Rgb([shade(x), shade(y), shade((x + y) / 2)]);
    Ok(Picture::from_rgb(RgbImage::from_fn(width, height, pixel)))
}
