//! `scale`: a feature's activation is multiplied.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "scale",
    past_participle: "scaled",
    usage: "FEATURE:FACTOR",
    number: Number::Plain,
    targets: Targets::Features,
    help: "Multiply the feature's activation by FACTOR",
    formula: Formula::OfActivation(|factor, activation| (factor - 1.0) * activation),
};

impl Change {
    /// `x += (factor − 1) · a(x) · W_dec[feature]`.
    pub const fn scale(factor: f32) -> Self {
        Self {
            kind: &KIND,
            number: factor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::change_feature;

    #[test]
    fn the_activation_is_multiplied() {
        assert_eq!(change_feature(Change::scale(3.0), [1.0, 1.0]), [7.0, 9.0]);
    }
}
