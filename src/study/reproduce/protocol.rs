//! What a protocol's file says, and that it makes sense.

mod found;

use std::collections::HashSet;
use std::hash::Hash;
use std::path::{Component, Path};

use gguf_tools::sae::{SaeFile, SaeMeta};
use serde::{Deserialize, Serialize};

use crate::llama::MAX_SEQUENCES;
use crate::rank::{Over, Pool};
use crate::{Error, HookPoint, ModelFiles, Positions, Result};

/// The protocols that are part of the program, by name.
const BUILT_IN: [&str; 3] = [
    include_str!("../../../reproduce/llava-gemma-2b.json"),
    include_str!("../../../reproduce/demo.json"),
    include_str!("../../../reproduce/gemma-3-4b.json"),
];

/// An experiment: what is done, and from when on its claims hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// What it is called.
    pub name: String,
    /// The model that it was made with.
    pub model: String,
    /// Where it is published.
    pub source: String,
    /// What of it is published and what is not, in sentences.
    pub notes: Vec<String>,
    /// The SAE whose features it names.
    pub sae: ExpectedSae,
    /// All of them are run, and the claims are judged with one.
    pub prompts: Vec<ProtocolPrompt>,
    /// The name of that one.
    pub judged_prompt: String,
    /// The first claim: pictures activate the features that stand for what they show.
    pub reading: Reading,
    /// The second claim: a feature that is subtracted goes from the caption.
    pub steering: SteeredFeature,
    /// The third claim: other features do not do that.
    pub control: Control,
}

/// What tells the SAE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedSae {
    /// What it is called.
    pub name: String,
    /// Where it reads.
    pub hook_point: String,
    /// The width of what it reads.
    pub d_in: usize,
    /// The number of features.
    pub d_sae: usize,
}

/// A prompt as it stands, `<image>` where the image goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtocolPrompt {
    /// What it is called.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// How features are read and ranked, and when a class passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The positions that are pooled, as [`Over::parse`] reads them.
    pub positions: String,
    /// How their activations become a picture's number. A class's is the mean over its pictures, which
    /// ranks as the sum does.
    pub pool: Pool,
    /// Features that no ranking has.
    pub hidden: Vec<usize>,
    /// How many features of a class are its top ones.
    pub top: usize,
    /// The classes, each a folder of pictures.
    pub classes: Vec<Class>,
    /// A class with fewer pictures is not tested.
    pub pictures_per_class: usize,
    /// The share of a class's features that must be among its top ones.
    pub share_in_top: f64,
    /// What the AUROC of one of a class's features must be, its pictures against the other classes'.
    pub auroc: f64,
    /// So many classes must pass.
    pub classes_needed: usize,
}

/// A class of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name, and its folder's.
    pub name: String,
    /// Its published features.
    #[serde(default)]
    pub features: Vec<usize>,
    /// Words by which others are found: those whose labels have one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// What is added to the residual stream, and when a picture passes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteeredFeature {
    /// The feature, of which `strength · W_dec[feature]` is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<usize>,
    /// Words by which it is found where there is none: of those whose labels have one of them, the one with
    /// the shortest label.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The class whose first pictures are described.
    pub class: String,
    /// Words for what the feature stands for: a caption has the word if it has one of them, and it is gone
    /// when none is left.
    pub words: Vec<String>,
    /// The positions that are steered, as [`Positions::parse`] reads them.
    pub at: String,
    /// Tokens of a caption, at most; they are the most likely ones.
    pub max_tokens: usize,
    /// The strengths; 0 is run in any case.
    pub strengths: Vec<f32>,
    /// Those that count.
    pub judged_strengths: Vec<f32>,
    /// With so many of them the word must be gone.
    pub judged_strengths_needed: usize,
    /// How far the mean log-probability of a steered caption's tokens may be below that of the
    /// caption at 0, both by the model without interventions, in nats.
    pub max_log_prob_loss: f64,
    /// How many pictures; with fewer, the claim is not tested.
    pub pictures: usize,
    /// The share of them that must pass.
    pub share_of_pictures: f64,
}

/// Random features in the place of the steered one, at the strengths that count, of the same length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// How many features each picture gets.
    pub features_per_picture: usize,
    /// What the choice depends on.
    pub seed: u64,
    /// The word may be gone in this share of captions.
    pub max_share_dropped: f64,
}

