//! Addresses of what is published: `ORG/REPO[@REVISION][:FILE]`, `ORG/REPO[@REVISION]/FOLDER`,
//! `neuronpedia:MODEL/SOURCE`.

use std::fmt;
use std::str::FromStr;

use gguf_tools::{Error, Result};
use serde::{Deserialize, Serialize};

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// A repository of the hub: `ORG/REPO`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RepoId(String);

impl RepoId {
    /// The name without its owner.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }

    /// `ORG/REPO`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((org, name)) if is_name(org) && is_name(name) => Ok(Self(text.to_owned())),
            _ => Err(Error::invalid(format!("`{text}` is no repository"))
                .with_hint("repositories are written `ORG/REPO`, such as `Intel/llava-gemma-2b`")),
        }
    }
}

/// Whether a text is a name on the hub, and a harmless part of a path.
fn is_name(text: &str) -> bool {
    let is_right = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && !text.starts_with('.') && !text.contains("..") && text.chars().all(is_right)
}

/// Checks that a path in a repository leads nowhere else.
pub(crate) fn is_inside(path: &str) -> bool {
    let is_right = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', ':', '\0'])
            && !part.ends_with('.')
    };
    path.split('/').all(is_right)
}

/// `name[@revision]`, taken apart.
fn with_revision(text: &str) -> Result<(RepoId, String)> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, MAIN));
    if !is_name(revision) {
        return Err(Error::invalid(format!("`{revision}` is no revision"))
            .with_hint("a revision is a branch, a tag or a commit"));
    }
    Ok((repo.parse()?, revision.to_owned()))
}

/// Where a language model is: a checkpoint to convert, or a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAddress {
    /// The repository.
    pub repo: RepoId,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The GGUF file; of one in shards, any of them.
    pub file: Option<String>,
    /// The GGUF file of its projector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmproj: Option<String>,
}

impl FromStr for ModelAddress {
    type Err = Error;

    /// `ORG/REPO[@REVISION][:FILE]`.
    fn from_str(text: &str) -> Result<Self> {
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        if let Some(file) = file.filter(|file| !is_inside(file) || !file.ends_with(".gguf")) {
            return Err(Error::invalid(format!("`{file}` is no GGUF file"))
                .with_hint("files are written as they are called in the repository: `ORG/REPO:model-Q8_0.gguf`; a checkpoint to convert is a whole repository"));
        }
        let (repo, revision) = with_revision(repo)?;
        let file = file.map(str::to_owned);
        Ok(Self {
            repo,
            revision,
            file,
            mmproj: None,
        })
    }
}

impl fmt::Display for ModelAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write_repo(f, &self.repo, &self.revision)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// Where an SAE is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaeAddress {
    /// The repository.
    pub repo: RepoId,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The folder in it, or nothing for the repository itself; a file, where a folder has one for each block.
    pub folder: String,
    /// SAELens' name of it, where it came from that list.
    pub published: Option<Published>,
}

/// What SAELens' list says of an SAE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// The release, such as `gemma-2b-res-jb`.
    pub release: String,
    /// The SAE in it, such as `blocks.12.hook_resid_post`.
    pub id: String,
    /// The factor that brings activations to the norm that the SAE was trained on, where its
    /// configuration asks for one.
    pub norm_factor: Option<f32>,
    /// Whether it was trained on rows less their mean, whatever its configuration says.
    #[serde(default)]
    pub is_centred: bool,
}

impl FromStr for SaeAddress {
    type Err = Error;

    /// `ORG/REPO[@REVISION][/FOLDER]`.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.trim_end_matches('/').splitn(3, '/');
        let (org, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let folder = parts.next().unwrap_or_default();
        if !folder.is_empty() && !is_inside(folder) {
            return Err(Error::invalid(format!(
                "`{folder}` is no folder of a repository"
            )));
        }
        let (repo, revision) = with_revision(&format!("{org}/{name}"))?;
        Ok(Self {
            repo,
            revision,
            folder: folder.to_owned(),
            published: None,
        })
    }
}

impl fmt::Display for SaeAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write_repo(f, &self.repo, &self.revision)?;
        if self.folder.is_empty() {
            return Ok(());
        }
        write!(f, "/{}", self.folder)
    }
}

fn write_repo(f: &mut fmt::Formatter, repo: &RepoId, revision: &str) -> fmt::Result {
    match revision {
        MAIN => write!(f, "{repo}"),
        _ => write!(f, "{repo}@{revision}"),
    }
}

/// Neuronpedia's labels of one SAE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelsAddress {
    /// `gemma-2b`.
    pub model: String,
    /// `12-res-jb`.
    pub source: String,
}

impl FromStr for LabelsAddress {
    type Err = Error;

    /// `neuronpedia:MODEL/SOURCE`.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .strip_prefix("neuronpedia:")
            .and_then(|rest| rest.split_once('/'));
        match parts {
            Some((model, source)) if is_name(model) && is_name(source) => Ok(Self {
                model: model.to_owned(),
                source: source.to_owned(),
            }),
            _ => Err(Error::invalid(format!("`{text}` is no address of labels"))
                .with_hint("labels are written `neuronpedia:MODEL/SOURCE`, such as `neuronpedia:gemma-2b/12-res-jb`")),
        }
    }
}

impl fmt::Display for LabelsAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "neuronpedia:{}/{}", self.model, self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let model = |text: &str| text.parse::<ModelAddress>();
        let file = model("org/repo@v1:sub/a-Q8_0.gguf").expect("right");
        assert_eq!(file.repo.as_str(), "org/repo");
        assert_eq!(file.revision, "v1");
        assert_eq!(file.file.as_deref(), Some("sub/a-Q8_0.gguf"));
        assert_eq!(file.to_string(), "org/repo@v1:sub/a-Q8_0.gguf");
        assert_eq!(model("org/repo").expect("right").revision, MAIN);

        let sae: SaeAddress = "org/repo/a/b".parse().expect("right");
        assert_eq!(
            (sae.repo.as_str(), sae.folder.as_str()),
            ("org/repo", "a/b")
        );
        let sae: SaeAddress = "org/repo@abc/a".parse().expect("right");
        assert_eq!(sae.to_string(), "org/repo@abc/a");
        let sae: SaeAddress = "org/repo".parse().expect("right");
        assert_eq!(sae.folder, "");

        let labels: LabelsAddress = "neuronpedia:gemma-2b/12-res-jb".parse().expect("right");
        assert_eq!(
            (labels.model.as_str(), labels.source.as_str()),
            ("gemma-2b", "12-res-jb")
        );
    }

    #[test]
    fn what_leads_elsewhere_is_no_address() {
        for text in [
            "",
            "repo",
            "a/b/c",
            "../b",
            "a/..",
            ".a/b",
            "a/b@",
            "a/b@../c",
            "a b/c",
            "a/b:../x.gguf",
            "a/b:/x.gguf",
            "a/b:x.bin",
            "a/b:",
        ] {
            assert!(text.parse::<ModelAddress>().is_err(), "{text}");
        }
        for text in [
            "org/repo/../x",
            "org/repo//x",
            "org/repo/x/./y",
            "org",
            "org/repo/a\\b",
        ] {
            assert!(text.parse::<SaeAddress>().is_err(), "{text}");
        }
        for text in [
            "gemma-2b/12",
            "neuronpedia:gemma-2b",
            "neuronpedia:../x",
            "neuronpedia:a/b/c",
        ] {
            assert!(text.parse::<LabelsAddress>().is_err(), "{text}");
        }
    }
}
