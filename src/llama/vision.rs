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
//! row; its patches are filled in where their bias was added.

use std::ffi::{CStr, c_void};
use std::path::Path;
use std::sync::Arc;

use gguf_tools::gguf::Edits;
use llama_cpp_sys_2 as sys;

use super::callback_state::CallbackState;
use super::context_options::FlashAttention;
use super::eval_hook::catch_panic;
use super::exact_gelu::ExactGelu;
use super::model::{AddBos, Model};
use super::mtmd::{Bitmap, EvalCallback, MARKER, Mtmd};
use super::node::{n_rows, read_rows, write_rows};
use super::patch_embedding::PatchEmbedding;
use super::projector_type::ProjectorType;
use crate::{Error, Result};

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
            gelu: ExactGelu::new(projector)?,
            patches: Vec::new(),
            rows: Vec::new(),
            fault: None,
        });
        let callback = EvalCallback {
            function: on_eval,
            user_data: state.as_c(),
        };
        let patch_embedding = PatchEmbedding::load(path, options.use_gpu, options.threads)?;
        Ok(Self {
            mtmd: Mtmd::load_with(path, edits, model, options, Some(callback))?,
            state,
            patch_embedding,
        })
    }

    /// Encodes a square picture of the encoder's own size, which mtmd takes as it is: RGB bytes,
    /// `[size, size, 3]`. Returns the projector's rows, `[n_image_tokens, d_model]`, in reading order, without
    /// what mtmd would put around them.
    ///
    /// # Errors
    /// When llama.cpp fails, or makes several images of the picture.
    pub fn encode(&mut self, rgb: &[u8], size: usize) -> Result<Vec<f32>> {
        let bitmap = Bitmap::new(rgb, [size, size])?;
        let chunks = self.mtmd.chunks(MARKER, AddBos::No, &bitmap)?;
        let patches = self.patch_embedding.apply(rgb, size)?;
        patches.clone_into(&mut self.state.get().patches);
        let rows = self.mtmd.encode(chunks.only_image()?);
        match self.state.get().fault.take() {
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
        Ok(match self.projector {
            ProjectorType::Mlp => appends_class_embedding(tensor),
            ProjectorType::Gemma3 => adds_patch_bias(tensor),
        })
    }

    /// Replaces the rows `[patches, class]` by `[class, exact patches]`, and patches alone by exact ones; whether
    /// the graph goes on.
    fn put_right(&mut self, tensor: &mut sys::ggml_tensor) -> Result<bool> {
        if self.fault.is_some() {
            return Ok(false);
        }
        let width = usize::try_from(tensor.ne[0]).expect("ggml's sizes are not negative");
        let n_rows = n_rows(tensor, width)?;
        let n_others = match self.projector {
            ProjectorType::Mlp => 1,
            ProjectorType::Gemma3 => 0,
        };
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
        Ok(true)
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

fn second_operand_is(tensor: &sys::ggml_tensor, wanted: &CStr) -> bool {
    // SAFETY: a node's sources are null or live as long as its graph.
    let operand = unsafe { tensor.src[1].as_ref() };
    operand.is_some_and(|operand| {
        let name = operand.name.map(|c| c as u8);
        name.starts_with(wanted.to_bytes_with_nul())
    })
}
