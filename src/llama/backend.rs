//! Starting llama.cpp, once a process, and small pieces that every owner needs.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use llama_cpp_sys_2 as sys;

use super::amx;
use super::log_router;
use crate::error::runtime;
use crate::{Error, Result};

/// The version of llama-cpp-sys-2, and so of llama.cpp, on which numbers depend.
pub(crate) const BINDINGS_VERSION: &str = "0.1.161";

/// Starts llama.cpp and routes its messages to the `log` crate. Later calls do nothing.
pub(super) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        log_router::install();
        // SAFETY: called once, before any other function of llama.cpp.
        unsafe { sys::llama_backend_init() };
    });
}

/// Free memory of the first GPU, if there is one.
pub(crate) fn free_device_bytes() -> Option<u64> {
    let device = gpu()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the device and both numbers are alive.
    unsafe { sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total) };
    Some(free as u64)
}

/// Whether there is a GPU.
pub(crate) fn has_gpu() -> bool {
    gpu().is_some()
}

/// What computes, in words that change with it: the device, which is the first GPU if `use_gpu` and
/// there is one, as for `clip_ctx` in llama.cpp's `clip.cpp`; and the instructions of all backends'
/// kernels.
pub fn computed_by(use_gpu: bool) -> String {
    static KERNELS: OnceLock<String> = OnceLock::new();
    start();
    let kernels = KERNELS.get_or_init(|| {
        // SAFETY: a static string, which a later call would change; there is none.
        text(unsafe { sys::llama_print_system_info() })
    });
    let device = gpu()
        .filter(|_| use_gpu)
        .or_else(|| device_of(sys::GGML_BACKEND_DEVICE_TYPE_CPU));
    let device = device.map(|device| {
        // SAFETY: the device lives as long as the process, and so does its name.
        let name = text(unsafe { sys::ggml_backend_dev_name(device) });
        // SAFETY: as above.
        let description = text(unsafe { sys::ggml_backend_dev_description(device) });
        format!("{name}, {description}")
    });
    let amx = if amx::is_supported() {
        "; images by AMX"
    } else {
        ""
    };
    format!("{}; {kernels}{amx}", device.unwrap_or_default())
}

fn gpu() -> Option<sys::ggml_backend_dev_t> {
    device_of(sys::GGML_BACKEND_DEVICE_TYPE_GPU)
        .or_else(|| device_of(sys::GGML_BACKEND_DEVICE_TYPE_IGPU))
}

fn device_of(device_type: sys::ggml_backend_dev_type) -> Option<sys::ggml_backend_dev_t> {
    start(); // backends say what they find when they are first asked
    // SAFETY: returns a device that lives as long as the process, or null.
    let device = unsafe { sys::ggml_backend_dev_by_type(device_type) };
    (!device.is_null()).then_some(device)
}

/// A copy of a text of llama.cpp's.
fn text(text: *const c_char) -> String {
    // SAFETY: callers pass what llama.cpp returned, which ends in NUL and is not null.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// Whether something else than the processor computes graphs: a GPU where it is wanted, or a library
/// for matrix products such as Accelerate.
pub(crate) fn computes_elsewhere(use_gpu: bool) -> bool {
    device_of(sys::GGML_BACKEND_DEVICE_TYPE_ACCEL).is_some() || use_gpu && has_gpu()
}

static ENDS_SOON: AtomicBool = AtomicBool::new(false);

/// Says that the process ends when its models are no longer used, so that their memory is left to the system:
/// freeing a vocabulary of 256 000 tokens takes 50 ms. Devices want theirs back nonetheless.
pub fn leave_models_to_the_system() {
    ENDS_SOON.store(true, Ordering::Relaxed);
}

pub(super) fn ends_soon() -> bool {
    ENDS_SOON.load(Ordering::Relaxed) && !has_gpu()
}

/// Ends the process at once, without the static destructors of C++, which threads that still compute
/// would run into.
pub fn exit_at_once(code: i32) -> ! {
    unsafe extern "C" {
        fn _exit(code: std::ffi::c_int) -> !;
    }
    // SAFETY: it does not return, and touches no memory of ours.
    unsafe { _exit(code) }
}

/// A path as C takes it.
pub(super) fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::invalid(format!("the path `{}` holds a NUL byte", path.display())))
}

/// A failure of `function`, with the last error that llama.cpp logged as its reason.
pub(super) fn failure(function: &'static str, otherwise: &str) -> Error {
    let reason = log_router::take_last_error();
    runtime(function, reason.as_deref().unwrap_or(otherwise))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_bindings_have_the_version_of_the_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        let entry = lock.split("name = \"llama-cpp-sys-2\"").nth(1);
        let line = format!("version = \"{}\"", super::BINDINGS_VERSION);
        let found = entry.and_then(|entry| entry.lines().nth(1));
        assert_eq!(found, Some(&*line));
    }
}
