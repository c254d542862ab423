//! What a projector's file must hold.

use std::path::Path;

use gguf_tools::gguf::Gguf;

use super::wrong_role;
use crate::{Error, Result};

/// The shape of a vision encoder's input and output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VisionShape {
    /// Pixels a side.
    pub(crate) image_size: u32,
    /// Patches a side.
    pub(crate) grid: usize,
}

/// Checks a projector's file, for a language model of this width.
pub(super) fn check(path: &Path, d_model: u64) -> Result<VisionShape> {
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
