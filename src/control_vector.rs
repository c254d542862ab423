//! Interventions as control vectors, files that llama.cpp's own programs add to the residual stream.

use std::path::Path;

use gguf_tools::gguf::{Overwrite, TensorType, Writer};

use crate::hook_point::Site;
use crate::session::Session;
use crate::steering::Steering;
use crate::{Error, Result};

/// Writes `target`, which `--control-vector` of llama.cpp's programs reads: one tensor `direction.L`,
/// `[d_model]`, that is added to the output of block L in every row (`common_control_vector_load_one`
/// in llama.cpp's `common/common.cpp`).
///
/// # Errors
/// Interventions that no control vector expresses: those that depend on the row, or that do not touch
/// all positions alike; places but the residual stream after blocks from 1 on; a file that cannot be
/// written.
pub(crate) fn write(
    session: &mut Session,
    steering: &Steering,
    target: &Path,
    overwrite: Overwrite,
) -> Result<()> {
    let hook_point = session.hook_point();
    let refused = |why: &str| {
        Error::invalid(format!("a control vector cannot express this: {why}"))
            .with_hint("steer with this program, which has no such limit")
    };
    if hook_point.site() != Site::ResidPost {
        return Err(refused(&format!(
            "it is added to the residual stream, and the SAE belongs to `{hook_point}`"
        )));
    }
    let layer = hook_point.layer();
    if layer == 0 {
        return Err(refused(
            "llama.cpp's begin at layer 1, and the SAE belongs to layer 0",
        ));
    }
    let Some(direction) = steering.constant() else {
        return Err(refused(
            "it adds one vector to every row, so only `--steer` at all positions fits",
        ));
    };
    let model = session.model();
    let architecture = model.metadata("general.architecture").unwrap_or_default();
    let mut writer = Writer::create(target, overwrite)?;
    writer.set("general.architecture", "controlvector");
    writer.set("controlvector.model_hint", architecture.as_str());
    writer.set("controlvector.layer_count", 1_i32);
    let name = format!("direction.{layer}");
    writer.declare(&name, &[direction.len() as u64], TensorType::F32);
    let mut writer = writer.begin()?;
    writer.write_f32(direction)?;
    writer.finish()?;
    Ok(())
}
