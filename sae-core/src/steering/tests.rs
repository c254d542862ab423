//! The formulas on rows small enough to do by hand, what is refused, and properties.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{
    Change, Condition, DecoderDirection, Edit, Encoded, FeatureReader, Intervention, Positions,
    Target, Units, Vector,
};
use crate::token::Token;
use crate::{ErrorKind, FeatureId, HookPoint, Result};

const D_MODEL: usize = 19; // no multiple of the lanes of `dot`

/// An SAE whose thresholds and biases are the features' indices.
#[derive(Clone, Debug)]
struct TinySae {
    encoder_rows: Vec<Vec<f32>>, // [d_sae, d_model]
    decoder_rows: Vec<Vec<f32>>, // [d_sae, d_model]
}

impl TinySae {
    fn steering(&self, interventions: Vec<Intervention>) -> Result<Edit> {
        let d_model = self.decoder_rows[0].len();
        let direction = |feature: FeatureId| {
            let row = self.decoder_rows[feature.index].clone();
            let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            let usual = Some((feature.index + 2) as f32);
            Ok(DecoderDirection { row, norm, usual })
        };
        let hook_point = HookPoint::parse("blocks.0.hook_resid_post")?;
        Edit::new(hook_point, &interventions, d_model, direction, |feature| {
            Ok(Some(self.reader(feature.index)))
        })
    }

    fn reader(&self, feature: usize) -> FeatureReader {
        FeatureReader {
            encoder_row: self.encoder_rows[feature].clone(),
            bias: feature as f32,
            threshold: feature as f32,
        }
    }

    fn apply(&self, interventions: Vec<Intervention>, row: &[f32]) -> Vec<f32> {
        let mut row = row.to_vec();
        let mut steering = self.steering(interventions).expect("no contradiction");
        steering
            .apply(0, Token::image(), &mut row, not_needed)
            .expect("small numbers");
        row
    }
}

fn not_needed(feature: FeatureId) -> Encoded {
    unreachable!("feature {feature:?} is read by itself")
}

/// Feature 0 reads the first number of a row and writes (3, 4); feature 1 reads the second plus 1,
/// where that is above 1, and writes (0, 2).
fn two_features() -> TinySae {
    TinySae {
        encoder_rows: vec![vec![1.0, 0.0], vec![0.0, 1.0]],
        decoder_rows: vec![vec![3.0, 4.0], vec![0.0, 2.0]],
    }
}

fn intervention(feature: usize, change: Change) -> Intervention {
    Intervention::new(FeatureId::of_only(feature), change)
}

fn at(words: &str) -> Positions {
    Positions::parse(words).expect("valid positions")
}

/// What is done to feature 1 beside it does not count.
#[test]
fn activations_are_read_in_the_unmodified_row() {
    let both = [(0, Change::steer(1.0)), (1, Change::ablate())];
    let both = both.map(|(feature, change)| intervention(feature, change));
    let edited = two_features().apply(both.to_vec(), &[1.0, 5.0]);
    assert_eq!(edited, [4.0, 5.0 + 4.0 - 12.0]);
}

/// What a change of feature 0 makes of a row. The feature reads the row's first number, where that is above 0,
/// and its decoder row is (3, 4).
pub(super) fn change_feature(change: Change, row: [f32; 2]) -> Vec<f32> {
    two_features().apply(vec![intervention(0, change)], &row)
}

/// What a change along the vector (0, −2) makes of a row.
pub(super) fn change_along_vector(change: Change, row: [f32; 2]) -> Vec<f32> {
    two_features().apply(vec![along(&[0.0, -2.0], change)], &row)
}

/// Some roundings of numbers up to 20 in f32.
pub(super) fn assert_near(row: &[f32], expected: [f32; 2]) {
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() < 4e-6;
    assert!(
        row.iter().zip(&expected).all(is_near),
        "{row:?}, not {expected:?}"
    );
}

/// A vector at the place that tests edit.
fn vector(values: &[f32]) -> Vector {
    let hook_point = HookPoint::parse("blocks.0.hook_resid_post").expect("a known name");
    Vector::new("v", hook_point, values.to_vec()).expect("finite numbers")
}

fn along(values: &[f32], change: Change) -> Intervention {
    Intervention::new(vector(values), change)
}

