//! A trial of model files in a process of its own, before this process loads them.
//!
//! llama.cpp aborts, crashes or hangs on files whose headers look right and whose contents are not.
//! Headers are checked first ([`ModelFiles::check`]); this is the second line of defence. Files that
//! this machine has not seen are loaded and run for a token and an image in a child process of limited
//! time and memory, and what kills it becomes an error. Files that were seen are known by their
//! fingerprints and start no child ([`SeenFiles`]).
//!
//! The child is any program that calls [`child_main`] first of all: this one does, and so can yours.
//!
//! ```no_run
//! use llava_sae_cpp::probe::{self, ProbeOptions, probe};
//! use llava_sae_cpp::{ModelFiles, Session, SessionOptions};
//!
//! fn main() -> std::process::ExitCode {
//!     // None, unless this process is a probe's child.
//!     if let Some(code) = probe::child_main() {
//!         return code;
//!     }
//!     match open("llava-gemma-2b".as_ref()) {
//!         Ok(_session) => std::process::ExitCode::SUCCESS,
//!         Err(_) => std::process::ExitCode::FAILURE,
//!     }
//! }
//!
//! fn open(dir: &std::path::Path) -> llava_sae_cpp::Result<Session> {
//!     let files = ModelFiles::find(Some(dir), None, None, Vec::new())?;
//!     let options = SessionOptions::default();
//!     probe(&files, &options, &ProbeOptions::default(), &mut |_| {})?;
//!     Session::open(&files, options)
//! }
//! ```

mod child;
mod seen;
mod stage;
#[cfg(all(test, unix))]
mod tests;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use gguf_tools::gguf::Gguf;

pub use child::child_main;
pub use seen::SeenFiles;

use crate::model::files::ModelFiles;
use crate::{CancelFlag, Error, ErrorKind, Result, SessionOptions};
use child::{CHILD_VARIABLE, Job};
use seen::Markers;
use stage::DAMAGED;
use watch::{Ending, Limits, Outcome};

const WITHOUT: &str = "the files can be loaded without a trial";

/// How files are tried.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// The command line of a program that calls [`child_main`] first of all, such as
    /// `["llava-sae-cpp"]`; empty means what [`set_child_command`] said, or else this process's own executable.
    pub command: Vec<OsString>,
    /// Where it is noted which files were seen; without it, every call starts a child.
    pub seen: Option<SeenFiles>,
    /// Stops it from elsewhere.
    pub cancel: CancelFlag,
    /// The child's time, instead of one derived from the files' sizes.
    pub time_limit: Option<Duration>,
    /// The child's resident memory in bytes, instead of one derived from the files' sizes.
    pub memory_limit: Option<u64>,
}

impl Default for ProbeOptions {
    /// This executable, the user's cache folder, and limits by the files' sizes.
    fn default() -> Self {
        Self {
            command: Vec::new(),
            seen: SeenFiles::of_user(),
            cancel: CancelFlag::default(),
            time_limit: None,
            memory_limit: None,
        }
    }
}

static CHILD_COMMAND: OnceLock<Vec<OsString>> = OnceLock::new();

/// Says what becomes a child where this process's own executable does not, such as an interpreter that has loaded this
/// library: the command line of a program that calls [`child_main`] first of all. The first call counts.
pub fn set_child_command(command: Vec<OsString>) {
    let _ = CHILD_COMMAND.set(command);
}

/// A file that has to be tried, and what is noted when it has been.
struct Unseen<'a> {
    file: &'a Path,
    markers: Markers,
}

/// Tries the files that were not seen yet in a child process, as a session with the options `session`
/// would load and run them, and notes that they were seen. `on_start` gets them before the child
/// starts; where all were seen, nothing happens. `options.cancel` stops it.
///
/// A file that was seen with one KV cache, say, is not tried again with another.
///
/// # Errors
/// What [`ModelFiles::check`] refuses; files that kill the child, take too much time or memory, or give
/// what is not a number, with llama.cpp's last words; what makes a session fail; an interruption; a
/// child that cannot be started.
pub fn probe(
    files: &ModelFiles,
    session: &SessionOptions,
    options: &ProbeOptions,
    on_start: &mut dyn FnMut(&[&Path]),
) -> Result<()> {
    let unseen = unseen(files, options.seen.as_ref());
    if unseen.is_empty() {
        return Ok(());
    }
    files.check()?;
    let (program, args) = child_command(options)?;
    let unseen_files: Vec<_> = unseen.iter().map(|unseen| unseen.file).collect();
    on_start(&unseen_files);
    // It takes the language model, too, to run a projector: where both were seen, neither need run.
    let runs_images = unseen_files
        .iter()
        .any(|&file| !files.saes.iter().any(|sae| sae == file));
    let limits = limits(files, options)?;
    let mut command = Command::new(&program);
    command
        .args(args)
        .env(CHILD_VARIABLE, "1")
        // Else ggml starts a debugger that attaches itself to the process that aborts.
        .env("GGML_NO_BACKTRACE", "1")
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let job = Job::new(files, session, runs_images);
    let outcome = watch::run(&mut command, &job, limits, &options.cancel).map_err(|error| {
        let program = Path::new(&program).display();
        let what = format!("cannot start `{program}` for a trial of the model's files: {error}");
        Error::new(ErrorKind::NoProbe, what).with_hint(WITHOUT)
    })?;
    judge(outcome, files, limits)?;
    let noted = options.seen.iter().try_for_each(|seen| {
        let mut unseen = unseen.iter();
        unseen.try_for_each(|Unseen { file, markers }| seen.note(file, markers))
    });
    if let Err(error) = noted {
        log::warn!("the model's files will be tried again next time: {error}");
    }
    Ok(())
}

