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
use std::ptr::NonNull;
use std::sync::Arc;

use gguf_tools::gguf::{Edits, Gguf};
use llama_cpp_sys_2 as sys;

use super::backend;
use super::callback_state::CallbackState;
use super::context_options::FlashAttention;
use super::eval_hook::catch_panic;
use super::exact_gelu::ExactGelu;
use super::guard::{self, guarded};
use super::model::Model;
use super::node::{n_rows, read_rows, write_rows};
use super::patch_embedding::PatchEmbedding;
use super::projector_type::ProjectorType;
use super::waiting;
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
    ptr: VisionPtr, // freed first: it keeps pointers to the state and the model
    state: CallbackState<Corrections>,
    patch_embedding: PatchEmbedding,
    model: Arc<Model>,
}

// SAFETY: mtmd's contexts are bound to no thread, and only the owner reaches this one.
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
        // mtmd reads nothing but paths, and has read all of the file when it returns.
        let copy = match edits.is_empty() {
            true => None,
            false => Some(Gguf::open(path)?.edited_copy(edits)?),
        };
        let c_path = backend::c_path(copy.as_deref().unwrap_or(path))?;
        let state = CallbackState::new(Corrections {
            vision_graph: options.vision_graph,
            projector,
            gelu: ExactGelu::new(projector)?,
            patches: Vec::new(),
            rows: Vec::new(),
            fault: None,
        });
        let patch_embedding = PatchEmbedding::load(path, options.use_gpu, options.threads)?;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::mtmd_context_params_default() };
        params.use_gpu = options.use_gpu;
        params.print_timings = false;
        params.n_threads = i32::try_from(options.threads).unwrap_or(i32::MAX);
        params.flash_attn_type = options.flash_attention.to_c();
        params.warmup = false;
        params.cb_eval = Some(on_eval);
        params.cb_eval_user_data = state.as_c();
        let ptr = guarded("mtmd_init_from_file", || {
            // SAFETY: the path lives for the call, the model and the state as long as the result.
            unsafe { guard::mtmd_init_from_file(c_path.as_ptr(), model.as_ptr(), params) }
        })?;
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| backend::failure("mtmd_init_from_file", "no reason was given"))?;
        Ok(Self {
            ptr: VisionPtr(ptr),
            state,
            patch_embedding,
            model,
        })
    }

    /// Encodes a square picture of the encoder's own size, which mtmd takes as it is: RGB bytes,
    /// `[size, size, 3]`. Returns the projector's rows, `[n_image_tokens, d_model]`, in reading order, without
    /// what mtmd would put around them.
    ///
    /// # Errors
    /// When llama.cpp fails, or makes several images of the picture.
    pub fn encode(&mut self, rgb: &[u8], size: usize) -> Result<Vec<f32>> {
        if rgb.len() != size * size * 3 {
            return Err(Error::invalid(format!(
                "expected {size} × {size} RGB pixels, got {} bytes",
                rgb.len()
            )));
        }
        waiting::adapt();
        let side = u32::try_from(size).map_err(|_| Error::invalid("the picture is too large"))?;
        // SAFETY: the pixels are copied; their number was checked.
        let bitmap = unsafe { sys::mtmd_bitmap_init(side, side, rgb.as_ptr()) };
        let bitmap = Bitmap(NonNull::new(bitmap).expect("mtmd allocates or aborts"));
        // SAFETY: no arguments.
        let chunks = unsafe { sys::mtmd_input_chunks_init() };
        let chunks = Chunks(NonNull::new(chunks).expect("mtmd allocates or aborts"));
        self.tokenize(&bitmap, &chunks)?;
        let chunk = chunks.only_image()?;
        let patches = self.patch_embedding.apply(rgb, size)?;
        patches.clone_into(&mut self.state.get().patches);
        let code = guarded("mtmd_encode_chunk", || {
            // SAFETY: context and chunk are alive.
            unsafe { guard::mtmd_encode_chunk(self.ptr.0.as_ptr(), chunk) }
        });
        if let Some(fault) = self.state.get().fault.take() {
            return Err(fault);
        }
        match code? {
            0 => {}
            code => {
                return Err(backend::failure(
                    "mtmd_encode_chunk",
                    &format!("code {code}"),
                ));
            }
        }
        // SAFETY: the chunk is alive.
        let n_tokens = unsafe { sys::mtmd_input_chunk_get_n_tokens(chunk) };
        // SAFETY: the context is alive and has just encoded a chunk.
        let rows = unsafe { sys::mtmd_get_output_embd(self.ptr.0.as_ptr()) };
        if rows.is_null() {
            return Err(backend::failure("mtmd_get_output_embd", "no output"));
        }
        // SAFETY: mtmd keeps `n_tokens` rows of the model's width until the next encoding.
        let rows = unsafe { std::slice::from_raw_parts(rows, n_tokens * self.model.d_model()) };
        Ok(rows.to_vec())
    }

    fn tokenize(&self, bitmap: &Bitmap, chunks: &Chunks) -> Result<()> {
        // SAFETY: returns a static string.
        let marker = unsafe { sys::mtmd_default_marker() };
        // SAFETY: it is NUL-terminated.
        let marker_len = unsafe { CStr::from_ptr(marker) }.count_bytes();
        let text = sys::mtmd_input_text {
            text: marker,
            text_len: marker_len,
            add_special: false,
            parse_special: true,
        };
        let mut bitmap = bitmap.0.as_ptr().cast_const();
        let code = guarded("mtmd_tokenize", || {
            // SAFETY: all arguments are alive; there is one marker and one bitmap.
            unsafe {
                guard::mtmd_tokenize(
                    self.ptr.0.as_ptr(),
                    chunks.0.as_ptr(),
                    &raw const text,
                    &raw mut bitmap,
                    1,
                )
            }
        })?;
        match code {
            0 => Ok(()),
            code => Err(backend::failure("mtmd_tokenize", &format!("code {code}"))),
        }
    }
}

