//! Pictures with what the projector made of them.

use std::path::PathBuf;
use std::sync::Arc;

use ::image::RgbImage;
use llava_sae_cpp::{Error, ImageChunk, ImageEmbeddings, Picture, Result};
use numpy::{PyArray2, PyReadonlyArray3, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arrays;
use crate::error::OrRaise;

/// A picture, encoded.
#[derive(Clone)]
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Image(pub(crate) Arc<Encoded>);

pub(crate) struct Encoded {
    pub(crate) picture: Picture,
    pub(crate) embeddings: ImageEmbeddings,
}

/// A picture as it is given: a path, the contents of a file, or pixels `[height, width, 3]`.
pub(crate) fn read(source: &Bound<'_, PyAny>) -> PyResult<Result<Picture>> {
    if let Ok(pixels) = source.extract::<PyReadonlyArray3<'_, u8>>() {
        let [height, width, _] = [0, 1, 2].map(|axis| u32::try_from(pixels.shape()[axis]));
        let pixels = pixels.as_slice()?.to_vec();
        let picture = width.ok().zip(height.ok());
        let picture = picture.and_then(|(width, height)| RgbImage::from_raw(width, height, pixels));
        let picture = picture.filter(|picture| picture.width() > 0 && picture.height() > 0);
        let refused = || Error::invalid("an array of pixels has the shape (height, width, 3)");
        return Ok(picture.map(Picture::from_rgb).ok_or_else(refused));
    }
    if let Ok(bytes) = source.cast::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return Ok(source.py().detach(|| Picture::from_bytes(bytes, "bytes")));
    }
    let path: PathBuf = source.extract()?;
    Ok(source.py().detach(|| Picture::open(&path)))
}

/// All rows of an image's chunks, `[n_rows, width]`.
pub(crate) fn rows<'a>(images: impl Iterator<Item = &'a ImageEmbeddings>) -> (Vec<f32>, usize) {
    let chunks: Vec<&ImageChunk> = images.flat_map(ImageEmbeddings::chunks).collect();
    let width = chunks.first().map_or(0, |chunk| chunk.width);
    let rows = chunks.iter().flat_map(|chunk| chunk.rows.iter().copied());
    (rows.collect(), width)
}

#[pymethods]
impl Image {
    /// Width and height in pixels.
    #[getter]
    fn size(&self) -> (u32, u32) {
        self.0.picture.rgb().dimensions()
    }

    /// The rows that the model reads.
    #[getter]
    fn n_rows(&self) -> usize {
        self.0.embeddings.n_rows()
    }

    /// Those rows, `[n_rows, width]`.
    fn embeddings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let (rows, width) = rows(std::iter::once(&self.0.embeddings));
        arrays::matrix(py, rows, width)
    }

    /// The picture as a PNG file.
    fn png(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let mut png = std::io::Cursor::new(Vec::new());
        let written = self
            .0
            .picture
            .rgb()
            .write_to(&mut png, ::image::ImageFormat::Png);
        let written = written.map_err(|error| Error::invalid(error.to_string()));
        written.or_raise(py)?;
        Ok(png.into_inner())
    }
}
