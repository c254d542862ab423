//! A sweep as JSON and as one page: `page.html` and `page.js` beside this file, and `charts.*`, which the page of a
//! server has too.

use serde::Serialize;

use super::difference::{self, Pieces, Place};
use super::json::Output;
use super::page::document::{Document, REPORT_STYLE, TABLE_SCRIPT, TABLE_STYLE};
use crate::steering::Units;
use crate::{FeatureName, ScoredRun, holds_word};

/// How the curves and texts of a sweep look.
pub(crate) const CHARTS_STYLE: &str = include_str!("charts.css");
/// What draws them.
pub(crate) const CHARTS_SCRIPT: &str = include_str!("charts.js");

/// A sweep: its names are an interface.
#[derive(Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The SAE's name.
    pub sae: String,
    /// The prompt's text.
    pub prompt: String,
    /// The first picture's path.
    pub image: Option<String>,
    /// The pictures' paths.
    pub images: Vec<String>,
    /// The feature that is steered.
    pub feature: FeatureName,
    /// What it stands for.
    pub label: Option<String>,
    /// The unit of strengths.
    pub units: Units,
    /// The positions that are steered, as the command line has them.
    pub at: String,
    /// A word that texts may hold.
    pub word: Option<String>,
    /// The run without interventions.
    pub original: Point,
    /// The others, in the order of their strengths as asked for.
    pub steered: Vec<Point>,
    /// A random feature with the same strengths, where that was asked for.
    pub control: Option<Control>,
}

/// A random feature that is steered as much.
#[derive(Serialize)]
pub struct Control {
    /// What it was drawn with.
    pub seed: u64,
    /// The feature.
    pub feature: FeatureName,
    /// What it stands for.
    pub label: Option<String>,
    /// Its runs, in the order of strengths; these count what the steered feature's do.
    pub steered: Vec<Point>,
}

/// A strength and what came of it; the original has strength 0.
#[derive(Serialize)]
pub struct Point {
    /// The strength.
    pub strength: f32,
    /// The text.
    #[serde(flatten)]
    pub output: Output,
    /// [`ScoredRun::kl`].
    pub kl: Option<f64>,
    first_kl: f64,
    /// [`ScoredRun::mean_log_prob`].
    pub mean_log_prob: Option<f64>,
    /// Whether the text holds the word; none where no word was asked for.
    pub has_word: Option<bool>,
}

impl Point {
    /// What came of `strength`, and whether its text has the word.
    pub fn new(strength: f32, scored: &ScoredRun, word: Option<&str>) -> Self {
        Self {
            strength,
            output: Output::new(&scored.run),
            kl: scored.kl,
            first_kl: scored.first_kl,
            mean_log_prob: scored.mean_log_prob,
            has_word: word.map(|word| holds_word(&scored.run.text, word)),
        }
    }

    /// What came of each of `strengths`.
    pub fn of_each(strengths: &[f32], runs: &[ScoredRun], word: Option<&str>) -> Vec<Self> {
        let runs = strengths.iter().zip(runs);
        runs.map(|(&strength, run)| Self::new(strength, run, word))
            .collect()
    }
}

/// What a page draws: the report, and each text beside the original's.
#[derive(Serialize)]
pub struct Drawn<'a> {
    #[serde(flatten)]
    report: &'a Report,
    pieces: Vec<Pieces<Place>>, // [strengths]
}

impl Report {
    /// What a page draws.
    pub fn drawn(&self) -> Drawn<'_> {
        let beside =
            |point: &Point| difference::merged(self.original.output.text(), point.output.text());
        Drawn {
            report: self,
            pieces: self.steered.iter().map(beside).collect(),
        }
    }

    /// The report as one HTML page that holds its data and loads nothing.
    pub fn html(&self) -> String {
        let document = Document {
            title: "Sweep",
            sources: "",
            body: &[include_str!("page.html")],
            styles: &[REPORT_STYLE, TABLE_STYLE, CHARTS_STYLE],
            scripts: &[TABLE_SCRIPT, CHARTS_SCRIPT, include_str!("page.js")],
        };
        document.html(&self.drawn()).text
    }
}
