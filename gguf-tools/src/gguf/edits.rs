//! Copies of a file that differ in its header.

use std::io::{BufWriter, Write};

use tempfile::TempPath;

use super::header::{Header, padding};
use super::reader::Gguf;
use super::source::TensorInfo;
use super::value::Value;
use crate::{Error, Result};

/// How a copy differs from its original.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    keys: Vec<(String, Value)>,
    removed_keys: Vec<String>,
    left_out: Vec<String>,
}

impl Edits {
    /// Sets a key, whether or not it is there.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.push((key.to_owned(), value.into()));
    }

    /// Leaves a key out.
    pub fn remove(&mut self, key: &str) {
        self.removed_keys.push(key.to_owned());
    }

    /// Leaves a tensor out.
    pub fn leave_out(&mut self, tensor: &str) {
        self.left_out.push(tensor.to_owned());
    }

    /// Whether a copy would say the same as its original.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Gguf {
    /// Copies the file with `edits` to the system's folder for temporary files (`TMPDIR` on Unix),
    /// where it stays as long as the result lives.
    ///
    /// # Errors
    /// When this file cannot be read, or the copy not be written.
    pub fn edited_copy(&self, edits: &Edits) -> Result<TempPath> {
        let dir = std::env::temp_dir();
        let (file, path) = tempfile::Builder::new()
            .prefix(".gguf-tools-")
            .suffix(".gguf")
            .tempfile()
            .map_err(Error::io("create a file in", &dir))?
            .into_parts();
        let is_edited = |key: &str| {
            let mut set = edits.keys.iter().map(|(edited, _)| edited);
            edits
                .removed_keys
                .iter()
                .chain(&mut set)
                .any(|edited| edited == key)
        };
        // The writer's alignment is the default one.
        let is_kept = |key: &str| key != "general.alignment" && !is_edited(key);
        let kept = self.metadata().iter().filter(|(key, _)| is_kept(key));
        let metadata: Vec<_> = kept.chain(&edits.keys).collect();
        let tensors = self.tensors().iter();
        let tensors: Vec<&TensorInfo> = tensors
            .filter(|tensor| !edits.left_out.contains(&tensor.name))
            .collect();
        let mut header = Header::new(tensors.len(), metadata.len());
        for (key, value) in metadata {
            header.key(key, value);
        }
        for tensor in &tensors {
            header.tensor(
                &tensor.name,
                &tensor.dims,
                tensor.tensor_type,
                tensor.n_bytes,
            );
        }

        let mut file = BufWriter::new(file);
        let mut write = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io("write", &path));
        write(&header.finish())?;
        for tensor in tensors {
            self.for_each_block(tensor, &mut write)?;
            write(padding(tensor.n_bytes))?;
        }
        file.flush().map_err(Error::io("write", &path))?;
        Ok(path)
    }
}
