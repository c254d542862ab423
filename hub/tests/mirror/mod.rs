//! A mirror of the hub, of its store and of Neuronpedia's bucket, on loopback, which can be made to fail.
//!
//! The hub answers about repositories and sends small files; of large ones it sends the address in the store,
//! which is another server, so that a token that goes astray is seen.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What the mirror has.
#[derive(Default)]
pub(crate) struct Content {
    /// By `ORG/REPO`.
    pub(crate) repos: BTreeMap<String, Repo>,
    /// Files of Neuronpedia's bucket, by key.
    pub(crate) bucket: BTreeMap<String, Vec<u8>>,
}

/// A repository with one commit, at `main`.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) access: Access,
    pub(crate) licence: Option<&'static str>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Access {
    #[default]
    Public,
    /// Its files need a token.
    Gated,
    /// It is not there without a token.
    Private,
}

impl Repo {
    /// Adds the files of a folder, and of those below it, under `prefix`.
    pub(crate) fn with_dir(mut self, prefix: &str, dir: &Path) -> Self {
        for entry in dir.read_dir().expect("a committed folder") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a name").to_str().expect("UTF-8");
            let name = format!("{prefix}{name}");
            if path.is_dir() {
                self = self.with_dir(&format!("{name}/"), &path);
            } else {
                let bytes = std::fs::read(&path).expect("a committed file");
                self.files.insert(name, bytes);
            }
        }
        self
    }

    /// Adds files.
    pub(crate) fn with_more(mut self, files: &[(&str, &str)]) -> Self {
        let files = files.iter();
        let files = files.map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
        self.files.extend(files);
        self
    }

    pub(crate) fn commit(&self) -> String {
        let mut names = Sha1::new();
        self.files.iter().for_each(|(name, bytes)| {
            names.update(name);
            names.update(bytes);
        });
        hex(&names.finalize())
    }
}

/// A server of the mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Hub,
    Store,
    Bucket,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) server: Server,
    /// With its query.
    pub(crate) path: String,
    /// Where the range begins.
    pub(crate) start: Option<usize>,
    pub(crate) authorization: Option<String>,
}

/// What becomes of an answer.
#[allow(dead_code)] // each test program makes some of them
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Another status, with a header.
    Status(u16, &'static str, &'static str),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// So many bytes of the body come, and then nothing.
    HangAfter(usize),
    /// Nothing comes, for longer than anybody waits.
    Hang,
    /// The last byte of the body is another.
    WrongByte,
    /// All is sent, whatever part was asked for.
    IgnoredRange,
}

type Saboteur = Box<dyn FnMut(&Asked) -> Fault + Send>;

struct State {
    content: Content,
    store: String,
    log: Mutex<Vec<Asked>>,
    saboteur: Mutex<Saboteur>,
}

/// The servers; they end with the test's process.
pub(crate) struct Mirror {
    pub(crate) endpoint: String,
    pub(crate) neuronpedia: String,
    state: Arc<State>,
}

/// The token that opens what is not public.
pub(crate) const TOKEN: &str = "hf_SecretOfTheTest";

impl Mirror {
    pub(crate) fn start(content: Content) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("loopback");
        let (hub, store, bucket) = (listen(), listen(), listen());
        let address =
            |listener: &TcpListener| -> SocketAddr { listener.local_addr().expect("it listens") };
        let state = Arc::new(State {
            content,
            store: format!("http://{}", address(&store)),
            log: Mutex::default(),
            saboteur: Mutex::new(Box::new(|_| Fault::Nothing)),
        });
        let mirror = Self {
            endpoint: format!("http://{}", address(&hub)),
            neuronpedia: format!("http://{}", address(&bucket)),
            state: Arc::clone(&state),
        };
        for (server, listener) in [
            (Server::Hub, hub),
            (Server::Store, store),
            (Server::Bucket, bucket),
        ] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || state.serve(server, stream));
                }
            });
        }
        mirror
    }

    /// From now on, `saboteur` says what becomes of each answer.
    pub(crate) fn sabotage(&self, saboteur: impl FnMut(&Asked) -> Fault + Send + 'static) {
        *self.state.saboteur.lock().expect("no panic") = Box::new(saboteur);
    }

    /// The requests since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.log())
    }

    fn log(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.state.log.lock().expect("no panic")
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, or the part of it from `start` on.
    fn file(bytes: &[u8], start: Option<usize>) -> Self {
        match start {
            None => Self::new(200, bytes),
            Some(start) if start >= bytes.len() => Self::new(416, ""),
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Self::new(206, &bytes[start..]).with("Content-Range", range)
            }
        }
    }

    fn refused(status: u16, code: &'static str) -> Self {
        Self::new(status, "").with("X-Error-Code", code)
    }
}

