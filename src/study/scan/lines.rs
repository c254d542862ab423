//! Lines of bounded length, and the paths in them.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;

use crate::{Error, Result};

/// What was read of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// All of it, without what ends it.
    Whole,
    /// Its beginning; the rest was passed over.
    TooLong,
    /// There is no more.
    End,
}

/// Reads the next line into `line`, of `max_bytes` at most; the last need not end with `separator`.
///
/// # Errors
/// Those of `reader`.
pub(super) fn next_line(
    reader: &mut dyn BufRead,
    separator: u8,
    max_bytes: usize,
    line: &mut Vec<u8>,
) -> io::Result<Line> {
    line.clear();
    let limited = &mut Read::take(&mut *reader, max_bytes as u64 + 1);
    let n_read = limited.read_until(separator, line)?;
    if n_read == 0 {
        return Ok(Line::End);
    }
    if line.pop_if(|last| *last == separator).is_some() || n_read <= max_bytes {
        return Ok(Line::Whole);
    }
    reader.skip_until(separator)?;
    Ok(Line::TooLong)
}

/// The path that a line is.
///
/// # Errors
/// Where paths are text, one that is none.
pub(super) fn path_of(line: &[u8]) -> Result<PathBuf> {
    #[cfg(unix)]
    let path = Some(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(line));
    #[cfg(not(unix))]
    let path = std::str::from_utf8(line).ok();
    path.map(PathBuf::from)
        .ok_or_else(|| Error::invalid("the path is not UTF-8"))
}

/// What is wrong with a line of JSON, without its place in that line, which is the first.
pub(super) fn json_reason(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    match reason.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_bounded_length() {
        let mut reader = &b"abc\n\nabcd\nabcdefgh\nab\0c\nabc"[..];
        let (mut line, mut lines) = (Vec::new(), Vec::new());
        loop {
            match next_line(&mut reader, b'\n', 4, &mut line).expect("in memory") {
                Line::Whole => lines.push(String::from_utf8(line.clone()).expect("text")),
                Line::TooLong => lines.push("too long".to_owned()),
                Line::End => break,
            }
        }
        assert_eq!(lines, ["abc", "", "abcd", "too long", "ab\0c", "abc"]);
    }
}
