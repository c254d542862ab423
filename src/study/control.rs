//! The control of interventions: the same ones on random features and along random directions, of the same size, so that
//! what any change of that size does is told from what this one does.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::TAU;

use crate::steering::{Change, Intervention, Number, Target, Units, Vector};
use crate::{Error, FeatureId, Result, Sae, SaeSet};

/// The share of an SAE's features that a random one is drawn from where its file has a baseline, and their least number.
const NEAREST: (usize, usize) = (20, 10);

/// Draws at random, the same on every machine.
pub(in crate::study) struct Draws(blake3::OutputReader);

impl Draws {
    pub(in crate::study) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Takes one of `rest`, which has some.
    pub(in crate::study) fn take<T>(&mut self, rest: &mut Vec<T>) -> T {
        let place = self.number() % rest.len() as u64;
        rest.swap_remove(place as usize)
    }

    /// A number of the standard normal distribution (Box and Muller, 1958).
    fn normal(&mut self) -> f64 {
        let mut uniform = || (self.number() as f64 + 1.0) / (u64::MAX as f64 + 1.0); // above 0
        let (radius, angle) = (uniform(), uniform());
        (-2.0 * radius.ln()).sqrt() * (TAU * angle).cos()
    }
}

/// The same as `interventions` on random targets, the same one for the same target; where they are done and when stays.
///
/// A random feature is another one of the SAE's that has a direction and that nothing is done to. Where the SAE's file has
/// a baseline, it is one of the twentieth of these (10 at least) that are nearest to the feature in what they usually add
/// to rows of pictures, the mean largest activation times the decoder row's length. Strengths and clamp values are
/// scaled by the two decoder rows' lengths, so that what is added is as long; factors and bounds stay. A random direction
/// has independent normal values, and the vector's length.
///
/// # Errors
/// Numbers that mean nothing for their target ([`Intervention::number`]); no feature to draw; a file that cannot be
/// read.
pub fn random_control(
    interventions: &[Intervention],
    saes: &SaeSet,
    seed: u64,
) -> Result<Vec<Intervention>> {
    let mut draws = Draws::new(seed);
    let changed = interventions.iter().filter_map(|one| one.target.feature());
    let mut taken: BTreeSet<FeatureId> = changed.collect();
    let mut drawn = BTreeMap::<Target, Target>::new();
    let mut all = Vec::new();
    for intervention in interventions {
        let target = match drawn.get(&intervention.target) {
            Some(target) => target.clone(),
            None => {
                let target: Target = match &intervention.target {
                    Target::Feature(feature) => {
                        let other = random_feature(*feature, saes, &taken, &mut draws)?;
                        taken.insert(other);
                        other.into()
                    }
                    Target::Vector(vector) => random_vector(vector, &mut draws)?.into(),
                };
                drawn.insert(intervention.target.clone(), target.clone());
                target
            }
        };
        all.push(moved(intervention, target, saes)?);
    }
    Ok(all)
}

/// The intervention on another target, as large.
fn moved(intervention: &Intervention, target: Target, saes: &SaeSet) -> Result<Intervention> {
    let kind = intervention.change.kind();
    let mut moved = Intervention {
        target,
        ..intervention.clone()
    };
    if let (Some(feature), Number::OfUnits) = (intervention.target.feature(), kind.number) {
        let direction = saes[feature.sae].decoder_direction(feature.index)?;
        let length = intervention.number(&direction)? * f64::from(direction.norm);
        moved.change = Change::new(kind, Some(length as f32))?;
        moved.units = Units::Unit;
    }
    Ok(moved)
}

fn random_feature(
    feature: FeatureId,
    saes: &SaeSet,
    taken: &BTreeSet<FeatureId>,
    draws: &mut Draws,
) -> Result<FeatureId> {
    let sae = feature.sae;
    let is_free = |&index: &usize| !taken.contains(&FeatureId { sae, index });
    let mut candidates: Vec<_> = with_direction(&saes[sae]).filter(is_free).collect();
    if candidates.is_empty() {
        let what = "cannot draw a random feature: the SAE has no other with a direction";
        return Err(Error::invalid(what));
    }
    if let Some(baseline) = saes[sae].baseline() {
        let norms = saes[sae].decoder_norm();
        let size = |index: usize| baseline.mean_max[index] * norms[index];
        let distance = |index: usize| (size(index) - size(feature.index)).abs();
        candidates.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)).then(a.cmp(&b)));
        let (share, least) = NEAREST;
        candidates.truncate((candidates.len() / share).max(least));
    }
    let index = draws.take(&mut candidates);
    Ok(FeatureId { sae, index })
}

