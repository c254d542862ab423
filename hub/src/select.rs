//! Which files of a repository are needed.

use gguf_tools::gguf::ShardName;
use gguf_tools::{Error, ErrorKind, Progress, Result, llava, sae};

use crate::address::{ModelAddress, SaeAddress};
use crate::hub::Hub;
use crate::snapshot::{RepoFile, Snapshot};

/// GGUF files that an error lists.
const SHOWN: usize = 12;

/// What a repository gives of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFormat {
    /// A Hugging Face checkpoint, to be converted.
    Checkpoint,
    /// A GGUF file, or several that are one model, to be used as they are.
    Gguf,
}

/// The files of a model.
#[derive(Clone, Debug)]
pub struct ModelParts {
    /// What they are.
    pub format: ModelFormat,
    /// The files that say what the model is: small, and there already.
    pub small: Vec<RepoFile>,
    /// The weights; of a GGUF file with a projector, that one's last.
    pub weights: Vec<RepoFile>,
}

impl Hub {
    /// The files of the model at `address`. Of a checkpoint, those that say what the weights are called are
    /// fetched: published repositories hold foreign weights beside their own.
    ///
    /// # Errors
    /// A repository that holds no model, or several without a word which; what [`Hub::fetch`] can meet.
    pub fn model_parts(
        &self,
        snapshot: &Snapshot,
        address: &ModelAddress,
        progress: Progress,
    ) -> Result<ModelParts> {
        let has = |name: &str| snapshot.files.contains_key(name);
        let is_checkpoint = has("config.json") && llava::WEIGHT_FILES.iter().any(|name| has(name));
        if address.file.is_none() && is_checkpoint {
            let small = llava::SMALL_FILES
                .iter()
                .filter_map(|name| snapshot.files.get(*name));
            let small: Vec<&RepoFile> = small.collect();
            self.fetch(snapshot, &small, progress)?;
            let weights = llava::weight_files(&snapshot.dir)?;
            let weights = weights.iter().map(|name| snapshot.file(name).cloned());
            return Ok(ModelParts {
                format: ModelFormat::Checkpoint,
                small: small.into_iter().cloned().collect(),
                weights: weights.collect::<Result<_>>()?,
            });
        }
        let named = match &address.file {
            Some(file) => snapshot.file(file)?,
            None => only_gguf(snapshot)?,
        };
        let mut weights = with_shards(snapshot, named)?;
        if let Some(mmproj) = &address.mmproj {
            weights.push(snapshot.file(mmproj)?.clone());
        }
        Ok(ModelParts {
            format: ModelFormat::Gguf,
            small: Vec::new(),
            weights,
        })
    }
}

/// The only model in GGUF of a repository; of one in shards, the first.
fn only_gguf(snapshot: &Snapshot) -> Result<&RepoFile> {
    let is_model = |file: &&RepoFile| {
        let name = file_name(&file.path);
        let is_later_shard = ShardName::parse(name).is_some_and(|name| name.shard_idx > 0);
        name.ends_with(".gguf") && !name.starts_with("mmproj") && !is_later_shard
    };
    let found: Vec<&RepoFile> = snapshot.files.values().filter(is_model).collect();
    let repo = &snapshot.repo;
    match found[..] {
        [only] => Ok(only),
        [] => {
            let what = format!("`{repo}` has neither a checkpoint in safetensors nor a GGUF file");
            Err(Error::new(ErrorKind::NotPublished, what).with_hint(
                "use a repository with `config.json` and `model.safetensors`, or with GGUF files",
            ))
        }
        _ => {
            let what = format!("`{repo}` has {} models in GGUF", found.len());
            let shown = found
                .iter()
                .take(SHOWN)
                .map(|file| format!("`{}`", file.path));
            let shown = shown.collect::<Vec<_>>().join(", ");
            let more = if found.len() > SHOWN { ", …" } else { "" };
            Err(Error::invalid(what)
                .with_hint(format!("say which, as `{repo}:FILE`: {shown}{more}")))
        }
    }
}

/// The file, or all shards of the model that it is a shard of.
fn with_shards(snapshot: &Snapshot, named: &RepoFile) -> Result<Vec<RepoFile>> {
    let name = file_name(&named.path);
    let Some(shard) = ShardName::parse(name) else {
        return Ok(vec![named.clone()]);
    };
    let dir = &named.path[..named.path.len() - name.len()];
    let shards = (0..shard.n_shards).map(|shard_idx| {
        let name = ShardName { shard_idx, ..shard };
        snapshot.file(&format!("{dir}{name}")).cloned()
    });
    shards.collect()
}

/// The last part of a path in a repository.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Snapshot {
    /// The files of the SAE at `address`.
    ///
    /// # Errors
    /// A folder that there is not, and what is no SAE of a known format.
    pub fn sae_files(&self, address: &SaeAddress) -> Result<Vec<&RepoFile>> {
        let (dir, name) = match address.folder.rsplit_once('/') {
            Some((dir, name)) => (format!("{dir}/"), name),
            None => (String::new(), address.folder.as_str()),
        };
        if self.files.contains_key(&address.folder) {
            let beside = self.files.keys().filter_map(|path| path.strip_prefix(&dir));
            let names = sae::files_of_block(name, &beside.collect::<Vec<_>>());
            if !names.is_empty() {
                let files = names.into_iter();
                return files
                    .map(|name| self.file(&format!("{dir}{name}")))
                    .collect();
            }
        }
        let prefix = match address.folder.as_str() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let below: Vec<&str> = self
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix))
            .collect();
        if below.is_empty() {
            let what = format!("`{}` has no folder `{}`", self.repo, address.folder);
            return Err(Error::new(ErrorKind::NotPublished, what)
                .with_hint("use a folder that it has, by its whole path in the repository"));
        }
        let names = sae::files_of(&below, &address.to_string())?;
        names
            .into_iter()
            .map(|name| self.file(&format!("{prefix}{name}")))
            .collect()
    }
}
