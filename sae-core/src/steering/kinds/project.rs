//! `project`: the part of rows along a direction is multiplied; by 0, it is projected out.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "project",
    past_participle: "projected",
    usage: "FEATURE:C",
    number: Number::Plain,
    targets: Targets::Both,
    help: "Multiply the row's component along the feature's decoder direction by C, whether or not the \
        feature is active; 0 projects the direction out",
    formula: Formula::OfProjection(|c, projection| c * projection),
};

impl Change {
    /// `x ← (I − P) x + c · P x`, where `P` is the projection on the line of `w`, the feature's decoder row or
    /// the vector: `P x = (x·w / ‖w‖²) w`. With `c` = 0 it is directional ablation (Arditi et al., *Refusal in
    /// Language Models Is Mediated by a Single Direction*, 2024).
    pub const fn project(c: f32) -> Self {
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
    fn the_part_along_the_direction_is_multiplied() {
        let feature = |change, row, expected| assert_near(&change_feature(change, row), expected);
        let vector =
            |change, row, expected| assert_near(&change_along_vector(change, row), expected);
        // (5, 10) goes 11 along (3, 4) / 5.
        feature(Change::project(0.0), [5.0, 10.0], [-1.6, 1.2]);
        feature(Change::project(1.0), [5.0, 10.0], [5.0, 10.0]);
        feature(Change::project(2.0), [5.0, 10.0], [11.6, 18.8]);
        // It is the direction that counts, whether the feature is active or not.
        feature(Change::project(0.0), [-5.0, -10.0], [1.6, -1.2]);
        vector(Change::project(0.0), [1.0, 7.0], [1.0, 0.0]);
    }
}
