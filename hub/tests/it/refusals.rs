//! What the hub refuses: each says what, why, and what to do, and leaves nothing half done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gguf_tools::ErrorKind;

use crate::mirror::{Access, Fault, Mirror, Repo};
use crate::*;

fn content_with(access: Access) -> Content {
    let mut content = content();
    let repo: &mut Repo = content.repos.get_mut(REPO).expect("there");
    repo.access = access;
    content
}

/// Checks the kind of an error, and parts of what it says and of its hint.
fn check(error: &gguf_tools::Error, kind: ErrorKind, what: &str, hint: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(what), "{error}");
    let found = error.hint().unwrap_or_default();
    assert!(found.contains(hint), "{found}");
}

#[test]
fn a_gated_repository_wants_its_terms_accepted() {
    let mirror = Mirror::start(content_with(Access::Gated));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = fetch(&hub(&mirror, dir.path())).expect_err("refused");
    let page = format!("accept them at {}/{REPO}", mirror.endpoint);
    check(
        &error,
        ErrorKind::AccessDenied,
        "`org/model` is gated",
        &page,
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("`HF_TOKEN`")));

    let client = with_token(&mirror, dir.path());
    let snapshot = fetch(&client).expect("the token opens it");
    assert!(snapshot.is_gated);
    check_contents(&snapshot);

    mirror.sabotage(|_| Fault::Status(403, "X-Error-Code", "GatedRepo"));
    let error = client.snapshot(&repo(), "main").expect_err("refused");
    check(
        &error,
        ErrorKind::AccessDenied,
        "is gated",
        "the account that the token belongs to",
    );
}

#[test]
fn what_is_private_is_as_if_it_were_not_there() {
    let mirror = Mirror::start(content_with(Access::Private));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = fetch(&hub(&mirror, dir.path())).expect_err("refused");
    check(
        &error,
        ErrorKind::NotPublished,
        "no repository `org/model`",
        "`HF_TOKEN`",
    );
    fetch(&with_token(&mirror, dir.path())).expect("the token opens it");

    let unknown = "org/other".parse().expect("a repository");
    let error = with_token(&mirror, dir.path()).snapshot(&unknown, "main");
    check(
        &error.expect_err("unknown"),
        ErrorKind::NotPublished,
        "`org/other`",
        "check its name",
    );
}

#[test]
fn a_refused_token_is_said_and_not_shown() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    mirror.sabotage(|_| Fault::Status(401, "X-Error-Message", "Invalid credentials"));
    let error = fetch(&with_token(&mirror, dir.path())).expect_err("refused");
    check(
        &error,
        ErrorKind::AccessDenied,
        "token was refused",
        "/settings/tokens",
    );
    assert!(!format!("{error:?}").contains(mirror::TOKEN));
    mirror.sabotage(|_| Fault::Status(403, "X-None", ""));
    let error = fetch(&with_token(&mirror, dir.path())).expect_err("refused");
    check(&error, ErrorKind::AccessDenied, "status 403", "`HF_TOKEN`");
}

#[test]
fn missing_revisions_and_files_are_named() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let error = client.snapshot(&repo(), "v2").expect_err("unknown");
    check(
        &error,
        ErrorKind::NotPublished,
        "`org/model` has no revision `v2`",
        "a branch",
    );
    let snapshot = client.snapshot(&repo(), "main").expect("there");
    let error = snapshot.file("weights.safetensors").expect_err("unknown");
    check(
        &error,
        ErrorKind::NotPublished,
        "no file `weights.safetensors`",
        "its whole path",
    );
    mirror.sabotage(|asked| match asked.path.contains("resolve") {
        true => Fault::Status(404, "X-Error-Code", "EntryNotFound"),
        false => Fault::Nothing,
    });
    let error = fetch(&client).expect_err("it is gone meanwhile");
    check(
        &error,
        ErrorKind::NotPublished,
        "no file `config.json`",
        "see what is there",
    );
}

