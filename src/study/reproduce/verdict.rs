//! What was measured, and what a protocol says of it: arithmetic.

use serde::Serialize;

use super::protocol::{Control, Protocol, Reading, SteeredFeature};
use crate::rank::{self, FeatureScore};

/// What became of a claim, or of a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// Something was missing to tell.
    #[serde(rename = "not tested")]
    NotTested,
}

impl Verdict {
    fn of(holds: bool) -> Self {
        if holds { Self::Holds } else { Self::Fails }
    }

    /// That of several together, all of which are to hold.
    pub fn of_all(all: impl Iterator<Item = Self> + Clone) -> Self {
        let has = |verdict| all.clone().any(|one| one == verdict);
        match (has(Self::Fails), has(Self::NotTested)) {
            (true, _) => Self::Fails,
            (false, true) => Self::NotTested,
            (false, false) => Self::Holds,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::NotTested => "not tested",
        }
    }
}

/// What is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimKind {
    /// Pictures activate the features that stand for what they show.
    Reading,
    /// A feature that is subtracted goes from the caption.
    Steering,
    /// Other features do not do that.
    Control,
}

impl ClaimKind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Steering => "steering",
            Self::Control => "control",
        }
    }
}

/// A claim, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// Which one.
    pub claim: ClaimKind,
    /// Whether it holds.
    pub verdict: Verdict,
    /// What is claimed, in words.
    pub says: String,
    /// What was found, in words.
    pub found: String,
}

/// How a class's pictures activate its published features, and others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReading {
    /// Its name.
    pub class: String,
    /// Its pictures that were read.
    pub n_pictures: usize,
    /// Whether it passes.
    pub verdict: Verdict,
    /// Its published features, as the protocol lists them, and those that were found by their labels.
    pub published: Vec<PublishedFeature>,
    /// The features that rank first.
    pub top: Vec<TopFeature>,
}

/// A published feature of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublishedFeature {
    /// Its index.
    pub feature: usize,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// Its place among the class's features, from 1; none where no picture activates it.
    pub rank: Option<usize>,
    /// The chance that a picture of the class activates it more than one of another class, ties
    /// counting half; none without pictures.
    pub auroc: Option<f64>,
}

/// One of a class's first features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopFeature {
    /// Its index.
    pub feature: usize,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// Its pooled activation, the mean over the class's pictures.
    pub score: f32,
    /// Whether it is a published feature of the class.
    pub is_published: bool,
}

/// A caption.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caption {
    /// Its text.
    pub text: String,
    /// Whether it has one of the protocol's words.
    pub has_word: bool,
    /// The mean log-probability, in nats, that the model without interventions gives its tokens, each
    /// after those before it; none of an empty text.
    pub mean_log_prob: Option<f64>,
}

/// A caption under the steered feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SteeredCaption {
    /// The strength.
    pub strength: f32,
    /// The caption.
    #[serde(flatten)]
    pub caption: Caption,
    /// How far its mean log-probability is below that of the caption at 0, in nats.
    pub log_prob_loss: Option<f64>,
    /// Whether the strength counts.
    pub is_judged: bool,
    /// Whether the word is gone and the loss small enough.
    pub passes: bool,
}

/// A caption under a random feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ControlCaption {
    /// The feature.
    pub feature: usize,
    /// Its label, where it has one.
    pub label: Option<String>,
    /// The strength of the steered feature whose addition is as long.
    pub as_strength: f32,
    /// The caption.
    #[serde(flatten)]
    pub caption: Caption,
}

/// A picture's captions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SteeredPicture {
    /// The name of its file.
    pub picture: String,
    /// Whether the word is in the caption at 0, and gone with enough of the strengths that count.
    pub passes: bool,
    /// The caption at 0.
    pub original: Caption,
    /// Those under the steered feature, by strength as the protocol lists them.
    pub steered: Vec<SteeredCaption>,
    /// Those under random features.
    pub controls: Vec<ControlCaption>,
}

