//! What the file of a projector and its vision encoder must hold, by its type.

mod blocks;
mod gemma3;
mod gemma4;
mod header;
mod idefics3;
mod internvl;
mod mlp;
mod other;
mod qwen;
mod tensors;
mod tiles;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gguf_tools::gguf::{Edits, Gguf, Value};

use self::header::{HAS_PROJECTOR, TYPE};
use super::rules::wrong_role;
use crate::Result;
use crate::llama::ProjectorType;
use crate::picture::ImagePrep;

pub(crate) use self::header::{MAX_ATTENTION_SCORES, PictureViews, VisionShape};

/// A projector, by how it is run.
#[derive(Clone, Debug)]
pub(crate) enum CheckedProjector {
    /// Its type was compared with its reference.
    Compared(VisionShape),
    /// All is as llama.cpp does it of the file, read with these.
    Other(Edits),
}

/// Checks a projector's file, for a language model's file of this width, `n_deepstack` of whose blocks take in image rows
/// too.
pub(super) fn check(
    path: &Path,
    model: &Gguf,
    d_model: u64,
    n_deepstack: usize,
) -> Result<CheckedProjector> {
    let file = Gguf::open(path)?;
    let architecture = file.require_str("general.architecture")?;
    if architecture != "clip" {
        return Err(wrong_role(path, "a projector (mmproj)", architecture));
    }
    match type_of(&file)? {
        Some(ProjectorType::Mlp) => mlp::check(&file, d_model).map(CheckedProjector::Compared),
        Some(ProjectorType::Gemma3) => {
            gemma3::check(&file, d_model).map(CheckedProjector::Compared)
        }
        Some(ProjectorType::Gemma4) => {
            gemma4::check(&file, model, d_model).map(CheckedProjector::Compared)
        }
        Some(ProjectorType::Idefics3) => {
            idefics3::check(&file, d_model).map(CheckedProjector::Compared)
        }
        Some(ProjectorType::InternVl) => {
            internvl::check(&file, d_model).map(CheckedProjector::Compared)
        }
        Some(projector) => {
            qwen::check(&file, projector, d_model, n_deepstack).map(CheckedProjector::Compared)
        }
        None => other::check(&file, d_model).map(CheckedProjector::Other),
    }
}

/// The ways in which pictures may be prepared for the projector of a file, the usual one first; none
/// where llama.cpp prepares them.
pub(super) fn image_preps(path: &Path) -> Result<&'static [ImagePrep]> {
    let file = Gguf::open(path)?;
    Ok(match type_of(&file)? {
        Some(ProjectorType::Mlp) => mlp::image_preps(&file),
        Some(ProjectorType::Gemma3) => gemma3::IMAGE_PREPS,
        Some(ProjectorType::Gemma4) => gemma4::IMAGE_PREPS,
        Some(ProjectorType::Idefics3) => idefics3::IMAGE_PREPS,
        Some(ProjectorType::InternVl) => internvl::IMAGE_PREPS,
        Some(_) => qwen::IMAGE_PREPS,
        None => &[],
    })
}

/// The type that a file says; none where it was not compared with its reference.
fn type_of(file: &Gguf) -> Result<Option<ProjectorType>> {
    let has_projector = file.get(HAS_PROJECTOR) == Some(&Value::Bool(true));
    if file.get(TYPE).is_none() && has_projector {
        return Ok(Some(ProjectorType::Mlp)); // the first files, of 2023: there was no other
    }
    match other::type_name(file)? {
        "mlp" => Ok(Some(ProjectorType::Mlp)),
        "gemma3" => Ok(Some(ProjectorType::Gemma3)),
        "gemma4v" => Ok(Some(ProjectorType::Gemma4)),
        "qwen2vl_merger" => Ok(Some(ProjectorType::Qwen2Vl)),
        // Omni models' files, which hear too, are Qwen2.5-VL's to llama.cpp where they see.
        "qwen2.5vl_merger" | "qwen2.5o" => Ok(Some(ProjectorType::Qwen25Vl)),
        "qwen3vl_merger" => Ok(Some(ProjectorType::Qwen3Vl)),
        "idefics3" => Ok(Some(ProjectorType::Idefics3)),
        "internvl" if !internvl::is_largest(file) => Ok(Some(ProjectorType::InternVl)),
        _ => Ok(None),
    }
}

/// Logs what was decided about a file, once a process, since sessions side by side check it again.
fn say_once(path: &Path, decisions: &[String]) {
    static SAID: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    if decisions.is_empty() {
        return;
    }
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.get_or_insert_default().insert(path.to_owned()) {
        log::warn!("`{}`: {}", path.display(), decisions.join("; "));
    }
}
