//! The features that a prompt activates: ranked, as JSON, and drawn over its pictures.

use std::collections::HashSet;
use std::sync::OnceLock;

use gguf_tools::terminal::one_line;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::heatmap::HeatMap;
use super::json;
use super::view::View;
use crate::rank::{self, FeatureScore, Over, Pool};
use crate::{
    Error, FeatureId, HookedModel, Picture, Prompt, Result, Sae, SaeSet, Token, TokenKind, Trace,
};

/// A feature that is active on this share of rows, or more, counts as always on.
const ALWAYS_ON: f32 = 0.9;

/// How features are ranked, and which are left out.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// The positions that are pooled.
    pub over: Over,
    /// How their activations become one score.
    pub pool: Pool,
    /// What features are ordered by; none is the lift, for maxima over the image and an SAE with a baseline, and else
    /// the score.
    pub order: Option<Order>,
    /// Features that are left out.
    pub excluded: HashSet<FeatureId>,
    /// Whether those are left out that are active on at least nine rows in ten: of the baseline's pictures where the
    /// SAE has a baseline, else of the pooled positions.
    pub excludes_always_on: bool,
}

/// What features are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// How far the largest activation is above the usual one on pictures.
    Lift,
    /// The score.
    Activation,
}

/// What scores are, in words.
pub fn subject(pool: Pool, over: &Over) -> String {
    let pooled = match pool {
        Pool::Max => "largest activation",
        Pool::Sum => "sum of activations",
        Pool::Mean => "mean activation",
        Pool::Count => "number of active positions",
    };
    format!("{pooled} of {over}")
}

impl Ranking {
    /// What features are ordered by, in words; `has_lift` says whether that is the lift.
    pub fn described(&self, has_lift: bool) -> String {
        match has_lift {
            true => format!(
                "largest activation of {}, minus the usual one on pictures",
                self.over
            ),
            false => subject(self.pool, &self.over),
        }
    }

    /// Looks up the tokens that positions name, and checks what can be checked before a run of `prompt`.
    ///
    /// # Errors
    /// A text that no token has; positions that the prompt does not have; an order by lift without a baseline.
    pub fn prepare(&mut self, model: &HookedModel, prompt: &Prompt) -> Result<()> {
        self.over.find_tokens(|text| model.tokens_of(text))?;
        if !self.over.kinds().generated {
            rank::pooled_positions(prompt.tokens(), &self.over)?;
        }
        let mut saes = model.saes().iter();
        saes.try_for_each(|sae| self.has_lift(sae).map(drop))
    }

    /// Whether features of this SAE are ranked by lift.
    ///
    /// # Errors
    /// When they are to be, and the SAE has no baseline.
    pub fn has_lift(&self, sae: &Sae) -> Result<bool> {
        let has_baseline = sae.baseline().is_some();
        match self.order {
            Some(Order::Activation) => Ok(false),
            Some(Order::Lift) if !has_baseline => {
                let what = "the SAE's file has no baseline, so there is no lift";
                Err(Error::invalid(what).with_hint("measure one, or rank by activation"))
            }
            Some(Order::Lift) => Ok(true),
            None => Ok(has_baseline && self.pool == Pool::Max && self.over == Over::IMAGE),
        }
    }

    /// The features of an SAE that are active at `positions`, best first.
    fn rank(
        &self,
        saes: &SaeSet,
        sae_idx: usize,
        trace: &Trace,
        positions: &[usize],
    ) -> Result<Vec<FeatureScore>> {
        let sae = &saes[sae_idx];
        let has_lift = self.has_lift(sae)?;
        let baseline = sae.baseline();
        let mut ranked = rank::rank(
            &trace.saes[sae_idx].activations,
            positions,
            sae.meta().d_sae,
            self.pool,
            baseline.filter(|_| has_lift),
        );
        let is_always_on = |score: &FeatureScore| match baseline {
            Some(baseline) => baseline.frequency[score.feature] >= ALWAYS_ON,
            // What is always on is told by this input alone.
            None => score.n_tokens as f64 >= f64::from(ALWAYS_ON) * positions.len() as f64,
        };
        ranked.retain(|score| {
            let feature = FeatureId {
                sae: sae_idx,
                index: score.feature,
            };
            let is_left_out = self.excludes_always_on && is_always_on(score);
            !is_left_out && !self.excluded.contains(&feature)
        });
        Ok(ranked)
    }
}

/// What a prompt with its pictures, or a text alone, activates.
pub struct Seen<'a> {
    saes: &'a SaeSet,
    pictures: &'a [Picture],
    trace: &'a Trace,
    /// What chunks of the prompt show of the pictures.
    pub views: Vec<View>,
    parts: OnceLock<Vec<RgbImage>>, // what each view shows
    /// The prompt's, and those that were generated.
    pub tokens: Vec<Token>,
    /// The pooled ones, rising.
    positions: Vec<usize>,
    /// All that are active at the pooled positions, of each SAE, best first.
    pub scores: Vec<Vec<FeatureScore>>,
}

/// What a prompt activates, as JSON: names here are an interface.
#[derive(Serialize)]
pub struct Report {
    n_image_tokens: usize,
    grid: Option<[usize; 2]>, // of a picture that is seen in one view
    views: Vec<ViewEntry>,
    tokens: Vec<json::TokenEntry>,
    /// The listed features, each SAE's best first.
    pub features: Vec<SeenFeature>,
}

/// What a part of the image tokens shows.
#[derive(Serialize)]
struct ViewEntry {
    image: usize, // of the prompt, counted from 1
    place: [f32; 4],
    grid: [usize; 2],
    first_position: usize,
    stride: usize,
}

