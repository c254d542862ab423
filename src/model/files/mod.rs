//! The GGUF files of a model, and the proof that they fit together.
//!
//! llama.cpp aborts the process on many malformed or foreign files, so everything that can be
//! known from the headers is checked here, before llama.cpp sees a path.

mod language_model;
mod projector;
mod rules;
mod vocabulary;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf_tools::gguf::{Gguf, ShardName, TensorInfo, Value};
use gguf_tools::sae::SaeFile;

use crate::llama::HookedNode;
use crate::model::fingerprint::fingerprint;
use crate::picture::ImagePrep;
use crate::{Error, ErrorKind, GraphNode, HookPoint, Result, Sae, SaeSet, ShownRows, Site};

use language_model::LanguageModel;
pub(crate) use projector::{CheckedProjector, MAX_ATTENTION_SCORES, PictureViews, VisionShape};

/// Paths of a language model, its projector and its SAEs.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The language model; of one in shards, `NAME-00001-of-0000N.gguf` and so on, any of them.
    pub model: PathBuf,
    /// The vision encoder and projector; needed for images only.
    pub mmproj: Option<PathBuf>,
    /// The SAEs; none is needed for interventions that know no features.
    pub saes: Vec<PathBuf>,
}

impl ModelFiles {
    /// Takes the files that are named, and the others from `dir`, a folder that `convert` wrote:
    /// one `model*.gguf`, which may be in shards, one `sae*.gguf`, and at most one `mmproj*.gguf`. Several SAEs
    /// have to be named.
    ///
    /// # Errors
    /// A folder that cannot be read, or a role with several files or, but for the projector, none.
    pub fn find(
        dir: Option<&Path>,
        model: Option<PathBuf>,
        mmproj: Option<PathBuf>,
        saes: Vec<PathBuf>,
    ) -> Result<Self> {
        let files = Self::find_sae_or_none(dir, model, mmproj, saes)?;
        match files.saes.is_empty() {
            true => Err(missing_role("sae", dir)),
            false => Ok(files),
        }
    }

    /// As [`ModelFiles::find`], for what needs no SAE, but takes one that is there.
    ///
    /// # Errors
    /// As there, but for a missing SAE.
    pub fn find_sae_or_none(
        dir: Option<&Path>,
        model: Option<PathBuf>,
        mmproj: Option<PathBuf>,
        saes: Vec<PathBuf>,
    ) -> Result<Self> {
        let choose = |given: Option<PathBuf>, role| match (given, dir) {
            (Some(path), _) => Ok(Some(path)),
            (None, Some(dir)) => find_role(dir, role),
            (None, None) => Ok(None),
        };
        Ok(Self {
            model: choose(model, "model")?.ok_or_else(|| missing_role("model", dir))?,
            mmproj: choose(mmproj, "mmproj")?,
            saes: match saes.is_empty() {
                true => choose(None, "sae")?.into_iter().collect(),
                false => saes,
            },
        })
    }

    /// The files that there are.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let optional = self.mmproj.as_deref();
        [&*self.model]
            .into_iter()
            .chain(optional)
            .chain(self.saes.iter().map(PathBuf::as_path))
    }

    /// The side of the square picture that the vision encoder takes, in pixels; of the parts that llama.cpp cuts
    /// a picture into, where it prepares pictures; of a square that is as good as any, where pictures have sides of
    /// their own.
    ///
    /// # Errors
    /// Files without a projector, or one that cannot be read.
    pub fn image_size(&self) -> Result<u32> {
        Gguf::open(self.projector()?)?.require_u32("clip.vision.image_size")
    }

    /// How a picture becomes the square that the vision encoder takes, where `asked` is wanted, if anything is;
    /// none where llama.cpp prepares pictures.
    ///
    /// # Errors
    /// As [`ModelFiles::image_size`]; a way in which such a model was not trained.
    pub fn image_prep(&self, asked: Option<ImagePrep>) -> Result<Option<ImagePrep>> {
        ImagePrep::of(projector::image_preps(self.projector()?)?, asked)
    }

    /// How pictures are prepared, for a report.
    pub(crate) fn image_prep_name(&self, asked: Option<ImagePrep>) -> Result<&'static str> {
        Ok(self.image_prep(asked)?.map_or("llama.cpp", ImagePrep::name))
    }

    /// The projector's file.
    ///
    /// # Errors
    /// Files without one: such a model cannot see.
    pub fn projector(&self) -> Result<&Path> {
        self.mmproj.as_deref().ok_or_else(no_projector)
    }

    /// Opens the SAEs without the model.
    ///
    /// # Errors
    /// No SAE, one that cannot be read, or two of the same id.
    pub fn open_saes(&self) -> Result<SaeSet> {
        if self.saes.is_empty() {
            return Err(missing_role("sae", None));
        }
        let saes = self.saes.iter().map(|path| Sae::open(path).map(Arc::new));
        SaeSet::new(saes.collect::<Result<_>>()?)
    }

    /// Checks that the files are what they should be and fit together, by their headers.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn check(&self) -> Result<()> {
        check(self).map(|_| ())
    }
}

