//! Runs on one context: admitted, and computed step by step, all together.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use super::forward::{Forward, Goal};
use super::generation::Generation;
use super::hooks::{EditorAt, Keep, Trace};
use super::recorded::RecordedPrompt;
use super::shortcuts::Shortcut;
use super::{Run, RunOptions, Stop};
use crate::llama::{self, OutputRow, Pass, RecordedGraphs};
use crate::model::HookedModel;
use crate::prompt::Prompt;
use crate::steering::{Edit, Steering};
use crate::{CancelFlag, Error, ErrorKind, HookPoint, Result, Site};

/// A run that is asked for.
pub struct Request {
    /// What the model reads first.
    pub prompt: Arc<Prompt>,
    /// What the run does.
    pub options: RunOptions,
    /// What edits rows besides the options' interventions.
    pub editors: Vec<EditorAt>,
    /// The prompt as it was read before, if it was ([`Engine::record`]).
    pub recorded: Option<Arc<RecordedPrompt>>,
}

impl Request {
    /// A run of `prompt` without editors.
    pub fn new(prompt: Arc<Prompt>, options: RunOptions) -> Self {
        Self {
            prompt,
            options,
            editors: Vec::new(),
            recorded: None,
        }
    }
}

/// A run that an engine has admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u64);

/// What a step gave of a run, as it comes.
pub struct Step<'a> {
    /// The generated token; none where only characters were left over at the end.
    pub id: Option<i32>,
    /// The characters that are new; a character may take several tokens.
    pub text: &'a str,
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

/// How runs that were all admitted before the first step are computed; what others are not.
#[derive(Clone, Debug, Default)]
struct Batch {
    /// Whether a hook has something to do, so that all pass by it.
    is_hooked: bool,
    /// The hooked place below which prompts are computed once.
    shared_below: Option<usize>,
    /// What the first of them has given there.
    recorded: Option<Arc<RecordedGraphs>>,
    /// The block to which llama.cpp adds the only run's vector.
    vector_at: Option<usize>,
    /// Whether runs without logits go beyond the highest hook.
    is_whole: bool,
}

struct Active {
    id: RunId,
    request: Request,
    generation: Option<Generation>, // none while the prompt was not read
    n_shown: usize,                 // rows of the trace that a step has told of
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
    /// A prompt that is longer than the context; as many runs as there may be; a hook point that this model
    /// does not have; positions that the prompt does not have.
    pub fn admit(&mut self, mut request: Request) -> Result<RunId> {
        place(&mut request)?;
        self.check_length(&request.prompt)?;
        let Some(sequence) = self.slots.iter().position(Option::is_none) else {
            return Err(self.no_room());
        };
        if self.is_idle() {
            self.forward.context.clear();
            self.batch = Batch::default();
        } else {
            self.forward.context.truncate(sequence, 0)?;
        }
        self.hook(&request)?;
        if let Some(recorded) = &request.recorded {
            self.check_recorded(recorded, &request)?;
        }
        self.begin(sequence, request)
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
        requests.iter_mut().try_for_each(place)?;
        let first_id = self.n_admitted;
        let mut runs: Vec<Option<Run>> = requests.iter().map(|_| None).collect();
        self.forward.context.clear();
        self.set_sites(self.sites_of(&requests))?;
        let done = self.plan(&requests).and_then(|batch| {
            self.forward.context.clear();
            self.batch = batch;
            for (sequence, request) in requests.into_iter().enumerate() {
                self.begin(sequence, request)?;
            }
            let place = |id: RunId| usize::try_from(id.0 - first_id).expect("few runs");
            while !self.is_idle() {
                for (id, run) in self.step(&mut |id, step| on_step(place(id), step))? {
                    runs[place(id)] = Some(run?);
                }
            }
            Ok(())
        });
        self.slots.fill_with(|| None);
        if let Some(layer) = self.batch.vector_at.take() {
            self.forward.context.set_control_vector(layer, &[])?;
        }
        done?;
        Ok(runs
            .into_iter()
            .map(|run| run.expect("all have ended"))
            .collect())
    }