#[test]
fn what_has_no_length_has_no_direction() {
    let zeros = |change| along(&[0.0, 0.0], change);
    check_refused(&[zeros(Change::project(0.0))], &["`v`", "all zeros"]);
    check_refused(&[zeros(Change::cap(1.0))], &["`v`", "all zeros"]);
    let unit = Intervention {
        units: Units::Unit,
        ..zeros(Change::vector(1.0))
    };
    check_refused(&[unit], &["`v`", "all zeros"]);
    let nothing = two_features().apply(vec![zeros(Change::vector(2.0))], &[1.0, 2.0]);
    assert_eq!(nothing, [1.0, 2.0]);
}

#[test]
fn kinds_are_for_targets() {
    check_refused(
        &[along(&[1.0, 0.0], Change::clamp(1.0))],
        &["`clamp`", "`v`"],
    );
    check_refused(
        &[along(&[1.0, 0.0], Change::steer(1.0))],
        &["`steer`", "`v`"],
    );
    check_refused(&[intervention(0, Change::vector(1.0))], &["`vector`"]);
    let hook_point = HookPoint::parse("blocks.0.hook_resid_post").expect("a known name");
    for values in [vec![], vec![1.0, f32::NAN], vec![f32::INFINITY]] {
        assert!(Vector::new("v", hook_point, values).is_err());
    }
}

/// A row of the prompt, and a token that is generated, each with what is added there.
#[test]
fn places_have_interventions_of_their_own() {
    let prompt = [
        Token::special(2),
        Token::patch(0, 0),
        Token::patch(0, 1),
        Token::text(7),
        Token::text(8),
    ];
    let at = |words: &str, intervention: Intervention| Intervention {
        at: at_with_ids(words),
        ..intervention
    };
    let everything = vec![
        at("image", along(&[1.0, 0.0], Change::vector(1.0))),
        at("patch:0,1,last", along(&[1.0, 0.0], Change::vector(10.0))),
        at("token:x", along(&[0.0, 1.0], Change::vector(1.0))),
        at("0,3..4", intervention(1, Change::steer(50.0))),
        at("-2", intervention(0, Change::clamp(0.0))),
        at("patch:0,0", intervention(0, Change::clamp(2.0))),
        at("generated", along(&[0.0, 1.0], Change::vector(5.0))),
    ];
    let mut edit = two_features().steering(everything).expect("no overlap");
    edit.place(&prompt).expect("the prompt has these rows");
    let mut added = |prompt_idx: usize, token: Token| {
        let mut row = [1.0, 1.0];
        let edited = edit.apply(prompt_idx, token, &mut row, not_needed);
        assert_eq!(edited.expect("small numbers"), row != [1.0, 1.0]);
        row.map(|x| x - 1.0)
    };
    let [bos, first, second, text, last] = prompt;
    assert_eq!(added(0, bos), [0.0, 100.0]);
    assert_eq!(added(1, first), [4.0, 4.0]);
    assert_eq!(added(2, second), [11.0, 0.0]);
    assert_eq!(added(3, text), [-3.0, -4.0 + 101.0]);
    assert_eq!(added(4, last), [10.0, 100.0]);
    assert_eq!(added(0, Token::generated(7)), [0.0, 6.0]);
    assert_eq!(added(0, Token::generated(8)), [0.0, 5.0]);
}

#[test]
fn rows_that_are_touched() {
    let prompt = [
        Token::text(9),
        Token::patch(0, 0),
        Token::patch(0, 1),
        Token::text(7),
    ];
    for (words, expected) in [
        ("all", [true; 4]),
        ("generated", [false; 4]),
        ("image", [false, true, true, false]),
        ("patch:0,1,last", [false, false, true, true]),
        ("token:x,generated", [false, false, false, true]),
    ] {
        // What changes nothing in a row touches it too.
        for change in [Change::steer(1.0), Change::clamp(0.0)] {
            let change = Intervention {
                at: at_with_ids(words),
                ..intervention(1, change)
            };
            let mut edit = two_features().steering(vec![change]).expect("it is one");
            edit.place(&prompt).expect("the prompt has these rows");
            let rows = prompt.iter().enumerate();
            let touched = rows.map(|(i, &token)| edit.touches(i, token));
            assert_eq!(touched.collect::<Vec<_>>(), expected, "{words}");
        }
    }
}

/// Positions whose tokens `x` have the id 7.
fn at_with_ids(words: &str) -> Positions {
    let mut positions = at(words);
    positions.find_tokens(|_| Ok(vec![7])).expect("a token");
    positions
}

