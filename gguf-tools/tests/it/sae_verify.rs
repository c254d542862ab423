//! SAE files with right headers and wrong contents: what opening sees, and what reading all does.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::Result;
use gguf_tools::gguf::{Gguf, Overwrite, TensorType};
use gguf_tools::sae::{self, Baseline, SaeFile, SaeOptions};

use crate::demo;
use crate::sae_conversion::options;

const D_IN: usize = 192;
const D_SAE: usize = 768;

/// The demo's SAE with a baseline, as `convert` and `Baseline::write` make it.
fn converted(dir: &Path, weight_type: TensorType) -> PathBuf {
    let (target, with_baseline) = (dir.join("converted.gguf"), dir.join("sae.gguf"));
    let options = SaeOptions {
        weight_type,
        overwrite: Overwrite::Replace,
        ..options()
    };
    let mut go_on = |_, _| ControlFlow::Continue(());
    sae::convert(&demo().join("sae"), &target, &options, &mut go_on).expect("convertible");
    let baseline = Baseline {
        mean_max: vec![0.5; D_SAE],
        frequency: vec![0.25; D_SAE],
        usual: Some(vec![1.75; D_SAE]),
        n_pictures: 3,
    };
    let file = SaeFile::open(&target).expect("just written");
    baseline
        .write(&file, &with_baseline, Overwrite::Replace)
        .expect("writable");
    with_baseline
}

/// A copy of the embedded demo's SAE as it was before there were checksums: under keys that nobody reads.
fn older(dir: &Path) -> PathBuf {
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/sae-f16.gguf");
    let mut bytes = std::fs::read(asset).expect("a committed file");
    for key in ["sae.checksum", "sae.image_baseline_checksum"] {
        let place = bytes.windows(key.len()).position(|at| at == key.as_bytes());
        let end = place.expect("it is written") + key.len();
        bytes[end - 8..end].copy_from_slice(b"_unknown");
    }
    let target = dir.join("sae.gguf");
    std::fs::write(&target, bytes).expect("writable");
    target
}

/// Overwrites bytes of a tensor, or of the value of a u32 key.
fn overwrite(path: &Path, name: &str, start: usize, new: &[u8]) {
    let gguf = Gguf::open(path).expect("a right file");
    let mut bytes = std::fs::read(path).expect("readable");
    let place = match gguf.tensor(name) {
        Some(tensor) => tensor.offset as usize + start,
        // Behind the key come its type and the value.
        None => {
            let key = bytes
                .windows(name.len())
                .position(|at| at == name.as_bytes());
            key.expect("the key is there") + name.len() + 4
        }
    };
    bytes[place..place + new.len()].copy_from_slice(new);
    std::fs::write(path, bytes).expect("writable");
}

/// What a file with a fault is refused with.
fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.expect_err("a file with a fault").to_string()
}

fn verify(path: &Path) -> Result<()> {
    SaeFile::open(path).expect("a right header").verify()
}

#[test]
fn right_files_are_verified() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for weight_type in [TensorType::F32, TensorType::F16, TensorType::Q8_0] {
        let path = converted(dir.path(), weight_type);
        let gguf = Gguf::open(&path).expect("a right file");
        gguf.require_u32("sae.checksum").expect("written");
        verify(&path).expect("what was written");
    }
    let path = older(dir.path());
    let gguf = Gguf::open(&path).expect("a right file");
    assert!(gguf.get("sae.checksum").is_none() && gguf.tensor("sae.w_enc_screen").is_some());
    verify(&path).expect("a right file without a checksum");
}

