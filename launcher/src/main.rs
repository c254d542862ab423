//! The `llava-sae-cpp` of a release archive: chooses the build that this processor can run, and becomes it. It is
//! compiled for any x86-64, and the builds are in `builds/NAME/` beside it.

#![forbid(unsafe_code)]

use std::env::{self, VarError};
use std::process::ExitCode;

/// The builds, best first; the Python package reads the same file.
const PROCESSORS: &str = include_str!("../processors.txt");

/// A name in place of the best build.
const VARIABLE: &str = "LLAVA_SAE_PROCESSOR";

/// A build, and what a processor must have for it.
struct Build<'a> {
    name: &'a str,
    features: Vec<&'a str>,
}

fn builds(table: &str) -> Vec<Build<'_>> {
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let builds = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let features = words.collect();
        Some(Build { name, features })
    });
    builds.collect()
}

impl Build<'_> {
    /// What a processor with these features lacks for it.
    fn lacks(&self, has: impl Fn(&str) -> bool) -> Vec<&str> {
        let features = self.features.iter().copied();
        features.filter(|feature| !has(feature)).collect()
    }
}

/// The build that is asked for, or the best one that runs.
fn choose<'a>(
    builds: &'a [Build<'a>],
    asked: Option<&str>,
    has: impl Fn(&str) -> bool,
) -> Result<&'a str, String> {
    if let Some(asked) = asked {
        let Some(build) = builds.iter().find(|build| build.name == asked) else {
            let names: Vec<_> = builds.iter().map(|build| build.name).collect();
            let names = names.join("`, `");
            return Err(format!(
                "error: there is no build `{asked}`, which `{VARIABLE}` names\nhint: there are `{names}`"
            ));
        };
        let lacking = build.lacks(&has).join(", ");
        return match lacking.is_empty() {
            true => Ok(build.name),
            false => Err(format!(
                "error: this processor cannot run the build `{asked}`, which `{VARIABLE}` names: it lacks {lacking}\n\
                 hint: without `{VARIABLE}`, the best one that it can run is chosen"
            )),
        };
    }
    let found = builds.iter().find(|build| build.lacks(&has).is_empty());
    found.map(|build| build.name).ok_or_else(|| {
        let least = builds.last().expect("the table has builds");
        let lacking = least.lacks(&has).join(", ");
        format!(
            "error: this processor is too old for this package: it lacks {lacking}\n\
             hint: `cargo install llava-sae-cpp --locked` compiles a slower program that runs on any x86-64"
        )
    })
}

/// Whether this processor has a feature, and its system keeps the registers that it needs.
#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    macro_rules! detected {
        ($($name:tt)*) => {
            match feature {
                $($name => is_x86_feature_detected!($name),)*
                _ => unreachable!("the table names features of this list, which a test sees to"),
            }
        };
    }
    detected!("popcnt" "avx2" "fma" "bmi2" "f16c" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512vnni")
}
#[cfg(not(target_arch = "x86_64"))]
fn has(_: &str) -> bool {
    false
}

/// The program becomes the build `name`; returns why it could not.
#[cfg(unix)]
fn become_build(name: &str) -> String {
    use std::os::unix::process::CommandExt;

    let here = match env::current_exe() {
        Ok(here) => here,
        Err(error) => return format!("error: cannot find this program's folder: {error}"),
    };
    let folder = here.parent().unwrap_or(&here);
    let program = folder.join("builds").join(name).join("llava-sae-cpp");
    let mut arguments = env::args_os();
    let mut command = std::process::Command::new(&program);
    if let Some(called) = arguments.next() {
        command.arg0(called);
    }
    let error = command.args(arguments).exec();
    format!(
        "error: cannot start `{}`: {error}\nhint: unpack the whole archive, and link to this program instead of \
         moving it",
        program.display()
    )
}
#[cfg(not(unix))]
fn become_build(_: &str) -> String {
    "error: this program starts builds for Linux".to_owned()
}

fn main() -> ExitCode {
    let asked = match env::var(VARIABLE) {
        Ok(asked) => Some(asked),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(asked)) => Some(asked.to_string_lossy().into_owned()),
    };
    let asked = asked.as_deref().filter(|asked| !asked.is_empty());
    let failure = match choose(&builds(PROCESSORS), asked, has) {
        Ok(name) => become_build(name),
        Err(failure) => failure,
    };
    eprintln!("{failure}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::{PROCESSORS, builds, choose, has};

    const TABLE: &str = "# comment\nfast avx2 avx512f\nslow avx2\n";

    #[track_caller]
    fn check(asked: Option<&str>, features: &[&str], expected: Result<&str, &str>) {
        let builds = builds(TABLE);
        let chosen = choose(&builds, asked, |feature| features.contains(&feature));
        match (chosen, expected) {
            (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
            (chosen, expected) => assert_eq!(chosen.ok(), expected.ok()),
        }
    }

    #[test]
    fn the_best_build_that_runs_is_chosen() {
        check(None, &["avx2", "avx512f"], Ok("fast"));
        check(None, &["avx2"], Ok("slow"));
        check(
            None,
            &["avx512f"],
            Err("too old for this package: it lacks avx2"),
        );
    }

    #[test]
    fn a_build_that_is_asked_for_is_taken_if_it_runs() {
        check(Some("slow"), &["avx2", "avx512f"], Ok("slow"));
        check(Some("fast"), &["avx2"], Err("it lacks avx512f"));
        check(Some("other"), &["avx2"], Err("there are `fast`, `slow`"));
    }

    #[test]
    fn the_table_names_features_that_can_be_told() {
        let builds = builds(PROCESSORS);
        assert_eq!(builds.last().map(|build| build.name), Some("avx2"));
        for feature in builds.iter().flat_map(|build| &build.features) {
            has(feature);
        }
    }
}
