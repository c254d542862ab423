//! The thread of what takes several passes over a prompt: sweeps, and scores of given texts, one after another on a
//! context of their own, beside the requests' runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::runs::{self, MAX_TIME};
use crate::{Error, ErrorKind, HookedModel, Result, Session};

type Study = Box<dyn FnOnce(&mut Session) + Send>;

/// The way to that thread, which ends when this is dropped and all is done.
pub(super) struct Studies {
    queue: mpsc::Sender<Study>,
}

impl Studies {
    /// Starts the thread.
    pub(super) fn start(model: Arc<HookedModel>) -> (Self, JoinHandle<()>) {
        let (queue, arriving) = mpsc::channel::<Study>();
        let thread = std::thread::Builder::new()
            .name("studies".to_owned())
            .spawn(move || {
                let mut session = Session::new(Arc::clone(&model));
                for study in arriving {
                    // Whoever asked is told by the sender's end; the session may be in the middle of something.
                    let study = AssertUnwindSafe(|| study(&mut session));
                    if catch_unwind(study).is_err() {
                        session = Session::new(Arc::clone(&model));
                    }
                }
            })
            .expect("the system has threads");
        (Self { queue }, thread)
    }

    /// Does `study` when those before it are done. What may take long watches a cancel flag of its own.
    ///
    /// # Errors
    /// Those of `study`, and one that takes too long.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        study: impl FnOnce(&mut Session) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let study: Study = Box::new(move |session| {
            // Who asked may be gone.
            if !sender.is_closed() {
                let _ = sender.send(study(session));
            }
        });
        let _ = self.queue.send(study);
        let done = tokio::time::timeout(MAX_TIME, receiver).await;
        let done = done.map_err(|_| runs::too_long())?;
        done.unwrap_or_else(|_| {
            let what = "it failed in an unforeseen way";
            Err(Error::new(ErrorKind::Runtime, what))
        })
    }
}
