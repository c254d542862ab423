//! The tensors of a CLIP encoder and an `mlp` projector.

use std::collections::HashMap;

use gguf_tools::gguf::{Gguf, TensorInfo};

use super::tiles::NEWLINES;
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
pub(super) struct Unchecked<'a> {
    file: &'a Gguf,
    tensors: HashMap<&'a str, &'a TensorInfo>,
}

/// Checks that the file holds `n_blocks` blocks and all else that llama.cpp reads, and nothing more.
pub(super) fn check(file: &Gguf, sizes: &Sizes, n_blocks: u32, d_model: u64) -> Result<()> {
    let [width, patch] = [sizes.width, sizes.patch].map(u64::from);
    let mut unchecked = Unchecked::of(file);
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
    unchecked.blocks(sizes, n_blocks)?;
    for name in POST_NORM {
        if file.tensor(name).is_some() {
            unchecked.one(name, Role::Vector, &[width])?;
        }
    }
    unchecked.projector(width, d_model)?;
    for name in NEWLINES {
        if file.tensor(name).is_some() {
            unchecked.one(name, Role::Vector, &[d_model])?;
        }
    }
    unchecked.finish("a LLaVA projector")
}

impl<'a> Unchecked<'a> {
    /// All tensors of a file.
    pub(super) fn of(file: &'a Gguf) -> Self {
        let tensors = file.tensors().iter();
        Self {
            file,
            tensors: tensors.map(|tensor| (&*tensor.name, tensor)).collect(),
        }
    }

    /// Checks that there are no others.
    pub(super) fn finish(self, what: &str) -> Result<()> {
        // In the file's order, so that it is the same one each time.
        let mut tensors = self.file.tensors().iter();
        match tensors.find(|tensor| self.tensors.contains_key(&*tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(broken(
                self.file,
                format!("tensor `{}` does not belong to {what}", tensor.name),
            )),
        }
    }

    /// All of a SigLIP.
    pub(super) fn siglip(&mut self, sizes: &Sizes, n_blocks: u32) -> Result<()> {
        let [width, patch] = [sizes.width, sizes.patch].map(u64::from);
        let n_patches = u64::from(sizes.grid).pow(2);
        let kernel = [patch, patch, 3, width];
        self.one("v.patch_embd.weight", Role::Kernel, &kernel)?;
        self.one("v.patch_embd.bias", Role::Vector, &[width])?;
        // All rows are added to the patches'; none is looked up.
        self.one("v.position_embd.weight", Role::Vector, &[width, n_patches])?;
        self.blocks(sizes, n_blocks)?;
        self.norm("v.post_ln", width)
    }

    /// The blocks of a vision transformer.
    pub(super) fn blocks(&mut self, sizes: &Sizes, n_blocks: u32) -> Result<()> {
        let [width, d_ffn] = [sizes.width, sizes.d_ffn].map(u64::from);
        for block_idx in 0..n_blocks {
            let name = |part| format!("v.blk.{block_idx}.{part}");
            for part in ["attn_q", "attn_k", "attn_v", "attn_out"] {
                self.linear(&name(part), width, width)?;
            }
            // Files of before 2025 have the two names exchanged, which llama.cpp sees as it is seen here.
            let down = self.file.tensor(&name("ffn_down.weight"));
            let [up, down] = match down.is_some_and(|down| down.dims[0] == width) {
                true => ["ffn_down", "ffn_up"],
                false => ["ffn_up", "ffn_down"],
            };
            self.linear(&name(up), width, d_ffn)?;
            self.linear(&name(down), d_ffn, width)?;
            self.norm(&name("ln1"), width)?;
            self.norm(&name("ln2"), width)?;
        }
        Ok(())
    }

    pub(super) fn one(&mut self, name: &str, role: Role, dims: &[u64]) -> Result<()> {
        let missing = || broken(self.file, format!("there is no tensor `{name}`"));
        let tensor = self.tensors.remove(name).ok_or_else(missing)?;
        check_tensor(self.file, tensor, role, dims)
    }

    /// Whether there is one of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Leaves a tensor out that need not be checked.
    pub(super) fn leave_out(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// A matrix and a bias.
    pub(super) fn linear(&mut self, name: &str, n_in: u64, n_out: u64) -> Result<()> {
        self.one(&format!("{name}.weight"), Role::Matrix, &[n_in, n_out])?;
        self.one(&format!("{name}.bias"), Role::Vector, &[n_out])
    }

    /// The weight and bias of a LayerNorm.
    pub(super) fn norm(&mut self, name: &str, width: u64) -> Result<()> {
        self.one(&format!("{name}.weight"), Role::Vector, &[width])?;
        self.one(&format!("{name}.bias"), Role::Vector, &[width])
    }

    pub(super) fn dim(&self, name: &str, dim_idx: usize) -> Result<u64> {
        let tensor = self.file.tensor(name);
        let dim = tensor.and_then(|tensor| tensor.dims.get(dim_idx).copied());
        dim.ok_or_else(|| broken(self.file, format!("there is no matrix `{name}`")))
    }

    /// Checks that the projector's last matrix, by that dimension, makes rows of the language model.
    pub(super) fn check_rows(&self, name: &str, dim_idx: usize, d_model: u64) -> Result<()> {
        let n_out = self.dim(name, dim_idx)?;
        if n_out == d_model {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the projector makes rows of {n_out}, and the model's rows have {d_model}: `{}` belongs to another model",
            self.file.path().display()
        ))
        .with_hint("convert model and projector from the same checkpoint"))
    }

    /// Two linear layers, the second of which makes rows of the language model.
    fn projector(&mut self, width: u64, d_model: u64) -> Result<()> {
        let n_hidden = self.dim("mm.0.weight", 1)?;
        self.check_rows("mm.2.weight", 1, d_model)?;
        self.linear("mm.0", width, n_hidden)?;
        self.linear("mm.2", n_hidden, d_model)
    }
}
