//! The folder of a pulled model: made beside its place, and named when it is whole.
//!
//! It is a plain model folder, with `sources.json` to say what it was made of.

use std::fs;
use std::path::{Path, PathBuf};

use directories::ProjectDirs;
use gguf_tools::new_file::{NewFile, Overwrite};
use llava_sae_cpp::{CancelFlag, Error, ErrorKind, ModelFiles, Result};
use llava_sae_hub::{Hash, Hub, Lock, ModelFormat, RepoFile, Snapshot};
use serde::{Deserialize, Serialize};

use super::super::convert::{Conversion, SaeSource, say};
use super::super::progress::Verbosity;
use super::super::seen::note_as_seen;
use super::job::{Job, Recipe, TypeNames};
use super::plan::Plan;

/// Moves the folder that pulled models are in.
const MODELS_VARIABLE: &str = "LLAVA_SAE_MODELS";
const SOURCES_FILE: &str = "sources.json";

/// A pulled model's folder, made or not.
pub(super) struct Folder {
    path: PathBuf,
}

/// `sources.json`.
#[derive(Serialize, Deserialize)]
struct Sources {
    name: String,
    recipe: Recipe,
    types: TypeNames,
    model: Option<Origin>,
    sae: Option<Origin>,
    /// Those that were made of it.
    files: Vec<String>,
    made_by: String,
}

/// Where downloads came from, and what they were.
#[derive(Serialize, Deserialize)]
struct Origin {
    commit: String,
    licence: Option<String>,
    files: Vec<OriginFile>,
}

#[derive(Serialize, Deserialize)]
struct OriginFile {
    path: String,
    size: u64,
    #[serde(flatten)]
    hash: Hash,
}

impl Origin {
    fn new<'a>(snapshot: &Snapshot, files: impl Iterator<Item = &'a RepoFile>) -> Self {
        let file = |file: &RepoFile| OriginFile {
            path: file.path.clone(),
            size: file.size,
            hash: file.hash.clone(),
        };
        Self {
            commit: snapshot.commit.clone(),
            licence: snapshot.licence.clone(),
            files: files.map(file).collect(),
        }
    }
}

