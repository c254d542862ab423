//! The workspace's error, and how llama.cpp's failures become one.

pub use gguf_tools::{Error, ErrorKind, Result};

/// The error of a C function that failed; `reason` is its code, or the last thing that llama.cpp said.
pub(crate) fn runtime(function: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Runtime, format!("{function} failed: {reason}"))
        .with_hint("llama.cpp's messages, which go to the log, may say more")
}
