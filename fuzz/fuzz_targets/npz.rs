//! A Gemma Scope folder with another `params.npz`: the whole file, or one array in a right zip.
#![no_main]

use gguf_tools_fuzz::{GEMMA_SCOPE, Scratch, choose, stored_zip};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let zip = match choose(input, 2) {
        None => return,
        Some((0, bytes)) => bytes.to_vec(),
        Some((_, bytes)) => stored_zip("b_enc.npy", bytes),
    };
    let scratch = Scratch::get();
    let name = format!("saes/{GEMMA_SCOPE}/params.npz");
    scratch.with_file(&name, &zip, || {
        scratch.convert_sae(GEMMA_SCOPE, Vec::new());
    });
});
