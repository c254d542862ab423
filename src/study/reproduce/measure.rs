//! Pictures through the model: the features that they activate, and what is said of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::control::random_features;
use super::protocol::{Protocol, ProtocolPrompt, only_sae};
use super::report::{File, Machine, PicturesOfClass, PromptReport, ReadToken, Report, Settings};
use super::verdict::{self, Caption, ControlCaption, SteeredPicture};
use crate::rank::{self, FeatureScore, Over};
use crate::steering::{Change, Intervention, Positions, Steering, Units};
use crate::{
    CancelFlag, Error, FeatureId, HookedModel, ImageEmbeddings, Keep, ModelFiles, Picture, Prompt,
    PromptForm, Result, RunOptions, Sae, ScoredRun, Session, TokenKind, Trace, holds_word,
};

/// Positions whose tokens a report names, at most.
const MAX_NAMED: usize = 8;

/// The pictures of one of a protocol's classes.
#[derive(Clone, Debug)]
pub struct ClassPictures {
    /// The class.
    pub name: String,
    /// Its pictures; none where there is no folder of that name.
    pub paths: Vec<PathBuf>,
}

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// So many steps follow: each picture is one, and each that is described is one for each prompt.
    Start {
        /// The number of steps.
        n_steps: usize,
    },
    /// A step is done.
    Step,
    /// A picture cannot be read, and is left out.
    Skipped(&'a Error),
}

/// A protocol on someone's pictures.
pub struct Experiment<'a> {
    /// The protocol.
    pub protocol: &'a Protocol,
    /// A class's pictures for each of its classes, in that order.
    pub pictures: &'a [ClassPictures],
    /// The session's files.
    pub files: &'a ModelFiles,
    /// Stops it from elsewhere.
    pub cancel: &'a CancelFlag,
}

/// What the pictures have shown.
struct Seen {
    folders: Vec<PicturesOfClass>,
    /// The features of each picture, `[n_prompts][n_classes][n_pictures]`.
    scores: Vec<Vec<Vec<Vec<FeatureScore>>>>,
    /// The text tokens that are read with each prompt.
    read_tokens: Vec<Vec<ReadToken>>,
    /// The pictures that are to be described, and their names.
    described: Vec<(String, ImageEmbeddings)>,
}

/// The interventions on one described picture.
struct Plan {
    /// The protocol's strengths, and behind them those of `controls`.
    steerings: Vec<Arc<Steering>>,
    /// Random features, with the strengths of the steered feature that they stand beside.
    controls: Vec<(usize, f32)>,
}

