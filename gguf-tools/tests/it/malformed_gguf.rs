//! Damaged and foreign files: each is an error, never a panic and never a huge allocation.

use std::path::Path;

use gguf_tools::gguf::{Gguf, Overwrite, TensorType, Writer};

/// A file in memory, put together field by field.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(n_tensors: u64, n_pairs: u64) -> Self {
        Self::default()
            .raw(b"GGUF")
            .u32(3)
            .u64(n_tensors)
            .u64(n_pairs)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }

    fn tensor(self, name: &str, dims: &[u64], type_code: u32, offset: u64) -> Self {
        let start = self.string(name).u32(dims.len() as u32);
        let shaped = dims.iter().fold(start, |bytes, dim| bytes.u64(*dim));
        shaped.u32(type_code).u64(offset)
    }

    /// Room for the data of small tensors.
    fn padded(self) -> Self {
        self.raw(&[0; 256])
    }
}

fn open(dir: &Path, bytes: &[u8]) -> gguf_tools::Result<Gguf> {
    let path = dir.join("file.gguf");
    std::fs::write(&path, bytes).expect("writable");
    Gguf::open(&path)
}

#[test]
fn each_fault_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |expected: &str, bytes: Bytes| {
        let error = open(dir.path(), &bytes.0).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("file.gguf"), "{error}");
    };
    let huge = u64::MAX;
    check("it is empty", Bytes::default());
    check("within its header", Bytes::default().raw(b"GG"));
    check(
        "starts with `PK",
        Bytes::default().raw(b"PK\x03\x04 and so on"),
    );
    check("version 1", Bytes::default().raw(b"GGUF").u32(1).padded());
    check("version 4", Bytes::default().raw(b"GGUF").u32(4).padded());
    check(
        "big-endian",
        Bytes::default().raw(b"GGUF").u32(3 << 24).padded(),
    );
    check(
        "count of 18446744073709551615",
        Bytes::header(huge, 0).padded(),
    );
    check(
        "count of 18446744073709551615",
        Bytes::header(0, huge).padded(),
    );
    check(
        "count of 18446744073709551615",
        Bytes::header(0, 1).u64(huge).padded(),
    );
    check(
        "count of 1000",
        Bytes::header(0, 1).string("a").u32(8).u64(1000).padded(),
    );
    check(
        "count of 1000",
        Bytes::header(0, 1)
            .string("a")
            .u32(9)
            .u32(12)
            .u64(1000)
            .padded(),
    );
    check(
        "unknown type 13",
        Bytes::header(0, 1).string("a").u32(13).padded(),
    );
    check(
        "unknown type 9",
        Bytes::header(0, 1)
            .string("a")
            .u32(9)
            .u32(9)
            .u64(1)
            .padded(),
    );
    check(
        "bool has the value 2",
        Bytes::header(0, 1).string("a").u32(7).raw(&[2]).padded(),
    );
    check(
        "UTF-8",
        Bytes::header(0, 1)
            .string("a")
            .u32(8)
            .u64(2)
            .raw(b"\xc3\x28")
            .padded(),
    );
    let pair = |bytes: Bytes, key| bytes.string(key).u32(4).u32(3);
    check(
        "key `a` is present twice",
        pair(pair(Bytes::header(0, 2), "a"), "a").padded(),
    );
    check("a key is empty", pair(Bytes::header(0, 1), "").padded());
    check(
        "`general.alignment`",
        pair(Bytes::header(0, 1), "general.alignment").padded(),
    );
    let tensor =
        |dims: &[u64], type_code| Bytes::header(1, 0).tensor("t", dims, type_code, 0).padded();
    check("0 dimensions", tensor(&[], 0));
    check("5 dimensions", tensor(&[1; 5], 0));
    check("type 4, `q4_2`", tensor(&[32], 4));
    check("type 33, `q4_0_8_8`", tensor(&[32], 33));
    check("type 36, `iq4_nl_4_4`", tensor(&[32], 36));
    check("unknown type 43", tensor(&[1], 43));
    check("impossible dims [0]", tensor(&[0], 0));
    check("impossible dims [33]", tensor(&[33], 8));
    check("impossible dims", tensor(&[huge, huge], 0));
    check("impossible dims", tensor(&[huge / 4], 0));
    check("ends within tensor `t`", tensor(&[1 << 40], 0));
    check(
        "name `ttt",
        Bytes::header(1, 0)
            .tensor(&"t".repeat(64), &[1], 0, 0)
            .padded(),
    );
    let two = |name, offset| {
        Bytes::header(2, 0)
            .tensor("t", &[9], 0, 0)
            .tensor(name, &[1], 0, offset)
            .padded()
    };
    check("tensor `t` is present twice", two("t", 64));
    check("offset 32 of the data, expected 64", two("u", 32));
    assert!(open(dir.path(), &two("u", 64).0).is_ok());
}

