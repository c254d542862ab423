//! What a picture gave, and its ways out: a table or JSON, heat maps, a page.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gguf_tools::new_file::NewFile;
use llava_sae_cpp::rank::{self, FeatureScore};
use llava_sae_cpp::report::features::{self, Ranking, Seen};
use llava_sae_cpp::report::page::Shown;
use llava_sae_cpp::report::table::Score;
use llava_sae_cpp::report::{heatmap, json, table};
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{
    CancelFlag, Error, FeatureId, HookedModel, Keep, Picture, Prompt, Run, RunOptions, SaeSet,
    Session, Stop,
};
use serde::Serialize;

use super::args::FeaturesArgs;
use crate::cli::args::{self, Asked};
use crate::cli::outcome::Failure;
use crate::cli::progress::{Spinner, Verbosity};

/// What `--json` prints for an image, or for a text.
#[derive(Serialize)]
struct Report {
    image: Option<String>,
    #[serde(flatten)]
    seen: features::Report,
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

/// What a prompt with its pictures, or a text alone, gave.
pub(super) struct LookedAt {
    subject: Subject,
    ranking: Ranking,
    original: Run,
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

/// Runs the model on the subject.
pub(super) fn look(
    session: &mut Session,
    subject: Subject,
    steering: Option<&Arc<Steering>>,
    mut ranking: Ranking,
    args: &FeaturesArgs,
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> llava_sae_cpp::Result<LookedAt> {
    let prompt = &subject.prompt;
    // What is wrong with positions is said before the runs.
    ranking.prepare(session.model(), prompt)?;
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
        let run = session.run(prompt, options)?;
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
    Ok(LookedAt {
        original,
        steered: steered.transpose()?,
        subject,
        ranking,
    })
}

impl LookedAt {
    /// The ranked features.
    pub(super) fn seen<'a>(&'a self, saes: &'a SaeSet) -> llava_sae_cpp::Result<Seen<'a>> {
        let Subject { pictures, prompt } = &self.subject;
        Seen::new(saes, prompt, pictures, &self.original.trace, &self.ranking)
    }

    /// What a page shows.
    pub(super) fn shown<'a>(&'a self, seen: &'a Seen<'_>, name: &str) -> Shown<'a> {
        Shown {
            name: name.to_owned(),
            pictures: &self.subject.pictures,
            views: &seen.views,
            scores: &seen.scores,
            original: &self.original,
            steered: self.steered.as_ref(),
        }
    }
}

/// Prints the listed features of what is called `shown`.
pub(super) fn print(
    seen: &Seen<'_>,
    shown: &str,
    args: &FeaturesArgs,
    model: &HookedModel,
) -> Result<(), Failure> {
    let (saes, top) = (model.saes(), args.top.get());
    if !args.json {
        let title = format!("{shown}: {}", args.subject());
        let scores: Vec<_> = (0..saes.len()).map(|sae| seen.top(sae, top)).collect();
        return print_tables(&title, &scores, args.score_is(), saes);
    }
    let report = Report {
        image: seen.has_pictures().then(|| shown.to_owned()),
        seen: seen.report(model, top),
    };
    json::print(&mut io::stdout(), &report).map_err(Failure::Output)
}

/// Draws the listed features over what each view shows, except for those that none of its patches activates.
pub(super) fn draw(
    seen: &Seen<'_>,
    dir: &Path,
    stem: &str,
    args: &FeaturesArgs,
    saes: &SaeSet,
) -> llava_sae_cpp::Result<()> {
    let mut maps = Vec::new();
    for view_idx in 0..seen.views.len() {
        let stem = match seen.views.len() {
            1 => stem.to_owned(),
            _ => format!("{stem}-view{}", view_idx + 1),
        };
        for sae in 0..saes.len() {
            let stem = match saes.shown_id(sae) {
                None => stem.clone(),
                Some(id) => format!("{stem}-{}", heatmap::in_file_names(id)),
            };
            let scores = seen.top(sae, args.top.get());
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
    for (view_idx, path, feature) in maps {
        if let Some(map) = seen.heat_map(view_idx, feature) {
            unseen.retain(|one| *one != feature);
            NewFile::create(&path, args.overwrite())?.finish_with(&map)?;
        }
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

/// Prints the features of several pictures together.
pub(super) fn print_group(
    pictures: &[Vec<Vec<FeatureScore>>],
    ranking: &Ranking,
    args: &FeaturesArgs,
    saes: &SaeSet,
) -> Result<(), Failure> {
    let mut groups = Vec::new();
    for (sae_idx, sae) in saes.iter().enumerate() {
        let has_lift = ranking.has_lift(sae)?;
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
