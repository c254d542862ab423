//! The numbers of a gallery, against a plain computation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use llava_sae_cpp::gallery::{Choice, Gallery, GalleryFeature, N_BINS, N_TENTHS, Which, gather};
use llava_sae_cpp::scan::ScanFile;
use llava_sae_cpp::{CancelFlag, FeatureId};

use crate::command_line::{json, text};
use crate::scan::{OwnedRow, folder};
use crate::scan_top::{list, number, rewrite};

fn choice(which: Which) -> Choice {
    Choice {
        which,
        n_examples: 5,
        class_features: 4,
    }
}

pub(crate) fn gathered(file: &Path, which: Which) -> llava_sae_cpp::Result<Gallery> {
    let file = ScanFile::open(file)?;
    gather(&file, &choice(which), &CancelFlag::default())
}

/// Rows in no order, of many images, some features of which are active on most of them and some on few.
fn random_rows(n_images: usize) -> Vec<OwnedRow> {
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut rows = Vec::new();
    for image in 0..n_images {
        let class = [None, Some("a"), Some("b"), Some("b")][random(4) as usize];
        for feature in 0..24 {
            if random(24) < feature {
                let max = (1 + random(1000)) as f32 / 64.0;
                rows.push(OwnedRow {
                    path: format!("{}/{image}.png", class.unwrap_or("none")),
                    class: class.map(str::to_owned),
                    sae: None,
                    feature: feature as usize,
                    label: (feature % 3 == 0).then(|| format!("label {feature}")),
                    sum: 2.0 * max,
                    max,
                    count: 2,
                });
            }
        }
    }
    for i in (1..rows.len()).rev() {
        rows.swap(i, random(i as u64 + 1) as usize);
    }
    rows
}

/// The activation of each image, by path; 0 where there is none.
fn dense(rows: &[OwnedRow], feature: usize) -> BTreeMap<&str, f64> {
    let mut dense: BTreeMap<_, _> = rows.iter().map(|row| (&*row.path, 0.0)).collect();
    for row in rows.iter().filter(|row| row.feature == feature) {
        dense.insert(&row.path, f64::from(row.max));
    }
    dense
}

/// Pearson's correlation, by its definition.
fn correlation(a: &BTreeMap<&str, f64>, b: &BTreeMap<&str, f64>) -> f64 {
    let mean = |values: &BTreeMap<&str, f64>| values.values().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let pairs = || {
        a.values()
            .zip(b.values())
            .map(|(a, b)| (a - mean_a, b - mean_b))
    };
    let sum = |of: fn((f64, f64)) -> f64| pairs().map(of).sum::<f64>();
    sum(|(a, b)| a * b) / (sum(|(a, _)| a * a) * sum(|(_, b)| b * b)).sqrt()
}

fn check_feature(feature: &GalleryFeature, rows: &[OwnedRow]) {
    let own = || rows.iter().filter(|row| row.feature == feature.id.index);
    assert_eq!(feature.n_firing, own().count() as u64);
    let largest = own().map(|row| row.max).fold(0.0, f32::max);
    assert_eq!(feature.largest, largest);
    assert_eq!(
        feature.label.as_deref(),
        own().find_map(|row| row.label.as_deref())
    );

    // Counted part by part.
    let in_part = |row: &OwnedRow, part: usize, n_parts: usize| {
        let at = |edge: usize| edge as f64 / n_parts as f64;
        let share = f64::from(row.max) / f64::from(largest);
        share >= at(part) && (share < at(part + 1) || part + 1 == n_parts)
    };
    for (bin, count) in feature.histogram.iter().enumerate() {
        let expected = own().filter(|row| in_part(row, bin, N_BINS)).count();
        assert_eq!(*count, expected as u64, "bin {bin}");
    }
    assert_eq!(feature.tenths.len(), N_TENTHS);
    for (i, tenth) in feature.tenths.iter().enumerate() {
        let paths: Vec<_> = own()
            .filter(|row| in_part(row, i, N_TENTHS))
            .map(|row| &*row.path)
            .collect();
        assert_eq!(tenth.n_images, paths.len() as u64, "tenth {i}");
        assert_eq!(tenth.examples.len(), paths.len().min(2));
        assert!(
            tenth
                .examples
                .iter()
                .all(|example| paths.contains(&&*example.item))
        );
        assert!(
            tenth
                .examples
                .is_sorted_by(|a, b| a.active.max >= b.active.max)
        );
    }

    let mut best: Vec<_> = own().collect();
    best.sort_by(|a, b| b.max.total_cmp(&a.max).then_with(|| a.path.cmp(&b.path)));
    let best: Vec<_> = best
        .iter()
        .take(5)
        .map(|row| (&*row.path, row.class.as_deref(), row.max))
        .collect();
    let top = feature.top.iter();
    let top: Vec<_> = top
        .map(|one| (&*one.item, one.class.as_deref(), one.active.max))
        .collect();
    assert_eq!(top, best);

    let classes: BTreeSet<_> = own().map(|row| row.class.as_deref()).collect();
    assert_eq!(feature.n_classes, classes.len());
    for share in &feature.classes {
        let class = share.class.as_deref();
        assert!(classes.contains(&class));
        let images: BTreeSet<_> = rows
            .iter()
            .filter(|row| row.class.as_deref() == class)
            .map(|row| &row.path)
            .collect();
        let of_class = own().filter(|row| row.class.as_deref() == class);
        let values: Vec<_> = of_class.map(|row| f64::from(row.max)).collect();
        assert_eq!(share.n_images, images.len() as u64);
        assert_eq!(share.n_firing, values.len() as u64);
        let mean = values.iter().sum::<f64>() / images.len() as f64;
        assert!((share.mean - mean).abs() < 1e-9);
    }
    assert!(feature.classes.is_sorted_by(|a, b| a.mean >= b.mean));

    let a = dense(rows, feature.id.index);
    let mut expected = Vec::new();
    for other in rows.iter().map(|row| row.feature).collect::<BTreeSet<_>>() {
        let b = dense(rows, other);
        let n_common = a
            .values()
            .zip(b.values())
            .filter(|(a, b)| **a > 0.0 && **b > 0.0);
        let (n_common, r) = (n_common.count(), correlation(&a, &b));
        if other != feature.id.index && n_common >= 2 && r > 1e-9 {
            expected.push((r, other, n_common));
        }
    }
    expected.sort_by(|a, b| b.0.total_cmp(&a.0));
    expected.truncate(10);
    assert_eq!(feature.together.len(), expected.len());
    for (together, (r, other, n_common)) in feature.together.iter().zip(expected) {
        // Sums in f64, in another order.
        assert!(
            (together.correlation - r).abs() < 1e-9,
            "{}",
            together.correlation
        );
        assert_eq!(
            (together.id.index, together.n_common),
            (other, n_common as u64)
        );
    }
}

