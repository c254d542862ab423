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
use crate::serve::explore::sae::Wanted;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;
use crate::serve::runs::{Event, RunEvents};
use crate::serve::stream::{self, Events, Gone};
use crate::{HookedModel, Keep, Run, TokenLogProbs};

generating_request! {
    /// A chat that the model is to go on with.
    ChatRequest {
        /// The chat; images are parts of messages, as `data:` URLs.
        #[schema(value_type = Vec<Object>)]
        messages: Box<RawValue>,
        /// The newer name of `max_tokens`.
        max_completion_tokens: Option<usize>,
        /// Whether to say how likely each token was.
        logprobs: Option<bool>,
        /// With it, how many most likely tokens to name besides, 20 at most.
        top_logprobs: Option<usize>,
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
    /// The features that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    sae: Option<Box<RawValue>>,
    /// Members of the request that mean nothing here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<LogProbs>,
    finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct Message {
    role: &'static str,
    content: String,
}

/// How likely the tokens of an answer were.
#[derive(Serialize, ToSchema)]
struct LogProbs {
    content: Vec<TokenLogProb>,
}

#[derive(Serialize, ToSchema)]
struct TokenLogProb {
    #[serde(flatten)]
    chosen: NamedLogProb,
    top_logprobs: Vec<NamedLogProb>,
}

#[derive(Serialize, ToSchema)]
struct NamedLogProb {
    token: String,
    /// In nats.
    logprob: f64,
    /// The token in UTF-8, which for a part of a character is no text.
    bytes: Vec<u8>,
}

impl LogProbs {
    fn of(run: &Run, model: &HookedModel) -> Self {
        Self::new(run.token_ids.iter().copied().zip(&run.log_probs), model)
    }

    fn new<'a>(
        tokens: impl IntoIterator<Item = (i32, &'a TokenLogProbs)>,
        model: &HookedModel,
    ) -> Self {
        let named = |id, logprob| {
            let bytes = model.token_bytes(id).unwrap_or_default();
            NamedLogProb {
                token: String::from_utf8_lossy(&bytes).into_owned(),
                logprob,
                bytes,
            }
        };
        let token = |(id, found): (i32, &TokenLogProbs)| TokenLogProb {
            chosen: named(id, found.log_prob),
            top_logprobs: found
                .top
                .iter()
                .map(|&(id, logprob)| named(id, logprob))
                .collect(),
        };
        Self {
            content: tokens.into_iter().map(token).collect(),
        }
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    sae: Option<Box<RawValue>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<LogProbs>,
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
    let top_log_probs = (request.logprobs == Some(true)).then(|| request.top_logprobs.unwrap_or(0));
    let mut generation = request.generation(top_log_probs);
    generation.max_tokens = request.max_completion_tokens.or(generation.max_tokens);
    let prompts = std::slice::from_ref(&prepared.prompt);
    let mut requests = generation.requests(&app, prompts, Keep::default())?;
    let sae = request.sae.as_ref();
    let wanted = sae.map(|sae| sae.check(&app, &prepared)).transpose()?;
    // Of several answers the first has the features.
    requests[0].options.keep = wanted.as_ref().map(Wanted::keep).unwrap_or_default();
    let runs = app.runs.ask(requests);
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
            wanted,
            app: Arc::clone(&app),
            _place: place,
        };
        return Ok(stream::answer(|events| streamed.write(runs, events)));
    }
    let mut ended = runs.end().await?;
    let sae = match wanted {
        Some(wanted) => {
            let trace = std::mem::take(&mut ended[0].trace);
            Some(wanted.answer(&app, trace).await?)
        }
        None => None,
    };
    let choice = |(index, run): (usize, &Run)| Choice {
        index,
        message: Message {
            role: "assistant",
            content: run.text.clone(),
        },
        logprobs: top_log_probs.map(|_| LogProbs::of(run, &app.model)),
        finish_reason: finish_reason(run.stop),
    };
    Ok(Json(Completion {
        head: head("chat.completion"),
        choices: ended.iter().enumerate().map(choice).collect(),
        usage: Usage::of(n_prompt, &ended),
        timings: Timings::of(n_prompt, &ended[0]),
        sae,
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
    wanted: Option<Wanted>,
    app: Arc<App>,
    _place: Place,
}

impl Streamed {
    async fn write(mut self, mut runs: RunEvents, events: Events) -> Result<(), Gone> {
        let mut usage = Usage::of(self.n_prompt, []);
        let mut has_begun = Vec::new(); // of each answer
        while let Some((index, mut event)) = runs.next().await {
            if has_begun.len() <= index {
                has_begun.resize(index + 1, false);
            }
            let mut choice = ChunkChoice {
                index,
                delta: Delta {
                    role: (!has_begun[index]).then_some("assistant"),
                    content: None,
                },
                logprobs: None,
                finish_reason: None,
            };
            let mut timings = None;
            let mut sae = None;
            if index == 0 {
                match Wanted::answer_at(&mut self.wanted, &mut event, &self.app).await {
                    Ok(answer) => sae = answer,
                    Err(refusal) => return events.json(&refusal.body()).await,
                }
            }
            match event {
                Event::Text {
                    id,
                    text,
                    log_probs,
                } if !text.is_empty() || log_probs.is_some() => {
                    let said = id.zip(log_probs.as_ref());
                    choice.logprobs = said.map(|said| LogProbs::new([said], &self.app.model));
                    choice.delta.content = Some(text);
                }
                Event::Prompt(_) if sae.is_some() => {}
                Event::Prompt(_) | Event::Text { .. } => continue,
                Event::End(Ok(run)) => {
                    usage += Usage::of(0, [&run]);
                    timings = Some(Timings::of(self.n_prompt, &run));
                    choice.finish_reason = Some(finish_reason(run.stop));
                }
                Event::End(Err(error)) => return events.json(&Refusal::from(error).body()).await,
            }
            has_begun[index] = true;
            let chunk = self.chunk(Some(choice));
            let chunk = Chunk {
                timings,
                sae,
                ..chunk
            };
            events.json(&chunk).await?;
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
            sae: None,
        }
    }
}
