//! Starting llama.cpp, once a process, and small pieces that every owner needs.

use std::ffi::CString;
use std::path::Path;
use std::sync::Once;

use llama_cpp_sys_2 as sys;

use super::log_router;
use crate::{Error, Result};

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
    let gpu_types = [
        sys::GGML_BACKEND_DEVICE_TYPE_GPU,
        sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
    ];
    for device_type in gpu_types {
        // SAFETY: returns a device that lives as long as the process, or null.
        let device = unsafe { sys::ggml_backend_dev_by_type(device_type) };
        if !device.is_null() {
            let (mut free, mut total) = (0, 0);
            // SAFETY: the device and both numbers are alive.
            unsafe { sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total) };
            return Some(free as u64);
        }
    }
    None
}

/// Whether something else than the processor computes graphs: a GPU where it is wanted, or a library
/// for matrix products such as Accelerate.
pub(crate) fn computes_elsewhere(use_gpu: bool) -> bool {
    let is_there = |device_type| {
        // SAFETY: returns a device that lives as long as the process, or null.
        !unsafe { sys::ggml_backend_dev_by_type(device_type) }.is_null()
    };
    is_there(sys::GGML_BACKEND_DEVICE_TYPE_ACCEL) || use_gpu && free_device_bytes().is_some()
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

/// Text as C takes it.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("the text holds a NUL character"))
}

/// A failure of `function`, with the last error that llama.cpp logged as its reason.
pub(super) fn failure(function: &'static str, otherwise: &str) -> Error {
    Error::Llama {
        function,
        reason: log_router::take_last_error().unwrap_or_else(|| otherwise.to_owned()),
    }
}
