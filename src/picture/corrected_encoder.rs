//! Pictures to image rows where what llama.cpp does is put right: prepared, looked up in the cache, or encoded.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gguf_tools::gguf::Gguf;

use crate::Result;
use crate::chat::ImageToken;
use crate::llama::{self, AddBos, Model, Vision, VisionGraph, VisionOptions};
use crate::model::files::{PictureViews, VisionShape};
use crate::model::fingerprint::fingerprint;
use crate::picture::ImagePrep;
use crate::picture::Picture;
use crate::picture::cache::Key;
use crate::picture::cutting::Texts;
use crate::picture::encoder::{VisionSettings, not_numbers};
use crate::picture::resizing::Resized;
use crate::picture::tiles::{Part, Tiling, Views};
use crate::prompt::{Grid, ImageChunk, ImageEmbeddings, RowPositions, Segment};
use crate::run::{TryShortcuts, distance};

/// How far a device's rows may be from the processor's. Rounding in f32 is 2e-4 on a Vulkan device and 5e-4
/// with CUDA, where it was up to 4e-3 in f16 and 1.5e-2 with matrices in q8_0; the class row in a wrong place
/// is 0.3 and more (`the_class_row_is_put_right`).
const MAX_DISTANCE: f64 = 0.1;

/// In a picture's place in keys: that a device was checked. Pixels are a multiple of three bytes.
const CHECKED: &[u8] = b"checked";

/// The share of a picture that is little enough to be said.
const LITTLE_SEEN: f64 = 0.5;

/// A vision encoder with its projector, which is loaded when a picture is not in the cache. Pictures of
/// several threads are encoded one after another.
pub(crate) struct ImageEncoder {
    path: PathBuf,
    shape: VisionShape,
    image_prep: ImagePrep,
    model: Arc<Model>,
    settings: VisionSettings,
    state: Mutex<State>,
}

/// A prepared picture, or a tile of one.
#[derive(Clone, Copy)]
struct View {
    size: [usize; 2], // width and height in pixels
    grid: Grid,       // of its image rows
}

/// What comes with the first picture.
#[derive(Default)]
struct State {
    loaded: Option<Vision>,
    is_checked: bool, // what is loaded, against the processor
    fingerprint: Option<blake3::Hash>,
}

impl ImageEncoder {
    /// An encoder of the checked file at `path`, for `model`.
    ///
    /// # Errors
    /// A way to prepare pictures that is not the projector's.
    pub(crate) fn new(
        path: PathBuf,
        shape: VisionShape,
        model: Arc<Model>,
        settings: VisionSettings,
    ) -> Result<Self> {
        let image_prep = ImagePrep::of(shape.image_preps, settings.image_prep)?;
        shape.projector.check_markers(&model, &path)?;
        Ok(Self {
            image_prep: image_prep.expect("it has ways"),
            path,
            shape,
            model,
            settings,
            state: Mutex::default(),
        })
    }

    /// What the model's chat templates write for an image.
    pub(crate) fn image_token(&self) -> ImageToken {
        self.shape.projector.image_token()
    }

    /// Prepares a picture and gives its embeddings.
    pub(crate) fn encode(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        match &self.shape.views {
            PictureViews::Squares {
                image_size,
                grid,
                tiling,
            } => {
                let square = View {
                    size: [*image_size as usize; 2],
                    grid: Grid::of_patches(*grid, *grid),
                };
                if let Some(tiling) = tiling {
                    let views = tiling.views(picture, *image_size)?;
                    return self.encode_tiles(&views, tiling, square);
                }
                let pixels = picture.prepare(*image_size, self.image_prep)?;
                self.say_what_is_seen(picture);
                self.encode_view(picture, &pixels, square)
            }
            PictureViews::Cut {
                image_size,
                grid,
                covered,
                cutting,
            } => {
                let cut = cutting.cut(picture, *image_size)?;
                let start = Instant::now();
                let tile = View {
                    size: [*image_size as usize; 2],
                    grid: Grid::of_patches(*grid, *grid),
                };
                let rows = cut.pixels.iter().map(|pixels| self.rows(pixels, tile));
                let parts = cut.parts(rows.collect::<Result<_>>()?, *grid, *covered);
                let texts = cut.texts().unwrap_or_else(|| self.markers());
                self.image(parts, texts, start.elapsed())
            }
            PictureViews::Whole(resizing) => {
                let flash_attention = self.settings.options.flash_attention;
                let Resized { rgb, size, grid } = resizing.prepare(picture, flash_attention)?;
                self.encode_view(picture, &rgb, View { size, grid })
            }
        }
    }

    /// Warns where the model sees little of a picture.
    fn say_what_is_seen(&self, picture: &Picture) {
        let seen = picture.seen_share(self.image_prep);
        if seen < LITTLE_SEEN {
            log::warn!(
                "the model sees the middle {:.0} % of `{}`; padded to a square, it would see all of it, smaller",
                100.0 * seen,
                picture.shown()
            );
        }
    }

    fn encode_view(&self, picture: &Picture, pixels: &[u8], view: View) -> Result<ImageEmbeddings> {
        let start = Instant::now();
        let whole = Part {
            rows: self.rows(pixels, view)?,
            grid: view.grid,
            place: picture.kept(self.image_prep),
        };
        self.image(vec![whole], self.markers(), start.elapsed())
    }

    fn encode_tiles(&self, views: &Views, tiling: &Tiling, tile: View) -> Result<ImageEmbeddings> {
        let start = Instant::now();
        let rows = views.pixels.iter().map(|pixels| self.rows(pixels, tile));
        let parts = tiling.parts(views, rows.collect::<Result<_>>()?, tile.grid.n_rows);
        self.image(parts, self.markers(), start.elapsed())
    }

