//! Files of a snapshot into the cache: resumed where they broke off, checked against their hashes, one process
//! at a time.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::{Error, ErrorKind, Progress, Result};

use crate::cache::{RepoCache, create_dir_above, open_if_there, remove_if_there};
use crate::hash::{Hash, Hasher, PIECE};
use crate::http::{Failure, header};
use crate::hub::Hub;
use crate::snapshot::{RepoFile, Snapshot};

impl Hub {
    /// Sees to it that `files` are in the folder of `snapshot`, with the contents that the hub says. `progress`
    /// gets the bytes that are there and checked, of those of all files.
    ///
    /// # Errors
    /// A file that is missing where nothing may be fetched; what is not for everybody; a server that cannot be
    /// reached or sends something else; a full disk; when asked to stop. What has arrived by then stays, and the
    /// next call goes on from there.
    pub fn fetch(
        &self,
        snapshot: &Snapshot,
        files: &[&RepoFile],
        progress: Progress,
    ) -> Result<()> {
        let total = files.iter().map(|file| file.size).sum();
        let mut done = 0;
        for file in files {
            let mut transfer = Transfer {
                hub: self,
                cache: RepoCache::new(&self.settings.cache, &snapshot.repo),
                snapshot,
                file,
                progress: &mut |of_file| match progress(done + of_file, total) {
                    ControlFlow::Continue(()) => self.client.check_cancelled(),
                    ControlFlow::Break(()) => Err(Error::interrupted()),
                },
            };
            transfer.run()?;
            done += file.size;
        }
        Ok(())
    }

    /// How many bytes of `files` still have to be fetched.
    pub fn n_missing_bytes(&self, snapshot: &Snapshot, files: &[&RepoFile]) -> u64 {
        let cache = RepoCache::new(&self.settings.cache, &snapshot.repo);
        let size = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        let missing = files.iter().map(|file| {
            let whole = size(&cache.blob(&file.hash)).max(size(&snapshot.dir.join(&file.path)));
            match whole == file.size {
                true => 0,
                false => file
                    .size
                    .saturating_sub(size(&cache.incomplete(&file.hash))),
            }
        });
        missing.sum()
    }

    /// Removes `files` from the cache.
    ///
    /// # Errors
    /// The operating system's.
    pub fn drop_downloads(&self, snapshot: &Snapshot, files: &[&RepoFile]) -> Result<()> {
        let cache = RepoCache::new(&self.settings.cache, &snapshot.repo);
        for file in files {
            let _lock = self.lock(&cache.lock(&file.hash), || ())?;
            cache.remove(&snapshot.commit, &file.path, &file.hash)?;
        }
        Ok(())
    }
}

/// A file on its way.
struct Transfer<'a> {
    hub: &'a Hub,
    cache: RepoCache,
    snapshot: &'a Snapshot,
    file: &'a RepoFile,
    /// Gets the file's bytes that are there.
    progress: &'a mut dyn FnMut(u64) -> Result<()>,
}

