//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::generation::generating_request;
use super::wire::{Timings, Usage, finish_reason, id, seconds};
use crate::serve::app::{App, Place};
use crate::serve::body::Body;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;
use crate::serve::runs::{Event, RunEvents};
use crate::serve::stream::{self, Events, Gone};
use crate::{Keep, Run};

generating_request! {
    /// A chat that the model is to go on with.
    ChatRequest {
        /// The chat; images are parts of messages, as `data:` URLs.
        #[schema(value_type = Vec<Object>)]
        messages: Box<RawValue>,
        /// The newer name of `max_tokens`.
        max_completion_tokens: Option<usize>,
        /// Not done here: the model calls no tools.
        #[schema(value_type = Option<Vec<Object>>)]
        tools: Option<Box<RawValue>>,
        /// Only text.
        response_format: Option<ResponseFormat>,
    }
}

/// What form an answer has.
#[derive(Deserialize, ToSchema)]
struct ResponseFormat {
    /// `text`.
    r#type: String,
}

/// What is the same in all parts of an answer.
#[derive(Clone, Serialize, ToSchema)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

/// The answer to a chat.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<Choice>,
    usage: Usage,
    timings: Timings,
    /// Members of the request that mean nothing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct Choice {
    index: usize,
    message: Message,
    finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct Message {
    role: &'static str,
    content: String,
}

/// A part of an answer that comes as events.
#[derive(Serialize)]
struct Chunk {
    #[serde(flatten)]
    head: Head,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Goes on with a chat.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatRequest,
    responses((status = 200, body = Completion))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    body: Body<ChatRequest>,
) -> Result<Response, Refusal> {
    let place = app.take_place()?;
    let Body {
        value: request,
        ignored,
    } = body;
    request.check()?;
    let asked = Asked::Messages(request.messages.get().as_bytes().to_vec());
    let prepared = app.prepare(asked).await?;
    let mut generation = request.generation();
    generation.max_tokens = request.max_completion_tokens.or(generation.max_tokens);
    let runs = generation.start(&app, &prepared, Keep::default())?;
    let n_prompt = prepared.prompt.tokens().len();
    let head = |object| Head {
        id: id("chatcmpl"),
        object,
        created: seconds(SystemTime::now()),
        model: app.shown.model.clone(),
    };
    if request.stream == Some(true) {
        let streamed = Streamed {
            head: head("chat.completion.chunk"),
            includes_usage: request.includes_usage(),
            n_prompt,
            _place: place,
        };
        return Ok(stream::answer(|events| streamed.write(runs, events)));
    }
    let ended = runs.end().await?;
    let choice = |(index, run): (usize, &Run)| Choice {
        index,
        message: Message {
            role: "assistant",
            content: run.text.clone(),
        },
        finish_reason: finish_reason(run.stop),
    };
    Ok(Json(Completion {
        head: head("chat.completion"),
        choices: ended.iter().enumerate().map(choice).collect(),
        usage: Usage::of(n_prompt, &ended),
        timings: Timings::of(n_prompt, &ended[0]),
        ignored: ignored.into_iter().collect(),
    })
    .into_response())
}

impl ChatRequest {
    /// Refuses what is not done here.
    fn check(&self) -> Result<(), Refusal> {
        let has_tools = |tools: &RawValue| tools.get() != "[]";
        if self.tools.as_deref().is_some_and(has_tools) {
            let what = "`tools` are not run here: leave them out";
            return Err(Refusal::about("tools", what));
        }
        let format = self.response_format.as_ref();
        if format.is_some_and(|format| format.r#type != "text") {
            let what = "`response_format` is not followed here: leave it out";
            return Err(Refusal::about("response_format", what));
        }
        Ok(())
    }
}

/// An answer that comes as events.
struct Streamed {
    head: Head,
    includes_usage: bool,
    n_prompt: usize,
    _place: Place,
}

impl Streamed {
    async fn write(self, mut runs: RunEvents, events: Events) -> Result<(), Gone> {
        let mut usage = Usage::of(self.n_prompt, []);
        let mut has_begun = Vec::new(); // of each answer
        while let Some((index, event)) = runs.next().await {
            if has_begun.len() <= index {
                has_begun.resize(index + 1, false);
            }
            let role = (!has_begun[index]).then_some("assistant");
            let (content, finish_reason, timings) = match event {
                Event::Prompt(_) => continue,
                Event::Text { text, .. } if text.is_empty() => continue,
                Event::Text { text, .. } => (Some(text), None, None),
                Event::End(Ok(run)) => {
                    usage += Usage::of(0, [&run]);
                    let timings = Timings::of(self.n_prompt, &run);
                    (None, Some(finish_reason(run.stop)), Some(timings))
                }
                Event::End(Err(error)) => return events.json(&Refusal::from(error).body()).await,
            };
            has_begun[index] = true;
            let chunk = self.chunk(Some(ChunkChoice {
                index,
                delta: Delta { role, content },
                finish_reason,
            }));
            events.json(&Chunk { timings, ..chunk }).await?;
        }
        if self.includes_usage {
            let chunk = self.chunk(None);
            events
                .json(&Chunk {
                    usage: Some(usage),
                    ..chunk
                })
                .await?;
        }
        events.text("[DONE]").await
    }

    fn chunk(&self, choice: Option<ChunkChoice>) -> Chunk {
        Chunk {
            head: self.head.clone(),
            choices: choice.into_iter().collect(),
            usage: None,
            timings: None,
        }
    }
}