/// The features whose decoder rows have a length.
pub(in crate::study) fn with_direction(sae: &Sae) -> impl Iterator<Item = usize> {
    let norms = sae.decoder_norm().iter().enumerate();
    norms
        .filter(|(_, norm)| **norm > 0.0)
        .map(|(feature, _)| feature)
}

fn random_vector(vector: &Vector, draws: &mut Draws) -> Result<Vector> {
    let values: Vec<f64> = vector.values().iter().map(|_| draws.normal()).collect();
    let length = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let scale = f64::from(vector.norm()) / length;
    let values = values.iter().map(|x| (x * scale) as f32);
    let name = format!("random, for {}", vector.name());
    Vector::new(&name, vector.hook_point(), values.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::random_control;
    use crate::steering::{Change, Intervention, Target, Units, Vector};
    use crate::{FeatureId, HookPoint, Sae, SaeSet, demo};

    fn saes() -> SaeSet {
        let files = demo::files().expect("the cache folder can be written");
        let sae = Sae::open(&files.saes[0]).expect("a valid file");
        SaeSet::new(vec![Arc::new(sae)]).expect("one SAE")
    }

    fn of(feature: usize, change: Change) -> Intervention {
        Intervention::new(FeatureId::of_only(feature), change)
    }

    #[test]
    fn random_features_are_others_as_strong() {
        let saes = saes();
        let sae = &saes[0];
        let asked = [
            of(430, Change::steer(-12.0)),
            of(363, Change::clamp(3.0)),
            of(363, Change::scale(2.0)),
            of(430, Change::ablate()),
        ];
        let found = random_control(&asked, &saes, 1).expect("the SAE has others");
        let features: Vec<_> = found
            .iter()
            .map(|one| one.target.feature().expect("one").index)
            .collect();
        assert_eq!(features[0], features[3], "one target, one other");
        assert_eq!(features[1], features[2]);
        assert!(!features.contains(&430) && !features.contains(&363) && features[0] != features[1]);
        let usual = |feature: usize| {
            let baseline = sae.baseline().expect("the demo has one");
            baseline.mean_max[feature] * sae.decoder_norm()[feature]
        };
        // By rank: no more than a twentieth of all features are nearer.
        let distance = |feature: usize| (usual(feature) - usual(430)).abs();
        let nearer = (0..768).filter(|&other| distance(other) < distance(features[0]));
        assert!(nearer.count() <= 768 / 20);
        for (asked, found) in asked.iter().zip(&found) {
            let feature = asked.target.feature().expect("one").index;
            match asked.change.kind().name {
                "steer" | "clamp" => {
                    assert_eq!(found.units, Units::Unit);
                    let expected =
                        asked.change.number().expect("one") * sae.decoder_norm()[feature];
                    let number = found.change.number().expect("one");
                    assert!(
                        (number / expected - 1.0).abs() < 1e-6,
                        "{number} {expected}"
                    );
                }
                _ => assert_eq!(asked.change, found.change),
            }
        }
        let again = random_control(&asked, &saes, 1).expect("as before");
        assert_eq!(found, again);
        let firsts = (0..20).map(|seed| {
            random_control(&asked, &saes, seed).expect("as before")[0]
                .target
                .clone()
        });
        let firsts: std::collections::BTreeSet<_> = firsts.collect();
        assert!(firsts.len() > 10, "{firsts:?}");
    }

    #[test]
    fn random_directions_are_as_long() {
        let hook_point = HookPoint::parse("blocks.1.hook_resid_post").expect("a known name");
        let given = Vector::new("v", hook_point, vec![3.0; 2000]).expect("finite");
        let asked = [Intervention::new(given.clone(), Change::vector(2.0))];
        let found = random_control(&asked, &saes(), 0).expect("vectors need no SAE");
        let [
            Intervention {
                target: Target::Vector(found),
                change,
                ..
            },
        ] = &found[..]
        else {
            panic!("one vector");
        };
        assert_eq!(*change, Change::vector(2.0));
        assert!((found.norm() / given.norm() - 1.0).abs() < 1e-5);
        // Independent of what is given: the cosine of random directions in 2000 dimensions is 0.02 or so.
        let dot: f32 = found
            .values()
            .iter()
            .zip(given.values())
            .map(|(a, b)| a * b)
            .sum();
        assert!((dot / given.norm().powi(2)).abs() < 0.1);
        let mean: f32 = found
            .values()
            .iter()
            .map(|x| (x / 3.0).powi(4))
            .sum::<f32>()
            / 2000.0;
        assert!(
            (mean - 3.0).abs() < 0.6,
            "the fourth moment of a normal distribution is 3: {mean}"
        );
    }
}
