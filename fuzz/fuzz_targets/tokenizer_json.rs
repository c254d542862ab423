//! A LLaVA folder with another `tokenizer.json`, and no `tokenizer.model`, which would be preferred.
#![no_main]

use gguf_tools_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let scratch = Scratch::get();
    let _ = std::fs::remove_file(scratch.path("llava/tokenizer.model"));
    scratch.with_file("llava/tokenizer.json", input, || {
        scratch.convert_llava();
    });
});
