//! Who may ask: the host that is meant, the page that asks, and the key, before anything else of a request is read.
//!
//! A page of another address that a browser shows can reach this machine's ports. Its requests name its own
//! address as their origin; or, if it makes its name resolve to this machine (DNS rebinding), as their host.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::body;
use super::options::{ApiKey, ServeOptions};
use super::refusal::Refusal;

const SECRET_KEY: HeaderName = HeaderName::from_static("x-secret-key");

/// What is asked for without a key: the page, which asks for one, and whether the server is there.
const PUBLIC: [&str; 2] = ["/", "/health"];

/// Who may ask.
pub(super) struct Guard {
    hosts: Vec<String>,
    origins: Vec<String>,
    key: Option<ApiKey>,
}

impl Guard {
    pub(super) fn new(options: &ServeOptions) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let mut hosts: Vec<String> = lower(&options.allow_hosts);
        hosts.push(options.host.to_ascii_lowercase());
        Self {
            hosts,
            origins: lower(&options.allow_origins),
            key: options.api_key.clone(),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        let host = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => text(headers, &header::HOST),
        };
        let host = host.unwrap_or_default().to_ascii_lowercase();
        if !self.knows(&host) {
            let what = format!(
                "this server is not known as `{host}`: use its address, or start it with that name allowed"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, "foreign_host", what));
        }
        if headers.contains_key(header::ORIGIN) {
            let origin = text(headers, &header::ORIGIN).unwrap_or("null");
            let origin = origin.to_ascii_lowercase();
            let is_own = origin.split_once("://").is_some_and(|(_, own)| own == host);
            if !is_own && !self.origins.contains(&origin) {
                let what = format!(
                    "pages of `{origin}` may not use this server, unless it is started with that origin allowed"
                );
                return Err(Refusal::new(StatusCode::FORBIDDEN, "foreign_origin", what));
            }
        }
        let is_public =
            PUBLIC.contains(&request.uri().path()) || request.method() == Method::OPTIONS;
        match &self.key {
            Some(key) if !is_public && !has_key(headers, key) => {
                let what = "the API key is missing or wrong: send it as `Authorization: Bearer …` or `X-SECRET-KEY`";
                Err(Refusal::new(
                    StatusCode::UNAUTHORIZED,
                    "invalid_api_key",
                    what,
                ))
            }
            _ if content_length(headers) > body::MAX_BYTES as u64 => Err(body::too_large()),
            _ => Ok(()),
        }
    }

    /// Whether `host`, with or without a port, is this server: an address, which no other can claim to be, or a name
    /// that it has.
    fn knows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let address = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let is_address = address.unwrap_or(name).parse::<IpAddr>().is_ok();
        is_address || name == "localhost" || self.hosts.iter().any(|known| known == name)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn content_length(headers: &HeaderMap) -> u64 {
    let length = text(headers, &header::CONTENT_LENGTH);
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn has_key(headers: &HeaderMap, key: &ApiKey) -> bool {
    let bearer = headers.get_all(header::AUTHORIZATION).iter();
    let bearer = bearer.filter_map(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then_some(key.trim().as_bytes())
    });
    let secret = headers
        .get_all(&SECRET_KEY)
        .iter()
        .map(|value| value.as_bytes());
    bearer.chain(secret).any(|given| key.is(given))
}

/// Refuses whoever may not ask.
pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}
