//! `ablate`: a feature's activation is taken away.

use super::{Change, Formula, Kind, Number, Targets};

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
