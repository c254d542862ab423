//! llama.cpp's messages, handed to the `log` crate; the last error of each thread is kept for our own
//! messages.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

struct Messages {
    // Messages come in pieces; a piece without a line's end waits here for the rest.
    partial: String,
    level: log::Level,
    last_error: Option<String>,
}

thread_local! {
    static MESSAGES: RefCell<Messages> = const {
        RefCell::new(Messages {
            partial: String::new(),
            level: log::Level::Debug,
            last_error: None,
        })
    };
}

pub(super) fn install() {
    // SAFETY: `on_message` matches the callback's type and needs no user data.
    unsafe { sys::llama_log_set(Some(on_message), std::ptr::null_mut()) };
    // SAFETY: as above; the helper passes it on to the rest of mtmd and clip.
    unsafe { sys::mtmd_helper_log_set(Some(on_message), std::ptr::null_mut()) };
    // SAFETY: `on_abort` matches the callback's type.
    unsafe { sys::ggml_set_abort_callback(Some(on_abort)) };
}

/// The last message at error level on this thread since the last call.
pub(super) fn take_last_error() -> Option<String> {
    let taken = MESSAGES.try_with(|messages| messages.borrow_mut().last_error.take());
    taken.ok()?
}

unsafe extern "C" fn on_message(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A logger may panic, which must not cross into C.
    let _ = std::panic::catch_unwind(|| {
        let lines = MESSAGES.try_with(|messages| messages.borrow_mut().take_piece(level, &text));
        // Nothing is borrowed here: a logger may call llama.cpp.
        for (level, line) in lines.unwrap_or_default() {
            log::log!(target: "llama.cpp", level, "{line}");
        }
    });
}

/// Says why llama.cpp ends the process, which it does when this returns.
unsafe extern "C" fn on_abort(message: *const c_char) {
    // SAFETY: ggml passes a NUL-terminated string that lives for the call.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    eprintln!("llama.cpp ends the process: {message}");
    if let Some(error) = take_last_error() {
        eprintln!("its last error before that: {error}");
    }
}

impl Messages {
    /// Takes a piece in; the lines that it completes.
    fn take_piece(&mut self, level: sys::ggml_log_level, text: &str) -> Vec<(log::Level, String)> {
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
        let mut lines = Vec::new();
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            lines.push((self.level, line.trim_end().to_owned()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use llama_cpp_sys_2 as sys;

    use super::{on_message, take_last_error};
    use crate::llama::guard::guarded;

    fn say(level: sys::ggml_log_level, text: &std::ffi::CStr) {
        // SAFETY: the text is NUL-terminated and lives for the call.
        unsafe { on_message(level, text.as_ptr(), std::ptr::null_mut()) };
    }

    #[test]
    fn reasons_are_those_of_the_call_at_hand() {
        say(sys::GGML_LOG_LEVEL_ERROR, c"out of memory\n");
        let elsewhere = std::thread::spawn(take_last_error).join();
        assert_eq!(elsewhere.expect("no panic"), None, "another thread's");
        assert_eq!(take_last_error().as_deref(), Some("out of memory"));
        say(sys::GGML_LOG_LEVEL_ERROR, c"an older one\n");
        guarded("nothing", || ()).expect("it does nothing");
        assert_eq!(
            take_last_error(),
            None,
            "forgotten when the next call began"
        );
    }

    /// A logger that makes llama.cpp say something.
    struct Talkative;

    impl log::Log for Talkative {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            if record.args().to_string() == "outer" {
                say(sys::GGML_LOG_LEVEL_INFO, c"inner\n");
            }
        }

        fn flush(&self) {}
    }

    #[test]
    fn a_logger_may_call_llama_cpp() {
        log::set_logger(&Talkative).expect("no other test sets one");
        log::set_max_level(log::LevelFilter::Trace);
        say(sys::GGML_LOG_LEVEL_INFO, c"outer\n");
    }
}
