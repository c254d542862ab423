//! One HTML page that holds its data and loads nothing.
//!
//! `page.html`, `page.css` and `page.js` beside this file are its own parts, which `document.rs` puts into what all
//! pages share, and `explorer.rs` has what it shares with the page of a server.

pub(crate) mod document;
pub(crate) mod explorer;

use std::collections::BTreeMap;

use crate::rank::{self, FeatureScore, Pool};
use crate::{FeatureId, Picture, Run, Session, Token, saved_set};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::terminal::one_line;
use image::{RgbImage, imageops};
use serde::Serialize;

use self::document::Document;
use super::difference::{self, Pieces};
use super::view::View;
use super::{heatmap, json};

const DOCUMENT: Document<'_> = Document {
    title: "Features",
    sources: "img-src data:; ",
    body: &[
        include_str!("page.html"),
        "<main>
",
        explorer::WHERE,
        explorer::FEATURES,
        explorer::POSITION,
        "</main>",
    ],
    styles: &[explorer::STYLE, include_str!("page.css")],
    scripts: &[
        explorer::SCRIPTS[0],
        explorer::SCRIPTS[1],
        explorer::SCRIPTS[2],
        include_str!("page.js"),
    ],
};

/// The longest side of a whole picture, in pixels.
const WHOLE_SIDE: f32 = 240.0;

/// The page's data.
#[derive(Serialize)]
pub struct Page {
    #[serde(flatten)]
    about: About,
    colours: Vec<String>,
    /// With several SAEs, what each feature that is active somewhere is called.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    names: BTreeMap<usize, String>,
    labels: BTreeMap<usize, String>, // of the features that are active somewhere
    pictures: Vec<PictureData>,
}

/// What a page's pictures share.
#[derive(Serialize)]
pub struct About {
    /// The model's name.
    pub model: String,
    /// The SAE's name.
    pub sae: String,
    /// Where the SAE reads.
    pub hook: String,
    /// The prompt's text.
    pub prompt: String,
    /// What the order of features means, in words.
    pub ranked_by: String,
    /// The positions that were pooled, in words.
    pub positions: String,
    /// Whether features have a lift.
    pub has_lift: bool,
    /// Where the SAEs' features have pages on Neuronpedia ([`crate::neuronpedia_addresses`]).
    pub neuronpedia: BTreeMap<String, String>,
    /// What was done to the run that is steered.
    pub interventions: Vec<saved_set::Entry>,
}

/// What one picture, or a text, adds to a page.
pub struct Shown<'a> {
    /// What it is called.
    pub name: String,
    /// The prompt's pictures.
    pub pictures: &'a [Picture],
    /// What its chunks show of them.
    pub views: &'a [View],
    /// Ranked features of each SAE, best first.
    pub scores: &'a [Vec<FeatureScore>],
    /// The run without interventions, with its features.
    pub original: &'a Run,
    /// The run with them.
    pub steered: Option<&'a Run>,
}

#[derive(Serialize)]
struct PictureData {
    name: String,
    views: Vec<ViewData>,
    tokens: Vec<TokenData>, // [n_positions]
    /// Feature, activation, feature, activation … of each position.
    activations: Vec<Vec<Number>>, // [n_positions]
    /// The ranked features, then those that are active elsewhere only.
    features: Vec<FeatureData>,
    n_ranked: usize,
    original: Option<Caption>,
    steered: Option<Caption>,
}

/// What patches show of a picture.
#[derive(Serialize)]
pub(super) struct ViewData {
    image: String,        // a data URL
    whole: Option<Whole>, // where that is a part only
    grid: [usize; 2],
    first: usize,  // the first patch's position
    stride: usize, // positions from one row of patches to the next
}

/// A whole picture, small, and the part of it that the model sees.
#[derive(Serialize)]
struct Whole {
    image: String,   // a data URL
    frame: [f32; 4], // left, top, width, height, as shares of it
}

#[derive(Serialize)]
struct TokenData {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Index, score, lift, largest activation, at how many positions, where it is largest.
type FeatureData = (usize, Number, Option<Number>, Number, usize, usize);

/// A caption beside another one.
#[derive(Serialize)]
struct Caption {
    pieces: Pieces<bool>, // each with whether the other text lacks it
    stop: &'static str,
}

/// A feature's index, or a value with the four significant digits that keep a page small.
#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Index(usize),
    Value(f32),
}

impl Number {
    fn rounded(value: f32) -> Self {
        let digits = format!("{value:.3e}");
        Self::Value(digits.parse().expect("a printed number"))
    }
}

impl Page {
    /// A page without pictures.
    pub fn new(about: About) -> Self {
        Self {
            about,
            colours: explorer::colours(),
            names: BTreeMap::new(),
            labels: BTreeMap::new(),
            pictures: Vec::new(),
        }
    }

