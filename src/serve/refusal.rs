//! Requests that are not answered, and why.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Error, ErrorKind};

/// How long a client is asked to wait where everything is taken.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// What failed, why, and what to do, as sentences.
    pub(super) message: String,
    code: &'static str,
    /// The member of the request that is at fault.
    pub(super) param: Option<String>,
}

/// An error as OpenAI's API has it.
#[derive(Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    /// What failed, why, and what to do.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `overloaded_error` or `server_error`.
    r#type: &'static str,
    /// The member of the request that is at fault.
    param: Option<String>,
    /// The kind of error, in a word.
    code: &'static str,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            code,
            param: None,
        }
    }

    /// A request of another form, or for something that cannot be had.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::Invalid.name(), message)
    }

    /// The same about a member of the request.
    pub(super) fn about(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad(message)
        }
    }

    /// As many requests wait as may.
    pub(super) fn full() -> Self {
        let what = "all places are taken: try again in some seconds";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", what)
    }

    /// The same about a member of the request, unless it is about one already.
    #[must_use]
    pub(super) fn of(mut self, param: &str) -> Self {
        self.param.get_or_insert(param.to_owned());
        self
    }

    /// An error whose sentence begins with the member of the request that it is about.
    pub(super) fn of_its_member(error: Error) -> Self {
        let refusal = Self::from(error);
        let quoted = refusal.message.strip_prefix('`');
        match quoted.and_then(|rest| rest.split_once('`')) {
            Some((member, _)) => {
                let member = member.to_owned();
                refusal.of(&member)
            }
            None => refusal,
        }
    }

    /// The error of a thing of its own address, where what is not there is not found.
    pub(super) fn of_address(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::UnknownFeature => StatusCode::NOT_FOUND,
            _ => return error.into(),
        };
        Self {
            status,
            ..error.into()
        }
    }

    /// As OpenAI's API has it.
    pub(super) fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                r#type: match self.status.as_u16() {
                    401 | 403 => "authentication_error",
                    503 => "overloaded_error",
                    500.. => "server_error",
                    _ => "invalid_request_error",
                },
                param: self.param.clone(),
                code: self.code,
            },
        }
    }
}

impl From<Error> for Refusal {
    /// What a request cannot have is 400, whatever it is; the rest is not the client's fault.
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Interrupted => 503, // the server ends, or has no time: the client did not ask for it
            kind => match kind.http_status() {
                status @ (400..=499 | 501) if error.is_of_input() => status.min(400),
                status => status,
            },
        };
        let message = match error.hint() {
            Some(hint) => format!("{error}: {hint}"),
            None => error.to_string(),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            log::warn!("a request failed: {message}");
        }
        Self::new(status, error.kind().name(), message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self); // for those whose errors have another form
        response
    }
}
