//! One intervention: what is changed, how, and where.

use serde::{Deserialize, Serialize};

use super::kinds::{Change, Formula, Number, Targets};
use super::target::Target;
use crate::feature::{DecoderDirection, FeatureId};
use crate::positions::Positions;
use crate::{Error, ErrorKind, Result};

/// One change of one feature, or along one vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Intervention {
    /// What is changed.
    pub target: Target,
    /// What is done to it.
    pub change: Change,
    /// What the change's number counts.
    pub units: Units,
    /// Where it is done.
    pub at: Positions,
    /// A further condition on the rows, if any.
    pub when: Option<Condition>,
}

impl Intervention {
    /// An intervention at all positions, whose number counts decoder rows as trained.
    pub fn new(target: impl Into<Target>, change: Change) -> Self {
        Self {
            target: target.into(),
            change,
            units: Units::Raw,
            at: Positions::ALL,
            when: None,
        }
    }

    /// The same at these positions.
    #[must_use]
    pub fn at(self, at: Positions) -> Self {
        Self { at, ..self }
    }

    /// The features whose activations it asks for.
    pub(super) fn read_features(&self) -> impl Iterator<Item = FeatureId> {
        let is_read = matches!(self.change.kind().formula, Formula::OfActivation(_));
        let own = self.target.feature().filter(|_| is_read);
        own.into_iter().chain(self.when.map(|when| when.feature))
    }

    /// The change's number, with units converted to multiples of the direction, which is the target's.
    ///
    /// # Errors
    /// A kind that is not for the target; a number that is not finite; units of which the target has none.
    pub fn number(&self, direction: &DecoderDirection) -> Result<f64> {
        let norm = direction.norm;
        let (target, kind) = (&self.target, self.change.kind());
        let is_for = match target {
            Target::Feature(_) => kind.targets != Targets::Vectors,
            Target::Vector(_) => kind.targets != Targets::Features,
        };
        if !is_for {
            return Err(Error::invalid(format!(
                "`{}` cannot be applied to {target}",
                kind.name
            )));
        }
        let number = self.change.number().unwrap_or_default();
        if !number.is_finite() {
            let verb = kind.past_participle;
            return Err(Error::invalid(format!(
                "{target} cannot be {verb} by `{number}`: the number must be finite"
            )));
        }
        let units = match kind.number {
            Number::OfUnits => self.units,
            Number::None | Number::Plain => Units::Raw,
        };
        let is_projection = matches!(kind.formula, Formula::OfProjection(_));
        if (units == Units::Unit || is_projection) && norm <= 0.0 {
            let why = match target {
                Target::Feature(_) => "its decoder row is all zeros",
                Target::Vector(_) => "it is all zeros",
            };
            return Err(
                Error::invalid(format!("{target} has no direction of unit length: {why}"))
                    .with_hint("use another one: changing this one has no effect"),
            );
        }
        Ok(match units {
            Units::Raw => number.into(),
            Units::Unit => f64::from(number) / f64::from(norm),
            Units::Usual => f64::from(number) * f64::from(self.usual(direction)?),
        })
    }

    /// The usual activation of the target, which has one.
    fn usual(&self, direction: &DecoderDirection) -> Result<f32> {
        let target = &self.target;
        let refused = |why: &str| {
            let what = format!("{target} has no usual activation to count in: {why}");
            Error::new(ErrorKind::NoBaseline, what)
        };
        match (target, direction.usual) {
            (Target::Vector(_), _) => {
                Err(refused("vectors have no activations").with_hint("count in raw units"))
            }
            (_, None) => Err(refused("the SAE's file does not say what is usual")
                .with_hint("measure it on a folder of varied pictures")),
            (_, Some(0.0)) => Err(refused("no picture of the SAE's baseline activates it")
                .with_hint("count in raw units, or measure what is usual on pictures that do")),
            (_, Some(usual)) => Ok(usual),
        }
    }
}

/// Limits an intervention to rows where a feature is active, in the row before interventions there. Its SAE
/// reads at the intervention's hook point, or at one that the model computes before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Condition {
    /// The feature.
    pub feature: FeatureId,
    /// What its activation exceeds in those rows.
    pub above: f32,
}

/// The unit of strengths and clamp values. Factors have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Units {
    /// Decoder rows as trained: `SAELens` and the original experiment.
    #[default]
    Raw,
    /// Decoder rows scaled to length 1, and activations by the rows' lengths: Neuronpedia. A raw
    /// number is this one divided by `‖W_dec[feature]‖`.
    Unit,
    /// Multiples of the feature's usual activation ([`Sae::usual`](crate::Sae::usual)), which make strengths of
    /// features comparable. A raw number is this one times the usual activation.
    Usual,
}

impl Units {
    /// Every unit.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Unit, Self::Usual];

    /// Its name, as options and saved sets have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Unit => "unit",
            Self::Usual => "usual",
        }
    }
}

/// Refuses two changes of one target at overlapping positions, unless both are additions. Conditions do not
/// separate two changes: both may hold.
pub(super) fn check_contradictions(
    interventions: &[Intervention],
    overlap: impl Fn(usize, usize) -> bool,
) -> Result<()> {
    for (j, second) in interventions.iter().enumerate() {
        for (i, first) in interventions[..j].iter().enumerate() {
            let is_addition =
                |one: &Intervention| matches!(one.change.kind().formula, Formula::Constant);
            if first.target != second.target
                || is_addition(first) && is_addition(second)
                || !overlap(i, j)
            {
                continue;
            }
            let [one, other] = [first, second].map(|one| one.change.kind().past_participle);
            let both = if one == other {
                format!("{one} twice")
            } else {
                format!("{one} and {other}")
            };
            return Err(Error::invalid(format!(
                "{} cannot be {both} at the same positions",
                first.target
            ))
            .with_hint("keep one of the two, or give them different positions"));
        }
    }
    Ok(())
}
