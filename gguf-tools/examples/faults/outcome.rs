//! One run of the program, and what is to be said of it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{FILE, Result, Role};

/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// With an answer, without what does not count.
    Answer(Value),
    /// With an error.
    Refused,
    /// In another way, which must not be.
    Bad(String),
}

/// Runs the program with `file` in its place.
pub(crate) fn run(program: &Path, role: &Role, file: &Path, dir: &Path) -> Result<Outcome> {
    let output_path = file.with_extension("out");
    let output = std::fs::File::create(&output_path)?;
    let file_text = file.to_str().ok_or("the path is not UTF-8")?;
    let mut child = Command::new(program)
        .args(
            role.args
                .iter()
                .map(|arg| if arg == FILE { file_text } else { arg }),
        )
        .env("OMP_NUM_THREADS", "1")
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(Outcome::Bad("hang".to_owned()));
        }
        thread::sleep(Duration::from_millis(5));
    };
    Ok(match status.code() {
        Some(0) => match serde_json::from_slice(&std::fs::read(&output_path)?) {
            Ok(answer) => Outcome::Answer(without_names(answer)),
            Err(_) => Outcome::Bad("no JSON".to_owned()),
        },
        Some(1 | 2) => Outcome::Refused,
        Some(code) => Outcome::Bad(format!("exit {code}")),
        None => Outcome::Bad(status.to_string()),
    })
}

impl Outcome {
    /// In one word, for a role whose unchanged file gives `expected`.
    pub(crate) fn verdict(self, role: &Role, expected: &Value) -> String {
        match self {
            Self::Refused => "refused".to_owned(),
            Self::Answer(answer) if answer == *expected => "same".to_owned(),
            // Other weights are another model; features that change without a word are a wrong answer.
            Self::Answer(_) if role.is_sae => "BAD: other features".to_owned(),
            Self::Answer(_) => "other".to_owned(),
            Self::Bad(what) => format!("BAD: {what}"),
        }
    }
}

/// The answer without paths, labels and timings.
fn without_names(mut answer: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(object) => {
                for key in ["label", "labels", "model", "sae", "mmproj", "timings"] {
                    object.remove(key);
                }
                object.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => (),
        }
    }
    strip(&mut answer);
    answer
}
