//! The arguments of `features`, and what they mean.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use gguf_tools::new_file::Overwrite;
use llava_sae_cpp::compare::Sort;
use llava_sae_cpp::rank::{Over, Pool};
use llava_sae_cpp::report::features::{self, Order, Ranking};
use llava_sae_cpp::report::heatmap;
use llava_sae_cpp::report::page::About;
use llava_sae_cpp::report::table::Score;
use llava_sae_cpp::steering::Steering;
use llava_sae_cpp::{Kinds, SaeSet, Session, neuronpedia_addresses, saved_set};

use crate::cli::args::{Asked, GenerateArgs, ModelArgs, PromptArgs};
use crate::cli::compared;
use crate::cli::hints;
use crate::cli::interventions::{self, InterventionArgs};

/// List the features that images, or a text, activate
/// A feature has an activation at each position: at each patch of a picture and at each token of the
/// text. The activations at the positions that `--over` names are pooled into one number, the score
/// (`--pool`). Features are ranked by their score, or by how far their largest activation is above the
/// usual one (`--rank lift`). A feature's `max` also says where to start with interventions: a `--steer`
/// strength of about minus that much removes what the feature stands for.
/// `--heatmap` draws where the listed features are active. `--html` writes a page on which to explore
/// pictures or a text: every active feature, every patch and token, and what the model says, with and
/// without interventions.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
#[command(mut_group(interventions::ANY, |group| group.requires("html")))]
#[command(group(ArgGroup::new("generation").multiple(true).requires("generating").args([
    "max_tokens", "temp", "seed",
])))]
#[command(group(ArgGroup::new("generating").multiple(true).args(["html", "over"])))]
#[command(group(ArgGroup::new("outputs").multiple(true).args(["heatmap", "html"])))]
pub(in crate::cli) struct FeaturesArgs {
    /// The pictures; without any, `--prompt` is text only, and `--chat` has its own
    #[arg(required_unless_present_any = ["prompt", "chat"])]
    pub(super) image: Vec<PathBuf>,
    /// How many features to list
    #[arg(long, value_name = "N", default_value = "10")]
    pub(super) top: NonZeroUsize,
    /// The positions to pool: image, prompt (the text before generation, without the image), special
    /// (its special tokens, such as `<bos>`), generated, all (image and prompt), last (the prompt's last
    /// token), a position (negative: from the prompt's end), a range such as 5..9 (both ends included),
    /// token:TEXT, image:N, patch:ROW,COL, or a list of them [default: image, or prompt for text only]
    ///
    /// Special tokens, which begin, end or structure a text, are left out of `prompt` and `all`, since their
    /// activations would drown out all others; `prompt,special` includes them, and a position given as a
    /// number is always included. token:TEXT is every token of the prompt whose text is TEXT apart from the
    /// space around it; image:N is the prompt's N-th image, counted from 1; patch:ROW,COL and patch:R0..R1,C0..C1 are image rows by the patches they show,
    /// counted from 0 at the top left.
    #[arg(long, value_name = "WHERE", value_parser = parse_over, allow_hyphen_values = true)]
    pub(super) over: Option<Over>,
    /// How the activations at several positions become one score
    #[arg(long, value_name = "HOW", default_value = "max")]
    pub(super) pool: PoolArg,
    /// The order: by `lift`, how far the feature's largest activation is above its mean largest activation on
    /// the pictures of the SAE file's baseline, or by `activation`, the score [default: lift for maxima over
    /// the image, if the file has a baseline]
    #[arg(long, value_name = "ORDER")]
    pub(super) rank: Option<RankArg>,
    /// Hide these features: indices or labels, comma-separated
    #[arg(long, value_name = "FEATURES", value_parser = interventions::parse_names)]
    pub(super) exclude: Vec<String>,
    /// Hide features that are active on at least nine rows in ten: of the baseline's pictures if the SAE's file
    /// has a baseline, else of the pooled positions
    #[arg(long)]
    pub(super) exclude_always_on: bool,
    /// One list for all pictures together, by the mean of their scores
    #[arg(long, requires = "image", conflicts_with = "outputs")]
    pub(super) group: bool,
    /// Compare with the pictures of this folder, or with this picture; repeatable. IMAGE may be folders too, and the
    /// list is of features whose score is larger in IMAGE, on average
    #[arg(long, value_name = "DIR", requires = "image", conflicts_with_all = ["outputs", "group", "rank", "generation"])]
    pub(super) against: Vec<PathBuf>,
    /// With `--against`, the order: by the difference of mean scores, by the effect size (Hedges' g) or by the area
    /// under the ROC curve, the chance that a picture has a larger score than one that it is compared with
    #[arg(long, value_name = "ORDER", default_value = "difference", requires = "against", value_parser = compared::sorts())]
    pub(super) sort: Sort,
    /// Print one JSON object per image, each on its own line; with `--group`, one for all
    #[arg(long)]
    pub(super) json: bool,
    /// Draw a PNG for each listed feature: the picture with the activation over its patches
    #[arg(long, value_name = "DIR", requires = "image")]
    pub(super) heatmap: Option<PathBuf>,
    /// Write one self-contained page about pictures or a text: features, heat maps, tokens, and what the model
    /// says, which `-n`, `--temp`, `--seed` and interventions apply to
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Overwrite the files of `--heatmap` and `--html`
    #[arg(long, requires = "outputs")]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) prompt: PromptArgs,
    #[command(flatten)]
    pub(super) interventions: InterventionArgs,
    #[command(flatten)]
    pub(super) generate: GenerateArgs,
    #[command(flatten)]
    pub(super) model: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  llava-sae-cpp features --top 20 --json photo.jpg
      The features of a picture, as JSON
  llava-sae-cpp features --top 5 --heatmap maps photo.jpg
      The first five, each drawn over the picture: maps/photo-1-….png
  llava-sae-cpp features dogs/ --against cats/ --sort auroc
      What tells the pictures of one folder from those of another
  llava-sae-cpp features --html page.html --steer carrot:-16 --at image photo.jpg other.jpg
      A page on two pictures, with their captions before and after the intervention";

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum RankArg {
    Lift,
    Activation,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum PoolArg {
    Max,
    Sum,
    Mean,
    /// The number of positions where the feature is active
    Count,
}

fn parse_over(word: &str) -> Result<Over, String> {
    Over::parse(word).map_err(hints::with_hint)
}

impl FeaturesArgs {
    pub(super) fn overwrite(&self) -> Overwrite {
        Overwrite::if_forced(self.force)
    }

    /// What the score is, in words.
    pub(super) fn subject(&self) -> String {
        features::subject(self.pool.into(), &self.over())
    }

    /// What the table's scores are; those of a group are means.
    pub(super) fn score_is(&self) -> Score {
        match self.pool {
            PoolArg::Max if !self.group => Score::Max,
            _ => Score::Other,
        }
    }

    /// The positions that are pooled.
    pub(super) fn over(&self) -> Over {
        match (&self.over, self.image.is_empty()) {
            (Some(over), _) => over.clone(),
            (None, false) => Over::IMAGE,
            (None, true) => Over::PROMPT,
        }
    }

    /// The largest number of tokens to generate: none where nothing shows them.
    pub(super) fn max_tokens(&self) -> usize {
        match self.html.is_some() || self.over().kinds().generated {
            true => self.generate.max_tokens,
            false => 0,
        }
    }

    /// What each picture, or the text alone, is called in the names of files and on a page.
    pub(super) fn names(&self) -> Vec<String> {
        match self.image.is_empty() {
            false => heatmap::stems(&self.image),
            true => vec!["text".to_owned()],
        }
    }

    /// The rows whose features are shown somewhere.
    pub(super) fn looked_at(&self) -> Kinds {
        if self.html.is_some() {
            return Kinds::ALL;
        }
        let kinds = self.over().kinds();
        Kinds {
            image: kinds.image || self.json || self.heatmap.is_some(),
            ..kinds
        }
    }

    /// How features are ranked, and which `--exclude` and `--exclude-always-on` leave out.
    pub(super) fn ranking(&self, saes: &SaeSet) -> llava_sae_cpp::Result<Ranking> {
        let lists = self.exclude.iter();
        let lists = lists.map(|list| interventions::find_features(saes, list));
        let excluded: Vec<_> = lists.collect::<Result<_, _>>()?;
        let ranking = Ranking {
            over: self.over(),
            pool: self.pool.into(),
            order: self.rank.map(Into::into),
            excluded: excluded.into_iter().flatten().collect(),
            excludes_always_on: self.exclude_always_on,
        };
        for sae in saes {
            let has_lift = ranking.has_lift(sae);
            has_lift.map_err(|error| {
                error.with_hint(
                    "measure one with `llava-sae-cpp baseline`, or use `--rank activation`",
                )
            })?;
        }
        Ok(ranking)
    }

    /// What a page says about its pictures.
    pub(super) fn about(
        &self,
        asked: &Asked,
        steering: Option<&Steering>,
        ranking: &Ranking,
        session: &Session,
    ) -> llava_sae_cpp::Result<About> {
        let saes = session.model().saes();
        let lifts = saes.iter().map(|sae| ranking.has_lift(sae));
        let has_lift = lifts.collect::<Result<Vec<_>, _>>()?.contains(&true);
        let hooks = saes.iter().map(|sae| sae.hook_point().to_string());
        let hooks: Vec<_> = hooks.collect();
        Ok(About {
            model: self.model.shown_model(),
            sae: self.model.shown_sae(),
            hook: hooks.join(", "),
            prompt: asked.shown(session)?,
            ranked_by: ranking.described(has_lift),
            positions: self.over().to_string(),
            has_lift,
            neuronpedia: neuronpedia_addresses(saes),
            interventions: saved_set::entries(steering, session.model().saes()),
        })
    }
}

impl From<RankArg> for Order {
    fn from(rank: RankArg) -> Self {
        match rank {
            RankArg::Lift => Self::Lift,
            RankArg::Activation => Self::Activation,
        }
    }
}

impl From<PoolArg> for Pool {
    fn from(pool: PoolArg) -> Self {
        match pool {
            PoolArg::Max => Self::Max,
            PoolArg::Sum => Self::Sum,
            PoolArg::Mean => Self::Mean,
            PoolArg::Count => Self::Count,
        }
    }
}
