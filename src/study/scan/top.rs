//! What a scan says of a feature, and of a class. One pass over the rows, and memory for the answer
//! and a number for each feature.

use std::collections::BTreeMap;

use serde::Serialize;

use super::file::ScanFile;
use super::sidecar::ClassSize;
use crate::labels::{find_feature, is_index};
use crate::study::compare::{ClassFeature, Compared, Comparison, Sort, falling};
use crate::study::pictures::{ActiveFeature, InContext, ItemKind};
use crate::{Error, FeatureName, Result};

/// Classes that an error lists.
const MAX_CLASSES: usize = 20;

/// The value of a picture's feature that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The largest activation.
    Max,
    /// The activations' sum.
    Sum,
    /// The number of image rows on which it is active.
    Count,
}

impl By {
    /// Its name, as options and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Sum => "sum",
            Self::Count => "count",
        }
    }

    /// The value.
    pub fn of(self, active: &ActiveFeature) -> f64 {
        match self {
            Self::Max => f64::from(active.max),
            Self::Sum => f64::from(active.sum),
            Self::Count => active.count as f64,
        }
    }
}

/// An image, or a text, that activates a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct TopImage {
    /// Its path below the scanned folder.
    pub path: String,
    /// The name of the folder that it lies in.
    pub class: Option<String>,
    /// How it activates the feature.
    pub active: ActiveFeature,
    /// Of a text, the token that activates it most.
    pub token: Option<InContext>,
}

/// The images, or texts, of a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureImages {
    /// Its name: an index, with its SAE's id in a table of several.
    pub feature: FeatureName,
    /// Its label, where a row has one.
    pub label: Option<String>,
    /// How many images activate it.
    pub n_firing: u64,
    /// Those that activate it most, best first.
    pub images: Vec<TopImage>,
}

/// The features that a class activates more than other images do.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassFeatures {
    /// Images of the class, as [`ScanFile::class_sizes`] counts them.
    pub n_inside: u64,
    /// All other images.
    pub n_outside: u64,
    /// The features of each SAE, whose values do not compare with another's.
    pub saes: Vec<SaeFeatures>,
}

/// The features of an SAE that a class activates more than other images do.
#[derive(Clone, Debug, PartialEq)]
pub struct SaeFeatures {
    /// The SAE's id, in a table of several.
    pub sae: Option<String>,
    /// The features, best first.
    pub features: Vec<ClassFeature>,
}

/// The `n_images` images, or texts with the tokens in them, that activate a feature most: an index, a label of a feature that some image activates,
/// or a text that is part of exactly one of these; in a table of several SAEs, `SAE_ID/FEATURE`.
///
/// # Errors
/// A name that means no feature or several, or that does not say which SAE's, a file that cannot be read.
pub fn images_of_feature(
    file: &ScanFile,
    name: &str,
    by: By,
    n_images: usize,
) -> Result<FeatureImages> {
    let saes: Vec<_> = file.saes().iter().collect();
    let find = |sae: usize, name: &str| find_in_sae(file, saes[sae], name);
    let feature = file.saes().find(name, find)?;
    let (id, _) = saes[feature.sae];
    let mut label = None;
    let mut n_firing = 0;
    let mut images = Vec::new();
    file.for_each_row(&mut |row| {
        if row.active.feature != feature.index || row.sae != id {
            return Ok(());
        }
        n_firing += 1;
        if label.is_none() {
            label = row.label.map(str::to_owned);
        }
        images.push(TopImage {
            path: row.path.to_owned(),
            class: row.class.map(str::to_owned),
            active: row.active,
            token: row.token.map(InContext::to_owned),
        });
        if images.len() >= n_images.saturating_mul(2).max(1024) {
            keep_best(&mut images, by, n_images);
        }
        Ok(())
    })?;
    keep_best(&mut images, by, n_images);
    Ok(FeatureImages {
        feature: FeatureName::new(id, feature.index),
        label,
        n_firing,
        images,
    })
}

