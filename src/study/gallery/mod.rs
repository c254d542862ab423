//! What a scan's table says of each feature and each class, for whoever shows it; pages are made of it in
//! `report::gallery`.
//!
//! ```text
//! rows ─► totals.rs: of all features, by class; a sample of the images ─► which features are shown
//! rows ─► examples.rs: histograms, the strongest images, some of each tenth of the range
//! sample ─► together.rs: the features that go with each
//! ```
//!
//! An item is known by its name in the table and by numbers: what it is, and how it looks, is not known here.
//!
//! A feature's activation on an image is the largest one on the image's rows, the table's `max`.

mod examples;
mod together;
mod totals;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::labels::find_feature;
use crate::pictures::{ActiveFeature, InContext};
use crate::scan::{Row, ScanFile};
use crate::{CancelFlag, Error, FeatureId, FeatureName, Result};

pub use together::{SAMPLE_IMAGES, Together};

use totals::Totals;

/// Bars of a histogram, of the same width from 0 to the feature's largest activation.
pub const N_BINS: usize = 20;
/// Parts of the range of a feature's activations, from which images are shown.
pub const N_TENTHS: usize = 10;
/// Images that are shown of each.
pub const IMAGES_OF_TENTH: usize = 2;
/// Classes that are listed with a feature.
pub const MAX_CLASSES: usize = 50;
/// Features that are listed as going with another.
pub const MAX_TOGETHER: usize = 10;

/// What is shown.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The features.
    pub which: Which,
    /// How many of the images that activate a feature most.
    pub n_examples: usize,
    /// How many features of a class, of each SAE.
    pub class_features: usize,
}

/// The features that are shown.
#[derive(Clone, Debug)]
pub enum Which {
    /// All that some image activates.
    Active,
    /// Those of each SAE that have the largest activations.
    Largest(usize),
    /// These: indices, labels, or parts of one label; in a table of several SAEs `SAE_ID/FEATURE`.
    Named(Vec<String>),
    /// Those that images of these classes activate more than the others do, on average.
    OfClasses(Vec<String>),
}

/// What a table says.
#[derive(Clone, Debug)]
pub struct Gallery {
    /// The images that were scanned, or, where that is not known, those that have a row.
    pub n_images: u64,
    /// The features that are shown, by SAE and index.
    pub features: Vec<GalleryFeature>,
    /// The classes, by name; with [`Which::OfClasses`] those alone.
    pub classes: Vec<GalleryClass>,
}

/// A feature.
#[derive(Clone, Debug)]
pub struct GalleryFeature {
    /// The place of its SAE in the table, and its index.
    pub id: FeatureId,
    /// How it is written.
    pub name: FeatureName,
    /// Its label, where a row has one.
    pub label: Option<String>,
    /// How many images activate it.
    pub n_firing: u64,
    /// Its largest activation; 0 where no image activates it.
    pub largest: f32,
    /// The images that activate it, by activation: from `i` to `i + 1` parts of the largest, which is in the last.
    pub histogram: Vec<u64>, // [N_BINS]
    /// The images that activate it most, best first.
    pub top: Vec<Example>,
    /// The parts of its range, from the lowest.
    pub tenths: Vec<Tenth>, // [N_TENTHS]
    /// The classes whose images activate it, by falling mean, [`MAX_CLASSES`] at most.
    pub classes: Vec<ClassShare>,
    /// How many classes have an image that activates it.
    pub n_classes: usize,
    /// The features whose activations rise with its own, by falling correlation.
    pub together: Vec<Together>,
}

/// An image, or a text, that activates a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its name in the table.
    pub item: Arc<str>,
    /// Its class.
    pub class: Option<Arc<str>>,
    /// How it activates the feature.
    pub active: ActiveFeature,
    /// Of a text, the token that activates it most.
    pub token: Option<InContext>,
}

/// Images whose activations are in a part of a feature's range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tenth {
    /// How many there are.
    pub n_images: u64,
    /// Some of them, chosen by the hashes of their names.
    pub examples: Vec<Example>,
}

