//! Why a word: the features, and their positions, that raised its probability in an answer.
//!
//! Each candidate is ablated by itself, and the answer's tokens up to the word are read again; what the word's
//! log-probability loses by that is the candidate's effect. Effects need not sum: features may do the same twice,
//! or only together.

mod ablations;
mod candidates;
mod word;

use std::ops::Range;
use std::sync::Arc;

use crate::llama::{AddBos, Special};
use crate::model::Session;
use crate::prompt::{Prompt, Segment};
use crate::run::{Keep, RunOptions, Stop, Trace};
use crate::steering::Positions;
use crate::{CancelFlag, Error, FeatureId, Kinds, Result, Sampling, Site, TokenKind};

use self::ablations::{Asked, Effects, Progress};
use self::candidates::{Candidate, Group, candidates};

/// The causes whose patches are ablated one by one.
const N_BY_PATCH: usize = 3;

/// What is explained, and how much is tried for it.
#[derive(Clone, Debug)]
pub struct ExplainOptions {
    /// Where the answer comes from.
    pub answer: Answer,
    /// Features, each at positions of one kind, that are ablated: those that are largest there.
    pub n_candidates: usize,
    /// The patches, of each of the three features that raised the word most at an image's, where it is ablated
    /// alone: those where it is most active.
    pub n_patches: usize,
    /// Stops everything from elsewhere.
    pub cancel: CancelFlag,
}

/// Where an answer comes from.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The model gives it.
    Generated {
        /// Its longest length.
        max_tokens: usize,
        /// How tokens are chosen.
        sampling: Sampling,
    },
    /// It is this text, whatever the model would say.
    Given(String),
}

/// What raised a word of an answer.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The answer's text: before the word's tokens, of these, and behind them.
    pub pieces: [String; 3],
    /// The answer's tokens.
    pub token_ids: Vec<i32>,
    /// Which of them are the word's.
    pub word: Range<usize>,
    /// Why the answer ended; none where it was given.
    pub stop: Option<Stop>,
    /// The word's log-probability, in nats: the sum over its tokens, each behind the prompt and the answer's tokens
    /// before it.
    pub log_prob: f64,
    /// The pairs of a feature and positions among which candidates were chosen.
    pub n_active: usize,
    /// What was ablated, by what that took from the word's log-probability, the most first.
    pub causes: Vec<Cause>,
}

/// A feature at some positions, and what it did for the word.
#[derive(Clone, Debug, PartialEq)]
pub struct Cause {
    /// The feature.
    pub feature: FeatureId,
    /// All rows of an image, a row of the prompt's text, or the answer's tokens.
    pub at: Positions,
    /// Where it is active, and its activations there.
    pub active: Vec<(usize, f32)>,
    /// How much higher the word's log-probability is than with the feature ablated there, in nats.
    pub effect: f64,
    /// What it does to the logit of the word's first token in the row that predicts it, straight through the
    /// unembedding: its activation there times its decoder row's logit above the mean
    /// ([`TokenEffects`](crate::TokenEffects)), before the final norm's division. None at other positions, from
    /// which only attention leads to the word, and outside the residual stream.
    pub direct_effect: Option<f32>,
    /// Patches where it was ablated alone, by their effect, the largest first; empty for most.
    pub patches: Vec<PatchCause>,
    /// The effect at all of these patches together; none where there are none.
    pub patches_effect: Option<f64>,
}

/// A feature at one patch, and what it did for the word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchCause {
    /// The patch's row of the prompt.
    pub position: usize,
    /// The feature's activation there.
    pub activation: f32,
    /// As [`Cause::effect`].
    pub effect: f64,
}

/// How far an explanation has come.
#[derive(Clone, Copy, Debug)]
pub struct Ablated {
    /// Ablations that have run.
    pub n_done: usize,
    /// All that there are, as far as is known.
    pub n_in_all: usize,
}

/// An answer, and what the hooks saw on the way to it.
struct Answered {
    ids: Vec<i32>,
    stop: Option<Stop>,
    trace: Trace,
}

