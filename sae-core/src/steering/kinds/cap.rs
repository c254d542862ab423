//! `cap`: rows go no further along a direction than to a bound.

use super::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "cap",
    past_participle: "capped",
    usage: "FEATURE:C",
    number: Number::Plain,
    targets: Targets::Both,
    help: "Hold the row's projection on the feature's decoder direction, of length 1, to at most C",
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