/// The error for a role without a file, which `dir`, if it is given, does not hold either.
fn missing_role(role: &str, dir: Option<&Path>) -> Error {
    match dir {
        Some(dir) => Error::invalid(format!("no `{role}*.gguf` in `{}`", dir.display()))
            .with_hint("make such a folder with a conversion"),
        None => Error::new(
            ErrorKind::Missing,
            match role {
                "model" => "the language model's file is missing",
                _ => "the SAE's file is missing",
            },
        )
        .with_hint("name it, or give a folder with all three"),
    }
}

/// The error for a model that is to see an image, and cannot.
pub(crate) fn no_projector() -> Error {
    let what = "this model has no projector, so it cannot see images";
    Error::new(ErrorKind::NoProjector, what).with_hint("give the projector's file")
}

fn find_role(dir: &Path, role: &'static str) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(role) && name.ends_with(".gguf") {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup_by(|shard, earlier| is_shard_of_same(shard, earlier));
    if found.len() > 1 {
        let names: Vec<_> = found
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(Error::invalid(format!(
            "several `{role}*.gguf` in `{}`: {}",
            dir.display(),
            names.join(", ")
        ))
        .of_kind(ErrorKind::Missing)
        .with_hint(format!("say which of them is the {role}")));
    }
    Ok(found.pop())
}

/// Whether two paths in a folder are named as shards of one model.
fn is_shard_of_same(path: &Path, other: &Path) -> bool {
    let whole = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let shard = ShardName::parse(name)?;
        Some((shard.stem.to_owned(), shard.n_shards))
    };
    whole(path).is_some_and(|path| whole(other) == Some(path))
}

/// What the headers of matching files say.
pub(crate) struct CheckedFiles {
    /// The language model's file, or its first shard, which is what llama.cpp is given.
    pub(crate) model: PathBuf,
    pub(crate) graph: Graph,
    pub(crate) saes: Vec<SaeFile>,
    pub(crate) projector: Option<CheckedProjector>,
}

/// What a language model's header says of its graph.
pub(crate) struct Graph {
    path: PathBuf,
    shards: Vec<PathBuf>,
    architecture: String,
    n_layers: usize,
    d_model: u64,
    /// The blocks, from the first, behind which image rows are added to the stream.
    n_deepstack: usize,
    /// Whether all that blocks compute depends on the residual stream alone.
    is_of_stream_alone: bool,
    /// Whether it is known, and was compared with transformers.
    is_known: bool,
    /// Whether its norms subtract a row's mean, so that the stream's means are nothing to it.
    has_layer_norms: bool,
    /// Whether attention and MLP of a block read the same rows, and llama.cpp computes the MLP first.
    is_parallel: bool,
    tensors: Vec<TensorInfo>,
}

