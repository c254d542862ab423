//! JSON as it is met: Python's `json` writes `NaN`, `Infinity` and `-Infinity`, which JSON does not
//! have, and editors put a byte-order mark in front.

use std::io::{self, BufRead, Bytes, Read};

/// The mark that some programs begin a text file with.
pub(crate) const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// Python's names of numbers that JSON does not have.
const NO_JSON_NUMBERS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];

/// A JSON text without a byte-order mark and with Python's numbers in quotes: where nobody needs them
/// they do no harm, and where a number is needed the parser names them.
pub fn plain(text: &[u8]) -> Vec<u8> {
    let text = text.strip_prefix(UTF8_BOM).unwrap_or(text);
    let mut read = Vec::with_capacity(text.len());
    let read_all = JsonText::new(text).read_to_end(&mut read);
    read_all.expect("it is in memory");
    read
}

/// The number of values in a JSON text, at most: parsed, one of two bytes takes a hundred in memory.
pub fn n_values(text: &[u8]) -> usize {
    // Each but the first stands behind one of these, which may stand in texts too.
    let is_start = |byte: &&u8| matches!(**byte, b',' | b':' | b'[' | b'{');
    text.iter().filter(is_start).count() + 1
}

/// Hands out a JSON text with [`NO_JSON_NUMBERS`] in quotes: where nobody needs the value it does no
/// harm, and where a number is needed the parser refuses the text by its name.
pub(crate) struct JsonText<R> {
    text: Bytes<R>,
    place: Place,
    /// Letters that may become one of the numbers.
    word: Vec<u8>,
    /// What is to be handed out next, last byte first.
    ready: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    InString,
    /// Behind a backslash.
    Escaped,
}

impl<R: BufRead> JsonText<R> {
    pub(crate) fn new(text: R) -> Self {
        Self {
            text: text.bytes(),
            place: Place::Outside,
            word: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// The next byte, and `None` after the last.
    fn next(&mut self) -> io::Result<Option<u8>> {
        loop {
            if let Some(byte) = self.ready.pop() {
                return Ok(Some(byte));
            }
            let Some(byte) = self.text.next().transpose()? else {
                self.finish_word();
                return Ok(self.ready.pop());
            };
            match (self.place, byte) {
                (Place::Outside, b'N' | b'I' | b'-') if self.word.is_empty() => {
                    self.word.push(byte);
                    continue;
                }
                (Place::Outside, _) if !self.word.is_empty() => {
                    if byte.is_ascii_alphabetic() && self.word.len() < NO_JSON_NUMBERS[2].len() {
                        self.word.push(byte);
                        continue;
                    }
                    self.ready.push(byte);
                    self.finish_word();
                }
                _ => self.ready.push(byte),
            }
            self.place = match (self.place, byte) {
                (Place::Outside, b'"') | (Place::Escaped, _) => Place::InString,
                (Place::InString, b'"') => Place::Outside,
                (Place::InString, b'\\') => Place::Escaped,
                (place, _) => place,
            };
        }
    }

    /// Hands out the word before what is ready.
    fn finish_word(&mut self) {
        let is_number = NO_JSON_NUMBERS.contains(&&self.word[..]);
        let quote = is_number.then_some(b'"');
        self.ready.extend(quote);
        self.ready.extend(self.word.drain(..).rev());
        self.ready.extend(quote);
    }
}

impl<R: BufRead> Read for JsonText<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        for (n_read, place) in bytes.iter_mut().enumerate() {
            match self.next()? {
                Some(byte) => *place = byte,
                None => return Ok(n_read),
            }
        }
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_lacks_become_texts() {
        let check = |text: &str, expected: &str| {
            let mut read = String::new();
            JsonText::new(text.as_bytes())
                .read_to_string(&mut read)
                .expect("in memory");
            assert_eq!(read, expected);
        };
        check("", "");
        check("NaN", r#""NaN""#);
        check(
            "[NaN,-Infinity, Infinity]",
            r#"["NaN","-Infinity", "Infinity"]"#,
        );
        check(r#"{"a": NaN, "NaN": -1}"#, r#"{"a": "NaN", "NaN": -1}"#);
        for text in [
            r#"{"a\"NaN": "\\", "b": "-Infinity \\\" NaN"}"#,
            "[-1.5e-3, true, null]",
            "Nan -inf INFINITY NaNs -- -",
            "InfinityInfinity",
        ] {
            check(text, text);
        }
    }
}
