//! `clamp`: a feature's activation is set.

use super::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "clamp",
    past_participle: "clamped",
    usage: "FEATURE:VALUE",
    number: Number::OfUnits,
    targets: Targets::Features,
    help: "Set the feature's activation to VALUE",
    formula: Formula::OfActivation(|value, activation| value - activation),
};

impl Change {
    /// `x += (value − a(x)) · W_dec[feature]`.
    pub const fn clamp(value: f32) -> Self {
        Self {
            kind: &KIND,
            number: value,
        }
    }
}
