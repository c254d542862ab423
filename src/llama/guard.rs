//! Calls of llama.cpp that may throw. Its C functions let C++ exceptions through, which must not
//! reach Rust: they are declared here as functions that unwind, and called by a few lines of C++
//! (`guard.cpp`) that catch.

use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

use super::log_router;
use crate::Result;
use crate::error::runtime;

/// Calls `function` by way of `call`, which does nothing else, and above all does not panic. What C++
/// throws becomes an error. What llama.cpp said before is forgotten, so that [`super::backend::failure`]
/// finds what it says now.
///
/// # Errors
/// [`ErrorKind::Runtime`](crate::ErrorKind::Runtime) with what was thrown.
pub(super) fn guarded<T>(function: &'static str, call: impl FnOnce() -> T) -> Result<T> {
    log_router::take_last_error();
    let mut work = Work {
        call: Some(call),
        result: None,
    };
    let mut what = [0 as c_char; 512];
    // SAFETY: `run` gets the work, which lives for the call, as does the buffer, whose length is given.
    let is_done = unsafe {
        llava_sae_guard(
            run_of(&work),
            (&raw mut work).cast(),
            what.as_mut_ptr(),
            what.len(),
        )
    };
    if let (true, Some(result)) = (is_done, work.result) {
        return Ok(result);
    }
    // SAFETY: the guard ends the text with NUL.
    let what = unsafe { CStr::from_ptr(what.as_ptr()) };
    Err(runtime(function, what.to_string_lossy()))
}

struct Work<F, T> {
    call: Option<F>,
    result: Option<T>,
}

type Run = unsafe extern "C-unwind" fn(*mut c_void);

fn run_of<F: FnOnce() -> T, T>(_: &Work<F, T>) -> Run {
    run::<F, T>
}

/// Runs a [`Work<F, T>`].
unsafe extern "C-unwind" fn run<F: FnOnce() -> T, T>(work: *mut c_void) {
    // SAFETY: `guarded` gave this pointer, and waits.
    let work = unsafe { &mut *work.cast::<Work<F, T>>() };
    work.result = work.call.take().map(|call| call());
}

unsafe extern "C" {
    fn llava_sae_guard(run: Run, work: *mut c_void, what: *mut c_char, capacity: usize) -> bool;
}

/// Declares functions of llama.cpp as such that unwind, with the types that the bindings give them.
macro_rules! throwing {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        unsafe extern "C-unwind" {
            $(pub(super) fn $name($($argument: $type),*) -> $result;)*
        }
        const _: () = {
            $(let _: unsafe extern "C" fn($($type),*) -> $result = sys::$name;)*
        };
    };
}

throwing! {
    fn llama_decode(context: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
    fn llama_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut i32,
        n_tokens_max: i32,
        add_special: bool,
        parse_special: bool,
    ) -> i32;
    fn llama_token_to_piece(
        vocab: *const sys::llama_vocab,
        token: i32,
        buf: *mut c_char,
        length: i32,
        lstrip: i32,
        special: bool,
    ) -> i32;
    fn llama_model_load_from_file(
        path: *const c_char,
        params: sys::llama_model_params,
    ) -> *mut sys::llama_model;
    fn llama_init_from_model(
        model: *mut sys::llama_model,
        params: sys::llama_context_params,
    ) -> *mut sys::llama_context;
    fn llama_set_adapter_cvec(
        context: *mut sys::llama_context,
        data: *const f32,
        len: usize,
        n_embd: i32,
        layer_start: i32,
        layer_end: i32,
    ) -> i32;
    fn llama_sampler_apply(
        sampler: *mut sys::llama_sampler,
        candidates: *mut sys::llama_token_data_array,
    ) -> ();
    fn mtmd_init_from_file(
        path: *const c_char,
        model: *const sys::llama_model,
        params: sys::mtmd_context_params,
    ) -> *mut sys::mtmd_context;
    fn mtmd_tokenize(
        context: *const sys::mtmd_context,
        output: *mut sys::mtmd_input_chunks,
        text: *const sys::mtmd_input_text,
        bitmaps: *const *const sys::mtmd_bitmap,
        n_bitmaps: usize,
    ) -> i32;
    fn mtmd_encode_chunk(
        context: *mut sys::mtmd_context,
        chunk: *const sys::mtmd_input_chunk,
    ) -> i32;
    fn ggml_backend_graph_compute(
        backend: *mut sys::ggml_backend,
        graph: *mut sys::ggml_cgraph,
    ) -> sys::ggml_status;
    fn llama_model_quantize(
        source: *const c_char,
        target: *const c_char,
        params: *const sys::llama_model_quantize_params,
    ) -> u32;
}

#[cfg(test)]
mod tests {
    use super::{guarded, llama_token_to_piece};
    use crate::llama::{Model, ModelOptions};

    #[test]
    fn what_cpp_throws_is_an_error() {
        let options = ModelOptions {
            gpu_layers: 0,
            repack: false,
        };
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/hook_points/llama/model.gguf"
        );
        let model = Model::load(path.as_ref(), options).expect("a committed file");
        let no_such_token = guarded("llama_token_to_piece", || {
            // SAFETY: the vocabulary is alive, and a buffer of no bytes is not written.
            unsafe { llama_token_to_piece(model.vocab(), -1, std::ptr::null_mut(), 0, 0, true) }
        });
        let error = no_such_token.expect_err("there is no token -1").to_string();
        assert!(
            error.starts_with("llama_token_to_piece failed: "),
            "{error}"
        );
        assert_eq!(guarded("nothing", || 7).ok(), Some(7));
    }
}