fn small_file(dir: &Path) -> Vec<u8> {
    let path = dir.join("small.gguf");
    let mut writer = Writer::create(&path, Overwrite::Replace).expect("the folder is there");
    writer.set("text", "a text");
    writer.set("numbers", vec![1_u32, 2, 3]);
    writer.set("texts", vec!["one".to_owned(), "two".to_owned()]);
    writer.declare("matrix", &[32, 3], TensorType::Q8_0);
    writer.declare("vector", &[8], TensorType::F32);
    let mut writer = writer.begin().expect("a right header");
    writer
        .write_f32(&crate::random_values(1, 96))
        .expect("three rows");
    writer
        .write_f32(&crate::random_values(2, 8))
        .expect("one row");
    writer.finish().expect("complete");
    std::fs::read(path).expect("just written")
}

#[test]
fn truncated_files_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bytes = small_file(dir.path());
    // The last tensor fills its padding, so every byte counts.
    for n_bytes in 0..bytes.len() {
        assert!(
            open(dir.path(), &bytes[..n_bytes]).is_err(),
            "{n_bytes} bytes"
        );
    }
    assert!(open(dir.path(), &bytes).is_ok());
}

#[test]
fn damaged_bytes_never_panic() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut bytes = small_file(dir.path());
    for idx in 0..bytes.len() {
        let original = bytes[idx];
        for damaged in [0, 1, 0x7f, 0xff, original ^ 0x10] {
            bytes[idx] = damaged;
            if let Ok(gguf) = open(dir.path(), &bytes) {
                for tensor in gguf.tensors() {
                    // Either is right: the data's bytes mean numbers, whatever they are.
                    let _ = gguf.read_f32(tensor);
                }
            }
        }
        bytes[idx] = original;
    }
}

#[test]
fn missing_and_wrong_entries_are_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let gguf = open(dir.path(), &small_file(dir.path())).expect("a right file");
    let check = |error: gguf_tools::Error, expected: &str| {
        let error = error.to_string();
        assert!(
            error.contains("file.gguf") && error.contains(expected),
            "{error}"
        );
    };
    check(
        gguf.require_u32("none").expect_err("missing"),
        "no key `none`",
    );
    check(
        gguf.require_u32("text").expect_err("a text"),
        "must be of type u32, but is of type string",
    );
    check(
        gguf.require_str("numbers").expect_err("numbers"),
        "but is of type array of u32",
    );
    check(
        gguf.require_bool("text").expect_err("a text"),
        "must be of type bool",
    );
    check(
        gguf.require_f32("text").expect_err("a text"),
        "must be of type f32",
    );
    check(
        gguf.require_tensor("none", &[1]).expect_err("missing"),
        "no tensor `none`",
    );
    let error = gguf
        .require_tensor("matrix", &[3, 32])
        .expect_err("transposed");
    check(error, "dims [3, 32], but has [32, 3]");
}
