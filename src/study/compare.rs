//! How the values of features in two sets of pictures differ. It knows no file and no model: values come from a
//! closure, which gives them as often as they are asked for.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::rank::FeatureScore;
use crate::{Result, SaeSet};

/// Values held at a time to find ranks, of four bytes each: 256 MiB.
const MAX_VALUES: u64 = 1 << 26;

/// What features are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// The difference of means.
    Difference,
    /// The effect size.
    Effect,
    /// The area under the ROC curve.
    Auroc,
}

impl Sort {
    /// Every order.
    pub const ALL: [Self; 3] = [Self::Difference, Self::Effect, Self::Auroc];

    /// Its name, as options and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Difference => "difference",
            Self::Effect => "effect",
            Self::Auroc => "auroc",
        }
    }
}

/// How a feature's value in a class differs from that elsewhere. Images that do not activate it count as 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassFeature {
    /// Its index.
    pub feature: usize,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// The mean over the class's images.
    pub mean_inside: f64,
    /// The mean over all other images.
    pub mean_outside: f64,
    /// The share of the class's images that activate it.
    pub share_inside: f64,
    /// The share of all other images that activate it.
    pub share_outside: f64,
    /// Hedges' g: the difference of means over the pooled standard deviation, `√((SS₁ + SS₂) / df)` of the two
    /// sums of squared deviations with `df = n₁ + n₂ − 2`, times `1 − 3 / (4 · df − 1)`, which takes out the bias of
    /// small sets (Hedges, *Distribution Theory for Glass's Estimator of Effect Size*, 1981). None where values do
    /// not vary in either set.
    pub effect_size: Option<f64>,
    /// The chance that an image of the class has the larger value than another image, a tie counting half: the area
    /// under the ROC curve, `U / (n₁ · n₂)` (Mann and Whitney, 1947).
    pub auroc: f64,
}

impl ClassFeature {
    /// The class's mean less the others'.
    pub fn difference(&self) -> f64 {
        self.mean_inside - self.mean_outside
    }

    /// What it is sorted by. Means that differ where nothing varies are apart by any measure.
    fn key(&self, sort: Sort) -> f64 {
        match sort {
            Sort::Difference => self.difference(),
            Sort::Effect => self.effect_size.unwrap_or(f64::INFINITY),
            Sort::Auroc => self.auroc,
        }
    }
}

/// The scores of a picture's features, of each SAE.
pub type PictureScores = Vec<Vec<FeatureScore>>;

/// The `n_features` features of each SAE whose scores are larger in the pictures `inside` than in those `outside`, on
/// average, best first by `sort`.
///
/// # Panics
/// When one of the sets is empty.
pub fn compare(
    inside: &[PictureScores],
    outside: &[PictureScores],
    saes: &SaeSet,
    sort: Sort,
    n_features: usize,
) -> Vec<Vec<ClassFeature>> {
    assert!(!inside.is_empty() && !outside.is_empty());
    let comparison = Comparison {
        n_images: [outside.len() as u64, inside.len() as u64],
        sort,
        n_features,
    };
    let found = comparison.features(saes.len(), &|take| {
        for (is_inside, pictures) in [(true, inside), (false, outside)] {
            for (sae, scores) in pictures.iter().flat_map(|one| one.iter().enumerate()) {
                for score in scores {
                    take(Compared {
                        sae,
                        is_inside,
                        label: saes[sae].label(score.feature),
                        feature: score.feature,
                        value: f64::from(score.score),
                    });
                }
            }
        }
        Ok(())
    });
    found.expect("scores in memory are there")
}

/// A picture's feature, in one of the two sets.
pub(in crate::study) struct Compared<'a> {
    pub sae: usize,
    pub is_inside: bool,
    pub label: Option<&'a str>,
    pub feature: usize,
    pub value: f64,
}

