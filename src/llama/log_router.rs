//! llama.cpp's messages, handed to the `log` crate; the last error is kept for our own messages.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;

use llama_cpp_sys_2 as sys;

struct Router {
    // Messages come in pieces; a piece without a line's end waits here for the rest.
    partial: String,
    level: log::Level,
    last_error: Option<String>,
}

static ROUTER: Mutex<Router> = Mutex::new(Router {
    partial: String::new(),
    level: log::Level::Debug,
    last_error: None,
});

pub(super) fn install() {
    // SAFETY: `on_message` matches the callback's type and needs no user data.
    unsafe { sys::llama_log_set(Some(on_message), std::ptr::null_mut()) };
    // SAFETY: as above; the helper passes it on to the rest of mtmd and clip.
    unsafe { sys::mtmd_helper_log_set(Some(on_message), std::ptr::null_mut()) };
}

/// The last message at error level since the last call.
pub(super) fn take_last_error() -> Option<String> {
    ROUTER.lock().ok()?.last_error.take()
}

unsafe extern "C" fn on_message(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A poisoned lock means that a logger panicked; a panic must not cross into C.
    let _ = std::panic::catch_unwind(|| {
        if let Ok(mut router) = ROUTER.lock() {
            router.take_piece(level, &text);
        }
    });
}

impl Router {
    fn take_piece(&mut self, level: sys::ggml_log_level, text: &str) {
        // What matters of llama.cpp's words reaches the user through our own errors; the rest is
        // for those who ask with `-v`.
        match level {
            sys::GGML_LOG_LEVEL_CONT => {}
            sys::GGML_LOG_LEVEL_DEBUG => self.level = log::Level::Trace,
            _ => self.level = log::Level::Debug,
        }
        if level == sys::GGML_LOG_LEVEL_ERROR && !text.trim().is_empty() {
            self.last_error = Some(text.trim().to_owned());
        }
        self.partial.push_str(text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            log::log!(target: "llama.cpp", self.level, "{}", line.trim_end());
        }
    }
}
