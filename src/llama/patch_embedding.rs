//! The first step of the vision encoder, in full precision: pixels to patch rows.
//!
//! llama.cpp runs it as a convolution whose pixels are rounded to f16 (`ggml_conv_2d` makes an f16
//! `im2col`, whatever the kernel's type). On pictures with flat areas that alone moves single image
//! embeddings by up to 0.4 %. A patch embedding is one matrix product, so it is computed here from
//! f32 pixels and handed to the graph together with the class row.

use std::path::Path;

use gguf_tools::gguf::{Array, Gguf, TensorInfo, Value};

use super::matrix_product::{Matrix, MatrixProduct};
use super::projector_type::ProjectorType;
use crate::{Error, Result, RowProduct};

/// The kernels of the first frame and the second.
pub(super) const KERNELS: [&str; 2] = ["v.patch_embd.weight", "v.patch_embd.weight.1"];

/// What is added to patches, and a row that stands behind them.
struct Positions {
    class_row: Vec<f32>,  // [width], with its position
    of_patches: Vec<f32>, // [n_patches, width]
}

impl Positions {
    /// In the file, the class row's is the first.
    fn load(file: &Gguf) -> Result<Self> {
        let mut class_row = read_f32(file, "v.class_embd")?;
        let positions = read_f32(file, "v.position_embd.weight")?;
        let (first, of_patches) = positions.split_at(class_row.len());
        add(&mut class_row, first);
        Ok(Self {
            class_row,
            of_patches: of_patches.to_vec(),
        })
    }
}

/// A patch embedding: a convolution whose stride is its size.
pub(super) struct PatchEmbedding {
    /// Of one kernel, or of two, one for each of two frames, which are both the picture (Qwen2-VL).
    products: Vec<MatrixProduct>,
    bias: Option<Vec<f32>>, // [width]; CLIP has none, and the graph adds Qwen3-VL's
    embedded: Vec<f32>, // [n_patches, width], reused; with the class row behind, where there are positions
    /// InternVL's class row and positions, which the graph adds in another order.
    positions: Option<Positions>,
    patch_size: usize,
    mean: [f32; 3],
    std: [f32; 3],
    is_doubled: bool,  // and 1 subtracted, after that (Gemma 4)
    patches: Vec<f32>, // [n_patches, 3 · patch_size²], reused
}

impl PatchEmbedding {
    /// Reads the kernels, the bias that is to be added, and the normalisation from a checked projector file.
    pub(super) fn load(
        path: &Path,
        projector: ProjectorType,
        use_gpu: bool,
        threads: usize,
    ) -> Result<Self> {
        let file = Gguf::open(path)?;
        let (names, has_bias): (&[_], _) = match projector.is_qwen() {
            true => (&KERNELS, false),
            false => (&KERNELS[..1], true),
        };
        let product = |name: &&str| {
            let matrix = Matrix::load(path, &kernel_as_matrix(&file, name)?, use_gpu)?;
            MatrixProduct::new(matrix, threads)
        };
        let products = names.iter().map(product).collect::<Result<Vec<_>>>()?;
        let bias = file.tensor("v.patch_embd.bias").filter(|_| has_bias);
        let bias = bias.map(|tensor| file.read_f32(tensor)).transpose()?;
        let positions = match projector {
            ProjectorType::InternVl => Some(Positions::load(&file)?),
            _ => None,
        };
        Ok(Self {
            positions,
            bias,
            embedded: Vec::new(),
            products,
            patch_size: file.require_u32("clip.vision.patch_size")? as usize,
            mean: three_floats(&file, "clip.vision.image_mean")?,
            std: three_floats(&file, "clip.vision.image_std")?,
            is_doubled: projector == ProjectorType::Gemma4,
            patches: Vec::new(),
        })
    }

    /// Rows of the patches of `rgb`, `[height, width, 3]`, in reading order: `[n_patches, width]`, and the class row
    /// behind them where there are positions.
    pub(super) fn apply(&mut self, rgb: &[u8], [width, height]: [usize; 2]) -> Result<&[f32]> {
        self.patches.clear();
        let [n_columns, n_rows] = [width, height].map(|side| side / self.patch_size);
        for patch in 0..n_rows * n_columns {
            let (top, left) = (
                patch / n_columns * self.patch_size,
                patch % n_columns * self.patch_size,
            );
            for channel in 0..3 {
                for y in top..top + self.patch_size {
                    for x in left..left + self.patch_size {
                        let value = f32::from(rgb[(y * width + x) * 3 + channel]) / 255.0;
                        let value = (value - self.mean[channel]) / self.std[channel];
                        self.patches.push(match self.is_doubled {
                            true => 2.0 * (value - 0.5),
                            false => value,
                        });
                    }
                }
            }
        }
        self.embedded.clear();
        for product in &mut self.products {
            let rows = product.apply(&self.patches)?;
            match self.embedded.is_empty() {
                true => self.embedded.extend_from_slice(rows),
                false => add(&mut self.embedded, rows),
            }
        }
        if let Some(bias) = &self.bias {
            for row in self.embedded.chunks_exact_mut(bias.len()) {
                add(row, bias);
            }
        }
        if let Some(positions) = &self.positions {
            add(&mut self.embedded, &positions.of_patches);
            self.embedded.extend_from_slice(&positions.class_row);
        }
        Ok(&self.embedded)
    }
}

fn add(sums: &mut [f32], others: &[f32]) {
    let sums = sums.iter_mut().zip(others);
    sums.for_each(|(sum, x)| *sum += x);
}

/// The values of a checked file's tensor.
fn read_f32(file: &Gguf, name: &str) -> Result<Vec<f32>> {
    file.read_f32(require(file, name)?)
}

fn require<'f>(file: &'f Gguf, name: &str) -> Result<&'f TensorInfo> {
    let shown = file.path().display();
    let missing = || Error::invalid(format!("no tensor `{name}` in `{shown}`"));
    file.tensor(name).ok_or_else(missing)
}

/// A kernel as a matrix, a row of which is one output's weights, `[3, patch_size, patch_size]`.
fn kernel_as_matrix(file: &Gguf, name: &str) -> Result<TensorInfo> {
    let shown = file.path().display();
    let kernel = require(file, name)?;
    let [size, _, n_channels, width] = kernel.dims[..] else {
        let what = format!("`{name}` in `{shown}` is not a convolution kernel");
        return Err(Error::invalid(what));
    };
    Ok(TensorInfo {
        dims: vec![size * size * n_channels, width],
        ..kernel.clone()
    })
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
