//! Single vectors, such as steering vectors: safetensors files with one tensor.

use std::path::Path;

use crate::weights::read_header;
use crate::{Error, Result};

/// Longest vector that is read; rows of language models have some thousand values.
const MAX_VALUES: usize = 1 << 20;

/// Reads the only tensor of a safetensors file, in f32: `[n]`, or with further dimensions of 1.
///
/// # Errors
/// A file that cannot be read or is not safetensors; several tensors, or one of another shape or number type;
/// values that are not finite.
pub fn read(path: &Path) -> Result<Vec<f32>> {
    let tensors = read_header(path)?;
    let refused = |what: String| {
        Error::invalid(what)
            .with_hint("a vector is a safetensors file with one tensor of one dimension")
    };
    let mut tensors = tensors.into_values();
    let (Some(tensor), None) = (tensors.next(), tensors.next()) else {
        let shown = path.display();
        return Err(refused(format!(
            "`{shown}` must contain exactly one tensor"
        )));
    };
    let n_long = tensor.shape().iter().filter(|&&n| n != 1).count();
    let n_values = tensor
        .shape()
        .iter()
        .try_fold(1, |n: usize, &m| n.checked_mul(m));
    if n_long > 1 || !n_values.is_some_and(|n| (1..=MAX_VALUES).contains(&n)) {
        let (tensor, shape) = (tensor.describe(), tensor.shape());
        return Err(refused(format!(
            "{tensor} has shape {shape:?}, expected a vector"
        )));
    }
    tensor.check(tensor.shape())?;
    tensor.read_all()
}
