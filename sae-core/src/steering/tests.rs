//! The formulas on rows small enough to do by hand, what is refused, and properties.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{
    Change, DecoderDirection, Edit, Encoded, FeatureReader, Intervention, Positions, Units,
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
            Ok(DecoderDirection { row, norm })
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

#[test]
fn formulas() {
    let check = |interventions: &[(usize, Change)], row: [f32; 2], expected: [f32; 2]| {
        let interventions = interventions
            .iter()
            .map(|&(feature, change)| intervention(feature, change))
            .collect();
        let edited = two_features().apply(interventions, &row);
        assert_eq!(edited, expected);
    };
    check(&[(0, Change::steer(2.0))], [1.0, 1.0], [7.0, 9.0]);
    check(&[(0, Change::clamp(3.0))], [1.0, 1.0], [7.0, 9.0]);
    check(&[(0, Change::clamp(3.0))], [-1.0, 1.0], [8.0, 13.0]);
    check(&[(0, Change::ablate())], [2.0, 1.0], [-4.0, -7.0]);
    check(&[(0, Change::ablate())], [-2.0, 1.0], [-2.0, 1.0]);
    check(&[(0, Change::scale(3.0))], [1.0, 1.0], [7.0, 9.0]);
    // Feature 1 reads 5 + 1, whatever is done to feature 0 beside it.
    let both = [(0, Change::steer(1.0)), (1, Change::ablate())];
    check(&both, [1.0, 5.0], [4.0, 5.0 + 4.0 - 12.0]);
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

/// Interventions on 8 features that do not contradict each other, in two orders: additions on the
/// first four, several on some; other changes on the rest, one on each.
fn in_two_orders() -> impl Strategy<Value = (Vec<Intervention>, Vec<Intervention>)> {
    let number = -10.0_f32..10.0;
    let additions = vec((0_usize..4, number.clone().prop_map(Change::steer)), 0..8);
    let change = prop_oneof![
        number.clone().prop_map(Change::clamp),
        number.prop_map(Change::scale),
        Just(Change::ablate()),
    ];
    let units = prop_oneof![Just(Units::Raw), Just(Units::Unit)];
    (additions, vec((change, units), 4)).prop_flat_map(|(additions, changes)| {
        let additions = additions
            .into_iter()
            .map(|(feature, change)| intervention(feature, change));
        let changes = (4..)
            .zip(changes)
            .map(|(feature, (change, units))| Intervention {
                units,
                ..intervention(feature, change)
            });
        let all: Vec<_> = additions.chain(changes).collect();
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
        let edited = sae.apply(interventions, &row);
        prop_assert_eq!(bits(&edited), bits(&sae.apply(shuffled, &row)));
    }
}