/// Every number, of a table that another program has left in no order.
#[test]
fn numbers_of_a_table() {
    let rows = random_rows(400);
    let file = folder("gallery-tables").join("random.parquet");
    rewrite(&file, &rows);
    let all = gathered(&file, Which::Active).expect("a whole file");
    assert_eq!(all.features.len(), 23, "feature 0 is never active");
    assert_eq!(all.n_images, 400);
    all.features
        .iter()
        .for_each(|feature| check_feature(feature, &rows));
    assert!(
        all.features
            .iter()
            .any(|feature| !feature.together.is_empty())
    );

    let classes: Vec<_> = all.classes.iter().map(|class| &*class.class).collect();
    assert_eq!(classes, ["a", "b"]);
    for class in &all.classes {
        let name = class.class.as_str();
        let args = ["top", text(&file), "--class", name, "--top", "4", "--json"];
        let report = json(&args);
        assert_eq!(report["n_inside"], class.n_images);
        let expected = list(&report, "features");
        assert_eq!(class.features.len(), expected.len());
        for (ours, entry) in class.features.iter().zip(expected) {
            assert_eq!(entry["feature"], ours.id.index);
            assert_eq!(entry["label"].as_str(), ours.label.as_deref());
            for (key, ours) in [
                ("difference", ours.difference()),
                ("mean_inside", ours.means[0]),
                ("mean_outside", ours.means[1]),
                ("share_inside", ours.shares[0]),
                ("share_outside", ours.shares[1]),
            ] {
                assert!((number(&entry[key]) - ours).abs() < 1e-9, "{key}");
            }
        }
    }

    // Other choices are parts of it, with the same numbers.
    let ids = |gallery: &Gallery| {
        gallery
            .features
            .iter()
            .map(|one| one.id.index)
            .collect::<Vec<_>>()
    };
    let named = Which::Named(vec!["label 21".to_owned(), "5".to_owned(), "0".to_owned()]);
    let named = gathered(&file, named).expect("they are there");
    assert_eq!(ids(&named), [0, 5, 21]);
    check_feature(&named.features[2], &rows);
    assert_eq!(named.features[0].n_firing, 0);
    assert!(named.features[0].top.is_empty() && named.features[0].together.is_empty());
    let largest = gathered(&file, Which::Largest(3)).expect("a whole file");
    let mut maxima: Vec<_> = all
        .features
        .iter()
        .map(|one| (one.largest, one.id.index))
        .collect();
    maxima.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut expected: Vec<_> = maxima[..3].iter().map(|(_, index)| *index).collect();
    expected.sort_unstable();
    assert_eq!(ids(&largest), expected);
    let of_class = gathered(&file, Which::OfClasses(vec!["b".to_owned()])).expect("a class");
    assert_eq!(of_class.classes.len(), 1);
    let expected: BTreeSet<FeatureId> = of_class.classes[0]
        .features
        .iter()
        .map(|one| one.id)
        .collect();
    assert!(of_class.features.iter().map(|one| one.id).eq(expected));

    let cancel = CancelFlag::default();
    cancel.cancel();
    let opened = ScanFile::open(&file).expect("a whole file");
    let stopped = gather(&opened, &choice(Which::Active), &cancel);
    assert!(stopped.expect_err("it was cancelled").is_interrupted());
}
