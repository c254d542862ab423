//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::request::generating_request;
use super::streamed::{Beside, Part, Streamed};
use super::wire::{Head, Timings, Usage, finish_reason};
use crate::serve::app::App;
use crate::serve::body::Body;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;
use crate::serve::sae::Wanted;
use crate::serve::stream;
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

#[derive(Serialize)]
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
    if request.stream == Some(true) {
        let head = Head::new("chatcmpl", "chat.completion.chunk", &app);
        let model = Arc::clone(&app.model);
        let streamed = Streamed {
            n_prompt: vec![n_prompt],
            n: generation.n,
            wanted,
            includes_usage: request.includes_usage(),
            app,
            _place: place,
        };
        let chunk = move |part: Option<Part>, beside| Chunk::new(&head, part, beside, &model);
        return Ok(stream::answer(|events| streamed.write(runs, events, chunk)));
    }
    let mut ended = runs.end().await?;
    let sae = Wanted::answer_of(wanted, &mut ended[0].trace, &app).await?;
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
        head: Head::new("chatcmpl", "chat.completion", &app),
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

impl Chunk {
    fn new(head: &Head, part: Option<Part>, beside: Beside, model: &HookedModel) -> Self {
        let choice = |part: Part| ChunkChoice {
            index: part.index,
            delta: Delta {
                role: part.is_first.then_some("assistant"),
                content: part.text,
            },
            logprobs: part
                .token
                .map(|(id, found)| LogProbs::new([(id, &found)], model)),
            finish_reason: part.finish_reason,
        };
        Self {
            head: head.clone(),
            choices: part.into_iter().map(choice).collect(),
            usage: beside.usage,
            timings: beside.timings,
            sae: beside.sae,
        }
    }
}