impl State {
    fn serve(&self, server: Server, mut stream: TcpStream) {
        let reader = stream.try_clone().expect("a socket");
        let mut lines = BufReader::new(reader).lines();
        // Ends with the connection.
        while let Some(asked) = Asked::read(server, &mut lines) {
            self.log.lock().expect("no panic").push(asked.clone());
            let fault = self.saboteur.lock().expect("no panic")(&asked);
            let start = asked.start.filter(|_| fault != Fault::IgnoredRange);
            let mut answer = match fault {
                Fault::Status(status, name, value) => Answer::new(status, "").with(name, value),
                Fault::Hang => return std::thread::sleep(Duration::from_secs(60)),
                _ => match server {
                    Server::Hub => self.hub(&asked, start),
                    Server::Store => self.stored(&asked.path, start),
                    Server::Bucket => self.in_bucket(&asked.path),
                },
            };
            if let (Fault::WrongByte, Some(last)) = (fault, answer.body.last_mut()) {
                *last ^= 1;
            }
            let mut text = format!(
                "HTTP/1.1 {} x\r\nContent-Length: {}\r\n",
                answer.status,
                answer.body.len()
            );
            for (name, value) in &answer.headers {
                text += &format!("{name}: {value}\r\n");
            }
            text += "\r\n";
            if let Fault::CutAfter(n_bytes) | Fault::HangAfter(n_bytes) = fault {
                answer.body.truncate(n_bytes);
            }
            let sent = stream
                .write_all(text.as_bytes())
                .and_then(|()| stream.write_all(&answer.body));
            if matches!(fault, Fault::HangAfter(_)) {
                std::thread::sleep(Duration::from_secs(60));
            }
            if sent.is_err() || matches!(fault, Fault::CutAfter(_)) {
                return;
            }
        }
    }

    fn hub(&self, asked: &Asked, start: Option<usize>) -> Answer {
        let path = asked.path.split('?').next().expect("a first part");
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let ([_, _, org, name, "revision", rest @ ..] | [org, name, "resolve", rest @ ..]) =
            &parts[..]
        else {
            return Answer::new(404, "");
        };
        let has_token = asked.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        let known = self.content.repos.get(&format!("{org}/{name}"));
        let is_hidden = |repo: &&Repo| repo.access == Access::Private && !has_token;
        let Some(repo) = known.filter(|repo| !is_hidden(repo)) else {
            // As the hub does, so that nobody learns what is private.
            return match has_token {
                true => Answer::refused(404, "RepoNotFound"),
                false => Answer::refused(401, "RepoNotFound"),
            };
        };
        let commit = repo.commit();
        let [revision, file @ ..] = rest else {
            return Answer::new(404, "");
        };
        if ![&*commit, "main"].contains(revision) {
            return Answer::refused(404, "RevisionNotFound");
        }
        if parts[0] == "api" {
            return Answer::new(200, self.info(repo, &commit));
        }
        if repo.access == Access::Gated && !has_token {
            return Answer::refused(401, "GatedRepo");
        }
        let file = unescaped(&file.join("/"));
        let Some(bytes) = repo.files.get(&file) else {
            return Answer::refused(404, "EntryNotFound");
        };
        if !is_large(&file) {
            return Answer::file(bytes, start).with("ETag", format!("\"{}\"", git_sha1(bytes)));
        }
        let hash = hex(&Sha256::digest(bytes));
        Answer::new(302, "")
            .with(
                "Location",
                format!("{}/{hash}?signature=secret", self.store),
            )
            .with("X-Linked-Etag", format!("\"{hash}\""))
            .with("X-Linked-Size", bytes.len().to_string())
            .with("X-Repo-Commit", commit)
    }

