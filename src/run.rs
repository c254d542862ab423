//! One run of a prompt: rows announced, decoded, seen by the hook, and the text that follows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::llama::{Context, Edited, Model, Output, RowHook, Rows, Sampler, Sampling, Special};
use crate::prompt::{Prompt, Segment};
use crate::sae::{Activations, Sae};
use crate::steering::{Encoded, Steering};
use crate::tokens::{Cursor, Token};
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
    /// The rows before interventions, `[n_rows, d_model]`; empty where not kept.
    pub residuals: Vec<f32>,
    /// The rows after interventions, `[n_rows, d_model]`; empty where not kept or not steered.
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
    /// The generation's time.
    pub generate_time: Duration,
}

/// Runs `prompt` in `context`, whose hook is on the graph node `node_name`, and generates.
/// `on_text` gets the text as it comes, in whole characters.
pub(crate) fn run(
    context: &mut Context<Tap>,
    node_name: &str,
    model: &Model,
    interrupt: &AtomicBool,
    prompt: &Prompt,
    options: RunOptions<'_>,
    on_text: &mut dyn FnMut(&str),
) -> Result<Run> {
    let mut decoder = Decoder::start(context, node_name, options);
    let start = Instant::now();
    for (i, segment) in prompt.segments().iter().enumerate() {
        let is_last = i + 1 == prompt.segments().len();
        decoder.decode_segment(segment, is_last)?;
    }
    let prompt_time = start.elapsed();
    let logits = decoder.context.logits().to_vec();
    if logits.iter().any(|logit| logit.is_nan()) {
        return Err(Error::invalid("the model's logits are not numbers")
            .with_hint("use smaller strengths; without interventions, convert the model again"));
    }
    let start = Instant::now();
    let mut sampler = Sampler::new(model, options.sampling);
    let mut text = StreamedText::default();
    let mut token_ids = Vec::new();
    let stop = loop {
        if token_ids.len() == options.max_tokens {
            break Stop::Length;
        }
        if interrupt.load(Ordering::Relaxed) {
            break Stop::Interrupted;
        }
        let id = sampler.sample(decoder.context);
        if model.is_end(id) {
            break Stop::End;
        }
        token_ids.push(id);
        text.push(
            |bytes| model.append_piece(id, Special::Hide, bytes),
            on_text,
        );
        if token_ids.len() == options.max_tokens {
            break Stop::Length;
        }
        if decoder.context.is_full() {
            log::warn!("the text ends here because the context is full");
            break Stop::Length;
        }
        match decoder.decode_generated(id) {
            Err(Error::Interrupted) => break Stop::Interrupted,
            other => other?,
        }
    };
    Ok(Run {
        text: text.finish(on_text),
        token_ids,
        stop,
        logits,
        trace: decoder.finish(),
        prompt_time,
        generate_time: start.elapsed(),
    })
}

/// One run's way through a context: announces rows, decodes them, checks that the hook saw them.
struct Decoder<'a> {
    context: &'a mut Context<Tap>,
    node_name: &'a str,
    hooked: bool,
}

impl<'a> Decoder<'a> {
    fn start(context: &'a mut Context<Tap>, node_name: &'a str, options: RunOptions<'_>) -> Self {
        context.clear();
        let hooked = options.steering.is_some() || options.keep != Keep::default();
        context.enable_hook(hooked);
        let tap = context.hook();
        tap.cursor.clear();
        tap.trace = Trace::default();
        tap.keep = options.keep;
        tap.steering = options.steering.cloned();
        Self {
            context,
            node_name,
            hooked,
        }
    }

    fn decode_segment(&mut self, segment: &Segment, is_last: bool) -> Result<()> {
        let output = if is_last {
            Output::LastRow
        } else {
            Output::None
        };
        match segment {
            Segment::Text(ids) => {
                let tokens = ids.iter().map(|&id| Token::text(id));
                self.decode(tokens, Rows::Tokens(ids), output)
            }
            Segment::Image(rows) => {
                let n_rows = rows.len() / self.context.d_model();
                let tokens = std::iter::repeat_n(Token::image(), n_rows);
                self.decode(tokens, Rows::Embeddings(rows), output)
            }
        }
    }

    fn decode_generated(&mut self, id: i32) -> Result<()> {
        self.decode([Token::generated(id)], Rows::Tokens(&[id]), Output::LastRow)
    }

    fn decode(
        &mut self,
        tokens: impl IntoIterator<Item = Token>,
        rows: Rows<'_>,
        output: Output,
    ) -> Result<()> {
        self.context.hook().cursor.submit(tokens);
        self.context.decode(rows, output)?;
        if self.hooked {
            self.context.hook().cursor.finish_decode(self.node_name)?;
        }
        Ok(())
    }

    fn finish(self) -> Trace {
        let tap = self.context.hook();
        let mut trace = std::mem::take(&mut tap.trace);
        trace.tokens = tap.cursor.seen().to_vec();
        trace
    }
}

/// The hook: copies rows out, computes features, applies interventions.
pub(crate) struct Tap {
    pub(crate) sae: Sae,
    cursor: Cursor,
    keep: Keep,
    steering: Option<Steering>,
    trace: Trace,
    encoded: Activations, // of the rows at hand, where interventions need them and they are not kept
}

impl Tap {
    pub(crate) fn new(sae: Sae) -> Self {
        Self {
            sae,
            cursor: Cursor::default(),
            keep: Keep::default(),
            steering: None,
            trace: Trace::default(),
            encoded: Activations::default(),
        }
    }
}

impl RowHook for Tap {
    fn on_rows(&mut self, rows: &mut [f32]) -> Result<Edited> {
        let d_model = self.sae.meta().d_in;
        let tokens = self.cursor.advance(rows.len() / d_model)?;
        if self.keep.residuals {
            self.trace.residuals.extend_from_slice(rows);
        }
        // Rows are encoded once, whether their features are kept, needed below, or both.
        let activations = if self.keep.features {
            &mut self.trace.activations
        } else {
            self.encoded.clear();
            &mut self.encoded
        };
        let first_row_idx = activations.n_rows();
        let needs_encoder = |kind| {
            let steering = self.steering.as_ref();
            steering.is_some_and(|steering| steering.needs_encoder(kind))
        };
        if self.keep.features || tokens.iter().any(|token| needs_encoder(token.kind)) {
            self.sae.encode(rows, activations)?;
        }
        let Some(steering) = &mut self.steering else {
            return Ok(Edited::No);
        };
        let mut edited = Edited::No;
        for (row_idx, (row, token)) in
            (first_row_idx..).zip(rows.chunks_exact_mut(d_model).zip(tokens))
        {
            let decoder_scale = if steering.needs_encoder(token.kind) {
                self.sae.decoder_scale(row)
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
