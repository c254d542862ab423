//! The one error of this crate: what failed, why, and what to do about it.

use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What failed and why; [`Error::hint`] says what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// A verb that completes "cannot …".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The input is malformed, does not fit, or is not supported.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with the path and the key or tensor.
        what: String,
        /// The way out, where there is one.
        hint: Option<String>,
    },
    /// The caller's progress callback asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::Invalid`] without a hint.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid {
            what: what.into(),
            hint: None,
        }
    }

    /// The same error with a hint; an error that is not [`Error::Invalid`] stays as it is.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Invalid { what, .. } => Self::Invalid {
                what,
                hint: Some(hint.into()),
            },
            other => other,
        }
    }

    /// Makes an [`Error::Io`] of a system error, for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// What to do about it, where something can be done.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Invalid { hint, .. } => hint.as_deref(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull => {
                    Some("free some space on that disk and run it again")
                }
                std::io::ErrorKind::PermissionDenied => Some("check the permissions of that path"),
                _ => None,
            },
            Self::Interrupted => None,
        }
    }
}
