//! A repository at one commit: its files with their sizes and hashes, from the hub, or from the cache where
//! nothing may be fetched.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use gguf_tools::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::address::{RepoId, is_inside};
use crate::cache::RepoCache;
use crate::hash::Hash;
use crate::http::{Failure, Refusal};
use crate::hub::Hub;

/// Longest answer about a repository: some ten thousand files.
const MAX_INFO_BYTES: u64 = 64 << 20;

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The repository.
    pub repo: RepoId,
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// By path.
    pub files: BTreeMap<String, RepoFile>,
    /// As the repository's card says, such as `gemma`.
    pub licence: Option<String>,
    /// Whether terms have to be accepted.
    pub is_gated: bool,
    /// The folder in the cache that its files are in, once they are fetched.
    pub dir: PathBuf,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoFile {
    /// In the repository, with slashes.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// What its contents hash to.
    pub hash: Hash,
}

/// `GET /api/models/ORG/REPO/revision/REVISION?blobs=true`, as far as it is needed.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// False, `auto` or `manual`.
    #[serde(default)]
    gated: serde_json::Value,
    #[serde(rename = "cardData", default)]
    card: Option<Card>,
}

#[derive(Deserialize)]
struct Card {
    license: Option<serde_json::Value>,
    license_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// The repository at `revision`, a branch, a tag or a commit. Where nothing may be fetched, what the
    /// cache has of it.
    ///
    /// # Errors
    /// A repository or revision that there is not, is not for everybody, or is not in the cache; a server
    /// that does not answer as it should.
    pub fn snapshot(&self, repo: &RepoId, revision: &str) -> Result<Snapshot> {
        let cache = RepoCache::new(&self.settings.cache, repo);
        if self.settings.is_offline {
            return from_cache(&cache, repo, revision);
        }
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/api/models/{repo}/revision/{revision}?blobs=true");
        let refused = |refusal| self.refused(repo, &format!("revision `{revision}`"), refusal);
        let text = self
            .client
            .with_tries(refused, || self.text(&url, MAX_INFO_BYTES))?;
        let malformed = |why: &str| {
            let what = format!("`{url}` is not what a hub says of a repository: {why}");
            Error::new(ErrorKind::Network, what).with_hint("check the address of the hub")
        };
        let info: Info =
            serde_json::from_slice(&text).map_err(|error| malformed(&error.to_string()))?;
        let is_commit = |text: &str| matches!(Hash::parse(text), Some(Hash::GitSha1(_)));
        if !is_commit(&info.sha) || (is_commit(revision) && info.sha != revision) {
            return Err(malformed("its `sha` is no commit, or another one"));
        }
        if info.sha != revision {
            cache.write_ref(revision, &info.sha)?;
        }
        let files = info.siblings.into_iter().filter_map(RepoFile::of);
        Ok(Snapshot {
            files: files.map(|file| (file.path.clone(), file)).collect(),
            licence: info.card.and_then(Card::licence),
            is_gated: !matches!(
                info.gated,
                serde_json::Value::Null | serde_json::Value::Bool(false)
            ),
            dir: cache.snapshot(&info.sha),
            repo: repo.clone(),
            commit: info.sha,
        })
    }

    /// The whole answer, whose length is bounded.
    pub(crate) fn text(&self, url: &str, max_bytes: u64) -> std::result::Result<Vec<u8>, Failure> {
        let answer = self.client.get(url, 0)?;
        let mut text = Vec::new();
        let mut body = answer.into_body().into_reader().take(max_bytes + 1);
        body.read_to_end(&mut text)
            .map_err(|error| self.client.broken_off(url, error))?;
        if text.len() as u64 > max_bytes {
            let what = format!("`{url}` is longer than {max_bytes} bytes");
            return Err(Error::new(ErrorKind::Network, what).into());
        }
        Ok(text)
    }