/// What a class's images do to a feature. An image that does not activate it counts as 0.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassShare {
    /// The class; none for images that have none.
    pub class: Option<String>,
    /// Its images.
    pub n_images: u64,
    /// Those that activate the feature.
    pub n_firing: u64,
    /// The mean activation over the class's images.
    pub mean: f64,
}

/// A class.
#[derive(Clone, Debug)]
pub struct GalleryClass {
    /// Its name.
    pub class: String,
    /// Its images.
    pub n_images: u64,
    /// The features that they activate more than other images do, of each SAE by falling difference.
    pub features: Vec<ClassFeature>,
}

/// How a feature's activation in a class differs from that elsewhere. Images that do not activate it count as 0, and
/// so does a side without images.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassFeature {
    /// The feature.
    pub id: FeatureId,
    /// How it is written.
    pub name: FeatureName,
    /// Its label, where a row has one.
    pub label: Option<String>,
    /// The mean over the class's images, and over all others.
    pub means: [f64; 2],
    /// The share of the class's images that activate it, and of all others.
    pub shares: [f64; 2],
}

impl ClassFeature {
    /// The class's mean less the others'.
    pub fn difference(&self) -> f64 {
        self.means[0] - self.means[1]
    }
}

/// Gathers what is shown, in two passes over the rows. Held are, of each feature and each class that activates it, 16
/// bytes; the rows of [`SAMPLE_IMAGES`] images; and what is returned. A table without a sidecar takes another pass
/// and memory for its images' paths, since the images of each class have to be counted.
///
/// # Errors
/// A name that means no feature or several, a class that the table does not have, an activation that is no number, a
/// file that cannot be read, an interruption.
pub fn gather(file: &ScanFile, choice: &Choice, cancel: &CancelFlag) -> Result<Gallery> {
    let totals = Totals::gather(file, cancel)?;
    let named: &[String] = match &choice.which {
        Which::OfClasses(classes) => classes,
        _ => &[],
    };
    let classes = totals.classes(named, choice.class_features)?;
    let shown = match &choice.which {
        Which::Active => totals.ids().collect(),
        Which::Largest(n_features) => totals.largest(*n_features),
        Which::Named(names) => find(file, &totals, names)?,
        Which::OfClasses(_) => {
            let features = classes.iter().flat_map(|class| &class.features);
            features.map(|feature| feature.id).collect()
        }
    };
    let together = totals.together(&shown, cancel)?;
    let mut features: Vec<_> = shown.iter().map(|&id| totals.feature(id)).collect();
    for (feature, together) in features.iter_mut().zip(together) {
        feature.together = together;
    }
    examples::collect(file, &mut features, choice.n_examples, cancel)?;
    Ok(Gallery {
        n_images: totals.n_images(),
        features,
        classes,
    })
}

/// The features that names mean.
fn find(file: &ScanFile, totals: &Totals, names: &[String]) -> Result<BTreeSet<FeatureId>> {
    let saes: Vec<_> = file.saes().iter().collect();
    let find_in = |sae: usize, name: &str| find_feature(name, saes[sae].1, totals.labels(sae));
    let found = names.iter().map(|name| file.saes().find(name, find_in));
    found.collect()
}

/// Gives the rows whose images activate a feature to `on_row`, with that feature. An activation that is not above 0
/// is none; another program may have left it in.
fn for_each_active(
    file: &ScanFile,
    cancel: &CancelFlag,
    on_row: &mut dyn FnMut(FeatureId, Row<'_>) -> Result<()>,
) -> Result<()> {
    file.for_each_row(&mut |row| {
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        let sae = file.saes().place_of(&row);
        let index = row.active.feature;
        if !row.active.max.is_finite() {
            let name = FeatureName::new(row.sae, index);
            return Err(Error::invalid(format!(
                "the activation of feature `{name}` on `{}` is no number",
                row.path
            ))
            .with_hint("leave such rows out"));
        }
        match row.active.max > 0.0 {
            true => on_row(FeatureId { sae, index }, row),
            false => Ok(()),
        }
    })
}

/// A number that is the same wherever a name is met, and chosen by nobody: the first bytes of its BLAKE3 hash.
fn hash_of(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let first = hash.as_bytes().first_chunk().expect("32 bytes");
    u64::from_le_bytes(*first)
}
