//! A gallery as a folder of pages: an index, a page for each feature, and one for each class.
//!
//! ```text
//! index.html      all features, searched and sorted; the classes
//! features/       a page for each: 430.html, or of several SAEs 1-430.html with the SAE's place
//! classes/        a page for each: 0.html …
//! pictures/       thumbnails, which pages share
//! parts/          styles and scripts of the three kinds of pages
//! ```
//!
//! A page holds its data and loads from the folder alone, without a server too. How an item looks is in `items.rs` and
//! `item.js`; `index.*`, `feature.*` and `class.*` beside this file are the pages' own parts.

mod items;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use gguf_tools::terminal::one_line;
use serde::Serialize;

use super::page::document::{Document, REPORT_STYLE, TABLE_SCRIPT, TABLE_STYLE};
use super::page::explorer;
use super::sweep::{CHARTS_SCRIPT, CHARTS_STYLE};
use crate::gallery::{Example, Gallery, GalleryClass, GalleryFeature, Tenth, Together};
use crate::scan::Settings;
use crate::{CancelFlag, Error, FeatureId, FeatureName, Result};

pub use items::{HeatMaps, Items, Missing, n_items};
use items::{ItemData, PICTURES};

/// What a gallery's folder holds, and nothing else.
pub const CONTENTS: &[&str] = &["index.html", FEATURES, CLASSES, PICTURES, PARTS];

const FEATURES: &str = "features";
const CLASSES: &str = "classes";
const PARTS: &str = "parts";

/// Pages may show pictures of their folder; in some browsers a file's own origin does not count as `'self'`.
const SOURCES: &str = "img-src 'self' file:; ";
const STYLE: &str = include_str!("gallery.css");
const ITEM_SCRIPT: &str = include_str!("item.js");

const INDEX: Document<'_> = Document {
    title: "Gallery",
    sources: SOURCES,
    body: &[include_str!("index.html")],
    styles: &[REPORT_STYLE, TABLE_STYLE, STYLE],
    scripts: &[TABLE_SCRIPT, include_str!("index.js")],
};
const FEATURE: Document<'_> = Document {
    title: "Feature",
    sources: SOURCES,
    body: &[include_str!("feature.html")],
    styles: &[REPORT_STYLE, TABLE_STYLE, CHARTS_STYLE, STYLE],
    scripts: &[
        TABLE_SCRIPT,
        CHARTS_SCRIPT,
        explorer::HEAT_SCRIPT,
        ITEM_SCRIPT,
        include_str!("feature.js"),
    ],
};
const CLASS: Document<'_> = Document {
    title: "Class",
    sources: SOURCES,
    body: &[include_str!("class.html")],
    styles: &[REPORT_STYLE, TABLE_STYLE, STYLE],
    scripts: &[TABLE_SCRIPT, include_str!("class.js")],
};

/// What pages say besides.
pub struct About<'a> {
    /// The table's name.
    pub table: String,
    /// What its numbers depend on, where that is known; where it is not, only images with a row count.
    pub settings: Option<&'a Settings>,
    /// Where the SAEs' features have pages on Neuronpedia ([`crate::neuronpedia_addresses`]).
    pub neuronpedia: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct IndexData<'a> {
    table: &'a str,
    settings: Option<&'a Settings>,
    n_images: u64,
    features: Vec<IndexEntry<'a>>,
    classes: Vec<ClassEntry>,
}

#[derive(Serialize)]
struct IndexEntry<'a> {
    #[serde(flatten)]
    feature: Link<'a>,
    n_firing: u64,
    largest: f32,
    class: Option<String>, // with the largest mean
    picture: Option<String>,
}

#[derive(Serialize)]
struct ClassEntry {
    class: String,
    page: String,
    n_images: u64,
}

/// A feature, and the page that it has.
#[derive(Serialize)]
struct Link<'a> {
    name: &'a FeatureName,
    label: Option<String>,
    page: Option<String>,
}