/// The feature that `name` means in an SAE, given by its id in the rows and its number of features.
fn find_in_sae(file: &ScanFile, sae: (Option<&str>, usize), name: &str) -> Result<usize> {
    let (id, d_sae) = sae;
    let mut labels = BTreeMap::new();
    if !is_index(name) {
        file.for_each_row(&mut |row| {
            if let Some(label) = row.label
                && row.sae == id
                && !labels.contains_key(&row.active.feature)
            {
                labels.insert(row.active.feature, label.to_owned());
            }
            Ok(())
        })?;
    }
    let pairs = labels.iter().map(|(&feature, label)| (feature, &**label));
    find_feature(name, d_sae, pairs)
}

fn keep_best(images: &mut Vec<TopImage>, by: By, n_images: usize) {
    images.sort_by(|a, b| {
        let (value_a, value_b) = (by.of(&a.active), by.of(&b.active));
        falling(value_a, value_b).then_with(|| a.path.cmp(&b.path))
    });
    images.truncate(n_images);
}

/// The `n_features` features of each SAE that images of `class` activate more than all other images, on average,
/// best first by `sort`. Where a file does not say how many images there are, those count that have a row.
///
/// # Errors
/// A class that the file does not have, or has alone; a file that cannot be read.
pub fn features_of_class(
    file: &ScanFile,
    class: &str,
    by: By,
    sort: Sort,
    n_features: usize,
) -> Result<ClassFeatures> {
    let sizes = file.class_sizes()?;
    let found = sizes
        .iter()
        .find(|size| size.class.as_deref() == Some(class));
    let n_inside = found
        .ok_or_else(|| no_class(file.kind(), &sizes, class))?
        .n_images;
    let n_images: u64 = sizes.iter().map(|size| size.n_images).sum();
    let n_outside = n_images - n_inside;
    if n_outside == 0 {
        let items = format!("{}s", file.kind().noun());
        return Err(Error::invalid(format!(
            "all {items} are of class `{class}`: there are no others to compare with"
        ))
        .with_hint(format!("scan {items} of several classes")));
    }
    let saes: Vec<_> = file.saes().iter().map(|(id, _)| id).collect();
    let comparison = Comparison {
        n_images: [n_outside, n_inside],
        sort,
        n_features,
    };
    let features = comparison.features(saes.len(), &|take| {
        file.for_each_row(&mut |row| {
            take(Compared {
                sae: file.saes().place_of(&row),
                is_inside: row.class == Some(class),
                label: row.label,
                feature: row.active.feature,
                value: by.of(&row.active),
            });
            Ok(())
        })
    })?;
    let of_each = saes.into_iter().zip(features);
    let of_each = of_each.map(|(id, features)| SaeFeatures {
        sae: id.map(str::to_owned),
        features,
    });
    Ok(ClassFeatures {
        n_inside,
        n_outside,
        saes: of_each.collect(),
    })
}

/// The error of a class that no item has.
pub(in crate::study) fn no_class(kind: ItemKind, sizes: &[ClassSize], class: &str) -> Error {
    let names = sizes.iter().filter_map(|size| size.class.as_deref());
    let names: Vec<_> = names.collect();
    let error = Error::invalid(format!("no {} is of class `{class}`", kind.noun()));
    if names.is_empty() {
        return error.with_hint(match kind {
            ItemKind::Pictures => {
                "a class is a folder inside the scanned one, and all pictures are directly in the scanned one"
            }
            ItemKind::Texts => "a text's class is in a column `class`, or the folder of its file",
        });
    }
    let shown = names.iter().take(MAX_CLASSES);
    let mut list: Vec<_> = shown.map(|name| format!("`{name}`")).collect();
    if names.len() > MAX_CLASSES {
        list.push(format!("{} more", names.len() - MAX_CLASSES));
    }
    error.with_hint(format!("the classes are {}", list.join(", ")))
}