    /// Puts a run into a free sequence.
    fn begin(&mut self, sequence: usize, mut request: Request) -> Result<RunId> {
        let id = RunId(self.n_admitted);
        self.n_admitted += 1;
        let steering = request.options.steering.as_deref();
        // Else llama.cpp adds its vector.
        let steering = steering.filter(|_| self.batch.vector_at.is_none());
        self.batch.is_hooked |= steering.is_some()
            || !request.editors.is_empty()
            || request.options.reads_rows()
            || request.options.goal() != Goal::Logits
            || request.recorded.is_some();
        let editors = std::mem::take(&mut request.editors);
        let steering = steering.cloned();
        let hooks = self.forward.context.hook();
        hooks.begin(sequence, request.options.keep, steering, editors);
        self.slots[sequence] = Some(Active {
            id,
            request,
            generation: None,
            n_shown: 0,
        });
        Ok(id)
    }

    /// Does what is next for all runs: reads the prompts that were not read, and computes a token for each.
    /// `on_step` gets their texts and what the hooks saw; those that have ended are returned.
    ///
    /// # Errors
    /// What no run is to blame for; then all have ended.
    pub fn step(
        &mut self,
        on_step: &mut dyn FnMut(RunId, Step<'_>) -> ControlFlow<()>,
    ) -> Result<Vec<Finished>> {
        let mut finished = Vec::new();
        let done = self
            .read_prompts(&mut finished)
            .and_then(|()| self.generate(on_step, &mut finished));
        if done.is_err() {
            self.slots.fill_with(|| None);
        }
        done.map(|()| finished)
    }

    fn read_prompts(&mut self, finished: &mut Vec<Finished>) -> Result<()> {
        let (mut is_read, mut was_tried) = (Vec::new(), false);
        for sequence in 0..self.slots.len() {
            let slot = self.slots[sequence].as_ref();
            if slot.is_none_or(|active| active.generation.is_some()) {
                continue;
            }
            was_tried = true;
            match self.read_prompt(sequence) {
                Ok(generation) => {
                    self.active(sequence).generation = Some(generation);
                    is_read.push(sequence);
                }
                Err(error) => self.fail(sequence, error, finished)?,
            }
        }
        // A prompt that failed leaves a pass of its own too.
        if was_tried {
            self.forward.set_pass(self.pass());
        }
        let now = Instant::now();
        for sequence in is_read {
            self.generation(sequence).start(now);
        }
        Ok(())
    }

    /// The pass of generated tokens, and of prompts that share nothing.
    fn pass(&self) -> Pass {
        match self.batch.is_hooked {
            true => Pass::Whole,
            false => Pass::Unhooked,
        }
    }

    /// Reads a run's prompt, and chooses its first token.
    fn read_prompt(&mut self, sequence: usize) -> Result<Generation> {
        let start = Instant::now();
        let request = &self.active(sequence).request;
        let (prompt, options) = (Arc::clone(&request.prompt), request.options.clone());
        let recorded = request.recorded.clone();
        let goal = match options.goal() {
            Goal::Rows(_) if self.batch.is_whole && options.reads_rows() => Goal::Logits,
            goal => goal,
        };
        let split = match &recorded {
            Some(recorded) => self.forward.context.hook().site(recorded.below),
            None => self.batch.shared_below,
        };
        let replayed = match recorded {
            Some(recorded) => Some(Arc::clone(&recorded.graphs)),
            None => self.batch.recorded.clone(),
        };
        let top = self.forward.context.hook().sites.len().checked_sub(1);
        let pass = match (goal, split, replayed) {
            (Goal::Rows(_), ..) => top.map_or(Pass::Whole, Pass::UpTo),
            (Goal::Logits, None, _) => self.pass(),
            (Goal::Logits, Some(split), None) => Pass::Recorded(split),
            (Goal::Logits, Some(split), Some(graphs)) => {
                self.forward.context.replay(graphs);
                Pass::Replayed(split)
            }
        };
        let forward = &mut self.forward;
        forward.set_pass(pass);
        forward.decode_prompt(sequence, &prompt, goal, &options.cancel)?;
        if let Pass::Recorded(_) = pass {
            self.batch.recorded = Some(Arc::new(forward.context.take_recording()));
        }
        let mut generation =
            Generation::new(self.model.language_model(), &options, start.elapsed());
        if options.goal() == Goal::Logits {
            if options.keep.logits {
                generation.keep_logits(forward.context.logits(OutputRow::Last));
            }
            generation.sample(&mut forward.context, OutputRow::Last)?;
        }
        Ok(generation)
    }

    /// Computes a token for each run that goes on.
    fn generate(&mut self, on_step: OnStep<'_>, finished: &mut Vec<Finished>) -> Result<()> {
        let mut next = Vec::new(); // sequences with their tokens
        for sequence in 0..self.slots.len() {
            if self.slots[sequence].is_none() {
                continue;
            }
            match self.take_next(sequence, on_step) {
                Ok(Some(id)) => next.push((sequence, id)),
                Ok(None) => self.finish(sequence, on_step, finished),
                Err(error) => self.fail(sequence, error, finished)?,
            }
        }
        while !next.is_empty() && !self.decode(&next, on_step, finished)? {
            next.retain(|&(sequence, _)| self.slots[sequence].is_some());
        }
        for (row_idx, &(sequence, _)) in next.iter().enumerate() {
            let active = self.slots[sequence].as_mut().expect("it goes on");
            let generation = active.generation.as_mut().expect("its prompt was read");
            let row = OutputRow::Index(row_idx);
            if let Err(error) = generation.sample(&mut self.forward.context, row) {
                self.fail(sequence, error, finished)?;
            }
        }
        Ok(())
    }

    /// Decodes a token for each of these sequences. False says that runs have ended in it, by being cancelled
    /// or by an error of theirs, and that it is as if the others' had not been decoded.
    fn decode(
        &mut self,
        next: &[(usize, i32)],
        on_step: OnStep<'_>,
        finished: &mut Vec<Finished>,
    ) -> Result<bool> {
        let (sequences, ids): (Vec<_>, Vec<_>) = next.iter().copied().unzip();
        let mut marks = Vec::new();
        let mut flags = Vec::new();
        for &sequence in &sequences {
            marks.push(self.forward.context.hook().n_rows(sequence));
            flags.push(self.active(sequence).request.options.cancel.clone());
        }
        let flags_of_decode = flags.iter().cloned();
        let Err(error) = self
            .forward
            .decode_generated(&sequences, &ids, flags_of_decode)
        else {
            return Ok(true);
        };
        let culprit = self.forward.context.hook().take_culprit();
        for (&sequence, n_rows) in sequences.iter().zip(marks) {
            self.forward.context.drop_unfinished(sequence)?;
            self.forward.context.hook().truncate(sequence, n_rows);
        }
        if error.is_interrupted() {
            for (&sequence, flag) in sequences.iter().zip(&flags) {
                if flag.is_cancelled() {
                    self.generation(sequence).stop = Some(Stop::Interrupted);
                    self.finish(sequence, on_step, finished);
                }
            }
            return Ok(false);
        }
        let culprit = culprit.filter(|culprit| sequences.contains(culprit));
        match culprit {
            Some(culprit) => self.fail(culprit, error, finished).map(|()| false),
            None => Err(error),
        }
    }

    /// Takes a run's next token into its text; none where it stops.
    fn take_next(&mut self, sequence: usize, on_step: OnStep<'_>) -> Result<Option<i32>> {
        let is_full = self.forward.context.is_full(sequence);
        let is_cancelled = self.active(sequence).request.options.cancel.is_cancelled();
        let model = Arc::clone(&self.model);
        let generation = self.generation(sequence);
        if generation.stop.is_some() {
            return Ok(None);
        }
        if is_cancelled {
            generation.stop = Some(Stop::Interrupted);
            return Ok(None);
        }
        let (id, text) = generation.take_next(model.language_model(), is_full)?;
        if let Some(id) = id
            && self.show(sequence, Some(id), &text, on_step).is_break()
        {
            self.generation(sequence).stop.get_or_insert(Stop::Caller);
        }
        Ok(id.filter(|_| self.generation(sequence).stop.is_none()))
    }

    /// Hands a step to the caller.
    fn show(
        &mut self,
        sequence: usize,
        id: Option<i32>,
        text: &str,
        on_step: OnStep<'_>,
    ) -> ControlFlow<()> {
        let active = self.slots[sequence].as_mut().expect("it is there");
        let trace = &self.forward.context.hook().sequences[sequence].trace;
        let n_rows = trace.tokens.len();
        let new_rows = std::mem::replace(&mut active.n_shown, n_rows)..n_rows;
        let step = Step {
            id,
            text,
            trace,
            new_rows,
        };
        on_step(active.id, step)
    }

    /// Ends a run that has stopped.
    fn finish(&mut self, sequence: usize, on_step: OnStep<'_>, finished: &mut Vec<Finished>) {
        let rest = self.generation(sequence).take_rest();
        if !rest.is_empty() {
            let _ = self.show(sequence, None, &rest, on_step); // it has ended
        }
        let active = self.slots[sequence].take().expect("it is there");
        let generation = active.generation.expect("its prompt was read");
        let trace = self.forward.context.hook().take_trace(sequence);
        finished.push((active.id, Ok(generation.finish(trace))));
    }

    /// Ends a run that has failed.
    fn fail(&mut self, sequence: usize, error: Error, finished: &mut Vec<Finished>) -> Result<()> {
        let active = self.slots[sequence].take().expect("it is there");
        finished.push((active.id, Err(error)));
        self.forward.context.hook().take_culprit();
        self.forward.context.truncate(sequence, 0)
    }

    fn active(&mut self, sequence: usize) -> &mut Active {
        self.slots[sequence].as_mut().expect("it is there")
    }

    fn generation(&mut self, sequence: usize) -> &mut Generation {
        let generation = self.active(sequence).generation.as_mut();
        generation.expect("its prompt was read")
    }

    /// Reads a prompt for the runs of it that will follow, which edit nothing below `below`, a place in the
    /// residual stream. Rows of all SAEs below are kept too. What ran before has to have ended.
    ///
    /// # Errors
    /// As [`Engine::admit`]; a place that is not in the residual stream.
    pub fn record(
        &mut self,
        prompt: &Arc<Prompt>,
        below: HookPoint,
        cancel: &CancelFlag,
    ) -> Result<RecordedPrompt> {
        assert!(self.is_idle(), "the engine's runs have ended");
        if below.site() != Site::ResidPost {
            let what = format!("a prompt is recorded below `hook_resid_post`, and not `{below}`");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        self.check_length(prompt)?;
        let key = self.model.prompt_key(prompt, below)?;
        let saes = self.model.saes().iter().map(|sae| sae.hook_point());
        let places: BTreeSet<_> = saes
            .filter(|place| *place <= below)
            .chain([below])
            .collect();
        self.batch = Batch::default();
        self.set_sites(places.clone())?;
        let forward = &mut self.forward;
        forward.context.clear();
        let hooks = forward.context.hook();
        let split = hooks.site(below).expect("it was hooked");
        hooks.begin(0, Keep::default(), None, Vec::new());
        forward.set_pass(Pass::Recorded(split));
        forward.decode_prompt(0, prompt, Goal::Logits, cancel)?;
        Ok(RecordedPrompt {
            key,
            below,
            places,
            graphs: Arc::new(forward.context.take_recording()),
        })
    }

    /// Checks that a run can go on from a recorded prompt.
    fn check_recorded(&mut self, recorded: &RecordedPrompt, request: &Request) -> Result<()> {
        let RecordedPrompt { below, places, .. } = recorded;
        let refused = |why: &str| {
            let what = format!("the run cannot go on from the recorded prompt: {why}");
            Err(Error::invalid(what).with_hint("leave it out, or record the prompt again"))
        };
        if self.model.prompt_key(&request.prompt, *below)? != recorded.key {
            return refused("it is of another prompt, model or way to compute");
        }
        if let Some(place) = edited_places(request).find(|place| place < below) {
            return refused(&format!("`{place}` is edited, and it begins at `{below}`"));
        }
        let sites = self.forward.context.hook().sites.iter();
        let mut below_it = sites
            .map(|site| site.hook_point)
            .filter(|place| place <= below);
        match below_it.find(|place| !places.contains(place)) {
            Some(place) => refused(&format!("it does not hold the rows at `{place}`")),
            None => Ok(()),
        }
    }

    fn check_length(&self, prompt: &Prompt) -> Result<()> {
        let n_prompt = prompt.tokens().len();
        if n_prompt <= self.capacity() {
            return Ok(());
        }
        Err(llama::context_too_small(format!(
            "the prompt has {n_prompt} tokens, and the context holds {}",
            self.capacity()
        )))
    }

    /// How these runs are computed, which are all that there will be.
    fn plan(&mut self, requests: &[Request]) -> Result<Batch> {
        let mut batch = Batch::default();
        let Some(first) = requests.first() else {
            return Ok(batch);
        };
        let prompt = Arc::clone(&first.prompt);
        if let [only] = requests
            && let Some((layer, vector)) = in_graph(only)
            && !self.forward.context.has_control_vector()
        {
            let vector = vector.to_vec();
            let steering = only.options.steering.as_deref().expect("it has a vector");
            let tried = Some((steering, layer, &vector[..]));
            if self.takes(Shortcut::ControlVector, &prompt, tried, None)? {
                self.forward.context.set_control_vector(layer, &vector)?;
                batch.vector_at = Some(layer);
            }
        }
        let stops = |request: &Request| {
            request.options.goal() != Goal::Logits && request.options.reads_rows()
        };
        batch.is_whole =
            requests.iter().any(stops) && !self.takes(Shortcut::StopAtHook, &prompt, None, None)?;
        let has_same_prompt = |request: &Request| request.prompt.is_same(&prompt);
        let may_share = self.model.options().share_prompts
            && requests.len() > 1
            && requests
                .iter()
                .all(|request| request.options.goal() == Goal::Logits)
            && requests.iter().all(has_same_prompt);
        let split = self.split(requests).filter(|_| may_share);
        if split.is_some() && self.takes(Shortcut::SharedPrompts, &prompt, None, split)? {
            batch.shared_below = split;
        }
        Ok(batch)
    }

    /// The hooked place below which no run edits, and above which everything depends on its rows alone.
    fn split(&mut self, requests: &[Request]) -> Option<usize> {
        let edits = requests.iter().flat_map(edited_places);
        let lowest = edits.min();
        let sites = &self.forward.context.hook().sites;
        sites.iter().rposition(|site| {
            let is_stream = site.hook_point.site() == Site::ResidPost;
            is_stream && lowest.is_none_or(|lowest| site.hook_point <= lowest)
        })
    }

    /// The places that have to be hooked for these runs.
    fn sites_of(&self, requests: &[Request]) -> BTreeSet<HookPoint> {
        let mut places = BTreeSet::new();
        for request in requests {
            if request.options.reads_rows() || request.options.goal() != Goal::Logits {
                places.extend(self.model.saes().iter().map(|sae| sae.hook_point()));
            }
            places.extend(edited_places(request));
            let steering = request.options.steering.as_deref();
            let watched = steering.map_or(&[][..], Steering::watched);
            places.extend(watched.iter().map(|watched| watched.hook_point));
            places.extend(request.recorded.as_ref().map(|recorded| recorded.below));
            places.extend(request.editors.iter().map(|editor| editor.read));
        }
        places
    }

    /// The hooked place below which the last runs' prompts were computed once, if they were.
    pub(super) fn shared_below(&self) -> Option<usize> {
        self.batch.shared_below
    }

    /// Hooks what editors need, and nothing else.
    pub(super) fn hook_editors(&mut self, editors: &[EditorAt]) -> Result<()> {
        let places = editors
            .iter()
            .flat_map(|editor| [editor.read, editor.write]);
        self.set_sites(places.collect())
    }

    /// Hooks what a further run needs.
    fn hook(&mut self, request: &Request) -> Result<()> {
        let mut places = self.sites_of(std::slice::from_ref(request));
        if !self.is_idle() {
            let sites = &self.forward.context.hook().sites;
            places.extend(sites.iter().map(|site| site.hook_point));
        }
        self.set_sites(places)
    }

    fn set_sites(&mut self, places: BTreeSet<HookPoint>) -> Result<()> {
        let sites = places.into_iter().map(|place| self.model.site(place));
        let sites = sites.collect::<Result<Vec<_>>>()?;
        if self.forward.context.hook().sites != sites {
            let nodes = sites.iter().map(|site| site.hooked.clone()).collect();
            self.forward.context.set_nodes(nodes);
            self.forward.context.hook().sites = sites;
        }
        Ok(())
    }
}

/// Finds the rows of the run's prompt that its interventions touch, where positions of their own say it.
fn place(request: &mut Request) -> Result<()> {
    let steering = &mut request.options.steering;
    if let Some(unplaced) = steering.as_deref().filter(|one| one.has_places()) {
        *steering = Some(Arc::new(unplaced.placed(request.prompt.tokens())?));
    }
    Ok(())
}

/// Where a run edits rows.
fn edited_places(request: &Request) -> impl Iterator<Item = HookPoint> {
    let steering = request.options.steering.as_deref();
    let edits = steering.map_or(&[][..], Steering::edits);
    let editors = request.editors.iter().map(|editor| editor.write);
    edits.iter().map(Edit::hook_point).chain(editors)
}

/// The block and the vector of a run that llama.cpp's control vector does alone: nothing reads rows at a
/// hook, and the same is added to every row of the residual stream.
fn in_graph(request: &Request) -> Option<(usize, &[f32])> {
    let options = &request.options;
    if options.reads_rows() || options.goal() != Goal::Logits || !request.editors.is_empty() {
        return None;
    }
    let (hook_point, vector) = options.steering.as_deref()?.constant()?;
    // llama.cpp has none for layer 0.
    let is_possible = hook_point.site() == Site::ResidPost && hook_point.layer() > 0;
    is_possible.then_some((hook_point.layer(), vector))
}
