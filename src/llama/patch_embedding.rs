//! The first step of the vision encoder, in full precision: pixels to patch rows.
//!
//! llama.cpp runs it as a convolution whose pixels are rounded to f16 (`ggml_conv_2d` makes an f16
//! `im2col`, whatever the kernel's type). On pictures with flat areas that alone moves single image
//! embeddings by up to 0.4 %. A patch embedding is one matrix product, so it is computed here from
//! f32 pixels and handed to the graph together with the class row.

use std::path::Path;

use gguf_tools::gguf::{Array, Gguf, TensorInfo, Value};

use super::matrix_product::{Matrix, MatrixProduct};
use crate::{Error, Result, RowProduct};

/// A patch embedding: a convolution whose stride is its size.
pub(super) struct PatchEmbedding {
    product: MatrixProduct,
    bias: Option<Vec<f32>>, // [width]; CLIP has none
    embedded: Vec<f32>,     // [n_patches, width], reused
    patch_size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    patches: Vec<f32>, // [n_patches, 3 · patch_size²], reused
}

impl PatchEmbedding {
    /// Reads `v.patch_embd.weight`, its bias if there is one, and the normalisation from a checked projector file.
    pub(super) fn load(path: &Path, use_gpu: bool, threads: usize) -> Result<Self> {
        let file = Gguf::open(path)?;
        let kernel = file.tensor("v.patch_embd.weight").ok_or_else(|| {
            Error::invalid(format!(
                "no tensor `v.patch_embd.weight` in `{}`",
                path.display()
            ))
        })?;
        let [size, _, n_channels, width] = kernel.dims[..] else {
            return Err(Error::invalid(format!(
                "`v.patch_embd.weight` in `{}` is not a convolution kernel",
                path.display()
            )));
        };
        // A row of the kernel is one output's weights, `[3, patch_size, patch_size]`.
        let matrix = TensorInfo {
            dims: vec![size * size * n_channels, width],
            ..kernel.clone()
        };
        let bias = file.tensor("v.patch_embd.bias");
        let bias = bias.map(|tensor| file.read_f32(tensor)).transpose()?;
        Ok(Self {
            bias,
            embedded: Vec::new(),
            product: MatrixProduct::new(Matrix::load(path, &matrix, use_gpu)?, threads)?,
            patch_size: usize::try_from(size).expect("checked against the picture's size"),
            mean: three_floats(&file, "clip.vision.image_mean")?,
            std: three_floats(&file, "clip.vision.image_std")?,
            patches: Vec::new(),
        })
    }

    /// Rows of the patches of `rgb`, `[size, size, 3]`, in reading order: `[n_patches, width]`.
    pub(super) fn apply(&mut self, rgb: &[u8], size: usize) -> Result<&[f32]> {
        self.patches.clear();
        let grid = size / self.patch_size;
        for patch in 0..grid * grid {
            let (top, left) = (
                patch / grid * self.patch_size,
                patch % grid * self.patch_size,
            );
            for channel in 0..3 {
                for y in top..top + self.patch_size {
                    for x in left..left + self.patch_size {
                        let value = f32::from(rgb[(y * size + x) * 3 + channel]) / 255.0;
                        self.patches
                            .push((value - self.mean[channel]) / self.std[channel]);
                    }
                }
            }
        }
        self.embedded.clear();
        self.embedded
            .extend_from_slice(self.product.apply(&self.patches)?);
        if let Some(bias) = &self.bias {
            for row in self.embedded.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
        Ok(&self.embedded)
    }
}

fn three_floats(file: &Gguf, key: &str) -> Result<[f32; 3]> {
    match file.get(key) {
        Some(Value::Array(Array::F32(values))) => values.as_slice().try_into().ok(),
        _ => None,
    }
    .ok_or_else(|| {
        Error::invalid(format!(
            "`{key}` in `{}` should be three f32",
            file.path().display()
        ))
    })
}
