//! Whether an SAE's file holds what it should: ranges of its vectors, which cost nothing, and its
//! matrices and checksum, which have to be read whole.

use std::fmt;

use flate2::Crc;

use super::file::SaeFile;
use super::schema::{
    BASELINE_CHECKSUM, BASELINE_PICTURES, CHECKSUM, DECODER_NORM, IMAGE_BASELINE, IMAGE_FREQUENCY,
    IMAGE_USUAL, SCREEN_ERROR, SCREEN_NORM, W_DEC, W_ENC, W_ENC_SCREEN, W_SKIP, is_of_baseline,
    refused,
};
use super::source::norm;
use crate::gguf::{TensorInfo, checksum};
use crate::{Error, Result};

/// How far a norm of `sae.screen_error` or `sae.screen_norm` may be below the row's: it is one of
/// f64, rounded to f32, and those who use it add a ten-thousandth.
const NORM_TOLERANCE: f32 = 1e-5;

impl SaeFile {
    /// Checks what [`SaeFile::open`] leaves out, by reading all weights once, some at a time: that
    /// encoder, decoder and screen are finite, that the screen is as near to the encoder as
    /// `sae.screen_error` says, and that metadata and tensors are those that were written, where the file
    /// has a checksum. For files that this machine has not seen yet.
    ///
    /// # Errors
    /// When one of these does not hold, or the file cannot be read.
    pub fn verify(&self) -> Result<()> {
        let mut sums = vec![self.meta.crc32()];
        for tensor in self.gguf().tensors() {
            let name = tensor.name.as_str();
            if !self.meta.has_tensor(name) || is_of_baseline(name) {
                continue;
            }
            sums.push(match name {
                W_ENC_SCREEN => self.check_screen()?,
                W_ENC | W_DEC => self.check_matrix(tensor, self.meta.d_sae, "feature")?,
                W_SKIP => self.check_matrix(tensor, self.meta.d_out, "row")?,
                _ => self.crc32(tensor)?,
            });
        }
        self.check_sum(CHECKSUM, "its contents", checksum(&sums))?;
        match self.baseline()? {
            Some(baseline) => self.check_sum(
                BASELINE_CHECKSUM,
                "its baseline's numbers",
                baseline.crc32(),
            ),
            None => Ok(()),
        }
    }

    /// Compares a checksum with the one that the file has under `key`, if it has one.
    fn check_sum(&self, key: &str, what: &str, found: u32) -> Result<()> {
        if self.gguf().get(key).is_none() {
            return Ok(());
        }
        let expected = self.gguf().require_u32(key)?;
        if expected == found {
            return Ok(());
        }
        Err(self.damaged(&format!(
            "{what} have the checksum {found:08x}, but the file says {expected:08x}"
        )))
    }

    /// Checks what can be seen in vectors alone.
    ///
    /// # Errors
    /// When a number is not finite or out of its range, or the file cannot be read.
    pub(super) fn check_vectors(&self) -> Result<()> {
        self.b_enc()?;
        self.b_dec()?;
        self.threshold()?;
        self.check_range(DECODER_NORM, &self.decoder_norm()?, f32::INFINITY)?;
        if let Some(screen) = self.screen()? {
            self.check_range(SCREEN_ERROR, &screen.error, f32::INFINITY)?;
            self.check_range(SCREEN_NORM, &screen.norm, f32::INFINITY)?;
        }
        if let Some(baseline) = self.baseline()? {
            self.check_range(IMAGE_BASELINE, &baseline.mean_max, f32::INFINITY)?;
            self.check_range(IMAGE_FREQUENCY, &baseline.frequency, 1.0)?;
            let usual = baseline.usual.as_deref().unwrap_or_default();
            self.check_range(IMAGE_USUAL, usual, f32::INFINITY)?;
            if baseline.n_pictures == 0 {
                return Err(refused(
                    self.gguf(),
                    &format!("`{BASELINE_PICTURES}` is 0, expected at least 1"),
                ));
            }
        }
        Ok(())
    }

    fn check_range(&self, name: &str, values: &[f32], most: f32) -> Result<()> {
        match values
            .iter()
            .position(|value| !(0.0..=most).contains(value))
        {
            None => Ok(()),
            Some(idx) => Err(self.damaged(&format!(
                "tensor `{name}` holds {} at index {idx}, expected {}",
                values[idx],
                if most.is_finite() {
                    format!("0 to {most}")
                } else {
                    "nothing below 0".to_owned()
                }
            ))),
        }
    }

    /// Checks that a matrix is finite; returns the CRC-32 of its bytes.
    fn check_matrix(&self, tensor: &TensorInfo, n_rows: usize, of: &str) -> Result<u32> {
        let mut rows = self.gguf().rows(tensor, 0, n_rows)?;
        let mut crc = Crc::new();
        let mut row_idx = 0;
        while let Some((bytes, row)) = rows.next()? {
            crc.update(bytes);
            self.check_finite(&tensor.name, &format_args!("{of} {row_idx}"), row)?;
            row_idx += 1;
        }
        Ok(crc.sum())
    }

    /// Checks the screen against the encoder; returns the CRC-32 of its bytes.
    fn check_screen(&self) -> Result<u32> {
        let gguf = self.gguf();
        let screen = self.screen()?.expect("it is there");
        let mut rows = gguf.rows(&screen.tensor, 0, self.meta.d_sae)?;
        let mut encoder = gguf.rows(self.w_enc(), 0, self.meta.d_sae)?;
        let mut crc = Crc::new();
        let mut difference = vec![0.0; self.meta.d_in];
        for (feature, (error, length)) in screen.error.iter().zip(&screen.norm).enumerate() {
            let (bytes, row) = rows.next()?.expect("d_sae rows");
            let (_, encoder_row) = encoder.next()?.expect("d_sae rows");
            crc.update(bytes);
            self.check_finite(W_ENC_SCREEN, &format_args!("feature {feature}"), row)?;
            for ((difference, row), encoder) in difference.iter_mut().zip(row).zip(encoder_row) {
                *difference = row - encoder;
            }
            for (name, said, found) in [
                (SCREEN_ERROR, *error, norm(&difference)),
                (SCREEN_NORM, *length, norm(row)),
            ] {
                // It is NaN where the encoder's own row is not finite.
                if found.is_nan() || found > said * (1.0 + NORM_TOLERANCE) {
                    return Err(self.damaged(&format!(
                        "the screen does not belong to the encoder: `{name}` of feature {feature} is {said}, but its rows give {found}"
                    )));
                }
            }
        }
        Ok(crc.sum())
    }

    /// The CRC-32 of a tensor's bytes.
    fn crc32(&self, tensor: &TensorInfo) -> Result<u32> {
        let mut crc = Crc::new();
        self.gguf().for_each_block(tensor, &mut |bytes| {
            crc.update(bytes);
            Ok(())
        })?;
        Ok(crc.sum())
    }

    fn check_finite(&self, name: &str, place: &dyn fmt::Display, row: &[f32]) -> Result<()> {
        match row.iter().find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => Err(self.damaged(&format!(
                "tensor `{name}` holds {value} at {place}, expected finite numbers"
            ))),
        }
    }

    pub(super) fn damaged(&self, what: &str) -> Error {
        refused(self.gguf(), what).with_hint("the file is damaged: convert the SAE again")
    }
}
