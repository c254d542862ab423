//! An SAE folder of any format with one file exchanged.
#![no_main]

use gguf_tools_fuzz::{SAE_FILES, Scratch, choose};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = choose(input, SAE_FILES.len()) else {
        return;
    };
    let (folder, file) = SAE_FILES[choice];
    // Some files lie beside or below the folder that is converted.
    let source = match folder {
        "sparsify" => "sparsify/layers.1",
        _ => folder.strip_suffix("/checkpoints").unwrap_or(folder),
    };
    let scratch = Scratch::get();
    scratch.with_file(&format!("saes/{folder}/{file}"), bytes, || {
        scratch.convert_sae(source, Vec::new());
    });
});
