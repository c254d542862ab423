//! What a kind of intervention is, and a change of one kind.

use crate::{Error, Result};

/// A kind of intervention, and its words.
#[derive(Debug)]
pub struct Kind {
    /// Its name: the command line's option, and `kind` in saved sets.
    pub name: &'static str,
    /// What was done to a target, as in "feature `3` cannot be `clamped` twice".
    pub past_participle: &'static str,
    /// What the command line's option takes, such as `FEATURE:STRENGTH`.
    pub usage: &'static str,
    /// What its number is, if it takes one.
    pub number: Number,
    /// What it can be done to.
    pub targets: Targets,
    /// What it does, in the words of `--help`.
    pub help: &'static str,
    pub(in crate::steering) formula: Formula,
}

/// What the number of a kind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// There is none.
    None,
    /// It counts decoder rows as trained, directions of length 1, or usual activations, as
    /// [`Units`](crate::steering::Units) say.
    OfUnits,
    /// It has no unit.
    Plain,
}

/// What a kind can be done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Features.
    Features,
    /// Vectors.
    Vectors,
    /// Either.
    Both,
}

/// `k` of `x += k · w`, where `x` is a row, and `w` the feature's decoder row or the vector; all that is read
/// is of the unmodified row.
#[derive(Clone, Copy, Debug)]
pub(in crate::steering) enum Formula {
    /// `k` is the number.
    Constant,
    /// `k` of the number and the feature's activation `a(x)`.
    OfActivation(fn(number: f32, activation: f32) -> f32),
    /// What becomes of the projection `p = x·w / ‖w‖`, of the number and of `p`: `k = (p′ − p) / ‖w‖`.
    OfProjection(fn(number: f64, projection: f64) -> f64),
}

/// What is done to a target: a kind, with its number.
///
/// Only the target's own part of the row changes: what the SAE does not explain of the row, its error, is
/// kept, as Anthropic does when it clamps features (*Scaling Monosemanticity*, 2024).
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub(super) kind: &'static Kind,
    pub(super) number: f32, // 0 where the kind takes none
}

impl Change {
    /// A change of this kind, which takes a number or takes none.
    ///
    /// # Errors
    /// A number that is missing, or superfluous.
    pub fn new(kind: &'static Kind, number: Option<f32>) -> Result<Self> {
        match (kind.number, number) {
            (Number::None, None) => Ok(Self { kind, number: 0.0 }),
            (Number::None, Some(_)) => {
                let what = format!("`{}` takes no `value`", kind.name);
                Err(Error::invalid(what).with_hint("leave it out"))
            }
            (_, Some(number)) => Ok(Self { kind, number }),
            (_, None) => Err(Error::invalid("`value` is missing")),
        }
    }

    /// What is done.
    pub fn kind(self) -> &'static Kind {
        self.kind
    }

    /// By how much, for a kind that takes a number.
    pub fn number(self) -> Option<f32> {
        (self.kind.number != Number::None).then_some(self.number)
    }
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        self.kind.name == other.kind.name && self.number == other.number
    }
}
