//! `POST /v1/steer/completion-chat`: a chat that is gone on with, steered and not.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::steer::{LogProb, Output, SteerRequest, SteerType};
use super::wire::{ASSISTANT, ChatMessage, Form, IMAGE, Turn, asked_chat, malformed};
use crate::llama::Special;
use crate::serve::app::App;
use crate::serve::refusal::Refusal;
use crate::{HookedModel, Prompt, Segment};

/// What a chat was gone on with.
#[derive(Serialize, ToSchema)]
pub(crate) struct SteeredChats {
    input: SteeredChat,
    /// In the order in which they were asked for.
    outputs: Vec<SteeredChat>,
}

/// A chat: its messages, and as the model reads it.
#[derive(Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SteeredChat {
    chat_template: Vec<Turn>,
    raw: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<SteerType>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<LogProb>,
}

/// Goes on with a chat, steered and not, side by side.
#[utoipa::path(
    post,
    path = "/v1/steer/completion-chat",
    tag = "Neuronpedia",
    request_body = SteerRequest<Vec<ChatMessage>>,
    responses((status = 200, body = SteeredChats))
)]
pub(crate) async fn complete(
    State(app): State<Arc<App>>,
    Form(request): Form<SteerRequest<Vec<ChatMessage>>>,
) -> Result<Response, Refusal> {
    let place = request.take_place(&app)?;
    if request.steer_special_tokens.is_none() {
        let what = "missing field `steerSpecialTokens`";
        return Err(malformed("steerSpecialTokens", what));
    }
    if request
        .reads
        .as_ref()
        .is_some_and(|reads| !reads.is_empty())
    {
        let what = "`reads` are not done here: leave them out";
        return Err(Refusal::about("reads", what));
    }
    let prepared = app.prepare(asked_chat(&request.prompt)).await?;
    let input = SteeredChat {
        chat_template: request.prompt.iter().map(ChatMessage::shown).collect(),
        raw: text_of(&app.model, &prepared.prompt)?,
        r#type: None,
        logprobs: Vec::new(),
    };
    let form = move |outputs: &[Output]| SteeredChats {
        outputs: outputs.iter().map(|output| input.with(output)).collect(),
        input: input.clone(),
    };
    request.answer(&app, place, &prepared, form).await
}

impl SteeredChat {
    /// The same with what the model says next.
    fn with(&self, output: &Output) -> Self {
        let mut chat = self.clone();
        match chat.chat_template.last_mut() {
            // It is continued.
            Some(last) if last.is_answer() => last.content.push_str(&output.text),
            _ => chat.chat_template.push(Turn {
                role: ASSISTANT.to_owned(),
                content: output.text.clone(),
            }),
        }
        chat.raw.push_str(&output.text);
        Self {
            r#type: Some(output.r#type),
            logprobs: output.log_probs.clone(),
            ..chat
        }
    }
}

/// A prompt's text, with special tokens by name and `<image>` for each chunk of image rows.
fn text_of(model: &HookedModel, prompt: &Prompt) -> crate::Result<String> {
    let mut bytes = Vec::new();
    for segment in prompt.segments() {
        match segment {
            Segment::Image(_) => bytes.extend(IMAGE.as_bytes()),
            Segment::Text(ids) => {
                for &id in ids {
                    let model = model.language_model();
                    model.append_piece(id, Special::Show, &mut bytes)?;
                }
            }
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
