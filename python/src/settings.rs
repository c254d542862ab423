//! Options as Python gives them: JSON, by the command line's names. What is read once serves calls with the same options.

use std::sync::Arc;

use llava_sae_cpp::chat::{Chat, LocalFiles};
use llava_sae_cpp::rank::{Over, Pool};
use llava_sae_cpp::report::features::{Order, Ranking};
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{
    CancelFlag, Error, HookedModel, Picture, Prompt, PromptForm, Result, RunOptions, Sampling,
    Session, saved_set,
};
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::OrRaise;
use crate::image::{Encoded, Image};

/// What a run does.
#[pyclass(frozen, module = "llava_sae._native")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunSettings {
    prompt: Box<RawValue>,
    raw_prompt: bool,
    steering: Option<Box<RawValue>>,
    #[serde(default)]
    max_tokens: usize,
    temperature: Option<f32>,
    seed: Option<u32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    #[serde(default)]
    stop: Vec<String>,
}

/// How features are ranked.
#[pyclass(frozen, module = "llava_sae._native")]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RankSettings {
    over: Option<String>,
    pool: Pool,
    rank: Option<Order>,
    exclude: Vec<String>,
    exclude_always_on: bool,
}

/// A feature at several strengths.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SweepSettings {
    pub(crate) feature: String,
    pub(crate) strengths: Vec<f32>,
    pub(crate) at: String,
    pub(crate) units: llava_sae_cpp::steering::Units,
    pub(crate) word: Option<String>,
}

/// A prompt with its images.
pub(crate) struct Asked {
    pub(crate) prompt: Prompt,
    pub(crate) images: Vec<Arc<Encoded>>,
    /// The text, or what the chat template makes of a chat.
    pub(crate) shown: String,
}

/// Reads settings, which Python has made.
pub(crate) fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T> {
    serde_json::from_str(json).map_err(|error| Error::invalid(format!("wrong options: {error}")))
}

#[pymethods]
impl RunSettings {
    #[new]
    fn new(py: Python<'_>, json: &str) -> PyResult<Self> {
        parse(json).or_raise(py)
    }
}

#[pymethods]
impl RankSettings {
    #[new]
    fn new(py: Python<'_>, json: &str) -> PyResult<Self> {
        parse(json).or_raise(py)
    }
}

impl RunSettings {
    /// Builds the prompt with `images`, or with those of the chat that it is.
    pub(crate) fn ask(
        &self,
        session: &Session,
        images: Vec<Image>,
        cancel: &CancelFlag,
    ) -> Result<Asked> {
        let model = session.model();
        let images: Vec<_> = images.into_iter().map(|image| image.0).collect();
        let Ok(text) = serde_json::from_str::<String>(self.prompt.get()) else {
            return ask_chat(self.prompt.get(), model, images, cancel);
        };
        let form = match self.raw_prompt {
            true => PromptForm::Raw,
            false => PromptForm::Chat,
        };
        let embeddings: Vec<_> = images.iter().map(|image| &image.embeddings).collect();
        Ok(Asked {
            prompt: model.prompt(&text, form, &embeddings, cancel)?,
            images,
            shown: text,
        })
    }

    /// The interventions, if there are some.
    pub(crate) fn steering(&self, model: &HookedModel) -> Result<Option<Arc<Steering>>> {
        const SHOWN: &str = "interventions";
        let Some(list) = &self.steering else {
            return Ok(None);
        };
        let entries = saved_set::parse(list.get().as_bytes(), SHOWN)?;
        let all = saved_set::interventions(&entries, SHOWN, model.saes())?;
        model.steering(all).map(Some)
    }

    /// The run's options.
    pub(crate) fn options(&self, model: &HookedModel, cancel: &CancelFlag) -> Result<RunOptions> {
        let default = Sampling::default();
        Ok(RunOptions {
            steering: self.steering(model)?,
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(default.temperature),
                seed: self.seed.unwrap_or(default.seed),
                top_k: self.top_k.unwrap_or(default.top_k),
                top_p: self.top_p.unwrap_or(default.top_p),
                min_p: self.min_p.unwrap_or(default.min_p),
                ..default
            },
            stop: self.stop.clone(),
            cancel: cancel.clone(),
            ..RunOptions::default()
        })
    }
}

/// Builds the prompt of OpenAI's `messages`; `images` take the places that are left open in them.
fn ask_chat(
    messages: &str,
    model: &HookedModel,
    images: Vec<Arc<Encoded>>,
    cancel: &CancelFlag,
) -> Result<Asked> {
    let chat = Chat::parse(messages.as_bytes(), LocalFiles::Refused)?;
    let encode = |picture: Picture| {
        Ok(Arc::new(Encoded {
            embeddings: model.encode_image(&picture)?,
            picture,
        }))
    };
    let images = chat.images(images, encode)?;
    let embeddings: Vec<_> = images.iter().map(|image| &image.embeddings).collect();
    Ok(Asked {
        prompt: model.chat_prompt(&chat.messages, &embeddings, cancel)?,
        shown: model.chat_text(&chat.messages)?,
        images,
    })
}

impl RankSettings {
    /// The ranking of what is asked; over its images, if it has some, where nothing else is said.
    pub(crate) fn prepare(&self, model: &HookedModel, asked: &Asked) -> Result<Ranking> {
        let default = match asked.images.is_empty() {
            false => Over::IMAGE,
            true => Over::PROMPT,
        };
        let over = self.over.as_deref().map(Over::parse);
        let excluded = self.exclude.iter().map(|name| model.find_feature(name));
        let mut ranking = Ranking {
            over: over.unwrap_or(Ok(default))?,
            pool: self.pool,
            order: self.rank,
            excluded: excluded.collect::<Result<_>>()?,
            excludes_always_on: self.exclude_always_on,
        };
        ranking.prepare(model, &asked.prompt)?;
        Ok(ranking)
    }
}
