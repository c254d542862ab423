//! Pictures to image rows: prepared, looked up in the cache, or encoded.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use gguf_tools::gguf::Gguf;

use crate::fingerprint::fingerprint;
use crate::image_cache::Key;
use crate::llama::{self, Model, Vision, VisionGraph, VisionOptions};
use crate::model_files::VisionShape;
use crate::picture::Picture;
use crate::prompt::ImageEmbeddings;
use crate::session::SessionOptions;
use crate::shortcuts::{TryShortcuts, distance};
use crate::{Error, Result};

/// How far a device's rows may be from the processor's. Rounding in f32 is 2e-4 on a Vulkan device and 5e-4
/// with CUDA, where it was up to 4e-3 in f16 and 1.5e-2 with matrices in q8_0; the class row in a wrong place
/// is 0.3 and more (`the_class_row_is_put_right`).
const MAX_DISTANCE: f64 = 0.1;

/// In a picture's place in keys: that a device was checked. Pixels are a multiple of three bytes.
const CHECKED: &[u8] = b"checked";

/// The share of a picture that is little enough to be said.
const LITTLE_SEEN: f64 = 0.5;

/// A vision encoder with its projector, which is loaded when a picture is not in the cache.
pub(crate) struct ImageEncoder {
    path: PathBuf,
    shape: VisionShape,
    loaded: Option<Vision>,
    is_checked: bool, // what is loaded, against the processor
    fingerprint: Option<blake3::Hash>,
}

impl ImageEncoder {
    /// An encoder of the checked file at `path`.
    pub(crate) fn new(path: PathBuf, shape: VisionShape) -> Self {
        Self {
            path,
            shape,
            loaded: None,
            is_checked: false,
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
        let key = self.key(pixels, options)?;
        let n_values = self.shape.grid * self.shape.grid * model.d_model();
        if let Some(rows) = cache.get(&key, n_values) {
            return Ok(rows);
        }
        let rows = self.run(pixels, model, options)?;
        cache.put(&key, &rows);
        Ok(rows)
    }

    /// What the embeddings of a prepared picture depend on.
    fn key(&mut self, pixels: &[u8], options: &SessionOptions) -> Result<Key> {
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
        Ok(Key::new(pixels, &fingerprint, &settings))
    }

    fn run(
        &mut self,
        pixels: &[u8],
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<Vec<f32>> {
        let size = self.shape.image_size as usize;
        let mut rows = self.load(model, options)?.encode(pixels, size)?;
        if !self.is_checked {
            rows = self.check(rows, pixels, model, options)?;
            self.is_checked = true;
        }
        if rows.iter().all(|value| value.is_finite()) {
            return Ok(rows);
        }
        Err(Error::invalid(format!(
            "the image rows of the projector `{}` are not numbers",
            self.path.display()
        ))
        .with_hint("the file is damaged: download or convert it again"))
    }

    /// Compares the first picture's `rows`, where due, with what they must be, and gives the right ones.
    /// Where a device is wrong, the processor encodes from here on.
    fn check(
        &mut self,
        rows: Vec<f32>,
        pixels: &[u8],
        model: &Arc<Model>,
        options: &SessionOptions,
    ) -> Result<Vec<f32>> {
        if !self.is_check_due(options)? {
            return Ok(rows);
        }
        let as_it_must_be = VisionOptions {
            use_gpu: false,
            vision_graph: VisionGraph::Corrected,
            ..vision_options(options)
        };
        let edits = &self.shape.edits;
        let mut reference = Vision::load(&self.path, edits, Arc::clone(model), as_it_must_be)?;
        let expected = reference.encode(pixels, self.shape.image_size as usize)?;
        let distance = distance(&rows, &expected);
        if distance < MAX_DISTANCE {
            self.note_check(options)?;
            return Ok(rows);
        }
        log::warn!(
            "pictures are encoded on the processor: on this device the image encoder gives other numbers ({distance:.1e} apart)"
        );
        self.loaded = Some(reference);
        Ok(expected)
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

    /// Whether the first picture is to be encoded on the processor too: what is changed in llama.cpp's
    /// graph may not take effect on a device.
    fn is_check_due(&mut self, options: &SessionOptions) -> Result<bool> {
        let VisionOptions {
            use_gpu,
            vision_graph,
            ..
        } = vision_options(options);
        if options.try_shortcuts == TryShortcuts::Always {
            return Ok(true);
        }
        if vision_graph == VisionGraph::AsLlamaCpp || !llama::computes_elsewhere(use_gpu) {
            return Ok(false);
        }
        let Some(cache) = &options.image_cache else {
            return Ok(true);
        };
        Ok(cache.get(&self.key(CHECKED, options)?, 1).is_none())
    }

    /// Notes that device and processor agree, for other sessions.
    fn note_check(&mut self, options: &SessionOptions) -> Result<()> {
        if let Some(cache) = &options.image_cache {
            cache.put(&self.key(CHECKED, options)?, &[1.0]);
        }
        Ok(())
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
