//! Requests over HTTP: redirects, the token, pauses and further tries.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gguf_tools::{Error, ErrorKind, Result};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use crate::settings::{Settings, Token};

/// Whether the caller, or the user, asked to stop.
pub type Cancelled = Arc<dyn Fn() -> bool + Send + Sync>;

/// Redirects that are followed; the hub has two at most, for a renamed repository and its store.
const MAX_REDIRECTS: usize = 10;
/// Tries without a byte in between.
const MAX_TRIES: u32 = 5;
/// How often a pause looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// Asks servers, with the token where that belongs.
pub(crate) struct Client {
    agent: Agent,
    /// `https://huggingface.co`: where the token may go.
    home: String,
    token: Option<Token>,
    silence: Duration,
    first_pause: Duration,
    longest_pause: Duration,
    is_cancelled: Cancelled,
    /// Whether any server has answered: until then, an address that leads nowhere is taken to be wrong.
    has_answered: AtomicBool,
}

/// Why there is no answer to use.
pub(crate) enum Failure {
    /// Another try may help, after a pause if the server named one.
    Passing(Error, Option<Duration>),
    /// The server refused, and will again.
    Refused(Refusal),
    /// No other try helps.
    Final(Error),
}

/// A status from 400 on.
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The hub's `X-Error-Code`: `GatedRepo`, `EntryNotFound` and so on.
    pub(crate) code: String,
    /// Where the request led to in the end, without its query.
    pub(crate) url: String,
}

impl Refusal {
    /// The error of a refusal that has no meaning of its own.
    pub(crate) fn into_error(self) -> Error {
        let Self { status, url, .. } = self;
        let what = format!("`{url}` was refused with status {status}");
        Error::new(ErrorKind::Network, what).with_hint("check the address of the server")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Client {
    pub(crate) fn new(settings: &Settings, is_cancelled: Cancelled) -> Self {
        let config = Agent::config_builder()
            .user_agent(concat!("llava-sae-cpp/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, since ureq knows nothing of where the token may go.
            .max_redirects(0)
            .timeout_connect(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .timeout_per_write(Some(settings.silence))
            .build();
        Self {
            agent: config.new_agent(),
            home: origin(&settings.endpoint).to_owned(),
            token: settings.token.clone(),
            silence: settings.silence,
            first_pause: settings.first_pause,
            longest_pause: settings.longest_pause,
            is_cancelled,
            has_answered: AtomicBool::new(false),
        }
    }

    /// Whether it has a token.
    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Ends work that was asked to stop.
    ///
    /// # Errors
    /// When it was.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if (self.is_cancelled)() {
            return Err(Error::interrupted());
        }
        Ok(())
    }

    /// Asks for what is at `url`, from byte `start` on, once; the answer's status is 200 or 206.
    pub(crate) fn get(
        &self,
        url: &str,
        start: u64,
    ) -> std::result::Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            self.check_cancelled()?;
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| self.is_for_token(&url)) {
                request = request.header("authorization", format!("Bearer {}", token.secret()));
            }
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let answer = request
                .call()
                .map_err(|error| self.no_answer(&url, &error))?;
            self.has_answered.store(true, Ordering::Relaxed);
            let status = answer.status().as_u16();
            match status {
                200 | 206 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => url = redirected(&url, answer.headers())?,
                408 | 429 | 500..=599 => return Err(self.passing(&url, status, answer.headers())),
                _ => {
                    let code = header(answer.headers(), "x-error-code").unwrap_or_default();
                    return Err(Failure::Refused(Refusal {
                        status,
                        code: code.to_owned(),
                        url: shown(&url).to_owned(),
                    }));
                }
            }
        }
        let what = format!("`{}` redirects in circles", shown(&url));
        Err(Error::new(ErrorKind::Network, what).into())
    }

    /// Does something until it succeeds or fails for good; `refused` makes the error of a refusal.
    pub(crate) fn with_tries<T>(
        &self,
        refused: impl Fn(Refusal) -> Error,
        mut once: impl FnMut() -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        let mut tries = self.tries();
        loop {
            match once() {
                Ok(value) => return Ok(value),
                Err(Failure::Refused(refusal)) => return Err(refused(refusal)),
                Err(failure) => tries.pause_after(failure)?,
            }
        }
    }