/// What the one SAE of these files is.
///
/// # Errors
/// No SAE or several, a file that cannot be read.
pub fn only_sae(files: &ModelFiles) -> Result<SaeMeta> {
    match &files.saes[..] {
        [path] => Ok(SaeFile::open(path)?.meta),
        saes => Err(Error::invalid(format!(
            "a protocol is about the features of one SAE, and there are {}",
            saes.len()
        ))
        .with_hint("name one")),
    }
}

impl Protocol {
    /// The protocols that are part of the program.
    pub fn built_in() -> Vec<Self> {
        let parse = |text: &str| Self::parse(text).expect("a test reads them all");
        BUILT_IN.into_iter().map(parse).collect()
    }

    /// The one of them that this SAE's features are of.
    ///
    /// # Errors
    /// When there is none.
    pub fn for_sae(sae: &SaeMeta) -> Result<Self> {
        let all = Self::built_in();
        let shown: Vec<_> = all.iter().map(|one| format!("`{}`", one.name)).collect();
        let found = all.into_iter().find(|one| one.check_sae(sae).is_ok());
        found.ok_or_else(|| {
            Error::invalid(format!(
                "no protocol of the program's own fits this SAE, of {} features at `{}`",
                sae.d_sae, sae.hook_name
            ))
            .with_hint(format!(
                "there are {}; give a protocol of your own",
                shown.join(", ")
            ))
        })
    }