#[derive(Serialize)]
struct FeatureData<'a> {
    #[serde(flatten)]
    feature: Link<'a>,
    table: &'a str,
    n_images: u64,
    counts_known: bool,
    neuronpedia: Option<String>,
    colours: &'a [String],
    n_firing: u64,
    largest: f32,
    histogram: &'a [u64],
    top: Vec<ItemData<'a>>,
    tenths: Vec<TenthData<'a>>,
    classes: Vec<ShareData>,
    n_classes: usize,
    together: Vec<TogetherData<'a>>,
}

#[derive(Serialize)]
struct TenthData<'a> {
    n_images: u64,
    items: Vec<ItemData<'a>>,
}

#[derive(Serialize)]
struct ShareData {
    class: Option<String>,
    page: Option<String>,
    n_images: u64,
    n_firing: u64,
    mean: f64,
}

#[derive(Serialize)]
struct TogetherData<'a> {
    #[serde(flatten)]
    feature: Link<'a>,
    correlation: f64,
    n_common: u64,
}

#[derive(Serialize)]
struct ClassData<'a> {
    table: &'a str,
    counts_known: bool,
    class: String,
    n_inside: u64,
    n_outside: u64,
    features: Vec<ClassFeatureData<'a>>,
}

#[derive(Serialize)]
struct ClassFeatureData<'a> {
    #[serde(flatten)]
    feature: Link<'a>,
    difference: f64,
    means: [f64; 2],
    shares: [f64; 2],
}

/// Writes the pages into `dir`, where the pictures of `items` are.
///
/// # Errors
/// A folder that cannot be written to, an interruption.
pub fn write(
    dir: &Path,
    gallery: &Gallery,
    items: &Items,
    about: &About<'_>,
    cancel: &CancelFlag,
) -> Result<()> {
    let site = Site {
        dir,
        gallery,
        items,
        about,
        shown: gallery.features.iter().map(|feature| feature.id).collect(),
        classes: gallery
            .classes
            .iter()
            .enumerate()
            .map(|(place, class)| (&*class.class, place))
            .collect(),
        colours: explorer::colours(),
    };
    for part in [FEATURES, CLASSES, PARTS] {
        let path = dir.join(part);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    for (kind, document) in [("index", INDEX), ("feature", FEATURE), ("class", CLASS)] {
        site.write(&format!("{PARTS}/{kind}.css"), &document.style_text())?;
        site.write(&format!("{PARTS}/{kind}.js"), &document.script_text())?;
    }
    for feature in &gallery.features {
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        let data = site.feature_data(feature);
        let html = FEATURE.html_beside(&data, "../parts/feature.css", "../parts/feature.js");
        site.write(
            &format!("{FEATURES}/{}", page_of(&feature.name, feature.id)),
            &html,
        )?;
    }
    for (place, class) in gallery.classes.iter().enumerate() {
        let data = site.class_data(class);
        let html = CLASS.html_beside(&data, "../parts/class.css", "../parts/class.js");
        site.write(&format!("{CLASSES}/{place}.html"), &html)?;
    }
    let html = INDEX.html_beside(&site.index_data(), "parts/index.css", "parts/index.js");
    site.write("index.html", &html)
}

/// The name of a feature's page; an SAE's id may be no name of a file.
fn page_of(name: &FeatureName, id: FeatureId) -> String {
    match name {
        FeatureName::Index(index) => format!("{index}.html"),
        FeatureName::Name(_) => format!("{}-{}.html", id.sae + 1, id.index),
    }
}

/// What all pages are made of.
struct Site<'a> {
    dir: &'a Path,
    gallery: &'a Gallery,
    items: &'a Items,
    about: &'a About<'a>,
    shown: BTreeSet<FeatureId>,
    classes: HashMap<&'a str, usize>,
    colours: Vec<String>,
}

