//! Runs of a prompt: rows announced, decoded, seen by the hook, and the text that follows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::llama::{
    Context, Edited, GraphNode, Model, Output, OutputRow, RowHook, Rows, Sampler, Sampling, Special,
};
use crate::logits::log_prob;
use crate::prompt::{Prompt, Segment};
use crate::sae::{Activations, Sae};
use crate::steering::{Encoded, Steering};
use crate::tokens::{Cursor, Row, Token};
use crate::{Error, Result};

/// What a run does.
#[derive(Clone, Copy)]
pub struct RunOptions<'a> {
    /// Interventions, if any.
    pub steering: Option<&'a Steering>,
    /// What is kept of the rows at the hook.
    pub keep: Keep,
    /// Tokens to generate, at most; 0 stops after the prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// What a run keeps of the rows at the hook. Nothing is computed that is not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The active features of each row.
    pub features: bool,
    /// The rows themselves, before and after interventions.
    pub residuals: bool,
}

/// What the hook saw.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// What each row is.
    pub tokens: Vec<Token>,
    /// The active features of each row **before** interventions; empty where not kept.
    pub activations: Activations,
    /// The rows before interventions, `[n_rows, d_in]` of the SAE; empty where not kept.
    pub residuals: Vec<f32>,
    /// The rows after interventions, `[n_rows, d_in]`; empty where not kept or not steered.
    pub steered_residuals: Vec<f32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model said so.
    End,
    /// The limit was reached.
    Length,
    /// The user asked to stop.
    Interrupted,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// The generated text.
    pub text: String,
    /// The generated ids, without the one that ended the text.
    pub token_ids: Vec<i32>,
    /// Why it ended.
    pub stop: Stop,
    /// Logits after the prompt's last row, `[n_vocab]`.
    pub logits: Vec<f32>,
    /// What the hook saw.
    pub trace: Trace,
    /// The prompt's time.
    pub prompt_time: Duration,
    /// The generation's time; runs side by side have it in common.
    pub generate_time: Duration,
}

/// Runs `prompt` in `context`, whose hook is on the graph node `node`, once for each of `options`:
/// as sequences of their own, one prompt after the other, and generates their tokens side by side.
/// `on_text` gets a run's index and its text as it comes, in whole characters.
pub(crate) fn run(
    context: &mut Context<Tap>,
    node: &GraphNode,
    model: &Model,
    interrupt: &AtomicBool,
    prompt: &Prompt,
    options: &[RunOptions<'_>],
    on_text: &mut dyn FnMut(usize, &str),
) -> Result<Vec<Run>> {
    let mut decoder = Decoder::start(context, node, options);
    let mut generations = Vec::new();
    for (sequence, options) in options.iter().enumerate() {
        let start = Instant::now();
        decoder.decode_prompt(sequence, prompt)?;
        let prompt_time = start.elapsed();
        let logits = decoder.context.logits(OutputRow::Last).to_vec();
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(
                Error::invalid("the model's logits are not numbers").with_hint(
                    "use smaller strengths; without interventions, convert the model again",
                ),
            );
        }
        let mut sampler = Sampler::new(model, options.sampling);
        generations.push(Generation {
            max_tokens: options.max_tokens,
            next: sampler.sample(decoder.context, OutputRow::Last),
            sampler,
            text: StreamedText::default(),
            token_ids: Vec::new(),
            stop: (options.max_tokens == 0).then_some(Stop::Length),
            logits,
            prompt_time,
        });
    }
    let start = Instant::now();
    let (mut sequences, mut ids) = (Vec::new(), Vec::new());
    loop {
        sequences.clear();
        ids.clear();
        for (sequence, generation) in generations.iter_mut().enumerate() {
            if generation.stop.is_some() {
                continue;
            }
            if interrupt.load(Ordering::Relaxed) {
                generation.stop = Some(Stop::Interrupted);
                continue;
            }
            let is_full = decoder.context.is_full(sequence);
            generation.take_next(model, is_full, &mut |text| on_text(sequence, text));
            if generation.stop.is_none() {
                sequences.push(sequence);
                ids.push(generation.next);
            }
        }
        if sequences.is_empty() {
            break;
        }
        match decoder.decode_generated(&sequences, &ids) {
            // The next round sees the interruption too.
            Err(Error::Interrupted) => continue,
            other => other?,
        }
        for (row_idx, &sequence) in sequences.iter().enumerate() {
            let generation = &mut generations[sequence];
            let row = OutputRow::Index(row_idx);
            generation.next = generation.sampler.sample(decoder.context, row);
        }
    }
    let generate_time = start.elapsed();
    let runs = generations.into_iter().enumerate();
    let runs = runs.map(|(sequence, generation)| Run {
        text: generation.text.finish(&mut |text| on_text(sequence, text)),
        token_ids: generation.token_ids,
        stop: generation
            .stop
            .expect("the loop ends when all have stopped"),
        logits: generation.logits,
        trace: decoder.take_trace(sequence),
        prompt_time: generation.prompt_time,
        generate_time,
    });
    Ok(runs.collect())
}