#[test]
fn contradictions_at_places_are_refused() {
    let prompt = [Token::text(7), Token::text(8), Token::text(9)];
    let check = |first: &str, second: &str, is_refused: bool| {
        let set = [(first, Change::clamp(1.0)), (second, Change::steer(1.0))];
        let set = set.map(|(words, change)| Intervention {
            at: at_with_ids(words),
            ..intervention(1, change)
        });
        let mut edit = two_features()
            .steering(set.to_vec())
            .expect("not known yet");
        let error = edit.place(&prompt).err().map(|error| error.to_string());
        let said = error.is_some_and(|error| error.contains("clamped and steered"));
        assert_eq!(said, is_refused, "{first} and {second}");
    };
    check("0", "1", false);
    check("0", "0..1", true);
    check("last", "2", true);
    check("prompt", "last", true);
    check("token:x", "0", true);
    check("token:x", "1..2", false);
    check("token:x", "generated", true);
    let mut missing = two_features()
        .steering(vec![Intervention {
            at: at("3"),
            ..intervention(1, Change::steer(1.0))
        }])
        .expect("not known yet");
    assert!(missing.place(&prompt).is_err());
}

/// Feature 1 is active where the second number is above 0, with that and 1 more.
#[test]
fn conditions_are_read_in_the_unmodified_row() {
    let when = |above: f32, intervention: Intervention| Intervention {
        when: Some(Condition {
            feature: FeatureId::of_only(1),
            above,
        }),
        ..intervention
    };
    let check = |set: &[Intervention], row: [f32; 2], expected: [f32; 2]| {
        let edited = two_features().apply(set.to_vec(), &row);
        assert_eq!(edited, expected, "{set:?}");
    };
    let add = when(0.0, along(&[1.0, 0.0], Change::vector(2.0)));
    check(std::slice::from_ref(&add), [5.0, 3.0], [7.0, 3.0]);
    check(std::slice::from_ref(&add), [5.0, -3.0], [5.0, -3.0]);
    let above = |above| [when(above, along(&[1.0, 0.0], Change::vector(2.0)))];
    check(&above(3.5), [5.0, 3.0], [7.0, 3.0]);
    check(&above(4.0), [5.0, 3.0], [5.0, 3.0]);
    // What is done to the feature itself does not count.
    let ablate = intervention(1, Change::ablate());
    check(&[ablate, add.clone()], [5.0, 3.0], [7.0, 3.0 - 8.0]);
    let clamp = when(0.0, intervention(0, Change::clamp(0.0)));
    check(std::slice::from_ref(&clamp), [5.0, 3.0], [-10.0, -17.0]);
    check(std::slice::from_ref(&clamp), [5.0, -3.0], [5.0, -3.0]);
    // Two that may both hold.
    let [other] = above(3.5);
    check(&[other, add], [5.0, 3.0], [9.0, 3.0]);
    check_refused(
        &[clamp, intervention(0, Change::ablate())],
        &["clamped and ablated"],
    );
}

#[test]
fn unit_numbers_count_directions_of_length_1() {
    let check = |change: Change, expected: [f32; 2]| {
        let intervention = Intervention {
            units: Units::Unit,
            ..intervention(0, change)
        };
        // A raw activation of 1, which is 5 of (3, 4)'s unit-length direction.
        let edited = two_features().apply(vec![intervention], &[1.0, 1.0]);
        assert_eq!(edited, expected);
    };
    check(Change::steer(10.0), [7.0, 9.0]);
    check(Change::clamp(5.0), [1.0, 1.0]);
    check(Change::clamp(15.0), [7.0, 9.0]);
    check(Change::scale(2.0), [4.0, 5.0]);
    check(Change::ablate(), [-2.0, -3.0]);
    let vector = Intervention {
        units: Units::Unit,
        ..along(&[0.0, -2.0], Change::vector(3.0))
    };
    let edited = two_features().apply(vec![vector], &[1.0, 1.0]);
    assert_eq!(edited, [1.0, -2.0]);
}

