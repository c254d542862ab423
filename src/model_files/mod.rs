//! The three GGUF files of a model, and the proof that they fit together.
//!
//! llama.cpp aborts the process on many malformed or foreign files, so everything that can be
//! known from the headers is checked here, before llama.cpp sees a path.

mod language_model;
mod projector;
mod rules;
mod vocabulary;

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, ShardName};
use gguf_tools::sae::SaeFile;

use crate::hook_point::{HookPoint, Site};
use crate::llama::GraphNode;
use crate::{Error, Result};

use language_model::LanguageModel;
pub(crate) use projector::VisionShape;

/// Paths of a language model, its projector and its SAE.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The language model; of one in shards, `NAME-00001-of-0000N.gguf` and so on, any of them.
    pub model: PathBuf,
    /// The vision encoder and projector; needed for images only.
    pub mmproj: Option<PathBuf>,
    /// The SAE.
    pub sae: PathBuf,
}

impl ModelFiles {
    /// Takes the files that are named, and the others from `dir`, a folder that `convert` wrote:
    /// one `model*.gguf`, which may be in shards, one `sae*.gguf`, and at most one `mmproj*.gguf`.
    ///
    /// # Errors
    /// A folder that cannot be read, or a role with several files or, but for the projector, none.
    pub fn find(
        dir: Option<&Path>,
        model: Option<PathBuf>,
        mmproj: Option<PathBuf>,
        sae: Option<PathBuf>,
    ) -> Result<Self> {
        let choose = |given: Option<PathBuf>, role| match (given, dir) {
            (Some(path), _) => Ok(Some(path)),
            (None, Some(dir)) => find_role(dir, role),
            (None, None) => Ok(None),
        };
        let require = |given, role: &'static str| {
            choose(given, role)?.ok_or_else(|| match dir {
                Some(dir) => Error::invalid(format!("no `{role}*.gguf` in `{}`", dir.display()))
                    .with_hint("make such a folder with `llava-sae-cpp convert`"),
                None => Error::invalid(format!("`--{role} FILE` is missing"))
                    .with_hint(match role {
                        "model" => {
                            "add `-m FILE`, and `--mmproj FILE` to see pictures, or a folder with `-d DIR`"
                        }
                        _ => "add `--sae FILE`, or a folder with `-d DIR`",
                    }),
            })
        };
        Ok(Self {
            model: require(model, "model")?,
            mmproj: choose(mmproj, "mmproj")?,
            sae: require(sae, "sae")?,
        })
    }

    /// The files that there are.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let optional = self.mmproj.as_deref();
        [&*self.model]
            .into_iter()
            .chain(optional)
            .chain([&*self.sae])
    }

    /// The side of the square picture that the vision encoder takes, in pixels.
    ///
    /// # Errors
    /// Files without a projector, or one that cannot be read.
    pub fn image_size(&self) -> Result<u32> {
        Ok(Gguf::open(self.projector()?)?.require_u32("clip.vision.image_size")?)
    }

    /// The projector's file.
    ///
    /// # Errors
    /// Files without one: such a model cannot see.
    pub fn projector(&self) -> Result<&Path> {
        self.mmproj.as_deref().ok_or_else(no_projector)
    }

    /// Checks that the files are what they should be and fit together, by their headers.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn check(&self) -> Result<()> {
        check(self).map(|_| ())
    }
}

/// The error for a model that is to see an image, and cannot.
pub(crate) fn no_projector() -> Error {
    Error::invalid("this model has no projector, so it cannot see images")
        .with_hint("give the projector's file with `--mmproj`")
}

fn find_role(dir: &Path, role: &'static str) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(gguf_tools::Error::io("read", dir))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(gguf_tools::Error::io("read", dir))?;
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
        .with_hint(format!("say which with `--{role} FILE`")));
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
    pub(crate) sae: SaeFile,
    /// Where the SAE reads.
    pub(crate) hook_point: HookPoint,
    /// The graph's node there.
    pub(crate) node: GraphNode,
    /// The vision encoder's picture size and grid, where there is a projector.
    pub(crate) vision: Option<VisionShape>,
}

