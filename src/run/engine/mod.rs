//! Runs on one context: admitted, and computed step by step, all together.

mod pieces;
mod plan;
mod prompts;
mod request;
mod tokens;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use super::forward::Forward;
use super::generation::{Generation, Run};
use super::hooks::Trace;
use super::logits::TokenLogProbs;
use super::reading::Reading;
use super::remembered::{Piece, PieceKey};
use crate::llama::{self, Extent};
use crate::model::HookedModel;
use crate::prompt::Prompt;
use crate::{Error, Result};

use self::pieces::PromptEdits;
pub use self::request::Request;

/// A run that an engine has admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u64);

/// What a step gave of a run, as it comes.
pub struct Step<'a> {
    /// The generated token; none where only characters were left over at the end.
    pub id: Option<i32>,
    /// The characters that are new; a character may take several tokens.
    pub text: &'a str,
    /// How likely the token was, if that is asked for.
    pub log_probs: Option<&'a TokenLogProbs>,
    /// What the hooks have seen of the run.
    pub trace: &'a Trace,
    /// The rows of the trace that are new since the step before: first the prompt's, and then one a step,
    /// that of the token before this one.
    pub new_rows: Range<usize>,
}

/// A run that has ended.
pub type Finished = (RunId, Result<Run>);

/// What a caller does with a step; `Break` ends that run.
pub(super) type OnStep<'a> = &'a mut dyn FnMut(RunId, Step<'_>) -> ControlFlow<()>;

/// Runs on one context of a model, which they share: each is a sequence of its own, and a step reads the
/// weights once for all.
pub struct Engine {
    pub(super) model: Arc<HookedModel>,
    pub(super) forward: Forward,
    slots: Vec<Option<Active>>, // by sequence
    batch: Batch,
    n_admitted: u64,
}

/// How the runs at hand are computed.
#[derive(Debug, Default)]
struct Batch {
    /// Whether a hook has something to do, so that all generated rows pass by it.
    is_hooked: bool,
    /// Whether prompts that were read are remembered.
    remembers: bool,
    /// What is remembered until these runs have ended, where they are of one prompt.
    pieces: Option<HashMap<PieceKey, Arc<Piece>>>,
    /// The hooked place below which no run edits, where they are of one prompt.
    shared_below: Option<usize>,
    /// What llama.cpp adds to the only run's rows.
    vector: Option<ControlVector>,
    /// Whether runs without logits go beyond the highest hook.
    is_whole: bool,
}

/// llama.cpp's own control vector.
#[derive(Debug)]
struct ControlVector {
    layer: usize,
    values: Vec<f32>, // [d_model]
    /// Prompts that are remembered go without it: there, hooks add the same.
    is_set: bool,
}

struct Active {
    id: RunId,
    request: Request,
    prompt_edits: Option<PromptEdits>,
    /// What is remembered of the prompt's end, if its end was not read.
    end_of_prompt: Option<Arc<Piece>>,
    n_remembered: usize, // rows of the prompt
    /// Of each row of the prompt; empty where not asked for.
    prompt_log_probs: Vec<Option<TokenLogProbs>>,
    phase: Phase,
    n_shown: usize, // rows of the trace that a step has told of
}

/// What comes next of a run.
enum Phase {
    /// More of its prompt.
    Prompt { reading: Reading, time: Duration },
    /// A token.
    Tokens(Box<Generation>),
}

impl Engine {
    pub(crate) fn new(model: Arc<HookedModel>, forward: Forward) -> Self {
        let n_sequences = forward.context.n_sequences();
        Self {
            model,
            forward,
            slots: std::iter::repeat_with(|| None).take(n_sequences).collect(),
            batch: Batch::default(),
            n_admitted: 0,
        }
    }

    /// The tokens that each run has room for, its prompt's among them.
    pub fn capacity(&self) -> usize {
        self.forward.context.capacity()
    }

    /// Sets llama.cpp's own control vector, `[d_model]`, at the output of block `layer`, or removes it where it
    /// is empty.
    ///
    /// # Errors
    /// When llama.cpp refuses; block 0 has none.
    pub(crate) fn set_control_vector(&mut self, layer: usize, direction: &[f32]) -> Result<()> {
        self.forward.context.set_control_vector(layer, direction)
    }

    /// The rows of the largest image whose rows may see one another.
    pub fn n_together(&self) -> usize {
        self.forward.context.max_ubatch()
    }

    /// The runs that there may be at once.
    pub fn n_sequences(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes a run in; [`Engine::step`] computes it.
    ///
    /// # Errors
    /// As [`RunOptions::check`](crate::RunOptions::check); a prompt that is longer than the context; as many runs as there
    /// may be; a hook point that this model does not have; positions that the prompt does not have.
    pub fn admit(&mut self, mut request: Request) -> Result<RunId> {
        request.prepare()?;
        self.check_length(&request.prompt)?;
        let Some(sequence) = self.slots.iter().position(Option::is_none) else {
            return Err(self.no_room());
        };
        self.hook(&request)?;
        if self.is_idle() {
            self.batch = Batch::default();
            // A run whose own prompt is not remembered keeps those that join it from nothing.
            self.batch.remembers =
                self.may_remember_some() && self.takes_shared(&request.prompt)?;
            self.forward.context.clear();
        } else {
            self.forward.context.truncate(sequence, Extent::default())?;
        }
        let key = self.prompt_key(std::slice::from_ref(&request));
        self.begin(sequence, request, key)
    }

    fn no_room(&self) -> Error {
        let n_runs = self.slots.len();
        let what = format!("{n_runs} runs at once are all that there is room for");
        Error::invalid(what).with_hint("wait until one has ended")
    }

    /// Runs these, and no others besides, to their ends, which allows to compute less: prompts that are the
    /// same share what is below the lowest edit, and one vector for all rows of the only run is llama.cpp's
    /// own control vector. `on_step` gets a run's place among them. What ran before has to have ended.
    ///
    /// # Errors
    /// As [`Engine::admit`], and the first run's that fails.
    pub fn run(
        &mut self,
        mut requests: Vec<Request>,
        on_step: &mut dyn FnMut(usize, Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Run>> {
        assert!(self.is_idle(), "the engine's runs have ended");
        if requests.len() > self.slots.len() {
            return Err(self.no_room());
        }
        requests.iter_mut().try_for_each(Request::prepare)?;
        let first_id = self.n_admitted;
        let mut runs: Vec<Option<Run>> = requests.iter().map(|_| None).collect();
        self.forward.context.clear();
        self.hook_all(&requests)?;
        let done = self.plan(&requests).and_then(|batch| {
            self.forward.context.clear();
            self.batch = batch;
            let key = self.prompt_key(&requests);
            for (sequence, request) in requests.into_iter().enumerate() {
                self.begin(sequence, request, key)?;
            }
            let place = |id: RunId| usize::try_from(id.0 - first_id).expect("few runs");
            while !self.is_idle() {
                // All prompts come first, so that all tokens are computed side by side.
                let on_step = &mut |id, step: Step<'_>| on_step(place(id), step);
                for (id, run) in self.step_with(usize::MAX, on_step)? {
                    runs[place(id)] = Some(run?);
                }
            }
            Ok(())
        });
        self.slots.fill_with(|| None);
        self.batch.pieces = None;
        if let Some(vector) = self.batch.vector.take().filter(|vector| vector.is_set) {
            self.forward.context.set_control_vector(vector.layer, &[])?;
        }
        done?;
        Ok(runs
            .into_iter()
            .map(|run| run.expect("all have ended"))
            .collect())
    }

    /// The key of the beginning of these runs' prompts, if they are remembered.
    fn prompt_key(&self, requests: &[Request]) -> Option<PieceKey> {
        if !self.batch.remembers || self.batch.pieces.is_none() && !self.may_remember(requests) {
            return None;
        }
        let key = self.model.prompt_key(&self.kept_places(requests));
        let unknown = |error: &Error| log::debug!("prompts are not remembered: {error}");
        key.inspect_err(unknown).ok()
    }

    /// Puts a run into a free sequence; `key` is that of its prompt's beginning, if that is remembered.
    fn begin(
        &mut self,
        sequence: usize,
        mut request: Request,
        key: Option<PieceKey>,
    ) -> Result<RunId> {
        let id = RunId(self.n_admitted);
        self.n_admitted += 1;
        let steering = request.options.steering.as_deref();
        let is_steered = steering.is_some() && self.batch.vector.is_none();
        self.batch.is_hooked |= request.is_hooked(is_steered);
        let prompt_edits = request.prompt_edits();
        let vector = self.batch.vector.as_ref();
        let steering = steering.filter(|_| vector.is_none_or(|vector| !vector.is_set));
        let steering = steering.cloned();
        let is_scored = request.options.prompt_log_probs.is_some();
        let reading = match is_scored {
            true => Reading::scoring(&request.prompt),
            false => Reading::new(&request.prompt, self.goal(&request.options), key),
        };
        let n_scored = match is_scored {
            true => request.prompt.tokens().len(),
            false => 0,
        };
        let editors = std::mem::take(&mut request.editors);
        let hooks = self.forward.context.hook();
        hooks.begin(sequence, request.options.keep, steering, editors);
        self.slots[sequence] = Some(Active {
            id,
            request,
            prompt_edits,
            end_of_prompt: None,
            n_remembered: 0,
            prompt_log_probs: vec![None; n_scored],
            phase: Phase::Prompt {
                reading,
                time: Duration::ZERO,
            },
            n_shown: 0,
        });
        Ok(id)
    }

    /// Does what is next for all runs: reads prompts, about as many of their rows as a graph has room for, and
    /// computes a token for each run whose prompt was read. So runs that generate wait for a part of a long
    /// prompt, and not for all of it. `on_step` gets their texts and what the hooks saw; those that have ended are
    /// returned.
    ///
    /// # Errors
    /// What no run is to blame for; then all have ended.
    pub fn step(
        &mut self,
        on_step: &mut dyn FnMut(RunId, Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Finished>> {
        self.step_with(self.forward.context.n_ubatch(), on_step)
    }

    /// As [`Engine::step`], with up to `n_rows` rows of prompts.
    fn step_with(&mut self, n_rows: usize, on_step: OnStep<'_>) -> Result<Vec<Finished>> {
        let mut finished = Vec::new();
        let done = self
            .read_prompts(n_rows, &mut finished)
            .and_then(|()| self.generate(on_step, &mut finished));
        if done.is_err() {
            self.slots.fill_with(|| None);
        }
        done.map(|()| finished)
    }

    fn check_length(&self, prompt: &Prompt) -> Result<()> {
        let n_prompt = prompt.tokens().len();
        if n_prompt > self.capacity() {
            return Err(llama::context_too_small(format!(
                "the prompt has {n_prompt} tokens, and the context holds {}",
                self.capacity()
            )));
        }
        self.forward.context.check_together(prompt.n_together())
    }

    fn active(&mut self, sequence: usize) -> &mut Active {
        self.slots[sequence].as_mut().expect("it is there")
    }

    /// The generation of a run whose prompt was read.
    fn generation(&mut self, sequence: usize) -> &mut Generation {
        match &mut self.active(sequence).phase {
            Phase::Tokens(generation) => generation,
            Phase::Prompt { .. } => unreachable!("its prompt was read"),
        }
    }

    /// Ends a run that has failed.
    fn fail(&mut self, sequence: usize, error: Error, finished: &mut Vec<Finished>) -> Result<()> {
        let active = self.slots[sequence].take().expect("it is there");
        finished.push((active.id, Err(error)));
        self.forward.context.hook().take_culprit();
        self.forward.context.truncate(sequence, Extent::default())
    }
}
