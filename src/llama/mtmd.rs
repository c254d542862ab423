//! llama.cpp's mtmd: a projector's file, the pieces that it makes of a picture, and their rows.
//!
//! Its chunks and positions are the source for all projectors. [`super::Vision`] puts right what it computes of a
//! prepared square; here, all is as llama.cpp does it, what it does to a picture first included.

#[cfg(test)]
mod tests;

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use gguf_tools::gguf::{Edits, Gguf};
use llama_cpp_sys_2 as sys;

use super::backend;
use super::guard::{self, guarded};
use super::model::{AddBos, Model};
use super::rows::MropePosition;
use super::vision::VisionOptions;
use super::waiting;
use crate::{Error, ErrorKind, Result};

/// A vision encoder with its projector, bound to a language model.
pub struct Mtmd {
    ptr: NonNull<sys::mtmd_context>,
    model: Arc<Model>, // to which mtmd keeps a pointer
}

// SAFETY: mtmd's contexts are bound to no thread, and only the owner reaches this one.
unsafe impl Send for Mtmd {}

/// A piece of what stands for a picture in a prompt.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Token ids: what the model was trained to see around images and between them.
    Tokens(Vec<i32>),
    /// Rows of the picture, or of a part of it.
    Image(EncodedImage),
}

/// Rows that a projector gave, and how a model is to read them ([`super::Embeddings`]).
#[derive(Clone, Debug)]
pub struct EncodedImage {
    /// `[n_rows, width]`.
    pub rows: Vec<f32>,
    /// The length of a row ([`Model::input_width`]).
    pub width: usize,
    /// `[n_rows]`, counted from the image's first; empty where each row takes the position behind the one before.
    pub positions: Vec<MropePosition>,
    /// How many positions they take up.
    pub n_positions: usize,
    /// Whether each row sees only itself and those before.
    pub is_causal: bool,
}

/// What ggml calls for each node of the encoder's graph.
pub(super) struct EvalCallback {
    pub(super) function: unsafe extern "C" fn(*mut sys::ggml_tensor, bool, *mut c_void) -> bool,
    /// What it gets, which has to outlive the [`Mtmd`].
    pub(super) user_data: *mut c_void,
}

impl Mtmd {
    /// Loads a projector's file for `model`, as it would be with `edits`. Check both files first.
    ///
    /// # Errors
    /// When llama.cpp refuses the file, or a copy with the edits cannot be written.
    pub fn load(
        path: &Path,
        edits: &Edits,
        model: Arc<Model>,
        options: VisionOptions,
    ) -> Result<Self> {
        Self::load_with(path, edits, model, options, None, None)
    }

