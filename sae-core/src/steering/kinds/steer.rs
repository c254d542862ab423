//! `steer`: a feature's decoder direction is added.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "steer",
    past_participle: "steered",
    usage: "FEATURE:STRENGTH",
    number: Number::OfUnits,
    targets: Targets::Features,
    help: "Add STRENGTH times the feature's decoder direction. FEATURE is an index or a label; repeatable, \
        or comma-separated. A good start is minus the feature's `max`, as `features` shows it",
    formula: Formula::Constant,
};

impl Change {
    /// `x += strength · W_dec[feature]`, without the decoder's bias, as `SAELens` and the original
    /// experiment steer.
    pub const fn steer(strength: f32) -> Self {
        Self {
            kind: &KIND,
            number: strength,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::change_feature;

    #[test]
    fn the_decoder_direction_is_added() {
        assert_eq!(change_feature(Change::steer(2.0), [1.0, 1.0]), [7.0, 9.0]);
    }
}
