//! Interventions as control vectors, files that llama.cpp's own programs add to the residual stream.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use gguf_tools::gguf::{Overwrite, TensorType, Writer};

use crate::llama::Model;
use crate::steering::{Edit, Steering};
use crate::{Error, HookPoint, Result, Site};

/// Writes `target`, which `--control-vector` of llama.cpp's programs reads: a tensor `direction.L`, `[d_model]`, for each
/// layer, that is added to the output of block L in every row (`common_control_vector_load_one`
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
    let mut directions = BTreeMap::<usize, Vec<f32>>::new(); // by layer, [d_model]
    for edit in steering.edits() {
        let Some(added) = edit.constant() else {
            return Err(refused(
                "it adds one vector to every row of a layer, so only steering at all positions fits",
            ));
        };
        match directions.entry(edit.hook_point().layer()) {
            Entry::Vacant(place) => drop(place.insert(added.to_vec())),
            Entry::Occupied(mut known) => {
                for (x, added) in known.get_mut().iter_mut().zip(added) {
                    *x += added;
                }
            }
        }
    }
    let architecture = model.metadata("general.architecture").unwrap_or_default();
    let mut writer = Writer::create(target, overwrite)?;
    writer.set("general.architecture", "controlvector");
    writer.set("controlvector.model_hint", architecture.as_str());
    writer.set("controlvector.layer_count", directions.len() as i32);
    for (layer, direction) in &directions {
        let name = format!("direction.{layer}");
        writer.declare(&name, &[direction.len() as u64], TensorType::F32);
    }
    let mut writer = writer.begin()?;
    for direction in directions.values() {
        writer.write_f32(direction)?;
    }
    writer.finish()
}
