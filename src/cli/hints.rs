//! What to do about an error, in the command line's words: the library knows no options.

use llava_sae_cpp::{Error, ErrorKind};

/// The hint of an error, with the options that it is about.
pub(super) fn hint(error: &Error) -> Option<String> {
    let options = match error.kind() {
        ErrorKind::Missing => {
            "`--model`, `--mmproj`, `--sae`, or `-d` for a folder that `convert` or `pull` wrote"
        }
        ErrorKind::NoProjector => "`--mmproj`",
        ErrorKind::ChatTemplate => "`--raw-prompt`, `--chat-template`",
        ErrorKind::ContextTooSmall => "`--ctx-size`",
        ErrorKind::OutOfMemory => "`--ctx-size`, `--kv-type q8_0`, `-n`",
        ErrorKind::KvType => "`--kv-type f16`, `-fa on`",
        ErrorKind::NoPosition => "`--over`, `--at`",
        ErrorKind::Exists => "`--force`",
        ErrorKind::HookPointMissing => "`--hook-name`",
        ErrorKind::NoLabels => "`convert --labels`",
        ErrorKind::NoBaseline => "`llava-sae-cpp baseline`, `--units raw`",
        ErrorKind::NormFactorMissing => "`--norm-factor`",
        #[cfg(feature = "pull")]
        ErrorKind::Offline => "without `--offline` and `HF_HUB_OFFLINE`",
        ErrorKind::NoProbe => "`--no-probe`",
        ErrorKind::Runtime => "`-v`",
        _ => return error.hint().map(str::to_owned),
    };
    Some(match error.hint() {
        Some(hint) => format!("{hint} ({options})"),
        None => format!("see {options}"),
    })
}

/// An error as clap shows it.
pub(super) fn with_hint(error: Error) -> String {
    match hint(&error) {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    }
}