/// Judges each class of `protocol`, whose pictures' features are `scores`, `[n_classes][n_pictures]`.
pub(super) fn read_classes(
    protocol: &Reading,
    scores: &[Vec<Vec<FeatureScore>>],
    label: &dyn Fn(usize) -> Option<String>,
) -> Vec<ClassReading> {
    let judge = |(class_idx, pictures): (usize, &Vec<Vec<FeatureScore>>)| {
        let class = &protocol.classes[class_idx];
        let pictures: Vec<&[FeatureScore]> = pictures.iter().map(Vec::as_slice).collect();
        let mut ranked = rank::group(&pictures, None);
        ranked.retain(|score| !protocol.hidden.contains(&score.feature));
        let others = scores.iter().enumerate();
        let others = others.filter(|(other_idx, _)| *other_idx != class_idx);
        let outside: Vec<&[FeatureScore]> = others
            .flat_map(|(_, pictures)| pictures.iter().map(Vec::as_slice))
            .collect();
        let published = class.features.iter().map(|&feature| {
            let place = ranked.iter().position(|score| score.feature == feature);
            PublishedFeature {
                feature,
                label: label(feature),
                rank: place.map(|place| place + 1),
                auroc: auroc(&values(&pictures, feature), &values(&outside, feature)),
            }
        });
        let published: Vec<_> = published.collect();
        let is_enough = pictures.len() >= protocol.pictures_per_class
            && !outside.is_empty()
            && !published.is_empty();
        ClassReading {
            class: class.name.clone(),
            n_pictures: pictures.len(),
            verdict: match is_enough {
                true => Verdict::of(class_passes(protocol, &published)),
                false => Verdict::NotTested,
            },
            published,
            top: ranked
                .iter()
                .take(protocol.top)
                .map(|score| TopFeature {
                    feature: score.feature,
                    label: label(score.feature),
                    score: score.score,
                    is_published: class.features.contains(&score.feature),
                })
                .collect(),
        }
    };
    scores.iter().enumerate().map(judge).collect()
}

fn class_passes(protocol: &Reading, published: &[PublishedFeature]) -> bool {
    let in_top = published
        .iter()
        .filter(|one| one.rank.is_some_and(|rank| rank <= protocol.top));
    let tells = |one: &PublishedFeature| one.auroc.is_some_and(|auroc| auroc >= protocol.auroc);
    is_share(in_top.count(), published.len(), protocol.share_in_top) && published.iter().any(tells)
}

/// Whether `n` of `n_all` is this share or more.
fn is_share(n: usize, n_all: usize, share: f64) -> bool {
    n as f64 / n_all as f64 >= share
}

/// A feature's scores on pictures, 0 where it is not active.
fn values(pictures: &[&[FeatureScore]], feature: usize) -> Vec<f32> {
    let value = |scores: &&[FeatureScore]| {
        let found = scores.iter().find(|score| score.feature == feature);
        found.map_or(0.0, |score| score.score)
    };
    pictures.iter().map(value).collect()
}

/// The chance that one of `inside` is above one of `outside`, ties counting half (the Mann-Whitney
/// statistic over the number of pairs).
fn auroc(inside: &[f32], outside: &[f32]) -> Option<f64> {
    let n_pairs = inside.len() * outside.len();
    if n_pairs == 0 {
        return None;
    }
    let mut sorted = outside.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    // Twice the number of pairs that are won, so that halves are whole.
    let won = |&value: &f32| {
        let n_below = sorted.partition_point(|&other| other < value);
        let n_up_to = sorted.partition_point(|&other| other <= value);
        n_below + n_up_to
    };
    let won: usize = inside.iter().map(won).sum();
    Some(won as f64 / (2 * n_pairs) as f64)
}

/// Judges a picture's captions.
pub(super) fn judge_picture(
    protocol: &SteeredFeature,
    picture: String,
    original: Caption,
    steered: Vec<Caption>,
    controls: Vec<ControlCaption>,
) -> SteeredPicture {
    let judge = |(&strength, caption): (&f32, Caption)| {
        let pair = original.mean_log_prob.zip(caption.mean_log_prob);
        let log_prob_loss = pair.map(|(original, steered)| original - steered);
        let is_likely = log_prob_loss.is_some_and(|loss| loss <= protocol.max_log_prob_loss);
        SteeredCaption {
            strength,
            log_prob_loss,
            is_judged: protocol.judged_strengths.contains(&strength),
            passes: !caption.has_word && is_likely,
            caption,
        }
    };
    let steered: Vec<_> = protocol.strengths.iter().zip(steered).map(judge).collect();
    let passed = steered.iter().filter(|one| one.is_judged && one.passes);
    SteeredPicture {
        picture,
        passes: original.has_word && passed.count() >= protocol.judged_strengths_needed,
        original,
        steered,
        controls,
    }
}

