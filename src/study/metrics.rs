//! How well an SAE fits this model: `SAELens`' evaluation (`sae_lens/evals.py`, 6.54), for text and
//! image rows apart. Of a transcoder, what it writes is compared with the rows there, and put in their place.
//!
//! As there, the rows of special tokens ([`Model::is_special`](crate::llama::Model::is_special)) do
//! not count.

mod editors;

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use self::editors::{Reconstruction, Recorder, Substitute, Substitution, Targets};
use crate::llama::AddBos;
use crate::model::Session;
use crate::prompt::Prompt;
use crate::run::{EditorAt, Keep, Request, RunOptions, Scored, Trace, is_scored_as_read};
use crate::study::pictures::contexts;
use crate::{Activations, CancelFlag, Decoder, Error, Kinds, Result, TokenKind};

/// Tokens of a context that texts are cut into, `SAELens`' default; the first one begins a text.
pub const TEXT_CONTEXT: usize = 128;

/// What was seen so far.
#[derive(Clone, Debug)]
pub struct Metrics {
    sae: usize,
    /// How text rows are reconstructed.
    pub text: Fit,
    /// How image rows are.
    pub image: Fit,
    /// How well text tokens are predicted.
    pub loss: Loss,
    special: Vec<i32>,
}

impl Metrics {
    /// Nothing seen yet of one of the model's SAEs, by its place among them.
    ///
    /// # Panics
    /// When there is no such SAE.
    pub fn new(session: &Session, sae: usize) -> Self {
        let meta = session.model().saes()[sae].meta();
        let fit = Fit::new(meta.d_out, meta.d_sae);
        Self {
            sae,
            text: fit.clone(),
            image: fit,
            loss: Loss::default(),
            special: session.language_model().special_tokens(),
        }
    }

    /// Adds a prompt's rows and the losses on its text tokens.
    ///
    /// # Errors
    /// As [`Session::run`]; a cross-layer transcoder ([`Decoder::new`]).
    pub fn add(
        &mut self,
        session: &mut Session,
        prompt: &Prompt,
        cancel: &CancelFlag,
    ) -> Result<()> {
        let prompt = Arc::new(prompt.clone());
        let sae = Arc::clone(&session.model().saes()[self.sae]);
        let logits = Keep {
            logits: true,
            ..Keep::default()
        };
        let (keep, read_apart) = match is_scored_as_read(&prompt) {
            true => (Keep::ALL, None),
            false => (
                logits,
                Some(read(session, self.sae, &prompt, Kinds::ALL, cancel)?),
            ),
        };
        let request = |keep| {
            let options = RunOptions {
                keep,
                cancel: cancel.clone(),
                ..RunOptions::default()
            };
            Request::new(Arc::clone(&prompt), options)
        };
        let substituted = |substitution| {
            let mut request = request(logits);
            request.editors.push(EditorAt {
                read: sae.hook_point(),
                write: sae.outputs()[0],
                editor: Box::new(Substitute {
                    substitution,
                    except: self.special.clone(),
                }),
            });
            request
        };
        let reconstruction = Reconstruction {
            encoder: session.model().encoder(self.sae)?,
            decoder: Decoder::new(Arc::clone(&sae))?,
            rows: Vec::new(),
            activations: Activations::default(),
        };
        let (recorder, targets) = Recorder::of(&sae);
        let mut original = request(keep);
        if read_apart.is_none() {
            original.editors.extend(recorder);
        }
        let requests = vec![
            original,
            substituted(Substitution::Reconstruction(Box::new(reconstruction))),
            substituted(Substitution::Zeros),
        ];
        let engine = session.engine_for(&prompt, 0, 1)?;
        let scored = engine.score(requests, &self.special)?;
        let [original, reconstructed, ablated] = &scored[..] else {
            unreachable!("each request is scored");
        };
        let sum = |scored: &Scored| scored.losses.iter().sum::<f64>();
        self.loss.n_tokens += original.losses.len();
        self.loss.original += sum(original);
        self.loss.reconstructed += sum(reconstructed);
        self.loss.ablated += sum(ablated);
        let (trace, targets) = match &read_apart {
            Some((trace, targets)) => (trace, targets),
            None => (&original.trace, &targets),
        };
        self.add_rows(session, trace, targets, Kinds::ALL)
    }

