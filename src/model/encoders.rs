//! Encoders of SAEs on ggml.

use std::sync::Arc;

use crate::llama::{MatrixProduct, WeightRows, free_device_bytes};
use crate::{Encoder, Error, ErrorKind, Result, Sae};

/// How an encoder computes.
#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// Whether a device is used, where there is one.
    pub use_gpu: bool,
    /// Processor threads.
    pub threads: usize,
    /// Whether the file's screen is used, where it has one.
    pub screen: bool,
}

/// An encoder on the first device if there is one and it is wanted, else on the processor's threads, with the
/// screen if the SAE's file has one. Its weights stay in the mapped file, but for a device's copy.
///
/// # Errors
/// An SAE of arrays, which [`Encoder::in_memory`] takes; a file that cannot be read.
pub fn encoder(sae: &Arc<Sae>, options: EncoderOptions) -> Result<Encoder> {
    let Some(file) = sae.file() else {
        let what = "an SAE without a file is not encoded by ggml";
        return Err(Error::new(ErrorKind::Unsupported, what));
    };
    // A device rounds rows in ways of its own: the screen's bound is the processor's.
    let is_on_processor = !options.use_gpu || free_device_bytes().is_none();
    let screen = file.screen()?.filter(|_| options.screen && is_on_processor);
    let tensor = screen
        .as_ref()
        .map_or(file.w_enc(), |screen| &screen.tensor);
    let product = MatrixProduct::load(file.path(), tensor, options.use_gpu, options.threads)?;
    let (sae_of_encoder, product) = (Arc::clone(sae), Box::new(product));
    Ok(match screen {
        None => Encoder::new(sae_of_encoder, product),
        Some(screen) => {
            let weights = Box::new(WeightRows::open(file.path(), file.w_enc())?);
            Encoder::with_screen(sae_of_encoder, product, screen, weights, options.threads)
        }
    })
}
