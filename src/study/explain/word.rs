//! Where a word stands in a text that is known by its tokens.

use std::iter;
use std::ops::Range;

/// A character, and the tokens that its bytes belong to.
struct Character {
    value: char, // U+FFFD for bytes that are none
    first_token: usize,
    last_token: usize,
}

/// The tokens of the first place where `word` stands, in upper or lower case and not as part of a longer word;
/// `pieces` are the bytes of each token of the text. A letter without case, as in Chinese, makes no word longer.
pub(super) fn find(pieces: &[Vec<u8>], word: &str) -> Option<Range<usize>> {
    let text = characters(pieces);
    let word: Vec<char> = word.chars().collect();
    let is_same = |a: char, b: char| a.to_lowercase().eq(b.to_lowercase());
    let goes_on =
        |c: Option<char>| c.is_some_and(|c| c.is_lowercase() || c.is_uppercase() || c.is_numeric());
    let places = text.windows(word.len()).enumerate();
    let mut places = places.filter(|(start, window)| {
        let before = start.checked_sub(1).map(|i| text[i].value);
        let behind = text.get(start + word.len()).map(|c| c.value);
        window.iter().zip(&word).all(|(a, &b)| is_same(a.value, b))
            && !(goes_on(before) && goes_on(word.first().copied()))
            && !(goes_on(behind) && goes_on(word.last().copied()))
    });
    let (_, found) = places.next()?;
    Some(found.first()?.first_token..found.last()?.last_token + 1)
}

fn characters(pieces: &[Vec<u8>]) -> Vec<Character> {
    let lengths = pieces.iter().map(Vec::len).enumerate();
    let token_of_byte: Vec<usize> = lengths.flat_map(|(i, n)| iter::repeat_n(i, n)).collect();
    let mut characters = Vec::new();
    let mut start = 0;
    let mut push = |value, n_bytes: usize| {
        characters.push(Character {
            value,
            first_token: token_of_byte[start],
            last_token: token_of_byte[start + n_bytes - 1],
        });
        start += n_bytes;
    };
    for chunk in pieces.concat().utf8_chunks() {
        for c in chunk.valid().chars() {
            push(c, c.len_utf8());
        }
        if !chunk.invalid().is_empty() {
            push(char::REPLACEMENT_CHARACTER, chunk.invalid().len());
        }
    }
    characters
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn words_are_found_among_tokens() {
        let check = |pieces: &[&[u8]], word: &str, expected: Option<std::ops::Range<usize>>| {
            let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
            assert_eq!(find(&pieces, word), expected, "{word}");
        };
        let text: &[&[u8]] = &[b"A", b" hot", b"dog", b"", b" and", b" a", b" Dog", b"."];
        check(text, "dog", Some(6..7));
        check(text, "hotdog", Some(1..3));
        check(text, "AND", Some(4..5));
        check(text, "a dog", Some(5..7));
        check(text, "dog.", Some(6..8));
        check(text, ".", Some(7..8));
        check(text, "do", None);
        check(text, "a hot", None);
        check(&[], "dog", None);
        // A character of several tokens, one that is cut, and letters without case.
        let text: &[&[u8]] = &[
            b" caf\xc3",
            b"\xa9",
            b" \xe4\xb8\x80\xe5\x8f\xaa\xe7\x8b\x97\xe5",
            b"x",
        ];
        check(text, "café", Some(0..2));
        check(text, "狗", Some(2..3));
        check(text, "x", Some(3..4));
    }
}