#[test]
fn a_server_that_wants_fewer_requests_is_waited_for_within_bounds() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let n_asked = AtomicUsize::new(0);
    mirror.sabotage(move |_| match n_asked.fetch_add(1, Ordering::Relaxed) {
        0 => Fault::Status(429, "Retry-After", "1"),
        _ => Fault::Nothing,
    });
    let start = Instant::now();
    fetch(&hub(&mirror, dir.path())).expect("it waits");
    assert!(start.elapsed() >= Duration::from_secs(1));

    mirror.asked();
    mirror.sabotage(|_| Fault::Status(429, "Retry-After", "3600"));
    let error = fetch(&hub(&mirror, dir.path())).expect_err("too long");
    check(&error, ErrorKind::RateLimited, "for 3600 s", "`HF_TOKEN`");
    assert_eq!(mirror.asked().len(), 1);

    mirror.sabotage(|_| Fault::Status(429, "X-None", ""));
    let error = fetch(&hub(&mirror, dir.path())).expect_err("it never ends");
    check(&error, ErrorKind::RateLimited, "status 429", "later");
    assert_eq!(mirror.asked().len(), 5);
}

#[test]
fn a_server_that_fails_for_long_is_an_error() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let check_fault = |fault: Fault, what: &str| {
        mirror.sabotage(move |asked| match asked.server {
            crate::mirror::Server::Store => fault,
            _ => Fault::Nothing,
        });
        let error = fetch(&client).expect_err("it never ends");
        check(&error, ErrorKind::Network, what, "is kept");
        // Signatures of the store are not shown.
        assert!(!error.to_string().contains("signature"), "{error}");
    };
    check_fault(Fault::CutAfter(0), "the connection was cut");
    check_fault(Fault::Hang, "no answer for 0 s");
    check_fault(Fault::Status(500, "X-None", ""), "status 500");
}

/// A commit that was asked for by its name is the one that comes.
#[test]
fn another_commit_is_refused() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let commit = content().repos[REPO].commit();
    assert!(hub(&mirror, dir.path()).snapshot(&repo(), &commit).is_ok());
    let settings = Settings {
        endpoint: format!("{}/api/models/{REPO}/revision/main?", mirror.endpoint),
        ..settings(&mirror, dir.path())
    };
    let client = Hub::new(settings, Arc::new(|| false));
    let error = client
        .snapshot(&repo(), &"0".repeat(40))
        .expect_err("another");
    check(
        &error,
        ErrorKind::Network,
        "or another one",
        "check the address",
    );
}

#[test]
fn an_address_that_leads_nowhere_is_an_error_at_once() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let endpoint = format!("http://{}", closed.local_addr().expect("it listens"));
    drop(closed);
    let long = Duration::from_secs(60);
    let settings = Settings {
        endpoint,
        first_pause: long,
        ..settings(&mirror, dir.path())
    };
    let error = fetch(&Hub::new(settings, Arc::new(|| false))).expect_err("nobody listens");
    check(
        &error,
        ErrorKind::Network,
        "refused",
        "check the connection",
    );
}

#[test]
fn what_is_no_hub_is_said() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    // The bucket answers what the hub was asked for.
    let settings = Settings {
        endpoint: format!("{}/?list-type=2&prefix=x&y=", mirror.neuronpedia),
        ..settings(&mirror, dir.path())
    };
    let error = fetch(&Hub::new(settings, Arc::new(|| false))).expect_err("XML");
    check(
        &error,
        ErrorKind::Network,
        "is not what a hub says",
        "check the address",
    );
}

/// Only the operating system can fill a disk: `/dev/full` is one that is.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let snapshot = client.snapshot(&repo(), "main").expect("there");
    let hash = snapshot.files["sub dir/weights.safetensors"].hash.hex();
    let blobs = dir.path().join("hub/models--org--model/blobs");
    std::fs::create_dir_all(&blobs).expect("a folder of our own");
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{hash}.incomplete")))
        .expect("a link");
    let error = fetch(&client).expect_err("full");
    check(
        &error,
        ErrorKind::DiskFull,
        "cannot write",
        "free some space",
    );
}