/// The files without a marker, in the order of their roles.
fn unseen<'a>(files: &'a ModelFiles, seen: Option<&SeenFiles>) -> Vec<Unseen<'a>> {
    let unseen = |file| {
        let markers = match seen {
            Some(seen) => seen.missing(file)?,
            None => Markers::default(),
        };
        Some(Unseen { file, markers })
    };
    files.paths().filter_map(unseen).collect()
}

/// The program that becomes the child, and its arguments.
fn child_command(options: &ProbeOptions) -> Result<(OsString, &[OsString])> {
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        return Err(Error::invalid(
            "this program was started for a trial of a model's files, and did not call `probe::child_main`",
        ));
    }
    let known = CHILD_COMMAND.get().into_iter();
    for command in std::iter::once(&options.command).chain(known) {
        if let [program, args @ ..] = &command[..] {
            return Ok((program.clone(), args));
        }
    }
    let own = std::env::current_exe().map_err(|error| {
        let what = format!("cannot find this program's own file: {error}");
        Error::new(ErrorKind::NoProbe, what).with_hint(WITHOUT)
    })?;
    Ok((own.into(), &[]))
}

/// What a child may take. Slow disks read 10 MB a second, and slow processors run what they have read in
/// as much time again; 12 s are for a program to start on a machine that is busy.
fn limits(files: &ModelFiles, options: &ProbeOptions) -> Result<Limits> {
    const BYTES_PER_SECOND: u64 = 10_000_000;
    const START: Duration = Duration::from_secs(12);
    // Drivers compile shaders the first time.
    const DEVICE_START: Duration =
        match cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan")) {
            true => Duration::from_secs(60),
            false => Duration::ZERO,
        };
    /// What llama.cpp and a device's driver take besides.
    const MEMORY: u64 = 2 << 30;
    let mut n_bytes = 0;
    for file in files.paths() {
        for shard in Gguf::open_with_shards(file)?.paths() {
            let metadata = std::fs::metadata(shard).map_err(Error::io("read", shard))?;
            n_bytes += metadata.len();
        }
    }
    let time = START + DEVICE_START + Duration::from_secs(n_bytes / BYTES_PER_SECOND);
    Ok(Limits {
        time: options.time_limit.unwrap_or(time),
        // A mapped file, and a copy of it that is repacked.
        memory: options.memory_limit.unwrap_or(2 * n_bytes + MEMORY),
    })
}

/// What a child's end says of the files.
fn judge(outcome: Outcome, files: &ModelFiles, limits: Limits) -> Result<()> {
    let Outcome {
        ending,
        stage,
        last_words,
    } = outcome;
    let said = match &*last_words {
        "" => String::new(),
        words => format!(": {words}"),
    };
    let Some(stage) = stage else {
        return match ending {
            Ending::Interrupted => Err(Error::interrupted()),
            _ => {
                let what = format!("the trial of the model's files did not begin{said}");
                Err(Error::new(ErrorKind::NoProbe, what).with_hint(WITHOUT))
            }
        };
    };
    let (culprit, doing) = (stage.file(files).display(), stage.doing());
    let what = match ending {
        Ending::Passed => return Ok(()),
        Ending::Interrupted => return Err(Error::interrupted()),
        Ending::Refused(error) => return Err(error),
        Ending::Died(status) => {
            let status = watch::name_of(status);
            format!("`{culprit}` crashes llama.cpp while {doing} ({status}{said})")
        }
        Ending::TooLong => {
            let seconds = limits.time.as_secs_f64();
            format!("`{culprit}` hangs llama.cpp: {doing} was not done after {seconds:.0} s")
        }
        Ending::TooLarge => {
            let gigabytes = limits.memory as f64 / 1e9;
            format!("`{culprit}` takes more than {gigabytes:.1} GB of memory while {doing}")
        }
    };
    Err(Error::new(ErrorKind::Damaged, what).with_hint(DAMAGED))
}