/// Reads the headers and checks that the files are what they should be and fit together.
pub(crate) fn check(files: &ModelFiles) -> Result<CheckedFiles> {
    let model = Gguf::open_with_shards(&files.model)?;
    let LanguageModel {
        architecture,
        d_model,
        n_layers,
        n_deepstack,
        is_of_stream_alone,
        is_known,
    } = language_model::check(&model)?;
    let graph = Graph {
        path: files.model.clone(),
        shards: model.paths().to_vec(),
        architecture: architecture.to_owned(),
        n_layers,
        d_model,
        n_deepstack,
        is_of_stream_alone,
        is_known,
        has_layer_norms: model
            .get(&format!("{architecture}.attention.layer_norm_epsilon"))
            .is_some(),
        is_parallel: model.get("gptneox.use_parallel_residual") == Some(&Value::Bool(true)),
        tensors: model.tensors().to_vec(),
    };
    let saes = files.saes.iter().map(|path| {
        let sae = SaeFile::open(path)?;
        graph.check_sae(&sae)?;
        Ok(sae)
    });
    let saes = saes.collect::<Result<_>>()?;
    let projector = files
        .mmproj
        .as_deref()
        .map(|path| projector::check(path, &model, d_model, n_deepstack))
        .transpose()?;
    Ok(CheckedFiles {
        model: model.path().to_owned(),
        graph,
        saes,
        projector,
    })
}

impl Graph {
    /// The language model's file, or one of its shards.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells its files from others.
    pub(crate) fn fingerprint(&self) -> Result<blake3::Hash> {
        fingerprint(&self.shards, &self.tensors)
    }

    /// The architecture, if its graph is not known.
    pub(crate) fn unknown_architecture(&self) -> Option<&str> {
        (!self.is_known).then_some(&*self.architecture)
    }

    /// The node that shows a hook point.
    ///
    /// # Errors
    /// A hook point that this model's graph does not show, or shows something else at.
    pub(crate) fn node(&self, hook_point: HookPoint) -> Result<HookedNode> {
        hook_point.node(&self.architecture, self.n_layers, self.n_deepstack)?;
        self.node_of_edits(hook_point).map(|(node, _)| node)
    }

    /// The node for edits, and which rows it shows: in the last block, those that need logits.
    ///
    /// # Errors
    /// As [`Graph::node`].
    pub(crate) fn node_of_edits(&self, hook_point: HookPoint) -> Result<(HookedNode, ShownRows)> {
        let (node, rows) =
            hook_point.node_of_edits(&self.architecture, self.n_layers, self.n_deepstack)?;
        let layer = hook_point.layer();
        let refused = |why: &str| {
            let shown = self.path.display();
            let what = format!("cannot hook `{hook_point}`: `{shown}` {why}");
            Error::new(ErrorKind::Unsupported, what)
        };
        let has_experts = || self.tensor(&format!("blk.{layer}.ffn_gate_inp.weight"));
        // Gemma 4's have a node behind all; of what they read, there are two.
        let is_unknown = match self.architecture == "gemma4" {
            true => matches!(hook_point.site(), Site::MlpIn | Site::Ln2Normalized),
            false => hook_point.site() == Site::MlpOut,
        };
        if is_unknown && has_experts().is_some() {
            return Err(refused(match self.architecture == "gemma4" {
                true => "is a mixture of experts, which read the stream in several ways",
                false => "is a mixture of experts, whose sum has no known node",
            })
            .with_hint("use the residual stream"));
        }
        if let GraphNode::MultipliesBy(weight) = &node {
            // llama.cpp multiplies by it, or adds it, after the node.
            let stem = weight.trim_end_matches("weight");
            for name in ["scale", "bias"].map(|part| format!("{stem}{part}")) {
                if self.tensor(&name).is_some() {
                    return Err(refused(&format!(
                        "has a tensor `{name}`, which is not supported there"
                    ))
                    .with_hint("use a file of this model without it, such as one in f16"));
                }
            }
        }
        let width = match hook_point.site() {
            Site::ResidPost
            | Site::MlpOut
            | Site::MlpIn
            | Site::Ln2Normalized
            | Site::ResidMid
            | Site::AttnOut => self.d_model,
            Site::Z => self.width_of_z(layer)?,
        };
        let width = usize::try_from(width).map_err(|_| refused("has rows that are too long"))?;
        Ok((HookedNode { node, width }, rows))
    }

    /// Whether everything above a hook point depends on its rows alone.
    pub(crate) fn parts_at(&self, hook_point: HookPoint) -> bool {
        hook_point.site() == Site::ResidPost
            && hook_point.layer() + 1 >= self.n_deepstack
            && self.is_of_stream_alone
    }

