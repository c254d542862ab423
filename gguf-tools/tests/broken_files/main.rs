//! Every reader on every kind of broken file: none panics, hangs, or allocates more than twice the
//! file's size and 64 MiB. A binary of its own, since it counts what is allocated.

#![allow(unsafe_code)] // the allocator

mod allocations;
mod faults;
mod gguf;
mod labels;
mod llava;
mod sae;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use gguf_tools::Result;

/// What a reader must make of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Refused,
    /// The fault may do no harm: a reader that gives a result checks it.
    Either,
}

/// A reader, and the file in a right folder that takes the place of its own.
struct Reader<'a> {
    file: PathBuf,
    read: &'a dyn Fn() -> Result<()>,
}

impl Reader<'_> {
    /// Reads `bytes` in the place of the file.
    fn check(&self, fault: &str, bytes: &[u8], expected: Expected) {
        fs::write(&self.file, bytes).expect("writable");
        self.check_written(fault, expected);
    }

    /// Reads the file as it lies there.
    fn check_written(&self, fault: &str, expected: Expected) {
        let _name = Name(format!("{}: {fault}", self.file.display()));
        let n_bytes = fs::metadata(&self.file).expect("written").len() as usize;
        let (result, peak) = allocations::peak_of(self.read);
        let most = 2 * n_bytes + (64 << 20);
        assert!(peak <= most, "{peak} bytes allocated, {most} allowed");
        if expected == Expected::Refused {
            result.expect_err("a broken file");
        }
    }

    /// Reads the file as it should be.
    fn check_right(&self, bytes: &[u8]) {
        fs::write(&self.file, bytes).expect("writable");
        (self.read)().expect("a right file");
    }
}

/// Names the fault where a test fails, of whatever reason.
struct Name(String);

impl Drop for Name {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// A folder of the repository's fixtures.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Copies a folder of the fixtures into `dir`, under its name.
fn copy(name: &str, dir: &Path) -> PathBuf {
    let target = dir.join(name);
    fs::create_dir_all(&target).expect("writable");
    for entry in fs::read_dir(fixture(name)).expect("a committed folder") {
        let path = entry.expect("readable").path();
        let file = path.file_name().expect("a name");
        if path.is_dir() {
            copy(&format!("{name}/{}", file.to_string_lossy()), dir);
        } else {
            fs::copy(&path, target.join(file)).expect("writable");
        }
    }
    target
}
