//! What llama.cpp's tokenizer is not to be given, and where a long text may be cut for it.
//!
//! A character without a token ends in an exception (SentencePiece) or is left out without a word
//! (byte-level BPE), so it is found before. A long text cannot be interrupted, and a SentencePiece
//! vocabulary takes a time that grows with the square of what becomes single bytes (the `reserve` in
//! `llm_tokenizer_spm_session::resegment`), so it is cut where the ids stay the same.

use std::collections::HashSet;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use crate::{Error, Result};

/// A part's length, in bytes, at least.
const PART: usize = 4 << 10;
/// A part's length, in bytes, at most: it takes llama.cpp less than a second.
const LONGEST_PART: usize = 256 << 10;

/// What a model's tokens say of texts, found out when it is needed.
#[derive(Default)]
pub(super) struct Vocabulary {
    pub(super) characters: OnceLock<Characters>,
    pub(super) cuts: OnceLock<Cuts>,
}

/// The characters and bytes that have a token.
#[derive(Debug)]
pub(super) enum Characters {
    /// All of them, or llama.cpp knows a token for what is unknown.
    All,
    Some {
        characters: HashSet<char>,
        bytes: HashSet<u8>,
        special: Vec<String>,
    },
}

impl Characters {
    /// Of tokens as the vocabulary stores them, with `▁` or `Ġ` for a space.
    pub(super) fn new<'a>(
        vocab_type: sys::llama_vocab_type,
        tokens: impl Iterator<Item = &'a [u8]>,
        special: impl FnOnce() -> Vec<String>,
    ) -> Self {
        let is_byte_level = match vocab_type {
            sys::LLAMA_VOCAB_TYPE_SPM => false,
            sys::LLAMA_VOCAB_TYPE_BPE => true,
            _ => return Self::All,
        };
        let alphabet: Vec<char> = (0..=u8::MAX).map(letter_of_byte).collect();
        let (mut characters, mut bytes) = (HashSet::new(), HashSet::new());
        for text in tokens {
            if let Some(byte) = byte_token(text) {
                bytes.insert(byte);
            }
            let mut letters = std::str::from_utf8(text).unwrap_or_default().chars();
            if let (Some(letter), None) = (letters.next(), letters.next()) {
                match is_byte_level {
                    true => bytes.extend(
                        (0..=u8::MAX).filter(|&byte| alphabet[usize::from(byte)] == letter),
                    ),
                    false => characters.extend([letter]),
                }
            }
            if bytes.len() == 256 {
                return Self::All;
            }
        }
        Self::Some {
            characters,
            bytes,
            special: special(),
        }
    }

    /// Whether each character of `text` has a token, or stands in a special token's text.
    pub(super) fn check(&self, text: &str) -> Result<()> {
        let Self::Some {
            characters,
            bytes,
            special,
        } = self
        else {
            return Ok(());
        };
        let has_token = |&(place, character): &(usize, char)| {
            let stored = if character == ' ' { '▁' } else { character };
            let mut buffer = [0; 4];
            let encoded = character.encode_utf8(&mut buffer);
            characters.contains(&stored)
                || encoded.bytes().all(|byte| bytes.contains(&byte))
                || special
                    .iter()
                    .any(|special| holds(text, place, special, special.len()))
        };
        let mut missing: Vec<(usize, char)> = Vec::new();
        for found in text.char_indices().filter(|found| !has_token(found)) {
            if !missing.iter().any(|(_, character)| *character == found.1) {
                missing.push(found);
            }
            if missing.len() > NAMED {
                break;
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let named = missing.iter().take(NAMED).map(|&(place, character)| {
            let around = around(text, place);
            let code = u32::from(character);
            format!(
                "`{}` (U+{code:04X}, in `{around}`)",
                character.escape_debug()
            )
        });
        let more = if missing.len() > NAMED {
            " and others"
        } else {
            ""
        };
        Err(Error::invalid(format!(
            "the model's vocabulary has no token for {}{more}",
            named.collect::<Vec<_>>().join(", ")
        ))
        .with_hint("leave them out, or use a model whose vocabulary has a token for each byte"))
    }
}

/// Characters without a token that a message names.
const NAMED: usize = 3;

/// The text around a place, ten characters on each side.
fn around(text: &str, place: usize) -> String {
    let before: Vec<char> = text[..place].chars().rev().take(10).collect();
    let before = before.into_iter().rev();
    let around: String = before.chain(text[place..].chars().take(11)).collect();
    around.escape_debug().to_string()
}

/// Whether `special` occurs within `n_bytes` to both sides of `place`.
fn holds(text: &str, place: usize, special: &str, n_bytes: usize) -> bool {
    let near = place.saturating_sub(n_bytes)..text.len().min(place + n_bytes);
    let mut found = text.as_bytes()[near].windows(special.len());
    found.any(|found| found == special.as_bytes())
}

/// Where a text may be cut so that the ids stay the same: between two characters that no token
/// holds side by side, since then nothing on one side is ever merged with something on the other.
pub(super) struct Cuts {
    pairs: HashSet<(char, char)>,
    special: Vec<String>,
    is_bpe: bool,
}

impl Cuts {
    /// As [`Characters::new`].
    pub(super) fn new<'a>(
        vocab_type: sys::llama_vocab_type,
        tokens: impl Iterator<Item = &'a [u8]>,
        special: Vec<String>,
    ) -> Self {
        let mut pairs = HashSet::new();
        for text in tokens {
            let text = std::str::from_utf8(text).unwrap_or_default();
            let letters = text.chars().map(plain_space);
            pairs.extend(letters.clone().zip(letters.skip(1)));
        }
        Self {
            pairs,
            special,
            is_bpe: vocab_type == sys::LLAMA_VOCAB_TYPE_BPE,
        }
    }

    /// The end of the part of `text` that begins at `start`.
    pub(super) fn next(&self, text: &str, start: usize) -> Result<usize> {
        let from = start + PART;
        if text.len() <= from {
            return Ok(text.len());
        }
        let from = (from..).find(|&place| text.is_char_boundary(place));
        let from = from.expect("a text ends at a boundary");
        let mut before = text[..from].chars().next_back();
        for (place, after) in text[from..].char_indices() {
            let place = from + place;
            if place > start + LONGEST_PART {
                return Err(too_long());
            }
            if before.is_some_and(|before| self.is_cut(text, place, before, after)) {
                return Ok(place);
            }
            before = Some(after);
        }
        match text.len() - start {
            0..=LONGEST_PART => Ok(text.len()),
            _ => Err(too_long()),
        }
    }

    fn is_cut(&self, text: &str, place: usize, before: char, after: char) -> bool {
        let [left, right] = match self.is_bpe {
            false => [before, after],
            true => [last_byte(before), first_byte(after)].map(letter_of_byte),
        };
        let is_special = |special: &String| {
            text[..place].ends_with(special) || holds(text, place, special, special.len() - 1)
        };
        !self.pairs.contains(&(plain_space(left), plain_space(right)))
            && match self.is_bpe {
                // White space may belong to a special token in front of it.
                false => !before.is_whitespace(),
                true => ends_word(text, place, before, after),
            }
            // What follows a special token may begin as a text does.
            && !self.special.iter().any(is_special)
    }
}