    /// Adds the image rows of a prompt alone.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn add_image(
        &mut self,
        session: &mut Session,
        prompt: &Prompt,
        cancel: &CancelFlag,
    ) -> Result<()> {
        let (trace, targets) = read(session, self.sae, prompt, Kinds::IMAGE, cancel)?;
        self.add_rows(session, &trace, &targets, Kinds::IMAGE)
    }

    fn add_rows(
        &mut self,
        session: &Session,
        trace: &Trace,
        targets: &Targets,
        kinds: Kinds,
    ) -> Result<()> {
        let seen = &trace.saes[self.sae];
        let sae = &session.model().saes()[self.sae];
        let mut decoder = Decoder::new(Arc::clone(sae))?;
        let targets = targets.lock().unwrap_or_else(PoisonError::into_inner);
        let targets = match sae.meta().is_transcoder() {
            true => &targets,
            false => &seen.residuals,
        };
        let rows = seen.residuals.chunks_exact(sae.meta().d_in);
        let targets = targets.chunks_exact(sae.meta().d_out);
        let mut reconstruction = vec![0.0; sae.meta().d_out];
        for (row_idx, ((row, target), token)) in rows.zip(targets).zip(&trace.tokens).enumerate() {
            let is_special = token.id.is_some_and(|id| self.special.contains(&id));
            if is_special || !kinds.contain(*token) {
                continue;
            }
            decoder.reconstruct(&seen.activations, row_idx, row, &mut reconstruction)?;
            let fit = match token.kind {
                TokenKind::Image => &mut self.image,
                TokenKind::Text | TokenKind::Generated => &mut self.text,
            };
            let mean = sae.ignored_mean(row);
            let centred = |row: &[f32]| -> Vec<f32> { row.iter().map(|x| x - mean).collect() };
            fit.add(
                &centred(target),
                &centred(&reconstruction),
                seen.activations.row(row_idx),
            );
        }
        Ok(())
    }
}

/// The rows of a prompt, the features of these kinds of them, and what a transcoder is to reconstruct.
fn read(
    session: &mut Session,
    sae: usize,
    prompt: &Prompt,
    kinds: Kinds,
    cancel: &CancelFlag,
) -> Result<(Trace, Targets)> {
    let options = RunOptions {
        keep: Keep {
            features: kinds,
            residuals: true,
            logits: false,
        },
        cancel: cancel.clone(),
        ..RunOptions::default()
    };
    let (recorder, targets) = Recorder::of(&session.model().saes()[sae]);
    let editors = recorder.into_iter().collect();
    let run = session.run_edited(prompt, options, editors, &mut |_| ControlFlow::Continue(()))?;
    Ok((run.trace, targets))
}

/// Prompts that hold a text, in contexts of 128 tokens that each begin as a text does.
///
/// # Errors
/// A text without tokens, or with characters that the vocabulary has no token for; an interruption.
pub fn text_prompts(session: &Session, text: &str, cancel: &CancelFlag) -> Result<Vec<Prompt>> {
    let start = session.model().tokenize("", AddBos::Yes, cancel)?;
    let ids = session.model().tokenize(text, AddBos::No, cancel)?;
    if ids.is_empty() {
        return Err(Error::invalid("the text is empty"));
    }
    contexts(session.language_model(), &start, &ids, TEXT_CONTEXT)
}

/// How well rows are reconstructed, and how many features that takes.
#[derive(Clone, Debug)]
pub struct Fit {
    n_rows: usize,
    n_active: usize,
    is_active: Vec<bool>, // [d_sae]: ever
    sums: Vec<f64>,       // [d_in]
    squared_norm: f64,
    squared_residual: f64,
    cosine: f64,
}

