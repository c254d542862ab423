//! Interventions as control vectors, files that llama.cpp's own programs add to the residual stream.

use std::path::Path;

use gguf_tools::gguf::{Overwrite, TensorType, Writer};

use crate::llama::Model;
use crate::steering::{Edit, Steering};
use crate::{Error, HookPoint, Result, Site};

/// Writes `target`, which `--control-vector` of llama.cpp's programs reads: one tensor `direction.L`,
/// `[d_model]`, that is added to the output of block L in every row (`common_control_vector_load_one`
/// in llama.cpp's `common/common.cpp`). What is added to what the feed-forward part gives is the same, since the
/// output of the block is that and the stream before it.
///
/// # Errors
/// Interventions that no control vector expresses: those that depend on the row, or that do not touch
/// all positions alike; places but these of blocks from 1 on; a file that cannot be written.
pub(crate) fn write(
    model: &Model,
    steering: &Steering,
    target: &Path,
    overwrite: Overwrite,
) -> Result<()> {
    let refused = |why: &str| {
        Error::invalid(format!("a control vector cannot express this: {why}"))
            .with_hint("steer with this program, which has no such limit")
    };
    let places: Vec<_> = steering.edits().iter().map(Edit::hook_point).collect();
    let is_elsewhere = |place: &&HookPoint| !matches!(place.site(), Site::ResidPost | Site::MlpOut);
    if let Some(place) = places.iter().find(is_elsewhere) {
        return Err(refused(&format!(
            "it is added to the residual stream behind a block, and this is done at `{place}`"
        )));
    }
    if places.iter().any(|place| place.layer() == 0) {
        return Err(refused(
            "llama.cpp's begin at layer 1, and this is done at layer 0",
        ));
    }
    let Some((hook_point, direction)) = steering.constant() else {
        return Err(refused(
            "it adds one vector to every row, so only steering at all positions fits",
        ));
    };
    let layer = hook_point.layer();
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