impl Session {
    /// Explains the first place of `word` in the answer to a prompt: the features active at the prompt's images, at
    /// each token of its text but special ones, and in the answer before the word are ablated, those first whose
    /// part of the rows is largest. `on_ablated` hears how far it has come.
    ///
    /// # Errors
    /// As [`Session::run`]; a word without characters, or one that is not in the answer; an interruption.
    pub fn explain(
        &mut self,
        prompt: &Prompt,
        word: &str,
        options: &ExplainOptions,
        on_ablated: &mut dyn FnMut(Ablated),
    ) -> Result<Explanation> {
        let word = word.trim();
        if word.is_empty() {
            return Err(Error::invalid("the word that is to be explained is empty")
                .with_hint("give a word of the answer"));
        }
        let Answered { ids, stop, trace } = self.answer(prompt, options)?;
        let mut pieces = Vec::new();
        for &id in &ids {
            let mut piece = Vec::new();
            let model = self.language_model();
            model.append_piece(id, Special::Hide, &mut piece)?;
            pieces.push(piece);
        }
        let found =
            word::find(&pieces, word).ok_or_else(|| not_in_answer(word, &pieces.concat()))?;
        let text =
            |range: Range<usize>| String::from_utf8_lossy(&pieces[range].concat()).into_owned();
        let pieces = [
            text(0..found.start),
            text(found.clone()),
            text(found.end..ids.len()),
        ];
        let n_prompt = prompt.tokens().len();
        let n_rows = n_prompt + found.end - 1; // the last one predicts the word's last token
        let asked = Asked {
            prompt: Arc::new(prompt.clone()),
            ids: ids[..found.end].to_vec(),
            word: found.clone(),
            cancel: options.cancel.clone(),
        };
        let mut chosen = candidates(self.model().saes(), &trace, n_prompt, n_rows);
        let n_active = chosen.len();
        chosen.truncate(options.n_candidates);
        let (log_prob, causes) =
            self.causes(&asked, chosen, &trace, options.n_patches, on_ablated)?;
        Ok(Explanation {
            pieces,
            token_ids: ids,
            word: found,
            stop,
            log_prob,
            n_active,
            causes,
        })
    }

    fn answer(&mut self, prompt: &Prompt, options: &ExplainOptions) -> Result<Answered> {
        let mut run = RunOptions {
            keep: Keep {
                features: Kinds::ALL,
                residuals: true,
                logits: false,
            },
            cancel: options.cancel.clone(),
            ..RunOptions::default()
        };
        match &options.answer {
            Answer::Generated {
                max_tokens,
                sampling,
            } => {
                run.max_tokens = *max_tokens;
                run.sampling = *sampling;
                let run = self.run(prompt, run)?;
                match run.stop {
                    Stop::Interrupted => Err(Error::interrupted()),
                    stop => Ok(Answered {
                        ids: run.token_ids,
                        stop: Some(stop),
                        trace: run.trace,
                    }),
                }
            }
            Answer::Given(text) => {
                let cancel = &options.cancel;
                let ids = self.model().tokenize(text, AddBos::No, cancel)?;
                let mut segments = prompt.segments().to_vec();
                segments.push(Segment::Text(ids.clone()));
                let read = Prompt::of_segments(self.language_model(), segments)?;
                Ok(Answered {
                    ids,
                    stop: None,
                    trace: self.run(&read, run)?.trace,
                })
            }
        }
    }

    /// The word's log-probability, and what ablating each candidate does to it.
    fn causes(
        &mut self,
        asked: &Asked,
        chosen: Vec<Candidate>,
        trace: &Trace,
        n_patches: usize,
        on_ablated: &mut dyn FnMut(Ablated),
    ) -> Result<(f64, Vec<Cause>)> {
        let tokens = asked.prompt.tokens();
        let images = tokens.iter().filter_map(|token| token.image);
        let n_images = images.max().map_or(0, |last| last + 1);
        let direct = self.direct_effects(asked, &chosen, trace)?;
        let cause = |(one, direct_effect): (Candidate, _)| Cause {
            feature: one.feature,
            at: one.group.positions(n_images),
            active: one.active,
            effect: 0.0,
            direct_effect,
            patches: Vec::new(),
            patches_effect: None,
        };
        let mut causes: Vec<Cause> = chosen.into_iter().zip(direct).map(cause).collect();
        let ablations = causes.iter().map(|cause| (cause.feature, cause.at.clone()));
        let ablations: Vec<_> = ablations.collect();
        let mut progress = Progress {
            done: Ablated {
                n_done: 0,
                n_in_all: ablations.len(),
            },
            on_ablated,
        };
        let Effects { log_prob, effects } = self.effects(asked, &ablations, &mut progress)?;
        for (cause, effect) in causes.iter_mut().zip(effects) {
            cause.effect = effect;
        }
        // Of equals, the larger candidate comes first.
        causes.sort_by(|a, b| b.effect.total_cmp(&a.effect));
        let is_of_image = |cause: &Cause| {
            let token = tokens.get(cause.active[0].0);
            token.is_some_and(|token| token.kind == TokenKind::Image)
        };
        let raised = causes.iter_mut().filter(|cause| cause.effect > 0.0);
        let by_patch = raised.filter(|cause| is_of_image(cause)).take(N_BY_PATCH);
        let by_patch: Vec<&mut Cause> = by_patch.collect();
        if n_patches > 0 && !by_patch.is_empty() {
            self.add_patches(asked, by_patch, n_patches, &mut progress)?;
        }
        Ok((log_prob, causes))
    }

