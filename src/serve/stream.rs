//! Server-sent events, written by a task that ends with the client.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

/// Events that may wait for a slow reader; a run's own wait before them.
const N_AHEAD: usize = 16;

/// A comment at least that often, by which a client that has left is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a reader may read nothing; then it counts as gone.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Where events go.
pub(super) struct Events(Sender<Result<Event, Infallible>>);

/// The client has left.
pub(super) struct Gone;

impl Events {
    /// Sends a frame of JSON.
    pub(super) async fn json(&self, frame: &impl Serialize) -> Result<(), Gone> {
        let text = serde_json::to_string(frame).expect("a frame is plain data");
        self.text(text).await
    }

    /// Sends a frame of text.
    pub(super) async fn text(&self, text: impl AsRef<str>) -> Result<(), Gone> {
        let sending = self.0.send(Ok(Event::default().data(text)));
        let sent = tokio::time::timeout(MAX_PAUSE, sending).await;
        sent.map_err(|_| Gone)?.map_err(|_| Gone)
    }
}

/// Answers with the events that `write` sends. It is dropped as soon as the client has left, and with it what it holds.
pub(super) fn answer<W>(write: impl FnOnce(Events) -> W) -> Response
where
    W: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, events) = channel(N_AHEAD);
    let left = sender.clone();
    let writing = write(Events(sender));
    tokio::spawn(async move {
        tokio::select! {
            _ = writing => {}
            () = left.closed() => {}
        }
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(ReceiverStream::new(events))
        .keep_alive(keep_alive)
        .into_response()
}