#[test]
fn matrices_and_screens() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let f16_row = 2 * D_IN;
    let screen_row = D_IN / 32 * 34;
    let screen_bytes = D_SAE * screen_row;
    let faults: [(&str, usize, Vec<u8>, &str); 9] = [
        // NaN and infinity in f16.
        (
            "sae.w_enc",
            5 * f16_row,
            vec![0, 0x7e],
            "`sae.w_enc` holds NaN at feature 5",
        ),
        (
            "sae.w_enc",
            0,
            [0, 0x7c].repeat(D_IN),
            "`sae.w_enc` holds inf at feature 0",
        ),
        (
            "sae.w_dec",
            700 * f16_row,
            vec![0, 0xfc],
            "`sae.w_dec` holds -inf at feature 700",
        ),
        // A block's scale.
        (
            "sae.w_enc_screen",
            34,
            vec![0, 0x7e],
            "`sae.w_enc_screen` holds NaN at feature 0",
        ),
        (
            "sae.w_enc_screen",
            0,
            vec![0; screen_bytes],
            "screen does not belong to the encoder",
        ),
        (
            "sae.w_enc_screen",
            9 * screen_row,
            vec![0; screen_row],
            "`sae.screen_error` of feature 9",
        ),
        (
            "sae.screen_error",
            0,
            vec![0; 4 * D_SAE],
            "`sae.screen_error` of feature 0 is 0",
        ),
        (
            "sae.screen_norm",
            4 * 17,
            0.01_f32.to_le_bytes().to_vec(),
            "`sae.screen_norm` of feature 17 is 0.01",
        ),
        // Another feature's row of the encoder.
        (
            "sae.w_enc",
            3 * f16_row,
            vec![0x11; f16_row],
            "`sae.screen_error` of feature 3",
        ),
    ];
    for (name, start, new, expected) in faults {
        for path in [converted(dir.path(), TensorType::F16), older(dir.path())] {
            overwrite(&path, name, start, &new);
            let error = refused(verify(&path));
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}

#[test]
fn whatever_else_has_changed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for name in [
        "sae.b_enc",
        "sae.b_dec",
        "sae.threshold",
        "sae.decoder_norm",
        "sae.w_dec",
    ] {
        let path = converted(dir.path(), TensorType::F32);
        overwrite(&path, name, 8, &[0x12, 0x34]);
        let error = refused(verify(&path));
        assert!(error.contains("the checksum"), "{name}: {error}");
    }
    // A key that changes features.
    let path = converted(dir.path(), TensorType::F32);
    overwrite(&path, "sae.apply_b_dec_to_input", 0, &[0]);
    assert!(refused(verify(&path)).contains("the checksum"));
    let path = converted(dir.path(), TensorType::F32);
    overwrite(&path, "sae.checksum", 0, &[1, 2, 3, 4]);
    assert!(refused(verify(&path)).contains("the file says 04030201"));
}

#[test]
fn baselines_have_a_checksum_of_their_own() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for name in [
        "sae.image_baseline",
        "sae.image_frequency",
        "sae.image_usual",
    ] {
        let path = converted(dir.path(), TensorType::F32);
        overwrite(&path, name, 8, &[0; 4]);
        let error = refused(verify(&path));
        assert!(error.contains("its baseline's numbers"), "{name}: {error}");
    }
    // Those written before there was one stay readable.
    let path = older(dir.path());
    overwrite(&path, "sae.image_baseline", 8, &[0; 4]);
    verify(&path).expect("a baseline without a checksum");
    // A later measurement brings its own.
    let measured = dir.path().join("measured.gguf");
    let file = SaeFile::open(&converted(dir.path(), TensorType::F32)).expect("a right file");
    let baseline = Baseline {
        mean_max: vec![2.0; D_SAE],
        frequency: vec![0.125; D_SAE],
        usual: None,
        n_pictures: 7,
    };
    baseline
        .write(&file, &measured, Overwrite::Refuse)
        .expect("writable");
    verify(&measured).expect("just written");
}

#[test]
fn what_is_usual_is_kept_where_it_was_measured() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = SaeFile::open(&converted(dir.path(), TensorType::F16)).expect("a right file");
    let measured = dir.path().join("measured.gguf");
    let baseline = |usual| Baseline {
        mean_max: vec![0.5; D_SAE],
        frequency: vec![0.25; D_SAE],
        usual,
        n_pictures: 8,
    };
    for usual in [Some(vec![2.0; D_SAE]), None] {
        let written = baseline(usual);
        let write = written.write(&file, &measured, Overwrite::Replace);
        write.expect("writable");
        let read = SaeFile::open(&measured).expect("a right file");
        assert_eq!(read.baseline().expect("readable"), Some(written));
    }
    let short = baseline(Some(vec![1.0; 2]));
    let error = short.write(&file, &measured, Overwrite::Replace);
    let error = error.expect_err("too few").to_string();
    assert!(error.contains("`sae.image_usual` has 2 values"), "{error}");
}

#[test]
fn ranges_of_vectors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str, value: f32, expected: &str| {
        let path = converted(dir.path(), TensorType::F16);
        overwrite(&path, name, 12, &value.to_le_bytes());
        let error = refused(SaeFile::open(&path));
        assert!(error.contains(name) && error.contains(expected), "{error}");
    };
    for name in [
        "sae.screen_error",
        "sae.screen_norm",
        "sae.image_baseline",
        "sae.image_frequency",
        "sae.image_usual",
        "sae.decoder_norm",
    ] {
        check(name, -0.5, "holds -0.5 at index 3");
        check(name, f32::INFINITY, "holds inf at index 3");
    }
    check(
        "sae.image_frequency",
        1.5,
        "holds 1.5 at index 3, expected 0 to 1",
    );
    for name in ["sae.threshold", "sae.b_enc", "sae.b_dec"] {
        check(name, f32::NAN, "holds NaN at index 3");
    }
    let path = converted(dir.path(), TensorType::F16);
    overwrite(&path, "sae.image_baseline_pictures", 0, &[0; 4]);
    assert!(refused(SaeFile::open(&path)).contains("`sae.image_baseline_pictures` is 0"));
}
