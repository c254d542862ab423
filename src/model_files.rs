//! The three GGUF files of a model, and the proof that they fit together.
//!
//! llama.cpp aborts the process on many malformed or foreign files, so everything that can be
//! known from the headers is checked here, before llama.cpp sees a path.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::Gguf;
use gguf_tools::sae::SaeFile;

use crate::hook_point::{HookPoint, Site};
use crate::llama::GraphNode;
use crate::{Error, Result};

/// Paths of a language model, its projector and its SAE.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The language model.
    pub model: PathBuf,
    /// The vision encoder and projector; needed for images only.
    pub mmproj: Option<PathBuf>,
    /// The SAE.
    pub sae: PathBuf,
}

impl ModelFiles {
    /// Takes the files that are named, and the others from `dir`, a folder that `convert` wrote:
    /// one `model*.gguf`, one `sae*.gguf`, and at most one `mmproj*.gguf`.
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
                    .with_hint("name a model, a projector and an SAE, or a folder with `-d DIR`"),
            })
        };
        Ok(Self {
            model: require(model, "model")?,
            mmproj: choose(mmproj, "mmproj")?,
            sae: require(sae, "sae")?,
        })
    }

    /// The side of the square picture that the vision encoder takes, in pixels.
    ///
    /// # Errors
    /// Files without a projector, or one that cannot be read.
    pub fn image_size(&self) -> Result<u32> {
        let mmproj = self.mmproj.as_deref().ok_or_else(|| {
            Error::invalid("this model has no projector, so it cannot see images")
                .with_hint("give the projector's file with `--mmproj`")
        })?;
        Ok(Gguf::open(mmproj)?.require_u32("clip.vision.image_size")?)
    }

    /// Checks that the files are what they should be and fit together, by their headers.
    ///
    /// # Errors
    /// Files that are missing, malformed, foreign or do not fit, each with what to do.
    pub fn check(&self) -> Result<()> {
        check(self).map(|_| ())
    }
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

/// What the headers of matching files say.
pub(crate) struct CheckedFiles {
    pub(crate) sae: SaeFile,
    /// Where the SAE reads.
    pub(crate) hook_point: HookPoint,
    /// The graph's node there.
    pub(crate) node: GraphNode,
    /// The vision encoder's picture size and grid, where there is a projector.
    pub(crate) vision: Option<VisionShape>,
}

/// The shape of a vision encoder's input and output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VisionShape {
    /// Pixels a side.
    pub(crate) image_size: u32,
    /// Patches a side.
    pub(crate) grid: usize,
}