/// The C context.
struct VisionPtr(NonNull<sys::mtmd_context>);

impl Drop for VisionPtr {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_init_from_file` and freed once.
        unsafe { sys::mtmd_free(self.0.as_ptr()) };
    }
}

/// A picture as mtmd takes it.
struct Bitmap(NonNull<sys::mtmd_bitmap>);

impl Drop for Bitmap {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_bitmap_init` and freed once.
        unsafe { sys::mtmd_bitmap_free(self.0.as_ptr()) };
    }
}

/// What mtmd makes of a prompt.
struct Chunks(NonNull<sys::mtmd_input_chunks>);

impl Chunks {
    /// The only image chunk of a prompt; it lives as long as `self`.
    fn only_image(&self) -> Result<*const sys::mtmd_input_chunk> {
        // SAFETY: the list is alive.
        let n_chunks = unsafe { sys::mtmd_input_chunks_size(self.0.as_ptr()) };
        // SAFETY: as above, and the indices are below its length.
        let chunk = |i| unsafe { sys::mtmd_input_chunks_get(self.0.as_ptr(), i) };
        let is_image = |chunk: &*const sys::mtmd_input_chunk| {
            // SAFETY: the chunk belongs to the list.
            let kind = unsafe { sys::mtmd_input_chunk_get_type(*chunk) };
            kind == sys::MTMD_INPUT_CHUNK_TYPE_IMAGE
        };
        let images: Vec<_> = (0..n_chunks).map(chunk).filter(is_image).collect();
        match images[..] {
            [only] => Ok(only),
            _ => Err(Error::invalid(format!(
                "this projector sees a picture in {} parts, and one was expected",
                images.len()
            ))),
        }
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_input_chunks_init` and freed once.
        unsafe { sys::mtmd_input_chunks_free(self.0.as_ptr()) };
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
