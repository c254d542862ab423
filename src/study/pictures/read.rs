//! The model on many pictures or texts, several at a time: a session for each thread, on the same weights.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::item::Item;
use super::text::{ReadText, features_of_text};
use crate::llama;
use crate::rank::{self, FeatureScore, Over, Pool};
use crate::{
    Activations, CancelFlag, Error, HookedModel, ImageCache, ImageEmbeddings, Keep, Kinds,
    ModelFiles, Picture, PromptForm, Result, RunOptions, Sae, Session, SessionOptions, Trace,
};

/// Results of a worker that wait until it is their turn.
const MAX_WAITING: usize = 8;

/// A feature that an item activates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActiveFeature {
    /// Its index.
    pub feature: usize,
    /// Its activations over the image's rows, or the text's, summed.
    pub sum: f32,
    /// The largest of them.
    pub max: f32,
    /// The number of those rows on which it is active.
    pub count: usize,
}

/// The features that a picture or a text activates.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemFeatures {
    /// The image's rows, or the text's without special tokens, active or not.
    pub n_rows: usize,
    /// For each SAE its features, by rising index.
    pub active: Vec<Vec<ActiveFeature>>,
    /// Of a text, where they are active.
    pub text: Option<ReadText>,
}

/// How many of `wanted` pictures are read at once. Sessions of a process share ggml's device, which
/// takes one graph at a time, so there it is one.
pub fn jobs_at_once(options: &SessionOptions, wanted: usize) -> usize {
    let is_on_device = options.gpu_layers != 0 && llama::has_gpu();
    if is_on_device { 1 } else { wanted }
}

/// How a session computes that reads many items: it keeps nothing of them for later runs.
pub fn for_many_items(options: &SessionOptions) -> SessionOptions {
    SessionOptions {
        image_cache: options.image_cache.clone().map(ImageCache::read_only),
        prompt_store: None,
        ..options.clone()
    }
}

/// Runs the prompt on an image and reads features, without generating.
///
/// # Errors
/// Those of [`Session::prompt`] and [`Session::run`].
fn read_image(
    session: &mut Session,
    image: &ImageEmbeddings,
    prompt: ScanPrompt<'_>,
    cancel: &CancelFlag,
) -> Result<Trace> {
    let prompt = session.prompt(prompt.text, prompt.form, &[image])?;
    let options = RunOptions {
        keep: Keep {
            features: Kinds::IMAGE,
            ..Keep::default()
        },
        cancel: cancel.clone(),
        ..RunOptions::default()
    };
    Ok(session.run(&prompt, options)?.trace)
}

/// The text that goes with each picture.
#[derive(Clone, Copy, Debug)]
pub struct ScanPrompt<'a> {
    /// The text.
    pub text: &'a str,
    /// How it is understood.
    pub form: PromptForm,
}

/// What items are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// Pictures.
    Pictures,
    /// Texts.
    Texts,
}

impl ItemKind {
    /// What they are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pictures => "pictures",
            Self::Texts => "texts",
        }
    }

    /// What each of a table's is called.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Pictures => "image",
            Self::Texts => "text",
        }
    }
}

/// What is read of items.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// The rows of pictures, with a text.
    Pictures(ScanPrompt<'a>),
    /// The tokens of texts.
    Texts {
        /// Tokens of the contexts that texts are cut into, with the one that the model wants in front.
        context_size: usize,
    },
}

impl Reading<'_> {
    /// What the items are.
    pub fn kind(self) -> ItemKind {
        match self {
            Self::Pictures(_) => ItemKind::Pictures,
            Self::Texts { .. } => ItemKind::Texts,
        }
    }
}

/// How items are read.
pub struct Scan<'a> {
    /// The model's files.
    pub files: &'a ModelFiles,
    /// How the model computes; of the image cache only what is there is used.
    pub options: &'a SessionOptions,
    /// What is read of each item.
    pub reading: Reading<'a>,
    /// The folder that is scanned, or in which relative paths begin.
    pub dir: &'a Path,
    /// Items at once, or as many as [`jobs_at_once`] allows; they share `options.threads` threads and the
    /// language model's weights.
    pub jobs: usize,
    /// Stops it from elsewhere.
    pub cancel: &'a CancelFlag,
}