/// Gives every active feature of both sets.
pub(in crate::study) type EachActive<'a> = &'a dyn Fn(&mut dyn FnMut(Compared<'_>)) -> Result<()>;

/// How sets are compared.
#[derive(Clone, Copy)]
pub(in crate::study) struct Comparison {
    /// Pictures outside and inside, active or not.
    pub n_images: [u64; 2],
    pub sort: Sort,
    /// Features of each SAE.
    pub n_features: usize,
}

impl Comparison {
    /// The features of each of `n_saes` SAEs whose mean is larger inside, best first. Memory goes by the number of
    /// features, and [`MAX_VALUES`] or one feature's values.
    pub(in crate::study) fn features(
        &self,
        n_saes: usize,
        each: EachActive,
    ) -> Result<Vec<Vec<ClassFeature>>> {
        let mut sums = vec![BTreeMap::<usize, Sums>::new(); n_saes];
        each(&mut |one| {
            let sums = sums[one.sae].entry(one.feature).or_default();
            if sums.label.is_none() {
                sums.label = one.label.map(str::to_owned);
            }
            sums.values[usize::from(one.is_inside)].add(one.value);
        })?;
        let of_sae = |sums: BTreeMap<usize, Sums>| {
            let found = sums
                .into_iter()
                .map(|(feature, sums)| sums.found(feature, self.n_images));
            let found = found.filter(|one| one.feature.difference() > 0.0);
            found.collect::<Vec<_>>()
        };
        let mut found: Vec<_> = sums.into_iter().map(of_sae).collect();
        if self.sort != Sort::Auroc {
            found.iter_mut().for_each(|of_sae| self.keep_best(of_sae));
        }
        self.add_auroc(&mut found, each, MAX_VALUES)?;
        found.iter_mut().for_each(|of_sae| self.keep_best(of_sae));
        let features = |found: Vec<Found>| found.into_iter().map(|one| one.feature).collect();
        Ok(found.into_iter().map(features).collect())
    }

    fn keep_best(&self, found: &mut Vec<Found>) {
        // By falling difference where they are equal, and then by rising index, as the sort is stable.
        found.sort_by(|a, b| {
            let [a, b] = [&a.feature, &b.feature];
            let by_key = falling(a.key(self.sort), b.key(self.sort));
            by_key.then_with(|| falling(a.difference(), b.difference()))
        });
        found.truncate(self.n_features);
    }

    /// Finds each one's area under the ROC curve, as many at a time as have `max_values` values together.
    fn add_auroc(&self, found: &mut [Vec<Found>], each: EachActive, max_values: u64) -> Result<()> {
        let mut rest: Vec<(usize, &mut Found)> = Vec::new();
        for (sae, of_sae) in found.iter_mut().enumerate() {
            rest.extend(of_sae.iter_mut().map(|one| (sae, one)));
        }
        while !rest.is_empty() {
            let mut n_values = 0;
            let fits = |(_, one): &&(usize, &mut Found)| {
                n_values += one.n_active[0] + one.n_active[1];
                n_values <= max_values
            };
            let n_fitting = rest.iter().take_while(fits).count().max(1);
            let mut values = HashMap::new();
            for (sae, one) in &rest[..n_fitting] {
                let room = one.n_active.map(|n| Vec::<f32>::with_capacity(n as usize));
                values.insert((*sae, one.feature.feature), room);
            }
            each(&mut |one| {
                if let Some(values) = values.get_mut(&(one.sae, one.feature)) {
                    values[usize::from(one.is_inside)].push(one.value as f32);
                }
            })?;
            for (sae, one) in rest.drain(..n_fitting) {
                let values = values
                    .remove(&(sae, one.feature.feature))
                    .expect("just inserted");
                one.feature.auroc = auroc(values, self.n_images);
            }
        }
        Ok(())
    }
}

/// A feature as far as it is known.
struct Found {
    feature: ClassFeature,
    n_active: [u64; 2], // outside, inside
}

/// What has been seen of a feature.
#[derive(Clone, Default)]
struct Sums {
    label: Option<String>,
    values: [Moments; 2], // outside, inside
}

impl Sums {
    fn found(self, feature: usize, n_images: [u64; 2]) -> Found {
        let [outside, inside] = self.values;
        let n_active = [outside.n, inside.n];
        let sizes = n_images.map(|n| n as f64);
        let [mean_outside, mean_inside] = [outside.sum / sizes[0], inside.sum / sizes[1]];
        let squares = outside.squares_of(sizes[0]) + inside.squares_of(sizes[1]);
        let freedom = sizes[0] + sizes[1] - 2.0;
        let deviation = (squares / freedom).sqrt();
        let unbiased = 1.0 - 3.0 / (4.0 * freedom - 1.0);
        let effect_size = unbiased * (mean_inside - mean_outside) / deviation;
        Found {
            feature: ClassFeature {
                feature,
                label: self.label,
                mean_inside,
                mean_outside,
                share_inside: inside.n as f64 / sizes[1],
                share_outside: outside.n as f64 / sizes[0],
                effect_size: Some(effect_size).filter(|effect| effect.is_finite()),
                auroc: 0.5, // until it is found
            },
            n_active,
        }
    }
}

/// Sum and squared deviations of the values so far, by Youngs and Cramer's update (*Some Results Relevant to Choice
/// of Sum and Sum-of-Product Algorithms*, 1971).
#[derive(Clone, Copy, Default)]
struct Moments {
    n: u64,
    sum: f64,
    squares: f64, // of deviations from their mean
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.n += 1;
        self.sum += value;
        if self.n > 1 {
            let n = self.n as f64;
            self.squares += (n * value - self.sum).powi(2) / (n * (n - 1.0));
        }
    }

    /// The squared deviations of these values and as many zeros as make them `n_all`.
    fn squares_of(&self, n_all: f64) -> f64 {
        if self.n == 0 {
            return 0.0;
        }
        let n = self.n as f64;
        self.squares + self.sum.powi(2) / n * (n_all - n) / n_all
    }
}

/// The area under the ROC curve of `active`, the values outside and inside, and of as many zeros as make them
/// `n_images`.
fn auroc(active: [Vec<f32>; 2], n_images: [u64; 2]) -> f64 {
    let [mut outside, inside] = active;
    let n_zeros = [
        n_images[0].saturating_sub(outside.len() as u64),
        n_images[1].saturating_sub(inside.len() as u64),
    ];
    outside.sort_unstable_by(f32::total_cmp);
    // Images outside with a smaller value, those with the same one by half.
    let n_smaller = |value: f32| {
        let below = outside.partition_point(|&other| other < value);
        let up_to = outside.partition_point(|&other| other <= value);
        let zeros = match value.partial_cmp(&0.0) {
            Some(Ordering::Greater) => n_zeros[0] as f64,
            Some(Ordering::Equal) => n_zeros[0] as f64 / 2.0,
            _ => 0.0,
        };
        (below + up_to) as f64 / 2.0 + zeros
    };
    let of_active: f64 = inside.iter().map(|&value| n_smaller(value)).sum();
    let of_zeros = n_zeros[1] as f64 * n_smaller(0.0);
    (of_active + of_zeros) / (n_images[0] as f64 * n_images[1] as f64)
}

pub(in crate::study) fn falling(a: f64, b: f64) -> Ordering {
    b.total_cmp(&a)
}

#[cfg(test)]
mod tests;
