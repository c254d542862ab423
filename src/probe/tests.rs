//! How children end, with shells in their place; `tests/it/probe.rs` has the real ones.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::{ProbeOptions, SeenFiles, probe};
use crate::{CancelFlag, Result, SessionOptions, demo};

/// Probes the demo with a shell as the child.
fn probe_with(script: &str, change: impl FnOnce(&mut ProbeOptions)) -> Result<()> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let files = demo::files_in(dir.path()).expect("a folder of our own");
    let mut options = ProbeOptions {
        command: ["sh", "-c", script].map(OsString::from).to_vec(),
        seen: Some(SeenFiles::new(dir.path().join("seen"))),
        ..ProbeOptions::default()
    };
    change(&mut options);
    let result = probe(&files, &SessionOptions::default(), &options, &mut |_| {});
    let n_seen = std::fs::read_dir(dir.path().join("seen")).map_or(0, Iterator::count);
    assert_eq!(n_seen, if result.is_ok() { 6 } else { 0 });
    result
}

fn check(script: &str, change: impl FnOnce(&mut ProbeOptions), words: &[&str]) {
    let start = Instant::now();
    let error = probe_with(script, change).expect_err("the child does not pass");
    assert!(start.elapsed() < Duration::from_secs(20), "{script}");
    let text = error.to_string();
    for word in words {
        assert!(
            text.contains(word),
            "`{script}` should say `{word}`: {text}"
        );
    }
    assert!(error.hint().is_some(), "{text}");
}

#[test]
fn deaths() {
    check(
        r#"echo '{"Stage":"RunToken"}'; echo '/a/ggml.c:7: GGML_ASSERT(x) failed' >&2; kill -ABRT $$"#,
        |_| {},
        &[
            "`",
            "demo-model",
            "crashes",
            "running a token",
            "(SIGABRT: ggml.c:7: GGML_ASSERT(x) failed)",
        ],
    );
    check(
        r#"echo '{"Stage":"EncodeImage"}'; kill -SEGV $$"#,
        |_| {},
        &["demo-mmproj", "encoding an image", "(SIGSEGV)"],
    );
    check(
        r#"echo '{"Stage":"ComputeFeatures"}'; exit 101"#,
        |_| {},
        &["demo-sae", "computing features", "exit status: 101"],
    );
    // After it has passed, as when llama.cpp frees what it holds.
    check(
        r#"echo '{"Stage":"RunImage"}'; echo '"Passed"'; kill -ABRT $$"#,
        |_| {},
        &["demo-mmproj", "SIGABRT"],
    );
}

#[test]
fn limits_of_time_and_memory() {
    let at_once =
        |options: &mut ProbeOptions| options.time_limit = Some(Duration::from_millis(200));
    check(
        r#"echo '{"Stage":"LoadModel"}'; exec sleep 60"#,
        at_once,
        &["demo-model", "hangs", "loading the language model"],
    );
    // It has closed its pipes, and does not end.
    check(
        r#"echo '{"Stage":"LoadModel"}'; exec sleep 60 >&- 2>&-"#,
        at_once,
        &["demo-model", "hangs"],
    );
    check(
        r#"echo '{"Stage":"RunToken"}'; exec tail /dev/zero"#,
        |options| options.memory_limit = Some(200 << 20),
        &["demo-model", "0.2 GB of memory", "running a token"],
    );
}

#[test]
fn what_is_no_child() {
    check("exit 0", |_| {}, &["did not begin"]);
    check(
        "echo no such option >&2; exit 2",
        |_| {},
        &["did not begin: no such option"],
    );
    check(
        "",
        |options| options.command = vec!["/no/such/program".into()],
        &["/no/such/program"],
    );
}

#[test]
fn reports_among_other_lines() {
    check(
        r#"echo '{"Stage":"LoadModel"}'; echo '{"Refused":{"kind":"invalid","what":"that is why","hint":"do this"}}'"#,
        |_| {},
        &["that is why"],
    );
    let script = r#"read job; head -c 1000000 /dev/zero >&2; echo loaded; echo '"Passed"'"#;
    let passed = probe_with(script, |_| {});
    // Without a stage nothing was tried.
    assert!(passed.is_err());
    let script = format!(r#"echo '{{"Stage":"LoadModel"}}'; {script}"#);
    probe_with(&script, |_| {}).expect("it passes");
}

#[test]
fn interruptions_end_it() {
    // As Ctrl-C does, which reaches the child too; SIGINT is ignored where tests run in the background.
    let script = r#"echo '{"Stage":"LoadModel"}'; kill -TERM $$; sleep 60"#;
    let result = probe_with(script, |_| {});
    assert!(
        matches!(&result, Err(error) if error.is_interrupted()),
        "{result:?}"
    );
    let dir = tempfile::tempdir().expect("a temporary folder");
    let files = demo::files_in(dir.path()).expect("a folder of our own");
    let cancel = CancelFlag::default();
    let session = SessionOptions::default();
    let pid_file = dir.path().join("pid");
    let script = format!("echo $$ > '{}'; exec sleep 60", pid_file.display());
    let options = ProbeOptions {
        command: ["sh", "-c", &script].map(OsString::from).to_vec(),
        seen: None,
        cancel: cancel.clone(),
        ..ProbeOptions::default()
    };
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')) {
                std::thread::sleep(Duration::from_millis(5));
            }
            cancel.cancel();
        });
        probe(&files, &session, &options, &mut |_| {})
    });
    assert!(
        matches!(&result, Err(error) if error.is_interrupted()),
        "{result:?}"
    );
    let pid = std::fs::read_to_string(&pid_file).expect("the child wrote it");
    let pid = sysinfo::Pid::from_u32(pid.trim().parse().expect("a number"));
    let mut system = sysinfo::System::new();
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[pid]), true);
    assert!(
        system.process(pid).is_none(),
        "neither it nor a zombie is left"
    );
}
