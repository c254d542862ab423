//! What raised a word, as JSON and as one page: `page.html`, `page.css` and `page.js` beside this file.

use gguf_tools::terminal::one_line;
use serde::Serialize;

use super::json;
use super::page::document::{Document, REPORT_STYLE, TABLE_SCRIPT, TABLE_STYLE};
use super::page::{ViewData, explorer, view_data};
use super::view::View;
use crate::explain::{Cause, Explanation, PatchCause};
use crate::{FeatureName, HookedModel, Picture, Prompt, Token, TokenKind};

/// What was asked: its names are an interface.
#[derive(Serialize)]
pub struct Question {
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
    /// The word that is explained.
    pub word: String,
}

/// What raised a word: its names are an interface.
#[derive(Serialize)]
pub struct Report {
    #[serde(flatten)]
    question: Question,
    answer: AnswerEntry,
    /// The word's tokens.
    pub word_tokens: Vec<WordToken>,
    /// The word's log-probability, in nats.
    pub log_prob: f64,
    /// The pairs of a feature and positions that are active.
    pub n_active: usize,
    /// Those of them that were ablated.
    pub n_candidates: usize,
    /// What they did, the first ones.
    pub causes: Vec<CauseEntry>,
    #[serde(skip)]
    pieces: [String; 3],
}

#[derive(Serialize)]
struct AnswerEntry {
    text: String,
    token_ids: Vec<i32>,
    stop: Option<&'static str>, // none where the answer was given
}

/// A token of the word.
#[derive(Serialize)]
pub struct WordToken {
    /// Its place in the answer, counted from 0.
    pub index: usize,
    /// Its id.
    pub id: i32,
    /// Its text, with what space it has.
    pub text: Option<String>,
}

/// A feature at some positions.
#[derive(Serialize)]
pub struct CauseEntry {
    /// Its place among all, from 1.
    pub rank: usize,
    /// Its name.
    pub feature: FeatureName,
    /// What it stands for.
    pub label: Option<String>,
    /// The positions, as the command line has them.
    pub at: String,
    /// The token there, where that is one of the prompt's text.
    pub token: Option<String>,
    /// [`Cause::effect`].
    pub effect: f64,
    /// [`Cause::direct_effect`].
    pub direct_effect: Option<f32>,
    /// The largest activation there.
    pub max: f32,
    /// At how many of the positions it is active.
    pub n_tokens: usize,
    /// Position and activation of these.
    active: Vec<(usize, f32)>,
    /// Patches where it was ablated alone, the one with the largest effect first.
    pub patches: Vec<PatchEntry>,
    /// [`Cause::patches_effect`].
    pub patches_effect: Option<f64>,
}

/// A patch where a feature was ablated alone.
#[derive(Serialize)]
pub struct PatchEntry {
    /// Its row of the prompt.
    pub position: usize,
    /// Its row and column in its image, from 0 at the top left, where they are known.
    pub patch: Option<[usize; 2]>,
    /// The activation there.
    pub activation: f32,
    /// [`PatchCause::effect`].
    pub effect: f64,
}

/// What a page draws: the report, and the pictures.
#[derive(Serialize)]
struct Drawn<'a> {
    #[serde(flatten)]
    report: &'a Report,
    pieces: &'a [String; 3], // the answer before the word, the word, and behind
    views: Vec<ViewData>,
    colours: Vec<String>,
}

impl Report {
    /// The report on what was asked, with the `top` first causes.
    pub fn new(
        question: Question,
        found: Explanation,
        prompt: &Prompt,
        model: &HookedModel,
        top: usize,
    ) -> Self {
        let shown = |text: String| one_line(&text);
        let token = |index: usize| WordToken {
            index,
            id: found.token_ids[index],
            text: model.token_text(Token::generated(found.token_ids[index])),
        };
        let causes = found.causes.iter().take(top).enumerate();
        Self {
            question,
            word_tokens: found.word.clone().map(token).collect(),
            log_prob: found.log_prob,
            n_active: found.n_active,
            n_candidates: found.causes.len(),
            causes: causes
                .map(|(i, cause)| CauseEntry::new(i + 1, cause, prompt, model))
                .collect(),
            answer: AnswerEntry {
                text: found.pieces.concat(),
                stop: found.stop.map(json::stop),
                token_ids: found.token_ids,
            },
            pieces: found.pieces.map(shown),
        }
    }

    /// The answer's text.
    pub fn answer(&self) -> &str {
        &self.answer.text
    }

    /// The report as one HTML page that holds its data and loads nothing; `prompt` has these pictures.
    pub fn html(&self, prompt: &Prompt, pictures: &[Picture]) -> String {
        let document = Document {
            title: "Why this word",
            sources: "img-src data:; ",
            body: &[include_str!("page.html")],
            styles: &[REPORT_STYLE, TABLE_STYLE, include_str!("page.css")],
            scripts: &[TABLE_SCRIPT, explorer::HEAT_SCRIPT, include_str!("page.js")],
        };
        let views = View::of_prompt(prompt);
        let drawn = Drawn {
            report: self,
            pieces: &self.pieces,
            views: views.iter().map(|view| view_data(view, pictures)).collect(),
            colours: explorer::colours(),
        };
        document.html(&drawn).text
    }
}

impl CauseEntry {
    fn new(rank: usize, cause: &Cause, prompt: &Prompt, model: &HookedModel) -> Self {
        let token_at = |position: usize| prompt.tokens().get(position).copied();
        let values = cause.active.iter().map(|(_, value)| *value);
        let first = token_at(cause.active[0].0);
        let text = first.filter(|token| token.kind == TokenKind::Text);
        let patch = |one: &PatchCause| PatchEntry {
            position: one.position,
            patch: token_at(one.position).and_then(|token| token.patch),
            activation: one.activation,
            effect: one.effect,
        };
        Self {
            rank,
            feature: model.saes().shown(cause.feature),
            label: model.saes().label(cause.feature).map(str::to_owned),
            at: cause.at.to_string(),
            token: text.and_then(|token| model.token_text(token)),
            effect: cause.effect,
            direct_effect: cause.direct_effect,
            max: values.fold(0.0, f32::max),
            n_tokens: cause.active.len(),
            active: cause.active.clone(),
            patches: cause.patches.iter().map(patch).collect(),
            patches_effect: cause.patches_effect,
        }
    }
}
