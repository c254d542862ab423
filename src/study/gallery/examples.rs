//! The second pass: how a feature's activations are distributed, and images from all of its range.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Example, GalleryFeature, IMAGES_OF_TENTH, N_BINS, N_TENTHS, for_each_active, hash_of};
use crate::pictures::InContext;
use crate::scan::ScanFile;
use crate::{CancelFlag, FeatureId, Result};

/// Fills in what the rows say of `features`, whose largest activations are known.
pub(super) fn collect(
    file: &ScanFile,
    features: &mut [GalleryFeature],
    n_examples: usize,
    cancel: &CancelFlag,
) -> Result<()> {
    let places = features.iter().enumerate();
    let places: HashMap<FeatureId, usize> = places.map(|(place, one)| (one.id, place)).collect();
    let mut strongest = vec![Strongest::default(); features.len()];
    let mut hashes = vec![<[Vec<u64>; N_TENTHS]>::default(); features.len()]; // of the tenths' examples
    let mut item: Arc<str> = "".into();
    let mut hash = hash_of("");
    let mut class: Option<Arc<str>> = None;
    for_each_active(file, cancel, &mut |id, row| {
        let Some(&place) = places.get(&id) else {
            return Ok(());
        };
        // All examples of an image share its name.
        if *item != *row.path {
            item = row.path.into();
            hash = hash_of(row.path);
        }
        if class.as_deref() != row.class {
            class = row.class.map(Into::into);
        }
        let example = || Example {
            item: Arc::clone(&item),
            class: class.clone(),
            active: row.active,
            token: row.token.map(InContext::to_owned),
        };
        let feature = &mut features[place];
        let share = f64::from(row.active.max) / f64::from(feature.largest);
        let part = |n_parts: usize| ((share * n_parts as f64) as usize).min(n_parts - 1);
        feature.histogram[part(N_BINS)] += 1;
        let place_in_range = part(N_TENTHS);
        let tenth = &mut feature.tenths[place_in_range];
        tenth.n_images += 1;
        // By the hashes of their names, and not by their places in the table, which its sorting decides.
        let hashes = &mut hashes[place][place_in_range];
        let at = hashes.partition_point(|other| *other <= hash);
        if at < IMAGES_OF_TENTH {
            hashes.insert(at, hash);
            hashes.truncate(IMAGES_OF_TENTH);
            tenth.examples.insert(at, example());
            tenth.examples.truncate(IMAGES_OF_TENTH);
        }
        strongest[place].add(row.active.max, n_examples, example);
        Ok(())
    })?;
    for (feature, mut strongest) in features.iter_mut().zip(strongest) {
        strongest.keep_best(n_examples);
        feature.top = strongest.examples;
        // The strongest first, as everywhere.
        for tenth in &mut feature.tenths {
            tenth.examples.sort_by(falling);
        }
    }
    Ok(())
}

/// The images that activate a feature most, and a few more while they are gathered.
#[derive(Clone, Default)]
struct Strongest {
    examples: Vec<Example>,
    least: f32, // what is below is not among the best
}

impl Strongest {
    fn add(&mut self, activation: f32, n_examples: usize, example: impl FnOnce() -> Example) {
        if activation < self.least {
            return;
        }
        self.examples.push(example());
        if self.examples.len() >= n_examples.max(8).saturating_mul(2) {
            self.keep_best(n_examples);
            self.least = self.examples.last().map_or(0.0, |last| last.active.max);
        }
    }

    fn keep_best(&mut self, n_examples: usize) {
        self.examples.sort_by(falling);
        self.examples.truncate(n_examples);
    }
}

/// By falling activation, and by name where it is equal.
fn falling(a: &Example, b: &Example) -> std::cmp::Ordering {
    let order = b.active.max.total_cmp(&a.active.max);
    order.then_with(|| a.item.cmp(&b.item))
}