/// Whether a word ends at `place` for each of the expressions that llama.cpp tells words apart by before
/// it merges anything (`llm_tokenizer_bpe`): a letter, a space, a letter; or a single line break between
/// letters or signs, and a letter.
fn ends_word(text: &str, place: usize, before: char, after: char) -> bool {
    match (before, after) {
        (_, ' ') => is_letter(before) && text[place + 1..].starts_with(is_letter),
        ('\n', _) => {
            let is_single = |line: &str| !line.ends_with(char::is_whitespace);
            is_letter(after) && is_single(&text[..place - 1])
        }
        _ => false,
    }
}

/// Some letters (`\p{L}`) of scripts that many texts are written in.
fn is_letter(c: char) -> bool {
    matches!(c,
        'A'..='Z' | 'a'..='z' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{24f}' // Latin
        | '\u{3b1}'..='\u{3c9}' | '\u{410}'..='\u{44f}' // Greek, Cyrillic
        | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{64a}' | '\u{905}'..='\u{939}' // Hebrew, Arabic, Devanagari
        | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' // kana
        | '\u{4e00}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7a3}' // Chinese, Hangul
    )
}

/// The space for what vocabularies store it as.
fn plain_space(c: char) -> char {
    match c {
        '▁' | 'Ġ' => ' ',
        other => other,
    }
}

fn first_byte(c: char) -> u8 {
    c.encode_utf8(&mut [0; 4]).as_bytes()[0]
}

fn last_byte(c: char) -> u8 {
    let mut buffer = [0; 4];
    let encoded = c.encode_utf8(&mut buffer).as_bytes();
    encoded[encoded.len() - 1]
}

pub(super) fn too_long() -> Error {
    Error::invalid(format!(
        "the text has more than {LONGEST_PART} bytes in a row that cannot be cut for the tokenizer"
    ))
    .with_hint("put spaces or line breaks into it, or shorten it")
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok()?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (digits.len() == 2 && digits.to_uppercase() == digits).then_some(byte)
}

/// The letter that stands for a byte in GPT-2's alphabet (`bytes_to_unicode` in its `encoder.py`): itself
/// where it is printable; the others follow in order from U+0100.
fn letter_of_byte(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&byte| !is_printable(byte)).count() as u32;
    char::from_u32(0x100 + n_before).expect("a letter of Latin Extended-A")
}
