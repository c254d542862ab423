//! Models in several files, named `NAME-00001-of-0000N.gguf` and so on.
//!
//! Source: `llama_model_loader` in `src/llama-model-loader.cpp` and `llama_split_path` in
//! `src/llama.cpp` of llama.cpp, whose `gguf-split` writes them. The first shard alone has the
//! model's metadata; it may have no tensors.

use std::path::Path;

use super::reader::{Gguf, first_twin};
use super::value::Value;
use crate::{Error, Result};

/// A shard's file name, in its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardName<'a> {
    /// What the names of all shards begin with.
    pub stem: &'a str,
    /// Counted from 0, unlike in the name.
    pub shard_idx: u16,
    /// In all.
    pub n_shards: u16,
}

impl<'a> ShardName<'a> {
    /// Takes a file's name apart, if it is that of a shard.
    pub fn parse(name: &'a str) -> Option<Self> {
        let (rest, n_shards) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let parts = Self {
            stem,
            shard_idx: number.parse::<u16>().ok()?.checked_sub(1)?,
            n_shards: n_shards.parse().ok()?,
        };
        (parts.to_string() == name).then_some(parts)
    }
}

impl std::fmt::Display for ShardName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = u32::from(self.shard_idx) + 1;
        write!(f, "{}-{number:05}-of-{:05}.gguf", self.stem, self.n_shards)
    }
}

impl Gguf {
    /// Opens the model that the file at `path` is, or is a shard of, with the tensors of all shards
    /// and the metadata of the first.
    ///
    /// # Errors
    /// As [`Gguf::open`], for each shard; a shard that is missing or misnamed, or shards that do
    /// not make up the model.
    pub fn open_with_shards(path: &Path) -> Result<Self> {
        let named = Self::open(path)?;
        let Some((shard_idx, n_shards)) = named.shard()? else {
            return Ok(named);
        };
        let file_name = path.file_name().and_then(|name| name.to_str());
        let name = file_name.and_then(ShardName::parse);
        let name = name.filter(|name| (name.shard_idx, name.n_shards) == (shard_idx, n_shards));
        let Some(name) = name else {
            let number = u32::from(shard_idx) + 1;
            return Err(Error::invalid(format!(
                "`{}` is shard {number} of {n_shards} of a model, so its name must end in `-{number:05}-of-{n_shards:05}.gguf`",
                path.display()
            ))
            .with_hint("restore its original name, by which the other shards are found"));
        };
        let open = |shard_idx| {
            let path = path.with_file_name(ShardName { shard_idx, ..name }.to_string());
            if !path.exists() {
                return Err(Error::invalid(format!(
                    "shard {} of {n_shards} of the model is missing: no file `{}`",
                    u32::from(shard_idx) + 1,
                    path.display()
                ))
                .with_hint("download all shards into one folder"));
            }
            let shard = Self::open(&path)?;
            match shard.require_u16("split.no")? {
                number if number == shard_idx => Ok(shard),
                number => Err(Error::invalid(format!(
                    "`{}`: key `split.no` is {number}, but its name says {shard_idx}",
                    path.display()
                ))
                .with_hint("restore the shards' original names")),
            }
        };
        let mut whole = open(0)?;
        if whole.shard()? != Some((0, n_shards)) {
            return Err(Error::invalid(format!(
                "`{}` belongs to another model than `{}`",
                whole.path().display(),
                path.display()
            ))
            .with_hint("download all shards of one model into one folder"));
        }
        for shard_idx in 1..n_shards {
            whole.add_shard(open(shard_idx)?);
        }
        whole.check_tensors_of_shards()?;
        Ok(whole)
    }

    /// Which shard of how many the file is, counted from 0; `None` for a model in one file.
    ///
    /// # Errors
    /// Keys that say it in another way than llama.cpp reads.
    pub fn shard(&self) -> Result<Option<(u16, u16)>> {
        if self.get("split.count").is_none() {
            return Ok(None);
        }
        let n_shards = self.require_u16("split.count")?;
        if n_shards <= 1 {
            return Ok(None);
        }
        let shard_idx = self.require_u16("split.no")?;
        if shard_idx >= n_shards {
            return Err(Error::invalid(format!(
                "`{}`: key `split.no` is {shard_idx}, but `split.count` is {n_shards}",
                self.path().display()
            )));
        }
        Ok(Some((shard_idx, n_shards)))
    }

    fn require_u16(&self, key: &str) -> Result<u16> {
        match self.get(key) {
            Some(Value::U16(number)) => Ok(*number),
            other => Err(self.wrong_value(key, "u16", other)),
        }
    }

    /// Checks that no tensor is present twice and none is missing.
    fn check_tensors_of_shards(&self) -> Result<()> {
        let (path, tensors) = (self.path().display(), self.tensors());
        if let Some(name) = first_twin(tensors.iter().map(|tensor| &tensor.name)) {
            return Err(Error::invalid(format!(
                "tensor `{name}` is present twice in the shards of `{path}`"
            )));
        }
        match self.get("split.tensors.count") {
            Some(&Value::I32(count)) if usize::try_from(count) == Ok(tensors.len()) => Ok(()),
            Some(&Value::I32(count)) => Err(Error::invalid(format!(
                "the shards of `{path}` have {} tensors, expected {count}",
                tensors.len()
            ))
            .with_hint("download all shards of one model into one folder")),
            other => Err(self.wrong_value("split.tensors.count", "i32", other)),
        }
    }
}