impl Fit {
    fn new(d_in: usize, d_sae: usize) -> Self {
        Self {
            n_rows: 0,
            n_active: 0,
            is_active: vec![false; d_sae],
            sums: vec![0.0; d_in],
            squared_norm: 0.0,
            squared_residual: 0.0,
            cosine: 0.0,
        }
    }

    fn add(
        &mut self,
        row: &[f32],
        reconstruction: &[f32],
        active: impl Iterator<Item = (usize, f32)>,
    ) {
        self.n_rows += 1;
        for (feature, _) in active {
            self.n_active += 1;
            self.is_active[feature] = true;
        }
        let (mut norm, mut reconstructed_norm, mut product) = (0.0, 0.0, 0.0);
        for ((sum, &x), &y) in self.sums.iter_mut().zip(row).zip(reconstruction) {
            let (x, y) = (f64::from(x), f64::from(y));
            *sum += x;
            norm += x * x;
            reconstructed_norm += y * y;
            product += x * y;
            self.squared_residual += (x - y) * (x - y);
        }
        self.squared_norm += norm;
        if product != 0.0 {
            self.cosine += product / (norm * reconstructed_norm).sqrt();
        }
    }

    /// The number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// `l0`: active features of a row, on average.
    pub fn l0(&self) -> Option<f64> {
        self.mean(self.n_active as f64)
    }

    /// `mse`: `‖x − x̂‖²`, a sum over dimensions, averaged over rows.
    pub fn mse(&self) -> Option<f64> {
        self.mean(self.squared_residual)
    }

    /// `cossim`: the cosine of `x` and `x̂`, averaged over rows.
    pub fn cosine(&self) -> Option<f64> {
        self.mean(self.cosine)
    }

    /// `explained_variance`: `1 − E‖x − x̂‖² / (E‖x‖² − ‖E x‖²)`; none of rows that are all alike.
    pub fn explained_variance(&self) -> Option<f64> {
        let n = self.n_rows as f64;
        let mean_squares: f64 = self.sums.iter().map(|sum| (sum / n).powi(2)).sum();
        let variance = self.mean(self.squared_norm)? - mean_squares;
        (variance > 1e-10).then(|| 1.0 - self.squared_residual / n / variance)
    }

    /// The share of features whose `feature_density` is 0: those that were active in no row.
    pub fn never_active(&self) -> Option<f64> {
        let n_never = self
            .is_active
            .iter()
            .filter(|is_active| !**is_active)
            .count();
        (self.n_rows > 0).then(|| n_never as f64 / self.is_active.len() as f64)
    }

    fn mean(&self, sum: f64) -> Option<f64> {
        (self.n_rows > 0).then(|| sum / self.n_rows as f64)
    }
}

/// How well text tokens are predicted: sums of cross-entropies, in nats.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    n_tokens: usize,
    original: f64,
    reconstructed: f64,
    ablated: f64,
}

impl Loss {
    /// The number of predicted tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// `ce_loss_without_sae`: of the model as it is, in nats a token.
    pub fn without_sae(&self) -> Option<f64> {
        self.mean(self.original)
    }

    /// `ce_loss_with_sae`: with the SAE's reconstruction in place of all rows at its hook.
    pub fn with_sae(&self) -> Option<f64> {
        self.mean(self.reconstructed)
    }

    /// `ce_loss_with_ablation`: with zeros in their place.
    pub fn with_ablation(&self) -> Option<f64> {
        self.mean(self.ablated)
    }

    /// `ce_loss_score`: the part of what zeros cost that the reconstruction saves.
    pub fn score(&self) -> Option<f64> {
        let cost = self.ablated - self.original;
        (cost != 0.0).then(|| (self.ablated - self.reconstructed) / cost)
    }

    /// Whether the text is no less likely with zeros than as the model is, so that there is nothing
    /// that a reconstruction could save, and the score says nothing.
    pub fn zeros_cost_nothing(&self) -> bool {
        self.n_tokens > 0 && self.ablated <= self.original
    }

    fn mean(&self, sum: f64) -> Option<f64> {
        (self.n_tokens > 0).then(|| sum / self.n_tokens as f64)
    }
}
