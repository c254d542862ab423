//! The first pass: numbers of all features, by class, and a sample of the images.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::together::Sample;
use super::{
    ClassFeature, ClassShare, GalleryClass, GalleryFeature, MAX_CLASSES, N_BINS, N_TENTHS, Tenth,
    Together, for_each_active, hash_of,
};
use crate::pictures::ItemKind;
use crate::scan::{ClassSize, ScanFile};
use crate::study::scan::no_class;
use crate::{CancelFlag, Error, FeatureId, FeatureName, Result};

/// Numbers of all features that some image activates.
pub(super) struct Totals {
    saes: Vec<Option<String>>,
    kind: ItemKind,
    classes: Vec<ClassSize>,
    features: BTreeMap<FeatureId, FeatureTotals>,
    sample: Sample,
}

#[derive(Default)]
struct FeatureTotals {
    label: Option<String>,
    largest: f32,
    classes: Vec<ClassTotal>, // as far as the last class that activates it
}

#[derive(Clone, Copy, Default)]
struct ClassTotal {
    n_firing: u64,
    sum: f64, // of activations
}

impl FeatureTotals {
    fn n_firing(&self) -> u64 {
        self.classes.iter().map(|total| total.n_firing).sum()
    }

    fn of_class(&self, class: usize) -> ClassTotal {
        self.classes.get(class).copied().unwrap_or_default()
    }
}

impl Totals {
    pub(super) fn gather(file: &ScanFile, cancel: &CancelFlag) -> Result<Self> {
        let classes = file.class_sizes()?.into_owned();
        let places = classes.iter().enumerate();
        let places: HashMap<_, _> = places
            .map(|(place, size)| (size.class.as_deref(), place))
            .collect();
        let (mut features, mut sample) = (BTreeMap::new(), Sample::default());
        let (mut path, mut hash) = (String::new(), hash_of(""));
        for_each_active(file, cancel, &mut |id, row| {
            if row.path != path {
                row.path.clone_into(&mut path);
                hash = hash_of(row.path);
            }
            sample.add(hash, id, row.active.max);
            let &class = places.get(&row.class).ok_or_else(|| {
                let class = row.class.unwrap_or_default();
                Error::invalid(format!(
                    "`{}` is of a class `{class}`, of which the table's sidecar does not say how many images it has",
                    row.path
                ))
                .with_hint("scan the folder again")
            })?;
            let totals: &mut FeatureTotals = features.entry(id).or_default();
            if totals.label.is_none() {
                totals.label = row.label.map(str::to_owned);
            }
            totals.largest = totals.largest.max(row.active.max);
            if totals.classes.len() <= class {
                totals.classes.resize(class + 1, ClassTotal::default());
            }
            let total = &mut totals.classes[class];
            total.n_firing += 1;
            total.sum += f64::from(row.active.max);
            Ok(())
        })?;
        let saes = file.saes().iter();
        Ok(Self {
            saes: saes.map(|(id, _)| id.map(str::to_owned)).collect(),
            features,
            sample,
            kind: file.kind(),
            classes,
        })
    }

    pub(super) fn n_images(&self) -> u64 {
        self.classes.iter().map(|class| class.n_images).sum()
    }

    /// The features that some image activates.
    pub(super) fn ids(&self) -> impl Iterator<Item = FeatureId> {
        self.features.keys().copied()
    }

    /// The features of an SAE with labels.
    pub(super) fn labels(&self, sae: usize) -> impl Iterator<Item = (usize, &str)> + Clone {
        let of_sae = self.of_sae(sae);
        of_sae.filter_map(|(id, totals)| Some((id.index, totals.label.as_deref()?)))
    }

    /// The features of an SAE.
    fn of_sae(&self, sae: usize) -> impl Iterator<Item = (&FeatureId, &FeatureTotals)> + Clone {
        let of_sae = self.features.range(FeatureId { sae, index: 0 }..);
        of_sae.take_while(move |(id, _)| id.sae == sae)
    }

    /// The features of each SAE with the largest activations.
    pub(super) fn largest(&self, n_features: usize) -> BTreeSet<FeatureId> {
        let mut chosen = BTreeSet::new();
        for sae in 0..self.saes.len() {
            let of_sae = self.of_sae(sae);
            let mut of_sae: Vec<_> = of_sae.map(|(id, totals)| (totals.largest, *id)).collect();
            of_sae.sort_by(|a, b| b.0.total_cmp(&a.0)); // by rising index where they are equal
            chosen.extend(of_sae.iter().take(n_features).map(|(_, id)| *id));
        }
        chosen
    }