impl<'a> Site<'a> {
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(Error::io("write", &path))
    }

    fn link(&self, id: FeatureId, name: &'a FeatureName, label: Option<&str>) -> Link<'a> {
        Link {
            name,
            label: label.map(one_line),
            page: self.shown.contains(&id).then(|| page_of(name, id)),
        }
    }

    fn item_data(&self, examples: &'a [Example], id: FeatureId) -> Vec<ItemData<'a>> {
        let examples = examples.iter();
        examples
            .map(|example| self.items.data(example, id))
            .collect()
    }

    fn feature_data(&'a self, feature: &'a GalleryFeature) -> FeatureData<'a> {
        let sae = match &feature.name {
            FeatureName::Index(_) => "",
            FeatureName::Name(name) => name.rsplit_once('/').map_or("", |(sae, _)| sae),
        };
        let address = self.about.neuronpedia.get(sae);
        let tenth = |tenth: &'a Tenth| TenthData {
            n_images: tenth.n_images,
            items: self.item_data(&tenth.examples, feature.id),
        };
        let shares = feature.classes.iter().map(|share| {
            let class = share.class.as_deref();
            ShareData {
                class: class.map(one_line),
                page: class.and_then(|class| self.class_page(class)),
                n_images: share.n_images,
                n_firing: share.n_firing,
                mean: share.mean,
            }
        });
        let together = feature
            .together
            .iter()
            .map(|other: &Together| TogetherData {
                feature: self.link(other.id, &other.name, other.label.as_deref()),
                correlation: other.correlation,
                n_common: other.n_common,
            });
        FeatureData {
            feature: self.link(feature.id, &feature.name, feature.label.as_deref()),
            table: &self.about.table,
            n_images: self.gallery.n_images,
            counts_known: self.about.settings.is_some(),
            neuronpedia: address.map(|address| format!("{address}/{}", feature.id.index)),
            colours: &self.colours,
            n_firing: feature.n_firing,
            largest: feature.largest,
            histogram: &feature.histogram,
            top: self.item_data(&feature.top, feature.id),
            tenths: feature.tenths.iter().map(tenth).collect(),
            classes: shares.collect(),
            n_classes: feature.n_classes,
            together: together.collect(),
        }
    }

    fn class_page(&self, class: &str) -> Option<String> {
        let place = self.classes.get(class)?;
        Some(format!("{place}.html"))
    }

    fn class_data(&'a self, class: &'a GalleryClass) -> ClassData<'a> {
        let features = class.features.iter().map(|feature| ClassFeatureData {
            feature: self.link(feature.id, &feature.name, feature.label.as_deref()),
            difference: feature.difference(),
            means: feature.means,
            shares: feature.shares,
        });
        ClassData {
            table: &self.about.table,
            counts_known: self.about.settings.is_some(),
            class: one_line(&class.class),
            n_inside: class.n_images,
            n_outside: self.gallery.n_images - class.n_images,
            features: features.collect(),
        }
    }

    fn index_data(&'a self) -> IndexData<'a> {
        let entry = |feature: &'a GalleryFeature| {
            let mut classes = feature.classes.iter();
            let strongest = feature.top.first();
            IndexEntry {
                feature: self.link(feature.id, &feature.name, feature.label.as_deref()),
                n_firing: feature.n_firing,
                largest: feature.largest,
                class: classes.find_map(|share| share.class.as_deref().map(one_line)),
                picture: strongest.and_then(|example| self.items.picture(&example.item)),
            }
        };
        let class = |class: &'a GalleryClass| ClassEntry {
            class: one_line(&class.class),
            page: self.class_page(&class.class).expect("each has a page"),
            n_images: class.n_images,
        };
        IndexData {
            table: &self.about.table,
            settings: self.about.settings,
            n_images: self.gallery.n_images,
            features: self.gallery.features.iter().map(entry).collect(),
            classes: self.gallery.classes.iter().map(class).collect(),
        }
    }
}
