//! The engine's thread: the runs of all requests on one context, which they join and leave between steps.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::{
    CancelFlag, Engine, EngineSize, Error, ErrorKind, HookedModel, Kinds, Prompt, Request, Result,
    Run, RunId, Step, TokenLogProbs, Trace,
};

/// How long a request may take, its waiting included.
pub(super) const MAX_TIME: Duration = Duration::from_secs(30 * 60);

/// The way to the engine's thread, which ends when this is dropped and all runs have ended.
pub(super) struct Runs {
    queue: mpsc::Sender<Waiting>,
    counts: Arc<Counts>,
    capacity: usize,
}

/// How many runs there are.
#[derive(Default)]
pub(super) struct Counts {
    /// Those that are computed.
    pub(super) running: AtomicUsize,
    /// Those that wait for a sequence.
    pub(super) waiting: AtomicUsize,
}

/// What comes of a run, in this order.
pub(super) enum Event {
    /// What the hooks saw of its prompt, where features are kept.
    Prompt(Trace),
    /// A token with the characters that came with it, and how likely it was, where that is asked for; at the end,
    /// characters alone.
    Text {
        id: Option<i32>,
        text: String,
        log_probs: Option<TokenLogProbs>,
    },
    /// Its end, and nothing behind it.
    End(Result<Run>),
}

/// Runs that were asked for together, which are cancelled when this is dropped, or when they take too long.
pub(super) struct RunEvents {
    events: UnboundedReceiver<(usize, Event)>,
    deadline: Instant,
    cancels: Vec<CancelFlag>,
    n_running: usize,
}

struct Waiting {
    request: Request,
    teller: Teller,
}

/// Tells of a run to whoever has asked for it, who may be gone.
struct Teller {
    run_idx: usize, // among those that were asked for together
    events: UnboundedSender<(usize, Event)>,
    /// Whether its prompt's features are still to be told of.
    tells_of_prompt: bool,
}

impl Runs {
    /// Starts the thread.
    ///
    /// # Errors
    /// As [`HookedModel::engine`].
    pub(super) fn start(
        model: Arc<HookedModel>,
        size: EngineSize,
    ) -> Result<(Self, JoinHandle<()>)> {
        let (queue, arriving) = mpsc::channel();
        let (ready, made) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let of_thread = Arc::clone(&counts);
        // An engine stays on the thread that made it.
        let work = move || match model.engine(size) {
            Ok(engine) => {
                let _ = ready.send(Ok(engine.capacity()));
                let thread = Thread {
                    engine,
                    arriving,
                    waiting: VecDeque::new(),
                    running: HashMap::new(),
                    counts: of_thread,
                };
                thread.work();
            }
            Err(error) => _ = ready.send(Err(error)),
        };
        let thread = std::thread::Builder::new().name("engine".to_owned());
        let thread = thread.spawn(work).expect("the system has threads");
        let capacity = made.recv().unwrap_or_else(|_| Err(stopped()))?;
        let runs = Self {
            queue,
            counts,
            capacity,
        };
        Ok((runs, thread))
    }

    /// The tokens that a run has room for, its prompt's among them.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The tokens that an answer to a prompt has room for.
    pub(super) fn room_behind(&self, prompt: &Prompt) -> usize {
        self.capacity - prompt.tokens().len()
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Asks for runs. None waits for what takes their events, which are as many as their tokens.
    pub(super) fn ask(&self, requests: Vec<Request>) -> RunEvents {
        let (sender, events) = unbounded_channel();
        let n_running = requests.len();
        self.counts.waiting.fetch_add(n_running, Ordering::Relaxed);
        let mut cancels = Vec::new();
        for (run_idx, request) in requests.into_iter().enumerate() {
            cancels.push(request.options.cancel.clone());
            let teller = Teller {
                run_idx,
                events: sender.clone(),
                tells_of_prompt: request.options.keep.features != Kinds::NONE,
            };
            // Where the thread is gone, so is the sender, which says it.
            let _ = self.queue.send(Waiting { request, teller });
        }
        RunEvents {
            events,
            deadline: Instant::now() + MAX_TIME,
            cancels,
            n_running,
        }
    }
}

impl RunEvents {
    /// The next event, and of which run it is; none when all have ended.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        if self.n_running == 0 {
            return None;
        }
        let event = match timeout_at(self.deadline, self.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => (0, Event::End(Err(stopped()))),
            Err(_) => (0, Event::End(Err(too_long()))),
        };
        match event {
            (_, Event::End(Err(_))) => self.n_running = 0,
            (_, Event::End(Ok(_))) => self.n_running -= 1,
            _ => {}
        }
        Some(event)
    }

    /// The runs, when all have ended.
    ///
    /// # Errors
    /// What the first fails with that does.
    pub(super) async fn end(mut self) -> Result<Vec<Run>> {
        let mut runs = BTreeMap::new();
        while let Some((run_idx, event)) = self.next().await {
            if let Event::End(run) = event {
                runs.insert(run_idx, run?);
            }
        }
        Ok(runs.into_values().collect())
    }
}

