//! An SAE's file as the runtime reads it.

use std::path::Path;

use super::meta::{Architecture, SaeMeta};
use super::schema::{
    B_DEC, B_ENC, DECODER_NORM, SCREEN_ERROR, SCREEN_NORM, THRESHOLD, W_DEC, W_ENC, W_ENC_SCREEN,
    W_SKIP,
};
use crate::Result;
use crate::gguf::{Gguf, TensorInfo};

/// The encoder in q8_0, and how far that is from the encoder.
#[derive(Clone, Debug)]
pub struct EncoderScreen {
    /// Dims `[d_in, d_sae]`: `ŵ` of each feature.
    pub tensor: TensorInfo,
    /// `‖w − ŵ‖`, `[d_sae]`.
    pub error: Vec<f32>,
    /// `‖ŵ‖`, `[d_sae]`.
    pub norm: Vec<f32>,
}

/// An SAE's GGUF file, checked against the schema; the weights stay in the file.
#[derive(Debug)]
pub struct SaeFile {
    /// What the file says about the SAE.
    pub meta: SaeMeta,
    gguf: Gguf,
    w_enc: TensorInfo,
    w_dec: TensorInfo,
}

impl SaeFile {
    /// Opens the file at `path` and checks every key, every tensor's shape and type, and the ranges of
    /// the vectors. What the matrices hold is seen by [`SaeFile::verify`].
    ///
    /// # Errors
    /// When it is not a GGUF file, no SAE, of another version, or not as the schema says.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let meta = SaeMeta::read(&gguf)?;
        meta.check_tensors(&gguf)?;
        let matrix = |name| gguf.tensor(name).expect("just checked").clone();
        let file = Self {
            w_enc: matrix(W_ENC),
            w_dec: matrix(W_DEC),
            meta,
            gguf,
        };
        file.check_vectors()?;
        Ok(file)
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        self.gguf.path()
    }

    /// The encoder: dims `[d_in, d_sae]`, row `i` is the encoder direction of feature `i`.
    pub fn w_enc(&self) -> &TensorInfo {
        &self.w_enc
    }

    /// The encoder in q8_0, where the file has one beside an encoder of more bits.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn screen(&self) -> Result<Option<EncoderScreen>> {
        let Some(tensor) = self.gguf.tensor(W_ENC_SCREEN) else {
            return Ok(None);
        };
        Ok(Some(EncoderScreen {
            tensor: tensor.clone(),
            error: self.vector(SCREEN_ERROR)?,
            norm: self.vector(SCREEN_NORM)?,
        }))
    }

    /// What a transcoder adds of the row that it reads to its reconstruction, where it does: dims `[d_in, d_out]`,
    /// row `i` gives the value `i`.
    pub fn w_skip(&self) -> Option<&TensorInfo> {
        self.gguf
            .tensor(W_SKIP)
            .filter(|_| self.meta.is_transcoder())
    }

    /// The decoder: dims `[decoder_width, d_sae]`, row `i` is the decoder direction of feature `i`, of a cross-layer
    /// transcoder its directions at all places.
    pub fn w_dec(&self) -> &TensorInfo {
        &self.w_dec
    }

    /// The encoder's bias, `[d_sae]`.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn b_enc(&self) -> Result<Vec<f32>> {
        self.vector(B_ENC)
    }

    /// The decoder's bias, `[d_out]`; of a cross-layer transcoder that of the first place.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn b_dec(&self) -> Result<Vec<f32>> {
        self.vector(B_DEC)
    }

    /// Where each feature becomes active, `[d_sae]`; with architecture `jumprelu` alone.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn threshold(&self) -> Result<Option<Vec<f32>>> {
        match self.meta.architecture {
            Architecture::Standard | Architecture::TopK { .. } => Ok(None),
            Architecture::JumpRelu => self.vector(THRESHOLD).map(Some),
        }
    }

    /// The L2 norm of each decoder row, `[d_sae]`.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn decoder_norm(&self) -> Result<Vec<f32>> {
        self.vector(DECODER_NORM)
    }

    pub(super) fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The decoder direction of `feature`, into `out` of length [`SaeMeta::decoder_width`].
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such feature, or `out` has another length.
    pub fn decoder_row(&self, feature: usize, out: &mut [f32]) -> Result<()> {
        self.gguf.read_row_f32(&self.w_dec, feature, out)
    }

    /// The encoder direction of `feature`, into `out` of length `d_in`.
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such feature, or `out` has another length.
    pub fn encoder_row(&self, feature: usize, out: &mut [f32]) -> Result<()> {
        self.gguf.read_row_f32(&self.w_enc, feature, out)
    }

    /// What a transcoder's skip connection gives as value `idx`, into `out` of length `d_in`: a row of [`SaeFile::w_skip`].
    ///
    /// # Errors
    /// When the file cannot be read.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length.
    pub fn skip_row(&self, idx: usize, out: &mut [f32]) -> Result<()> {
        let w_skip = self.w_skip().expect("a skip connection");
        self.gguf.read_row_f32(w_skip, idx, out)
    }

    /// A tensor of finite numbers that `open` has found.
    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let values = self
            .gguf
            .read_f32(self.gguf.tensor(name).expect("checked by `open`"))?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(idx) => Err(self.damaged(&format!(
                "tensor `{name}` holds {} at index {idx}",
                values[idx]
            ))),
        }
    }
}