    /// `image_rows` are the least and the most rows of an image, where those are not llama.cpp's.
    pub(super) fn load_with(
        path: &Path,
        edits: &Edits,
        model: Arc<Model>,
        options: VisionOptions,
        on_eval: Option<EvalCallback>,
        image_rows: Option<[i32; 2]>,
    ) -> Result<Self> {
        // mtmd reads nothing but paths, and has read all of the file when it returns.
        let copy = match edits.is_empty() {
            true => None,
            false => Some(Gguf::open(path)?.edited_copy(edits)?),
        };
        let c_path = backend::c_path(copy.as_deref().unwrap_or(path))?;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::mtmd_context_params_default() };
        params.use_gpu = options.use_gpu;
        params.print_timings = false;
        params.n_threads = i32::try_from(options.threads).unwrap_or(i32::MAX);
        params.flash_attn_type = options.flash_attention.to_c();
        params.warmup = false;
        params.media_marker = MARKER.as_ptr();
        if let Some(on_eval) = on_eval {
            params.cb_eval = Some(on_eval.function);
            params.cb_eval_user_data = on_eval.user_data;
        }
        if let Some([least, most]) = image_rows {
            params.image_min_tokens = least;
            params.image_max_tokens = most;
        }
        let ptr = guarded("mtmd_init_from_file", || {
            // SAFETY: the path lives for the call, the model and the user data as long as the result.
            unsafe { guard::mtmd_init_from_file(c_path.as_ptr(), model.as_ptr(), params) }
        })?;
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| backend::failure("mtmd_init_from_file", "no reason was given"))?;
        Ok(Self { ptr, model })
    }

    /// The pieces that stand for a picture, RGB bytes, `[height, width, 3]`, in order.
    ///
    /// # Errors
    /// When llama.cpp fails, or gives image rows positions that depend on what comes before.
    pub fn read(&mut self, rgb: &[u8], [width, height]: [usize; 2]) -> Result<Vec<Piece>> {
        let chunks = self.chunks(MARKER, AddBos::No, &Bitmap::new(rgb, [width, height])?)?;
        let pieces = chunks.iter().map(|chunk| match chunk {
            Chunk::Text(ids) => Ok(Piece::Tokens(ids.to_vec())),
            Chunk::Image(image) => Ok(Piece::Image(EncodedImage {
                rows: self.encode(image)?.to_vec(),
                width: self.model.input_width(),
                positions: self.positions(image)?,
                n_positions: image.n_positions(),
                is_causal: self.is_causal(image),
            })),
        });
        pieces.collect()
    }

    /// What mtmd makes of a text that holds [`MARKER`] once, in a picture's place.
    pub(super) fn chunks(&self, text: &CStr, add_bos: AddBos, bitmap: &Bitmap) -> Result<Chunks> {
        // SAFETY: no arguments.
        let chunks = unsafe { sys::mtmd_input_chunks_init() };
        let chunks = Chunks(NonNull::new(chunks).expect("mtmd allocates or aborts"));
        let text = sys::mtmd_input_text {
            text: text.as_ptr(),
            text_len: text.count_bytes(),
            add_special: add_bos == AddBos::Yes,
            parse_special: true,
        };
        let mut bitmap = bitmap.0.as_ptr().cast_const();
        let code = guarded("mtmd_tokenize", || {
            // SAFETY: all arguments are alive; there is one marker and one bitmap.
            unsafe {
                guard::mtmd_tokenize(
                    self.ptr.as_ptr(),
                    chunks.0.as_ptr(),
                    &raw const text,
                    &raw mut bitmap,
                    1,
                )
            }
        })?;
        match code {
            0 => Ok(chunks),
            code => Err(backend::failure("mtmd_tokenize", &format!("code {code}"))),
        }
    }

    /// The rows of an image, `[n_rows, input_width]`, until the next one is encoded.
    pub(super) fn encode(&mut self, image: PreparedImage<'_>) -> Result<&[f32]> {
        waiting::adapt();
        let code = guarded("mtmd_encode_chunk", || {
            // SAFETY: context and chunk are alive.
            unsafe { guard::mtmd_encode_chunk(self.ptr.as_ptr(), image.ptr) }
        })?;
        if code != 0 {
            let code = format!("code {code}");
            return Err(backend::failure("mtmd_encode_chunk", &code));
        }
        // SAFETY: the context is alive and has just encoded a chunk.
        let rows = unsafe { sys::mtmd_get_output_embd(self.ptr.as_ptr()) };
        if rows.is_null() {
            return Err(backend::failure("mtmd_get_output_embd", "no output"));
        }
        let n_values = image.n_rows() * self.model.input_width();
        // SAFETY: mtmd keeps as many values until the next encoding, which needs `&mut self`; it has checked that
        // the projector's rows are as wide as those that the model reads.
        Ok(unsafe { std::slice::from_raw_parts(rows, n_values) })
    }

    /// The positions of an image's rows, counted from its first; none where they are in order.
    fn positions(&self, image: PreparedImage<'_>) -> Result<Vec<MropePosition>> {
        // SAFETY: the context is alive.
        if !unsafe { sys::mtmd_decode_use_mrope(self.ptr.as_ptr()) } {
            return Ok(Vec::new());
        }
        // What one row's positions are, where the image begins at `start`.
        let of = |start: i32, row_idx: usize| {
            // SAFETY: the chunk is an image, and has as many rows.
            let position =
                unsafe { sys::mtmd_image_tokens_get_decoder_pos(image.tokens(), start, row_idx) };
            // In the order of `decode_embd_batch::set_position_mrope_2d` (`tools/mtmd/mtmd-helper-common.h`).
            [position.t, position.y, position.x, position.z].map(u32::cast_signed)
        };
        let at = |start| -> Vec<MropePosition> {
            (0..image.n_rows())
                .map(|row_idx| of(start, row_idx))
                .collect()
        };
        let positions = at(0);
        let in_order = (0..).map(|i| [i; 3]);
        if positions
            .iter()
            .map(|position| &position[..3])
            .eq(in_order.take(positions.len()))
        {
            return Ok(Vec::new());
        }
        let moved =
            |&[time, row, column, fourth]: &MropePosition| [time + 1, row + 1, column + 1, fourth];
        if !positions.iter().map(moved).eq(at(1)) {
            let what = "with this projector, positions of image rows depend on what comes before the image";
            return Err(
                Error::new(ErrorKind::Unsupported, what).with_hint("use a model of another family")
            );
        }
        Ok(positions)
    }

    /// Whether an image's rows see only those before.
    fn is_causal(&self, image: PreparedImage<'_>) -> bool {
        // SAFETY: context and chunk are alive.
        !unsafe { sys::mtmd_decode_use_non_causal(self.ptr.as_ptr(), image.ptr) }
    }
}