impl Transfer<'_> {
    fn run(&mut self) -> Result<()> {
        let (hash, commit) = (&self.file.hash, &self.snapshot.commit);
        let lock = self.hub.lock(&self.cache.lock(hash), || {
            log::info!(
                "waiting for another process that fetches `{}`",
                self.file.path
            );
        });
        let _lock = lock?;
        let blob = self.cache.blob(hash);
        // Where the system knows no links, other clients keep a snapshot's files without blobs.
        for there in [&blob, &self.snapshot.dir.join(&self.file.path)] {
            let is_whole = self.is_whole(there)?;
            if is_whole && *there == blob {
                return self.cache.link(commit, &self.file.path, hash);
            } else if is_whole {
                return Ok(());
            }
        }
        if self.hub.settings.is_offline {
            let what = format!(
                "`{}` of `{}` is not in the cache, and nothing may be downloaded",
                self.file.path, self.snapshot.repo
            );
            return Err(Error::new(ErrorKind::Offline, what).with_hint("run it once online"));
        }
        create_dir_above(&blob)?;
        let incomplete = self.cache.incomplete(hash);
        while !self.arrive(&incomplete)? {}
        fs::rename(&incomplete, &blob).map_err(Error::io("write", &blob))?;
        self.cache.link(commit, &self.file.path, hash)
    }

    /// Whether the file at `path` is there and has the right contents; removes it if it has others.
    fn is_whole(&mut self, path: &Path) -> Result<bool> {
        let Some(mut file) = open_if_there(path)? else {
            return Ok(false);
        };
        let mut n_read = 0;
        let mut stopped = None;
        let is_whole = self.file.hash.is_of(&mut file, self.file.size, |n_bytes| {
            n_read += n_bytes;
            (self.progress)(n_read).map_err(|error| {
                stopped = Some(error);
                io::ErrorKind::Interrupted.into()
            })
        });
        if let Some(error) = stopped {
            return Err(error);
        }
        let is_whole = is_whole.map_err(Error::io("read", path))?;
        if !is_whole {
            log::warn!("`{}` is damaged, and is fetched again", path.display());
            remove_if_there(path)?;
        }
        Ok(is_whole)
    }

    /// Lets the rest of the file arrive at `path`, and checks all of it. False when what had arrived before was
    /// of no use: then it is gone, and all is to be fetched.
    fn arrive(&mut self, path: &Path) -> Result<bool> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let mut arriving = Arriving {
            file: file.map_err(Error::io("write", path))?,
            path,
            hasher: Hasher::new(&self.file.hash, self.file.size),
            n_there: 0,
        };
        arriving.take_what_is_there(self.file.size, &mut self.progress)?;
        let n_resumed = arriving.n_there;
        let endpoint = &self.hub.settings.endpoint;
        let Snapshot { repo, commit, .. } = self.snapshot;
        let url = format!(
            "{endpoint}/{repo}/resolve/{commit}/{}",
            escaped(&self.file.path)
        );
        let mut tries = self.hub.client.tries();
        while arriving.n_there < self.file.size {
            let n_before = arriving.n_there;
            let arrived = self.receive(&url, &mut arriving);
            if arriving.n_there > n_before {
                tries.begin_anew();
            }
            match arrived {
                Ok(()) => {}
                Err(Failure::Refused(refusal)) => {
                    let what = format!("file `{}`", self.file.path);
                    let error = self.hub.refused(repo, &what, refusal);
                    return Err(arriving.closed_with(error));
                }
                Err(failure) => {
                    tries
                        .pause_after(failure)
                        .map_err(|error| arriving.closed_with(error))?;
                }
            }
        }
        arriving.file.sync_all().map_err(Error::io("write", path))?;
        if arriving.hasher.finish() == self.file.hash.hex() {
            return Ok(true);
        }
        remove_if_there(path)?;
        if n_resumed > 0 {
            log::warn!(
                "what had arrived of `{}` was damaged; it is fetched again",
                self.file.path
            );
            return Ok(false);
        }
        let what = format!(
            "`{}` of `{repo}` arrived damaged: it does not have {}",
            self.file.path, self.file.hash
        );
        Err(Error::new(ErrorKind::Damaged, what).with_hint(
            "run it again; if it happens again, something on the way to the hub changes files",
        ))
    }

    /// Asks for the rest once and takes what comes.
    fn receive(&mut self, url: &str, arriving: &mut Arriving) -> std::result::Result<(), Failure> {
        let answer = self.hub.client.get(url, arriving.n_there)?;
        if arriving.n_there > 0 && answer.status() == 200 {
            // The server sends all of it, whatever was asked for.
            arriving.begin_anew(&self.file.hash, self.file.size)?;
        } else if answer.status() == 206 {
            let expected = format!(
                "bytes {}-{}/{}",
                arriving.n_there,
                self.file.size - 1,
                self.file.size
            );
            let range = header(answer.headers(), "content-range").unwrap_or_default();
            if range != expected {
                let what = format!("`{url}` sent `{range}`, expected `{expected}`");
                return Err(Error::new(ErrorKind::Network, what).into());
            }
        }
        let mut body = answer.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            let n_read = match body.read(&mut piece) {
                Ok(n_read) => n_read,
                Err(error) => return Err(self.hub.client.broken_off(url, error)),
            };
            let n_left = self.file.size - arriving.n_there;
            if n_read as u64 > n_left {
                let what = format!("`{url}` sent more than its {} bytes", self.file.size);
                return Err(Error::new(ErrorKind::Network, what).into());
            }
            if n_read == 0 {
                return match n_left {
                    0 => Ok(()),
                    _ => Err(self
                        .hub
                        .client
                        .broken_off(url, io::ErrorKind::UnexpectedEof.into())),
                };
            }
            arriving.take(&piece[..n_read])?;
            (self.progress)(arriving.n_there)?;
        }
    }
}

/// A file that is not whole yet.
struct Arriving<'a> {
    file: File,
    path: &'a Path,
    /// Of the bytes that are there.
    hasher: Hasher,
    n_there: u64,
}

impl Arriving<'_> {
    /// Hashes what an earlier process has left, unless that is too much.
    fn take_what_is_there(
        &mut self,
        size: u64,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let refused = || Error::io("read", self.path);
        let mut n_left = self.file.metadata().map_err(refused())?.len();
        if n_left > size {
            self.file.set_len(0).map_err(refused())?;
            n_left = 0;
        }
        let mut piece = vec![0; PIECE];
        while n_left > 0 {
            let n_wanted = piece.len().min(n_left as usize);
            let n_read = self.file.read(&mut piece[..n_wanted]).map_err(refused())?;
            if n_read == 0 {
                break;
            }
            self.hasher.update(&piece[..n_read]);
            self.n_there += n_read as u64;
            n_left -= n_read as u64;
            progress(self.n_there)?;
        }
        Ok(())
    }

    fn begin_anew(&mut self, hash: &Hash, size: u64) -> Result<()> {
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(Error::io("write", self.path))?;
        self.hasher = Hasher::new(hash, size);
        self.n_there = 0;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(Error::io("write", self.path))?;
        self.hasher.update(bytes);
        self.n_there += bytes.len() as u64;
        Ok(())
    }

    /// Leaves no empty file behind an error.
    fn closed_with(&self, error: Error) -> Error {
        if self.n_there == 0 {
            let _ = fs::remove_file(self.path);
        }
        error
    }
}

/// A path as a part of an address (RFC 3986).
pub(crate) fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(byte.into());
            }
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}