    /// Adds a picture, or a text.
    pub fn add(&mut self, shown: &Shown<'_>, session: &Session) {
        let trace = &shown.original.trace;
        let saes = session.model().saes();
        // A page's features are those of all SAEs, one SAE's behind the other's.
        let widths = saes.iter().map(|sae| sae.meta().d_sae);
        let starts: Vec<usize> = widths
            .scan(0, |end, width| Some(std::mem::replace(end, *end + width)))
            .collect();
        let n_positions = trace.tokens.len();
        let everywhere: Vec<usize> = (0..n_positions).collect();
        let (mut ranked, mut unranked) = (Vec::new(), Vec::new());
        for (sae_idx, (sae, seen)) in saes.iter().zip(&trace.saes).enumerate() {
            let d_sae = sae.meta().d_sae;
            let active = rank::rank(&seen.activations, &everywhere, d_sae, Pool::Max, None);
            let scores = &shown.scores[sae_idx];
            let mut is_ranked = vec![false; d_sae];
            for score in scores {
                is_ranked[score.feature] = true;
            }
            for score in &active {
                let place = starts[sae_idx] + score.feature;
                let index = score.feature;
                let id = FeatureId {
                    sae: sae_idx,
                    index,
                };
                if saes.len() > 1 {
                    self.names
                        .insert(place, one_line(&saes.shown(id).to_string()));
                }
                if let Some(label) = sae.label(score.feature) {
                    self.labels.insert(place, one_line(label));
                }
            }
            let data = |score: &FeatureScore| feature(score, starts[sae_idx]);
            ranked.extend(scores.iter().map(data));
            let others = active.iter().filter(|score| !is_ranked[score.feature]);
            unranked.extend(others.map(data));
        }
        let n_ranked = ranked.len();
        let row = |position| {
            let of_saes = trace.saes.iter().zip(&starts);
            let pairs = of_saes.flat_map(|(seen, start)| {
                let row = seen.activations.row(position);
                row.map(move |(feature, value)| (start + feature, value))
            });
            pairs
                .flat_map(|(feature, value)| [Number::Index(feature), Number::rounded(value)])
                .collect()
        };
        let (original, steered) = captions(shown.original, shown.steered);
        self.pictures.push(PictureData {
            name: shown.name.clone(),
            views: shown
                .views
                .iter()
                .map(|view| view_data(view, shown.pictures))
                .collect(),
            tokens: tokens(&trace.tokens, session),
            activations: everywhere.iter().copied().map(row).collect(),
            features: ranked.into_iter().chain(unranked).collect(),
            n_ranked,
            original,
            steered,
        });
    }

    /// The page's text.
    pub fn html(&self) -> String {
        DOCUMENT.html(self).text
    }
}

fn data_url(picture: &RgbImage) -> String {
    let png = STANDARD.encode(heatmap::png(picture));
    format!("data:image/png;base64,{png}")
}

/// What a page shows of a view.
pub(super) fn view_data(view: &View, pictures: &[Picture]) -> ViewData {
    let picture = &pictures[view.image];
    ViewData {
        image: data_url(&view.part(picture)),
        whole: whole(picture.rgb(), view.place),
        grid: view.grid,
        first: view.first_position,
        stride: view.stride,
    }
}

/// The picture in small with the frame of what the model sees; none where that is all of it.
fn whole(picture: &RgbImage, frame: [f32; 4]) -> Option<Whole> {
    let [left, top, width, height] = frame;
    if left <= 0.0 && top <= 0.0 && left + width >= 1.0 && top + height >= 1.0 {
        return None;
    }
    let (width, height) = picture.dimensions();
    let scale = (WHOLE_SIDE / width.max(height) as f32).min(1.0);
    let [width, height] = [width, height].map(|side| ((side as f32 * scale) as u32).max(1));
    Some(Whole {
        image: data_url(&imageops::thumbnail(picture, width, height)),
        frame,
    })
}

fn tokens(tokens: &[Token], session: &Session) -> Vec<TokenData> {
    let token = |&token: &Token| TokenData {
        kind: token.kind.name(),
        text: session.token_text(token).map(|text| one_line(&text)),
    };
    tokens.iter().map(token).collect()
}

fn feature(score: &FeatureScore, start: usize) -> FeatureData {
    (
        start + score.feature,
        Number::rounded(score.score),
        score.lift.map(Number::rounded),
        Number::rounded(score.max),
        score.n_tokens,
        score.argmax_position,
    )
}

/// Both captions, with what is in only one of them marked; none where nothing was generated.
fn captions(original: &Run, steered: Option<&Run>) -> (Option<Caption>, Option<Caption>) {
    let caption = |run: &Run, pieces| Caption {
        pieces,
        stop: json::stop(run.stop),
    };
    let Some(steered) = steered else {
        let pieces = vec![(original.text.clone(), false)];
        let has_caption = !original.token_ids.is_empty();
        return (has_caption.then(|| caption(original, pieces)), None);
    };
    let (before, after) = difference::marked(&original.text, &steered.text);
    (
        Some(caption(original, before)),
        Some(caption(steered, after)),
    )
}
