//! What requests and answers of these endpoints are made of.

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::serve::body::Body;
use crate::serve::prepare::Asked;
use crate::serve::refusal::Refusal;

/// A body of this form; another one is malformed: 422, as FastAPI has it.
pub(super) struct Form<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Body::from_request(request, state).await;
        Ok(Self(body.map_err(as_malformed)?.value))
    }
}

fn as_malformed(mut refusal: Refusal) -> Refusal {
    if refusal.status == StatusCode::BAD_REQUEST {
        refusal.status = StatusCode::UNPROCESSABLE_ENTITY;
    }
    refusal
}

/// A member whose number or length is out of its range, which Neuronpedia's server finds malformed too.
pub(super) fn malformed(member: &str, what: impl Into<String>) -> Refusal {
    as_malformed(Refusal::about(member, what))
}

/// The member that a message of serde's finds missing.
pub(super) fn missing_member(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("missing field `")?;
    rest.split('`').next()
}

/// A path such as `features[0].strength`, in its parts.
pub(super) fn place(path: &str) -> Vec<Value> {
    let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    let part = |part: &str| match part.parse::<u64>() {
        Ok(index) => index.into(),
        Err(_) => part.into(),
    };
    parts.map(part).collect()
}

/// What the model reads before its features are asked for.
#[derive(Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, or a list of messages")]
pub(crate) enum Prompt {
    /// A text as it stands, behind the vocabulary's first token.
    Text(String),
    /// A chat, with images in it: Neuronpedia has none.
    Chat(Vec<ChatMessage>),
}

/// A message of a chat.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    /// `system`, `user` or `assistant`, which may be called `model` too.
    role: String,
    content: ChatContent,
}

/// What a message says.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected a text, or a list of parts")]
enum ChatContent {
    Text(String),
    /// OpenAI's parts: `text`, and `image_url` with a `data:` URL.
    #[schema(value_type = Vec<Object>)]
    Parts(Vec<Value>),
}

/// A message as answers show it: `<image>` where an image is.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Turn {
    pub(super) role: String,
    pub(super) content: String,
}

/// Who answers.
pub(super) const ASSISTANT: &str = "assistant";

/// An image where texts and tokens are listed.
pub(super) const IMAGE: &str = "<image>";

impl Prompt {
    pub(super) fn asked(self) -> Asked {
        match self {
            Self::Text(text) => Asked::Raw(text),
            Self::Chat(messages) => asked_chat(&messages),
        }
    }
}

/// What a chat asks the model.
pub(super) fn asked_chat(messages: &[ChatMessage]) -> Asked {
    let message =
        |message: &ChatMessage| json!({"role": message.role(), "content": message.content});
    let messages: Value = messages.iter().map(message).collect();
    Asked::Messages(messages.to_string().into_bytes())
}

impl ChatMessage {
    /// Its role in OpenAI's words; Gemma's template calls the assistant `model`.
    fn role(&self) -> &str {
        match &self.role[..] {
            "model" => ASSISTANT,
            role => role,
        }
    }

    pub(super) fn shown(&self) -> Turn {
        let part = |part: &Value| match part["text"].as_str() {
            Some(text) => text.to_owned(),
            None => IMAGE.to_owned(),
        };
        Turn {
            role: self.role.clone(),
            content: match &self.content {
                ChatContent::Text(text) => text.clone(),
                ChatContent::Parts(parts) => parts.iter().map(part).collect(),
            },
        }
    }
}

impl Turn {
    pub(super) fn is_answer(&self) -> bool {
        matches!(&self.role[..], ASSISTANT | "model")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{missing_member, place};

    #[test]
    fn paths_are_taken_apart() {
        assert_eq!(
            place("features[0].strength"),
            [json!("features"), json!(0), json!("strength")]
        );
        assert!(place("").is_empty());
        let message = "the request's body: missing field `types` at line 1 column 2";
        assert_eq!(missing_member(message), Some("types"));
        assert_eq!(missing_member("expected a number"), None);
    }
}
