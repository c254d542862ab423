//! What a job takes: what the hub has, how much of it is missing, and whether the user wants it.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::terminal::one_line;
use indicatif::DecimalBytes;
use llava_sae_cpp::{CancelFlag, Error, Result};
use llava_sae_hub::{Hub, Labels, ModelFormat, ModelParts, RepoFile, Snapshot};

use super::super::convert::{ModelType, say};
use super::super::progress::{self, Verbosity};
use super::job::Job;
use super::space::{self, Need};

/// What is fetched for a job.
pub(super) struct Plan {
    pub(super) model: Option<(Snapshot, ModelParts)>,
    pub(super) sae: Option<(Snapshot, Vec<RepoFile>)>,
    pub(super) labels: Option<Labels>,
}

impl Plan {
    /// Asks the hub what there is; of a checkpoint, fetches the small files.
    ///
    /// # Errors
    /// What is not there, not for everybody, or in a format that is not read.
    pub(super) fn make(job: &Job, hub: &Hub) -> Result<Self> {
        let recipe = &job.recipe;
        let sae = recipe.sae.as_ref().map(|address| {
            let snapshot = hub.snapshot(&address.repo, &address.revision)?;
            let files = snapshot.sae_files(address)?.into_iter().cloned().collect();
            Ok((snapshot, files))
        });
        let sae = sae.transpose()?;
        let model = recipe.model.as_ref().map(|address| {
            let snapshot = hub.snapshot(&address.repo, &address.revision)?;
            let quietly = &mut |_, _| ControlFlow::Continue(());
            let parts = hub.model_parts(&snapshot, address, quietly)?;
            Ok((snapshot, parts))
        });
        let model = model.transpose()?;
        let labels = recipe.labels.as_ref().map(|address| hub.labels(address));
        Ok(Self {
            model,
            sae,
            labels: labels.transpose()?,
        })
    }

    /// The files of repositories, with what they are in.
    fn files(&self) -> impl Iterator<Item = (&Snapshot, Vec<&RepoFile>)> {
        let sae = self
            .sae
            .iter()
            .map(|(snapshot, files)| (snapshot, files.iter().collect()));
        let model = self.model.iter().map(|(snapshot, parts)| {
            let files = parts.small.iter().chain(&parts.weights);
            (snapshot, files.collect())
        });
        sae.chain(model)
    }

    /// Says what is fetched, from whom, under which terms, and what it takes; sees whether there is room; and
    /// asks, unless that is decided or there is nothing to fetch.
    ///
    /// # Errors
    /// Too little space; when the user does not want it.
    pub(super) fn agree(
        &self,
        job: &Job,
        hub: &Hub,
        folder: &Path,
        is_agreed: bool,
        verbosity: Verbosity,
    ) -> Result<()> {
        let cache = &hub.settings().cache;
        let n_missing: u64 = self
            .files()
            .map(|(snapshot, files)| hub.n_missing_bytes(snapshot, &files))
            .chain(
                self.labels
                    .iter()
                    .map(|labels| hub.n_missing_label_bytes(labels)),
            )
            .sum();
        let (n_kept, n_on_the_way) = self.n_made_bytes(job, cache, folder);
        let mut lines = vec![match job.pair() {
            Some(pair) => format!("{}: {}", pair.name, pair.about),
            None => job.name.clone(),
        }];
        if let Some((snapshot, parts)) = &self.model {
            let n_bytes = parts
                .small
                .iter()
                .chain(&parts.weights)
                .map(|file| file.size)
                .sum();
            let licence = job.pair().map(|pair| pair.model_licence);
            lines.push(line("model", snapshot, n_bytes, licence));
        }
        if let Some((snapshot, files)) = &self.sae {
            let n_bytes = files.iter().map(|file| file.size).sum();
            let licence = job.pair().map(|pair| pair.sae_licence);
            lines.push(line("SAE", snapshot, n_bytes, licence));
        }
        if let Some(labels) = &self.labels {
            lines.push(format!(
                "  labels  {}, {}",
                labels.address,
                DecimalBytes(labels.n_bytes())
            ));
        }
        lines.push(format!(
            "to download: {}, to `{}`; {} are free there",
            DecimalBytes(n_missing),
            cache.display(),
            DecimalBytes(space::free(cache)?)
        ));
        let on_the_way = match n_on_the_way {
            0 => String::new(),
            n_bytes => format!(", and {} more on the way,", DecimalBytes(n_bytes)),
        };
        lines.push(format!(
            "to write: about {}{on_the_way} to `{}`",
            DecimalBytes(n_kept),
            folder.display()
        ));
        let is_asked = n_missing > 0 && !is_agreed;
        if is_asked || !verbosity.is_quiet() {
            lines
                .iter()
                .for_each(|line| eprintln!("{}", one_line(line)));
        }
        let dir = folder.parent().unwrap_or(folder).to_owned();
        space::check(&[
            Need {
                dir: cache.clone(),
                n_bytes: n_missing,
            },
            Need {
                dir,
                n_bytes: n_kept + n_on_the_way,
            },
        ])?;
        if is_asked && !is_yes("download and convert? [y/N] ")? {
            let what = format!("`{}` was not downloaded: the answer was no", job.name);
            return Err(Error::invalid(what));
        }
        Ok(())
    }

