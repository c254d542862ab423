//! A LLaVA folder with one file exchanged: configurations, weights, index.
#![no_main]

use gguf_tools_fuzz::{LLAVA_FILES, Scratch, choose};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = choose(input, LLAVA_FILES.len()) else {
        return;
    };
    let name = format!("llava/{}", LLAVA_FILES[choice]);
    Scratch::get().with_file(&name, bytes, || {
        Scratch::get().convert_llava();
    });
});