    pub(crate) fn tries(&self) -> Tries<'_> {
        Tries {
            client: self,
            n_left: MAX_TRIES - 1,
            pause: self.first_pause,
        }
    }

    /// The token goes to the hub alone, and not where others on the way could read it.
    fn is_for_token(&self, url: &str) -> bool {
        let origin = origin(url);
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let is_own = ["127.0.0.1", "localhost", "[::1]"].iter().any(|own| {
            let rest = host.strip_prefix(own);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        });
        origin == self.home && (origin.starts_with("https://") || is_own)
    }

    fn no_answer(&self, url: &str, error: &ureq::Error) -> Failure {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof,
        };
        let may_pass = match error {
            ureq::Error::Timeout(_) => true,
            ureq::Error::Io(error) => matches!(
                error.kind(),
                BrokenPipe | ConnectionAborted | ConnectionReset | TimedOut | UnexpectedEof
            ),
            _ => false,
        };
        let error = self.unreachable(url, error);
        if !may_pass && !self.has_answered.load(Ordering::Relaxed) {
            return Failure::Final(error);
        }
        Failure::Passing(error, None)
    }

    /// The failure of a body that ended too early.
    pub(crate) fn broken_off(&self, url: &str, error: io::Error) -> Failure {
        Failure::Passing(self.unreachable(url, &error.into()), None)
    }

    fn unreachable(&self, url: &str, error: &ureq::Error) -> Error {
        let why = match error {
            ureq::Error::Timeout(_) => format!("no answer for {} s", self.silence.as_secs()),
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the connection was cut".to_owned()
            }
            ureq::Error::Io(error) => error.to_string(),
            other => other.to_string(),
        };
        let what = format!("cannot read `{}`: {why}", shown(url));
        Error::new(ErrorKind::Network, what)
            .with_hint("check the connection and run it again; what has been downloaded is kept")
    }

    fn passing(&self, url: &str, status: u16, headers: &HeaderMap) -> Failure {
        let asked = header(headers, "retry-after").and_then(|seconds| seconds.parse().ok());
        let asked = asked.map(Duration::from_secs);
        let shown = shown(url);
        if status != 429 {
            let what = format!("`{shown}` failed with status {status}");
            let error = Error::new(ErrorKind::Network, what).with_hint(
                "the server has trouble: run it again later; what has been downloaded is kept",
            );
            return Failure::Passing(error, asked.filter(|pause| *pause <= self.longest_pause));
        }
        let wait = asked.map_or(String::new(), |pause| format!(" for {} s", pause.as_secs()));
        let what = format!("`{shown}` wants no more requests{wait} (status 429)");
        let hint = match self.has_token() {
            true => "run it again later; what has been downloaded is kept",
            false => {
                "run it again later, or with a token of the hub (`HF_TOKEN`), which has higher limits; what has been downloaded is kept"
            }
        };
        let error = Error::new(ErrorKind::RateLimited, what).with_hint(hint);
        match asked {
            Some(pause) if pause > self.longest_pause => Failure::Final(error),
            asked => Failure::Passing(error, asked),
        }
    }
}

/// How often something may still be tried, and with which pause.
pub(crate) struct Tries<'a> {
    client: &'a Client,
    n_left: u32,
    pause: Duration,
}

impl Tries<'_> {
    /// Begins to count anew, since something was achieved.
    pub(crate) fn begin_anew(&mut self) {
        *self = self.client.tries();
    }

    /// Pauses before the next try.
    ///
    /// # Errors
    /// The failure's, where no try is left or none helps; when asked to stop.
    pub(crate) fn pause_after(&mut self, failure: Failure) -> Result<()> {
        let (error, asked) = match failure {
            Failure::Passing(error, asked) => (error, asked),
            Failure::Final(error) => return Err(error),
            Failure::Refused(refusal) => return Err(refusal.into_error()),
        };
        if self.n_left == 0 {
            return Err(error);
        }
        self.n_left -= 1;
        log::info!("{error}; trying again");
        let end = Instant::now() + asked.unwrap_or(self.pause);
        self.pause *= 2;
        while Instant::now() < end {
            self.client.check_cancelled()?;
            std::thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// The text of a header.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']);
    end.map_or(url, |end| &url[..host + end])
}

/// An address as errors show it: what follows `?` may be a signature.
fn shown(url: &str) -> &str {
    url.split_once('?').map_or(url, |(address, _)| address)
}

/// Where an answer sends its reader.
fn redirected(url: &str, headers: &HeaderMap) -> Result<String> {
    let wrong = |why: &str| {
        let what = format!("`{}` redirects {why}", shown(url));
        Error::new(ErrorKind::Network, what)
    };
    let to = header(headers, "location").ok_or_else(|| wrong("nowhere"))?;
    if to.starts_with('/') && !to.starts_with("//") {
        return Ok(format!("{}{to}", origin(url)));
    }
    match (to.starts_with("https://"), to.starts_with("http://")) {
        (true, _) => Ok(to.to_owned()),
        (_, true) if url.starts_with("http://") => Ok(to.to_owned()),
        (_, true) => Err(wrong("from an encrypted address to one that is not")),
        _ => Err(wrong("to something that is no address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn the_token_goes_to_the_hub_alone() {
        let check = |endpoint: &str, url: &str, expected: bool| {
            let settings = Settings {
                endpoint: endpoint.to_owned(),
                ..Settings::from_env().expect("a home folder")
            };
            let client = Client::new(&settings, Arc::new(|| false));
            assert_eq!(client.is_for_token(url), expected, "{endpoint} {url}");
        };
        let hub = "https://huggingface.co";
        check(hub, "https://huggingface.co/a/b", true);
        check(hub, "http://huggingface.co/a/b", false);
        check(hub, "https://huggingface.co.evil.example/a", false);
        check(hub, "https://huggingface.co:8443/a", false);
        check(hub, "https://cdn-lfs.huggingface.co/a", false);
        check(hub, "https://evil.example/?https://huggingface.co/", false);
        check("http://127.0.0.1:80/hub", "http://127.0.0.1:80/hub/a", true);
        check(
            "http://127.0.0.1.evil.example",
            "http://127.0.0.1.evil.example/a",
            false,
        );
        check("http://mirror.example", "http://mirror.example/a", false);
    }

    #[test]
    fn redirects_lead_to_addresses() {
        let check = |url: &str, to: &str, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert("location", to.parse().expect("a header"));
            assert_eq!(redirected(url, &headers).ok().as_deref(), expected, "{to}");
        };
        let url = "https://huggingface.co/a/b?x=1";
        check(url, "/c/d", Some("https://huggingface.co/c/d"));
        check(
            url,
            "https://cdn.example/x?y",
            Some("https://cdn.example/x?y"),
        );
        check(url, "http://cdn.example/x", None);
        check(
            "http://127.0.0.1:1/a",
            "http://127.0.0.1:2/x",
            Some("http://127.0.0.1:2/x"),
        );
        check(url, "//cdn.example/x", None);
        check(url, "file:///etc/passwd", None);
    }
}