    /// The error of a refusal, by the hub's codes (`hf_raise_for_status` of huggingface_hub 1.x): without a
    /// token, what is private looks as if it were not there.
    pub(crate) fn refused(&self, repo: &RepoId, what: &str, refusal: Refusal) -> Error {
        let endpoint = &self.settings.endpoint;
        let page = format!("{endpoint}/{repo}");
        let has_token = self.client.has_token();
        let tokens = format!("{endpoint}/settings/tokens");
        match (refusal.status, refusal.code.as_str()) {
            (_, "GatedRepo") => {
                let said = format!("`{repo}` is gated: its owner wants terms to be accepted first");
                let hint = match has_token {
                    true => format!(
                        "accept them at {page} with the account that the token belongs to, see that the token may read gated repositories, and run it again"
                    ),
                    false => format!(
                        "accept them at {page}, make a token at {tokens}, set `HF_TOKEN` to it, and run it again"
                    ),
                };
                Error::new(ErrorKind::AccessDenied, said).with_hint(hint)
            }
            (404, "EntryNotFound") => {
                let said = format!("`{repo}` has no {what}");
                Error::new(ErrorKind::NotPublished, said)
                    .with_hint(format!("see what is there: {page}"))
            }
            (404, "RevisionNotFound") => {
                let said = format!("`{repo}` has no {what}");
                Error::new(ErrorKind::NotPublished, said)
                    .with_hint("use a branch, a tag or a commit that it has")
            }
            (401 | 404, "RepoNotFound" | "") if !has_token || refusal.status == 404 => {
                let said =
                    format!("there is no repository `{repo}` at {endpoint}, or it is private");
                Error::new(ErrorKind::NotPublished, said).with_hint(
                    "check its name; for a private one, set `HF_TOKEN` to a token that may read it",
                )
            }
            (401, _) => {
                let said = format!("the hub's token was refused for `{repo}`");
                Error::new(ErrorKind::AccessDenied, said)
                    .with_hint(format!("make a new one at {tokens} and set `HF_TOKEN` to it, or unset it for what is public"))
            }
            (403, _) => {
                let said = format!("`{repo}` may not be read (status 403)");
                Error::new(ErrorKind::AccessDenied, said)
                    .with_hint("use a token (`HF_TOKEN`) that may read this repository")
            }
            _ => refusal.into_error(),
        }
    }
}

impl Card {
    fn licence(self) -> Option<String> {
        let id = match self.license? {
            serde_json::Value::String(id) => id,
            serde_json::Value::Array(ids) => ids.first()?.as_str()?.to_owned(),
            _ => return None,
        };
        match self.license_name {
            Some(name) if id == "other" => Some(name),
            _ => Some(id),
        }
    }
}

impl RepoFile {
    /// A file whose hash is known and whose path stays inside the repository's folder.
    fn of(sibling: Sibling) -> Option<Self> {
        let Sibling {
            rfilename: path,
            size,
            blob_id,
            lfs,
        } = sibling;
        let (hash, size) = match lfs {
            Some(lfs) => (Hash::parse(&lfs.sha256)?, lfs.size),
            None => (Hash::parse(&blob_id?)?, size?),
        };
        is_inside(&path).then_some(Self { path, size, hash })
    }
}

impl Snapshot {
    /// The file of that path.
    ///
    /// # Errors
    /// Where there is none.
    pub fn file(&self, path: &str) -> Result<&RepoFile> {
        self.files.get(path).ok_or_else(|| {
            let what = format!("`{}` has no file `{path}`", self.repo);
            Error::new(ErrorKind::NotPublished, what)
                .with_hint("use a file that it has, by its whole path in the repository")
        })
    }
}

/// What the cache has of a repository.
fn from_cache(cache: &RepoCache, repo: &RepoId, revision: &str) -> Result<Snapshot> {
    let commit = cache
        .read_ref(revision)
        .unwrap_or_else(|| revision.to_owned());
    let dir = cache.snapshot(&commit);
    let mut files = BTreeMap::new();
    list(&dir, "", &mut files);
    if files.is_empty() {
        let what =
            format!("`{repo}` at `{revision}` is not in the cache, and nothing may be downloaded");
        return Err(Error::new(ErrorKind::Offline, what).with_hint("run it once online"));
    }
    Ok(Snapshot {
        repo: repo.clone(),
        commit,
        files,
        licence: None,
        is_gated: false,
        dir,
    })
}

/// Lists the files of a snapshot below `dir` whose links lead to blobs that are there.
fn list(dir: &Path, prefix: &str, files: &mut BTreeMap<String, RepoFile>) {
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if path.is_dir() {
            list(&path, &format!("{prefix}{name}/"), files);
            continue;
        }
        let blob = path.canonicalize().ok();
        let hash = blob
            .as_deref()
            .and_then(|blob| Hash::parse(blob.file_name()?.to_str()?));
        if let (Some(hash), Ok(metadata)) = (hash, path.metadata()) {
            let path = format!("{prefix}{name}");
            let size = metadata.len();
            files.insert(path.clone(), RepoFile { path, size, hash });
        }
    }
}
