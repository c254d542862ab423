//! A LLaVA folder with another `tokenizer.model`.
#![no_main]

use gguf_tools_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let scratch = Scratch::get();
    scratch.with_file("llava/tokenizer.model", input, || {
        scratch.convert_llava();
    });
});
