//! What is changed, and where: from arguments and saved sets to a steering.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::TypedValueParser;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use llava_sae_cpp::steering::{
    Change, Condition, Intervention, KINDS, Kind, Number, Positions, Steering, Target, Targets,
    Units, Vector,
};
use llava_sae_cpp::{FeatureId, HookPoint, HookedModel, Result, SaeSet, saved_set};

use super::hints::with_hint;
use super::one_of::one_of;

/// The group of all arguments that ask for an intervention.
pub(super) const ANY: &str = "intervention";
/// Those of them that `--at`, `--when` and `--units` apply to.
const CHANGES: &str = "change";

/// What is changed, and where.
#[derive(Args)]
#[group(skip)]
pub(super) struct InterventionArgs {
    #[command(flatten)]
    changes: ChangeArgs,
    /// The positions that these change: all, image, prompt (the text before generation, without the
    /// image), special (its special tokens, such as `<bos>`), generated, last (the prompt's last token), an
    /// index such as -1 or a range such as 5..9, token:TEXT, image:N, patch:ROW,COL, or a list of them; no-special
    /// leaves the special tokens out, as in all,no-special
    ///
    /// Indices and ranges refer to the prompt; both ends are included, and negative numbers count from its
    /// end. token:TEXT is every token, in the prompt or generated, whose text is TEXT apart from the space
    /// around it; TEXT cannot contain a comma. image:N is the
    /// prompt's N-th image, counted from 1; patch:ROW,COL and patch:R0..R1,C0..C1 are image rows by the
    /// patches they show, counted from 0 at the top left.
    #[arg(long, value_name = "WHERE", default_value = "all", value_parser = parse_positions, allow_hyphen_values = true, requires = CHANGES, help_heading = "Interventions")]
    at: Positions,
    /// Change only rows where this feature's activation is above X, before any intervention there; its SAE
    /// must read at the same hook point or at an earlier one
    #[arg(long, value_name = "FEATURE>X", value_parser = parse_condition, requires = CHANGES, help_heading = "Interventions")]
    when: Option<(String, f32)>,
    /// The unit of strengths and values: decoder rows as trained (raw), decoder directions of unit length, as on
    /// Neuronpedia (unit), or the feature's usual activation where it is active, as the SAE file's baseline has it (usual)
    #[arg(
        long,
        value_name = "UNITS",
        default_value = "raw",
        value_parser = units(),
        requires = CHANGES,
        help_heading = "Interventions"
    )]
    units: Units,
    /// Add the interventions of a JSON file, such as the output of `--json`
    ///
    /// The file holds a list, or an object with a list under `interventions`, of objects with the
    /// keys `kind` (the option's name: steer, clamp, ...), `feature` (an index or a label), `value` (a number;
    /// none for ablate), `units` (raw, unit, usual; default raw), `at` (as `--at`; default all), `when` (an object
    /// with `feature` and `above`) and `label` (if given, it must be the SAE's). The kinds vector,
    /// project and cap take a vector instead of a feature: its numbers as `values`, or the `file` that holds
    /// them (a path relative to the set's folder), and its `hook` point.
    #[arg(long, value_name = "FILE", help_heading = "Interventions")]
    interventions: Option<PathBuf>,
}