    /// The features that go with each of `shown`.
    pub(super) fn together(
        &self,
        shown: &BTreeSet<FeatureId>,
        cancel: &CancelFlag,
    ) -> Result<Vec<Vec<Together>>> {
        let mut together = self.sample.together(shown, cancel)?;
        for one in together.iter_mut().flatten() {
            (one.name, one.label) = self.called(one.id);
        }
        Ok(together)
    }

    /// A feature's name and label.
    fn called(&self, id: FeatureId) -> (FeatureName, Option<String>) {
        let sae = self.saes[id.sae].as_deref();
        let label = self
            .features
            .get(&id)
            .and_then(|totals| totals.label.clone());
        (FeatureName::new(sae, id.index), label)
    }

    /// A feature, without what the second pass gives.
    pub(super) fn feature(&self, id: FeatureId) -> GalleryFeature {
        let none = FeatureTotals::default();
        let totals = self.features.get(&id).unwrap_or(&none);
        let (name, label) = self.called(id);
        let firing = totals.classes.iter().enumerate();
        let share = |(class, total): (usize, &ClassTotal)| {
            let ClassSize { class, n_images } = self.classes[class].clone();
            ClassShare {
                class,
                n_images,
                n_firing: total.n_firing,
                mean: mean(total.sum, n_images),
            }
        };
        let firing = firing.filter(|(_, total)| total.n_firing > 0);
        let mut classes: Vec<_> = firing.map(share).collect();
        let n_classes = classes.len();
        classes.sort_by(|a, b| b.mean.total_cmp(&a.mean)); // by name where they are equal
        classes.truncate(MAX_CLASSES);
        GalleryFeature {
            id,
            name,
            label,
            n_firing: totals.n_firing(),
            largest: totals.largest,
            histogram: vec![0; N_BINS],
            top: Vec::new(),
            tenths: vec![Tenth::default(); N_TENTHS],
            classes,
            n_classes,
            together: Vec::new(),
        }
    }

    /// The classes of these names, or all, with `n_features` of each SAE.
    ///
    /// # Errors
    /// A class that there is not.
    pub(super) fn classes(&self, names: &[String], n_features: usize) -> Result<Vec<GalleryClass>> {
        let has = |name: &&String| {
            let mut classes = self.classes.iter();
            classes.any(|size| size.class.as_ref() == Some(*name))
        };
        if let Some(unknown) = names.iter().find(|name| !has(name)) {
            return Err(no_class(self.kind, &self.classes, unknown));
        }
        let classes = self.classes.iter().enumerate();
        let classes = classes.filter_map(|(place, size)| {
            let class = size.class.clone()?;
            (names.is_empty() || names.contains(&class)).then(|| GalleryClass {
                class,
                n_images: size.n_images,
                features: self.features_of(place, n_features),
            })
        });
        Ok(classes.collect())
    }

    /// The features that a class activates more than other images, of each SAE by falling difference.
    fn features_of(&self, class: usize, n_features: usize) -> Vec<ClassFeature> {
        let n_inside = self.classes[class].n_images;
        let sizes = [n_inside, self.n_images() - n_inside];
        let mut best = Vec::new();
        for sae in 0..self.saes.len() {
            // What no image of the class activates, it does not activate more than others.
            let of_sae = self.of_sae(sae);
            let of_sae = of_sae.filter(|(_, totals)| totals.of_class(class).n_firing > 0);
            let compared = of_sae.map(|(id, totals)| {
                let inside = totals.of_class(class);
                let others = totals.classes.iter().enumerate();
                let others = others.filter(|(other, _)| *other != class);
                let sum_outside: f64 = others.map(|(_, total)| total.sum).sum();
                let sums = [inside.sum, sum_outside];
                let n_firing = [inside.n_firing, totals.n_firing() - inside.n_firing];
                ClassFeature {
                    id: *id,
                    name: FeatureName::Index(id.index),
                    label: None,
                    means: [0, 1].map(|side| mean(sums[side], sizes[side])),
                    shares: [0, 1].map(|side| mean(n_firing[side] as f64, sizes[side])),
                }
            });
            let mut more: Vec<_> = compared.filter(|one| one.difference() > 0.0).collect();
            // By rising index where they are equal, as the sort is stable.
            more.sort_by(|a, b| b.difference().total_cmp(&a.difference()));
            more.truncate(n_features);
            best.extend(more);
        }
        for one in &mut best {
            (one.name, one.label) = self.called(one.id);
        }
        best
    }
}

/// A mean, of nothing 0.
fn mean(sum: f64, n_images: u64) -> f64 {
    match n_images {
        0 => 0.0,
        n_images => sum / n_images as f64,
    }
}