/// A listed feature.
#[derive(Serialize)]
pub struct SeenFeature {
    #[serde(flatten)]
    standing: json::FeatureEntry,
    lift: Option<f32>,
    argmax_position: usize,
    active: Vec<(usize, f32)>, // position and activation, of the pooled positions
    patches: Vec<f32>,         // of each view [rows · columns], one after another
    /// The feature over a picture, as a `data:` URL, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heatmap: Option<String>,
}

impl<'a> Seen<'a> {
    /// Ranks what a run has seen of a prompt. The run has to have kept the features of `ranking.over`, and of image
    /// rows where their activations are shown.
    ///
    /// # Errors
    /// As [`Ranking::prepare`], which `ranking` has gone through.
    pub fn new(
        saes: &'a SaeSet,
        prompt: &Prompt,
        pictures: &'a [Picture],
        trace: &'a Trace,
        ranking: &Ranking,
    ) -> Result<Self> {
        // A run that generates nothing may end before the prompt does.
        let mut tokens = prompt.tokens().to_vec();
        tokens.extend(trace.tokens.iter().skip(tokens.len()));
        let positions = rank::pooled_positions(&tokens, &ranking.over)?;
        let of_sae = |sae_idx| ranking.rank(saes, sae_idx, trace, &positions);
        Ok(Self {
            scores: (0..saes.len()).map(of_sae).collect::<Result<_>>()?,
            saes,
            pictures,
            trace,
            views: View::of_prompt(prompt),
            parts: OnceLock::new(),
            tokens,
            positions,
        })
    }

    /// Whether there are pictures in the prompt.
    pub fn has_pictures(&self) -> bool {
        !self.pictures.is_empty()
    }

    /// The first `top` features of an SAE.
    pub fn top(&self, sae: usize, top: usize) -> &[FeatureScore] {
        let scores = &self.scores[sae];
        &scores[..scores.len().min(top)]
    }

    /// The first `top` features of each SAE.
    pub fn listed(&self, top: usize) -> impl Iterator<Item = FeatureId> {
        (0..self.scores.len()).flat_map(move |sae| {
            let scores = self.top(sae, top).iter();
            scores.map(move |score| FeatureId {
                sae,
                index: score.feature,
            })
        })
    }

    /// The first `top` features of each SAE, and where they are active.
    pub fn report(&self, model: &HookedModel, top: usize) -> Report {
        let of_sae = |sae: usize| {
            let scores = self.top(sae, top);
            let standings = json::features(scores, self.saes, sae)
                .into_iter()
                .zip(scores);
            standings.map(move |(standing, score)| {
                let index = score.feature;
                let feature = FeatureId { sae, index };
                let patches = self.views.iter();
                SeenFeature {
                    standing,
                    lift: score.lift,
                    argmax_position: score.argmax_position,
                    active: self.active(feature),
                    patches: patches
                        .flat_map(|view| self.patches(view, feature))
                        .collect(),
                    heatmap: None,
                }
            })
        };
        let view = |view: &View| ViewEntry {
            image: view.image + 1,
            place: view.place,
            grid: view.grid,
            first_position: view.first_position,
            stride: view.stride,
        };
        let is_image = |token: &&Token| token.kind == TokenKind::Image;
        Report {
            n_image_tokens: self.tokens.iter().filter(is_image).count(),
            grid: match &self.views[..] {
                [only] => Some(only.grid),
                _ => None,
            },
            views: self.views.iter().map(view).collect(),
            tokens: json::tokens(&self.tokens, model),
            features: (0..self.saes.len()).flat_map(of_sae).collect(),
        }
    }

    /// A feature over what a view shows, as a PNG file; none where no patch of it activates the feature.
    pub fn heat_map(&self, view_idx: usize, feature: FeatureId) -> Option<Vec<u8>> {
        let view = &self.views[view_idx];
        let patches: Vec<f32> = self.patches(view, feature).collect();
        if patches.iter().all(|&value| value == 0.0) {
            return None;
        }
        let part = |view: &View| view.part(&self.pictures[view.image]);
        let parts = self
            .parts
            .get_or_init(|| self.views.iter().map(part).collect());
        let label = self.saes.label(feature);
        let label = label.map(|label| format!(" · {}", one_line(label)));
        let shown = self.saes.shown(feature);
        let map = HeatMap {
            picture: &parts[view_idx],
            patches: &patches,
            grid: view.grid,
            title: &format!("feature {shown}{}", label.unwrap_or_default()),
        };
        Some(map.png())
    }

    /// The view whose patches a feature is most active at; none without views.
    pub fn strongest_view(&self, feature: FeatureId) -> Option<usize> {
        View::strongest(&self.views, |position| self.activation(position, feature))
    }

    /// A feature's activation at a position.
    fn activation(&self, position: usize, feature: FeatureId) -> f32 {
        let activations = &self.trace.saes[feature.sae].activations;
        activations.get(position, feature.index)
    }

    /// A feature's activation at each patch of a view, in reading order.
    fn patches(&self, view: &View, feature: FeatureId) -> impl Iterator<Item = f32> {
        let positions = view.positions();
        positions.map(move |position| self.activation(position, feature))
    }

    /// The pooled positions where a feature is active, and its activations there.
    fn active(&self, feature: FeatureId) -> Vec<(usize, f32)> {
        let activation = |&position: &usize| {
            let value = self.activation(position, feature);
            (value != 0.0).then_some((position, value))
        };
        self.positions.iter().filter_map(activation).collect()
    }
}