impl Experiment<'_> {
    /// Runs it: first all pictures are read, of which the session's image cache, where it has one, keeps the
    /// encoder's part, then some are described. `on_event` is told what happens.
    ///
    /// # Errors
    /// An SAE that the protocol is not about, or without the labels by which it finds features; files that cannot be read, positions that the prompts do not
    /// have, a cancellation, a failure of llama.cpp.
    ///
    /// # Panics
    /// When `pictures` has other classes than the protocol.
    pub fn run(
        &self,
        session: &mut Session,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Report> {
        let classes = self.protocol.reading.classes.iter();
        let classes = classes.map(|class| &class.name);
        assert!(classes.eq(self.pictures.iter().map(|class| &class.name)));
        self.protocol.check_sae(&only_sae(self.files)?)?;
        let protocol = self.protocol.with_found_features(session.sae())?;
        let found = Experiment {
            protocol: &protocol,
            ..*self
        };
        found.run_with_features(session, on_event)
    }

    /// Runs a protocol that names all of its features.
    fn run_with_features(
        &self,
        session: &mut Session,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Report> {
        let protocol = self.protocol;
        let sae = Arc::clone(session.sae());
        // Whatever can be refused is, before hours of work.
        let plans = self.plans(session.model(), &sae)?;
        let files = File::of_model(self.files, self.cancel)?;
        on_event(Event::Start {
            n_steps: self.n_steps(),
        });
        let seen = self.read_all(session, on_event)?;
        let label = |feature: usize| sae.label(feature).map(str::to_owned);
        let mut reports = Vec::new();
        let of_prompts = seen.scores.iter().zip(seen.read_tokens);
        for (prompt, (scores, read_tokens)) in protocol.prompts.iter().zip(of_prompts) {
            let mut steering = Vec::new();
            for ((name, image), plan) in seen.described.iter().zip(&plans) {
                let prompt = self.prompt(session, prompt, image)?;
                steering.push(self.describe(session, &prompt, name, plan)?);
                on_event(Event::Step);
            }
            let reading = verdict::read_classes(&protocol.reading, scores, &label);
            reports.push(PromptReport {
                name: prompt.name.clone(),
                is_judged: prompt.name == protocol.judged_prompt,
                read_tokens,
                claims: verdict::claims(protocol, &reading, &steering),
                reading,
                steering,
            });
        }
        let options = session.model().options();
        Ok(Report::new(
            protocol,
            Machine::of(options),
            files,
            Settings::of(options, self.files.image_prep_name(options.image_prep)?),
            seen.folders,
            reports,
        ))
    }

    fn n_steps(&self) -> usize {
        let Protocol {
            prompts, steering, ..
        } = self.protocol;
        let n_pictures = self.pictures.iter().map(|class| class.paths.len());
        let described = self
            .pictures
            .iter()
            .find(|class| class.name == steering.class);
        let n_described = described.map_or(0, |class| class.paths.len().min(steering.pictures));
        n_pictures.sum::<usize>() + n_described * prompts.len()
    }

    /// What is done to each picture that is described.
    fn plans(&self, model: &HookedModel, sae: &Sae) -> Result<Vec<Plan>> {
        let steered = &self.protocol.steering;
        let at = Positions::parse(&steered.at)?;
        let add = |feature, strength, units| {
            let change = Change::steer(strength);
            model.steering(vec![Intervention {
                at: at.clone(),
                units,
                ..Intervention::new(FeatureId::of_only(feature), change)
            }])
        };
        let feature = steered.feature.expect("it is named, or was found");
        let norm = sae.decoder_norm()[feature];
        let strengths = steered.strengths.iter();
        let of_feature = strengths.map(|&strength| add(feature, strength, Units::Raw));
        let of_feature: Vec<_> = of_feature.collect::<Result<_>>()?;
        let plan = |features: Vec<usize>| {
            let mut plan = Plan {
                steerings: of_feature.clone(),
                controls: Vec::new(),
            };
            for feature in features {
                for &strength in &steered.judged_strengths {
                    let steering = add(feature, strength * norm, Units::Unit)?;
                    plan.steerings.push(steering);
                    plan.controls.push((feature, strength));
                }
            }
            Ok(plan)
        };
        let features = random_features(self.protocol, sae)?;
        features.into_iter().map(plan).collect()
    }

    /// Reads the features of all pictures with each prompt.
    fn read_all(&self, session: &mut Session, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Seen> {
        let Protocol {
            prompts, steering, ..
        } = self.protocol;
        let mut seen = Seen {
            folders: Vec::new(),
            scores: vec![Vec::new(); prompts.len()],
            read_tokens: vec![Vec::new(); prompts.len()],
            described: Vec::new(),
        };
        for class in self.pictures {
            let mut unreadable = Vec::new();
            for scores in &mut seen.scores {
                scores.push(Vec::new());
            }
            for path in &class.paths {
                match self.encode(session, path)? {
                    Ok(image) => {
                        for (i, prompt) in prompts.iter().enumerate() {
                            let prompt = self.prompt(session, prompt, &image)?;
                            let (scores, tokens) = self.read(session, &prompt)?;
                            let of_class = seen.scores[i].last_mut().expect("it has begun");
                            of_class.push(scores);
                            seen.read_tokens[i] = tokens;
                        }
                        let is_described = class.name == steering.class
                            && seen.described.len() < steering.pictures;
                        if is_described {
                            seen.described.push((file_name(path), image));
                        }
                    }
                    Err(error) => {
                        on_event(Event::Skipped(&error));
                        unreadable.push(file_name(path));
                    }
                }
                on_event(Event::Step);
            }
            seen.folders.push(PicturesOfClass {
                class: class.name.clone(),
                n_pictures: class.paths.len(),
                unreadable,
            });
        }
        Ok(seen)
    }

    /// Encodes a picture; the inner error is the picture's own.
    fn encode(&self, session: &Session, path: &Path) -> Result<Result<ImageEmbeddings>> {
        if self.cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        match Picture::open(path).and_then(|picture| session.encode_image(&picture)) {
            Err(error) if !error.is_of_input() => Err(error),
            image => Ok(image),
        }
    }

    fn prompt(
        &self,
        session: &Session,
        prompt: &ProtocolPrompt,
        image: &ImageEmbeddings,
    ) -> Result<Prompt> {
        let model = session.model();
        model.prompt(&prompt.text, PromptForm::Raw, &[image], self.cancel)
    }

    /// The features of a picture, and the text tokens that are read, where they are few.
    fn read(
        &self,
        session: &mut Session,
        prompt: &Prompt,
    ) -> Result<(Vec<FeatureScore>, Vec<ReadToken>)> {
        let reading = &self.protocol.reading;
        let mut over = Over::parse(&reading.positions)?;
        over.find_tokens(|text| session.model().tokens_of(text))?;
        let options = RunOptions {
            keep: Keep {
                features: over.kinds(),
                ..Keep::default()
            },
            cancel: self.cancel.clone(),
            ..RunOptions::default()
        };
        let trace = session.run(prompt, options)?.trace;
        let positions = rank::pooled_positions(&trace.tokens, &over)?;
        let d_sae = session.sae().meta().d_sae;
        let activations = &trace.saes[0].activations;
        let scores = rank::rank(activations, &positions, d_sae, reading.pool, None);
        Ok((scores, texts_at(&positions, &trace, session)))
    }

    /// Describes a picture at all strengths, and with random features at those that count.
    fn describe(
        &self,
        session: &mut Session,
        prompt: &Prompt,
        name: &str,
        plan: &Plan,
    ) -> Result<SteeredPicture> {
        let steered = &self.protocol.steering;
        let options = RunOptions {
            max_tokens: steered.max_tokens,
            cancel: self.cancel.clone(),
            ..RunOptions::default()
        };
        let sweep = session.sweep(prompt, &plan.steerings, &options)?;
        if self.cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        let caption = |scored: ScoredRun| {
            let text = scored.run.text;
            Caption {
                has_word: steered.words.iter().any(|word| holds_word(&text, word)),
                mean_log_prob: scored.mean_log_prob,
                text,
            }
        };
        let mut captions = sweep.steered.into_iter().map(caption);
        let of_feature = captions.by_ref().take(steered.strengths.len()).collect();
        let controls = plan.controls.iter().zip(captions);
        let controls = controls.map(|(&(feature, as_strength), caption)| ControlCaption {
            feature,
            label: session.sae().label(feature).map(str::to_owned),
            as_strength,
            caption,
        });
        Ok(verdict::judge_picture(
            steered,
            name.to_owned(),
            caption(sweep.original),
            of_feature,
            controls.collect(),
        ))
    }
}

/// The text tokens at `positions`; none where they are many.
fn texts_at(positions: &[usize], trace: &Trace, session: &Session) -> Vec<ReadToken> {
    let text_of = |&position: &usize| {
        let token = trace.tokens[position];
        let text = session.token_text(token)?;
        (token.kind == TokenKind::Text).then_some(ReadToken { position, text })
    };
    let texts: Vec<_> = positions
        .iter()
        .filter_map(text_of)
        .take(MAX_NAMED + 1)
        .collect();
    if texts.len() > MAX_NAMED {
        Vec::new()
    } else {
        texts
    }
}

/// A file's name alone: a report is for others to see.
fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
