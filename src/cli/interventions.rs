//! What is changed, and where: from arguments and saved sets to a steering.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgGroup, Args, ValueEnum};
use llava_sae_cpp::steering::{Change, Intervention, Positions, Steering, Units};
use llava_sae_cpp::{FeatureId, HookedModel, Result, SaeSet, saved_set};

use super::hints::with_hint;

/// The group of all arguments that ask for an intervention.
pub(super) const ANY: &str = "intervention";
/// Those of them that `--at` and `--units` apply to.
const CHANGES: &str = "change";

/// What is changed, and where.
#[derive(Args)]
#[group(skip)]
#[command(group(ArgGroup::new(ANY).multiple(true).args(["steer", "clamp", "ablate", "scale", "interventions"])))]
#[command(group(ArgGroup::new(CHANGES).multiple(true).args(["steer", "clamp", "ablate", "scale"])))]
pub(super) struct InterventionArgs {
    /// Add STRENGTH times the feature's decoder direction; FEATURE is an index or a label;
    /// repeatable, comma-separated too. Start with about minus the feature's `max` in `features`
    #[arg(long, value_name = "FEATURE:STRENGTH", value_parser = parse_numbers, allow_hyphen_values = true, help_heading = "Interventions")]
    steer: Vec<Numbers>,
    /// Set the feature's activation to VALUE
    #[arg(long, value_name = "FEATURE:VALUE", value_parser = parse_numbers, allow_hyphen_values = true, help_heading = "Interventions")]
    clamp: Vec<Numbers>,
    /// Set the feature's activation to 0
    #[arg(long, value_name = "FEATURE", value_parser = parse_names, help_heading = "Interventions")]
    ablate: Vec<String>,
    /// Multiply the feature's activation by FACTOR
    #[arg(long, value_name = "FEATURE:FACTOR", value_parser = parse_numbers, allow_hyphen_values = true, help_heading = "Interventions")]
    scale: Vec<Numbers>,
    /// Positions that these four touch: all, image, prompt (the text before generation, without the
    /// image), special (its special tokens, such as `<bos>`), generated, or a list of them; no-special
    /// leaves the special tokens out, as in all,no-special
    #[arg(long, value_name = "WHERE", default_value = "all", value_parser = parse_positions, requires = CHANGES, help_heading = "Interventions")]
    at: Positions,
    /// What strengths and values count
    #[arg(
        long,
        value_name = "UNITS",
        default_value = "raw",
        requires = CHANGES,
        help_heading = "Interventions"
    )]
    units: UnitsName,
    /// More interventions from a JSON file, such as the output of `--json`
    ///
    /// The file holds a list, or an object with a list under `interventions`, of objects with the
    /// keys `kind` (steer, clamp, ablate, scale), `feature` (an index or a label), `value` (a number;
    /// none for ablate), `units` (raw, unit; default raw), `at` (as `--at`; default all) and `label`
    /// (checked against the SAE's, if it is there).
    #[arg(long, value_name = "FILE", help_heading = "Interventions")]
    interventions: Option<PathBuf>,
}

/// Pairs of a feature's name and a number.
type Numbers = Vec<(String, f32)>;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum UnitsName {
    /// Decoder rows as trained
    Raw,
    /// Unit-length decoder directions, as on Neuronpedia
    Unit,
}

impl From<UnitsName> for Units {
    fn from(name: UnitsName) -> Self {
        match name {
            UnitsName::Raw => Self::Raw,
            UnitsName::Unit => Self::Unit,
        }
    }
}

pub(super) fn parse_positions(text: &str) -> std::result::Result<Positions, String> {
    Positions::parse(text).map_err(with_hint)
}

/// Reads `FEATURE:NUMBER[,FEATURE:NUMBER…]`. A label may hold commas and colons, so an item ends at
/// a comma only where a number stands before it.
fn parse_numbers(text: &str) -> std::result::Result<Numbers, String> {
    let mut items = Vec::new();
    let mut item = String::new();
    for piece in text.split_inclusive(',') {
        item.push_str(piece);
        if let Some(parsed) = parse_number(item.strip_suffix(',').unwrap_or(&item))? {
            items.push(parsed);
            item.clear();
        }
    }
    if item.is_empty() && !items.is_empty() && !text.ends_with(',') {
        return Ok(items);
    }
    Err("expected a feature, a colon and a number, such as `4501:-6` or `dog:-6`".to_owned())
}

