//! The bodies of requests: JSON, of bounded length and time.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use gguf_tools::json_text;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;

/// The longest body: some pictures, which base64 makes longer by a third.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// The most JSON values in a body.
const MAX_VALUES: usize = 1 << 20;

/// How long a body may take to arrive.
const MAX_TIME: Duration = Duration::from_secs(60);

/// A body that is JSON of this form, whatever its content type says.
pub(super) struct Body<T> {
    pub(super) value: T,
    /// Members of the request that mean nothing here.
    pub(super) ignored: BTreeSet<String>,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let read = Bytes::from_request(request, state);
        let read = tokio::time::timeout(MAX_TIME, read).await;
        let bytes = read.map_err(|_| {
            let what = "the request's body did not come in time";
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "timeout", what)
        })?;
        let bytes = bytes.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => Refusal::bad(rejection.body_text()),
        })?;
        parse(&bytes)
    }
}

/// The refusal of a body that is too long.
pub(super) fn too_large() -> Refusal {
    let what = format!(
        "the request's body is longer than {} MiB: send smaller pictures",
        MAX_BYTES >> 20
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", what)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Body<T>, Refusal> {
    if json_text::n_values(bytes) > MAX_VALUES {
        let what = format!("the request's body has more than {MAX_VALUES} values");
        return Err(Refusal::bad(what));
    }
    let mut ignored = BTreeSet::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let value = serde_ignored::deserialize(tracked, |path| {
        // An optional member's own are shown behind a `?`.
        ignored.insert(path.to_string().replace(".?", ""));
    });
    let value = value.and_then(|value| json.end().map(|()| value));
    let value = value.map_err(|error| match track.path().to_string() {
        path if path == "." => Refusal::bad(format!("the request's body: {error}")),
        path => Refusal::about(path.clone(), format!("`{path}`: {error}")),
    })?;
    Ok(Body { value, ignored })
}
