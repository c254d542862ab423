//! Items as pages show them: texts by a token in its context, and pictures as thumbnails with the feature's activation over their patches.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use gguf_tools::terminal::one_line;
use image::codecs::jpeg::JpegEncoder;
use serde::Serialize;

use crate::gallery::{Example, Gallery};
use crate::picture::WHOLE;
use crate::pictures::{InContext, ScanPrompt, file_of};
use crate::rank::{self, Over};
use crate::report::view::View;
use crate::scan::ScannedSaes;
use crate::{
    CancelFlag, Error, FeatureId, Keep, Kinds, Picture, Result, RunOptions, Session, Trace,
};

/// The folder of thumbnails.
pub(super) const PICTURES: &str = "pictures";
/// A thumbnail's longest side, in pixels.
const SIDE: u32 = 224;
const JPEG_QUALITY: u8 = 85;
/// The share of a picture's activations that may differ from the table's. Other processors round in other ways, by
/// a few per cent with quantised weights; another picture activates other features.
const MAX_DIFFERENCE: f64 = 0.1;

/// How the items of a gallery look.
#[derive(Default)]
pub struct Items {
    pictures: HashMap<Arc<str>, std::result::Result<Thumbnail, Missing>>,
    maps: HashMap<(FeatureId, Arc<str>), Map>,
}

/// Why a picture is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// There is no file, or none that can be read.
    Gone,
    /// It does not activate what the table says.
    Changed,
}

/// A picture in a file of the gallery.
#[derive(Clone, Debug, Serialize)]
struct Thumbnail {
    file: String,
    size: [u32; 2], // width and height
}

/// A feature over a picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Map {
    grid: [usize; 2],    // rows and columns
    place: [f32; 4],     // left, top, width and height as shares of the picture
    patches: Vec<usize>, // an active patch in reading order, its share of the largest of 255, the next patch …
}

/// What pages get of an item.
#[derive(Serialize)]
pub(super) struct ItemData<'a> {
    name: String,
    class: Option<String>,
    max: f32,
    count: usize,
    picture: Option<&'a Thumbnail>,
    missing: Option<Missing>,
    map: Option<&'a Map>,
    token: Option<InContext>,
}

/// A model that says where pictures activate features.
pub struct HeatMaps<'a> {
    session: &'a mut Session,
    prompt: ScanPrompt<'a>,
    saes: Vec<usize>, // the model's, in the table's order
}

impl<'a> HeatMaps<'a> {
    /// With the model and the prompt of the scan whose features are those of `scanned`.
    ///
    /// # Errors
    /// A model without one of these SAEs.
    pub fn new(
        session: &'a mut Session,
        prompt: ScanPrompt<'a>,
        scanned: &ScannedSaes,
    ) -> Result<Self> {
        let saes = session.model().saes();
        let find = |(id, d_sae): (Option<&str>, usize)| {
            let found = match id {
                None => Some(0).filter(|_| saes.len() == 1),
                Some(id) => saes.iter().position(|sae| sae.id() == id),
            };
            let has_its_size = |&sae: &usize| [usize::MAX, saes[sae].meta().d_sae].contains(&d_sae);
            found.filter(has_its_size).ok_or_else(|| {
                let which = id.map(|id| format!(" `{id}`")).unwrap_or_default();
                let size = match d_sae {
                    usize::MAX => String::new(),
                    d_sae => format!(" of {d_sae} features"),
                };
                let what = format!("the model has not the table's SAE{which}{size}");
                Error::invalid(what).with_hint("give the model and the SAEs of the scan")
            })
        };
        let saes = scanned.iter().map(find).collect::<Result<_>>()?;
        Ok(Self {
            session,
            prompt,
            saes,
        })
    }

    /// Where a picture activates these features, or that it has changed: activations beside them are the table's.
    fn look(
        &mut self,
        picture: &Picture,
        features: &[(FeatureId, f32)],
        cancel: &CancelFlag,
    ) -> Result<std::result::Result<Vec<(FeatureId, Map)>, Missing>> {
        let image = match self.session.encode_image(picture) {
            Err(error) if error.is_of_input() => return Ok(Err(Missing::Changed)),
            image => image?,
        };
        let prompt = self
            .session
            .prompt(self.prompt.text, self.prompt.form, &[&image])?;
        let options = RunOptions {
            keep: Keep {
                features: Kinds::IMAGE,
                ..Keep::default()
            },
            cancel: cancel.clone(),
            ..RunOptions::default()
        };
        let trace = self.session.run(&prompt, options)?.trace;
        let positions = rank::pooled_positions(&trace.tokens, &Over::IMAGE)?;
        let (mut differences, mut sum) = (0.0, 0.0);
        for &(feature, in_table) in features {
            let here = positions.iter();
            let here = here.map(|&position| self.activation(&trace, position, feature));
            let here = f64::from(here.fold(0.0, f32::max));
            let in_table = f64::from(in_table);
            differences += (here - in_table).abs();
            sum += here.max(in_table);
        }
        if differences > MAX_DIFFERENCE * sum {
            return Ok(Err(Missing::Changed));
        }
        let views = View::of_prompt(&prompt);
        let map =
            |&(feature, _): &(FeatureId, f32)| Some((feature, self.map(&trace, &views, feature)?));
        Ok(Ok(features.iter().filter_map(map).collect()))
    }

