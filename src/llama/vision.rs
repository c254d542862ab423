//! The vision encoder and projector, through llama.cpp's mtmd, with the class row put right.
//!
//! The carried `tools/mtmd/models/llava.cpp` appends the class embedding behind the patches
//! (`ggml_concat(patches, class_embd)`), while CLIP's position embeddings and the choice of rows
//! 1..=n take it to stand in front. Every patch then gets its neighbour's position, the first
//! patch is lost and the class row is fed to the language model as an image token: against
//! transformers, the image embeddings are off by more than half their norm. The cure is an eval
//! callback on that one node, which moves its last row to the front. `patches/README.md` has the
//! upstream threads and the patch for llama.cpp itself.
//!
//! The callback fills in the patches from [`PatchEmbedding`] on the way, since llama.cpp's own are
//! rounded to f16, and [`ExactGelu`] changes nodes that have not run yet. SigLIP, Gemma 3's encoder, has no class
//! row; its patches are filled in where their bias was added, as are Idefics3's, Qwen's
//! where its two frames are, and Gemma 4's where they are turned into rows. InternVL's class row may stand behind the patches, as llama.cpp has it, since rows are told
//! apart by their positions alone; but each has to have its own, so all rows are filled in where positions were added.

use std::ffi::{CStr, c_void};
use std::path::Path;
use std::sync::Arc;

use gguf_tools::gguf::Edits;
use llama_cpp_sys_2 as sys;

use super::amx::AmxProducts;
use super::callback_state::CallbackState;
use super::context_options::FlashAttention;
use super::eval_hook::catch_panic;
use super::exact_gelu::ExactGelu;
use super::model::{AddBos, Model};
use super::mtmd::{Bitmap, EvalCallback, MARKER, Mtmd};
use super::node::{Node, n_rows, name, read_rows, write_rows};
use super::patch_embedding::{KERNELS, PatchEmbedding};
use super::projector_type::ProjectorType;
use crate::{Error, Result};

/// Rows of the largest image that an encoder is given that takes pictures with sides of their own: Qwen's, as large as
/// they are in transformers.
pub(crate) const MAX_IMAGE_ROWS: i32 = 1 << 14;

/// What the encoder's graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionGraph {
    /// The class row in front, as CLIP was trained; patches and GELUs in full precision.
    Corrected,
    /// All as llama.cpp does it: for showing the defect.
    AsLlamaCpp,
}

impl VisionGraph {
    /// Its name in keys of files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Corrected => "corrected",
            Self::AsLlamaCpp => "as llama.cpp",
        }
    }
}

/// How the vision encoder runs.
#[derive(Clone, Copy, Debug)]
pub struct VisionOptions {
    /// Whether a device is used, where there is one.
    pub use_gpu: bool,
    /// Processor threads.
    pub threads: usize,
    /// Whether to use flash attention.
    pub flash_attention: FlashAttention,
    /// Whether llama.cpp's graph is put right.
    pub vision_graph: VisionGraph,
}

/// A vision encoder with its projector, bound to a language model.
pub struct Vision {
    mtmd: Mtmd, // freed first: it keeps a pointer to the state
    state: CallbackState<Corrections>,
    patch_embedding: PatchEmbedding,
}

// SAFETY: the state is reached by callbacks of mtmd, in calls that its owner makes, and by the owner.
unsafe impl Send for Vision {}

impl Vision {
    /// Loads the file of a projector of this type for `model`, as it would be with `edits`. Check both files first.
    ///
    /// # Errors
    /// When llama.cpp refuses the file, or a copy with the edits cannot be written.
    pub fn load(
        path: &Path,
        projector: ProjectorType,
        edits: &Edits,
        model: Arc<Model>,
        options: VisionOptions,
    ) -> Result<Self> {
        let state = CallbackState::new(Corrections {
            vision_graph: options.vision_graph,
            projector,
            gelu: ExactGelu::new(projector),
            products: AmxProducts::default(),
            patches: Vec::new(),
            rows: Vec::new(),
            fault: None,
        });
        let callback = EvalCallback {
            function: on_eval,
            user_data: state.as_c(),
        };
        let patch_embedding =
            PatchEmbedding::load(path, projector, options.use_gpu, options.threads)?;
        let image_rows = projector.takes_own_sides().then_some([1, MAX_IMAGE_ROWS]);
        Ok(Self {
            mtmd: Mtmd::load_with(path, edits, model, options, Some(callback), image_rows)?,
            state,
            patch_embedding,
        })
    }

