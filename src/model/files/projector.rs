//! What the file of a projector and its vision encoder must hold, by its type.

mod blocks;
mod gemma3;
mod header;
mod mlp;
mod tensors;

use std::path::Path;

use gguf_tools::gguf::{Gguf, Value};

use self::header::{HAS_PROJECTOR, TYPE};
use super::rules::wrong_role;
use crate::llama::ProjectorType;
use crate::{Error, Result};

pub(crate) use self::header::VisionShape;

/// Checks a projector's file, for a language model of this width.
pub(super) fn check(path: &Path, d_model: u64) -> Result<VisionShape> {
    let file = Gguf::open(path)?;
    let architecture = file.require_str("general.architecture")?;
    if architecture != "clip" {
        return Err(wrong_role(path, "a projector (mmproj)", architecture));
    }
    match type_of(&file)? {
        ProjectorType::Mlp => mlp::check(&file, d_model),
        ProjectorType::Gemma3 => gemma3::check(&file, d_model),
    }
}

/// The type that a file says.
pub(super) fn type_of(file: &Gguf) -> Result<ProjectorType> {
    let has_projector = file.get(HAS_PROJECTOR) == Some(&Value::Bool(true));
    if file.get(TYPE).is_none() && has_projector {
        return Ok(ProjectorType::Mlp); // the first files, of 2023: there was no other
    }
    match file.require_str(TYPE)? {
        "mlp" => Ok(ProjectorType::Mlp),
        "gemma3" => Ok(ProjectorType::Gemma3),
        other => Err(Error::invalid(format!(
            "the projector in `{}` is of type `{other}`, and only `mlp` and `gemma3` are supported",
            file.path().display()
        ))
        .with_hint("use the projector of a LLaVA model, made by a conversion, or of Gemma 3")),
    }
}
