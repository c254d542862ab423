//! The one error of the workspace: what failed and why, of which kind it is, and what to do about it.
//!
//! Sentences here name no option of a command line: a front end adds its own words by the kind
//! ([`ErrorKind`]).

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What failed and why; [`Error::kind`] says which kind of failure it is, and [`Error::hint`] what to do
/// about it, where something can be done.
///
/// As JSON, it loses what the operating system said beyond the sentence.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    hint: Option<String>,
    #[serde(skip)]
    source: Option<io::Error>,
}

/// Declares the kinds with what front ends make of them, so that no kind is without.
macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = ($code:literal, $name:literal, $status:literal, $exception:literal),)+) => {
        /// The kinds of failures, each with the name, the number, the HTTP status and the Python exception
        /// that it becomes.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorKind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl ErrorKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// Its name in JSON.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// Its number in a C interface, which never changes; 0 means that nothing failed.
            pub fn code(self) -> i32 {
                match self { $(Self::$kind => $code,)+ }
            }

            /// The HTTP status of an answer.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$kind => $status,)+ }
            }

            /// The built-in Python exception that it is.
            pub fn python_exception(self) -> &'static str {
                match self { $(Self::$kind => $exception,)+ }
            }
        }
    };
}

kinds! {
    /// An argument or a file is malformed, out of range, or does not fit.
    Invalid = (1, "invalid", 400, "ValueError"),
    /// No feature has this index or label.
    UnknownFeature = (2, "unknown_feature", 404, "KeyError"),
    /// A label is part of several features' labels.
    AmbiguousFeature = (3, "ambiguous_feature", 400, "KeyError"),
    /// Something valid in itself that this program, or this model, cannot do.
    Unsupported = (4, "unsupported", 501, "NotImplementedError"),
    /// A file's contents are not what was written.
    Damaged = (5, "damaged", 422, "ValueError"),
    /// A file or a setting that is needed was not given.
    Missing = (6, "missing", 400, "ValueError"),
    /// The model has no projector, and was given a picture.
    NoProjector = (7, "no_projector", 400, "ValueError"),
    /// The model has no chat template, or the prompt does not go with one.
    ChatTemplate = (8, "chat_template", 400, "ValueError"),
    /// More tokens than the context holds.
    ContextTooSmall = (9, "context_length_exceeded", 400, "ValueError"),
    /// More memory than is free.
    OutOfMemory = (10, "out_of_memory", 503, "MemoryError"),
    /// The file to be written exists.
    Exists = (11, "exists", 409, "FileExistsError"),
    /// An SAE whose hook point is not known.
    HookPointMissing = (12, "hook_point_missing", 400, "ValueError"),
    /// An SAE whose norm factor is not known.
    NormFactorMissing = (13, "norm_factor_missing", 400, "ValueError"),
    /// The KV cache's number type does not go with another setting, or with a hook point.
    KvType = (18, "kv_type", 400, "ValueError"),
    /// There is no position of the kind that was asked for.
    NoPosition = (19, "no_position", 400, "ValueError"),
    /// A search by label, and no SAE has labels.
    NoLabels = (20, "no_labels", 400, "ValueError"),
    /// A question about what features usually do, and the SAE's file does not say it.
    NoBaseline = (21, "no_baseline", 400, "ValueError"),
    /// The files cannot be tried in a process of their own.
    NoProbe = (17, "no_probe", 500, "RuntimeError"),
    /// Nothing has that name or address where models are published.
    NotPublished = (40, "not_published", 404, "FileNotFoundError"),
    /// What is published is not for everybody: terms have to be accepted, or a token is missing or refused.
    AccessDenied = (41, "access_denied", 403, "PermissionError"),
    /// A server cannot be reached, or does not answer as it should.
    Network = (42, "network", 502, "ConnectionError"),
    /// A server wants to be asked less often.
    RateLimited = (43, "rate_limited", 503, "ConnectionError"),
    /// Something has to be downloaded, and no downloads are wanted.
    Offline = (44, "offline", 503, "ConnectionError"),
    /// A disk has too little free space.
    DiskFull = (45, "disk_full", 507, "OSError"),
    /// The operating system refused a file operation.
    Io = (14, "io", 500, "OSError"),
    /// llama.cpp or ggml refused.
    Runtime = (15, "runtime", 500, "RuntimeError"),
    /// The caller, or the user, asked to stop.
    Interrupted = (16, "interrupted", 499, "KeyboardInterrupt"),
}

impl Error {
    /// An error of this kind, without a hint.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            hint: None,
            source: None,
        }
    }

    /// An error of the kind [`ErrorKind::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    /// The error of what was asked to stop.
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted")
    }

    /// Turns a system's error into one of ours, for `map_err`; `action` completes "cannot …".
    pub fn io(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let hint = match source.kind() {
                io::ErrorKind::StorageFull => Some("free some space on that disk and run it again"),
                io::ErrorKind::PermissionDenied => Some("check the permissions of that path"),
                _ => None,
            };
            let kind = match source.kind() {
                io::ErrorKind::StorageFull => ErrorKind::DiskFull,
                _ => ErrorKind::Io,
            };
            Self {
                kind,
                what: format!("cannot {action} `{}`: {source}", path.display()),
                hint: hint.map(str::to_owned),
                source: Some(source),
            }
        }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The same error of another kind.
    #[must_use]
    pub fn of_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// The same error with another sentence, such as this one with more around it.
    #[must_use]
    pub fn with_message(self, what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            ..self
        }
    }

    /// Which kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it, where something can be done.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether what was read is at fault, so that another input may do.
    pub fn is_of_input(&self) -> bool {
        !matches!(self.kind, ErrorKind::Runtime | ErrorKind::Interrupted)
    }

    /// Whether it was asked to stop.
    pub fn is_interrupted(&self) -> bool {
        self.kind == ErrorKind::Interrupted
    }

    /// What the operating system said, where it refused.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.source.as_ref().map(io::Error::kind)
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorKind;

    #[test]
    fn kinds_are_told_apart() {
        for (i, kind) in ErrorKind::ALL.iter().enumerate() {
            assert!(kind.code() > 0 && (400..600).contains(&kind.http_status()));
            for other in &ErrorKind::ALL[..i] {
                assert_ne!(kind.code(), other.code());
                assert_ne!(kind.name(), other.name());
            }
        }
    }
}