    /// Whether image rows are added to the stream behind a block (deepstack), which llama.cpp's control vector comes
    /// before.
    pub(crate) fn adds_images_behind(&self, layer: usize) -> bool {
        layer < self.n_deepstack
    }

    /// Checks that the model computes these places in the order that they have here.
    ///
    /// # Errors
    /// What attention and MLP of a block give, where both read the same rows.
    pub(crate) fn check_order(&self, places: &BTreeSet<HookPoint>) -> Result<()> {
        if !self.is_parallel {
            return Ok(());
        }
        let has_mlp = |layer| {
            let mut mlps = places.iter().filter(|place| place.site() == Site::MlpOut);
            mlps.any(|place| place.layer() == layer)
        };
        let is_beside =
            |place: &&HookPoint| place.site() == Site::AttnOut && has_mlp(place.layer());
        let Some(place) = places.iter().find(is_beside) else {
            return Ok(());
        };
        let what = format!(
            "cannot hook `{place}` together with what the MLP of this block gives: the model computes them beside one another"
        );
        Err(Error::new(ErrorKind::Unsupported, what).with_hint("hook one of them at a time"))
    }

    /// Checks that an SAE reads what the model shows, and where it writes.
    fn check_sae(&self, sae: &SaeFile) -> Result<()> {
        self.check_place(sae, &sae.meta.hook_name, "reads", sae.meta.d_in)?;
        for name in &sae.meta.hook_names_out {
            self.check_place(sae, name, "writes", sae.meta.d_out)?;
        }
        if sae.meta.is_centred && !self.has_layer_norms {
            let what = format!(
                "`{}` reads rows less their mean, which only models with layer norms have, and `{}` has none",
                sae.path().display(),
                self.path.display()
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("use an SAE that was trained on this language model"));
        }
        Ok(())
    }

    /// Checks that the model shows a place where an SAE reads or writes, with rows of its width.
    fn check_place(&self, sae: &SaeFile, name: &str, does: &str, expected: usize) -> Result<()> {
        let hook_point = HookPoint::parse(name)?;
        // Of what a cross-layer transcoder writes in the last block, the rows that need logits are all that matters.
        let node = match sae.meta.hook_names_out.len() > 1 && does == "writes" {
            true => self.node_of_edits(hook_point).map(|(node, _)| node),
            false => self.node(hook_point),
        };
        let HookedNode { width, .. } = node.map_err(|error| {
            let what = format!(
                "`{}` does not fit this model: {error}",
                sae.path().display()
            );
            error.with_message(what)
        })?;
        let layer = hook_point.layer();
        let has_norm = || self.tensor(&format!("blk.{layer}.post_ffw_norm.weight"));
        if matches!(hook_point.site(), Site::MlpOut | Site::AttnOut)
            && sae.meta.source_format.as_deref() == Some("sparsify")
            && has_norm().is_some()
        {
            let shown = self.path.display();
            let what = format!(
                "the SAE belongs to `{hook_point}`, and `{shown}` normalises what attention and MLP give before it is added: sparsify's SAEs read it before, and the hook point is after"
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("use an SAE of the residual stream, or one of Gemma Scope"));
        }
        if expected == width {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the SAE {does} rows of {expected}, and the model's rows at `{hook_point}` have {width}: `{}` and `{}` do not belong together",
            sae.path().display(),
            self.path.display()
        ))
        .with_hint("use an SAE that was trained on this language model"))
    }

    /// The width of the heads' outputs side by side: what the output projection reads.
    fn width_of_z(&self, layer: usize) -> Result<u64> {
        let name = format!("blk.{layer}.attn_output.weight");
        let matrix = self.tensor(&name).filter(|tensor| tensor.dims.len() == 2);
        let matrix = matrix.ok_or_else(|| {
            Error::invalid(format!("no matrix `{name}` in `{}`", self.path.display()))
        })?;
        Ok(matrix.dims[0])
    }

    /// Whether positions are looked up in a table, behind whose end llama.cpp would end the process.
    pub(crate) fn has_position_table(&self) -> bool {
        self.tensor("position_embd.weight").is_some()
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}
