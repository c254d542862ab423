//! Neuronpedia's labels of an SAE, from its public bucket.
//!
//! ```text
//! GET /?list-type=2&prefix=v1/MODEL/SOURCE/explanations/   names, in XML, a thousand at a time
//! GET /v1/MODEL/SOURCE/explanations/batch-N.jsonl.gz       labels
//! ```
//!
//! Source: Amazon S3's `ListObjectsV2`.

use std::io;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use gguf_tools::new_file::NewFile;
use gguf_tools::{Error, ErrorKind, Progress, Result};
use serde::Deserialize;

use crate::address::LabelsAddress;
use crate::cache::{create_dir_above, remove_if_there};
use crate::download::escaped;
use crate::http::{Failure, Refusal};
use crate::hub::Hub;

const MAX_LIST_BYTES: u64 = 16 << 20;
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Files of one SAE: one for 128 features, so enough for 12 million.
const MAX_FILES: usize = 100_000;

/// Neuronpedia's files of one SAE.
#[derive(Clone, Debug)]
pub struct Labels {
    /// Whose labels they are.
    pub address: LabelsAddress,
    files: Vec<LabelFile>, // by their numbers
}

#[derive(Clone, Debug)]
struct LabelFile {
    number: u32,
    /// In the bucket.
    key: String,
    size: u64,
    /// Changes with the contents.
    etag: String,
}

impl Labels {
    /// In all files.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Hub {
    /// Lists the files of labels. Where nothing may be fetched, those in the cache.
    ///
    /// # Errors
    /// An SAE without labels; a server that does not answer as it should.
    pub fn labels(&self, address: &LabelsAddress) -> Result<Labels> {
        let mut files = match self.settings.is_offline {
            true => self.cached_labels(address),
            false => self.listed_labels(address)?,
        };
        files.sort_by_key(|file| file.number);
        if files.is_empty() && self.settings.is_offline {
            let what = format!(
                "the labels `{address}` are not in the cache, and nothing may be downloaded"
            );
            return Err(Error::new(ErrorKind::Offline, what).with_hint("run it once online"));
        }
        if files.is_empty() {
            let what = format!("Neuronpedia has no labels `{address}`");
            return Err(Error::new(ErrorKind::NotPublished, what)
                .with_hint("check their names on neuronpedia.org, or go without labels"));
        }
        Ok(Labels {
            address: address.clone(),
            files,
        })
    }

    /// Sees to it that the labels are in the cache, and returns the files' paths.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn fetch_labels(&self, labels: &Labels, progress: Progress) -> Result<Vec<PathBuf>> {
        let total = labels.n_bytes();
        let mut done = 0;
        let mut paths = Vec::new();
        for file in &labels.files {
            let path = self.label_path(&labels.address, file);
            self.fetch_label_file(file, &path)?;
            done += file.size;
            if progress(done, total).is_break() {
                return Err(Error::interrupted());
            }
            paths.push(path);
        }
        Ok(paths)
    }

    /// How many bytes of the labels still have to be fetched.
    pub fn n_missing_label_bytes(&self, labels: &Labels) -> u64 {
        let is_missing = |file: &&LabelFile| !self.label_path(&labels.address, file).exists();
        labels
            .files
            .iter()
            .filter(is_missing)
            .map(|file| file.size)
            .sum()
    }

    /// Removes the labels from the cache.
    ///
    /// # Errors
    /// The operating system's.
    pub fn drop_labels(&self, labels: &Labels) -> Result<()> {
        for file in &labels.files {
            remove_if_there(&self.label_path(&labels.address, file))?;
        }
        Ok(())
    }

    fn label_dir(&self, LabelsAddress { model, source }: &LabelsAddress) -> PathBuf {
        self.settings.labels_cache.join(model).join(source)
    }

    fn label_path(&self, address: &LabelsAddress, file: &LabelFile) -> PathBuf {
        let name = format!("batch-{}.{}.jsonl.gz", file.number, file.etag);
        self.label_dir(address).join(name)
    }

    /// A file gets its name when it is whole and unpacks to what its own checksum says.
    fn fetch_label_file(&self, file: &LabelFile, path: &Path) -> Result<()> {
        if path.metadata().is_ok_and(|there| there.len() == file.size) {
            return Ok(());
        }
        let url = format!("{}/{}", self.settings.neuronpedia, escaped(&file.key));
        let bytes = self.client.with_tries(Refusal::into_error, || {
            let bytes = self.text(&url, MAX_FILE_BYTES)?;
            match bytes.len() as u64 == file.size {
                true => Ok(bytes),
                false => Err(self
                    .client
                    .broken_off(&url, io::ErrorKind::UnexpectedEof.into())),
            }
        })?;
        io::copy(&mut MultiGzDecoder::new(&bytes[..]), &mut io::sink()).map_err(|error| {
            let what = format!("`{url}` arrived damaged: {error}");
            Error::new(ErrorKind::Damaged, what).with_hint("run it again")
        })?;
        create_dir_above(path)?;
        NewFile::in_cache(path)?.finish_with(&bytes)
    }

    fn cached_labels(&self, address: &LabelsAddress) -> Vec<LabelFile> {
        let entries = self
            .label_dir(address)
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        let file = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (number, etag) = name
                .strip_suffix(".jsonl.gz")?
                .strip_prefix("batch-")?
                .split_once('.')?;
            Some(LabelFile {
                number: number.parse().ok()?,
                key: String::new(),
                size: entry.metadata().ok()?.len(),
                etag: etag.to_owned(),
            })
        };
        entries.filter_map(file).collect()
    }

    fn listed_labels(&self, address: &LabelsAddress) -> Result<Vec<LabelFile>> {
        let LabelsAddress { model, source } = address;
        let prefix = format!("v1/{model}/{source}/explanations/");
        let mut files = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut url = format!(
                "{}/?list-type=2&prefix={}",
                self.settings.neuronpedia,
                escaped(&prefix)
            );
            if let Some(token) = &next {
                url += &format!("&continuation-token={}", escaped(token).replace('/', "%2F"));
            }
            let refused = Refusal::into_error;
            let page = self.client.with_tries(refused, || {
                let text = self.text(&url, MAX_LIST_BYTES)?;
                quick_xml::de::from_reader::<_, Page>(&text[..]).map_err(|why| {
                    let what = format!(
                        "`{}` is no list of a bucket: {why}",
                        self.settings.neuronpedia
                    );
                    Failure::Final(
                        Error::new(ErrorKind::Network, what)
                            .with_hint("check the address of the bucket"),
                    )
                })
            })?;
            let labels = page.contents.into_iter();
            files.extend(labels.filter_map(|object| LabelFile::of(object, &prefix)));
            let is_last = !page.is_truncated || page.next_continuation_token.is_none();
            if is_last || page.next_continuation_token == next || files.len() > MAX_FILES {
                return Ok(files);
            }
            next = page.next_continuation_token;
        }
    }
}

/// A part of the bucket's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    is_truncated: bool,
    /// What to ask for the next part with.
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Object {
    key: String,
    size: u64,
    #[serde(rename = "ETag")]
    etag: String,
}

impl LabelFile {
    /// A file of labels, among others that a bucket may hold.
    fn of(object: Object, prefix: &str) -> Option<Self> {
        let name = object.key.strip_prefix(prefix)?;
        let number = name.strip_prefix("batch-")?.strip_suffix(".jsonl.gz")?;
        Some(Self {
            number: number.parse().ok()?,
            size: object.size,
            etag: object
                .etag
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect(),
            key: object.key,
        })
    }
}
