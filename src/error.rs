//! The one error of this library: what failed, why, and what to do about it.

/// The result of everything in this library that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What failed and why; [`Error::hint`] says what to do about it, where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is malformed, does not fit, or is not supported.
    #[error("{what}")]
    Invalid {
        /// What is wrong, with the path and the key, tensor or argument.
        what: String,
        /// The way out, where there is one.
        hint: Option<String>,
    },
    /// A file could not be read, written or understood.
    #[error(transparent)]
    File(#[from] gguf_tools::Error),
    /// llama.cpp refused.
    #[error("{function} failed: {reason}")]
    Llama {
        /// The C function.
        function: &'static str,
        /// Its code, or the last thing that llama.cpp said.
        reason: String,
    },
    /// The user asked to stop.
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

    /// The same error with a hint; only [`Error::Invalid`] carries one of its own.
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

    /// What to do about it, where something can be done.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Invalid { hint, .. } => hint.as_deref(),
            Self::File(error) => error.hint(),
            Self::Llama { .. } => Some("run it again with `-v` to see what llama.cpp says"),
            Self::Interrupted => None,
        }
    }

    /// Whether what was read is at fault, so that another input may do.
    pub fn is_of_input(&self) -> bool {
        matches!(self, Self::Invalid { .. } | Self::File(_)) && !self.is_interrupted()
    }

    /// Whether the user asked to stop, here or in the conversion.
    pub fn is_interrupted(&self) -> bool {
        matches!(
            self,
            Self::Interrupted | Self::File(gguf_tools::Error::Interrupted)
        )
    }
}
