//! Pulling that is ended at any moment goes on and ends the same, and two at once do no harm.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::mirror::{Fault, Mirror, Server};
use crate::pull::{NAME, User, content, stderr};

const PULL: [&str; 4] = ["pull", NAME, "--type=q4_k_m", "--yes"];

/// The files of a folder, hidden ones too.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .expect("a folder")
        .map(|entry| entry.expect("readable"));
    let file = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path()).expect("a file");
        (
            entry.file_name().into_string().expect("a plain name"),
            bytes,
        )
    };
    entries.map(file).collect()
}

/// What a run that nothing disturbs makes.
fn undisturbed(mirror: &Mirror) -> BTreeMap<String, Vec<u8>> {
    let user = User::of(mirror);
    let output = user.run(&PULL);
    assert!(output.status.success(), "{}", stderr(&output));
    files(&user.folder())
}

fn start(program: &mut Command) -> Child {
    program.stdout(Stdio::null()).stderr(Stdio::null());
    program.spawn().expect("the program starts")
}

/// `kill -9` at the first request, at the second, and so on; what was asked for is answered in part, so that
/// files are ended in their middle.
#[test]
fn a_run_killed_at_any_request_goes_on_and_ends_the_same() {
    let mirror = Mirror::start(content());
    let expected = undisturbed(&mirror);
    let user = User::of(&mirror);
    let mut n_killed = 0;
    loop {
        let child = Arc::new(Mutex::new(None::<Child>));
        let killed = Arc::clone(&child);
        let mut n_left = n_killed;
        mirror.sabotage(move |asked| {
            if n_left > 0 {
                n_left -= 1;
                return Fault::Nothing;
            }
            let killed = Arc::clone(&killed);
            std::thread::spawn(move || {
                // Until what is sent has arrived.
                std::thread::sleep(Duration::from_millis(100));
                if let Some(child) = &mut *killed.lock().expect("no panic") {
                    child.kill().expect("it runs, or is waited for");
                }
            });
            match asked.server {
                Server::Store => Fault::HangAfter(1_000_000),
                _ => Fault::HangAfter(100),
            }
        });
        *child.lock().expect("no panic") = Some(start(&mut user.program(&PULL)));
        let status = loop {
            let ended = child
                .lock()
                .expect("no panic")
                .as_mut()
                .expect("started")
                .try_wait();
            match ended.expect("a child") {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.success() {
            break;
        }
        assert_eq!(status.code(), None, "it was killed");
        n_killed += 1;
        assert!(n_killed < 60, "it never ends");
        assert!(!user.folder().exists());
    }
    // The two repositories, the three parts of labels, and at least one file.
    assert!(n_killed >= 4, "{n_killed}");
    assert!(files(&user.folder()) == expected);
}

/// `kill -9` while the conversion writes: the next run begins it anew.
#[test]
fn a_run_killed_while_it_converts_ends_the_same() {
    let mirror = Mirror::start(content());
    let expected = undisturbed(&mirror);
    let user = User::of(&mirror);
    let unfinished = user.folder().with_file_name(format!(".{NAME}.unfinished"));
    for pause in [0, 5, 20, 50, 100, 200] {
        let mut child = start(&mut user.program(&PULL));
        let begun = Instant::now();
        let is_over = |child: &mut Child| child.try_wait().expect("a child").is_some();
        while !unfinished.join("parts").exists() && !is_over(&mut child) {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().expect("a child");
        child.wait().expect("a child");
        // It may have been faster; then it is whole.
        if user.folder().exists() {
            assert!(files(&user.folder()) == expected, "{pause}");
            fs::remove_dir_all(user.folder()).expect("ours");
        }
    }
    let output = user.run(&PULL);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(files(&user.folder()) == expected);
    assert!(!unfinished.exists());
}

/// Ctrl-C in the middle of a file: what has arrived is kept.
#[test]
fn ctrl_c_ends_a_download() {
    let mirror = Mirror::start(content());
    mirror.sabotage(|asked| match asked.server {
        Server::Store => Fault::HangAfter(100_000),
        _ => Fault::Nothing,
    });
    let user = User::of(&mirror);
    let mut program = user.program(&PULL);
    program.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = program.spawn().expect("the program starts");
    let begun = Instant::now();
    // `tokenizer.model` is shorter, and comes whole; then the SAE's weights break off.
    let mut n_sent = 0;
    while n_sent < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
        let asked = mirror.asked().into_iter();
        n_sent += asked.filter(|asked| asked.server == Server::Store).count();
    }
    std::thread::sleep(Duration::from_millis(100));
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("POSIX has `kill`").success());
    let output = child.wait_with_output().expect("a child");
    assert_eq!(output.status.code(), Some(130));
    assert!(
        stderr(&output).ends_with("error: interrupted\n"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        files(&user.folder().with_file_name(""))
            .keys()
            .collect::<Vec<_>>(),
        [&format!(".{NAME}.lock")]
    );

    mirror.sabotage(|_| Fault::Nothing);
    assert!(user.run(&PULL).status.success());
    let resumed = mirror.asked().iter().filter_map(|asked| asked.start).next();
    assert_eq!(resumed, Some(100_000));
}

#[test]
fn two_at_once_do_no_harm() {
    let mirror = Mirror::start(content());
    let expected = undisturbed(&mirror);
    mirror.asked();
    let user = User::of(&mirror);
    let children = [(); 2].map(|()| start(&mut user.program(&PULL)));
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    assert!(files(&user.folder()) == expected);
    let n_sent = mirror
        .asked()
        .iter()
        .filter(|asked| asked.server == Server::Store)
        .count();
    assert_eq!(n_sent, 3); // the weights, the SAE, and `tokenizer.model`: once each
}
