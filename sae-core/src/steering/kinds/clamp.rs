//! `clamp`: a feature's activation is set.

use super::kind::{Change, Formula, Kind, Number, Targets};

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

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::change_feature;

    #[test]
    fn the_activation_becomes_the_value() {
        assert_eq!(change_feature(Change::clamp(3.0), [1.0, 1.0]), [7.0, 9.0]);
        assert_eq!(change_feature(Change::clamp(3.0), [-1.0, 1.0]), [8.0, 13.0]);
    }
}