/// Reads the features of `items`. `on_item` is given each item's index and its features, in order; an item that
/// cannot be read has an error instead.
///
/// # Errors
/// What stops all items: a model that cannot be opened, a prompt that does not fit, a failure of
/// llama.cpp, a cancellation, an error of `on_item`.
///
/// # Panics
/// When a worker panicked.
pub fn read_items(
    scan: &Scan<'_>,
    items: &[&Item],
    on_item: &mut dyn FnMut(usize, Result<ItemFeatures>) -> Result<()>,
) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let jobs = jobs_at_once(scan.options, scan.jobs).clamp(1, items.len());
    let options = SessionOptions {
        threads: (scan.options.threads / jobs).max(1),
        ..for_many_items(scan.options)
    };
    let first = HookedModel::open(scan.files, options.clone())?;
    thread::scope(|scope| {
        let start = |worker_idx| {
            let (sender, receiver) = sync_channel(MAX_WAITING);
            let (first, options) = (Arc::clone(&first), options.clone());
            // Each has a projector of its own, since a projector takes one picture at a time.
            let model = move || match worker_idx {
                0 => Ok(first),
                _ => first.open_beside(scan.files, options),
            };
            let own = items.iter().skip(worker_idx).step_by(jobs);
            scope.spawn(move || work(model(), scan, own, &sender));
            receiver
        };
        let workers: Vec<Receiver<_>> = (0..jobs).map(start).collect();
        for item_idx in 0..items.len() {
            // A worker that hung up has panicked, which the scope raises again.
            let Ok(result) = workers[item_idx % jobs].recv() else {
                break;
            };
            on_item(item_idx, result?)?;
        }
        Ok(())
    })
}

/// Reads every item of its own until one fails for a reason that is not the item's, or nobody
/// listens any more.
fn work<'a>(
    model: Result<Arc<HookedModel>>,
    scan: &Scan<'_>,
    items: impl Iterator<Item = &'a &'a Item>,
    results: &SyncSender<Result<Result<ItemFeatures>>>,
) {
    let mut session = match model {
        Ok(model) => Session::new(model),
        Err(error) => {
            // The receiver may have gone with another worker's error.
            let _ = results.send(Err(error));
            return;
        }
    };
    for item in items {
        let result = if scan.cancel.is_cancelled() {
            Err(Error::interrupted())
        } else {
            features_of(&mut session, item, scan)
        };
        let is_last = result.is_err();
        if results.send(result).is_err() || is_last {
            return;
        }
    }
}

/// An item's features; the outer error is not the item's fault.
pub(in crate::study) fn features_of(
    session: &mut Session,
    item: &Item,
    scan: &Scan<'_>,
) -> Result<Result<ItemFeatures>> {
    let (dir, cancel) = (scan.dir, scan.cancel);
    match scan.reading {
        Reading::Pictures(prompt) => features_of_picture(session, item.open(dir), prompt, cancel),
        Reading::Texts { context_size } => {
            let text = item.read_text(dir);
            features_of_text(session, &item.name, text, context_size, cancel)
        }
    }
}

fn features_of_picture(
    session: &mut Session,
    picture: Result<Picture>,
    prompt: ScanPrompt<'_>,
    cancel: &CancelFlag,
) -> Result<Result<ItemFeatures>> {
    let image = picture.and_then(|picture| session.encode_image(&picture));
    let image = match image {
        Ok(image) => image,
        Err(error) if error.is_of_input() => return Ok(Err(error)),
        Err(error) => return Err(error),
    };
    let trace = read_image(session, &image, prompt, cancel)?;
    let positions = rank::pooled_positions(&trace.tokens, &Over::IMAGE)?;
    let saes = session.model().saes().iter().zip(&trace.saes);
    let active = saes.map(|(sae, trace)| active_features(&trace.activations, &positions, sae));
    Ok(Ok(ItemFeatures {
        n_rows: positions.len(),
        active: active.collect(),
        text: None,
    }))
}

impl From<&FeatureScore> for ActiveFeature {
    /// A feature whose activations were summed.
    fn from(score: &FeatureScore) -> Self {
        Self {
            feature: score.feature,
            sum: score.score,
            max: score.max,
            count: score.n_tokens,
        }
    }
}

/// The features of `sae` that are active at `positions`, by rising index.
fn active_features(
    activations: &Activations,
    positions: &[usize],
    sae: &Sae,
) -> Vec<ActiveFeature> {
    let scores = rank::rank(activations, positions, sae.meta().d_sae, Pool::Sum, None);
    let mut active: Vec<_> = scores
        .into_iter()
        .map(|score| ActiveFeature::from(&score))
        .collect();
    active.sort_unstable_by_key(|active| active.feature);
    active
}
