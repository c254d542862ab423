//! One intervention as JSON.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::feature::{FeatureId, FeatureName};
use crate::hook_point::HookPoint;
use crate::sae_set::SaeSet;
use crate::steering::{
    Change, Condition, Intervention, KINDS, Kind, Positions, Target, Units, Vector,
};
use crate::{Error, Result};

/// One intervention as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    kind: KindName,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature: Option<FeatureName>,
    /// A vector, `[d_in]`, instead of a feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<f32>>,
    /// A file that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// A vector's hook point.
    #[serde(skip_serializing_if = "Option::is_none")]
    hook: Option<String>,
    /// A feature's label, or what a vector is called.
    label: Option<String>,
    value: Option<f32>,
    units: Option<Units>,
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    when: Option<When>,
}

/// A [`Kind`] by its name.
#[derive(Clone, Copy, Debug)]
struct KindName(&'static Kind);

impl Serialize for KindName {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}

impl<'de> Deserialize<'de> for KindName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Kind::named(&name).map(Self).ok_or_else(|| {
            let names = KINDS.map(|kind| format!("`{}`", kind.name));
            let names = names.join(", ");
            serde::de::Error::custom(format!("unknown kind `{name}`, expected one of {names}"))
        })
    }
}

/// A [`Condition`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    feature: FeatureName,
    above: f32,
}

fn find(name: &FeatureName, saes: &SaeSet) -> Result<FeatureId> {
    saes.find_feature(&name.to_string())
}

impl Entry {
    /// An intervention whose features are of `saes`. A vector is written with its values, wherever it came
    /// from, so that a set is all that a run takes.
    pub fn new(intervention: &Intervention, saes: &SaeSet) -> Self {
        let vector = match &intervention.target {
            Target::Feature(_) => None,
            Target::Vector(vector) => Some(vector),
        };
        let feature = intervention.target.feature();
        let label = match vector {
            Some(vector) => Some(vector.name()),
            None => feature.and_then(|feature| saes.label(feature)),
        };
        Self {
            kind: KindName(intervention.change.kind()),
            feature: feature.map(|feature| saes.shown(feature)),
            values: vector.map(|vector| vector.values().to_vec()),
            file: None,
            hook: vector.map(|vector| vector.hook_point().to_string()),
            label: label.map(str::to_owned),
            value: intervention.change.number(),
            units: Some(intervention.units),
            at: Some(intervention.at.to_string()),
            when: intervention.when.map(|when| When {
                feature: saes.shown(when.feature),
                above: when.above,
            }),
        }
    }

    /// Whether it is of a feature, or depends on one; a vector alone needs no SAE.
    pub fn needs_sae(&self) -> bool {
        self.feature.is_some() || self.when.is_some()
    }

    /// Reads the file of a vector, by its path from `folder`.
    pub(super) fn read_vector(&mut self, folder: &Path) -> Result<()> {
        if let (Some(file), None) = (&self.file, &self.values) {
            self.values = Some(gguf_tools::vector_file::read(&folder.join(file))?);
            let name = file.file_name().unwrap_or(file.as_os_str());
            let name = name.to_string_lossy().into_owned();
            self.label.get_or_insert(name);
            self.file = None;
        }
        Ok(())
    }

    pub(super) fn intervention(&self, saes: &SaeSet) -> Result<Intervention> {
        let change = Change::new(self.kind.0, self.value)?;
        let numbers = self.when.iter().map(|when| ("above", when.above));
        let mut numbers = numbers.chain(self.value.map(|value| ("value", value)));
        if let Some((key, _)) = numbers.find(|(_, number)| !number.is_finite()) {
            let what = format!("`{key}` is too large for a 32-bit number");
            return Err(Error::invalid(what));
        }
        let when = self.when.as_ref().map(|when| {
            let feature = find(&when.feature, saes)?;
            let above = when.above;
            Ok::<_, Error>(Condition { feature, above })
        });
        Ok(Intervention {
            target: self.target(saes)?,
            change,
            units: self.units.unwrap_or_default(),
            at: self
                .at
                .as_deref()
                .map_or(Ok(Positions::ALL), Positions::parse)?,
            when: when.transpose()?,
        })
    }

    fn target(&self, saes: &SaeSet) -> Result<Target> {
        if self.file.is_some() {
            return Err(match self.values {
                Some(_) => Error::invalid("both `values` and `file` are given")
                    .with_hint("keep one of the two"),
                None => Error::invalid("`file` is read only in a saved set that is itself a file")
                    .with_hint("give the vector's numbers as `values`"),
            });
        }
        match (&self.feature, &self.values) {
            (Some(_), Some(_)) => Err(Error::invalid("both `feature` and `values` are given")
                .with_hint("keep one of the two")),
            (None, None) => Err(match self.kind.0.targets {
                crate::steering::Targets::Vectors => Error::invalid("`values` is missing")
                    .with_hint("give the vector's numbers, or the `file` that holds them"),
                _ => Error::invalid("`feature` is missing: an index or a label"),
            }),
            (Some(name), None) => {
                if self.hook.is_some() {
                    let what = "`hook` is for vectors: a feature is changed where its SAE reads";
                    return Err(Error::invalid(what).with_hint("leave it out"));
                }
                let feature = find(name, saes)?;
                self.check_label(feature, saes)?;
                Ok(feature.into())
            }
            (None, Some(values)) => {
                let hook_point = match &self.hook {
                    Some(hook) => HookPoint::parse(hook)?,
                    None => default_hook_point(saes, "`hook` is missing")?,
                };
                let name = self.label.as_deref().unwrap_or("vector");
                Ok(Vector::new(name, hook_point, values.clone())?.into())
            }
        }
    }

    /// A feature of another label is a feature of another SAE.
    fn check_label(&self, feature: FeatureId, saes: &SaeSet) -> Result<()> {
        let known = saes.label(feature);
        let Some(label) = self.label.as_deref().filter(|label| Some(*label) != known) else {
            return Ok(());
        };
        let known = known.map_or("no label".to_owned(), |known| {
            format!("the label `{known}`")
        });
        Err(Error::invalid(format!(
            "feature `{}` has {known} in this SAE, not `{label}`: the set was made with another SAE",
            saes.shown(feature)
        ))
        .with_hint("use that SAE, or leave `label` out"))
    }
}

/// The hook point of a vector that names none: where the SAE's features write, while there is one SAE.
///
/// # Errors
/// `missing`, where there is no SAE or several.
pub fn default_hook_point(saes: &SaeSet, missing: &str) -> Result<HookPoint> {
    match saes.len() {
        1 => Ok(saes[0].outputs()[0]),
        n => {
            let n = match n {
                0 => "is no SAE".to_owned(),
                n => format!("are {n} SAEs"),
            };
            let what = format!("{missing}, and there {n} to take the hook point from");
            Err(Error::invalid(what)
                .with_hint("name the hook point, such as `blocks.12.hook_resid_post`"))
        }
    }
}
