//! A child process, from its start to its end or to its limits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::child::Job;
use super::stage::{Report, Stage};
use crate::{CancelFlag, Error};

/// How often limits are looked at.
const POLL: Duration = Duration::from_millis(10);
/// What is kept of a child's stderr.
const STDERR_BYTES: usize = 1 << 16;
const MAX_WORDS: usize = 300;

/// What a child may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) time: Duration,
    /// Resident, in bytes.
    pub(super) memory: u64,
}

/// How a child ended, and how far it came.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) ending: Ending,
    pub(super) stage: Option<Stage>,
    /// What explains its death best of what it wrote to stderr.
    pub(super) last_words: String,
}

/// How a child ended.
#[derive(Debug)]
pub(super) enum Ending {
    Passed,
    Refused(Error),
    Died(ExitStatus),
    TooLong,
    TooLarge,
    Interrupted,
}

/// A child that is killed when it is dropped, and sees the end of its stdin should this process be
/// killed.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail where it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the child, hands it its job, and waits for its end.
pub(super) fn run(
    command: &mut Command,
    job: &Job,
    limits: Limits,
    cancel: &CancelFlag,
) -> io::Result<Outcome> {
    let mut child = Guard(command.spawn()?);
    let deadline = Instant::now() + limits.time;
    let mut stdin = child.0.stdin.take().expect("it is piped");
    let reports = reports(child.0.stdout.take().expect("it is piped"));
    let words = words(child.0.stderr.take().expect("it is piped"));
    let job = serde_json::to_string(job).map_err(io::Error::other)?;
    // A child that has ended cannot read it; its end says why.
    let _ = writeln!(stdin, "{job}");
    let mut memory = ResidentMemory::new(child.0.id());
    let (mut stage, mut verdict) = (None, None);
    let ending = loop {
        match reports.recv_timeout(POLL) {
            Ok(Report::Stage(begun)) => stage = Some(begun),
            Ok(Report::Passed) => verdict = Some(Ending::Passed),
            Ok(Report::Refused(error)) => verdict = Some(Ending::Refused(error)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if let Some(status) = child.0.try_wait()? {
                    break match verdict {
                        Some(verdict) if status.success() => verdict,
                        _ => Ending::Died(status),
                    };
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if cancel.is_cancelled() {
            break Ending::Interrupted;
        }
        if Instant::now() > deadline {
            break Ending::TooLong;
        }
        if memory.bytes() > limits.memory {
            break Ending::TooLarge;
        }
    };
    drop(child);
    let ending = match ending {
        // Ctrl-C goes to both processes, and may reach the child first.
        Ending::Died(status) if matches!(&*name_of(status), "SIGINT" | "SIGTERM" | "SIGHUP") => {
            Ending::Interrupted
        }
        other => other,
    };
    // The pipe stays open where something that the child started lives on.
    let stderr = words
        .recv_timeout(Duration::from_secs(1))
        .unwrap_or_default();
    if !matches!(ending, Ending::Passed) {
        for line in stderr.lines() {
            log::debug!(target: "probe", "{}", shown(line));
        }
    }
    Ok(Outcome {
        ending,
        stage,
        last_words: last_words(&stderr),
    })
}

/// What a child reports; other lines on its stdout are llama.cpp's.
fn reports(stdout: ChildStdout) -> Receiver<Report> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
        let mut reports = lines.filter_map(|line| serde_json::from_slice(&line).ok());
        reports.try_for_each(|report| sender.send(report))
    });
    receiver
}

/// The end of what a child writes to stderr, when it has been read.
fn words(mut stderr: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut end = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n_read @ 1..) = stderr.read(&mut buffer) {
            end.extend_from_slice(&buffer[..n_read]);
            let n_too_many = end.len().saturating_sub(STDERR_BYTES);
            end.drain(..n_too_many);
        }
        // Nobody may wait for it any more.
        let _ = sender.send(String::from_utf8_lossy(&end).into_owned());
    });
    receiver
}

/// The line that explains a child's death: an assertion or an exception's text, else the last one.
fn last_words(stderr: &str) -> String {
    let lines = || stderr.lines().rev().filter(|line| !line.trim().is_empty());
    let explains = |line: &&str| line.contains("GGML_") || line.contains("what(): ");
    let line = lines().find(explains);
    let line = line.or_else(|| lines().find(|line| !line.starts_with("note: ")));
    let line = line.unwrap_or_default();
    // llama.cpp begins with the path of its source where it was compiled.
    let line = match line.split_once(": GGML_") {
        Some((place, _)) => &line[place.rfind(['/', '\\']).map_or(0, |slash| slash + 1)..],
        None => line.trim(),
    };
    shown(line)
}

/// Text that a file may have got into, in one line of bounded length.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(MAX_WORDS).map(plain).collect()
}

/// The name of the signal that ended a process, else its exit code.
pub(super) fn name_of(status: ExitStatus) -> String {
    let text = status.to_string();
    let mut parts = text.split(['(', ')']);
    let signal = parts.find(|part| part.starts_with("SIG"));
    signal.unwrap_or(&text).to_owned()
}

/// The memory of a process, as the system counts it.
struct ResidentMemory {
    system: System,
    pid: Pid,
}

impl ResidentMemory {
    fn new(pid: u32) -> Self {
        Self {
            system: System::new(),
            pid: Pid::from_u32(pid),
        }
    }

    fn bytes(&mut self) -> u64 {
        let process = ProcessesToUpdate::Some(&[self.pid]);
        let kind = ProcessRefreshKind::nothing().with_memory();
        self.system.refresh_processes_specifics(process, true, kind);
        let process = self.system.process(self.pid);
        process.map_or(0, sysinfo::Process::memory)
    }
}

#[cfg(test)]
mod tests {
    use super::last_words;

    #[test]
    fn words_that_explain() {
        let check = |stderr: &str, expected: &str| assert_eq!(last_words(stderr), expected);
        check("", "");
        check(
            "loading\n/build/ggml/src/ggml.c:12: GGML_ASSERT(a / b == c) failed\n\n",
            "ggml.c:12: GGML_ASSERT(a / b == c) failed",
        );
        check(
            "terminate called after throwing an instance of 'std::out_of_range'\n  what():  map::at\n",
            "what():  map::at",
        );
        check(
            "thread 'main' panicked at src/x.rs:1:2:\nno token\nnote: run with `RUST_BACKTRACE=1`\n",
            "no token",
        );
        check("an \u{1b}[31mescape\n", "an \u{fffd}[31mescape");
    }
}