fn parse_number(item: &str) -> std::result::Result<Option<(String, f32)>, String> {
    let Some((feature, number)) = item.rsplit_once(':') else {
        return Ok(None);
    };
    let Ok(number) = number.trim().parse::<f32>() else {
        return Ok(None);
    };
    let feature = feature.trim();
    if feature.is_empty() {
        return Err("a feature's index or label is missing before the colon".to_owned());
    }
    if !number.is_finite() {
        return Err(format!("the number of `{feature}` must be finite"));
    }
    Ok(Some((feature.to_owned(), number)))
}

/// Checks `FEATURE[,FEATURE…]`; only the SAE tells which commas belong to labels.
pub(super) fn parse_names(text: &str) -> std::result::Result<String, String> {
    if text.split(',').any(|piece| piece.trim().is_empty()) {
        return Err("expected features, such as `4501` or `dog,748`".to_owned());
    }
    Ok(text.to_owned())
}

/// The features that a checked list of names means. A label may hold commas, so the longest text
/// that means one feature is taken; an index stands for itself.
pub(super) fn find_features(saes: &SaeSet, list: &str) -> Result<Vec<FeatureId>> {
    let mut features = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let first = rest.split(',').next().unwrap_or(rest);
        let is_index = first.trim().parse::<i64>().is_ok();
        let ends = rest.match_indices(',').map(|(end, _)| end);
        let longest = ends
            .chain([rest.len()])
            .rev()
            .filter(|_| !is_index)
            .find_map(|end| Some((saes.find_feature(rest[..end].trim()).ok()?, end)));
        let (feature, end) = match longest {
            Some(found) => found,
            None => (saes.find_feature(first.trim())?, first.len()),
        };
        features.push(feature);
        rest = rest[end..].trim_start_matches(',');
    }
    Ok(features)
}

impl InterventionArgs {
    /// The file of a saved set.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.interventions.as_ref()
    }

    /// All interventions, with labels resolved; none if none were asked for.
    pub(super) fn steering(&self, model: &HookedModel) -> Result<Option<Arc<Steering>>> {
        let saes = model.saes();
        let mut interventions = match &self.interventions {
            Some(path) => saved_set::read(path, saes)?,
            None => Vec::new(),
        };
        let mut add = |feature, change| {
            interventions.push(Intervention {
                feature,
                change,
                units: self.units.into(),
                at: self.at,
            });
        };
        for (name, strength) in self.steer.iter().flatten() {
            add(saes.find_feature(name)?, Change::Add(*strength));
        }
        for (name, value) in self.clamp.iter().flatten() {
            add(saes.find_feature(name)?, Change::Clamp(*value));
        }
        for (name, factor) in self.scale.iter().flatten() {
            add(saes.find_feature(name)?, Change::Scale(*factor));
        }
        for list in &self.ablate {
            for feature in find_features(saes, list)? {
                add(feature, Change::Ablate);
            }
        }
        if interventions.is_empty() {
            return Ok(None);
        }
        model.steering(interventions).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_names, parse_numbers};

    #[test]
    fn lists_of_numbers() {
        let check = |text: &str, expected: Option<&[(&str, f32)]>| {
            let parsed = parse_numbers(text).ok();
            let expected = expected.map(|items| {
                items
                    .iter()
                    .map(|&(name, number)| (name.to_owned(), number))
                    .collect()
            });
            assert_eq!(parsed, expected, "{text}");
        };
        check("4501:-6", Some(&[("4501", -6.0)]));
        check("4501:-6,7310:2.5", Some(&[("4501", -6.0), ("7310", 2.5)]));
        check("dog, b, f:-6", Some(&[("dog, b, f", -6.0)]));
        check(
            "that is: dogs, cats:3,dog:1",
            Some(&[("that is: dogs, cats", 3.0), ("dog", 1.0)]),
        );
        for bad in [
            "",
            "dog",
            "dog:",
            ":3",
            "dog:x",
            "dog:nan",
            "dog:inf",
            "dog:1,",
            "dog:1,cat",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn lists_of_names() {
        for good in ["dog", "4501,dog", "dog, b, f", "that is: dogs"] {
            assert!(parse_names(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "dog,", ",dog", "dog,,cat"] {
            assert!(parse_names(bad).is_err(), "{bad}");
        }
    }
}