#[test]
fn usual_numbers_count_usual_activations() {
    let usual = |change: Change| Intervention {
        units: Units::Usual,
        ..intervention(0, change)
    };
    // Feature 0 is at 1, and usually at 2.
    let check = |change: Change, expected: [f32; 2]| {
        let edited = two_features().apply(vec![usual(change)], &[1.0, 1.0]);
        assert_eq!(edited, expected);
    };
    check(Change::steer(-1.0), [-5.0, -7.0]);
    check(Change::clamp(0.5), [1.0, 1.0]);
    check(Change::clamp(1.5), [7.0, 9.0]);
    check(Change::scale(2.0), [4.0, 5.0]);
    check(Change::ablate(), [-2.0, -3.0]);

    let hook_point = HookPoint::parse("blocks.0.hook_resid_post").expect("a known name");
    let refused = |intervention: Intervention, usual, words: &str| {
        let direction = |_| {
            let row = vec![3.0, 4.0];
            Ok(DecoderDirection {
                row,
                norm: 5.0,
                usual,
            })
        };
        let edit = Edit::new(hook_point, &[intervention], 2, direction, |_| Ok(None));
        let error = edit.expect_err("not what is usual");
        assert_eq!(error.kind(), ErrorKind::NoBaseline);
        assert!(
            error.to_string().contains(words) && error.hint().is_some(),
            "{error}"
        );
    };
    refused(usual(Change::steer(1.0)), None, "does not say");
    refused(usual(Change::clamp(1.0)), Some(0.0), "no picture");
    let vector = Intervention {
        units: Units::Usual,
        ..along(&[0.0, -2.0], Change::vector(3.0))
    };
    refused(vector, None, "vectors have no activations");
}

#[test]
fn each_intervention_has_its_own_positions() {
    let everything = vec![
        Intervention {
            at: at("image"),
            ..intervention(0, Change::steer(1.0))
        },
        Intervention {
            at: at("generated"),
            ..intervention(0, Change::clamp(0.0))
        },
        Intervention {
            at: at("image,generated"),
            ..intervention(1, Change::steer(10.0))
        },
        Intervention {
            at: at("prompt,no-special"),
            ..intervention(1, Change::steer(1.0))
        },
    ];
    let mut steering = two_features().steering(everything).expect("no overlap");
    let mut check = |token: Token, touched: bool, expected: [f32; 2]| {
        let mut row = [1.0, 1.0];
        let edited = steering.apply(0, token, &mut row, not_needed);
        let edited = edited.expect("small numbers");
        assert_eq!((edited, row), (touched, expected), "{token:?}");
    };
    check(Token::image(), true, [4.0, 25.0]);
    check(Token::text(5), true, [1.0, 3.0]);
    check(Token::special(2), false, [1.0, 1.0]);
    check(Token::generated(5), true, [-2.0, 17.0]);
}

#[test]
fn opposite_strengths_cancel_exactly() {
    let strengths = [(0, 0.1), (1, 9.0), (0, -0.1), (1, -9.0)];
    let additions = strengths.map(|(feature, by)| intervention(feature, Change::steer(by)));
    let edited = two_features().apply(additions.to_vec(), &[0.1, 0.7]);
    assert_eq!(edited, [0.1, 0.7]);
}

fn check_refused(interventions: &[Intervention], words: &[&str]) {
    let result = two_features().steering(interventions.to_vec());
    let error = result.expect_err("refused").to_string();
    for word in words {
        assert!(error.contains(word), "{interventions:?}: {error}");
    }
}

#[test]
fn contradictions_are_refused() {
    let check = |first, second, words: &[&str]| {
        let pair = [intervention(1, first), intervention(1, second)];
        check_refused(&pair, &[words, &["feature `1`"]].concat());
        let elsewhere = Intervention {
            at: at("prompt"),
            ..pair[0].clone()
        };
        let apart = Intervention {
            at: at("image"),
            ..pair[1].clone()
        };
        assert!(two_features().steering(vec![elsewhere, apart]).is_ok());
    };
    let (clamp, scale) = (Change::clamp(1.0), Change::scale(2.0));
    check(clamp, clamp, &["clamped twice"]);
    check(Change::ablate(), scale, &["ablated and scaled"]);
    check(Change::steer(1.0), clamp, &["steered and clamped"]);
    check(scale, Change::steer(1.0), &["scaled and steered"]);
    check(Change::ablate(), Change::ablate(), &["ablated twice"]);
    let (project, cap) = (Change::project(0.0), Change::cap(1.0));
    check(project, project, &["projected twice"]);
    check(cap, project, &["capped and projected"]);
    check(Change::steer(1.0), cap, &["steered and capped"]);
    check(project, Change::ablate(), &["projected and ablated"]);
    let vector = |change| along(&[1.0, 2.0], change);
    let added = vector(Change::vector(1.0));
    let words = &["the vector `v`", "added and capped"];
    check_refused(&[added.clone(), vector(cap)], words);
    let others = vec![added.clone(), added, along(&[2.0, 1.0], cap)];
    assert!(two_features().steering(others).is_ok());
}

