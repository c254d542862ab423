//! What a picture gave, and its ways out: a table or JSON, heat maps, a page.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gguf_tools::new_file::NewFile;
use gguf_tools::terminal::one_line;
use llava_sae_cpp::rank::{self, FeatureScore};
use llava_sae_cpp::report::heatmap::{self, HeatMap};
use llava_sae_cpp::report::page::Shown;
use llava_sae_cpp::report::table::Score;
use llava_sae_cpp::report::view::View;
use llava_sae_cpp::report::{json, table};
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{
    CancelFlag, Error, FeatureId, Keep, Picture, Prompt, Run, RunOptions, SaeSet, Session, Stop,
    Token, TokenKind,
};
use serde::Serialize;

use super::args::{ALWAYS_ON, FeaturesArgs};
use crate::cli::args::{self, Asked};
use crate::cli::outcome::Failure;
use crate::cli::progress::{Spinner, Verbosity};

/// What `--json` prints for an image, or for a text.
#[derive(Serialize)]
struct Report {
    image: Option<String>,
    n_image_tokens: usize,
    grid: Option<[usize; 2]>, // of a picture that is seen in one view
    views: Vec<ViewReport>,
    tokens: Vec<json::TokenEntry>,
    features: Vec<FeatureReport>,
}

/// What `--json` prints for several images together.
#[derive(Serialize)]
struct GroupReport {
    images: Vec<String>,
    features: Vec<GroupFeatureReport>,
}

#[derive(Serialize)]
struct GroupFeatureReport {
    #[serde(flatten)]
    standing: json::FeatureEntry,
    lift: Option<f32>,
    n_images: usize,
}

/// What a part of the image tokens shows.
#[derive(Serialize)]
struct ViewReport {
    image: usize, // of the prompt, counted from 1
    place: [f32; 4],
    grid: [usize; 2],
    first_position: usize,
    stride: usize,
}

#[derive(Serialize)]
struct FeatureReport {
    #[serde(flatten)]
    standing: json::FeatureEntry,
    lift: Option<f32>,
    argmax_position: usize,
    active: Vec<(usize, f32)>, // position and activation, of the pooled positions
    patches: Vec<f32>,         // of each view [rows · columns], one after another
}

/// What a prompt with its pictures, or a text alone, gave.
pub(super) struct Seen {
    pictures: Vec<Picture>,
    views: Vec<View>,
    /// The prompt's, and those that were generated.
    tokens: Vec<Token>,
    /// The pooled ones, rising.
    positions: Vec<usize>,
    /// All that are active at the pooled positions, of each SAE.
    scores: Vec<Vec<FeatureScore>>,
    run: Run,
    steered: Option<Run>,
}

/// What is looked at: a prompt, and the pictures in it.
pub(super) struct Subject {
    pictures: Vec<Picture>,
    prompt: Prompt,
}

