//! The model on many pictures, several at a time: a session for each thread, on the same weights.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::folder::FoundPicture;
use super::table::ActiveFeature;
use crate::features::{self, Over, Pool};
use crate::llama::{self, Model};
use crate::session::load_model;
use crate::tokens::Positions;
use crate::{
    Error, ImageCache, ImageEmbeddings, Keep, ModelFiles, Picture, PromptForm, Result, RunOptions,
    Sampling, Session, SessionOptions, Trace, model_files,
};

/// Results of a worker that wait until it is their turn.
const MAX_WAITING: usize = 8;

/// The text that goes with each picture.
#[derive(Clone, Copy, Debug)]
pub struct ScanPrompt<'a> {
    /// The text.
    pub text: &'a str,
    /// How it is understood.
    pub form: PromptForm,
}

/// The features that a picture fires.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureFeatures {
    /// The image's rows, active or not.
    pub n_rows: usize,
    /// The features, by rising index.
    pub active: Vec<ActiveFeature>,
}

/// How many of `wanted` pictures are read at once. Sessions of a process share ggml's device, which
/// takes one graph at a time, so there it is one.
pub fn jobs_at_once(options: &SessionOptions, wanted: usize) -> usize {
    let is_on_device = options.gpu_layers != 0 && llama::has_gpu();
    if is_on_device { 1 } else { wanted }
}

/// Runs the prompt on an image and reads features, without generating.
///
/// # Errors
/// Those of [`Session::prompt`] and [`Session::run`].
fn read_image(
    session: &mut Session,
    image: &ImageEmbeddings,
    prompt: ScanPrompt<'_>,
) -> Result<Trace> {
    let prompt = session.prompt(prompt.text, prompt.form, Some(image))?;
    let options = RunOptions {
        steering: None,
        keep: Keep {
            features: Positions::IMAGE,
            ..Keep::default()
        },
        max_tokens: 0,
        sampling: Sampling::Greedy,
    };
    Ok(session.run(&prompt, options, &mut |_| {})?.trace)
}

/// Reads the features of `pictures` below `dir` with `jobs` sessions, or as many as [`jobs_at_once`]
/// allows, that share `options.threads` threads and the language model's weights. `on_picture` is given
/// each picture's index and its features, in order; a picture that cannot be read has an error instead.
/// Of the image cache only what is there is used.
///
/// # Errors
/// What stops all pictures: a model that cannot be opened, a prompt that does not fit, a failure of
/// llama.cpp, an interruption, an error of `on_picture`.
///
/// # Panics
/// When a worker panicked.
pub fn scan(
    files: &ModelFiles,
    options: &SessionOptions,
    prompt: ScanPrompt<'_>,
    dir: &Path,
    pictures: &[&FoundPicture],
    jobs: usize,
    on_picture: &mut dyn FnMut(usize, Result<PictureFeatures>) -> Result<()>,
) -> Result<()> {
    if pictures.is_empty() {
        return Ok(());
    }
    let checked = model_files::check(files)?;
    let jobs = jobs_at_once(options, jobs).clamp(1, pictures.len());
    let options = SessionOptions {
        threads: (options.threads / jobs).max(1),
        image_cache: options.image_cache.clone().map(ImageCache::read_only),
        ..options.clone()
    };
    let model = load_model(&checked, &options)?;
    thread::scope(|scope| {
        let start = |worker_idx| {
            let (sender, receiver) = sync_channel(MAX_WAITING);
            let (model, options) = (Arc::clone(&model), options.clone());
            let own = pictures.iter().skip(worker_idx).step_by(jobs);
            let work = move || work(model, files, options, prompt, dir, own, &sender);
            scope.spawn(work);
            receiver
        };
        let workers: Vec<Receiver<_>> = (0..jobs).map(start).collect();
        for picture_idx in 0..pictures.len() {
            // A worker that hung up has panicked, which the scope raises again.
            let Ok(result) = workers[picture_idx % jobs].recv() else {
                break;
            };
            on_picture(picture_idx, result?)?;
        }
        Ok(())
    })
}

/// Reads every picture of its own until one fails for a reason that is not the picture's, or nobody
/// listens any more.
fn work<'a>(
    model: Arc<Model>,
    files: &ModelFiles,
    options: SessionOptions,
    prompt: ScanPrompt<'_>,
    dir: &Path,
    pictures: impl Iterator<Item = &'a &'a FoundPicture>,
    results: &SyncSender<Result<Result<PictureFeatures>>>,
) {
    let interrupt = Arc::clone(&options.interrupt);
    let mut session = match Session::open_on(model, files, options) {
        Ok(session) => session,
        Err(error) => {
            // The receiver may have gone with another worker's error.
            let _ = results.send(Err(error));
            return;
        }
    };
    for picture in pictures {
        let result = if interrupt.load(Ordering::Relaxed) {
            Err(Error::Interrupted)
        } else {
            features_of(&mut session, &picture.in_folder(dir), prompt)
        };
        let is_last = result.is_err();
        if results.send(result).is_err() || is_last {
            return;
        }
    }
}

/// A picture's features; the outer error is not the picture's fault.
fn features_of(
    session: &mut Session,
    path: &Path,
    prompt: ScanPrompt<'_>,
) -> Result<Result<PictureFeatures>> {
    let image = Picture::open(path).and_then(|picture| session.encode_image(&picture));
    let image = match image {
        Ok(image) => image,
        Err(error) if error.is_of_input() => return Ok(Err(error)),
        Err(error) => return Err(error),
    };
    let trace = read_image(session, &image, prompt)?;
    let positions = features::pooled_positions(&trace.tokens, &Over::IMAGE)?;
    let d_sae = session.sae().meta().d_sae;
    let scores = features::rank(&trace.activations, &positions, d_sae, Pool::Sum, None);
    let mut active: Vec<_> = scores
        .into_iter()
        .map(|score| ActiveFeature {
            feature: score.feature,
            sum: score.score,
            max: score.max,
            count: score.n_tokens,
        })
        .collect();
    active.sort_unstable_by_key(|active| active.feature);
    Ok(Ok(PictureFeatures {
        n_rows: positions.len(),
        active,
    }))
}
