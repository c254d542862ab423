//! Effect sizes and areas against their definitions.

use super::{Compared, Comparison, Sort, auroc};

/// Every pair of images, one outside and one inside.
fn by_pairs(outside: &[f32], inside: &[f32]) -> f64 {
    let pair = |a: f32, b: f32| match a.total_cmp(&b) {
        std::cmp::Ordering::Less => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 0.0,
    };
    let pairs = outside
        .iter()
        .flat_map(|&a| inside.iter().map(move |&b| pair(a, b)));
    pairs.sum::<f64>() / (outside.len() * inside.len()) as f64
}

fn active(values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .copied()
        .filter(|&value| value != 0.0)
        .collect()
}

#[test]
fn the_area_is_the_share_of_pairs() {
    let check = |outside: &[f32], inside: &[f32]| {
        let found = auroc(
            [active(outside), active(inside)],
            [outside.len() as u64, inside.len() as u64],
        );
        assert!(
            (found - by_pairs(outside, inside)).abs() < 1e-12,
            "{outside:?} {inside:?}"
        );
    };
    check(&[0.0, 0.0, 1.0], &[2.0, 3.0]);
    check(&[0.0, 0.0, 1.0, 2.0, 2.0, 5.0], &[0.0, 2.0, 2.0, 3.0, 0.0]);
    check(&[4.0, 3.0], &[1.0, 0.0]);
    check(&[0.0, 0.0], &[0.0]);
    check(&[-1.0, 0.0, 2.0], &[-1.0, -0.5, 0.0]);
    // sklearn.metrics.roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), from its documentation.
    assert_eq!(auroc([vec![0.1, 0.4], vec![0.35, 0.8]], [2, 2]), 0.75);
}

/// Made-up values of two features of two SAEs in 4 images outside and 3 inside: `[sae][feature][image]`.
const VALUES: [[[f32; 7]; 2]; 2] = [
    [
        [0.0, 1.0, 0.0, 2.0, 2.0, 5.0, 0.0],
        [3.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0],
    ],
    [
        [1e4, 1e4 + 1.0, 1e4, 1e4, 1e4 + 1.0, 1e4, 1e4 + 2.0],
        [9.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    ],
];

fn compare(sort: Sort, n_features: usize, max_values: u64) -> Vec<Vec<super::ClassFeature>> {
    let comparison = Comparison {
        n_images: [4, 3],
        sort,
        n_features,
    };
    let each = |take: &mut dyn FnMut(Compared<'_>)| {
        for (sae, features) in VALUES.iter().enumerate() {
            for (feature, values) in features.iter().enumerate() {
                for (image, &max) in values.iter().enumerate().filter(|(_, max)| **max > 0.0) {
                    take(Compared {
                        sae,
                        is_inside: image >= 4,
                        label: Some("it"),
                        feature,
                        value: f64::from(max),
                    });
                }
            }
        }
        Ok(())
    };
    let found = comparison.features(2, &each).expect("nothing fails");
    // The same in more passes.
    let of_sae = |of_sae: &Vec<super::ClassFeature>| {
        let found = of_sae.iter().map(|feature| super::Found {
            n_active: [4, 3],
            feature: super::ClassFeature {
                auroc: f64::NAN,
                ..feature.clone()
            },
        });
        found.collect()
    };
    let mut again: Vec<_> = found.iter().map(of_sae).collect();
    comparison
        .add_auroc(&mut again, &each, max_values)
        .expect("nothing fails");
    for (found, again) in found.iter().zip(again) {
        for (found, again) in found.iter().zip(again) {
            assert_eq!(found.auroc, again.feature.auroc);
        }
    }
    found
}

#[test]
fn effect_sizes_are_hedges() {
    let found = compare(Sort::Difference, 9, 1);
    for (of_sae, values) in found.iter().zip(VALUES) {
        for feature in of_sae {
            let (outside, inside) = values[feature.feature].split_at(4);
            assert!((feature.auroc - by_pairs(outside, inside)).abs() < 1e-12);
            let mean = |values: &[f32]| {
                values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64
            };
            let variance = |values: &[f32]| {
                let squares = values
                    .iter()
                    .map(|&x| (f64::from(x) - mean(values)).powi(2));
                squares.sum::<f64>() / (values.len() - 1) as f64
            };
            let pooled = (3.0 * variance(outside) + 2.0 * variance(inside)) / 5.0;
            let cohens_d = (mean(inside) - mean(outside)) / pooled.sqrt();
            match feature.effect_size {
                // Sums of squares about 1e4 in f64 lose half of its 16 digits.
                Some(effect) => assert!((effect - cohens_d * (1.0 - 3.0 / 19.0)).abs() < 1e-6),
                None => assert!(cohens_d.is_infinite()),
            }
        }
    }
    let names = |of_sae: &[super::ClassFeature]| -> Vec<_> {
        of_sae.iter().map(|one| one.feature).collect()
    };
    assert_eq!(names(&found[0]), [0, 1]);
    // The second SAE's other feature is larger outside.
    assert_eq!(names(&found[1]), [0]);
    assert_eq!(found[0][0].label.as_deref(), Some("it"));
    for (sort, n_features) in [(Sort::Effect, 1), (Sort::Auroc, 1)] {
        let found = compare(sort, n_features, 9);
        assert_eq!(names(&found[0]), [1], "{sort:?}");
        assert_eq!(found[0][0].auroc, 1.0);
        assert_eq!(found[0][0].effect_size, None);
    }
}
