//! Options as Python gives them.

use std::sync::Arc;

use llava_sae_cpp::chat::{Chat, LocalFiles};
use llava_sae_cpp::rank::{Over, Pool};
use llava_sae_cpp::report::features::{Order, Ranking};
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{
    CancelFlag, Error, HookedModel, Picture, Prompt, PromptForm, Result, RunOptions, Sampling,
    Session, saved_set,
};
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::value::{self, StrDeserializer};

use crate::error::{OrRaise, exception};
use crate::image::{Encoded, Image};

/// What a run does.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct RunSettings {
    turn: Turn,
    raw_prompt: bool,
    steering: Option<String>, // a saved set's list
    max_tokens: usize,
    sampling: Sampling,
    stop: Vec<String>,
}

enum Turn {
    Text(String),
    Messages(String), // OpenAI's, as JSON
}

/// How features are ranked.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct RankSettings {
    over: Option<String>,
    pool: Pool,
    order: Option<Order>,
    excluded: Vec<String>,
    excludes_always_on: bool,
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

/// A whole number, which is refused as a wrong value where it is negative or too large.
pub(crate) struct Whole<T>(pub(crate) T);

impl<'a, 'py, T: FromPyObject<'a, 'py>> FromPyObject<'a, 'py> for Whole<T> {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        given.extract::<T>().map(Self).map_err(|error| {
            let (py, error) = (given.py(), error.into());
            if error.is_instance_of::<PyOverflowError>(py) {
                let what = format!("{} is negative or too large", *given);
                return exception(py, &Error::invalid(what));
            }
            error
        })
    }
}

/// What `name` means, one of a few words.
fn one_of<T: DeserializeOwned>(name: &str) -> Result<T> {
    let read = T::deserialize(StrDeserializer::<value::Error>::new(name));
    read.map_err(|error| Error::invalid(format!("wrong options: {error}")))
}

#[pymethods]
impl RunSettings {
    /// The turn is a text or `messages`, which are JSON, as `steering` is.
    #[staticmethod]
    #[pyo3(signature = (text, messages, raw_prompt, steering, max_tokens, temperature=None, seed=None, top_k=None,
                        top_p=None, min_p=None, stop=Vec::new()))]
    #[allow(clippy::too_many_arguments)] // Python's, by their names
    fn of(
        text: Option<String>,
        messages: Option<String>,
        raw_prompt: bool,
        steering: Option<String>,
        max_tokens: Whole<usize>,
        temperature: Option<f32>,
        seed: Option<Whole<u32>>,
        top_k: Option<Whole<usize>>,
        top_p: Option<f32>,
        min_p: Option<f32>,
        stop: Vec<String>,
    ) -> Self {
        let default = Sampling::default();
        Self {
            turn: match messages {
                Some(messages) => Turn::Messages(messages),
                None => Turn::Text(text.unwrap_or_default()),
            },
            raw_prompt,
            steering,
            max_tokens: max_tokens.0,
            sampling: Sampling {
                temperature: temperature.unwrap_or(default.temperature),
                seed: seed.map_or(default.seed, |seed| seed.0),
                top_k: top_k.map_or(default.top_k, |top_k| top_k.0),
                top_p: top_p.unwrap_or(default.top_p),
                min_p: min_p.unwrap_or(default.min_p),
                ..default
            },
            stop,
        }
    }
}

#[pymethods]
impl RankSettings {
    #[staticmethod]
    fn of(
        py: Python<'_>,
        over: Option<String>,
        pool: &str,
        rank: Option<&str>,
        exclude: Vec<String>,
        exclude_always_on: bool,
    ) -> PyResult<Self> {
        Ok(Self {
            over,
            pool: one_of(pool).or_raise(py)?,
            order: rank.map(one_of).transpose().or_raise(py)?,
            excluded: exclude,
            excludes_always_on: exclude_always_on,
        })
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
        let text = match &self.turn {
            Turn::Text(text) => text,
            Turn::Messages(messages) => return ask_chat(messages, model, images, cancel),
        };
        let form = match self.raw_prompt {
            true => PromptForm::Raw,
            false => PromptForm::Chat,
        };
        let embeddings: Vec<_> = images.iter().map(|image| &image.embeddings).collect();
        Ok(Asked {
            prompt: model.prompt(text, form, &embeddings, cancel)?,
            images,
            shown: text.clone(),
        })
    }

    /// The interventions, if there are some.
    pub(crate) fn steering(&self, model: &HookedModel) -> Result<Option<Arc<Steering>>> {
        const SHOWN: &str = "interventions";
        let Some(list) = &self.steering else {
            return Ok(None);
        };
        let entries = saved_set::parse(list.as_bytes(), SHOWN)?;
        let all = saved_set::interventions(&entries, SHOWN, model.saes())?;
        model.steering(all).map(Some)
    }

    /// The run's options.
    pub(crate) fn options(&self, model: &HookedModel, cancel: &CancelFlag) -> Result<RunOptions> {
        Ok(RunOptions {
            steering: self.steering(model)?,
            max_tokens: self.max_tokens,
            sampling: self.sampling,
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
        let excluded = self.excluded.iter().map(|name| model.find_feature(name));
        let mut ranking = Ranking {
            over: over.unwrap_or(Ok(default))?,
            pool: self.pool,
            order: self.order,
            excluded: excluded.collect::<Result<_>>()?,
            excludes_always_on: self.excludes_always_on,
        };
        ranking.prepare(model, &asked.prompt)?;
        Ok(ranking)
    }
}
