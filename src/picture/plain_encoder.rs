//! Pictures to image rows where all is as llama.cpp does it: projectors that were not compared with their references.
//! Nothing is kept in the image cache.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use gguf_tools::gguf::Edits;

use crate::llama::{EncodedImage, Model, Mtmd, Piece, VisionOptions};
use crate::picture::{Picture, WHOLE};
use crate::prompt::{ImageAttention, ImageChunk, ImageEmbeddings, RowPositions, Segment};
use crate::{Error, ErrorKind, Result};

/// A vision encoder with its projector, which is loaded with the first picture. Pictures of several threads are
/// encoded one after another.
pub(crate) struct PlainEncoder {
    path: PathBuf,
    edits: Edits,
    model: Arc<Model>,
    options: VisionOptions,
    loaded: Mutex<Option<Mtmd>>,
}

impl PlainEncoder {
    /// An encoder of the checked file at `path`, as it is with `edits`, for `model`.
    pub(crate) fn new(
        path: PathBuf,
        edits: Edits,
        model: Arc<Model>,
        options: VisionOptions,
    ) -> Self {
        Self {
            path,
            edits,
            model,
            options,
            loaded: Mutex::default(),
        }
    }

    /// Loads it, where that was not done yet.
    pub(crate) fn load(&self) -> Result<()> {
        self.with(|_| Ok(()))
    }

    /// Gives a picture's embeddings.
    pub(crate) fn encode(&self, picture: &Picture) -> Result<ImageEmbeddings> {
        let start = Instant::now();
        let rgb = picture.rgb();
        let size = [rgb.width(), rgb.height()].map(|side| side as usize);
        picture.check_shape()?;
        let pieces = self.with(|mtmd| mtmd.read(rgb.as_raw(), size))?;
        let n_images = pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Image(_)));
        let place = (n_images.count() == 1).then_some(WHOLE);
        let segments = pieces.into_iter().map(|piece| match piece {
            Piece::Tokens(ids) => self.text(ids),
            Piece::Image(image) => self.chunk(image, place),
        });
        Ok(ImageEmbeddings {
            segments: segments.collect::<Result<_>>()?,
            // mtmd's own are among the segments.
            markers: Some([""; 2]),
            time: start.elapsed(),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Mtmd) -> Result<T>) -> Result<T> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        work(match &mut *loaded {
            Some(loaded) => loaded,
            unloaded => {
                let model = Arc::clone(&self.model);
                unloaded.insert(Mtmd::load(&self.path, &self.edits, model, self.options)?)
            }
        })
    }

    fn text(&self, ids: Vec<i32>) -> Result<Segment> {
        // mtmd looks the tokens up by their text, and takes -1 for one that is not there.
        if ids.iter().all(|&id| id >= 0) {
            return Ok(Segment::Text(ids));
        }
        let what = format!(
            "the model's vocabulary has not all the tokens that llama.cpp puts around images for `{}`",
            self.path.display()
        );
        Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("the projector belongs to another model"))
    }

    fn chunk(&self, image: EncodedImage, place: Option<[f32; 4]>) -> Result<Segment> {
        if !image.rows.iter().all(|value| value.is_finite()) {
            return Err(super::encoder::not_numbers(&self.path));
        }
        let positions = match &image.positions[..] {
            [] => RowPositions::InOrder,
            of_rows => RowPositions::Mrope {
                of_rows: of_rows.into(),
                n_positions: image.n_positions,
            },
        };
        Ok(Segment::Image(ImageChunk {
            rows: image.rows.into(),
            width: image.width,
            grid: positions.grid(),
            place,
            positions,
            attention: match image.is_causal {
                true => ImageAttention::Causal,
                false => ImageAttention::Bidirectional,
            },
            image: 0,
        }))
    }
}