impl Drop for Mtmd {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_init_from_file` and freed once.
        unsafe { sys::mtmd_free(self.ptr.as_ptr()) };
    }
}

/// Stands for a picture in a text.
pub(super) const MARKER: &CStr = c"<__media__>";

/// A picture as mtmd takes it.
pub(super) struct Bitmap(NonNull<sys::mtmd_bitmap>);

impl Bitmap {
    /// Of RGB bytes, `[height, width, 3]`.
    pub(super) fn new(rgb: &[u8], [width, height]: [usize; 2]) -> Result<Self> {
        let is_whole = width.checked_mul(height).and_then(|n| n.checked_mul(3)) == Some(rgb.len());
        let sides = (u32::try_from(width), u32::try_from(height));
        let (true, (Ok(n_x), Ok(n_y))) = (is_whole, sides) else {
            return Err(Error::invalid(format!(
                "expected {width} × {height} RGB pixels, got {} bytes",
                rgb.len()
            )));
        };
        // SAFETY: the pixels are copied; their number was checked.
        let bitmap = unsafe { sys::mtmd_bitmap_init(n_x, n_y, rgb.as_ptr()) };
        Ok(Self(
            NonNull::new(bitmap).expect("mtmd allocates or aborts"),
        ))
    }
}

impl Drop for Bitmap {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_bitmap_init` and freed once.
        unsafe { sys::mtmd_bitmap_free(self.0.as_ptr()) };
    }
}

/// What mtmd makes of a prompt.
pub(super) struct Chunks(NonNull<sys::mtmd_input_chunks>);

/// One of them.
#[derive(Clone, Copy)]
pub(super) enum Chunk<'c> {
    /// Token ids.
    Text(&'c [i32]),
    /// A picture, or a part of it.
    Image(PreparedImage<'c>),
}

/// A picture or a part of it, prepared and not encoded.
#[derive(Clone, Copy)]
pub(super) struct PreparedImage<'c> {
    ptr: *const sys::mtmd_input_chunk,
    chunks: PhantomData<&'c Chunks>,
}

impl Chunks {
    pub(super) fn iter(&self) -> impl Iterator<Item = Chunk<'_>> {
        // SAFETY: the list is alive.
        let n_chunks = unsafe { sys::mtmd_input_chunks_size(self.0.as_ptr()) };
        (0..n_chunks).map(|i| {
            // SAFETY: the list is alive, and the index below its length.
            let ptr = unsafe { sys::mtmd_input_chunks_get(self.0.as_ptr(), i) };
            // SAFETY: the chunk belongs to the list.
            let kind = unsafe { sys::mtmd_input_chunk_get_type(ptr) };
            // No sound was given, so what is no text is an image.
            if kind != sys::MTMD_INPUT_CHUNK_TYPE_TEXT {
                let chunks = PhantomData;
                return Chunk::Image(PreparedImage { ptr, chunks });
            }
            let mut n_tokens = 0;
            // SAFETY: as above.
            let ids = unsafe { sys::mtmd_input_chunk_get_tokens_text(ptr, &raw mut n_tokens) };
            Chunk::Text(match n_tokens {
                0 => &[],
                // SAFETY: the chunk holds as many as long as the list lives.
                n_tokens => unsafe { std::slice::from_raw_parts(ids, n_tokens) },
            })
        })
    }

    /// The first image of a prompt of that many.
    pub(super) fn first_of(&self, n_images: usize) -> Result<PreparedImage<'_>> {
        let images = self.iter().filter_map(|chunk| match chunk {
            Chunk::Image(image) => Some(image),
            Chunk::Text(_) => None,
        });
        let images: Vec<_> = images.collect();
        match images[..] {
            [first, ..] if images.len() == n_images => Ok(first),
            _ => Err(Error::invalid(format!(
                "this projector sees a picture in {} parts, expected {n_images}",
                images.len()
            ))),
        }
    }

    #[cfg(test)]
    fn as_ptr(&self) -> *const sys::mtmd_input_chunks {
        self.0.as_ptr()
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: made by `mtmd_input_chunks_init` and freed once.
        unsafe { sys::mtmd_input_chunks_free(self.0.as_ptr()) };
    }
}

impl PreparedImage<'_> {
    fn tokens(self) -> *const sys::mtmd_image_tokens {
        // SAFETY: the chunk is alive.
        unsafe { sys::mtmd_input_chunk_get_tokens_image(self.ptr) }
    }

    fn n_rows(self) -> usize {
        // SAFETY: the chunk is alive.
        unsafe { sys::mtmd_input_chunk_get_n_tokens(self.ptr) }
    }

    fn n_positions(self) -> usize {
        // SAFETY: the chunk is alive.
        let n_positions = unsafe { sys::mtmd_input_chunk_get_n_pos(self.ptr) };
        usize::try_from(n_positions).expect("mtmd counts positions")
    }
}
