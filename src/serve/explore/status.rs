//! `GET /api/status`: how much there is to do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::serve::app::App;

/// How much there is to do.
#[derive(Serialize, ToSchema)]
pub(crate) struct Status {
    /// Runs that are computed.
    running: usize,
    /// Runs that wait.
    waiting: usize,
    /// Runs that are computed at once.
    parallel: usize,
    /// Requests that may wait.
    queue: usize,
    uptime_s: u64,
}

/// How much there is to do.
#[utoipa::path(get, path = "/api/status", tag = "ours", responses((status = 200, body = Status)))]
pub(crate) async fn tell(State(app): State<Arc<App>>) -> Json<Status> {
    let counts = app.runs.counts();
    Json(Status {
        running: counts.running.load(Ordering::Relaxed),
        waiting: counts.waiting.load(Ordering::Relaxed),
        parallel: app.parallel,
        queue: app.queue(),
        uptime_s: app.started_at.elapsed().map_or(0, |time| time.as_secs()),
    })
}