/// Reads the headers and checks that the files are what they should be and fit together.
pub(crate) fn check(files: &ModelFiles) -> Result<CheckedFiles> {
    let model = Gguf::open(&files.model)?;
    let arch = model.require_str("general.architecture")?.to_owned();
    if matches!(&*arch, "clip" | "sae" | "controlvector") {
        return Err(wrong_role(&files.model, "a language model", &arch));
    }
    model.require_str("tokenizer.ggml.model")?;
    let d_model = u64::from(model.require_u32(&format!("{arch}.embedding_length"))?);
    let n_layers = model.require_u32(&format!("{arch}.block_count"))? as usize;
    if let Some(embedding) = model.tensor("token_embd.weight") {
        if embedding.dims.first() != Some(&d_model) {
            return Err(Error::invalid(format!(
                "`token_embd.weight` in `{}` has shape {:?}, but `{arch}.embedding_length` is {d_model}",
                files.model.display(),
                embedding.dims
            )));
        }
    } else {
        return Err(Error::invalid(format!(
            "no tensor `token_embd.weight` in `{}`",
            files.model.display()
        )));
    }
    let sae = SaeFile::open(&files.sae)?;
    let hook_point = HookPoint::parse(&sae.meta.hook_name)?;
    let node = hook_point.node(&arch, n_layers)?;
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
        .map(|path| check_projector(path, d_model))
        .transpose()?;
    Ok(CheckedFiles {
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

fn check_projector(path: &Path, d_model: u64) -> Result<VisionShape> {
    let shown = path.display();
    let mmproj = Gguf::open(path)?;
    let arch = mmproj.require_str("general.architecture")?;
    if arch != "clip" {
        return Err(wrong_role(path, "a projector (mmproj)", arch));
    }
    let projector = mmproj.require_str("clip.projector_type")?;
    if projector != "mlp" {
        return Err(Error::invalid(format!(
            "the projector in `{shown}` is of type `{projector}`, and only `mlp` is supported"
        ))
        .with_hint("use the projector of a LLaVA model, made by `llava-sae-cpp convert`"));
    }
    let image_size = mmproj.require_u32("clip.vision.image_size")?;
    let patch_size = mmproj.require_u32("clip.vision.patch_size")?;
    let width = u64::from(mmproj.require_u32("clip.vision.embedding_length")?);
    if patch_size == 0
        || image_size == 0
        || !image_size.is_multiple_of(patch_size)
        || image_size > 4096
    {
        return Err(Error::invalid(format!(
            "`{shown}` asks for pictures of {image_size} pixels in patches of {patch_size}"
        )));
    }
    let grid = image_size / patch_size;
    let n_positions = u64::from(grid) * u64::from(grid) + 1;
    mmproj.require_tensor("v.class_embd", &[width])?;
    mmproj.require_tensor("v.position_embd.weight", &[width, n_positions])?;
    let size = u64::from(patch_size);
    mmproj.require_tensor("v.patch_embd.weight", &[size, size, 3, width])?;
    check_blocks(&mmproj, width)?;
    let n_out = mmproj
        .tensor("mm.2.weight")
        .and_then(|tensor| tensor.dims.get(1).copied())
        .ok_or_else(|| Error::invalid(format!("no matrix `mm.2.weight` in `{shown}`")))?;
    if n_out != d_model {
        return Err(Error::invalid(format!(
            "the projector makes rows of {n_out}, and the model's rows have {d_model}: `{shown}` belongs to another model"
        ))
        .with_hint("convert model and projector from the same checkpoint"));
    }
    let n_hidden = match mmproj.tensor("mm.0.bias").map(|bias| &bias.dims[..]) {
        Some(&[n_hidden]) => n_hidden,
        _ => {
            return Err(Error::invalid(format!(
                "no vector `mm.0.bias` in `{shown}`"
            )));
        }
    };
    mmproj.require_tensor("mm.0.weight", &[width, n_hidden])?;
    mmproj.require_tensor("mm.2.weight", &[n_hidden, d_model])?;
    mmproj.require_tensor("mm.2.bias", &[d_model])?;
    Ok(VisionShape {
        image_size,
        grid: grid as usize,
    })
}

/// Checks the encoder's blocks: llama.cpp takes their shapes as they come and aborts on the first
/// product that does not fit.
fn check_blocks(mmproj: &Gguf, width: u64) -> Result<()> {
    let d_ffn = u64::from(mmproj.require_u32("clip.vision.feed_forward_length")?);
    let n_heads = u64::from(mmproj.require_u32("clip.vision.attention.head_count")?);
    if n_heads == 0 || !width.is_multiple_of(n_heads) {
        return Err(Error::invalid(format!(
            "`{}` asks for {n_heads} attention heads of a width of {width}",
            mmproj.path().display()
        )));
    }
    for block_idx in 0..mmproj.require_u32("clip.vision.block_count")? {
        let linear_layers = [
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_out", width, width),
            ("ffn_up", width, d_ffn),
            ("ffn_down", d_ffn, width),
        ];
        for (part, n_in, n_out) in linear_layers {
            mmproj.require_tensor(&format!("v.blk.{block_idx}.{part}.weight"), &[n_in, n_out])?;
            mmproj.require_tensor(&format!("v.blk.{block_idx}.{part}.bias"), &[n_out])?;
        }
        for part in ["ln1.weight", "ln1.bias", "ln2.weight", "ln2.bias"] {
            mmproj.require_tensor(&format!("v.blk.{block_idx}.{part}"), &[width])?;
        }
    }
    for part in ["v.pre_ln.weight", "v.pre_ln.bias"] {
        mmproj.require_tensor(part, &[width])?;
    }
    Ok(())
}

fn wrong_role(path: &Path, expected: &str, arch: &str) -> Error {
    Error::invalid(format!(
        "`{}` should be {expected}, but its architecture is `{arch}`",
        path.display()
    ))
    .with_hint("check which file goes with which option: `--model`, `--mmproj`, `--sae`")
}
