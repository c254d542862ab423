//! What the name of a feature means: an index or a label. Pure text.

use crate::feature::FeatureId;
use crate::{Error, ErrorKind, Result};

/// Candidates that an error about an ambiguous label lists.
const MAX_CANDIDATES: usize = 8;

/// The feature that `name` means: an index below `d_sae`, a label as it stands, one label in upper or
/// lower case, or a text that is part of exactly one label (in upper or lower case).
///
/// # Errors
/// An index out of range, a text that no label holds, or one that several hold.
pub fn find_feature<'a>(
    name: &str,
    d_sae: usize,
    labels: impl Iterator<Item = (usize, &'a str)> + Clone,
) -> Result<usize> {
    if is_index(name) {
        let feature = name.parse().ok().filter(|&index| index < d_sae);
        return feature.ok_or_else(|| no_feature(name, d_sae));
    }
    if labels.clone().next().is_none() {
        return Err(Error::invalid(format!(
            "cannot find feature `{name}`: this SAE has no labels"
        ))
        .of_kind(ErrorKind::UnknownFeature)
        .with_hint("use an index, or convert the SAE with labels"));
    }
    let wanted = name.to_lowercase();
    let search = |matches: &dyn Fn(&str) -> bool| -> Vec<(usize, &str)> {
        let labels = labels.clone();
        labels.filter(|(_, label)| matches(label)).collect()
    };
    let mut found = search(&|label| label == name);
    if found.is_empty() {
        found = search(&|label| label.to_lowercase() == wanted);
    }
    if found.is_empty() {
        found = search(&|label| label.to_lowercase().contains(&wanted));
    }
    match found[..] {
        [(feature, _)] => Ok(feature),
        [] => Err(Error::invalid(format!("no label contains `{name}`"))
            .of_kind(ErrorKind::UnknownFeature)
            .with_hint("use an index, or a text that is part of a label")),
        _ => Err(ambiguous(name, &found)),
    }
}

/// The feature that `name` means among those of the SAEs with these ids: `SAE_ID/FEATURE`, of which the first
/// part may be left out while there is one SAE. `find` gives the index that `FEATURE` means in the SAE at a
/// place.
///
/// # Errors
/// Those of `find`; with several SAEs, a name without an SAE's.
pub fn find_in_saes(
    name: &str,
    ids: &[&str],
    find: impl Fn(usize, &str) -> Result<usize>,
) -> Result<FeatureId> {
    // A label may hold slashes, and so may an id: the longest id that fits is meant.
    let named = ids.iter().enumerate().filter_map(|(sae, id)| {
        let rest = name.strip_prefix(id)?.strip_prefix('/')?;
        Some((sae, id, rest))
    });
    if let Some((sae, _, rest)) = named.max_by_key(|(_, id, _)| id.len()) {
        let found = find(sae, rest);
        if found.is_ok() || ids.len() > 1 {
            return found.map(|index| FeatureId { sae, index });
        }
    }
    if ids.len() == 1 {
        return find(0, name).map(FeatureId::of_only);
    }
    if ids.is_empty() {
        let what = format!("cannot find feature `{name}`: there is no SAE");
        return Err(Error::new(ErrorKind::Missing, what).with_hint("give the SAE's file"));
    }
    let ids: Vec<_> = ids.iter().map(|id| format!("`{id}`")).collect();
    let what = format!("`{name}` does not say which SAE it is a feature of");
    Err(
        Error::new(ErrorKind::UnknownFeature, what).with_hint(format!(
            "write `SAE/FEATURE`; the SAEs are {}",
            ids.join(", ")
        )),
    )
}

