//! llama.cpp's own quantiser.

use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::backend;
use super::guard::{self, guarded};
use crate::{Error, Result};

/// The quantisations offered, as llama.cpp names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    /// 8.5 bits a weight; `gguf-tools` writes the same without llama.cpp.
    Q8_0,
    /// About 6.6 bits a weight.
    Q6K,
    /// About 5.7 bits a weight.
    Q5KM,
    /// About 4.8 bits a weight.
    Q4KM,
}

/// Quantises the model at `source` into the file `target`.
///
/// # Errors
/// When llama.cpp refuses, with the reason that it logged; what it wrote may be left at `target`.
pub fn quantize(source: &Path, target: &Path, quant: Quant, threads: usize) -> Result<()> {
    backend::start();
    let c_source = backend::c_path(source)?;
    let c_target = backend::c_path(target)?;
    // SAFETY: returns a plain struct by value.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.nthread = i32::try_from(threads).unwrap_or(0);
    params.ftype = match quant {
        Quant::Q8_0 => sys::LLAMA_FTYPE_MOSTLY_Q8_0,
        Quant::Q6K => sys::LLAMA_FTYPE_MOSTLY_Q6_K,
        Quant::Q5KM => sys::LLAMA_FTYPE_MOSTLY_Q5_K_M,
        Quant::Q4KM => sys::LLAMA_FTYPE_MOSTLY_Q4_K_M,
    };
    let code = guarded("llama_model_quantize", || {
        // SAFETY: both paths are NUL-terminated and live for the call, as do the parameters.
        unsafe {
            guard::llama_model_quantize(c_source.as_ptr(), c_target.as_ptr(), &raw const params)
        }
    })?;
    match code {
        0 => Ok(()),
        code => {
            let error = backend::failure("llama_model_quantize", &format!("code {code}"));
            Err(Error::invalid(format!(
                "cannot quantise `{}`: {error}",
                source.display()
            )))
        }
    }
}