    /// Ablates each of these causes at single patches, and at all of those together.
    fn add_patches(
        &mut self,
        asked: &Asked,
        mut causes: Vec<&mut Cause>,
        n_patches: usize,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        let mut ablations = Vec::new();
        for cause in &mut causes {
            let mut active = cause.active.clone();
            active.sort_by(|a, b| b.1.total_cmp(&a.1));
            active.truncate(n_patches);
            let patch = |&(position, activation): &(usize, f32)| PatchCause {
                position,
                activation,
                effect: 0.0,
            };
            cause.patches = active.iter().map(patch).collect();
            let places: Vec<String> = active.iter().map(|(i, _)| i.to_string()).collect();
            for words in places.iter().chain([&places.join(",")]) {
                let at = Positions::parse(words).expect("indices");
                ablations.push((cause.feature, at));
            }
        }
        progress.done.n_in_all += ablations.len();
        let found = self.effects(asked, &ablations, progress)?;
        let mut effects = found.effects.into_iter();
        for cause in causes {
            for (patch, effect) in cause.patches.iter_mut().zip(&mut effects) {
                patch.effect = effect;
            }
            cause.patches_effect = effects.next();
            cause.patches.sort_by(|a, b| b.effect.total_cmp(&a.effect));
        }
        Ok(())
    }

    /// What each candidate does by itself in the row that predicts the word's first token.
    fn direct_effects(
        &self,
        asked: &Asked,
        chosen: &[Candidate],
        trace: &Trace,
    ) -> Result<Vec<Option<f32>>> {
        let saes = self.model().saes();
        let n_prompt = asked.prompt.tokens().len();
        let predicting = n_prompt + asked.word.start - 1;
        let group = match asked.word.start {
            0 => Group::Text(predicting),
            _ => Group::Generated,
        };
        let is_there = |one: &Candidate| {
            let outputs = saes[one.feature.sae].outputs();
            one.group == group
                && outputs
                    .iter()
                    .all(|output| output.site() == Site::ResidPost)
        };
        let there: Vec<usize> = (0..chosen.len())
            .filter(|&i| is_there(&chosen[i]))
            .collect();
        let features: Vec<FeatureId> = there.iter().map(|&i| chosen[i].feature).collect();
        let id = asked.ids[asked.word.start];
        let logits = self.model().direct_logits(&features, id)?;
        let mut effects = vec![None; chosen.len()];
        for (i, logit) in there.into_iter().zip(logits) {
            let one = &chosen[i];
            let sae = &saes[one.feature.sae];
            let rows = &trace.saes[one.feature.sae].residuals;
            let row = rows.chunks_exact(sae.meta().d_in).nth(predicting);
            let scale = sae.decoder_scale(row.expect("the row was seen"));
            let mut active = one.active.iter();
            let found = active.find(|(position, _)| *position == predicting);
            let activation = found.map_or(0.0, |(_, activation)| *activation);
            effects[i] = Some(activation * scale * logit);
        }
        Ok(effects)
    }
}

fn not_in_answer(word: &str, answer: &[u8]) -> Error {
    let answer = String::from_utf8_lossy(answer);
    let what = format!(
        "the word `{word}` is not in the answer: `{}`",
        answer.trim()
    );
    Error::invalid(what).with_hint("take a word of the answer, or give an answer that has it")
}