    /// Encodes a picture of a size that the encoder takes, so that mtmd takes it as it is: RGB bytes,
    /// `[height, width, 3]`. Returns the projector's rows, `[n_image_tokens, input_width]`, in reading order, without
    /// what mtmd would put around them.
    ///
    /// # Errors
    /// When llama.cpp fails, or makes several images of the picture.
    pub fn encode(&mut self, rgb: &[u8], size: [usize; 2]) -> Result<Vec<f32>> {
        let bitmap = Bitmap::new(rgb, size)?;
        let chunks = self.mtmd.chunks(MARKER, AddBos::No, &bitmap)?;
        let patches = self.patch_embedding.apply(rgb, size)?;
        patches.clone_into(&mut self.state.get().patches);
        // Of a tile of Idefics3's, mtmd makes a grid of one tile and an overview, both as it is.
        let n_images = match self.state.get().projector {
            ProjectorType::Idefics3 => 2,
            _ => 1,
        };
        let rows = self.mtmd.encode(chunks.first_of(n_images)?);
        let state = self.state.get();
        let products = state.products.end_graph();
        match state.fault.take().or(products.err()) {
            Some(fault) => Err(fault),
            None => Ok(rows?.to_vec()),
        }
    }
}

/// What the vision callback needs.
struct Corrections {
    vision_graph: VisionGraph,
    projector: ProjectorType,
    gelu: ExactGelu,
    products: AmxProducts,
    patches: Vec<f32>, // [n_patches, width]
    rows: Vec<f32>,    // [n_patches, width], and the class row in front if there is one; reused
    fault: Option<Error>,
}

impl Corrections {
    /// Changes a GELU; whether the rows are wanted.
    fn on_ask(&mut self, tensor: &mut sys::ggml_tensor) -> Result<bool> {
        if self.vision_graph == VisionGraph::AsLlamaCpp {
            return Ok(false);
        }
        self.gelu.put_in(tensor);
        self.products.put_in(Node(tensor));
        Ok(match self.projector {
            ProjectorType::Mlp => appends_class_embedding(tensor),
            ProjectorType::Gemma3 | ProjectorType::Idefics3 => adds_patch_bias(tensor),
            ProjectorType::Gemma4 => turns_patches(tensor),
            ProjectorType::InternVl => adds_positions(tensor),
            ProjectorType::Qwen2Vl | ProjectorType::Qwen25Vl | ProjectorType::Qwen3Vl => {
                adds_frames(tensor)
            }
        })
    }

    /// Puts in exact patches; whether the graph goes on.
    fn put_right(&mut self, tensor: &mut sys::ggml_tensor) -> Result<bool> {
        if self.fault.is_some() {
            return Ok(false);
        }
        match self.projector.is_qwen() {
            true => self.write_planes(tensor)?,
            false => self.write_rows(tensor)?,
        }
        Ok(true)
    }

    /// Replaces patches that lie as a convolution gives them, `[width, rows of patches, columns]`.
    fn write_planes(&mut self, tensor: &mut sys::ggml_tensor) -> Result<()> {
        let [n_columns, n_rows, width, n_pictures] = tensor
            .ne
            .map(|n| usize::try_from(n).expect("ggml's sizes are not negative"));
        // SAFETY: the tensor is part of a graph that is being computed.
        let is_contiguous = unsafe { sys::ggml_is_contiguous(tensor) };
        let is_plain = is_contiguous && tensor.type_ == sys::GGML_TYPE_F32 && n_pictures == 1;
        let n_patches = n_rows * n_columns;
        if !is_plain || n_patches * width != self.patches.len() {
            return Err(Error::invalid(format!(
                "the vision encoder has {n_rows} × {n_columns} patches of {width}, and the picture {} values",
                self.patches.len()
            )));
        }
        self.rows.resize(self.patches.len(), 0.0);
        for (patch_idx, patch) in self.patches.chunks_exact(width).enumerate() {
            for (plane, &value) in self.rows.chunks_exact_mut(n_patches).zip(patch) {
                plane[patch_idx] = value;
            }
        }
        write_rows(tensor, &self.rows);
        Ok(())
    }

