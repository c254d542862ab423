//! What tells a model's files from others without reading all of them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::SystemTime;

use gguf_tools::gguf::TensorInfo;

use crate::{Error, Result};

/// Bytes of each tensor that tell one file from another.
const TENSOR_SAMPLE_BYTES: usize = 4096;

/// A hash of a file's header, the beginning of each tensor, its length and the time of its last change;
/// of all files, where a model has several, and their tensors.
pub(crate) fn fingerprint(paths: &[PathBuf], tensors: &[TensorInfo]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut sample = [0; TENSOR_SAMPLE_BYTES];
    for (shard_idx, path) in paths.iter().enumerate() {
        let mut read = || -> io::Result<()> {
            let mut file = File::open(path)?;
            let metadata = file.metadata()?;
            hasher.update(&metadata.len().to_le_bytes());
            let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
            let modified = modified.unwrap_or_default().as_nanos();
            hasher.update(&modified.to_le_bytes());
            let tensors = tensors
                .iter()
                .filter(|tensor| tensor.shard_idx == shard_idx);
            let header_bytes = tensors.clone().map(|tensor| tensor.offset).min();
            let header_bytes = header_bytes.unwrap_or(metadata.len());
            hasher.update_reader((&mut file).take(header_bytes))?;
            for tensor in tensors {
                let n_bytes = tensor.n_bytes.min(sample.len() as u64) as usize;
                file.seek(SeekFrom::Start(tensor.offset))?;
                file.read_exact(&mut sample[..n_bytes])?;
                hasher.update(&sample[..n_bytes]);
            }
            Ok(())
        };
        read().map_err(Error::io("read", path))?;
    }
    Ok(hasher.finalize())
}