    fn activation(&self, trace: &Trace, position: usize, feature: FeatureId) -> f32 {
        let activations = &trace.saes[self.saes[feature.sae]].activations;
        activations.get(position, feature.index)
    }

    /// A feature over the view in which it is largest; none where no patch activates it.
    fn map(&self, trace: &Trace, views: &[View], feature: FeatureId) -> Option<Map> {
        let activation = |position| self.activation(trace, position, feature);
        // Among equals the first, which shows the whole picture where there are several.
        let view = &views[View::strongest(views, activation)?];
        let values: Vec<f32> = view.positions().map(activation).collect();
        let largest = values.iter().copied().fold(0.0, f32::max);
        let shares = values.iter().map(|value| (255.0 * value / largest).round());
        let active = shares.enumerate().filter(|(_, share)| *share > 0.0);
        (largest > 0.0).then(|| Map {
            grid: view.grid,
            place: view.place,
            patches: active
                .flat_map(|(patch, share)| [patch, share as usize])
                .collect(),
        })
    }
}

/// The items that a gallery shows, and for each the features that it is shown with and its activations of them.
fn shown(gallery: &Gallery) -> BTreeMap<Arc<str>, Vec<(FeatureId, f32)>> {
    let mut items = BTreeMap::<_, Vec<_>>::new();
    for feature in &gallery.features {
        let of_tenths = feature.tenths.iter().flat_map(|tenth| &tenth.examples);
        for example in feature.top.iter().chain(of_tenths) {
            let features = items.entry(Arc::clone(&example.item)).or_default();
            let shown = (feature.id, example.active.max);
            if features.last() != Some(&shown) {
                features.push(shown);
            }
        }
    }
    items
}

/// How many items a gallery shows.
pub fn n_items(gallery: &Gallery) -> usize {
    shown(gallery).len()
}

impl Items {
    /// Reads the pictures that a gallery shows, whose names begin at `source`, once each, and writes their thumbnails
    /// into the gallery's folder `target`. With a model, they get heat maps: a few bytes for each patch where a feature
    /// is active, which are held until the pages are written. `on_picture` hears of each, and why one is missing.
    ///
    /// # Errors
    /// A folder that cannot be written to, a failure of llama.cpp, an interruption.
    pub fn read(
        gallery: &Gallery,
        source: &Path,
        target: &Path,
        mut model: Option<HeatMaps<'_>>,
        cancel: &CancelFlag,
        on_picture: &mut dyn FnMut(std::result::Result<(), &Error>),
    ) -> Result<Self> {
        let pictures = target.join(PICTURES);
        fs::create_dir_all(&pictures).map_err(Error::io("create", &pictures))?;
        let mut items = Self::default();
        for (number, (name, features)) in shown(gallery).into_iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let picture = match Picture::open(&file_of(source, &name)) {
                Ok(picture) => picture,
                Err(error) => {
                    on_picture(Err(&error));
                    items.pictures.insert(name, Err(Missing::Gone));
                    continue;
                }
            };
            let maps = match &mut model {
                Some(model) => model.look(&picture, &features, cancel)?,
                None => Ok(Vec::new()),
            };
            let maps = match maps {
                Ok(maps) => maps,
                Err(missing) => {
                    on_picture(Err(&Error::invalid(format!(
                        "`{name}` does not activate features as the table says: it has changed since the scan, or \
                        the model or its settings are others"
                    ))));
                    items.pictures.insert(name, Err(missing));
                    continue;
                }
            };
            let thumbnail = Thumbnail::write(&picture, &pictures, number)?;
            for (feature, map) in maps {
                items.maps.insert((feature, Arc::clone(&name)), map);
            }
            items.pictures.insert(name, Ok(thumbnail));
            on_picture(Ok(()));
        }
        Ok(items)
    }

    /// What a feature's page gets of an example.
    pub(super) fn data<'a>(&'a self, example: &'a Example, feature: FeatureId) -> ItemData<'a> {
        let picture = self.pictures.get(&example.item);
        ItemData {
            name: one_line(&example.item),
            class: example.class.as_deref().map(one_line),
            max: example.active.max,
            count: example.active.count,
            picture: picture.and_then(|picture| picture.as_ref().ok()),
            missing: picture.and_then(|picture| picture.as_ref().err().copied()),
            map: self.maps.get(&(feature, Arc::clone(&example.item))),
            token: example.token.as_ref().map(shown_token),
        }
    }

    /// The file of an item's thumbnail.
    pub(super) fn picture(&self, item: &Arc<str>) -> Option<String> {
        let thumbnail = self.pictures.get(item)?.as_ref().ok()?;
        Some(thumbnail.file.clone())
    }
}

/// A token as pages show it.
fn shown_token(token: &InContext) -> InContext {
    InContext {
        position: token.position,
        before: one_line(&token.before),
        token: one_line(&token.token),
        after: one_line(&token.after),
    }
}

impl Thumbnail {
    /// Writes a picture's thumbnail into a folder.
    fn write(picture: &Picture, dir: &Path, number: usize) -> Result<Self> {
        let small = picture.part(WHOLE, SIDE);
        let mut jpeg = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
        let encoded = small.write_with_encoder(encoder);
        encoded.expect("memory can be written, and JPEG holds a small RGB image");
        let file = format!("{number}.jpg");
        let path = dir.join(&file);
        fs::write(&path, jpeg).map_err(Error::io("write", &path))?;
        Ok(Self {
            file,
            size: small.dimensions().into(),
        })
    }
}
