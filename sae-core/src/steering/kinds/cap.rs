//! `cap`: rows go no further along a direction than to a bound.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "cap",
    past_participle: "capped",
    usage: "FEATURE:C",
    number: Number::Plain,
    targets: Targets::Both,
    help: "Limit the row's projection onto the feature's unit-length decoder direction to at most C",
    formula: Formula::OfProjection(|c, projection| projection.min(c)),
};

impl Change {
    /// `x += (min(p, c) − p) · ŵ`, where `ŵ = w / ‖w‖` is the direction of the feature's decoder row or of the
    /// vector, and `p = x·ŵ`: activation capping (Lu et al., *The Assistant Axis*, 2026).
    pub const fn cap(c: f32) -> Self {
        Self {
            kind: &KIND,
            number: c,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::{assert_near, change_along_vector, change_feature};

    #[test]
    fn the_projection_is_held_to_the_bound() {
        let feature = |change, row, expected| assert_near(&change_feature(change, row), expected);
        let vector =
            |change, row, expected| assert_near(&change_along_vector(change, row), expected);
        // (5, 10) goes 11 along (3, 4) / 5.
        feature(Change::cap(6.0), [5.0, 10.0], [2.0, 6.0]);
        feature(Change::cap(-4.0), [5.0, 10.0], [-4.0, -2.0]);
        feature(Change::cap(11.5), [5.0, 10.0], [5.0, 10.0]);
        vector(Change::cap(0.5), [1.0, -7.0], [1.0, -0.5]);
        vector(Change::cap(0.5), [1.0, 7.0], [1.0, 7.0]);
    }
}