impl Subject {
    /// What is asked, of a picture or of none.
    pub(super) fn new(
        session: &Session,
        asked: &Asked,
        picture: Option<Picture>,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<Self> {
        let pictures = asked.pictures(picture.into_iter().collect())?;
        let images = args::encode_pictures(session, &pictures, verbosity)?;
        Ok(Self {
            prompt: asked.build(session, &images, cancel)?,
            pictures,
        })
    }
}

/// Runs the model on the subject, and ranks the features without the
/// `hidden` ones.
pub(super) fn look(
    session: &mut Session,
    subject: Subject,
    steering: Option<&Arc<Steering>>,
    args: &FeaturesArgs,
    hidden: &HashSet<FeatureId>,
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<Seen> {
    let Subject { pictures, prompt } = subject;
    let mut over = args.over();
    over.find_tokens(|text| session.model().tokens_of(text))?;
    // What is wrong with positions is said before the runs.
    if !over.kinds().generated {
        rank::pooled_positions(prompt.tokens(), &over)?;
    }
    if let Some(steering) = steering {
        steering.placed(prompt.tokens())?;
    }
    let mut run = |steering: Option<&Arc<Steering>>, keep| {
        let options = RunOptions {
            steering: steering.cloned(),
            keep,
            max_tokens: args.max_tokens(),
            sampling: args.generate.sampling(),
            cancel: cancel.clone(),
            ..RunOptions::default()
        };
        let _spinner = Spinner::start("running the model", verbosity);
        let run = session.run(&prompt, options)?;
        match run.stop {
            Stop::Interrupted => Err(Error::interrupted()),
            _ => Ok(run),
        }
    };
    let keep = Keep {
        features: args.looked_at(),
        ..Keep::default()
    };
    let original = run(None, keep)?;
    let steered = steering.map(|_| run(steering, Keep::default()));
    let steered = steered.transpose()?;
    // A run that generates nothing may end before the prompt does.
    let mut tokens = prompt.tokens().to_vec();
    tokens.extend(original.trace.tokens.iter().skip(tokens.len()));
    let positions = rank::pooled_positions(&tokens, &over)?;
    let mut scores = Vec::new();
    let seen = session.model().saes().iter().zip(&original.trace.saes);
    for (sae_idx, (sae, seen)) in seen.enumerate() {
        let has_lift = args.has_lift(sae)?;
        let baseline = sae.baseline().filter(|_| has_lift);
        let (d_sae, pool) = (sae.meta().d_sae, args.pool.into());
        let mut ranked = rank::rank(&seen.activations, &positions, d_sae, pool, baseline);
        // Without a baseline, what is always on is told by this input alone.
        let is_measured = !args.exclude_always_on || sae.baseline().is_some();
        let n_always = f64::from(ALWAYS_ON) * positions.len() as f64;
        ranked.retain(|score| {
            let is_always_on = !is_measured && score.n_tokens as f64 >= n_always;
            let feature = FeatureId {
                sae: sae_idx,
                index: score.feature,
            };
            !is_always_on && !hidden.contains(&feature)
        });
        scores.push(ranked);
    }
    Ok(Seen {
        pictures,
        views: View::of_prompt(&prompt),
        tokens,
        positions,
        scores,
        run: original,
        steered,
    })
}

impl Seen {
    /// Prints the listed features of what is called `shown`.
    pub(super) fn print(
        &self,
        shown: &str,
        args: &FeaturesArgs,
        session: &Session,
    ) -> Result<(), Failure> {
        let saes = session.model().saes();
        if !args.json {
            let title = format!("{shown}: {}", args.subject());
            let scores: Vec<_> = (0..saes.len()).map(|sae| self.top(args, sae)).collect();
            return print_tables(&title, &scores, args.score_is(), saes);
        }
        let of_sae = |sae: usize| {
            let scores = self.top(args, sae);
            let standings = json::features(scores, saes, sae).into_iter().zip(scores);
            standings.map(move |(standing, score)| {
                let index = score.feature;
                let feature = FeatureId { sae, index };
                FeatureReport {
                    standing,
                    lift: score.lift,
                    argmax_position: score.argmax_position,
                    active: self.active(feature),
                    patches: (self.views.iter())
                        .flat_map(|view| self.patches(view, feature))
                        .collect(),
                }
            })
        };
        let is_image = |token: &&Token| token.kind == TokenKind::Image;
        let view = |view: &View| ViewReport {
            image: view.image + 1,
            place: view.place,
            grid: view.grid,
            first_position: view.first_position,
            stride: view.stride,
        };
        let report = Report {
            image: (!self.pictures.is_empty()).then(|| shown.to_owned()),
            n_image_tokens: self.tokens.iter().filter(is_image).count(),
            grid: match &self.views[..] {
                [only] => Some(only.grid),
                _ => None,
            },
            views: self.views.iter().map(view).collect(),
            tokens: json::tokens(&self.tokens, session),
            features: (0..saes.len()).flat_map(of_sae).collect(),
        };
        json::print(&mut io::stdout(), &report).map_err(Failure::Output)
    }

    /// The features alone.
    pub(super) fn into_scores(self) -> Vec<Vec<FeatureScore>> {
        self.scores
    }

    /// Draws the listed features over what each view shows, except for those that none of its patches activates.
    pub(super) fn draw(
        &self,
        dir: &Path,
        stem: &str,
        args: &FeaturesArgs,
        session: &Session,
    ) -> llava_sae_cpp::Result<()> {
        let saes = session.model().saes();
        let mut maps = Vec::new();
        for view_idx in 0..self.views.len() {
            let stem = match self.views.len() {
                1 => stem.to_owned(),
                _ => format!("{stem}-view{}", view_idx + 1),
            };
            for sae in 0..saes.len() {
                let stem = match saes.shown_id(sae) {
                    None => stem.clone(),
                    Some(id) => format!("{stem}-{}", heatmap::in_file_names(id)),
                };
                let scores = self.top(args, sae);
                for (i, score) in scores.iter().enumerate() {
                    let index = score.feature;
                    let path = heatmap::path(dir, &stem, i + 1, scores.len(), index);
                    maps.push((view_idx, path, FeatureId { sae, index }));
                }
            }
        }
        // All are checked first, so that a picture's heat maps are written together or not at all.
        for (_, path, _) in &maps {
            args.overwrite().check(path)?;
        }
        let mut unseen: Vec<FeatureId> = maps.iter().map(|(.., feature)| *feature).collect();
        let parts = self.views.iter();
        let parts = parts.map(|view| view.part(&self.pictures[view.image]));
        let parts: Vec<_> = parts.collect();
        for (view_idx, path, feature) in maps {
            let view = &self.views[view_idx];
            let patches: Vec<f32> = self.patches(view, feature).collect();
            if patches.iter().all(|&value| value == 0.0) {
                continue;
            }
            unseen.retain(|one| *one != feature);
            let shown = saes.shown(feature);
            let label = saes.label(feature);
            let label = label.map(|label| format!(" · {}", one_line(label)));
            let map = HeatMap {
                picture: &parts[view_idx],
                patches: &patches,
                grid: view.grid,
                title: &format!("feature {shown}{}", label.unwrap_or_default()),
            };
            NewFile::create(&path, args.overwrite())?.finish_with(&map.png())?;
        }
        if !unseen.is_empty() {
            unseen.dedup();
            let shown: Vec<_> = unseen
                .iter()
                .map(|one| saes.shown(*one).to_string())
                .collect();
            let features = shown.join(", ");
            log::warn!("no heat map for features that no patch of `{stem}` activates: {features}");
        }
        Ok(())
    }

    /// What a page shows.
    pub(super) fn shown<'a>(&'a self, name: &str) -> Shown<'a> {
        Shown {
            name: name.to_owned(),
            pictures: &self.pictures,
            views: &self.views,
            scores: &self.scores,
            original: &self.run,
            steered: self.steered.as_ref(),
        }
    }

