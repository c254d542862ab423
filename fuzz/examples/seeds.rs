//! Writes the seeds of every target from the repository's fixtures: `cargo run --example seeds CORPUS`.

use std::fs;
use std::path::{Path, PathBuf};

use gguf_tools_fuzz::{LLAVA_FILES, SAE_FILES, STANDARD, Scratch, fixture};

/// Larger files are no seeds: mutating them takes too long.
const MAX_BYTES: usize = 20_000;

fn main() {
    let corpus = PathBuf::from(std::env::args_os().nth(1).expect("a folder to write to"));
    let write = |target: &str, name: &str, parts: &[&[u8]]| {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir).expect("writable");
        fs::write(dir.join(name.replace('/', "-")), parts.concat()).expect("writable");
    };
    let read = |path: &Path| fs::read(path).ok();

    let scratch = Scratch::get();
    for (idx, (folder, file)) in SAE_FILES.iter().enumerate() {
        if let Some(bytes) = read(&fixture("saes").join(folder).join(file)) {
            let name = format!("{folder}-{file}");
            write("sae_folder", &name, &[&[idx as u8], &bytes]);
            if file.ends_with(".npz") {
                write("npz", &name, &[&[0], &bytes]);
            }
        }
    }
    let array =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (40,), }";
    write(
        "npz",
        "array",
        &[&[1], array, &[b' '; 59], b"\n", &[0x3f; 160]],
    );

    let llava = fixture("tiny/llava");
    for (idx, file) in LLAVA_FILES.iter().enumerate() {
        if let Some(bytes) = read(&llava.join(file)).filter(|bytes| bytes.len() < MAX_BYTES) {
            write("llava_folder", file, &[&[idx as u8], &bytes]);
        }
    }
    for (target, file) in [
        ("tokenizer_model", "tokenizer.model"),
        ("tokenizer_json", "tokenizer.json"),
    ] {
        write(
            target,
            file,
            &[&read(&llava.join(file)).expect("committed")],
        );
    }

    let array = br#"[{"modelId": "m", "layer": "1-res", "index": "3", "description": "dogs"}, {"index": 5}]"#;
    let lines = b"{\"index\": \"3\", \"description\": \"cats\"}\n{\"index\": 4, \"description\": \"\\u00e9\"}\n";
    for (name, text) in [("array", &array[..]), ("lines", &lines[..])] {
        write("labels", name, &[&[0], text]);
        write("labels", &format!("{name}-gzipped"), &[&[1], text]);
        write(
            "labels",
            &format!("{name}-gz"),
            &[&[0], &gguf_tools_fuzz::gzipped(text)],
        );
    }

    for folder in [STANDARD, "saelens-5-jumprelu", "saelens-6-topk"] {
        assert!(scratch.convert_sae(folder, Vec::new()), "{folder}");
        write(
            "gguf",
            folder,
            &[&read(&scratch.path("sae.gguf")).expect("written")],
        );
    }
    assert!(scratch.convert_llava());
    let mmproj = read(&scratch.path("out/mmproj-q8_0.gguf")).expect("written");
    write("gguf", "mmproj", &[&mmproj[..MAX_BYTES]]);
}
