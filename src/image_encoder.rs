//! Pictures to image rows: prepared, looked up in the cache, or encoded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use gguf_tools::gguf::Gguf;

use crate::Result;
use crate::fingerprint::fingerprint;
use crate::image_cache::Key;
use crate::llama::{self, Model, Vision, VisionOptions};
use crate::model_files::VisionShape;
use crate::picture::Picture;
use crate::prompt::ImageEmbeddings;
use crate::session::SessionOptions;

/// The share of a picture that is little enough to be said.
const LITTLE_SEEN: f64 = 0.5;

/// A vision encoder with its projector, which is loaded when a picture is not in the cache.
pub(crate) struct ImageEncoder {
    path: PathBuf,
    shape: VisionShape,
    loaded: Option<Vision>,
    fingerprint: Option<blake3::Hash>,
}

impl ImageEncoder {
    /// An encoder of the checked file at `path`.
    pub(crate) fn new(path: PathBuf, shape: VisionShape) -> Self {
        Self {
            path,
            shape,
            loaded: None,
            fingerprint: None,
        }
    }

    /// Prepares a picture and gives its embeddings.
    pub(crate) fn encode(
        &mut self,
        picture: &Picture,
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<ImageEmbeddings> {
        let pixels = picture.prepare(self.shape.image_size, options.image_prep)?;
        let seen = picture.seen_share(options.image_prep);
        if seen < LITTLE_SEEN {
            log::warn!(
                "the model sees the middle {:.0} % of `{}`; padded to a square, it would see all, smaller",
                100.0 * seen,
                picture.shown()
            );
        }
        let start = Instant::now();
        let rows = self.rows(&pixels, model, options)?;
        Ok(ImageEmbeddings {
            rows: rows.into(),
            grid: [self.shape.grid; 2],
            time: start.elapsed(),
        })
    }

    /// The embeddings of a prepared picture, `[n_image_tokens, d_model]`.
    fn rows(
        &mut self,
        pixels: &[u8],
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<Vec<f32>> {
        let Some(cache) = &options.image_cache else {
            return self.run(pixels, model, options);
        };
        let fingerprint = match self.fingerprint {
            Some(known) => known,
            None => *self
                .fingerprint
                .insert(fingerprint(&Gguf::open(&self.path)?)?),
        };
        // All but the threads, which change no bit.
        let VisionOptions {
            use_gpu,
            threads: _,
            flash_attention,
            vision_graph,
        } = vision_options(options);
        let settings = [
            env!("CARGO_PKG_VERSION"),
            llama::BINDINGS_VERSION,
            &llama::computed_by(use_gpu),
            flash_attention.name(),
            vision_graph.name(),
        ];
        let key = Key::new(pixels, &fingerprint, &settings);
        let n_values = self.shape.grid * self.shape.grid * model.d_model();
        if let Some(rows) = cache.get(&key, n_values) {
            return Ok(rows);
        }
        let rows = self.run(pixels, model, options)?;
        cache.put(&key, &rows);
        Ok(rows)
    }

    fn run(
        &mut self,
        pixels: &[u8],
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<Vec<f32>> {
        let size = self.shape.image_size as usize;
        self.load(model, options)?.encode(pixels, size)
    }

    /// Loads it, where that was not done yet.
    pub(crate) fn load(
        &mut self,
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<&mut Vision> {
        match &mut self.loaded {
            Some(loaded) => Ok(loaded),
            unloaded => {
                let options = vision_options(options);
                let vision =
                    Vision::load(&self.path, &self.shape.edits, Arc::clone(model), options)?;
                Ok(unloaded.insert(vision))
            }
        }
    }
}

fn vision_options(options: &SessionOptions) -> VisionOptions {
    VisionOptions {
        use_gpu: options.gpu_layers != 0,
        threads: options.threads,
        flash_attention: options.flash_attention,
        vision_graph: options.vision_graph,
    }
}