#[test]
fn impossible_numbers_are_refused() {
    for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for change in [
            Change::steer(number),
            Change::clamp(number),
            Change::scale(number),
        ] {
            check_refused(&[intervention(0, change)], &["feature `0`", "finite"]);
        }
    }
    let add = |feature| intervention(feature, Change::steer(f32::MAX));
    check_refused(&[add(0), add(1)], &["strengths add up", "too large"]);
    let mut sae = two_features();
    sae.decoder_rows[1].fill(0.0);
    let unit = Intervention {
        units: Units::Unit,
        ..add(1)
    };
    let error = sae.steering(vec![unit]).expect_err("no direction");
    assert!(error.to_string().contains("all zeros"), "{error}");
    assert!(sae.steering(vec![add(1)]).is_ok());
}

/// An activation is known only when the row comes.
#[test]
fn rows_that_become_too_large_are_refused() {
    for change in [Change::clamp(1e30), Change::scale(-1e30)] {
        let steering = two_features().steering(vec![intervention(0, change)]);
        let result =
            steering
                .expect("finite numbers")
                .apply(0, Token::text(5), &mut [1.0, 1.0], not_needed);
        assert_eq!(
            result.expect_err("too large").kind(),
            ErrorKind::Invalid,
            "{change:?}"
        );
    }
}

prop_compose! {
    fn an_sae(d_sae: usize)(
        encoder_rows in vec(vec(-2.0_f32..2.0, D_MODEL), d_sae),
        decoder_rows in vec(vec(-2.0_f32..2.0, D_MODEL), d_sae),
    ) -> TinySae {
        TinySae { encoder_rows, decoder_rows }
    }
}

fn a_row() -> impl Strategy<Value = Vec<f32>> {
    vec(-100.0_f32..100.0, D_MODEL)
}

/// A number near what a sum of `n` products is in f64: each rounds by half a unit in the last place, and so does
/// each sum.
fn is_near(a: f32, b: f64, scale: f64, n: usize) -> bool {
    (f64::from(a) - b).abs() <= n as f64 * f64::from(f32::EPSILON) * scale
}

fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b);
    products.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Interventions on 8 features and 3 vectors that do not contradict each other, in two orders: additions on the