/// What became of the protocol's claims.
pub(super) fn claims(
    protocol: &Protocol,
    classes: &[ClassReading],
    pictures: &[SteeredPicture],
) -> Vec<Claim> {
    vec![
        reading_claim(&protocol.reading, classes),
        steering_claim(&protocol.steering, pictures),
        control_claim(&protocol.control, &protocol.steering, pictures),
    ]
}

fn reading_claim(protocol: &Reading, classes: &[ClassReading]) -> Claim {
    let count = |verdict| classes.iter().filter(|one| one.verdict == verdict).count();
    let n_passed = count(Verdict::Holds);
    let n_untested = count(Verdict::NotTested);
    let needed = protocol.classes_needed;
    Claim {
        claim: ClaimKind::Reading,
        verdict: match n_passed {
            n if n >= needed => Verdict::Holds,
            n if n + n_untested < needed => Verdict::Fails,
            _ => Verdict::NotTested,
        },
        says: format!(
            "{needed} of {} classes, or more, with {} pictures or more each: {} or more of the published \
             features are among the top {}, and one of them has an AUROC of {} or more against the \
             other classes",
            classes.len(),
            protocol.pictures_per_class,
            percent(protocol.share_in_top),
            protocol.top,
            protocol.auroc,
        ),
        found: {
            let mut found = format!("{n_passed} of {} classes pass", classes.len());
            if n_untested > 0 {
                found.push_str(&format!(", {n_untested} could not be tested"));
            }
            found
        },
    }
}

fn steering_claim(protocol: &SteeredFeature, pictures: &[SteeredPicture]) -> Claim {
    let n_passed = pictures.iter().filter(|one| one.passes).count();
    let strengths: Vec<_> = protocol
        .judged_strengths
        .iter()
        .map(f32::to_string)
        .collect();
    Claim {
        claim: ClaimKind::Steering,
        verdict: match pictures.len() < protocol.pictures {
            true => Verdict::NotTested,
            false => Verdict::of(is_share(
                n_passed,
                pictures.len(),
                protocol.share_of_pictures,
            )),
        },
        says: format!(
            "{} or more of {} pictures of the class {}: a word for it ({}) is in the caption, and gone \
             with feature {} at {} or more of the strengths {}, in captions whose mean log-probability, by \
             the model without interventions, is at most {} nat lower",
            percent(protocol.share_of_pictures),
            protocol.pictures,
            protocol.class,
            protocol.words.join(", "),
            protocol.feature.expect("it is named, or was found"),
            protocol.judged_strengths_needed,
            strengths.join(", "),
            protocol.max_log_prob_loss,
        ),
        found: format!("{n_passed} of {} pictures pass", pictures.len()),
    }
}

fn control_claim(
    protocol: &Control,
    steering: &SteeredFeature,
    pictures: &[SteeredPicture],
) -> Claim {
    let with_word = pictures.iter().filter(|one| one.original.has_word);
    let controls: Vec<_> = with_word.flat_map(|one| &one.controls).collect();
    let dropped = controls.iter().filter(|one| !one.caption.has_word);
    let (n_dropped, n_all) = (dropped.count(), controls.len());
    let share = n_dropped as f64 / n_all as f64;
    let is_tested = n_all > 0 && pictures.len() >= steering.pictures;
    Claim {
        claim: ClaimKind::Control,
        verdict: match is_tested {
            true => Verdict::of(share <= protocol.max_share_dropped),
            false => Verdict::NotTested,
        },
        says: format!(
            "{} random features a picture, added with the same length, take the word from {} or fewer of \
             the captions that have it",
            protocol.features_per_picture,
            percent(protocol.max_share_dropped),
        ),
        found: match n_all {
            0 => "no caption has the word".to_owned(),
            _ => format!(
                "{n_dropped} of {n_all} captions lose the word, {}",
                percent(share)
            ),
        },
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests;
