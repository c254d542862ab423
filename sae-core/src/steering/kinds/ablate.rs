//! `ablate`: a feature's activation is taken away.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "ablate",
    past_participle: "ablated",
    usage: "FEATURE",
    number: Number::None,
    targets: Targets::Features,
    help: "Set the feature's activation to 0",
    formula: Formula::OfActivation(|_, activation| -activation),
};

impl Change {
    /// `x −= a(x) · W_dec[feature]`: a clamp to 0.
    pub const fn ablate() -> Self {
        Self {
            kind: &KIND,
            number: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::change_feature;

    #[test]
    fn the_activation_is_taken_away() {
        assert_eq!(change_feature(Change::ablate(), [2.0, 1.0]), [-4.0, -7.0]);
        assert_eq!(change_feature(Change::ablate(), [-2.0, 1.0]), [-2.0, 1.0]);
    }
}
