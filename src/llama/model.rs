//! A language model and its vocabulary.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::backend;
use super::guard::{self, guarded};
use super::mrope_positions;
use super::norm_epsilon;
use super::vocabulary::Vocabulary;
use crate::{Error, Result};

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// Layers kept on a device; negative means all of them.
    pub gpu_layers: i32,
    /// Whether quantised weights are repacked for the processor, which takes time and memory for a copy.
    /// They never are where llama.cpp was compiled for AMX, whose kernels crash.
    pub repack: bool,
}

/// A language model's weights and vocabulary.
pub struct Model {
    ptr: NonNull<sys::llama_model>,
    vocab: NonNull<sys::llama_vocab>,
    pub(super) vocabulary: Vocabulary,
    pub(super) corrected: Corrected,
}

/// What of a model's graphs is put right.
#[derive(Clone, Copy, Default)]
pub(super) struct Corrected {
    /// The epsilon of its norms, where llama.cpp misses it.
    pub(super) norm_epsilon: Option<f32>,
    /// Whether its heads' pairs turn by time, row and column one after another.
    pub(super) is_interleaved: bool,
    /// Whether windows part the rows of an image that see one another, as llama.cpp has it.
    pub(super) keeps_windows: bool,
}

// SAFETY: llama.cpp only reads a model once it is loaded; contexts on several threads may share it.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads a GGUF model, memory-mapped. Check the file first: llama.cpp aborts the process on
    /// some malformed ones.
    ///
    /// # Errors
    /// When llama.cpp refuses the file, with the reason that it logged.
    pub fn load(path: &Path, options: ModelOptions) -> Result<Self> {
        backend::start();
        let c_path = backend::c_path(path)?;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = options.gpu_layers;
        params.use_extra_bufts = options.repack && !has_amx();
        let ptr = guarded("llama_model_load_from_file", || {
            // SAFETY: the path is NUL-terminated and lives for the call.
            unsafe { guard::llama_model_load_from_file(c_path.as_ptr(), params) }
        })?;
        let ptr = NonNull::new(ptr)
            .ok_or_else(|| backend::failure("llama_model_load_from_file", "no reason was given"))?;
        // SAFETY: the model is loaded; its vocabulary lives as long as it does.
        let vocab = unsafe { sys::llama_model_get_vocab(ptr.as_ptr()) };
        let vocab = NonNull::new(vocab.cast_mut()).expect("a loaded model has a vocabulary");
        let mut model = Self {
            ptr,
            vocab,
            vocabulary: Vocabulary::default(),
            corrected: Corrected::default(),
        };
        let architecture = model.metadata("general.architecture").unwrap_or_default();
        model.corrected = Corrected {
            norm_epsilon: norm_epsilon::missed(path, &architecture)?,
            is_interleaved: mrope_positions::are_interleaved(&architecture),
            keeps_windows: architecture == "gemma4",
        };
        Ok(model)
    }

    /// Whether rows of an image that see one another see no further than the window: in transformers' Gemma 4
    /// (`create_masks_for_vision_model` in `modeling_gemma4.py`), as in llama.cpp.
    pub(super) fn keeps_windows_in_images(&self) -> bool {
        self.corrected.keeps_windows
    }

    pub(super) fn as_ptr(&self) -> *mut sys::llama_model {
        self.ptr.as_ptr()
    }

    pub(super) fn vocab(&self) -> *const sys::llama_vocab {
        self.vocab.as_ptr()
    }

    /// The residual stream's width.
    pub fn d_model(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_embd(self.as_ptr()) }.unsigned_abs() as usize
    }

    /// The number of blocks.
    pub fn n_layers(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_layer(self.as_ptr()) }.unsigned_abs() as usize
    }

    /// Numbers that a KV cache keeps for a token: a key and a value for each layer and KV head.
    pub(crate) fn cache_values_per_token(&self) -> usize {
        // SAFETY: the model is alive.
        let n_heads = unsafe { sys::llama_model_n_head(self.as_ptr()) }.unsigned_abs() as usize;
        // SAFETY: as above.
        let n_kv_heads = unsafe { sys::llama_model_n_head_kv(self.as_ptr()) };
        let architecture = self.metadata("general.architecture").unwrap_or_default();
        let length = |name: &str| {
            let length = self.metadata(&format!("{architecture}.attention.{name}"));
            let length = length.and_then(|length| length.parse().ok());
            length.unwrap_or(self.d_model() / n_heads.max(1))
        };
        self.n_layers()
            * n_kv_heads.unsigned_abs() as usize
            * (length("key_length") + length("value_length"))
    }

    /// Whether it reads tokens one after the other and keeps rows for each, which can be taken back: no encoder, no
    /// diffusion, and no state into which tokens go.
    pub(crate) fn keeps_each_token(&self) -> bool {
        let model = self.as_ptr();
        // SAFETY: the model is alive.
        let has_state = unsafe { sys::llama_model_is_recurrent(model) };
        // SAFETY: as above.
        let has_state_in_some = unsafe { sys::llama_model_is_hybrid(model) };
        // SAFETY: as above.
        let has_encoder = unsafe { sys::llama_model_has_encoder(model) };
        // SAFETY: as above.
        let is_diffusion = unsafe { sys::llama_model_is_diffusion(model) };
        !(has_state || has_state_in_some || has_encoder || is_diffusion)
    }

    /// The longest context that the model was trained on, in tokens.
    pub fn trained_context(&self) -> usize {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) }.unsigned_abs() as usize
    }

    /// The number of tokens in the vocabulary, fillers included.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_n_tokens(self.vocab()) }.unsigned_abs() as usize
    }

    /// Whether generation ends with this token.
    pub fn is_end(&self, token: i32) -> bool {
        // SAFETY: the vocabulary is alive; llama.cpp checks the id against its own set.
        unsafe { sys::llama_vocab_is_eog(self.vocab(), token) }
    }

    /// Whether a token begins, ends, separates, pads or otherwise structures texts, such as `<bos>`
    /// and the marks of turns: llama.cpp's control tokens (`LLAMA_TOKEN_ATTR_CONTROL`), and those
    /// that the vocabulary names.
    pub fn is_special(&self, token: i32) -> bool {
        let is_known = usize::try_from(token).is_ok_and(|id| id < self.n_vocab());
        let named = [
            sys::llama_vocab_bos,
            sys::llama_vocab_eos,
            sys::llama_vocab_sep,
            sys::llama_vocab_pad,
        ];
        is_known
            // SAFETY: the vocabulary is alive and the id is in range.
            && (unsafe { sys::llama_vocab_is_control(self.vocab(), token) }
                // SAFETY: the vocabulary is alive; a missing token is -1.
                || named.iter().any(|named| unsafe { named(self.vocab()) } == token))
    }

    /// The vocabulary's special tokens ([`Model::is_special`]).
    pub fn special_tokens(&self) -> Vec<i32> {
        let n_vocab = i32::try_from(self.n_vocab()).expect("llama.cpp counts tokens in 32 bits");
        (0..n_vocab).filter(|&id| self.is_special(id)).collect()
    }

    /// Filler tokens that pad the vocabulary to the embedding's rows; they must never be sampled.
    pub fn unused_tokens(&self) -> Vec<i32> {
        let is_unused =
            |token: &i32| self.token_attributes(*token) & sys::LLAMA_TOKEN_ATTR_UNUSED != 0;
        self.token_ids().filter(is_unused).collect()
    }

    pub(super) fn vocab_type(&self) -> sys::llama_vocab_type {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_type(self.vocab()) }
    }

    /// The type by which its pieces are written: Gemma 4's are merged, and are of texts as SentencePiece's are, with
    /// bytes such as `<0x0A>` (`llama_vocab::impl::load` in `src/llama-vocab.cpp`).
    pub(super) fn piece_type(&self) -> sys::llama_vocab_type {
        match self.metadata("tokenizer.ggml.model").as_deref() {
            Some("gemma4") => sys::LLAMA_VOCAB_TYPE_SPM,
            _ => self.vocab_type(),
        }
    }

    pub(crate) fn token_ids(&self) -> std::ops::Range<i32> {
        0..i32::try_from(self.n_vocab()).expect("llama.cpp counts tokens in 32 bits")
    }

    pub(super) fn token_attributes(&self, token: i32) -> sys::llama_token_attr {
        assert!(
            self.token_ids().contains(&token),
            "a token of this vocabulary"
        );
        // SAFETY: the vocabulary is alive and the id is in range.
        unsafe { sys::llama_vocab_get_attr(self.vocab(), token) }
    }

    /// A token as the vocabulary stores it, with `▁` or `Ġ` for a space.
    pub(super) fn token_bytes(&self, token: i32) -> &[u8] {
        assert!(
            self.token_ids().contains(&token),
            "a token of this vocabulary"
        );
        // SAFETY: the vocabulary is alive and the id is in range.
        let text = unsafe { sys::llama_vocab_get_text(self.vocab(), token) };
        // SAFETY: it is NUL-terminated and lives as long as the vocabulary.
        unsafe { CStr::from_ptr(text) }.to_bytes()
    }

    /// The vocabulary's beginning-of-sequence token, if it has one.
    pub fn bos(&self) -> Option<i32> {
        // SAFETY: the vocabulary is alive; a missing token is -1.
        let bos = unsafe { sys::llama_vocab_bos(self.vocab()) };
        Some(bos).filter(|bos| self.token_ids().contains(bos))
    }

    /// The token that the vocabulary asks for at the beginning of texts, if it does.
    pub(crate) fn added_bos(&self) -> Option<i32> {
        let [begin, _] = self.added_tokens(AddBos::Yes);
        begin
    }

    /// Whether a text begins with the text of the vocabulary's beginning-of-sequence token.
    pub fn begins_with_bos(&self, text: &str) -> bool {
        let bos = self.bos().map_or(&[][..], |bos| self.token_bytes(bos));
        !bos.is_empty() && text.as_bytes().starts_with(bos)
    }

    /// What llama.cpp puts in front of a text and behind it.
    pub(super) fn added_tokens(&self, add_bos: AddBos) -> [Option<i32>; 2] {
        // SAFETY: the vocabulary is alive, here and below.
        let begins = unsafe { sys::llama_vocab_get_add_bos(self.vocab()) };
        // SAFETY: see above.
        let ends = unsafe { sys::llama_vocab_get_add_eos(self.vocab()) };
        // SAFETY: see above.
        let bos = unsafe { sys::llama_vocab_bos(self.vocab()) };
        // SAFETY: see above.
        let eos = unsafe { sys::llama_vocab_eos(self.vocab()) };
        [(begins, bos), (ends, eos)]
            .map(|(is_added, token)| (is_added && add_bos == AddBos::Yes).then_some(token))
    }

    /// As [`Model::tokenize`], by one call of llama.cpp, which takes what time it takes and leaves out
    /// characters without a token, or fails.
    ///
    /// # Errors
    /// A failure of llama.cpp.
    pub fn tokenize_at_once(&self, text: &str, add_bos: AddBos) -> Result<Vec<i32>> {
        let n_bytes =
            i32::try_from(text.len()).map_err(|_| Error::invalid("the prompt is too long"))?;
        let mut tokens = vec![0; text.len() + 2];
        let mut n_tokens = self.tokenize_into(text, n_bytes, add_bos, &mut tokens)?;
        if n_tokens < 0 {
            tokens.resize(n_tokens.unsigned_abs() as usize, 0);
            n_tokens = self.tokenize_into(text, n_bytes, add_bos, &mut tokens)?;
        }
        let n_tokens = usize::try_from(n_tokens)
            .map_err(|_| backend::failure("llama_tokenize", "the buffer was too small twice"))?;
        tokens.truncate(n_tokens);
        Ok(tokens)
    }

    fn tokenize_into(
        &self,
        text: &str,
        n_bytes: i32,
        add_bos: AddBos,
        out: &mut [i32],
    ) -> Result<i32> {
        let capacity = i32::try_from(out.len()).unwrap_or(i32::MAX);
        guarded("llama_tokenize", || {
            // SAFETY: text and buffer live for the call, and their lengths are given.
            unsafe {
                guard::llama_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    n_bytes,
                    out.as_mut_ptr(),
                    capacity,
                    add_bos == AddBos::Yes,
                    true,
                )
            }
        })
    }

    /// Appends the bytes that `token` stands for: possibly a part of a character. With
    /// [`Special::Show`], control tokens appear by name, else as nothing.
    ///
    /// # Errors
    /// An id that the vocabulary does not have.
    pub fn append_piece(&self, token: i32, special: Special, out: &mut Vec<u8>) -> Result<()> {
        if !self.token_ids().contains(&token) {
            return Err(Error::invalid(format!(
                "there is no token {token}: the vocabulary has {}",
                self.n_vocab()
            )));
        }
        let start = out.len();
        out.resize(start + 256, 0); // enough for nearly all
        let mut n_bytes = self.piece_into(token, special, &mut out[start..])?;
        if n_bytes < 0 {
            out.resize(start + n_bytes.unsigned_abs() as usize, 0);
            n_bytes = self.piece_into(token, special, &mut out[start..])?;
        }
        out.truncate(start + usize::try_from(n_bytes).unwrap_or(0));
        Ok(())
    }

    fn piece_into(&self, token: i32, special: Special, out: &mut [u8]) -> Result<i32> {
        let capacity = i32::try_from(out.len()).unwrap_or(i32::MAX);
        guarded("llama_token_to_piece", || {
            // SAFETY: the buffer lives for the call and its length is given.
            unsafe {
                guard::llama_token_to_piece(
                    self.vocab(),
                    token,
                    out.as_mut_ptr().cast(),
                    capacity,
                    0,
                    special == Special::Show,
                )
            }
        })
    }

    /// The chat template in the file, a Jinja text.
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: the model is alive; a null name asks for the default template.
        let template = unsafe { sys::llama_model_chat_template(self.as_ptr(), std::ptr::null()) };
        // SAFETY: if it is not null, it is NUL-terminated and lives as long as the model.
        let template = (!template.is_null()).then(|| unsafe { CStr::from_ptr(template) });
        template.map(|template| template.to_string_lossy().into_owned())
    }

    /// The texts of special tokens by the names that chat templates have for them.
    pub(crate) fn named_tokens(&self) -> Vec<(&'static str, String)> {
        let named = [
            (
                "bos_token",
                sys::llama_vocab_bos as unsafe extern "C" fn(_) -> _,
            ),
            ("eos_token", sys::llama_vocab_eos),
            ("sep_token", sys::llama_vocab_sep),
            ("pad_token", sys::llama_vocab_pad),
        ];
        let text = |(name, token): (&'static str, unsafe extern "C" fn(_) -> _)| {
            // SAFETY: the vocabulary is alive; a missing token is -1.
            let id = unsafe { token(self.vocab()) };
            let is_known = self.token_ids().contains(&id);
            is_known.then(|| {
                (
                    name,
                    String::from_utf8_lossy(self.token_bytes(id)).into_owned(),
                )
            })
        };
        named.into_iter().filter_map(text).collect()
    }

    /// A metadata value of the GGUF file as text.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buffer = vec![0; 512];
        let mut n_bytes = self.metadata_into(&key, &mut buffer)?;
        if n_bytes >= buffer.len() {
            buffer.resize(n_bytes + 1, 0);
            n_bytes = self.metadata_into(&key, &mut buffer)?;
        }
        buffer.truncate(n_bytes);
        Some(String::from_utf8_lossy(&buffer).into_owned())
    }

    /// The length of a value, which is written to `out` as far as it fits with a NUL at its end.
    fn metadata_into(&self, key: &CStr, out: &mut [u8]) -> Option<usize> {
        // SAFETY: key and buffer live for the call, and the buffer's length is given.
        let n_bytes = unsafe {
            sys::llama_model_meta_val_str(
                self.as_ptr(),
                key.as_ptr(),
                out.as_mut_ptr().cast(),
                out.len(),
            )
        };
        usize::try_from(n_bytes).ok()
    }
}

/// Whether llama.cpp was compiled for AMX, whose kernels crash with what GCC makes of them: its
/// `_tile_loadconfig` (`amxtileintrin.h`, seen in GCC 12.2) shows the optimiser 8 of the 64 bytes
/// that it reads, so the others are never written (ggml-org/llama.cpp #20824, #26954). The kernels
/// run on repacked weights only.
fn has_amx() -> bool {
    // SAFETY: no arguments; it tells what the compiler was told.
    unsafe { sys::ggml_cpu_has_amx_int8() != 0 }
}

impl Drop for Model {
    fn drop(&mut self) {
        if backend::ends_soon() {
            return;
        }
        // SAFETY: contexts hold an `Arc` of the model, so none is left.
        unsafe { sys::llama_model_free(self.as_ptr()) };
    }
}

/// Whether the beginning-of-sequence token goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddBos {
    /// If the vocabulary asks for one.
    Yes,
    /// Never: this text continues a sequence.
    No,
}

/// Whether control tokens appear in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// By name, such as `<bos>`.
    Show,
    /// As nothing.
    Hide,
}
