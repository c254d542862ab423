//! `vector`: given values are added; no SAE is needed.

use super::kind::{Change, Formula, Kind, Number, Targets};

pub(super) static KIND: Kind = Kind {
    name: "vector",
    past_participle: "added",
    usage: "FILE[@HOOK]:STRENGTH",
    number: Number::OfUnits,
    targets: Targets::Vectors,
    help: "Add STRENGTH times the values of FILE, a safetensors file with one tensor, at the hook point HOOK, \
        such as `blocks.12.hook_resid_post`; without HOOK, at the SAE's hook point, if there is just one SAE",
    formula: Formula::Constant,
};

impl Change {
    /// `x += strength · v` for a vector `v` (Turner et al., *Activation Addition*, 2023).
    pub const fn vector(strength: f32) -> Self {
        Self {
            kind: &KIND,
            number: strength,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use crate::steering::tests::change_along_vector;

    #[test]
    fn the_vector_is_added() {
        assert_eq!(
            change_along_vector(Change::vector(3.0), [1.0, 1.0]),
            [1.0, -5.0]
        );
    }
}
