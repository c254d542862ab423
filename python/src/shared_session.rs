//! A model's session, which Python's threads use one after another, each in its own thread: handing a short call to
//! another thread and waiting for it costs more than all else that Python adds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use llava_sae_cpp::{CancelFlag, Error, ErrorKind, HookedModel, Result, Session};
use pyo3::prelude::*;

use crate::error::{OrRaise, of_kind};
use crate::raised::Raised;

/// How often Ctrl-C is looked for.
const INTERVAL: Duration = Duration::from_millis(50);

/// A session that one thread uses at a time.
pub(crate) struct SharedSession {
    model: Arc<HookedModel>,
    state: Mutex<State>, // held for moments, and never by who waits for the GIL
    changed: Condvar,
    process: u32,
}

struct State {
    session: Option<Session>, // none while it is used, and when it is closed
    user: Option<User>,
    is_closed: bool,
}

struct User {
    thread: ThreadId,
    cancel: CancelFlag,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedSession {
    /// A session on `model`.
    pub(crate) fn new(model: Arc<HookedModel>) -> Self {
        let state = State {
            session: Some(Session::new(Arc::clone(&model))),
            user: None,
            is_closed: false,
        };
        Self {
            model,
            state: Mutex::new(state),
            changed: Condvar::new(),
            process: std::process::id(),
        }
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_here() && lock(&self.state).is_closed
    }

    /// Whether this is the process that made it, and no child that was forked off, where locks may be held by
    /// threads that it does not have.
    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// Ends what runs and what waits, and lets go of the session.
    pub(crate) fn close(&self, py: Python<'_>) {
        if !self.is_here() {
            return;
        }
        py.detach(|| {
            let mut state = lock(&self.state);
            state.is_closed = true;
            if let Some(user) = &state.user {
                user.cancel.cancel();
            }
            self.changed.notify_all();
            let is_other = |state: &mut State| {
                let user = state.user.as_ref();
                user.is_some_and(|user| user.thread != thread::current().id())
            };
            let state = self.changed.wait_while(state, is_other);
            let session = state.unwrap_or_else(PoisonError::into_inner).session.take();
            drop(session);
        });
    }

    /// Raises where it is closed, or another process's.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        let closed = |what: &str, hint: &str| Err(of_kind(py, "closed", what, Some(hint)));
        if !self.is_here() {
            let what = "the model was opened before this process was forked off";
            let hint = "open it in this process, or start processes with `spawn`";
            return closed(what, hint);
        }
        match self.is_closed() {
            true => closed("the model is closed", "open it again"),
            false => Ok(()),
        }
    }

    /// Does `work`, which watches the flag that it is given, in this thread and without the GIL. Ctrl-C stops it,
    /// and is raised then.
    pub(crate) fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Session, &CancelFlag) -> Result<T> + Send,
    ) -> PyResult<T> {
        self.check(py)?;
        let raised = Raised::default();
        let cancel = ctrl_c(&raised);
        let done = py.detach(|| self.run_until(&cancel, |session| work(session, &cancel)));
        raised.or(done.or_raise(py))
    }

    /// Does `work` when others are done, unless `cancel` is set before.
    pub(crate) fn run_until<T>(
        &self,
        cancel: &CancelFlag,
        work: impl FnOnce(&mut Session) -> Result<T>,
    ) -> Result<T> {
        let mut session = self.take(cancel)?;
        // The session may be in the middle of something.
        let done = catch_unwind(AssertUnwindSafe(|| work(&mut session)));
        let done = done.unwrap_or_else(|_| {
            session = Session::new(Arc::clone(&self.model));
            let what = "the library failed in an unforeseen way";
            Err(Error::new(ErrorKind::Runtime, what))
        });
        let mut state = lock(&self.state);
        state.user = None;
        state.session = Some(session).filter(|_| !state.is_closed);
        self.changed.notify_all();
        done
    }

    fn take(&self, cancel: &CancelFlag) -> Result<Session> {
        let thread = thread::current().id();
        loop {
            let mut state = lock(&self.state);
            if state.is_closed {
                return Err(Error::interrupted());
            }
            if let Some(session) = state.session.take() {
                let cancel = cancel.clone();
                state.user = Some(User { thread, cancel });
                return Ok(session);
            }
            if state
                .user
                .as_ref()
                .is_some_and(|user| user.thread == thread)
            {
                let what = "the model is in the middle of the run that calls this function";
                let hint = "ask it before that run or behind it, or open it a second time";
                return Err(Error::invalid(what).with_hint(hint));
            }
            let waited = self.changed.wait_timeout(state, INTERVAL);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
        }
    }
}

impl Drop for SharedSession {
    fn drop(&mut self) {
        if !self.is_here() {
            // What it uses may need threads or devices that a child does not have.
            let state = self.state.get_mut();
            let state = state.unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(state.session.take());
        }
    }
}

/// A flag that Ctrl-C sets, which is looked for in this thread when the flag is.
fn ctrl_c(raised: &Raised) -> CancelFlag {
    let (thread, raised) = (thread::current().id(), raised.clone());
    let looked_at = Mutex::new(Instant::now());
    CancelFlag::asking(move || {
        let mut looked_at = lock(&looked_at);
        if looked_at.elapsed() < INTERVAL || thread::current().id() != thread {
            return false;
        }
        *looked_at = Instant::now();
        // Where Python is ending, nobody waits.
        let signal = Python::try_attach(|py| py.check_signals());
        match signal.unwrap_or(Ok(())) {
            Ok(()) => false,
            Err(signal) => {
                raised.put(signal);
                true
            }
        }
    })
}

/// What a thread that was started for it will give.
pub(crate) struct Pending<T> {
    cancel: CancelFlag,
    receiver: Mutex<Receiver<T>>,
}

impl<T: Send + 'static> Pending<T> {
    /// Has `work` done, which watches the flag that it is given and sends what it has.
    pub(crate) fn start(
        work: impl FnOnce(&CancelFlag, &Sender<T>) + Send + 'static,
    ) -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let cancel = CancelFlag::default();
        let flag = cancel.clone();
        let started = thread::Builder::new().name("llava-sae".to_owned());
        started
            .spawn(move || work(&flag, &sender))
            .map_err(|error| {
                Error::new(
                    ErrorKind::Runtime,
                    format!("cannot start a thread: {error}"),
                )
            })?;
        let receiver = Mutex::new(receiver);
        Ok(Self { cancel, receiver })
    }

    /// What comes next, none at the end. Ctrl-C stops the work, and is raised when it has stopped.
    pub(crate) fn next(&self, py: Python<'_>) -> PyResult<Option<T>> {
        let raised = Raised::default();
        let interrupted = ctrl_c(&raised);
        py.detach(|| {
            let receiver = lock(&self.receiver);
            loop {
                let received = receiver.recv_timeout(INTERVAL);
                let Err(RecvTimeoutError::Timeout) = received else {
                    return raised.or(Ok(received.ok()));
                };
                if interrupted.is_cancelled() {
                    self.cancel.cancel();
                }
            }
        })
    }

    /// Ends it.
    pub(crate) fn cancel(&self) {
        self.cancel.cancel();
    }
}