/// The features whose labels hold each word of `text`, in upper or lower case and as a part of a longer word too,
/// best match first: a label that is `text`, its words one after the other, each as a word, parts of words; among
/// equals the shorter label.
///
/// # Errors
/// No labels; a text without a letter or digit.
pub fn search<'a, T>(text: &str, labels: impl IntoIterator<Item = (T, &'a str)>) -> Result<Vec<T>> {
    let mut labels = labels.into_iter().peekable();
    if labels.peek().is_none() {
        let what = format!("cannot search labels for `{text}`: there are none");
        return Err(Error::new(ErrorKind::NoLabels, what).with_hint("convert the SAE with labels"));
    }
    let wanted = words(text);
    if wanted.is_empty() {
        let what = format!("cannot search labels for `{text}`: it has no letter or digit");
        return Err(Error::invalid(what).with_hint("give a word, or the beginning of one"));
    }
    let with_closeness = labels.filter_map(|(feature, label)| {
        let closeness = Closeness::of(&words(label), &wanted)?;
        Some((closeness, label.chars().count(), feature))
    });
    let mut found: Vec<_> = with_closeness.collect();
    found.sort_by_key(|&(closeness, length, _)| (closeness, length));
    Ok(found.into_iter().map(|(_, _, feature)| feature).collect())
}

/// How a label holds the words that are searched for, closest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    Whole,
    Phrase,
    Words,
    Parts,
}

impl Closeness {
    fn of(label: &[String], wanted: &[String]) -> Option<Self> {
        if label == wanted {
            return Some(Self::Whole);
        }
        if holds_phrase(label, wanted) {
            return Some(Self::Phrase);
        }
        if wanted.iter().all(|word| label.contains(word)) {
            return Some(Self::Words);
        }
        let is_part = |part: &String| label.iter().any(|word| word.contains(part));
        wanted.iter().all(is_part).then_some(Self::Parts)
    }
}

/// Whether the words of `phrase` stand in `text` one after the other, in upper or lower case.
pub fn holds_word(text: &str, phrase: &str) -> bool {
    holds_phrase(&words(text), &words(phrase))
}

fn holds_phrase(text: &[String], phrase: &[String]) -> bool {
    !phrase.is_empty() && text.windows(phrase.len()).any(|window| window == phrase)
}

/// The words of a text, in lower case.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Whether a name is meant as an index, in range or not.
pub fn is_index(name: &str) -> bool {
    let digits = name.strip_prefix('-').unwrap_or(name);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

pub(crate) fn no_feature(index: &str, d_sae: usize) -> Error {
    Error::invalid(format!(
        "no feature `{index}`: this SAE has {d_sae} features"
    ))
    .of_kind(ErrorKind::UnknownFeature)
    .with_hint(format!(
        "valid indices are 0 to {}",
        d_sae.saturating_sub(1)
    ))
}

fn ambiguous(name: &str, found: &[(usize, &str)]) -> Error {
    let mut candidates: Vec<String> = found
        .iter()
        .take(MAX_CANDIDATES)
        .map(|(feature, label)| format!("{feature} `{label}`"))
        .collect();
    if found.len() > MAX_CANDIDATES {
        candidates.push(format!("{} more", found.len() - MAX_CANDIDATES));
    }
    let what = format!("`{name}` is part of {} labels", found.len());
    Error::new(ErrorKind::AmbiguousFeature, what).with_hint(format!(
        "use one of these indices: {}",
        candidates.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{holds_word, search};

    #[test]
    fn words_of_a_text() {
        assert!(holds_word("A Dog, and more.", "dog"));
        assert!(holds_word("an ice cream", "Ice cream"));
        assert!(!holds_word("dogs", "dog"));
        assert!(!holds_word("dog", ""));
    }

    #[test]
    fn the_best_match_comes_first() {
        let labels = [
            "cream on ice, in summer",
            "dogs and creams of ice",
            "cold ice cream",
            "Ice-Cream",
            "ice",
            "ice cream in a cone",
        ];
        let check = |text: &str, expected: &[usize]| {
            let found = search(text, labels.iter().copied().enumerate());
            assert_eq!(found.expect("there are labels"), expected, "{text}");
        };
        check("ice cream", &[3, 2, 5, 0, 1]);
        check("CREAM, on", &[0, 5]);
        check("dog", &[1]);
        check("ic", &[4, 3, 2, 5, 1, 0]);
        check("cat", &[]);
    }

    #[test]
    fn a_search_for_nothing_or_in_nothing_is_refused() {
        let error = search("?!", [(0, "dog")]).expect_err("no word");
        assert!(error.to_string().contains("`?!`"), "{error}");
        let error = search::<usize>("dog", []).expect_err("no labels");
        assert_eq!(error.kind(), crate::ErrorKind::NoLabels);
    }
}
