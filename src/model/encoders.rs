//! Encoders of SAEs on ggml.

use std::sync::Arc;

use gguf_tools::sae::EncoderScreen;

use crate::llama::{Matrix, MatrixProduct, WeightRows, free_device_bytes};
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

/// What encoders of an SAE read, shared by all of them: on the processor the mapped file, on a device one copy.
pub struct EncoderWeights {
    sae: Arc<Sae>,
    matrix: Arc<Matrix>,
    screen: Option<EncoderScreen>,
    threads: usize,
}

impl EncoderWeights {
    /// Those of `sae`, on the first device if there is one and it is wanted, else on the processor's threads, with
    /// the screen if the SAE's file has one.
    ///
    /// # Errors
    /// An SAE of arrays, which [`Encoder::in_memory`] takes; a file that cannot be read.
    pub fn load(sae: &Arc<Sae>, options: EncoderOptions) -> Result<Self> {
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
        Ok(Self {
            sae: Arc::clone(sae),
            matrix: Matrix::load(file.path(), tensor, options.use_gpu)?,
            screen,
            threads: options.threads,
        })
    }

    /// An encoder on these weights.
    ///
    /// # Errors
    /// A file that cannot be read; memory that ggml cannot provide.
    pub fn encoder(&self) -> Result<Encoder> {
        let product = MatrixProduct::new(Arc::clone(&self.matrix), self.threads)?;
        let (sae, product) = (Arc::clone(&self.sae), Box::new(product));
        Ok(match (self.screen.clone(), self.sae.file()) {
            (Some(screen), Some(file)) => {
                let weights = Box::new(WeightRows::open(file.path(), file.w_enc())?);
                Encoder::with_screen(sae, product, screen, weights, self.threads)
            }
            _ => Encoder::new(sae, product),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{EncoderOptions, EncoderWeights};
    use crate::{Activations, Sae, demo};

    #[test]
    fn encoders_in_threads_read_the_same_weights() {
        let files = demo::files().expect("the demo");
        let sae = Arc::new(Sae::open(&files.saes[0]).expect("the demo's SAE"));
        let options = EncoderOptions {
            use_gpu: true,
            threads: 1,
            screen: true,
        };
        let weights = EncoderWeights::load(&sae, options).expect("it loads");
        let d_in = sae.meta().d_in;
        let rows: Vec<f32> = (0..40 * d_in).map(|i| (i as f32 * 0.37).sin()).collect();
        let encode = || {
            let mut encoder = weights.encoder().expect("there is memory");
            assert!(Arc::strong_count(&weights.matrix) > 1, "no copy was made");
            let mut activations = Activations::default();
            encoder
                .encode(&rows, &mut activations)
                .expect("finite rows");
            activations
        };
        let alone = encode();
        assert!(!alone.data().is_empty());
        std::thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| [(); 20].map(|()| encode())));
            for thread in threads {
                let found = thread.join().expect("no panic");
                assert!(found.iter().all(|activations| *activations == alone));
            }
        });
    }
}