    /// The listed features of an SAE.
    fn top(&self, args: &FeaturesArgs, sae: usize) -> &[FeatureScore] {
        let scores = &self.scores[sae];
        &scores[..scores.len().min(args.top.get())]
    }

    /// A feature's activation at a position.
    fn activation(&self, position: usize, feature: FeatureId) -> f32 {
        let activations = &self.run.trace.saes[feature.sae].activations;
        activations.get(position, feature.index)
    }

    /// A feature's activation at each patch of a view, in reading order.
    fn patches(&self, view: &View, feature: FeatureId) -> impl Iterator<Item = f32> {
        let positions = view.positions();
        positions.map(move |position| self.activation(position, feature))
    }

    /// The pooled positions where a feature is active, and its activations there.
    fn active(&self, feature: FeatureId) -> Vec<(usize, f32)> {
        let activation = |&position: &usize| {
            let value = self.activation(position, feature);
            (value != 0.0).then_some((position, value))
        };
        self.positions.iter().filter_map(activation).collect()
    }
}

/// Prints the features of several pictures together.
pub(super) fn print_group(
    pictures: &[Vec<Vec<FeatureScore>>],
    args: &FeaturesArgs,
    session: &Session,
) -> Result<(), Failure> {
    let saes = session.model().saes();
    let mut groups = Vec::new();
    for (sae_idx, sae) in saes.iter().enumerate() {
        let has_lift = args.has_lift(sae)?;
        let of_sae: Vec<_> = pictures.iter().map(|scores| &scores[sae_idx][..]).collect();
        let mut scores = rank::group(&of_sae, sae.baseline().filter(|_| has_lift));
        scores.truncate(args.top.get());
        groups.push((of_sae, scores));
    }
    if !args.json {
        let title = format!(
            "{} images, mean of each: {}",
            pictures.len(),
            args.subject()
        );
        let scores: Vec<_> = groups.iter().map(|(_, scores)| &scores[..]).collect();
        return print_tables(&title, &scores, args.score_is(), saes);
    }
    let activates =
        |picture: &[FeatureScore], feature| picture.iter().any(|one| one.feature == feature);
    let mut features = Vec::new();
    for (sae_idx, (pictures, scores)) in groups.iter().enumerate() {
        let standings = json::features(scores, saes, sae_idx)
            .into_iter()
            .zip(scores);
        features.extend(standings.map(|(standing, score)| {
            let active_in = pictures
                .iter()
                .filter(|picture| activates(picture, score.feature));
            GroupFeatureReport {
                standing,
                lift: score.lift,
                n_images: active_in.count(),
            }
        }));
    }
    let report = GroupReport {
        images: args
            .image
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        features,
    };
    json::print(&mut io::stdout(), &report).map_err(Failure::Output)
}

/// Prints a table for each SAE.
fn print_tables(
    title: &str,
    scores: &[&[FeatureScore]],
    score_is: Score,
    saes: &SaeSet,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for ((sae_idx, sae), scores) in saes.iter().enumerate().zip(scores) {
        let title = match saes.shown_id(sae_idx) {
            None => title.to_owned(),
            Some(id) => format!("{title}, {id}"),
        };
        table::print_features(&mut out, &title, scores, score_is, sae).map_err(Failure::Output)?;
    }
    Ok(())
}
