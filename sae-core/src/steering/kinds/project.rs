//! `project`: the part of rows along a direction is multiplied; by 0, it is projected out.

use super::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "project",
    past_participle: "projected",
    usage: "FEATURE:C",
    number: Number::Plain,
    targets: Targets::Both,
    help: "Multiply the row's part along the feature's decoder direction by C, whether the feature is active \
        or not: 0 projects the direction out",
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
