//! The hub's client against a mirror on loopback.

#[path = "../mirror/mod.rs"]
mod mirror;

mod downloads;
mod labels;
mod refusals;
mod select;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gguf_tools::Result;
use llava_sae_hub::{Hub, RepoFile, RepoId, Settings, Snapshot, Token};

use mirror::{Content, Mirror, Repo};

/// A hub whose cache is in `dir`, and which does not wait for long.
fn settings(mirror: &Mirror, dir: &Path) -> Settings {
    Settings {
        endpoint: mirror.endpoint.clone(),
        cache: dir.join("hub"),
        token: None,
        is_offline: false,
        neuronpedia: mirror.neuronpedia.clone(),
        labels_cache: dir.join("neuronpedia"),
        silence: Duration::from_millis(300),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_secs(2),
    }
}

fn hub(mirror: &Mirror, dir: &Path) -> Hub {
    Hub::new(settings(mirror, dir), Arc::new(|| false))
}

fn with_token(mirror: &Mirror, dir: &Path) -> Hub {
    let token = Token::new(mirror::TOKEN);
    Hub::new(
        Settings {
            token,
            ..settings(mirror, dir)
        },
        Arc::new(|| false),
    )
}

fn offline(mirror: &Mirror, dir: &Path) -> Hub {
    let settings = Settings {
        is_offline: true,
        ..settings(mirror, dir)
    };
    Hub::new(settings, Arc::new(|| false))
}

/// Bytes that compress to nothing and repeat nowhere.
fn noise(n_bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(n_bytes).collect()
}

const REPO: &str = "org/model";
const LARGE: usize = 300_000;

/// A repository with a small file and a large one.
fn content() -> Content {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("sub dir/weights.safetensors", noise(LARGE)),
    ];
    let repo = Repo {
        files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into(),
        licence: Some("gemma"),
        ..Repo::default()
    };
    Content {
        repos: [(REPO.to_owned(), repo)].into(),
        ..Content::default()
    }
}

fn repo() -> RepoId {
    REPO.parse().expect("a repository")
}

/// Fetches all of the repository.
fn fetch(hub: &Hub) -> Result<Snapshot> {
    let snapshot = hub.snapshot(&repo(), "main")?;
    let files: Vec<&RepoFile> = snapshot.files.values().collect();
    hub.fetch(&snapshot, &files, &mut |_, _| {
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(snapshot)
}

/// Checks that a snapshot has just what the mirror has.
fn check_contents(snapshot: &Snapshot) {
    for (name, bytes) in &content().repos[REPO].files {
        let found = std::fs::read(snapshot.dir.join(name)).expect(name);
        assert!(found == *bytes, "{name}");
    }
}
