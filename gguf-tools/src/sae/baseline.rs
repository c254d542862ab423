//! What an SAE's features usually do on pictures, measured elsewhere and kept in the SAE's file.

use std::path::Path;

use flate2::Crc;

use super::file::SaeFile;
use super::schema::{
    BASELINE_CHECKSUM, BASELINE_PICTURES, IMAGE_BASELINE, IMAGE_FREQUENCY, IMAGE_USUAL,
    is_of_baseline,
};
use crate::gguf::{Overwrite, TensorType, Value, Writer};
use crate::{Error, Result};

/// What features usually do on the image rows of pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// Each feature's largest activation on a picture's image rows, as a mean over pictures,
    /// `[d_sae]`.
    pub mean_max: Vec<f32>,
    /// The share of image rows on which each feature is active, `[d_sae]`.
    pub frequency: Vec<f32>,
    /// What a feature's activation usually is where it is active, `[d_sae]`: the largest on a picture's image rows, as a
    /// mean over pictures in which each counts by its own, `Σ m² / Σ m`, so that pictures that hardly activate it, which
    /// are most, do not hide those that show what it stands for; 0 where no picture activates it. None in files of
    /// versions that did not measure it.
    pub usual: Option<Vec<f32>>,
    /// The number of pictures.
    pub n_pictures: u32,
}

impl SaeFile {
    /// What the features usually do on pictures, where that was measured.
    ///
    /// # Errors
    /// When the file cannot be read, or holds a number that is not finite.
    pub fn baseline(&self) -> Result<Option<Baseline>> {
        if self.gguf().tensor(IMAGE_BASELINE).is_none() {
            return Ok(None);
        }
        Ok(Some(Baseline {
            mean_max: self.vector(IMAGE_BASELINE)?,
            frequency: self.vector(IMAGE_FREQUENCY)?,
            usual: match self.gguf().tensor(IMAGE_USUAL) {
                None => None,
                Some(_) => Some(self.vector(IMAGE_USUAL)?),
            },
            n_pictures: self.gguf().require_u32(BASELINE_PICTURES)?,
        }))
    }
}

impl Baseline {
    fn vectors(&self) -> impl Iterator<Item = (&'static str, &Vec<f32>)> {
        let measured = [
            (IMAGE_BASELINE, &self.mean_max),
            (IMAGE_FREQUENCY, &self.frequency),
        ];
        let usual = self.usual.as_ref().map(|usual| (IMAGE_USUAL, usual));
        measured.into_iter().chain(usual)
    }

    /// Writes a copy of `sae`'s file with this baseline, instead of another if it had one.
    ///
    /// # Errors
    /// When the baseline is not of this SAE's width or holds numbers that are not finite, and
    /// everything that reading and writing can meet. Nothing is left behind then.
    pub fn write(&self, sae: &SaeFile, target: &Path, overwrite: Overwrite) -> Result<()> {
        let source = sae.gguf();
        let d_sae = sae.meta.d_sae;
        if let Some((name, values)) = self.vectors().find(|(_, values)| values.len() != d_sae) {
            return Err(Error::invalid(format!(
                "the baseline's `{name}` has {} values, but the SAE has {d_sae} features",
                values.len()
            )));
        }
        let mut writer = Writer::create(target, overwrite)?;
        for (key, value) in source.metadata() {
            if ![BASELINE_PICTURES, BASELINE_CHECKSUM].contains(&key.as_str()) {
                writer.set(key, value.clone());
            }
        }
        writer.set(BASELINE_PICTURES, Value::U32(self.n_pictures));
        writer.set(BASELINE_CHECKSUM, Value::U32(self.crc32()));
        let copied = || {
            let tensors = source.tensors().iter();
            tensors.filter(|tensor| !is_of_baseline(&tensor.name))
        };
        for tensor in copied() {
            writer.declare(&tensor.name, &tensor.dims, tensor.tensor_type);
        }
        for (name, _) in self.vectors() {
            writer.declare(name, &[d_sae as u64], TensorType::F32);
        }
        let mut writer = writer.begin()?;
        for tensor in copied() {
            source.for_each_block(tensor, &mut |bytes| writer.write_raw(bytes))?;
        }
        for (_, values) in self.vectors() {
            writer.write_f32(values)?;
        }
        writer.finish()
    }

    /// The CRC-32 of its numbers, as `sae.image_baseline_checksum` holds it.
    pub(super) fn crc32(&self) -> u32 {
        let mut crc = Crc::new();
        for value in self.vectors().flat_map(|(_, values)| values) {
            crc.update(&value.to_le_bytes());
        }
        crc.update(&self.n_pictures.to_le_bytes());
        crc.sum()
    }
}