impl Drop for RunEvents {
    fn drop(&mut self) {
        self.cancels.iter().for_each(CancelFlag::cancel);
    }
}

/// The error of what takes longer than [`MAX_TIME`].
pub(super) fn too_long() -> Error {
    let what = format!("it took longer than {} minutes", MAX_TIME.as_secs() / 60);
    Error::new(ErrorKind::Interrupted, what).with_hint("ask for fewer tokens, or for less at once")
}

fn stopped() -> Error {
    Error::new(ErrorKind::Runtime, "the engine has stopped")
}

struct Thread {
    engine: Engine,
    arriving: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
    running: HashMap<RunId, Teller>,
    counts: Arc<Counts>,
}

impl Thread {
    fn work(mut self) {
        loop {
            if self.engine.is_idle() && self.waiting.is_empty() {
                match self.arriving.recv() {
                    Ok(first) => self.waiting.push_back(first),
                    Err(mpsc::RecvError) => return,
                }
            }
            self.waiting.extend(self.arriving.try_iter());
            self.admit();
            self.step();
        }
    }

    /// Lets in those who wait, the first first, while there are sequences.
    fn admit(&mut self) {
        while self.running.len() < self.engine.n_sequences()
            && let Some(Waiting { request, teller }) = self.waiting.pop_front()
        {
            self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            let admitted = match request.options.cancel.is_cancelled() {
                true => Err(Error::interrupted()),
                false => self.engine.admit(request),
            };
            match admitted {
                Ok(id) => _ = self.running.insert(id, teller),
                Err(error) => teller.end(Err(error)),
            }
        }
        self.count();
    }

    fn count(&self) {
        let n_running = self.running.len();
        self.counts.running.store(n_running, Ordering::Relaxed);
    }

    fn step(&mut self) {
        let running = &mut self.running;
        let finished = self.engine.step(&mut |id, step| {
            let teller = running.get_mut(&id).expect("it was admitted");
            teller.tell(&step)
        });
        let ended: Vec<_> = match finished {
            Ok(finished) => finished
                .into_iter()
                .map(|(id, run)| (self.running.remove(&id).expect("it was admitted"), run))
                .collect(),
            // All runs have ended with it.
            Err(error) => self
                .running
                .drain()
                .map(|(_, teller)| (teller, Err(Error::new(error.kind(), error.to_string()))))
                .collect(),
        };
        if !ended.is_empty() {
            self.count();
        }
        for (teller, run) in ended {
            teller.end(run);
        }
    }
}

impl Teller {
    fn tell(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        if std::mem::take(&mut self.tells_of_prompt) {
            let event = Event::Prompt(step.trace.clone());
            let _ = self.events.send((self.run_idx, event));
        }
        let text = Event::Text {
            id: step.id,
            text: step.text.to_owned(),
            log_probs: step.log_probs.cloned(),
        };
        match self.events.send((self.run_idx, text)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()), // nobody listens
        }
    }

    fn end(&self, run: Result<Run>) {
        // It may have ended without a step.
        if let Ok(run) = &run
            && self.tells_of_prompt
        {
            let event = Event::Prompt(run.trace.clone());
            let _ = self.events.send((self.run_idx, event));
        }
        let _ = self.events.send((self.run_idx, Event::End(run)));
    }
}
