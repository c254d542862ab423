//! GGUF files, and the SAE's schema.

use std::fs::{self, File};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::Result;
use gguf_tools::gguf::{Gguf, Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};

use crate::Expected::{Either, Refused};
use crate::{Reader, faults, fixture};

/// Reads all that there is.
fn read(path: &Path) -> Result<()> {
    let gguf = Gguf::open(path)?;
    for tensor in gguf.tensors() {
        let _ = gguf.read_f32(tensor);
    }
    let sae = SaeFile::open(path)?;
    let _ = (sae.b_enc(), sae.b_dec(), sae.threshold());
    let _ = (sae.decoder_norm(), sae.baseline());
    let mut row = vec![0.0; sae.meta.d_in];
    sae.decoder_row(sae.meta.d_sae - 1, &mut row)
}

fn small_sae(dir: &Path) -> Vec<u8> {
    let target = dir.join("sae.gguf");
    let options = SaeOptions {
        weight_type: TensorType::F16,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Refuse,
    };
    let source = fixture("saes/saelens-5-jumprelu");
    sae::convert(&source, &target, &options, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect("a right folder");
    fs::read(target).expect("written")
}

#[test]
fn every_byte_of_the_header() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let right = small_sae(dir.path());
    let file = dir.path().join("file.gguf");
    let reader = Reader {
        file: file.clone(),
        read: &|| read(&file),
    };
    reader.check_right(&right);
    let gguf = Gguf::open(&dir.path().join("sae.gguf")).expect("right");
    let n_header = gguf.tensors()[0].offset as usize;
    let ends = gguf
        .tensors()
        .iter()
        .map(|tensor| (tensor.offset + tensor.n_bytes) as usize - 1);
    let check = &mut |fault: &str, bytes: &[u8], expected| reader.check(fault, bytes, expected);
    faults::cut(&right, (0..n_header).chain(ends), check);
    faults::overwrite(&right, 0..n_header, check);
}

/// Counts that the file is long enough for, of things that take more in memory than in the file. The
/// file is a hole behind its start, so each thing is a row of zeros.
#[test]
fn counts_of_small_things() {
    const N_BYTES: u64 = 80 << 20;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("file.gguf");
    let reader = Reader {
        file: file.clone(),
        read: &|| read(&file),
    };
    let check = |fault: &str, start: &[u8], counts: [u64; 2]| {
        let mut file = File::create(&file).expect("writable");
        file.write_all(b"GGUF\x03\0\0\0").expect("writable");
        file.write_all(&counts[0].to_le_bytes()).expect("writable");
        file.write_all(&counts[1].to_le_bytes()).expect("writable");
        file.write_all(start).expect("writable");
        file.set_len(N_BYTES).expect("a sparse file");
        reader.check_written(fault, Refused);
    };
    let array = |element: u32, count: u64| {
        let mut start = 1_u64.to_le_bytes().to_vec();
        start.extend(b"k\x09\0\0\0");
        start.extend(element.to_le_bytes());
        start.extend(count.to_le_bytes());
        start
    };
    for share in [1, 4] {
        let n = N_BYTES / share - 4096;
        check("pairs", &[], [0, n / 13]);
        check("tensors", &[], [n / 24, 0]);
        check("texts", &array(8, n / 8), [0, 1]);
        check("bytes", &array(0, n), [0, 1]);
        check("numbers", &array(12, n / 8), [0, 1]);
    }
    // Pairs and tensors with names of their own.
    for (fault, n_pairs) in [("pairs", 1_000_000), ("tensors", 0)] {
        let n_tensors = 1_000_000 - n_pairs;
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(u64::to_le_bytes(n_tensors));
        bytes.extend(u64::to_le_bytes(n_pairs));
        for idx in 0..1_000_000_u32 {
            bytes.extend(4_u64.to_le_bytes());
            bytes.extend(format!("{:04x}", idx & 0xffff).bytes());
            if n_pairs > 0 {
                bytes.extend([0, 0, 0, 0, 7]);
            } else {
                bytes.extend([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                bytes.extend((u64::from(idx) * 32).to_le_bytes());
            }
        }
        reader.check(fault, &bytes, Refused);
    }
    // A value of the wrong type is not printed.
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    bytes.extend(17_u64.to_le_bytes());
    bytes.extend(b"general.alignment\x09\0\0\0\x0c\0\0\0");
    bytes.extend(1_500_000_u64.to_le_bytes());
    bytes.extend(1e-300_f64.to_le_bytes().repeat(1_500_000));
    reader.check("an array for an alignment", &bytes, Refused);
    reader.check("its start", &bytes[..4000], Either);
}