impl Folder {
    /// The folder of that name in the user's data folder, or where `LLAVA_SAE_MODELS` says.
    ///
    /// # Errors
    /// No place for data.
    pub(super) fn of(name: &str) -> Result<Self> {
        let given = std::env::var_os(MODELS_VARIABLE).filter(|dir| !dir.is_empty());
        let models = match given {
            Some(dir) => PathBuf::from(dir),
            None => ProjectDirs::from("", "", "llava-sae-cpp")
                .ok_or_else(|| {
                    Error::invalid("there is no home folder to keep models in")
                        .with_hint(format!("set `{MODELS_VARIABLE}` to a folder for them"))
                })?
                .data_dir()
                .join("models"),
        };
        Ok(Self {
            path: models.join(name),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A hidden name beside it.
    fn beside(&self, ending: &str) -> PathBuf {
        let name = self
            .path
            .file_name()
            .expect("a folder of models")
            .to_string_lossy();
        self.path.with_file_name(format!(".{name}.{ending}"))
    }

    /// Keeps other processes from making it.
    ///
    /// # Errors
    /// The operating system's; when asked to stop.
    pub(super) fn lock(&self, hub: &Hub, verbosity: Verbosity) -> Result<Lock> {
        hub.lock(&self.beside("lock"), || {
            let line = format!(
                "waiting for another process that makes `{}`",
                self.path.display()
            );
            say(verbosity, &[line]);
        })
    }

    /// What it was made of.
    ///
    /// # Errors
    /// A folder that was not pulled.
    pub(super) fn sources(&self) -> Result<Job> {
        let text = fs::read(self.path.join(SOURCES_FILE)).ok();
        let sources: Option<Sources> = text.and_then(|text| serde_json::from_slice(&text).ok());
        let job = sources.and_then(|sources| {
            Some(Job {
                name: sources.name,
                recipe: sources.recipe,
                types: sources.types.try_into().ok()?,
            })
        });
        job.ok_or_else(|| {
            let what = format!("`{}` is there and was not pulled", self.path.display());
            Error::new(ErrorKind::Exists, what).with_hint("give another name, or make it anew")
        })
    }

    /// Makes it, after the user has agreed. The caller has its lock.
    ///
    /// # Errors
    /// What downloading and converting can meet. What was downloaded by then stays in the cache, and nothing
    /// else.
    pub(super) fn make(
        &self,
        job: &Job,
        hub: &Hub,
        is_agreed: bool,
        drop_downloads: bool,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> Result<()> {
        let work = Work::begin(self.beside("unfinished"))?;
        let plan = Plan::make(job, hub)?;
        plan.agree(job, hub, &self.path, is_agreed, verbosity)?;
        let labels = plan.fetch(hub, verbosity, cancel)?;
        let converted = convert(job, &plan, labels, &work, verbosity, cancel)?;
        let linked = plan
            .model
            .iter()
            .filter(|(_, parts)| parts.format == ModelFormat::Gguf);
        let linked = linked.flat_map(|(snapshot, parts)| {
            parts
                .weights
                .iter()
                .map(|file| link(&snapshot.dir.join(&file.path), &work.whole))
        });
        let linked = linked.collect::<Result<Vec<_>>>()?;
        if job.recipe.model.is_some() && job.recipe.sae.is_some() {
            ModelFiles::find(Some(&work.whole), None, None, Vec::new())?.check()?;
        }
        let sources = Sources {
            name: job.name.clone(),
            recipe: job.recipe.clone(),
            types: job.types.into(),
            model: plan.model.as_ref().map(|(snapshot, parts)| {
                Origin::new(snapshot, parts.small.iter().chain(&parts.weights))
            }),
            sae: plan
                .sae
                .as_ref()
                .map(|(snapshot, files)| Origin::new(snapshot, files.iter())),
            files: converted.iter().chain(&linked).cloned().collect(),
            made_by: concat!("llava-sae-cpp ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        self.publish(&work, &sources)?;
        for name in &converted {
            note_as_seen(&self.path.join(name));
        }
        say(verbosity, &[format!("made `{}`", self.path.display())]);
        match drop_downloads {
            true => plan.drop_downloads(hub, verbosity),
            false => Ok(()),
        }
    }

    /// Gives the folder its name, or its files theirs where it is there already.
    fn publish(&self, work: &Work, sources: &Sources) -> Result<()> {
        let text = serde_json::to_string_pretty(sources).expect("plain data") + "\n";
        let target = work.whole.join(SOURCES_FILE);
        NewFile::create(&target, Overwrite::Refuse)?.finish_with(text.as_bytes())?;
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(Error::io("write", to));
        if !self.path.exists() {
            return rename(&work.whole, &self.path);
        }
        let earlier = fs::read(self.path.join(SOURCES_FILE)).ok();
        let earlier = earlier.and_then(|text| serde_json::from_slice::<Sources>(&text).ok());
        for name in &sources.files {
            rename(&work.whole.join(name), &self.path.join(name))?;
        }
        // Nothing but what was made here goes.
        let is_stale = |name: &&String| {
            Path::new(name).file_name() == Some(name.as_ref()) && !sources.files.contains(name)
        };
        for name in earlier
            .iter()
            .flat_map(|earlier| &earlier.files)
            .filter(is_stale)
        {
            let _ = fs::remove_file(self.path.join(name));
        }
        rename(&target, &self.path.join(SOURCES_FILE))
    }
}

/// The folder that the files are made in; it goes when this is dropped.
struct Work {
    dir: PathBuf,
    /// What becomes the model's folder.
    whole: PathBuf,
    /// What is made on the way.
    parts: PathBuf,
}

impl Work {
    /// Begins with nothing, whatever a process that was ended has left.
    fn begin(dir: PathBuf) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Error::io("remove", &dir))?;
        }
        Ok(Self {
            whole: dir.join("whole"),
            parts: dir.join("parts"),
            dir,
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Converts what is to be converted, and returns the files' names.
fn convert(
    job: &Job,
    plan: &Plan,
    labels: Vec<PathBuf>,
    work: &Work,
    verbosity: Verbosity,
    cancel: &CancelFlag,
) -> Result<Vec<String>> {
    for dir in [&work.whole, &work.parts] {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let checkpoint = plan.model.as_ref();
    let checkpoint = checkpoint.filter(|(_, parts)| parts.format == ModelFormat::Checkpoint);
    let sae = job.recipe.sae.as_ref().zip(plan.sae.as_ref());
    let sae_dir = sae.map(|(address, (snapshot, _))| snapshot.dir.join(&address.folder));
    let published = sae.and_then(|(address, _)| address.published.as_ref());
    let conversion = Conversion {
        llava: checkpoint.map(|(snapshot, _)| snapshot.dir.as_path()),
        sae: sae_dir.as_deref().map(|path| SaeSource {
            path,
            labels,
            norm_factor: job.recipe.norm_factor,
            hook_name: job.recipe.hook_name.clone(),
            published: published.map(|published| gguf_tools::sae::Published {
                release: &published.release,
                id: &published.id,
                norm_factor: published.norm_factor,
                is_centred: published.is_centred,
            }),
        }),
        types: job.types,
    };
    let made = conversion.run(&work.parts, verbosity, cancel)?;
    let names = made.paths().map(|target| {
        let name = target.file_name().expect("targets are files");
        let whole = work.whole.join(name);
        fs::rename(target, &whole).map_err(Error::io("write", &whole))?;
        Ok(name.to_string_lossy().into_owned())
    });
    names.collect()
}

/// Gives a GGUF file of the cache a second name in `dir`, which costs no space, or copies it where that cannot
/// be; a link would lead nowhere once the cache is emptied.
fn link(file: &Path, dir: &Path) -> Result<String> {
    let name = file.file_name().expect("a file").to_string_lossy();
    // By such names the two are told apart in a model's folder.
    let name = match ["model", "mmproj"]
        .iter()
        .any(|role| name.starts_with(role))
    {
        true => name.into_owned(),
        false => format!("model-{name}"),
    };
    let target = dir.join(&name);
    let blob = file.canonicalize().map_err(Error::io("read", file))?;
    fs::hard_link(&blob, &target)
        .or_else(|_| fs::copy(&blob, &target).map(|_| ()))
        .map_err(Error::io("write", &target))?;
    Ok(name)
}
