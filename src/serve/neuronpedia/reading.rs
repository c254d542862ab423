//! Prompts, and what is seen in their rows: the model stops behind the hook, and generates nothing.

use std::sync::{Arc, Mutex, PoisonError};

use super::names::Source;
use super::wire::{IMAGE, Prompt};
use crate::llama::Edited;
use crate::serve::app::App;
use crate::serve::prepare::Prepared;
use crate::serve::refusal::Refusal;
use crate::steering::Vector;
use crate::{
    Activations, Editor, EditorAt, Keep, Kinds, Request, RunOptions, Token, TokenKind, Trace,
};

/// The most prompts of a request.
const MAX_PROMPTS: usize = 4;

/// A prompt that was read.
pub(super) struct Seen {
    /// Its rows.
    pub(super) rows: Vec<Row>,
    trace: Trace,
}

/// A row of a prompt.
pub(super) struct Row {
    /// The token's text.
    pub(super) text: String,
    /// Whether it structures the prompt, or is of an image.
    pub(super) is_special: bool,
    /// Whether it is the vocabulary's token for the beginning of a sequence.
    pub(super) is_bos: bool,
}

impl Seen {
    fn new(app: &App, prompt: &Prepared, trace: Trace) -> Self {
        let tokens = prompt.prompt.tokens().iter();
        Self {
            rows: tokens.map(|&token| Row::new(app, token)).collect(),
            trace,
        }
    }

    pub(super) fn activations(&self, source: &Source) -> &Activations {
        &self.trace.saes[source.sae].activations
    }

    /// How many rows in front are the beginning of the sequence: one or none.
    pub(super) fn n_bos(&self) -> usize {
        usize::from(self.rows.first().is_some_and(|row| row.is_bos))
    }

    pub(super) fn texts(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.text.clone()).collect()
    }
}

impl Row {
    fn new(app: &App, token: Token) -> Self {
        let text = app.model.token_text(token);
        Self {
            text: text.unwrap_or_else(|| IMAGE.to_owned()),
            is_special: token.is_special || token.kind == TokenKind::Image,
            is_bos: token.id.is_some() && token.id == app.model.language_model().bos(),
        }
    }
}

/// The decoder rows' lengths, by which activations are multiplied where decoder rows are brought to length 1
/// (`fold_W_dec_norm` in `SAELens`' `saes/sae.py`).
pub(super) fn decoder_norms<'a>(app: &'a App, source: &Source) -> &'a [f32] {
    app.model.saes()[source.sae].decoder_norm()
}

/// Reads the features of prompts, all side by side.
pub(super) async fn features(app: &Arc<App>, prompts: Vec<Prompt>) -> Result<Vec<Seen>, Refusal> {
    let keep = Keep {
        features: Kinds::ALL,
        ..Keep::default()
    };
    let prepared = prepare(app, prompts).await?;
    read(app, &prepared, keep, |_| None).await
}

/// Reads prompts, and the products of their rows with a vector.
pub(super) async fn products(
    app: &Arc<App>,
    prompts: Vec<Prompt>,
    vector: &Vector,
) -> Result<Vec<(Seen, Vec<f32>)>, Refusal> {
    let place = vector.hook_point();
    let width = app.model.site(place)?.hooked.width;
    if vector.values().len() != width {
        return Err(vector.of_another_width(width).into());
    }
    // All rows are read up to the hook.
    let keep = Keep {
        residuals: true,
        ..Keep::default()
    };
    let prepared = prepare(app, prompts).await?;
    let products: Vec<_> = prepared.iter().map(|_| Products::default()).collect();
    let editor = |i: usize| {
        let editor = Box::new(Multiplier {
            vector: vector.values().to_vec(),
            products: Products::clone(&products[i]),
        });
        Some(EditorAt {
            read: place,
            write: place,
            editor,
        })
    };
    let seen = read(app, &prepared, keep, editor).await?;
    let taken = products.iter().map(|products| {
        let mut products = products.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *products)
    });
    Ok(seen.into_iter().zip(taken).collect())
}

async fn prepare(app: &Arc<App>, prompts: Vec<Prompt>) -> Result<Vec<Prepared>, Refusal> {
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        let what = format!(
            "`prompts` has {}: a request has 1 to {MAX_PROMPTS}",
            prompts.len()
        );
        return Err(Refusal::about("prompts", what));
    }
    let mut prepared = Vec::new();
    for prompt in prompts {
        prepared.push(app.prepare(prompt.asked()).await?);
    }
    Ok(prepared)
}

async fn read(
    app: &App,
    prepared: &[Prepared],
    keep: Keep,
    editor: impl Fn(usize) -> Option<EditorAt>,
) -> Result<Vec<Seen>, Refusal> {
    let request = |(i, prepared): (usize, &Prepared)| {
        let options = RunOptions {
            keep,
            ..RunOptions::default()
        };
        let mut request = Request::new(Arc::clone(&prepared.prompt), options);
        request.editors.extend(editor(i));
        request
    };
    let requests = prepared.iter().enumerate().map(request).collect();
    let runs = app.runs.ask(requests).end().await?;
    let seen = prepared.iter().zip(runs);
    Ok(seen
        .map(|(prepared, run)| Seen::new(app, prepared, run.trace))
        .collect())
}

/// Computes what is answered to each prompt, which may take long, while this thread's other work goes elsewhere.
pub(super) fn answers<T, A: FromIterator<T>>(
    seen: &[Seen],
    of_prompt: impl FnMut(&Seen) -> T,
) -> A {
    tokio::task::block_in_place(|| seen.iter().map(of_prompt).collect())
}

type Products = Arc<Mutex<Vec<f32>>>;

/// Multiplies rows with a vector, and changes none.
struct Multiplier {
    vector: Vec<f32>, // [d_in]
    products: Products,
}

impl Editor for Multiplier {
    fn read(&mut self, rows: &[f32], _tokens: &[Token]) -> crate::Result<()> {
        let product = |row: &[f32]| -> f64 {
            let terms = row.iter().zip(&self.vector);
            terms.map(|(&x, &v)| f64::from(x) * f64::from(v)).sum()
        };
        let rows = rows.chunks_exact(self.vector.len());
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        products.extend(rows.map(|row| product(row) as f32));
        Ok(())
    }

    fn write(&mut self, _rows: &mut [f32], _tokens: &[Token]) -> crate::Result<Edited> {
        Ok(Edited::No)
    }
}
