//! Trials of files that the machine has not seen: when they run, and what they find.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use gguf_tools::gguf::{Gguf, TensorType};

use crate::command_line::{names, program};
use crate::fixture::{Fixture, example, picture};

/// A machine that has seen nothing, and a folder with a copy of the demo's files.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let machine = Self { dir };
        std::fs::create_dir(machine.models()).expect("a folder of our own");
        let from = Fixture::Demo.converted(TensorType::F16);
        for name in ["model-f16.gguf", "mmproj-f16.gguf", "sae.gguf"] {
            std::fs::copy(from.join(name), machine.models().join(name)).expect("a copy");
        }
        machine
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn seen(&self) -> PathBuf {
        self.dir.path().join("cache/llava-sae-cpp/seen")
    }

    /// The number of files that were seen, by what they hold.
    fn n_seen(&self) -> usize {
        let markers = names(&self.seen()).into_iter();
        markers.filter(|name| name.ends_with(".content")).count()
    }

    fn program(&self) -> Command {
        let mut program = program();
        program.env("XDG_CACHE_HOME", self.dir.path().join("cache"));
        program
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.program().args(args).output();
        output.expect("the program starts")
    }

    /// Describes the picture; whether it said that it tries files first.
    fn tries(&self, args: &[&str]) -> bool {
        let models = self.models();
        let models = ["-d", models.to_str().expect("a plain path"), picture()];
        let output = self.run(&[&models[..], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let caption = String::from_utf8_lossy(&output.stdout);
        assert_eq!(caption, format!("{}\n", example().caption));
        assert!(stderr.lines().count() <= 1, "{stderr}");
        stderr.contains("trying")
    }

    /// What a run says that must fail with code 1.
    fn fails(&self) -> String {
        let models = self.models();
        let output = self.run(&[
            "-q",
            "-d",
            models.to_str().expect("a plain path"),
            picture(),
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        stderr.into_owned()
    }
}

/// Writes NaN over the beginning of a tensor; nothing in the header tells.
fn spoil(file: &Path, tensor: &str) {
    let header = Gguf::open(file).expect("a right file");
    let offset = header.tensor(tensor).expect("a tensor of it").offset as usize;
    let mut bytes = std::fs::read(file).expect("readable");
    bytes[offset..offset + 64].fill(0xff); // in f16 and in f32
    std::fs::write(file, bytes).expect("a file of our own");
}

#[cfg(target_os = "linux")] // where `XDG_CACHE_HOME` says where the cache is, here and below
#[test]
fn files_are_tried_once() {
    let machine = Machine::new();
    assert!(!machine.tries(&["--no-probe"]));
    assert!(machine.tries(&[]));
    assert_eq!(machine.n_seen(), 3);
    assert!(!machine.tries(&[]));
    // A file that was changed is another one, and so is a copy, whose time differs.
    let sae = machine.models().join("sae.gguf");
    let bytes = std::fs::read(&sae).expect("readable");
    std::fs::write(&sae, bytes).expect("a file of our own");
    assert!(machine.tries(&[]));
    assert!(!machine.tries(&[]));
    // A file that was renamed is the same.
    std::fs::rename(&sae, machine.models().join("sae-renamed.gguf")).expect("our own folder");
    assert!(!machine.tries(&[]));
    // In quiet runs too, which say nothing.
    std::fs::remove_dir_all(machine.seen()).expect("our own folder");
    assert!(!machine.tries(&["-q"]));
    assert!(!machine.tries(&[]));
    assert!(!machine.run(&[picture()]).stderr.is_empty());
    assert_eq!(machine.n_seen(), 3, "the demo is none of them");
}

#[cfg(target_os = "linux")]
#[test]
fn without_a_folder_for_markers_they_are_tried_each_time() {
    let machine = Machine::new();
    std::fs::create_dir_all(machine.seen().parent().expect("a cache")).expect("our own folder");
    std::fs::write(machine.seen(), "a file in its place").expect("our own folder");
    for _ in 0..2 {
        let models = machine.models();
        let args = [
            "-n",
            "1",
            "-d",
            models.to_str().expect("a plain path"),
            picture(),
        ];
        let output = machine.run(&args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert!(
            stderr.contains("trying") && stderr.contains("warning: "),
            "{stderr}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn two_may_try_the_same_files() {
    let machine = Machine::new();
    let models = machine.models();
    let start = || {
        let mut program = machine.program();
        program.args([
            "-q",
            "-d",
            models.to_str().expect("a plain path"),
            picture(),
        ]);
        program
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts")
    };
    for child in [start(), start()] {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        let caption = String::from_utf8_lossy(&output.stdout);
        assert_eq!(caption, format!("{}\n", example().caption));
    }
    assert_eq!(machine.n_seen(), 3);
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_made_here_was_seen() {
    let machine = Machine::new();
    std::fs::remove_dir_all(machine.models()).expect("our own folder");
    let models = machine.models();
    let models = models.to_str().expect("a plain path");
    let (llava, sae) = ("tests/fixtures/demo/llava", "tests/fixtures/demo/sae");
    let types = [
        "--type",
        "f16",
        "--labels",
        "tests/fixtures/demo/sae/labels.json",
    ];
    let convert = ["convert", "--llava", llava, "--sae", sae, "-o", models];
    assert!(
        machine
            .run(&[&convert[..], &types].concat())
            .status
            .success()
    );
    assert!(!machine.tries(&[]));
    let baseline = machine.dir.path().join("sae-with-baseline.gguf");
    let baseline = baseline.to_str().expect("a plain path");
    let args = ["baseline", "-d", models, "assets/pictures", "-o", baseline];
    assert!(machine.run(&args).status.success());
    assert!(!machine.tries(&["--sae", baseline]));
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_are_not_numbers() {
    for (file, tensor, words) in [
        ("model-f16.gguf", "blk.0.ffn_up.weight", "running a token"),
        ("model-f16.gguf", "blk.6.ffn_up.weight", "running a token"),
        ("mmproj-f16.gguf", "mm.2.bias", "encoding an image"),
    ] {
        let machine = Machine::new();
        spoil(&machine.models().join(file), tensor);
        let stderr = machine.fails();
        for word in [file, words, "not numbers", "hint: "] {
            assert!(stderr.contains(word), "`{word}` should be in: {stderr}");
        }
        // It is not seen thereby.
        assert_eq!(machine.fails(), stderr);
    }
}

/// A program that is started as a probe's child does nothing else, and ends when nobody listens.
#[test]
fn a_child_without_a_parent() {
    let mut child = program();
    child.env("LLAVA_SAE_CPP_PROBE", "1").arg(picture());
    let output = child.stdin(Stdio::null()).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
}
