//! What the name of a feature means: an index or a label. Pure text.

use serde::{Deserialize, Serialize};

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

/// How labels are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// Each word is a word of the label, or a part of one. First comes a label that is the text, then those with its
    /// words one after the other, those with each as a word, those with parts of words; among equals the shorter one.
    Contains,
    /// The label begins with the text, whose last word may be the beginning of one.
    Prefix,
    /// Each word is one of the label's but for typing errors: none in up to 2 letters, one in up to 5, else two, as
    /// Elasticsearch's fuzziness `AUTO` counts them. First come those with the fewest.
    Fuzzy,
}

impl Matching {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Contains, Self::Prefix, Self::Fuzzy];

    /// Its name, as options and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Contains => "contains",
            Self::Prefix => "prefix",
            Self::Fuzzy => "fuzzy",
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// How it was searched.
    pub matching: Matching,
    /// Best match first.
    pub features: Vec<T>,
}

/// The features whose labels match `text`, in upper or lower case. Without `matching`, labels that contain it, and
/// where there are none, those that do but for typing errors.
///
/// # Errors
/// No labels; a text without a letter or digit.
pub fn search<'a, T: Copy>(
    text: &str,
    matching: Option<Matching>,
    labels: impl IntoIterator<Item = (T, &'a str)>,
) -> Result<Found<T>> {
    let wanted = words(text);
    if wanted.is_empty() {
        let what = format!("cannot search labels for `{text}`: it has no letter or digit");
        return Err(Error::invalid(what).with_hint("give a word, or the beginning of one"));
    }
    let labels = labels.into_iter().map(|(feature, label)| Label {
        words: words(label),
        n_chars: label.chars().count(),
        feature,
    });
    let labels: Vec<_> = labels.collect();
    if labels.is_empty() {
        let what = format!("cannot search labels for `{text}`: there are none");
        return Err(Error::new(ErrorKind::NoLabels, what).with_hint("convert the SAE with labels"));
    }
    let ranked = |matching| {
        let found = labels.iter().filter_map(|label| {
            let distance = label.distance(&wanted, matching)?;
            Some((distance, label.n_chars, label.feature))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|&(distance, n_chars, _)| (distance, n_chars));
        let features = found.into_iter().map(|(_, _, feature)| feature).collect();
        Found { matching, features }
    };
    let found = ranked(matching.unwrap_or(Matching::Contains));
    if matching.is_some() || !found.features.is_empty() {
        return Ok(found);
    }
    let near = ranked(Matching::Fuzzy);
    Ok(if near.features.is_empty() {
        found
    } else {
        near
    })
}

/// A label that is searched.
struct Label<T> {
    words: Vec<String>,
    n_chars: usize,
    feature: T,
}

impl<T> Label<T> {
    /// How far it is from the words that are wanted; none where it does not match.
    fn distance(&self, wanted: &[String], matching: Matching) -> Option<usize> {
        let label = &self.words;
        match matching {
            Matching::Contains => {
                let is_part = |part: &String| label.iter().any(|word| word.contains(part));
                if label == wanted {
                    Some(0)
                } else if holds_phrase(label, wanted) {
                    Some(1)
                } else if wanted.iter().all(|word| label.contains(word)) {
                    Some(2)
                } else {
                    wanted.iter().all(is_part).then_some(3)
                }
            }
            Matching::Prefix => {
                let (last, first) = wanted.split_last()?;
                let begins = label.starts_with(first)
                    && label
                        .get(first.len())
                        .is_some_and(|word| word.starts_with(last));
                begins.then_some(0)
            }
            Matching::Fuzzy => wanted.iter().map(|word| fewest_errors(word, label)).sum(),
        }
    }
}

/// The typing errors between a word and the nearest of `words`, if they are few.
fn fewest_errors(wanted: &str, words: &[String]) -> Option<usize> {
    let n_chars = wanted.chars().count();
    let most = match n_chars {
        0..=2 => 0,
        3..=5 => 1,
        _ => 2,
    };
    let near = words
        .iter()
        .filter(|word| word.chars().count().abs_diff(n_chars) <= most);
    let errors = near.map(|word| strsim::osa_distance(wanted, word));
    errors.min().filter(|&errors| errors <= most)
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
    use super::Matching::{Contains, Fuzzy, Prefix};
    use super::{Matching, holds_word, search};

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
        let check = |text: &str, matching: Option<Matching>, expected: &[usize]| {
            let found = search(text, matching, labels.iter().copied().enumerate());
            assert_eq!(
                found.expect("there are labels").features,
                expected,
                "{text}"
            );
        };
        check("ice cream", None, &[3, 2, 5, 0, 1]);
        check("CREAM, on", Some(Contains), &[0, 5]);
        check("dog", None, &[1]);
        check("ic", None, &[4, 3, 2, 5, 1, 0]);
        check("cat", None, &[]);
        check("ice cr", Some(Prefix), &[3, 5]);
        check("IC", Some(Prefix), &[4, 3, 5]);
        check("cream ice", Some(Prefix), &[]);
        check("raem", Some(Contains), &[]);
        check("ice craem", Some(Fuzzy), &[3, 2, 5, 0]);
        check("sumer", Some(Fuzzy), &[0]);
        check("sumer", None, &[0]);
        check("icd", Some(Fuzzy), &[4, 3, 2, 5, 1, 0]);
        check("ix", Some(Fuzzy), &[]);
        check("crxxm", Some(Fuzzy), &[]);
    }

    #[test]
    fn a_typing_error_is_looked_through_where_nothing_else_is_found() {
        let labels = [(7, "mushroom"), (8, "mushrooms, straw"), (9, "mush")];
        let found = |text: &str| search(text, None, labels).expect("there are labels");
        let check = |text: &str, matching: Matching, features: &[i32]| {
            assert_eq!(
                (found(text).matching, &found(text).features[..]),
                (matching, features)
            );
        };
        check("mush", Contains, &[9, 7, 8]);
        check("mushrom", Fuzzy, &[7, 8]);
        check("mushrooom", Fuzzy, &[7, 8]);
        check("museum", Contains, &[]);
    }

    #[test]
    fn a_search_for_nothing_or_in_nothing_is_refused() {
        let error = search("?!", None, [(0, "dog")]).expect_err("no word");
        assert!(error.to_string().contains("`?!`"), "{error}");
        let error = search::<usize>("dog", None, []).expect_err("no labels");
        assert_eq!(error.kind(), crate::ErrorKind::NoLabels);
    }
}
