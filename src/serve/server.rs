//! Connections: listening, serving, and ending.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::app::App;
use super::guard::{self, Guard};
use super::options::ServeOptions;
use super::refusal::Refusal;
use super::runs::Runs;
use super::stream::MAX_PAUSE;
use super::studies::Studies;
use super::{body, explore, neuronpedia, openai, openapi, page};
use crate::{CancelFlag, EngineSize, Error, ErrorKind, HookedModel, Result};

/// Connections at once; others wait for one to end.
const MAX_CONNECTIONS: usize = 512;

/// How long a request's head may take to arrive.
const MAX_HEAD_TIME: Duration = Duration::from_secs(15);

/// How often it is looked whether to stop.
const POLL: Duration = Duration::from_millis(50);

/// The tokens of a request where the context's length is left to us, if the model was trained on as many.
const DEFAULT_TOKENS: usize = 4096;

/// A server that listens, and does not serve yet: who connects waits.
pub struct Server {
    listener: TcpListener,
    options: ServeOptions,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// A host that is none, an address that is taken, one that others can reach without a key; numbers out of range.
    pub fn bind(options: ServeOptions) -> Result<Self> {
        if options.parallel == 0 {
            return Err(Error::invalid(
                "a server that computes no runs at once serves nobody",
            ));
        }
        let shown = format!("{}:{}", options.host, options.port);
        let cannot = |error: std::io::Error| {
            Error::new(ErrorKind::Io, format!("cannot listen on {shown}: {error}"))
                .with_hint("choose another port or address, or end what listens there")
        };
        let host = options.host.trim_start_matches('[').trim_end_matches(']');
        let addresses = (host, options.port).to_socket_addrs().map_err(cannot)?;
        let addresses: Vec<SocketAddr> = addresses.collect();
        let is_public = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
        if options.api_key.is_none() && addresses.iter().any(is_public) {
            return Err(Error::invalid(format!(
                "others can reach {host}, and no API key is asked of them"
            ))
            .of_kind(ErrorKind::AccessDenied)
            .with_hint("give a file with a key, or listen on 127.0.0.1"));
        }
        for origin in &options.allow_origins {
            check_origin(origin)?;
        }
        let listener = TcpListener::bind(&addresses[..]).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        Ok(Self { listener, options })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        let address = self.listener.local_addr();
        address.map_err(|error| Error::new(ErrorKind::Io, format!("cannot listen: {error}")))
    }

    /// Serves until it is cancelled; then it takes in no more, and answers what it has.
    ///
    /// # Errors
    /// More memory than is free; a system without threads.
    pub fn serve(self, model: &Arc<HookedModel>, cancel: &CancelFlag) -> Result<()> {
        let context = match model.options().context_size {
            0 => model.language_model().trained_context().min(DEFAULT_TOKENS),
            size => size,
        };
        let size = EngineSize {
            n_tokens: context,
            n_sequences: self.options.parallel,
            n_shared: context,
            n_together: 0,
        };
        let (runs, engine) = Runs::start(Arc::clone(model), size)?;
        let (studies, session) = Studies::start(Arc::clone(model));
        let app = Arc::new(App::new(Arc::clone(model), runs, studies, &self.options));
        let router = router(app, &self.options);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2) // they do little: what computes has threads of its own
            .enable_all()
            .build()
            .map_err(|error| Error::new(ErrorKind::Io, format!("cannot serve: {error}")))?;
        // An engine that has failed cannot serve: whoever watches over the program may start it again.
        let is_over = || cancel.is_cancelled() || engine.is_finished();
        let served = runtime.block_on(accept(self.listener, router, is_over));
        drop(runtime);
        for thread in [engine, session] {
            let ended = thread.join();
            ended.map_err(|_| Error::new(ErrorKind::Runtime, "a thread of the server failed"))?;
        }
        served
    }
}

/// Checks that it is what browsers write as an origin.
fn check_origin(origin: &str) -> Result<()> {
    let rest = origin
        .strip_prefix("http://")
        .or(origin.strip_prefix("https://"));
    let is_origin = |rest: &str| !rest.is_empty() && !rest.contains(['/', '*', ' ']);
    match rest.is_some_and(is_origin) && HeaderValue::from_str(origin).is_ok() {
        true => Ok(()),
        false => Err(
            Error::invalid(format!("`{origin}` is no origin")).with_hint(
                "write it as browsers do, such as `https://example.org` or `http://localhost:3000`",
            ),
        ),
    }
}

fn router(app: Arc<App>, options: &ServeOptions) -> Router {
    let origins = options.allow_origins.iter();
    let origins = origins.filter_map(|origin| HeaderValue::from_str(origin).ok());
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::HeaderName::from_static("x-secret-key"),
        ]);
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(openapi::health))
        .route("/openapi.json", get(openapi::document))
        .merge(neuronpedia::routes())
        .merge(openai::routes())
        .merge(explore::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .with_state(app)
        .layer(DefaultBodyLimit::max(body::MAX_BYTES))
        .layer(cors)
        .layer(from_fn_with_state(
            Arc::new(Guard::new(options)),
            guard::check,
        ))
        .layer(from_fn(neuronpedia::refuse_in_own_form))
}

async fn not_found(request: Request) -> Refusal {
    let what = format!("there is nothing at `{}`", request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, "not_found", what)
}

async fn not_allowed(request: Request) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    let what = format!("`{path}` does not take {method}");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", what)
}

async fn accept(listener: TcpListener, router: Router, is_over: impl Fn() -> bool) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot accept connections: {error}"))
    };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(MAX_HEAD_TIME);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place.expect("it is never closed"), listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = until(&is_over) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: some may close.
                log::warn!("a connection was not accepted: {error}");
                tokio::time::sleep(POLL).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(MAX_PAUSE));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _ = connection.await; // what fails in a connection is its client's business
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

async fn until(is_over: impl Fn() -> bool) {
    while !is_over() {
        tokio::time::sleep(POLL).await;
    }
}
