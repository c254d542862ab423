//! The kinds of interventions: what each is called, and its formula.
//!
//! A new kind is a file here, beside these, with its words, its formula and its test, and a line in [`KINDS`]:
//! the command line's option, the word in saved sets and the words of errors come from there.

mod ablate;
mod cap;
mod clamp;
mod kind;
mod project;
mod scale;
mod steer;
mod vector;

pub(super) use self::kind::Formula;
pub use self::kind::{Change, Kind, Number, Targets};

/// Every kind.
pub static KINDS: [&Kind; 7] = [
    &steer::KIND,
    &clamp::KIND,
    &ablate::KIND,
    &scale::KIND,
    &vector::KIND,
    &project::KIND,
    &cap::KIND,
];

impl Kind {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS.into_iter().find(|kind| kind.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Formula, KINDS, Kind, Number, Targets};

    #[test]
    fn each_kind_has_words_of_its_own() {
        for (i, kind) in KINDS.iter().enumerate() {
            assert!(Kind::named(kind.name).is_some_and(|found| found.name == kind.name));
            for other in &KINDS[..i] {
                assert_ne!(kind.name, other.name);
                assert_ne!(kind.help, other.help);
            }
            // A vector has no activation.
            let reads = matches!(kind.formula, Formula::OfActivation(_));
            assert!(!reads || kind.targets == Targets::Features, "{}", kind.name);
            let takes = |number| Change::new(kind, number).is_ok();
            let has_number = kind.number != Number::None;
            assert_eq!([takes(Some(1.0)), takes(None)], [has_number, !has_number]);
        }
        assert!(Kind::named("kill").is_none());
    }
}
