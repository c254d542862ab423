//! Pictures of awkward shapes and formats beside transformers' CLIPImageProcessor
//! (`tests/fixtures/make_preprocessing.py`).

use std::path::{Path, PathBuf};

use llava_sae_cpp::{ImagePrep, Picture};
use safetensors::SafeTensors;

const SIZE: u32 = 56;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/preprocessing")
}

/// The largest and the mean difference, of 255.
fn differences(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (
        differences.max().unwrap_or_default(),
        sum as f64 / a.len() as f64,
    )
}

#[test]
fn every_picture_becomes_what_transformers_makes_of_it() {
    let bytes = std::fs::read(root().join("oracle.safetensors")).expect("a committed file");
    let oracle = SafeTensors::deserialize(&bytes).expect("a valid file");
    let mut faults = Vec::new();
    for key in oracle.names() {
        let (name, prep) = key.rsplit_once('/').expect("a file and a way");
        let way = match prep {
            "crop" => ImagePrep::Crop,
            _ => ImagePrep::Pad,
        };
        let picture = Picture::open(&root().join(name)).expect(name);
        let ours = picture.prepare(SIZE, way).expect(name);
        let theirs = oracle.tensor(key).expect("listed").data();
        let (worst, mean) = differences(&ours, theirs);
        // Decoders of JPEG differ by 1 of 255 in places, and the filter's overshoot doubles that.
        let most = if name.ends_with(".jpg") { 2 } else { 0 };
        if worst > most || mean > 0.1 {
            faults.push(format!(
                "{key}: {worst} of 255 at worst, {mean:.3} on average"
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
