//! A right SAE with another file of labels: an array, lines, or either gzipped.
#![no_main]

use gguf_tools_fuzz::{STANDARD, Scratch, choose, gzipped};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Through a compressor, so that the text behind one is reached.
    let bytes = match choose(input, 2) {
        None => return,
        Some((0, bytes)) => bytes.to_vec(),
        Some((_, bytes)) => gzipped(bytes),
    };
    let scratch = Scratch::get();
    scratch.with_file("labels", &bytes, || {
        scratch.convert_sae(STANDARD, vec![scratch.path("labels")]);
    });
});
