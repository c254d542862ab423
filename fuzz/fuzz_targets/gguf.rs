//! A GGUF file, and what an SAE's schema says of it.
#![no_main]

use gguf_tools::gguf::Gguf;
use gguf_tools::sae::SaeFile;
use gguf_tools_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    Scratch::get().with_file("input.gguf", input, || {
        let path = Scratch::get().path("input.gguf");
        if let Ok(gguf) = Gguf::open(&path) {
            for tensor in gguf.tensors() {
                let _ = gguf.read_f32(tensor);
            }
        }
        if let Ok(sae) = SaeFile::open(&path) {
            let _ = (sae.b_enc(), sae.b_dec(), sae.threshold());
            let _ = (sae.decoder_norm(), sae.baseline());
            let mut row = vec![0.0; sae.meta.d_in];
            let _ = sae.decoder_row(sae.meta.d_sae - 1, &mut row);
            let _ = sae.encoder_row(0, &mut row);
        }
    });
});
