//! Runs, features and tokens as JSON: names here are an interface.

use std::io::{self, Write};
use std::path::PathBuf;

use crate::rank::FeatureScore;
use crate::{FeatureId, FeatureName, HookedModel, Run, SaeSet, Stop, Token};
use serde::Serialize;

/// Prints a report on one line.
///
/// # Errors
/// Those of `out`.
pub fn print(out: &mut dyn Write, report: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(report).expect("a report holds nothing but plain data");
    writeln!(out, "{json}")
}

/// The names of files.
pub fn paths(paths: &[PathBuf]) -> Vec<String> {
    let shown = paths.iter().map(|path| path.display().to_string());
    shown.collect()
}

/// One run's output.
#[derive(Serialize)]
pub struct Output {
    text: String,
    token_ids: Vec<i32>,
    stop: &'static str,
}

impl Output {
    /// The output of `run`.
    pub fn new(run: &Run) -> Self {
        Self {
            text: run.text.clone(),
            token_ids: run.token_ids.clone(),
            stop: stop(run.stop),
        }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Why a generation ended, in a word.
pub(super) fn stop(stop: Stop) -> &'static str {
    match stop {
        Stop::End => "end",
        Stop::StopString => "stop_string",
        Stop::Length => "length",
        Stop::Interrupted => "interrupted",
        Stop::Caller => "caller",
    }
}

/// A ranked feature.
#[derive(Serialize)]
pub struct FeatureEntry {
    rank: usize,
    feature: FeatureName,
    label: Option<String>,
    score: f32,
    max: f32,
    n_tokens: usize,
}

/// Ranked features of the SAE `sae`, best first; ranks start at 1.
pub fn features(scores: &[FeatureScore], saes: &SaeSet, sae: usize) -> Vec<FeatureEntry> {
    let entry = |(i, score): (usize, &FeatureScore)| {
        let index = score.feature;
        let feature = FeatureId { sae, index };
        FeatureEntry {
            rank: i + 1,
            feature: saes.shown(feature),
            label: saes.label(feature).map(str::to_owned),
            score: score.score,
            max: score.max,
            n_tokens: score.n_tokens,
        }
    };
    scores.iter().enumerate().map(entry).collect()
}

/// A position of the prompt.
#[derive(Serialize)]
pub struct TokenEntry {
    position: usize,
    kind: &'static str,
    id: Option<i32>,
    text: Option<String>,
}

/// The positions of a prompt, and of what was generated, where features of that are asked for.
pub fn tokens(tokens: &[Token], model: &HookedModel) -> Vec<TokenEntry> {
    let entry = |(position, &token): (usize, &Token)| TokenEntry {
        position,
        kind: token.kind.name(),
        id: token.id,
        text: model.token_text(token),
    };
    tokens.iter().enumerate().map(entry).collect()
}