    /// Reads the one of this name, or else the file of this path.
    ///
    /// # Errors
    /// A file that cannot be read, or as [`Protocol::parse`].
    pub fn open(name: &str) -> Result<Self> {
        let mut all = Self::built_in().into_iter();
        if let Some(found) = all.find(|one| one.name == name) {
            return Ok(found);
        }
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text).map_err(|error| {
            let what = format!("`{name}` is no protocol: {error}");
            error.with_message(what)
        })
    }

    /// Reads a protocol in JSON.
    ///
    /// # Errors
    /// JSON of another form, or what makes no sense.
    pub fn parse(json: &str) -> Result<Self> {
        let protocol: Self =
            serde_json::from_str(json).map_err(|error| Error::invalid(error.to_string()))?;
        protocol.check()?;
        Ok(protocol)
    }

    /// The prompt with which claims are judged.
    pub fn judged(&self) -> &ProtocolPrompt {
        let mut prompts = self.prompts.iter();
        let found = prompts.find(|prompt| prompt.name == self.judged_prompt);
        found.expect("it was checked")
    }

    /// Whether the features are this SAE's.
    ///
    /// # Errors
    /// An SAE that reads elsewhere, or has other features.
    pub fn check_sae(&self, sae: &SaeMeta) -> Result<()> {
        let expected = &self.sae;
        let differ = |what: String| {
            let Self { name, .. } = self;
            Err(
                Error::invalid(format!("the protocol `{name}` {what}")).with_hint(format!(
                    "it is about {}; give that, or a protocol that is about this one",
                    expected.name
                )),
            )
        };
        if HookPoint::parse(&sae.hook_name)? != HookPoint::parse(&expected.hook_point)? {
            return differ(format!(
                "needs an SAE at `{}`, and this one is at `{}`",
                expected.hook_point, sae.hook_name
            ));
        }
        if (sae.d_in, sae.d_sae) != (expected.d_in, expected.d_sae) {
            return differ(format!(
                "needs an SAE of {} features on rows of {}, and this one has {} on {}",
                expected.d_sae, expected.d_in, sae.d_sae, sae.d_in
            ));
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let require = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(Error::invalid(what)),
        };
        let is_share = |share: f64| (0.0..=1.0).contains(&share);
        let (reading, steering) = (&self.reading, &self.steering);
        HookPoint::parse(&self.sae.hook_point)?;
        Over::parse(&reading.positions)?;
        Positions::parse(&steering.at)?;

        let prompts = self.prompts.iter();
        require(
            no_two_alike(&self.prompts, |prompt| prompt.name.clone()),
            "two prompts have one name",
        )?;
        require(
            prompts
                .clone()
                .any(|prompt| prompt.name == self.judged_prompt),
            "`judged_prompt` names no prompt",
        )?;
        let has_image = |text: &str| text.matches("<image>").count() == 1;
        require(
            prompts.clone().all(|prompt| has_image(&prompt.text)),
            "a prompt holds `<image>` once",
        )?;

        let classes = reading.classes.iter();
        let names: HashSet<_> = classes.clone().map(|class| &*class.name).collect();
        require(
            names.len() == reading.classes.len(),
            "two classes have one name",
        )?;
        require(names.len() > 1, "there are two classes or more")?;
        for class in classes.clone() {
            let what = format!("the class `{}` is no name of a folder", class.name);
            require(is_plain_name(&class.name), &what)?;
            let what = format!("the class `{}` has no features", class.name);
            require(
                !class.features.is_empty() || !class.labels.is_empty(),
                &what,
            )?;
            let what = format!("the class `{}` has a feature twice", class.name);
            require(no_two_alike(&class.features, |&feature| feature), &what)?;
        }
        require(
            names.contains(&*steering.class),
            "`steering.class` is no class",
        )?;
        require(
            steering.feature.is_some() || !steering.labels.is_empty(),
            "`steering` has a `feature`, or `labels` by which it is found",
        )?;
        let labels = classes.clone().flat_map(|class| &class.labels);
        let mut labels = labels.chain(&steering.labels);
        require(labels.all(|word| has_letter(word)), "`labels` holds words")?;
        let published = classes.flat_map(|class| &class.features);
        for &feature in published.clone().chain(&steering.feature) {
            let what = format!("feature `{feature}` is hidden");
            require(!reading.hidden.contains(&feature), &what)?;
        }
        for &feature in published.chain(&reading.hidden).chain(&steering.feature) {
            let last = self.sae.d_sae.saturating_sub(1);
            let what = format!("there is no feature `{feature}`: valid ones are 0 to {last}");
            require(feature < self.sae.d_sae, &what)?;
        }
        require(
            reading.top > 0 && reading.pictures_per_class > 0,
            "`top` and `pictures_per_class` are at least 1",
        )?;
        require(
            (1..=names.len()).contains(&reading.classes_needed),
            "`classes_needed` is from 1 to the number of classes",
        )?;
        let shares = [
            reading.share_in_top,
            reading.auroc,
            steering.share_of_pictures,
            self.control.max_share_dropped,
        ];
        require(
            shares.into_iter().all(is_share),
            "`share_in_top`, `auroc`, `share_of_pictures` and `max_share_dropped` are from 0 to 1",
        )?;

        let words = steering.words.iter();
        require(
            !steering.words.is_empty() && words.clone().all(|word| has_letter(word)),
            "`words` holds words",
        )?;
        let strengths = &steering.strengths;
        let is_strength = |&strength: &f32| strength.is_finite() && strength != 0.0;
        require(
            strengths.iter().all(is_strength),
            "strengths are numbers other than 0, which is run in any case",
        )?;
        let judged = &steering.judged_strengths;
        require(
            no_two_alike(strengths, |strength| strength.to_bits())
                && no_two_alike(judged, |strength| strength.to_bits()),
            "a strength is there twice",
        )?;
        let mut judged = judged.iter();
        require(
            judged.all(|strength| strengths.contains(strength)),
            "`judged_strengths` are among `strengths`",
        )?;
        let n_judged = steering.judged_strengths.len();
        require(
            (1..=n_judged).contains(&steering.judged_strengths_needed),
            "`judged_strengths_needed` is from 1 to the number of `judged_strengths`",
        )?;
        require(
            steering.max_tokens > 0 && steering.pictures > 0,
            "`max_tokens` and `pictures` are at least 1",
        )?;
        require(
            steering.max_log_prob_loss >= 0.0,
            "`max_log_prob_loss` is at least 0",
        )?;
        let n_controls = self.control.features_per_picture.saturating_mul(n_judged);
        require(n_controls > 0, "`features_per_picture` is at least 1")?;
        let n_runs = n_controls.saturating_add(strengths.len() + 1);
        let what = format!("a picture's {n_runs} captions are more than {MAX_SEQUENCES}");
        require(n_runs <= MAX_SEQUENCES, &what)
    }
}

/// Whether a class's folder is in the folder of pictures, and no other place.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

fn no_two_alike<T, K: Eq + Hash>(list: &[T], key: impl Fn(&T) -> K) -> bool {
    let mut known = HashSet::new();
    list.iter().all(|one| known.insert(key(one)))
}

fn has_letter(word: &str) -> bool {
    word.chars().any(char::is_alphanumeric)
}

#[cfg(test)]
mod tests;