    /// Replaces the rows `[patches, class]` by `[class, exact patches]`, and patches alone by exact ones.
    fn write_rows(&mut self, tensor: &mut sys::ggml_tensor) -> Result<()> {
        let width = usize::try_from(tensor.ne[0]).expect("ggml's sizes are not negative");
        let n_rows = n_rows(tensor, width)?;
        let n_others = usize::from(self.projector == ProjectorType::Mlp);
        let start = n_others * width;
        if self.patches.len() + start != n_rows * width {
            return Err(Error::invalid(format!(
                "the vision encoder has {n_rows} rows of {width}, and the picture {} values",
                self.patches.len()
            )));
        }
        self.rows.resize(n_rows * width, 0.0);
        read_rows(tensor, &mut self.rows);
        self.rows.rotate_right(start);
        self.rows[start..].copy_from_slice(&self.patches);
        write_rows(tensor, &self.rows);
        Ok(())
    }
}

/// The callback for mtmd's `cb_eval`; `user_data` is a [`Corrections`].
unsafe extern "C" fn on_eval(
    tensor: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: `Vision` gave this pointer and touches it only between encodings.
    let state = unsafe { &mut *user_data.cast::<Corrections>() };
    // SAFETY: ggml passes a node of the graph that it is computing.
    let tensor = unsafe { &mut *tensor };
    let answer = catch_panic(|| match ask {
        true => state.on_ask(tensor),
        false => state.put_right(tensor),
    });
    // As for a context: a node is wanted after an error too, and its data phase ends the graph.
    answer.unwrap_or_else(|error| {
        state.fault = Some(error);
        ask
    })
}

/// Whether this node is the concatenation with the class embedding **behind**. Should llama.cpp put
/// it in front one day, it will be `src[0]`, and the cure switches itself off.
fn appends_class_embedding(tensor: &sys::ggml_tensor) -> bool {
    tensor.op == sys::GGML_OP_CONCAT && second_operand_is(tensor, c"v.class_embd")
}

/// Whether this node adds the bias of the patch embedding (`build_inp` in `tools/mtmd/clip.cpp`).
fn adds_patch_bias(tensor: &sys::ggml_tensor) -> bool {
    tensor.op == sys::GGML_OP_ADD && second_operand_is(tensor, c"v.patch_embd.bias")
}

/// Whether this node turns a convolution's planes into rows of patches (`inp` in `tools/mtmd/models/gemma4v.cpp`).
fn turns_patches(tensor: &sys::ggml_tensor) -> bool {
    // SAFETY: a node's sources are null or live as long as its graph.
    let source = unsafe { tensor.src[0].as_ref() };
    tensor.op == sys::GGML_OP_CONT
        && name(tensor) == b"inp"
        && source.is_some_and(|source| source.op == sys::GGML_OP_TRANSPOSE)
}

/// Whether this node adds position embeddings (`build_vit` in `tools/mtmd/clip.cpp`).
fn adds_positions(tensor: &sys::ggml_tensor) -> bool {
    tensor.op == sys::GGML_OP_ADD && second_operand_is(tensor, c"v.position_embd.weight")
}

/// Whether this node adds the patches of a picture's two frames (`build_inp_with_temporal_merge` in
/// `tools/mtmd/models/qwen2vl.cpp`), each a convolution (`ggml_conv_2d` in `ggml.c`).
fn adds_frames(tensor: &sys::ggml_tensor) -> bool {
    tensor.op == sys::GGML_OP_ADD
        && (tensor.src.iter().zip(KERNELS)).all(|(&patches, wanted)| {
            let product = behind_views(patches).filter(|node| node.op == sys::GGML_OP_MUL_MAT);
            let kernel = product.and_then(|product| behind_views(product.src[1]));
            kernel.is_some_and(|kernel| name(kernel) == wanted.as_bytes())
        })
}

/// What a tensor shows in another shape or order.
fn behind_views<'g>(mut tensor: *const sys::ggml_tensor) -> Option<&'g sys::ggml_tensor> {
    const VIEWS: [sys::ggml_op; 3] = [
        sys::GGML_OP_CONT,
        sys::GGML_OP_PERMUTE,
        sys::GGML_OP_RESHAPE,
    ];
    loop {
        // SAFETY: a node's sources are null or live as long as its graph.
        let found = unsafe { tensor.as_ref() }?;
        match VIEWS.contains(&found.op) {
            true => tensor = found.src[0],
            false => return Some(found),
        }
    }
}

fn second_operand_is(tensor: &sys::ggml_tensor, wanted: &CStr) -> bool {
    // SAFETY: a node's sources are null or live as long as its graph.
    let operand = unsafe { tensor.src[1].as_ref() };
    operand.is_some_and(|operand| {
        let name = operand.name.map(|c| c as u8);
        name.starts_with(wanted.to_bytes_with_nul())
    })
}
