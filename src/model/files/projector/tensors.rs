//! The tensors of a CLIP encoder and an `mlp` projector.

use std::collections::HashMap;

use gguf_tools::gguf::{Gguf, TensorInfo};

use crate::model::files::rules::{Role, broken, check_tensor};
use crate::{Error, Result};

/// The encoder's sizes, which fit together.
pub(super) struct Sizes {
    pub(super) image: u32,
    pub(super) patch: u32,
    pub(super) grid: u32,
    pub(super) width: u32,
    pub(super) d_ffn: u32,
}

/// What CLIP has behind its blocks, and LLaVA does not use.
pub(super) const POST_NORM: [&str; 2] = ["v.post_ln.weight", "v.post_ln.bias"];

/// The tensors of a file that have not been checked.
struct Unchecked<'a> {
    file: &'a Gguf,
    tensors: HashMap<&'a str, &'a TensorInfo>,
}

/// Checks that the file holds `n_blocks` blocks and all else that llama.cpp reads, and nothing more.
pub(super) fn check(file: &Gguf, sizes: &Sizes, n_blocks: u32, d_model: u64) -> Result<()> {
    let [width, d_ffn, patch] = [sizes.width, sizes.d_ffn, sizes.patch].map(u64::from);
    let tensors = file.tensors().iter();
    let mut unchecked = Unchecked {
        file,
        tensors: tensors.map(|tensor| (&*tensor.name, tensor)).collect(),
    };
    unchecked.one("v.class_embd", Role::Vector, &[width])?;
    let n_positions = u64::from(sizes.grid).pow(2) + 1;
    unchecked.one(
        "v.position_embd.weight",
        Role::Matrix,
        &[width, n_positions],
    )?;
    unchecked.one(
        "v.patch_embd.weight",
        Role::Kernel,
        &[patch, patch, 3, width],
    )?;
    unchecked.norm("v.pre_ln", width)?;
    for block_idx in 0..n_blocks {
        let name = |part| format!("v.blk.{block_idx}.{part}");
        for part in ["attn_q", "attn_k", "attn_v", "attn_out"] {
            unchecked.linear(&name(part), width, width)?;
        }
        // Files of before 2025 have the two names exchanged, which llama.cpp sees as it is seen here.
        let down = file.tensor(&name("ffn_down.weight"));
        let [up, down] = match down.is_some_and(|down| down.dims[0] == width) {
            true => ["ffn_down", "ffn_up"],
            false => ["ffn_up", "ffn_down"],
        };
        unchecked.linear(&name(up), width, d_ffn)?;
        unchecked.linear(&name(down), d_ffn, width)?;
        unchecked.norm(&name("ln1"), width)?;
        unchecked.norm(&name("ln2"), width)?;
    }
    for name in POST_NORM {
        if file.tensor(name).is_some() {
            unchecked.one(name, Role::Vector, &[width])?;
        }
    }
    unchecked.projector(width, d_model)?;
    // In the file's order, so that it is the same one each time.
    let mut tensors = file.tensors().iter();
    match tensors.find(|tensor| unchecked.tensors.contains_key(&*tensor.name)) {
        None => Ok(()),
        Some(tensor) => Err(broken(
            file,
            format!(
                "tensor `{}` does not belong to a LLaVA projector",
                tensor.name
            ),
        )),
    }
}

impl Unchecked<'_> {
    fn one(&mut self, name: &str, role: Role, dims: &[u64]) -> Result<()> {
        let missing = || broken(self.file, format!("there is no tensor `{name}`"));
        let tensor = self.tensors.remove(name).ok_or_else(missing)?;
        check_tensor(self.file, tensor, role, dims)
    }

    /// A matrix and a bias.
    fn linear(&mut self, name: &str, n_in: u64, n_out: u64) -> Result<()> {
        self.one(&format!("{name}.weight"), Role::Matrix, &[n_in, n_out])?;
        self.one(&format!("{name}.bias"), Role::Vector, &[n_out])
    }

    /// The weight and bias of a LayerNorm.
    fn norm(&mut self, name: &str, width: u64) -> Result<()> {
        self.one(&format!("{name}.weight"), Role::Vector, &[width])?;
        self.one(&format!("{name}.bias"), Role::Vector, &[width])
    }

    /// Two linear layers, the second of which makes rows of the language model.
    fn projector(&mut self, width: u64, d_model: u64) -> Result<()> {
        let dim = |name: &str, dim_idx: usize| {
            let tensor = self.file.tensor(name);
            let dim = tensor.and_then(|tensor| tensor.dims.get(dim_idx).copied());
            dim.ok_or_else(|| broken(self.file, format!("there is no matrix `{name}`")))
        };
        let n_hidden = dim("mm.0.weight", 1)?;
        let n_out = dim("mm.2.weight", 1)?;
        if n_out != d_model {
            return Err(Error::invalid(format!(
                "the projector makes rows of {n_out}, and the model's rows have {d_model}: `{}` belongs to another model",
                self.file.path().display()
            ))
            .with_hint("convert model and projector from the same checkpoint"));
        }
        self.linear("mm.0", width, n_hidden)?;
        self.linear("mm.2", n_hidden, d_model)
    }
}
