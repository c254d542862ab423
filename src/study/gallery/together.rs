//! Features that go together: their activations rise with each other's over a sample of the images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::MAX_TOGETHER;
use crate::{CancelFlag, Error, FeatureId, FeatureName, Result};

/// Images that are compared, at most: those whose names have the smallest hashes, of the images that activate any
/// feature. A correlation of 4096 images has a standard error below 0.016.
pub const SAMPLE_IMAGES: usize = 4096;
/// On fewer images two features are together by chance.
const MIN_COMMON: u64 = 2;

/// A feature that goes with another.
#[derive(Clone, Debug, PartialEq)]
pub struct Together {
    /// The feature.
    pub id: FeatureId,
    /// How it is written.
    pub name: FeatureName,
    /// Its label, where a row has one.
    pub label: Option<String>,
    /// Pearson's correlation of the two features' activations over the images of the sample, where an image that does
    /// not activate a feature counts as 0: `r = (n Σab − Σa Σb) / √((n Σa² − (Σa)²) (n Σb² − (Σb)²))`.
    pub correlation: f64,
    /// The images of the sample that activate both.
    pub n_common: u64,
}

/// The activations of some images, chosen without looking at what they are or in which order they come.
#[derive(Default)]
pub(super) struct Sample {
    images: BTreeMap<u64, Vec<(FeatureId, f32)>>, // by the hash of the image's name
}

/// A feature's moments over the sample.
#[derive(Default)]
struct Moments {
    images: Vec<(usize, f64)>, // that activate it, by place in the sample
    sum: f64,
    squares: f64,
}

impl Moments {
    /// `n Σa² − (Σa)²`; 0 where rounding alone makes it more, on images with one and the same activation.
    fn spread(&self, n: f64) -> f64 {
        let spread = n * self.squares - self.sum * self.sum;
        let is_rounding = spread < 1e-12 * n * self.squares;
        if is_rounding { 0.0 } else { spread }
    }
}

impl Sample {
    /// Adds an activation of the image whose name has this hash. The rows of an image need not follow each other: one
    /// that is in the sample at the end was in it from its first row on.
    pub(super) fn add(&mut self, hash: u64, id: FeatureId, activation: f32) {
        let is_full = self.images.len() >= SAMPLE_IMAGES;
        if is_full
            && self
                .images
                .last_key_value()
                .is_some_and(|(last, _)| hash > *last)
        {
            return;
        }
        self.images.entry(hash).or_default().push((id, activation));
        if self.images.len() > SAMPLE_IMAGES {
            self.images.pop_last();
        }
    }

    /// The features that go with each of `shown`, without their names.
    pub(super) fn together(
        &self,
        shown: &BTreeSet<FeatureId>,
        cancel: &CancelFlag,
    ) -> Result<Vec<Vec<Together>>> {
        let images: Vec<_> = self.images.values().collect();
        let mut places = HashMap::<FeatureId, usize>::new();
        let mut features: Vec<(FeatureId, Moments)> = Vec::new();
        let mut rows = Vec::with_capacity(images.len()); // of each image its features by place
        for (image, active) in images.iter().enumerate() {
            let row = active.iter().map(|&(id, activation)| {
                let place = *places.entry(id).or_insert_with(|| {
                    features.push((id, Moments::default()));
                    features.len() - 1
                });
                let activation = f64::from(activation);
                let moments = &mut features[place].1;
                moments.images.push((image, activation));
                moments.sum += activation;
                moments.squares += activation * activation;
                (place, activation)
            });
            rows.push(row.collect::<Vec<_>>());
        }
        let n = images.len() as f64;
        let mut products = vec![(0.0, 0_u64); features.len()]; // with the feature at hand: Σab, common images
        let of_feature = |id: &FeatureId| {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let Some(&own) = places.get(id) else {
                return Ok(Vec::new());
            };
            products.fill((0.0, 0));
            let moments = &features[own].1;
            for &(image, a) in &moments.images {
                for &(other, b) in &rows[image] {
                    products[other].0 += a * b;
                    products[other].1 += 1;
                }
            }
            let others = features.iter().zip(&products).enumerate();
            let others = others
                .filter(|(place, (_, (_, n_common)))| *place != own && *n_common >= MIN_COMMON);
            let correlated = others.map(|(_, ((id, other), (sum, n_common)))| {
                let covariance = n * sum - moments.sum * other.sum;
                Together {
                    id: *id,
                    name: FeatureName::Index(id.index),
                    label: None,
                    correlation: covariance / (moments.spread(n) * other.spread(n)).sqrt(),
                    n_common: *n_common,
                }
            });
            let rises = |one: &Together| one.correlation.is_finite() && one.correlation > 0.0;
            let mut best: Vec<_> = correlated.filter(rises).collect();
            best.sort_by(|a, b| {
                let order = b.correlation.total_cmp(&a.correlation);
                order.then_with(|| a.id.cmp(&b.id))
            });
            best.truncate(MAX_TOGETHER);
            Ok(best)
        };
        shown.iter().map(of_feature).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The images with the smallest hashes are in it with all their rows, however the rows come.
    #[test]
    fn a_sample_does_not_depend_on_the_order_of_rows() {
        let n_images = 3 * SAMPLE_IMAGES as u64;
        // Odd multiples are different hashes, in no order.
        let hash = |image: u64| image.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut sample = Sample::default();
        for index in 0..3 {
            for image in 0..n_images {
                let image = if index == 1 {
                    n_images - 1 - image
                } else {
                    image
                };
                sample.add(hash(image), FeatureId::of_only(index), image as f32);
            }
        }
        let mut smallest: Vec<_> = (0..n_images).map(|image| (hash(image), image)).collect();
        smallest.sort_unstable();
        let expected = smallest.iter().take(SAMPLE_IMAGES);
        let rows = |&(hash, image): &(u64, u64)| {
            let row = |index| (FeatureId::of_only(index), image as f32);
            (hash, (0..3).map(row).collect::<Vec<_>>())
        };
        assert!(sample.images.into_iter().eq(expected.map(rows)));
    }
}