    /// What stands around an image, and nothing between its parts.
    fn markers(&self) -> Texts {
        Texts {
            around: self.shape.projector.markers(),
            ..Texts::default()
        }
    }

    /// An image of parts that are read one after another.
    fn image(&self, parts: Vec<Part>, texts: Texts, time: Duration) -> Result<ImageEmbeddings> {
        let chunk = |part: Part| {
            Segment::Image(ImageChunk {
                rows: part.rows.into(),
                width: self.model.input_width(),
                grid: Some(part.grid),
                place: Some(part.place),
                positions: match self.shape.projector.is_qwen() {
                    true => RowPositions::mrope_grid([part.grid.n_rows, part.grid.n_columns]),
                    false => RowPositions::InOrder,
                },
                attention: self.shape.attention,
                image: 0,
            })
        };
        let mut between = texts.between.iter();
        let mut segments = Vec::new();
        for part in parts {
            segments.push(chunk(part));
            if let Some(text) = between.next() {
                let ids = self.model.tokenize(text, AddBos::No)?;
                segments.push(Segment::Text(ids));
            }
        }
        Ok(ImageEmbeddings {
            segments,
            markers: texts.around,
            time,
        })
    }

    /// Loads it, where that was not done yet.
    pub(crate) fn load(&self) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.loaded(&mut state).map(|_| ())
    }

    /// The embeddings of a prepared picture, `[n_image_tokens, input_width]`.
    fn rows(&self, pixels: &[u8], view: View) -> Result<Vec<f32>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(cache) = &self.settings.image_cache else {
            return self.run(&mut state, pixels, view);
        };
        let key = self.key(&mut state, pixels, view.size)?;
        let n_values = view.grid.n_rows * view.grid.n_columns * self.model.input_width();
        if let Some(rows) = cache.get(&key, n_values) {
            return Ok(rows);
        }
        let rows = self.run(&mut state, pixels, view)?;
        cache.put(&key, &rows);
        Ok(rows)
    }

    /// What the embeddings of a prepared picture depend on.
    fn key(&self, state: &mut State, pixels: &[u8], [width, _]: [usize; 2]) -> Result<Key> {
        let fingerprint = match state.fingerprint {
            Some(known) => known,
            None => {
                let file = Gguf::open(&self.path)?;
                let found = fingerprint(file.paths(), file.tensors())?;
                *state.fingerprint.insert(found)
            }
        };
        // All but the threads, which change no bit.
        let VisionOptions {
            use_gpu,
            threads: _,
            flash_attention,
            vision_graph,
        } = self.settings.options;
        let settings = [
            env!("CARGO_PKG_VERSION"),
            llama::BINDINGS_VERSION,
            &llama::computed_by(use_gpu),
            flash_attention.name(),
            vision_graph.name(),
            &width.to_string(),
        ];
        Ok(Key::new(pixels, &fingerprint, &settings))
    }

    fn run(&self, state: &mut State, pixels: &[u8], view: View) -> Result<Vec<f32>> {
        let mut rows = self.loaded(state)?.encode(pixels, view.size)?;
        if !state.is_checked {
            rows = self.check(state, rows, pixels, view.size)?;
            state.is_checked = true;
        }
        if rows.iter().all(|value| value.is_finite()) {
            return Ok(rows);
        }
        Err(not_numbers(&self.path))
    }

    /// Compares the first picture's `rows`, where due, with what they must be, and gives the right ones.
    /// Where a device is wrong, the processor encodes from here on.
    fn check(
        &self,
        state: &mut State,
        rows: Vec<f32>,
        pixels: &[u8],
        size: [usize; 2],
    ) -> Result<Vec<f32>> {
        if !self.is_check_due(state)? {
            return Ok(rows);
        }
        let as_it_must_be = VisionOptions {
            use_gpu: false,
            vision_graph: VisionGraph::Corrected,
            ..self.settings.options
        };
        let mut reference = self.vision(as_it_must_be)?;
        let expected = reference.encode(pixels, size)?;
        let distance = distance(&rows, &expected);
        if distance < MAX_DISTANCE {
            // For other models loaded from the same files.
            if let Some(cache) = &self.settings.image_cache {
                cache.put(&self.key(state, CHECKED, [0; 2])?, &[1.0]);
            }
            return Ok(rows);
        }
        log::warn!(
            "pictures are encoded on the processor: on this device the image encoder gives different numbers ({distance:.1e} apart)"
        );
        state.loaded = Some(reference);
        Ok(expected)
    }

    /// Whether the first picture is to be encoded on the processor too: what is changed in llama.cpp's
    /// graph may not take effect on a device.
    fn is_check_due(&self, state: &mut State) -> Result<bool> {
        let VisionOptions {
            use_gpu,
            vision_graph,
            ..
        } = self.settings.options;
        if self.settings.try_shortcuts == TryShortcuts::Always {
            return Ok(true);
        }
        if vision_graph == VisionGraph::AsLlamaCpp || !llama::computes_elsewhere(use_gpu) {
            return Ok(false);
        }
        let Some(cache) = &self.settings.image_cache else {
            return Ok(true);
        };
        Ok(cache.get(&self.key(state, CHECKED, [0; 2])?, 1).is_none())
    }

    fn loaded<'s>(&self, state: &'s mut State) -> Result<&'s mut Vision> {
        match &mut state.loaded {
            Some(loaded) => Ok(loaded),
            unloaded => Ok(unloaded.insert(self.vision(self.settings.options)?)),
        }
    }

    fn vision(&self, options: VisionOptions) -> Result<Vision> {
        let model = Arc::clone(&self.model);
        Vision::load(
            &self.path,
            self.shape.projector,
            &self.shape.edits,
            model,
            options,
        )
    }
}
