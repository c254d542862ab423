//! Addresses on the command line, for `pull` and for commands that run a model.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use llava_sae_cpp::{CancelFlag, Error};
use llava_sae_hub::releases;
use llava_sae_hub::{Hub, LabelsAddress, ModelAddress, SaeAddress, Settings};

use super::super::convert::Types;
use super::super::hints;
use super::super::progress::Verbosity;
use super::folder::Folder;
use super::job::{self, Job, Recipe};
use super::plan;

/// What is published, by address.
#[derive(Args)]
pub(in crate::cli) struct Addresses {
    /// A model on the hub: a checkpoint to convert, or a GGUF file
    #[arg(long, value_name = "ORG/REPO[@REVISION][:FILE]", value_parser = parse::<ModelAddress>, help_heading = "Published models")]
    hf_repo: Option<ModelAddress>,
    /// An SAE on the hub: the folder of one
    #[arg(long, value_name = "ORG/REPO[@REVISION]/FOLDER", value_parser = parse::<SaeAddress>, conflicts_with = "sae_release", help_heading = "Published models")]
    sae_hf: Option<SaeAddress>,
    /// An SAE by its release in SAELens' list
    #[arg(
        long,
        value_name = "RELEASE",
        requires = "sae_id",
        help_heading = "Published models"
    )]
    sae_release: Option<String>,
    /// … and its id in that release
    #[arg(
        long,
        value_name = "ID",
        requires = "sae_release",
        help_heading = "Published models"
    )]
    sae_id: Option<String>,
    /// Neuronpedia's labels for the SAE, `none` for none [default: those of SAELens' list]
    #[arg(long, value_name = "neuronpedia:MODEL/SOURCE", value_parser = parse_labels, help_heading = "Published models")]
    labels: Option<Labels>,
}

#[derive(Clone)]
enum Labels {
    None,
    At(LabelsAddress),
}

fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(hints::with_hint)
}

fn parse_labels(text: &str) -> Result<Labels, String> {
    match text {
        "none" => Ok(Labels::None),
        address => parse(address).map(Labels::At),
    }
}

impl Addresses {
    fn are_given(&self) -> bool {
        self.hf_repo.is_some() || self.sae_hf.is_some() || self.sae_release.is_some()
    }

    fn check_labels_have_an_sae(&self) -> llava_sae_cpp::Result<()> {
        if self.labels.is_none() || self.sae_hf.is_some() || self.sae_release.is_some() {
            return Ok(());
        }
        Err(
            Error::invalid("labels are given, and no SAE that they are of")
                .with_hint("give the SAE by its address too (`--sae-hf`, `--sae-release`)"),
        )
    }

    /// What the addresses lead to, if there are any.
    ///
    /// # Errors
    /// A release or an id that SAELens' list does not have.
    pub(super) fn recipe(&self) -> llava_sae_cpp::Result<Option<Recipe>> {
        if !self.are_given() {
            return Ok(None);
        }
        self.check_labels_have_an_sae()?;
        let listed = match (&self.sae_release, &self.sae_id) {
            (Some(release), Some(id)) => Some(releases::find(release, id)?),
            _ => None,
        };
        let (sae, labels) = match listed {
            Some(listed) => (Some(listed.address), listed.labels),
            None => (self.sae_hf.clone(), None),
        };
        let recipe = Recipe {
            model: self.hf_repo.clone(),
            sae,
            labels,
            norm_factor: None,
            hook_name: None,
        };
        Ok(Some(recipe.with_labels(self)))
    }
}

impl Recipe {
    /// With the labels that are asked for.
    pub(super) fn with_labels(self, addresses: &Addresses) -> Self {
        let labels = match &addresses.labels {
            None => self.labels,
            Some(Labels::None) => None,
            Some(Labels::At(address)) => Some(address.clone()),
        };
        Self { labels, ..self }
    }
}

/// Published models for commands that run them.
#[derive(Args)]
pub(in crate::cli) struct HubArgs {
    #[command(flatten)]
    addresses: Addresses,
    /// Download what is not here without asking
    #[arg(long, help_heading = "Published models")]
    yes: bool,
    /// Download nothing: use what is in the cache
    #[arg(long, help_heading = "Published models")]
    offline: bool,
}

impl HubArgs {
    /// Whether a model is named by its address.
    pub(in crate::cli) fn are_given(&self) -> bool {
        self.addresses.are_given()
    }

    /// The model's folder: `dir`, or the one of that name or those addresses among the pulled ones.
    pub(in crate::cli) fn folder(&self, dir: Option<&Path>) -> Option<PathBuf> {
        let pulled = |name: &str| {
            let folder = Folder::of(name).ok()?.path().to_owned();
            folder.exists().then_some(folder)
        };
        match dir {
            Some(dir) if dir.exists() => Some(dir.to_owned()),
            Some(dir) => name_of(dir)
                .and_then(pulled)
                .or_else(|| Some(dir.to_owned())),
            None => {
                let recipe = self.addresses.recipe().ok().flatten()?;
                pulled(&Job::new(None, recipe, Types::default()).ok()?.name)
            }
        }
    }

    /// Pulls the model that is named by `dir` or by addresses, if it is not here.
    ///
    /// # Errors
    /// A name that nothing has; what pulling can meet, and that the user does not want it.
    pub(in crate::cli) fn pull_what_is_missing(
        &self,
        dir: Option<&Path>,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> llava_sae_cpp::Result<()> {
        self.addresses.check_labels_have_an_sae()?;
        let job = match dir {
            Some(dir) if dir.exists() => return Ok(()),
            Some(dir) => {
                let Some(name) = name_of(dir) else {
                    return Ok(());
                };
                if Folder::of(name)?.path().exists() {
                    return Ok(());
                }
                let recipe = Recipe::of_pair(name).ok_or_else(|| job::unknown(name))?;
                Job::new(Some(name), recipe, Types::default())?
            }
            None => match self.addresses.recipe()? {
                Some(recipe) => Job::new(None, recipe, Types::default())?,
                None => return Ok(()),
            },
        };
        let folder = Folder::of(&job.name)?;
        if folder.path().exists() {
            return Ok(());
        }
        let hub = hub(self.offline, cancel)?;
        plan::check_can_ask(&job, &hub, self.yes)?;
        let _lock = folder.lock(&hub, verbosity)?;
        // Another process may have made it meanwhile.
        if folder.path().exists() {
            return Ok(());
        }
        folder.make(&job, &hub, self.yes, false, verbosity, cancel)
    }
}

/// A path that may be a name of a published model.
fn name_of(dir: &Path) -> Option<&str> {
    let mut parts = dir.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => name.to_str(),
        _ => None,
    }
}

/// The hub as the environment says.
pub(super) fn hub(is_offline: bool, cancel: &CancelFlag) -> llava_sae_cpp::Result<Hub> {
    let mut settings = Settings::from_env()?;
    settings.is_offline |= is_offline;
    let cancel = cancel.clone();
    Ok(Hub::new(settings, Arc::new(move || cancel.is_cancelled())))
}