/// first four features and the first vector, several on some; other changes on the rest, one on each. Some have
/// places, and some a condition.
fn in_two_orders() -> impl Strategy<Value = (Vec<Intervention>, Vec<Intervention>)> {
    let number = || -10.0_f32..10.0;
    let add = |strength: f32, target: usize| match target {
        4 => along(&[0.5; D_MODEL], Change::vector(strength)),
        feature => intervention(feature, Change::steer(strength)),
    };
    let words = prop_oneof![
        Just("all"),
        Just("image"),
        Just("generated"),
        Just("1"),
        Just("0..1,last"),
        Just("patch:0,0")
    ];
    let when = prop_oneof![
        Just(None),
        (0_usize..8, -10.0_f32..10.0).prop_map(|(index, above)| {
            let feature = FeatureId::of_only(index);
            Some(Condition { feature, above })
        })
    ];
    let addition = (number(), 0_usize..5, words, when.clone());
    let additions = vec(addition, 0..8);
    let of_feature = prop_oneof![
        number().prop_map(Change::clamp),
        number().prop_map(Change::scale),
        number().prop_map(Change::project),
        number().prop_map(Change::cap),
        Just(Change::ablate()),
    ];
    let of_vector = prop_oneof![
        number().prop_map(Change::project),
        number().prop_map(Change::cap),
    ];
    let units = prop::sample::select(&Units::ALL[..]);
    let changes = vec((of_feature, units, when), 4);
    (additions, changes, vec(of_vector, 2)).prop_flat_map(move |(additions, changes, vectors)| {
        let additions = additions
            .into_iter()
            .map(|(strength, target, words, when)| Intervention {
                at: at(words),
                when,
                ..add(strength, target)
            });
        let changes = (4..)
            .zip(changes)
            .map(|(feature, (change, units, when))| Intervention {
                units,
                when,
                ..intervention(feature, change)
            });
        let vectors = (1..).zip(vectors);
        let vectors = vectors.map(|(i, change)| along(&[i as f32; D_MODEL], change));
        let all: Vec<_> = additions.chain(changes).chain(vectors).collect();
        (Just(all.clone()), Just(all).prop_shuffle())
    })
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Exactly: the activation is computed once and in one way.
    #[test]
    fn clamping_to_the_present_activation_changes_nothing(sae in an_sae(1), row in a_row()) {
        let present = sae.reader(0).activation(&row);
        let edited = sae.apply(vec![intervention(0, Change::clamp(present))], &row);
        prop_assert_eq!(bits(&edited), bits(&row));
    }

    #[test]
    fn ablating_an_inactive_feature_changes_nothing(sae in an_sae(1), row in a_row()) {
        prop_assume!(sae.reader(0).activation(&row) == 0.0);
        for change in [Change::ablate(), Change::scale(7.0)] {
            let edited = sae.apply(vec![intervention(0, change)], &row);
            prop_assert_eq!(bits(&edited), bits(&row));
        }
    }

    /// `(I − P) x + c · P x` and the projection that is held, in f64.
    #[test]
    fn directions_are_those_of_the_formulas(
        sae in an_sae(1),
        row in a_row(),
        number in -50.0_f32..50.0,
        is_vector in any::<bool>(),
    ) {
        let w = &sae.decoder_rows[0];
        let length = dot_f64(w, w).sqrt();
        prop_assume!(length > 0.5);
        let p = dot_f64(&row, w) / length;
        let scale = dot_f64(&row, &row).sqrt() + p.abs().max(1.0) * f64::from(number).abs();
        let target = || match is_vector {
            true => Target::from(vector(w)),
            false => FeatureId::of_only(0).into(),
        };
        let c = f64::from(number);
        for (change, projection) in [(Change::project(number), c * p), (Change::cap(number), p.min(c))] {
            let edited = sae.apply(vec![Intervention::new(target(), change)], &row);
            for ((edited, x), w) in edited.iter().zip(&row).zip(w) {
                let expected = f64::from(*x) + (projection - p) * f64::from(*w) / length;
                prop_assert!(is_near(*edited, expected, scale, D_MODEL + 4), "{} and {}", edited, expected);
            }
            prop_assert!(is_near((dot_f64(&edited, w) / length) as f32, projection, scale, 2 * D_MODEL));
        }
    }

    /// Once held, a row is held: to the rounding of the first time.
    #[test]
    fn rows_within_the_cap_are_the_same_bits(sae in an_sae(1), row in a_row()) {
        let w = &sae.decoder_rows[0];
        let p = dot_f64(&row, w) / dot_f64(w, w).sqrt().max(1e-3);
        let above = (p + 1e-3 * p.abs().max(1.0)) as f32;
        prop_assume!(dot_f64(w, w) > 0.1);
        let edited = sae.apply(vec![intervention(0, Change::cap(above))], &row);
        prop_assert_eq!(bits(&edited), bits(&row));
    }

    /// To the rounding of two sums in f32, each half a unit in the last place of what it gives.
    #[test]
    fn adding_and_subtracting_gives_the_row_back(
        sae in an_sae(1),
        row in a_row(),
        strength in -1000.0_f32..1000.0,
    ) {
        let add = |by| vec![intervention(0, Change::steer(by))];
        let back = sae.apply(add(-strength), &sae.apply(add(strength), &row));
        for ((x, back), w) in row.iter().zip(&back).zip(&sae.decoder_rows[0]) {
            let largest = x.abs() + (strength * w).abs();
            prop_assert!((x - back).abs() <= 2.0 * f32::EPSILON * largest, "{} and {}", x, back);
        }
    }

    #[test]
    fn the_order_does_not_matter(
        sae in an_sae(8),
        row in a_row(),
        (interventions, shuffled) in in_two_orders(),
    ) {
        let prompt = [Token::special(2), Token::patch(0, 0), Token::patch(0, 1), Token::text(5)];
        let mut both = [interventions, shuffled].map(|set| {
            let mut edit = sae.steering(set).expect("no contradiction");
            edit.place(&prompt).expect("the prompt has these rows");
            edit
        });
        let generated = (0, Token::generated(5));
        for (i, token) in prompt.into_iter().enumerate().chain([generated]) {
            let [one, other] = both.each_mut().map(|edit| {
                let mut row = row.clone();
                edit.apply(i, token, &mut row, not_needed).expect("small numbers");
                row
            });
            prop_assert_eq!(bits(&one), bits(&other));
        }
    }
}