    fn info(&self, repo: &Repo, commit: &str) -> String {
        let siblings = repo.files.iter().map(|(name, bytes)| {
            let size = bytes.len();
            match is_large(name) {
                true => serde_json::json!({
                    "rfilename": name, "size": size, "blobId": git_sha1(b"a pointer"),
                    "lfs": {"sha256": hex(&Sha256::digest(bytes)), "size": size, "pointerSize": 134},
                }),
                false => serde_json::json!({"rfilename": name, "size": size, "blobId": git_sha1(bytes)}),
            }
        });
        let gated = match repo.access {
            Access::Gated => serde_json::json!("manual"),
            _ => serde_json::json!(false),
        };
        serde_json::json!({
            "sha": commit, "gated": gated, "cardData": {"license": repo.licence},
            "siblings": siblings.collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn stored(&self, path: &str, start: Option<usize>) -> Answer {
        let mut files = self
            .content
            .repos
            .values()
            .flat_map(|repo| repo.files.values());
        let wanted = path.trim_start_matches('/').split('?').next();
        match files.find(|bytes| Some(&*hex(&Sha256::digest(bytes))) == wanted) {
            Some(bytes) => Answer::file(bytes, start),
            None => Answer::new(403, ""),
        }
    }

    /// As S3 does it, two names at a time.
    fn in_bucket(&self, path: &str) -> Answer {
        let Some(query) = path.strip_prefix("/?") else {
            return match self
                .content
                .bucket
                .get(&unescaped(path.trim_start_matches('/')))
            {
                Some(bytes) => Answer::new(200, &bytes[..]),
                None => Answer::new(403, ""),
            };
        };
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(known, _)| *known == name)
                .map(|(_, value)| unescaped(value))
        };
        assert_eq!(value("list-type").as_deref(), Some("2"));
        let prefix = value("prefix").expect("a prefix");
        let after =
            value("continuation-token").map(|token| token.trim_end_matches("=/+").to_owned());
        let keys = self
            .content
            .bucket
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix));
        let keys: Vec<_> = keys
            .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
            .collect();
        let mut xml = String::from(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>neuronpedia-datasets</Name><MaxKeys>2</MaxKeys>",
        );
        if let [_, (last, _), _, ..] = keys[..] {
            xml += &format!(
                "<IsTruncated>true</IsTruncated><NextContinuationToken>{last}=/+</NextContinuationToken>"
            );
        } else {
            xml += "<IsTruncated>false</IsTruncated>";
        }
        for (key, bytes) in keys.iter().take(2) {
            let (etag, size) = (git_sha1(bytes), bytes.len());
            xml += &format!(
                "<Contents><Key>{key}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            );
        }
        Answer::new(200, xml + "</ListBucketResult>")
    }
}

impl Asked {
    fn read(
        server: Server,
        lines: &mut impl Iterator<Item = std::io::Result<String>>,
    ) -> Option<Self> {
        let first = lines.next()?.ok()?;
        let path = first.split(' ').nth(1)?.to_owned();
        let mut asked = Self {
            server,
            path,
            start: None,
            authorization: None,
        };
        loop {
            let line = lines.next()?.ok()?;
            let Some((name, value)) = line.split_once(": ") else {
                return Some(asked);
            };
            match name.to_lowercase().as_str() {
                "authorization" => asked.authorization = Some(value.to_owned()),
                "range" => {
                    let start = value.strip_prefix("bytes=")?.strip_suffix('-')?;
                    asked.start = Some(start.parse().ok()?);
                }
                _ => {}
            }
        }
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".npz", ".gguf", ".model"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |rest: &mut dyn Iterator<Item = u8>| {
            let digit = rest.next().expect("a digit");
            char::from(digit).to_digit(16).expect("hexadecimal") as u8
        };
        bytes.push(match byte {
            b'%' => digit(&mut rest) * 16 + digit(&mut rest),
            other => other,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}
