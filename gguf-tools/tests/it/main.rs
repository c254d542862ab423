//! Tests of GGUF files, SAE conversion and the command line, through the public interface.

mod command_line;
mod edits;
mod gguf_files;
mod malformed_gguf;
mod new_file;
mod number_types;
mod sae_conversion;
mod sae_faults;
mod sae_field;
mod sae_file;
mod sae_folder;
mod sae_formats;
mod sae_optional_files;
mod sae_verify;
mod shards;
mod show;

use std::path::{Path, PathBuf};

/// The demo checkpoint's folder.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/demo")
}

/// The names in a folder, sorted.
fn listing(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("the folder is there");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Numbers in -1..1 that are different for each seed, and never 0 (splitmix64).
fn random_values(seed: u64, n_values: usize) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 41) as f32 / (1 << 22) as f32 - 1.0 + f32::EPSILON
    };
    std::iter::repeat_with(next).take(n_values).collect()
}
