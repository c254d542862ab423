//! What differs between two texts, by words.

use serde::Serialize;
use similar::{ChangeTag, TextDiff};

/// A text's pieces, each with what is said of it.
pub(crate) type Pieces<T> = Vec<(String, T)>;

/// Which of two texts has a piece.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    Both,
    Before,
    After,
}

/// The words of both texts in one.
pub(super) fn merged(before: &str, after: &str) -> Pieces<Place> {
    let diff = TextDiff::from_words(before, after);
    joined(diff.iter_all_changes().map(|change| {
        let place = match change.tag() {
            ChangeTag::Equal => Place::Both,
            ChangeTag::Delete => Place::Before,
            ChangeTag::Insert => Place::After,
        };
        (change.value(), place)
    }))
}

/// The words of each text, with whether it is the only one that has them.
pub(crate) fn marked(before: &str, after: &str) -> (Pieces<bool>, Pieces<bool>) {
    let pieces = merged(before, after);
    let side = |place| {
        let of_side = pieces
            .iter()
            .filter(|piece| [Place::Both, place].contains(&piece.1));
        joined(of_side.map(|(text, found)| (text.as_str(), *found != Place::Both)))
    };
    (side(Place::Before), side(Place::After))
}

/// Neighbours of which the same is said, as one.
fn joined<'a, T: PartialEq>(words: impl Iterator<Item = (&'a str, T)>) -> Pieces<T> {
    let mut pieces = Pieces::new();
    for (word, said) in words {
        match pieces.last_mut() {
            Some((text, last)) if *last == said => text.push_str(word),
            _ => pieces.push((word.to_owned(), said)),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::{Pieces, Place, marked, merged};

    fn pieces<T: Copy>(pieces: &[(&str, T)]) -> Pieces<T> {
        let owned = |&(text, said): &(&str, T)| (text.to_owned(), said);
        pieces.iter().map(owned).collect()
    }

    #[test]
    fn changed_words_are_marked() {
        let (before, after) = marked("a carrot on grass", "a cat on grass");
        assert_eq!(
            before,
            pieces(&[("a ", false), ("carrot", true), (" on grass", false)])
        );
        assert_eq!(
            after,
            pieces(&[("a ", false), ("cat", true), (" on grass", false)])
        );
        assert_eq!(marked("same", "same").1, pieces(&[("same", false)]));
        assert_eq!(marked("", "new").1, pieces(&[("new", true)]));
        assert_eq!(marked("", "new").0, pieces(&[]));
    }

    #[test]
    fn both_texts_in_one() {
        use Place::{After, Before, Both};
        assert_eq!(
            merged("a carrot on grass", "a cat on grass"),
            pieces(&[
                ("a ", Both),
                ("carrot", Before),
                ("cat", After),
                (" on grass", Both)
            ])
        );
    }
}
