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
