//! The tensors of a weights file that are not taken yet, by their names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::weights::{StoredTensor, read_header};
use crate::{Error, Result};

pub(super) struct TensorFile {
    path: PathBuf,
    tensors: BTreeMap<String, StoredTensor>,
}

impl TensorFile {
    pub(super) fn new(path: PathBuf, tensors: BTreeMap<String, StoredTensor>) -> Self {
        Self { path, tensors }
    }

    /// Reads the header of a safetensors file.
    ///
    /// # Errors
    /// A file that cannot be read, is not safetensors, or is damaged.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        Ok(Self::new(path.clone(), read_header(&path)?))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Takes a tensor.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(super) fn take(&mut self, name: &str) -> Result<StoredTensor> {
        self.tensors.remove(name).ok_or_else(|| {
            Error::invalid(format!("`{}` has no tensor `{name}`", self.path.display()))
        })
    }

    /// Takes all tensors whose names begin so, with their names.
    pub(super) fn take_all(&mut self, start: &str) -> BTreeMap<String, StoredTensor> {
        let (taken, left) = std::mem::take(&mut self.tensors)
            .into_iter()
            .partition(|(name, _)| name.starts_with(start));
        self.tensors = left;
        taken
    }

    /// Takes a vector, and reads it.
    ///
    /// # Errors
    /// When there is none of that name, it has another length or number type, or holds a number that
    /// is not finite.
    pub(super) fn take_vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>> {
        let tensor = self.take(name)?;
        tensor.check(&[length])?;
        tensor.read_all()
    }

    /// As [`Self::take_vector`]; none where there is no such tensor.
    ///
    /// # Errors
    /// As [`Self::take_vector`], but for its absence.
    pub(super) fn take_vector_if_any(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>> {
        match self.has(name) {
            true => self.take_vector(name, length).map(Some),
            false => Ok(None),
        }
    }

    /// Refuses tensors that are left over: the SAE computes something that this program does not
    /// know of, whatever its configuration calls it.
    ///
    /// # Errors
    /// When there is one, which does not belong to `what`.
    pub(super) fn check_empty(&self, what: &str) -> Result<()> {
        match self.tensors.values().next() {
            None => Ok(()),
            Some(tensor) => Err(Error::invalid(format!(
                "{} does not belong to {what}",
                tensor.describe(),
            ))
            .with_hint("this SAE computes something that this program does not know")),
        }
    }
}
