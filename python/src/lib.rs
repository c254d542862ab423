//! The native half of the Python package `llava_sae`, whose other half is in `llava_sae/`.
//!
//! Here is what needs the library: models with a thread each, runs, arrays without copies. What options are called,
//! how results look and what is imported when are Python's. Options come as JSON, and reports leave as the JSON that the
//! command line prints.

mod arrays;
mod edit;
mod error;
mod features;
mod image;
mod model;
mod raised;
mod sae;
mod settings;
mod shared_session;
mod stream;
mod sweep;

use pyo3::prelude::*;

/// What `llava_sae` is made of.
#[pymodule]
mod _native {
    use std::ffi::OsString;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::ExitCode;

    use gguf_tools::gguf::{Overwrite, TensorType};
    use gguf_tools::sae::SaeOptions;
    use llava_sae_cpp::probe::{self, SeenFiles};
    use llava_sae_cpp::{ErrorKind, cli, demo};
    use pyo3::prelude::*;

    use crate::error::OrRaise;
    #[pymodule_export]
    use crate::features::Features;
    #[pymodule_export]
    use crate::image::Image;
    #[pymodule_export]
    use crate::model::Model;
    #[pymodule_export]
    use crate::sae::Sae;
    #[pymodule_export]
    use crate::settings::{RankSettings, RunSettings};
    #[pymodule_export]
    use crate::stream::Stream;
    #[pymodule_export]
    use crate::sweep::Sweep;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let kinds = ErrorKind::ALL.iter();
        let kinds: Vec<_> = kinds
            .map(|kind| (kind.name(), kind.python_exception()))
            .collect();
        module.add("ERROR_KINDS", kinds)
    }

    /// The command line's program; returns its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, args: Vec<OsString>) -> u8 {
        py.detach(|| {
            let code = match probe::child_main() {
                Some(code) => u8::from(code != ExitCode::SUCCESS),
                None => cli::main(args),
            };
            // Nothing does it at Python's end; an error has been told of by now, or nobody reads.
            let _ = std::io::stdout().flush();
            code
        })
    }

    /// How this process starts another that calls `main`.
    #[pyfunction]
    fn set_child_command(command: Vec<OsString>) {
        probe::set_child_command(command);
    }

    /// The demo's language model, projector and SAE.
    #[pyfunction]
    fn demo_files(py: Python<'_>) -> PyResult<(PathBuf, Option<PathBuf>, PathBuf)> {
        let files = py.detach(demo::files).or_raise(py)?;
        let [sae] = &files.saes[..] else {
            unreachable!("it has one SAE");
        };
        Ok((files.model, files.mmproj, sae.clone()))
    }

    /// Converts a published SAE to a file in f32.
    #[pyfunction]
    fn convert_sae(
        py: Python<'_>,
        source: PathBuf,
        target: PathBuf,
        norm_factor: Option<f32>,
        hook_name: Option<String>,
        labels: Vec<PathBuf>,
    ) -> PyResult<()> {
        let options = SaeOptions {
            weight_type: TensorType::F32,
            norm_factor,
            hook_name,
            labels,
            overwrite: Overwrite::Refuse,
        };
        let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
        let convert = || {
            gguf_tools::sae::convert(&source, &target, &options, go_on)?;
            // What was made here needs no trial; where that cannot be noted, it gets one.
            let _ = SeenFiles::of_user().map(|seen| seen.add(&target));
            Ok(())
        };
        py.detach(convert).or_raise(py)
    }
}