/// What a sequence has generated so far.
struct Generation {
    max_tokens: usize,
    sampler: Sampler,
    next: i32,
    text: StreamedText,
    token_ids: Vec<i32>,
    stop: Option<Stop>,
    logits: Vec<f32>, // [n_vocab], after the prompt
    prompt_time: Duration,
}

impl Generation {
    /// Takes the next token into the text, or stops.
    fn take_next(&mut self, model: &Model, is_full: bool, on_text: &mut dyn FnMut(&str)) {
        let id = self.next;
        if model.is_end(id) {
            self.stop = Some(Stop::End);
            return;
        }
        self.token_ids.push(id);
        self.text.push(
            |bytes| model.append_piece(id, Special::Hide, bytes),
            on_text,
        );
        if self.token_ids.len() == self.max_tokens {
            self.stop = Some(Stop::Length);
        } else if is_full {
            log::warn!("the text ends here because the context is full");
            self.stop = Some(Stop::Length);
        }
    }
}

/// The way of one or several runs through a context: announces rows, decodes them, checks that the
/// hook saw them.
struct Decoder<'a> {
    context: &'a mut Context<Tap>,
    node: &'a GraphNode,
    hooked: bool,
}

impl<'a> Decoder<'a> {
    fn start(
        context: &'a mut Context<Tap>,
        node: &'a GraphNode,
        options: &[RunOptions<'_>],
    ) -> Self {
        context.clear();
        let hooked = options
            .iter()
            .any(|run| run.steering.is_some() || run.keep != Keep::default());
        context.enable_hook(hooked);
        let tap = context.hook();
        tap.cursor.clear();
        tap.sequences = options
            .iter()
            .map(|run| Sequence {
                keep: run.keep,
                steering: run.steering.cloned(),
                substitute: None,
                trace: Trace::default(),
            })
            .collect();
        Self {
            context,
            node,
            hooked,
        }
    }

    fn decode_prompt(&mut self, sequence: usize, prompt: &Prompt) -> Result<()> {
        let d_model = self.context.d_model();
        for (i, segment) in prompt.segments().iter().enumerate() {
            let output = if i + 1 == prompt.segments().len() {
                Output::LastRow
            } else {
                Output::None
            };
            match segment {
                Segment::Text(ids) => {
                    let tokens = ids.iter().map(|&id| Token::text(id));
                    self.decode(sequence, tokens, Rows::Tokens(ids), output)?;
                }
                Segment::Image(rows) => {
                    let tokens = std::iter::repeat_n(Token::image(), rows.len() / d_model);
                    self.decode(sequence, tokens, Rows::Embeddings(rows), output)?;
                }
            }
        }
        Ok(())
    }

    fn decode(
        &mut self,
        sequence: usize,
        tokens: impl Iterator<Item = Token>,
        rows: Rows<'_>,
        output: Output,
    ) -> Result<()> {
        let submitted = tokens.map(|token| Row { sequence, token });
        self.context.hook().cursor.submit(submitted);
        self.context.decode(sequence, rows, output)?;
        self.check_hook()
    }

    fn decode_generated(&mut self, sequences: &[usize], ids: &[i32]) -> Result<()> {
        let rows = sequences.iter().zip(ids).map(|(&sequence, &id)| Row {
            sequence,
            token: Token::generated(id),
        });
        self.context.hook().cursor.submit(rows);
        self.context.decode_side_by_side(sequences, ids)?;
        self.check_hook()
    }

    fn check_hook(&mut self) -> Result<()> {
        if self.hooked {
            self.context.hook().cursor.finish_decode(self.node)?;
        }
        Ok(())
    }

    fn take_trace(&mut self, sequence: usize) -> Trace {
        std::mem::take(&mut self.context.hook().sequences[sequence].trace)
    }
}

/// Logits of `ids` behind the first `n_prompt` rows of a context's sequence 0: `on_logits` gets, for
/// each but the first, its index in `ids` and the logits that it was chosen from, `[n_vocab]`.
pub(crate) fn replay(
    context: &mut Context<Tap>,
    n_prompt: usize,
    ids: &[i32],
    on_logits: &mut dyn FnMut(usize, &[f32]),
) -> Result<()> {
    context.enable_hook(false);
    context.truncate(0, n_prompt)?;
    let Some((_, inputs)) = ids.split_last() else {
        return Ok(());
    };
    for (i, chunk) in inputs.chunks(REPLAYED_AT_ONCE).enumerate() {
        context.decode(0, Rows::Tokens(chunk), Output::EveryRow)?;
        for row_idx in 0..chunk.len() {
            let logits = context.logits(OutputRow::Index(row_idx));
            on_logits(i * REPLAYED_AT_ONCE + row_idx + 1, logits);
        }
    }
    Ok(())
}

/// The cross-entropy of each text token of `prompt` behind another row than those of the tokens
/// `except`, in nats, with `substitute` at the hook.
pub(crate) fn cross_entropies(
    context: &mut Context<Tap>,
    node: &GraphNode,
    prompt: &Prompt,
    substitute: Option<Substitute>,
    except: &[i32],
) -> Result<Vec<f64>> {
    let mut decoder = Decoder::start(context, node, &[]);
    decoder.hooked = substitute.is_some();
    decoder.context.enable_hook(decoder.hooked);
    decoder.context.hook().sequences.push(Sequence {
        keep: Keep::default(),
        steering: None,
        substitute,
        trace: Trace::default(),
    });
    let d_model = decoder.context.d_model();
    let tokens = prompt.tokens();
    let mut losses = Vec::new();
    let mut position = 0;
    // What the last row of a piece, and with text each row, says of the token that follows.
    let mut score = |context: &mut Context<Tap>, row: OutputRow, position: usize| {
        let is_excluded = tokens[position].id.is_some_and(|id| except.contains(&id));
        let next = tokens.get(position + 1).and_then(|token| token.id);
        if let Some(next) = next.filter(|_| !is_excluded) {
            losses.push(-log_prob(context.logits(row), next));
        }
    };
    for segment in prompt.segments() {
        match segment {
            Segment::Text(ids) => {
                for chunk in ids.chunks(REPLAYED_AT_ONCE) {
                    let rows = chunk.iter().map(|&id| Token::text(id));
                    decoder.decode(0, rows, Rows::Tokens(chunk), Output::EveryRow)?;
                    for row_idx in 0..chunk.len() {
                        score(decoder.context, OutputRow::Index(row_idx), position);
                        position += 1;
                    }
                }
            }
            Segment::Image(rows) => {
                let n_rows = rows.len() / d_model;
                let tokens = std::iter::repeat_n(Token::image(), n_rows);
                decoder.decode(0, tokens, Rows::Embeddings(rows), Output::LastRow)?;
                position += n_rows;
                score(decoder.context, OutputRow::Last, position - 1);
            }
        }
    }
    Ok(losses)
}

/// Bounds the memory for logits, of which a large vocabulary has a megabyte a row.
const REPLAYED_AT_ONCE: usize = 64;

/// The hook: copies rows out, computes features, applies interventions.
pub(crate) struct Tap {
    pub(crate) sae: Sae,
    cursor: Cursor,
    sequences: Vec<Sequence>,
    encoded: Activations, // of the rows at hand, where interventions need them and they are not kept
}

/// What the hook does for one sequence, and what it saw.
struct Sequence {
    keep: Keep,
    steering: Option<Steering>,
    substitute: Option<Substitute>,
    trace: Trace,
}

/// What stands in for rows at the hook, to see how much the model loses.
#[derive(Clone, Debug)]
pub(crate) struct Substitute {
    pub(crate) with: Substituted,
    /// Tokens whose rows stay.
    pub(crate) except: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Substituted {
    /// The SAE's reconstruction.
    Reconstruction,
    Zeros,
}

impl Substitute {
    fn apply(
        &self,
        sae: &mut Sae,
        encoded: &mut Activations,
        submitted: &[Row],
        rows: &mut [f32],
    ) -> Result<()> {
        if self.with == Substituted::Reconstruction {
            encoded.clear();
            sae.encode(rows, encoded)?;
        }
        let rows = rows.chunks_exact_mut(sae.meta().d_in);
        for (row_idx, (row, Row { token, .. })) in rows.zip(submitted).enumerate() {
            if token.id.is_some_and(|id| self.except.contains(&id)) {
                continue;
            }
            match self.with {
                Substituted::Reconstruction => sae.reconstruct(encoded, row_idx, row)?,
                Substituted::Zeros => row.fill(0.0),
            }
        }
        Ok(())
    }
}

impl Tap {
    pub(crate) fn new(sae: Sae) -> Self {
        Self {
            sae,
            cursor: Cursor::default(),
            sequences: Vec::new(),
            encoded: Activations::default(),
        }
    }
}

impl RowHook for Tap {
    fn on_rows(&mut self, rows: &mut [f32]) -> Result<Edited> {
        let d_in = self.sae.meta().d_in;
        let submitted = self.cursor.advance(rows.len() / d_in)?;
        let mut edited = Edited::No;
        let mut rest = rows;
        for group in submitted.chunk_by(|a, b| a.sequence == b.sequence) {
            let (rows, others) = rest.split_at_mut(group.len() * d_in);
            rest = others;
            let sequence = &mut self.sequences[group[0].sequence];
            if sequence.on_rows(&mut self.sae, &mut self.encoded, group, rows)? == Edited::Yes {
                edited = Edited::Yes;
            }
        }
        Ok(edited)
    }
}

impl Sequence {
    fn on_rows(
        &mut self,
        sae: &mut Sae,
        encoded: &mut Activations,
        submitted: &[Row],
        rows: &mut [f32],
    ) -> Result<Edited> {
        let d_in = sae.meta().d_in;
        self.trace
            .tokens
            .extend(submitted.iter().map(|row| row.token));
        if self.keep.residuals {
            self.trace.residuals.extend_from_slice(rows);
        }
        if let Some(substitute) = &self.substitute {
            substitute.apply(sae, encoded, submitted, rows)?;
            return Ok(Edited::Yes);
        }
        // Rows are encoded once, whether their features are kept, needed below, or both.
        let activations = if self.keep.features {
            &mut self.trace.activations
        } else {
            encoded.clear();
            encoded
        };
        let first_row_idx = activations.n_rows();
        let needs_encoder = |kind| {
            let steering = self.steering.as_ref();
            steering.is_some_and(|steering| steering.needs_encoder(kind))
        };
        if self.keep.features || submitted.iter().any(|row| needs_encoder(row.token.kind)) {
            sae.encode(rows, activations)?;
        }
        let Some(steering) = &mut self.steering else {
            return Ok(Edited::No);
        };
        let mut edited = Edited::No;
        for (row_idx, (row, Row { token, .. })) in
            (first_row_idx..).zip(rows.chunks_exact_mut(d_in).zip(submitted))
        {
            let decoder_scale = if steering.needs_encoder(token.kind) {
                sae.decoder_scale(row)
            } else {
                1.0
            };
            let encoded = |feature| Encoded {
                activation: activations.get(row_idx, feature),
                decoder_scale,
            };
            if steering.apply(token.kind, row, encoded)? {
                edited = Edited::Yes;
            }
        }
        if self.keep.residuals {
            self.trace.steered_residuals.extend_from_slice(rows);
        }
        Ok(edited)
    }
}

/// Generated bytes, handed out in whole characters: a character may span several tokens.
#[derive(Default)]
struct StreamedText {
    bytes: Vec<u8>,
    n_shown: usize,
}

impl StreamedText {
    fn push(&mut self, append: impl FnOnce(&mut Vec<u8>), on_text: &mut dyn FnMut(&str)) {
        append(&mut self.bytes);
        let new = &self.bytes[self.n_shown..];
        let whole = match std::str::from_utf8(new) {
            Ok(text) => text,
            // A character that is not complete yet; bytes that never form one wait for the end.
            Err(error) => std::str::from_utf8(&new[..error.valid_up_to()]).unwrap_or_default(),
        };
        if !whole.is_empty() {
            on_text(whole);
            self.n_shown += whole.len();
        }
    }

    fn finish(self, on_text: &mut dyn FnMut(&str)) -> String {
        let rest = String::from_utf8_lossy(&self.bytes[self.n_shown..]);
        if !rest.is_empty() {
            on_text(&rest);
        }
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}
