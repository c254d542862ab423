//! What the numbers of a scan depend on, so that only a run of the same kind goes on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gguf_tools::gguf::Gguf;
use serde::{Deserialize, Serialize};

use super::shard::Shard;
use crate::llama;
use crate::study::identity::identity;
use crate::study::pictures::{ItemKind, Reading, ScanPrompt};
use crate::{CancelFlag, Error, ModelFiles, PromptForm, Result, SaeSet, SessionOptions};

/// What stands in parts only: the folder, since a finished file holds no path of the machine, and the shard.
const FOLDER: &str = "folder";
const SHARD: &str = "shard";
/// What the items are, where they are no pictures.
const ITEMS: &str = "items";

const PROMPT: &str = "prompt";
const PROMPT_FORM: &str = "prompt form";
const RAW: &str = "raw";

/// What the numbers depend on, by name: the program's version, the model's files by length and hash, the prompt, how
/// pictures are prepared, and how llama.cpp computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Reads the model's files through; `saes` are its SAEs. `cancel` stops it.
    ///
    /// # Errors
    /// A file that cannot be read, an interruption.
    pub fn new(
        files: &ModelFiles,
        saes: &SaeSet,
        options: &SessionOptions,
        reading: Reading<'_>,
        cancel: &CancelFlag,
    ) -> Result<Self> {
        let identity = |path: &Path| identity(path, cancel);
        let mut settings = BTreeMap::new();
        let mut set = |name: &str, value: String| settings.insert(name.to_owned(), value);
        let program = concat!("llava-sae-cpp ", env!("CARGO_PKG_VERSION"));
        let bindings = llama::BINDINGS_VERSION;
        set("program", format!("{program}, llama-cpp-sys-2 {bindings}"));
        let model = Gguf::open_with_shards(&files.model)?;
        let shards: Vec<_> = model
            .paths()
            .iter()
            .map(|path| identity(path))
            .collect::<Result<_>>()?;
        set("model", shards.join(", "));
        let identities = files.saes.iter().enumerate().map(|(sae, path)| {
            let identity = identity(path)?;
            // Rows hold the ids of several, which may be the names of the files.
            Ok(match saes.shown_id(sae) {
                None => identity,
                Some(id) => format!("{id} ({identity})"),
            })
        });
        set("SAE", identities.collect::<Result<Vec<_>>>()?.join(", "));
        if let Some(mmproj) = &files.mmproj
            && reading.kind() == ItemKind::Pictures
        {
            set("projector", identity(mmproj)?);
            let image_prep = files.image_prep_name(options.image_prep)?;
            set("image preparation", image_prep.to_owned());
        }
        match reading {
            Reading::Pictures(prompt) => {
                set(PROMPT, prompt.text.to_owned());
                let form = match prompt.form {
                    PromptForm::Chat => "chat",
                    PromptForm::Raw => RAW,
                };
                set(PROMPT_FORM, form.to_owned());
            }
            Reading::Texts { context_size } => {
                set(ITEMS, reading.kind().name().to_owned());
                set("context", format!("{context_size} tokens"));
            }
        }
        if let Some(template) = &options.chat_template {
            let hash = blake3::hash(template.as_bytes()).to_hex();
            set(
                "chat template",
                format!("{} bytes, blake3 {hash}", template.len()),
            );
        }
        set("KV cache", options.kv_type.name().to_owned());
        set("flash attention", options.flash_attention.name().to_owned());
        // llama.cpp multiplies with other kernels then, which round in other ways.
        let weights = match options.repack {
            true => "repacked",
            false => "as in the file",
        };
        set("weights", weights.to_owned());
        Ok(Self(settings))
    }

    /// What went with each picture, where that is known.
    pub fn prompt(&self) -> Option<ScanPrompt<'_>> {
        let form = match self.0.get(PROMPT_FORM)?.as_str() {
            RAW => PromptForm::Raw,
            _ => PromptForm::Chat,
        };
        let text = self.0.get(PROMPT)?;
        Some(ScanPrompt { text, form })
    }

    /// What was scanned.
    pub fn kind(&self) -> ItemKind {
        match self.0.get(ITEMS) {
            Some(items) if items == ItemKind::Texts.name() => ItemKind::Texts,
            _ => ItemKind::Pictures,
        }
    }

    /// What a part says: also the folder that is scanned, and the shard.
    ///
    /// # Errors
    /// A folder that is not there.
    pub(super) fn for_parts(&self, folder: &Path, shard: Option<Shard>) -> Result<Self> {
        let folder = folder.canonicalize().map_err(Error::io("read", folder))?;
        let folder = folder.to_string_lossy().into_owned();
        let mut settings = self.0.clone();
        settings.insert(FOLDER.to_owned(), folder);
        settings.extend(shard.map(|shard| (SHARD.to_owned(), shard.to_string())));
        Ok(Self(settings))
    }

    /// What a finished file says: what its numbers depend on.
    pub(super) fn for_all_to_see(&self) -> Self {
        let mut settings = self.0.clone();
        settings.remove(FOLDER);
        settings.remove(SHARD);
        Self(settings)
    }

    /// How they differ from `now`, in words; nothing if they do not.
    pub(super) fn differences(&self, now: &Self) -> String {
        let names: BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let shown =
            |value: Option<&String>| value.map_or("none".into(), |text| format!("`{text}`"));
        let difference = |name: &String| {
            let (was, is) = (self.0.get(name), now.0.get(name));
            (was != is).then(|| format!("its {name} is {}, and not {}", shown(was), shown(is)))
        };
        let differences: Vec<_> = names.into_iter().filter_map(difference).collect();
        differences.join("; ")
    }
}