/// Reads the headers and checks that the files are what they should be and fit together.
pub(crate) fn check(files: &ModelFiles) -> Result<CheckedFiles> {
    let model = Gguf::open_with_shards(&files.model)?;
    let LanguageModel {
        architecture,
        d_model,
        n_layers,
    } = language_model::check(&model)?;
    let sae = SaeFile::open(&files.sae)?;
    let hook_point = HookPoint::parse(&sae.meta.hook_name)?;
    let node = hook_point.node(architecture, n_layers)?;
    check_site(&model, &sae, hook_point, &node)?;
    let width = match hook_point.site() {
        Site::ResidPost | Site::MlpOut | Site::AttnOut => d_model,
        Site::Z => width_of_z(&model, hook_point.layer())?,
    };
    if sae.meta.d_in as u64 != width {
        return Err(Error::invalid(format!(
            "the SAE reads rows of {}, and the model's rows at `{hook_point}` have {width}: `{}` and `{}` do not belong together",
            sae.meta.d_in,
            files.sae.display(),
            files.model.display()
        ))
        .with_hint("use an SAE that was trained on this language model"));
    }
    let vision = files
        .mmproj
        .as_deref()
        .map(|path| projector::check(path, d_model))
        .transpose()?;
    Ok(CheckedFiles {
        model: model.path().to_owned(),
        sae,
        hook_point,
        node,
        vision,
    })
}

/// Checks what makes a node show something else than the SAE was trained on.
fn check_site(model: &Gguf, sae: &SaeFile, hook_point: HookPoint, node: &GraphNode) -> Result<()> {
    let layer = hook_point.layer();
    let refused = |why: &str| {
        Error::invalid(format!(
            "the SAE belongs to `{hook_point}`, and `{}` {why}",
            model.path().display()
        ))
    };
    let has_experts = || model.tensor(&format!("blk.{layer}.ffn_gate_inp.weight"));
    if hook_point.site() == Site::MlpOut && has_experts().is_some() {
        return Err(
            refused("is a mixture of experts, whose sum has no known node")
                .with_hint("use an SAE of the residual stream"),
        );
    }
    if let GraphNode::MultipliesBy(weight) = node {
        // llama.cpp multiplies by it, or adds it, after the node.
        let stem = weight.trim_end_matches("weight");
        for name in ["scale", "bias"].map(|part| format!("{stem}{part}")) {
            if model.tensor(&name).is_some() {
                return Err(refused(&format!(
                    "has a tensor `{name}`, which is not supported there"
                ))
                .with_hint("use a file of this model without it, such as one in f16"));
            }
        }
    }
    let has_norm = || model.tensor(&format!("blk.{layer}.post_ffw_norm.weight"));
    if matches!(hook_point.site(), Site::MlpOut | Site::AttnOut)
        && sae.meta.source_format.as_deref() == Some("sparsify")
        && has_norm().is_some()
    {
        return Err(refused(
            "normalises what attention and MLP give before it is added: sparsify's SAEs read it before, and the hook point is after",
        )
        .with_hint("use an SAE of the residual stream, or one of Gemma Scope"));
    }
    Ok(())
}

/// The width of the heads' outputs side by side: what the output projection reads.
fn width_of_z(model: &Gguf, layer: usize) -> Result<u64> {
    let name = format!("blk.{layer}.attn_output.weight");
    let matrix = model.tensor(&name).filter(|tensor| tensor.dims.len() == 2);
    let matrix = matrix.ok_or_else(|| {
        Error::invalid(format!(
            "no matrix `{name}` in `{}`",
            model.path().display()
        ))
    })?;
    Ok(matrix.dims[0])
}

fn wrong_role(path: &Path, expected: &str, arch: &str) -> Error {
    Error::invalid(format!(
        "`{}` should be {expected}, but its architecture is `{arch}`",
        path.display()
    ))
    .with_hint("check which file goes with which option: `--model`, `--mmproj`, `--sae`")
}
