//! `pull`: published models by name or address become model folders.
//!
//! ```text
//! job      what is asked for: a name of the table, or addresses, and the folder that it becomes
//! plan     what the hub has of it, what it takes, and whether the user wants it
//! folder   downloads, converts, and gives the folder its name
//! args     the same for commands that run a model: `-d NAME`, `--hf-repo` and so on
//! ```

mod args;
mod folder;
mod job;
mod list;
mod plan;
mod space;

use clap::Args;
use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{CancelFlag, Error, ErrorKind};

pub(super) use args::HubArgs;
use args::{Addresses, hub};
use folder::Folder;
use job::{Job, Recipe};

use super::convert::{ModelType, SMALL_TYPES, Types, say};
use super::one_of::one_of;
use super::outcome::{CommandResult, Outcome};
use super::progress::Verbosity;

/// Download a published model with its SAE and labels, and make a model folder of them
#[derive(Args)]
pub(super) struct PullArgs {
    /// A published model, for `-d NAME` from then on; with addresses, what the folder is to be called
    #[arg(required_unless_present_any = ["list", "hf_repo", "sae_hf", "sae_release"])]
    name: Option<String>,
    /// List the published models by name
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// With `--list`, print JSON
    #[arg(long, requires = "list")]
    json: bool,
    #[command(flatten)]
    addresses: Addresses,
    /// Number type of a language model that is converted [default: q8_0]
    #[arg(long = "type", value_name = "TYPE")]
    model_type: Option<ModelType>,
    /// Number type of a vision encoder and projector [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = one_of(SMALL_TYPES, TensorType::name))]
    mmproj_type: Option<TensorType>,
    /// Number type of the SAE [default: f16]
    #[arg(long, value_name = "TYPE", value_parser = one_of(SMALL_TYPES, TensorType::name))]
    sae_type: Option<TensorType>,
    /// The factor that normalises activations, where the SAE asks for one and nothing says which
    #[arg(long, value_name = "X")]
    norm_factor: Option<f32>,
    /// The hook point, whatever the SAE's files say: `blocks.20.hook_resid_post`
    #[arg(long, value_name = "NAME")]
    hook_name: Option<String>,
    /// Download without asking
    #[arg(long)]
    yes: bool,
    /// Download nothing: use what is in the cache
    #[arg(long)]
    offline: bool,
    /// Remove the downloads from the cache once the folder is made
    #[arg(long)]
    drop_downloads: bool,
    /// Make the folder anew where there is one
    #[arg(long)]
    force: bool,
}

impl PullArgs {
    fn job(&self) -> llava_sae_cpp::Result<Job> {
        let default = Types::default();
        let types = Types {
            model: self.model_type.unwrap_or(default.model),
            mmproj: self.mmproj_type.unwrap_or(default.mmproj),
            sae: self.sae_type.unwrap_or(default.sae),
        };
        let addressed = self.addresses.recipe()?;
        let mut recipe = match (addressed, &self.name) {
            (Some(recipe), _) => recipe,
            (None, Some(name)) => {
                let recipe = Recipe::of_pair(name);
                recipe
                    .ok_or_else(|| job::unknown(name))?
                    .with_labels(&self.addresses)
            }
            (None, None) => unreachable!("clap wants one of them"),
        };
        recipe.norm_factor = self.norm_factor;
        recipe.hook_name = self.hook_name.clone();
        Job::new(self.name.as_deref(), recipe, types)
    }

    /// Whether a folder was made as these arguments ask.
    fn is_made(&self, made: &Job, wanted: &Job) -> bool {
        let same = |given: bool, is_same: bool| !given || is_same;
        made.recipe == wanted.recipe
            && same(
                self.model_type.is_some(),
                made.types.model == wanted.types.model,
            )
            && same(
                self.mmproj_type.is_some(),
                made.types.mmproj == wanted.types.mmproj,
            )
            && same(self.sae_type.is_some(), made.types.sae == wanted.types.sae)
    }
}

pub(super) fn run(args: PullArgs, verbosity: Verbosity, cancel: CancelFlag) -> CommandResult {
    if args.list {
        return list::print_pairs(args.json);
    }
    let job = args.job()?;
    let folder = Folder::of(&job.name)?;
    let hub = hub(args.offline, &cancel)?;
    let _lock = folder.lock(&hub, verbosity)?;
    let path = folder.path();
    if path.exists() && !args.force {
        let made = folder.sources()?;
        if !args.is_made(&made, &job) {
            let what = format!(
                "`{}` was made of something else, or to other types",
                path.display()
            );
            return Err(Error::new(ErrorKind::Exists, what)
                .with_hint("give another name, or make it anew")
                .into());
        }
        say(
            verbosity,
            &[format!("`{}` is there already", path.display())],
        );
    } else {
        plan::check_can_ask(&job, &hub, args.yes)?;
        folder.make(
            &job,
            &hub,
            args.yes,
            args.drop_downloads,
            verbosity,
            &cancel,
        )?;
    }
    let next = job.next_command(path);
    say(verbosity, &[format!("next: `{next}`")]);
    Ok(Outcome::Done)
}