/// What is changed: an option for each of [`KINDS`].
struct ChangeArgs(Vec<(&'static Kind, Asked)>);

/// What an option asks for.
enum Asked {
    /// Features, or files, with numbers.
    Numbers(Vec<Numbers>),
    /// Lists of features.
    Names(Vec<String>),
}

impl Asked {
    fn is_empty(&self) -> bool {
        match self {
            Self::Numbers(lists) => lists.is_empty(),
            Self::Names(lists) => lists.is_empty(),
        }
    }
}

impl Args for ChangeArgs {
    fn augment_args(command: Command) -> Command {
        let names = || KINDS.into_iter().map(|kind| kind.name);
        let command = KINDS.into_iter().fold(command, |command, kind| {
            let arg = Arg::new(kind.name)
                .long(kind.name)
                .value_name(kind.usage)
                .help(kind.help)
                .help_heading("Interventions")
                .action(ArgAction::Append);
            command.arg(match kind.number {
                Number::None => arg.value_parser(parse_names),
                Number::OfUnits | Number::Plain => {
                    arg.value_parser(parse_numbers).allow_hyphen_values(true)
                }
            })
        });
        let any = names().chain(["interventions"]);
        command
            .group(ArgGroup::new(ANY).multiple(true).args(any))
            .group(ArgGroup::new(CHANGES).multiple(true).args(names()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ChangeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let asked = KINDS.into_iter().map(|kind| match kind.number {
            Number::None => {
                let lists = matches.get_many(kind.name).unwrap_or_default();
                (kind, Asked::Names(lists.cloned().collect()))
            }
            Number::OfUnits | Number::Plain => {
                let lists = matches.get_many(kind.name).unwrap_or_default();
                (kind, Asked::Numbers(lists.cloned().collect()))
            }
        });
        let mut asked: Vec<_> = asked.collect();
        asked.sort_by_key(|(kind, _)| kind.number == Number::None); // these last
        Ok(Self(asked))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Pairs of a feature's name and a number.
type Numbers = Vec<(String, f32)>;

/// The units of numbers.
pub(super) fn units() -> impl TypedValueParser<Value = Units> {
    one_of(Units::ALL, Units::name)
}

pub(super) fn parse_positions(text: &str) -> std::result::Result<Positions, String> {
    Positions::parse(text).map_err(with_hint)
}

/// The seed of the random targets of a control: 0 in `random`, else as in `random:7`.
pub(super) fn parse_control(text: &str) -> std::result::Result<u64, String> {
    let seed = match text.split_once(':') {
        None if text == "random" => Some(0),
        Some(("random", seed)) => seed.parse().ok(),
        _ => None,
    };
    seed.ok_or_else(|| "expected `random`, or a seed besides, such as `random:7`".to_owned())
}

/// Reads `FEATURE>X`.
fn parse_condition(text: &str) -> std::result::Result<(String, f32), String> {
    let parts = text.rsplit_once('>');
    let above = parts.and_then(|(_, above)| above.trim().parse::<f32>().ok());
    match (parts.map(|(feature, _)| feature.trim()), above) {
        (Some(feature), Some(above)) if !feature.is_empty() && above.is_finite() => {
            Ok((feature.to_owned(), above))
        }
        _ => Err("expected a feature, `>` and a number, such as `4501>2.5` or `dog>0`".to_owned()),
    }
}

/// Reads `FEATURE:NUMBER[,FEATURE:NUMBER…]`, and files instead of features likewise. A label may hold commas
/// and colons, so an item ends at a comma only where a number stands before it.
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

/// The vector that `FILE[@HOOK]` means.
fn find_vector(saes: &SaeSet, name: &str) -> Result<Vector> {
    let (file, hook_point) = match name.rsplit_once('@') {
        Some((file, hook)) if !Path::new(name).exists() => (file, HookPoint::parse(hook)?),
        _ => {
            let missing =
                format!("`{name}` does not say where to add the vector, as `FILE@HOOK` would");
            (name, saved_set::default_hook_point(saes, &missing)?)
        }
    };
    Vector::read(file.as_ref(), hook_point)
}

impl InterventionArgs {
    /// The file of a saved set.
    pub(super) fn file(&self) -> Option<&PathBuf> {
        self.interventions.as_ref()
    }

    /// Reads the saved set, before a model is there to say what its features are.
    pub(super) fn read(&self) -> Result<Interventions<'_>> {
        let set = self.interventions.as_deref().map(saved_set::read);
        Ok(Interventions {
            args: self,
            set: set.transpose()?.unwrap_or_default(),
        })
    }

    fn of_options(&self, saes: &SaeSet) -> Result<Vec<Intervention>> {
        let when = self.when.as_ref().map(|(feature, above)| {
            let feature = saes.find_feature(feature)?;
            let above = *above;
            Ok(Condition { feature, above })
        });
        let when = when.transpose()?;
        let mut interventions = Vec::new();
        let mut add = |target: Target, kind, number| {
            interventions.push(Intervention {
                target,
                change: Change::new(kind, number)?,
                units: self.units,
                at: self.at.clone(),
                when,
            });
            Ok(())
        };
        for (kind, asked) in &self.changes.0 {
            match asked {
                Asked::Numbers(lists) => {
                    for (name, number) in lists.iter().flatten() {
                        let target = match kind.targets {
                            Targets::Vectors => find_vector(saes, name)?.into(),
                            Targets::Features | Targets::Both => saes.find_feature(name)?.into(),
                        };
                        add(target, kind, Some(*number))?;
                    }
                }
                Asked::Names(lists) => {
                    for list in lists {
                        for feature in find_features(saes, list)? {
                            add(feature.into(), kind, None)?;
                        }
                    }
                }
            }
        }
        Ok(interventions)
    }
}

/// What options and a saved set ask for.
pub(super) struct Interventions<'a> {
    args: &'a InterventionArgs,
    set: Vec<saved_set::Entry>,
}

impl Interventions<'_> {
    /// Whether there are some, all along vectors, so that no SAE is needed.
    pub(super) fn are_vectors(&self) -> bool {
        let asked = self.args.changes.0.iter();
        let asked = asked.filter(|(_, asked)| !asked.is_empty());
        let of_options = asked.map(|(kind, _)| kind.targets != Targets::Vectors);
        let of_set = self.set.iter().map(saved_set::Entry::needs_sae);
        let mut need_sae = of_options.chain(of_set).peekable();
        self.args.when.is_none() && need_sae.peek().is_some() && !need_sae.any(|needs| needs)
    }

    /// All of them, with labels resolved; none if none were asked for.
    pub(super) fn steering(&self, model: &HookedModel) -> Result<Option<Arc<Steering>>> {
        let saes = model.saes();
        let file = self.args.interventions.as_deref().unwrap_or(Path::new(""));
        let mut all = saved_set::interventions(&self.set, &file.display().to_string(), saes)?;
        all.extend(self.args.of_options(saes)?);
        if all.is_empty() {
            return Ok(None);
        }
        model.steering(all).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_condition, parse_control, parse_names, parse_numbers};

    #[test]
    fn controls() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_control(text).ok(), expected, "{text}");
        };
        check("random", Some(0));
        check("random:7", Some(7));
        for bad in ["", "other", "random:", "random:-1", "random:x", "7"] {
            check(bad, None);
        }
    }

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
    fn conditions() {
        let check = |text: &str, expected: Option<(&str, f32)>| {
            let expected = expected.map(|(feature, above)| (feature.to_owned(), above));
            assert_eq!(parse_condition(text).ok(), expected, "{text}");
        };
        check("4501>2.5", Some(("4501", 2.5)));
        check("dog > -1", Some(("dog", -1.0)));
        check("a > b>0", Some(("a > b", 0.0)));
        for bad in [
            "", "dog", "dog>", ">1", "dog>x", "dog>nan", "dog>inf", "dog<1",
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
