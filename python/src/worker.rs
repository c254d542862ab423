//! A model's thread. It does what Python's threads ask one after another, so that a model may be used from any of
//! them, and OpenMP's threads, which belong to the one that starts them, live as long as the model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llava_sae_cpp::{CancelFlag, Error, ErrorKind, HookedModel, Result, Session};
use pyo3::prelude::*;

use crate::error::{OrRaise, exception, of_kind};

/// How often Ctrl-C is looked for.
const INTERVAL: Duration = Duration::from_millis(50);

struct Job {
    cancel: CancelFlag,
    work: Box<dyn FnOnce(&mut Session) + Send>,
}

/// A model's thread, which ends when this is dropped and all is done.
pub(crate) struct Worker {
    jobs: Mutex<Option<Sender<Job>>>, // none once it is closed
    running: Arc<Mutex<CancelFlag>>,  // of the job at hand
    closing: CancelFlag,              // no more jobs are begun
    thread: Mutex<Option<JoinHandle<()>>>,
    process: u32,
}

/// What a job will give.
pub(crate) struct Pending<T> {
    cancel: CancelFlag,
    receiver: Mutex<Receiver<T>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Starts the thread of `model`.
    pub(crate) fn start(model: Arc<HookedModel>) -> Result<Self> {
        let (jobs, arriving) = mpsc::channel::<Job>();
        let running = Arc::new(Mutex::new(CancelFlag::default()));
        let closing = CancelFlag::default();
        let (cancel, is_closing) = (Arc::clone(&running), closing.clone());
        let work = move || {
            let mut session = Session::new(Arc::clone(&model));
            for job in arriving {
                *lock(&cancel) = job.cancel;
                if is_closing.is_cancelled() {
                    continue;
                }
                // Who asked is told by the sender's end; the session may be in the middle of something.
                let work = AssertUnwindSafe(|| (job.work)(&mut session));
                if catch_unwind(work).is_err() {
                    session = Session::new(Arc::clone(&model));
                }
            }
        };
        let thread = std::thread::Builder::new().name("llava-sae".to_owned());
        let thread = thread.spawn(work).map_err(|error| {
            let what = format!("cannot start the model's thread: {error}");
            Error::new(ErrorKind::Runtime, what)
        })?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            running,
            closing,
            thread: Mutex::new(Some(thread)),
            process: std::process::id(),
        })
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.jobs).is_none()
    }

    /// Ends what runs and what waits, and the thread.
    pub(crate) fn close(&self, py: Python<'_>) {
        // A child of this process has no such thread.
        if self.process != std::process::id() {
            return;
        }
        py.detach(|| {
            if lock(&self.jobs).take().is_some() {
                self.closing.cancel();
                lock(&self.running).cancel();
            }
            if let Some(thread) = lock(&self.thread).take() {
                // A panic has been caught in it.
                let _ = thread.join();
            }
        });
    }

    /// Has `work` done, which watches `cancel` and sends what it has.
    pub(crate) fn start_job<T: Send + 'static>(
        &self,
        py: Python<'_>,
        cancel: &CancelFlag,
        work: impl FnOnce(&mut Session, &Sender<T>) + Send + 'static,
    ) -> PyResult<Pending<T>> {
        let closed = |what: &str, hint: &str| Err(of_kind(py, "closed", what, Some(hint)));
        if self.process != std::process::id() {
            let what = "the model was opened before this process was forked off";
            let hint = "open it in this process, or start processes with `spawn`";
            return closed(what, hint);
        }
        let (sender, receiver) = mpsc::channel();
        let job = Job {
            cancel: cancel.clone(),
            work: Box::new(move |session| work(session, &sender)),
        };
        let sent = lock(&self.jobs).as_ref().map(|jobs| jobs.send(job));
        match sent {
            Some(Ok(())) => Ok(Pending::new(cancel.clone(), receiver)),
            _ => closed("the model is closed", "open it again"),
        }
    }

    /// Does `work`, and waits for it without the GIL.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        py: Python<'_>,
        cancel: &CancelFlag,
        work: impl FnOnce(&mut Session) -> Result<T> + Send + 'static,
    ) -> PyResult<T> {
        let work = move |session: &mut Session, sender: &Sender<Result<T>>| {
            let _ = sender.send(work(session));
        };
        let pending = self.start_job(py, cancel, work)?;
        match pending.next(py)? {
            Some(done) => done.or_raise(py),
            None if self.is_closed() => Err(exception(py, &Error::interrupted())),
            None => {
                let what = "the library failed in an unforeseen way";
                Err(exception(py, &Error::new(ErrorKind::Runtime, what)))
            }
        }
    }
}

impl<T: Send> Pending<T> {
    /// What `receiver` gets of work that watches `cancel`.
    pub(crate) fn new(cancel: CancelFlag, receiver: Receiver<T>) -> Self {
        Self {
            cancel,
            receiver: Mutex::new(receiver),
        }
    }

    /// What comes next, none at the end. Ctrl-C stops the job, and is raised when it has stopped.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<T>> {
        py.detach(|| {
            let receiver = lock(&self.receiver);
            let mut interrupted = None;
            loop {
                let received = receiver.recv_timeout(INTERVAL);
                if let Err(RecvTimeoutError::Timeout) = received {
                    if interrupted.is_none()
                        && let Err(signal) = Python::attach(|py| py.check_signals())
                    {
                        self.cancel.cancel();
                        interrupted = Some(signal);
                    }
                    continue;
                }
                return interrupted.map_or(Ok(received.ok()), Err);
            }
        })
    }

    /// Ends it.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }
}