    /// What the files to be made take, about: those that stay, and what is made on the way.
    fn n_made_bytes(&self, job: &Job, cache: &Path, folder: &Path) -> (u64, u64) {
        // Its encoder in another form beside it makes up for what a smaller type saves.
        let sae = self.sae.iter().flat_map(|(_, files)| files);
        let sae: u64 = sae.map(|file| file.size).sum();
        let Some((_, parts)) = &self.model else {
            return (sae, 0);
        };
        let weights: u64 = parts.weights.iter().map(|file| file.size).sum();
        match parts.format {
            ModelFormat::Gguf if space::is_same_disk(cache, folder) => (sae, 0),
            ModelFormat::Gguf => (sae + weights, 0),
            // A published checkpoint has 16 bits a weight; one of 32 takes half of this.
            ModelFormat::Checkpoint => {
                let bits = job.types.model.bits();
                let is_on_the_way = matches!(
                    job.types.model,
                    ModelType::Q6K | ModelType::Q5KM | ModelType::Q4KM
                );
                let on_the_way = if is_on_the_way { weights } else { 0 };
                (sae + (weights as f64 * bits / 16.0) as u64, on_the_way)
            }
        }
    }

    /// Sees to it that everything is in the cache; the labels' files are returned.
    ///
    /// # Errors
    /// What [`Hub::fetch`] can meet.
    pub(super) fn fetch(
        &self,
        hub: &Hub,
        verbosity: Verbosity,
        cancel: &CancelFlag,
    ) -> Result<Vec<PathBuf>> {
        let sizes = self
            .files()
            .map(|(_, files)| files.iter().map(|file| file.size).sum::<u64>());
        let total = sizes.sum::<u64>() + self.labels.as_ref().map_or(0, Labels::n_bytes);
        let mut bar = progress::byte_bar("downloading", verbosity, cancel.clone());
        let mut done = 0;
        for (snapshot, files) in self.files() {
            let mut n_of_files = 0;
            hub.fetch(snapshot, &files, &mut |n_there, n_in_all| {
                n_of_files = n_in_all;
                bar(done + n_there, total)
            })?;
            done += n_of_files;
        }
        match &self.labels {
            Some(labels) => hub.fetch_labels(labels, &mut |n_there, _| bar(done + n_there, total)),
            None => Ok(Vec::new()),
        }
    }

    /// Removes what was fetched from the cache.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn drop_downloads(&self, hub: &Hub, verbosity: Verbosity) -> Result<()> {
        for (snapshot, files) in self.files() {
            hub.drop_downloads(snapshot, &files)?;
        }
        if let Some(labels) = &self.labels {
            hub.drop_labels(labels)?;
        }
        say(
            verbosity,
            &["removed the downloads from the cache".to_owned()],
        );
        Ok(())
    }
}

fn line(role: &str, snapshot: &Snapshot, n_bytes: u64, known_licence: Option<&str>) -> String {
    let licence = snapshot
        .licence
        .as_deref()
        .or(known_licence)
        .unwrap_or("not stated");
    let gated = if snapshot.is_gated {
        ", terms to be accepted on its page"
    } else {
        ""
    };
    format!(
        "  {role:<6}  {} at {}, {}, licence: {licence}{gated}",
        snapshot.repo,
        &snapshot.commit[..snapshot.commit.len().min(12)],
        DecimalBytes(n_bytes)
    )
}

/// Checks that somebody can be asked, or need not be.
///
/// # Errors
/// Where nobody can answer, with the way to say yes.
pub(super) fn check_can_ask(job: &Job, hub: &Hub, is_agreed: bool) -> Result<()> {
    let is_decided = is_agreed || hub.settings().is_offline;
    if is_decided || (io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Ok(());
    }
    let name = &job.name;
    let size = job.pair().map_or(String::new(), |pair| {
        format!(" (about {:.1} GB)", f64::from(pair.megabytes()) / 1000.0)
    });
    let hint = match job.pair() {
        Some(_) => format!(
            "`llava-sae-cpp pull {name} --yes` downloads it{size} and converts it, and so does `--yes` here"
        ),
        None => "`--yes` downloads and converts it".to_owned(),
    };
    let what = format!(
        "the model `{name}` is not on this machine, and nobody can be asked whether to download it{size}"
    );
    Err(Error::invalid(what).with_hint(hint))
}

/// Asks on the terminal.
fn is_yes(question: &str) -> Result<bool> {
    let failed = |error: io::Error| Error::invalid(format!("cannot ask on the terminal: {error}"));
    eprint!("{question}");
    io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
