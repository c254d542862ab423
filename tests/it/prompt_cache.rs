//! Prompts that the command line remembers, in the user's cache folder.

#![cfg(target_os = "linux")] // where `XDG_CACHE_HOME` says where the cache is

use crate::command_line::program;
use crate::fixture::picture;
use crate::prompt_store::files;

/// A person's tries on the command line: what is printed is the same, and files are there only where they may be.
#[test]
fn the_command_remembers_unless_told_otherwise() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let prompts = dir.path().join("llava-sae-cpp/prompts");
    let run = |args: &[&str]| {
        let mut program = program();
        program.env("XDG_CACHE_HOME", dir.path());
        let output = program.args(["-q"]).args(args).output();
        let output = output.expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    };
    let commands: [&[&str]; 5] = [
        &["-n", "6", "--top", "5", picture()],
        &["-n", "6", "--steer", "3:8", picture()],
        &["-n", "6", "--steer", "3:8", "--at", "generated", picture()],
        &["features", picture()],
        &["sweep", "-n", "6", "--steer", "3:0..8:4", picture()],
    ];
    let without = commands.map(|command| run(&[command, &["--prompt-cache", "0"]].concat()));
    assert_eq!(files(&prompts).len(), 0);
    for _ in 0..2 {
        for (command, without) in commands.iter().zip(&without) {
            assert_eq!(&run(command), without, "{command:?}");
        }
        assert!(files(&prompts).len() >= 3);
    }
    let kept = files(&prompts).len();
    let target = dir.path().join("out.parquet");
    run(&[
        "scan",
        "assets/pictures",
        "-o",
        target.to_str().expect("plain"),
    ]);
    run(&["metrics", "assets/pictures/boat.png"]);
    assert_eq!(
        files(&prompts).len(),
        kept,
        "runs through many pictures keep none"
    );
    // A folder that cannot be written is no error.
    std::fs::remove_dir_all(&prompts).expect("our own folder");
    std::fs::write(&prompts, "a file in its place").expect("our own folder");
    assert_eq!(run(commands[0]), without[0]);
}

/// Killed at any moment, and several at once: the next run prints the same.
#[test]
fn kills_and_neighbours_lose_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let start = || {
        let mut program = program();
        program.env("XDG_CACHE_HOME", dir.path());
        program.args(["-q", "-n", "6", "--steer", "3:8", picture()]);
        program.stdout(std::process::Stdio::piped());
        program.spawn().expect("the program starts")
    };
    let text = |child: std::process::Child| {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        output.stdout
    };
    let expected = text(start());
    for milliseconds in (0..60).step_by(4) {
        let prompts = dir.path().join("llava-sae-cpp/prompts");
        let _ = std::fs::remove_dir_all(&prompts);
        let mut child = start();
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().expect("it ends");
        let neighbours = [start(), start()];
        for neighbour in neighbours {
            assert_eq!(text(neighbour), expected, "after {milliseconds} ms");
        }
    }
}
