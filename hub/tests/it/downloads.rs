//! Downloads: the cache's layout, resumed and damaged transfers, several processes, offline.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gguf_tools::ErrorKind;
use llava_sae_hub::{Hub, RepoFile};

use crate::mirror::{Asked, Fault, Mirror, Server, TOKEN};
use crate::*;

/// All files below `dir`, by their paths in it, links as such.
fn tree(dir: &Path) -> Vec<String> {
    fn look(dir: &Path, name: &str, found: &mut Vec<String>) {
        for entry in dir.read_dir().expect("a folder") {
            let path = entry.expect("readable").path();
            let name = format!(
                "{name}/{}",
                path.file_name().expect("a name").to_string_lossy()
            );
            match path.is_dir() {
                true => look(&path, &name, found),
                false => found.push(name),
            }
        }
    }
    let mut found = Vec::new();
    look(dir, "", &mut found);
    found.sort();
    found
}

fn blobs(dir: &Path) -> PathBuf {
    dir.join("hub/models--org--model/blobs")
}

/// The hashes are those of `git hash-object` and `sha256sum`; the layout is huggingface_hub's.
#[test]
fn the_cache_is_laid_out_as_other_clients_do() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let snapshot = fetch(&hub(&mirror, dir.path())).expect("all is there");
    check_contents(&snapshot);
    assert_eq!(snapshot.licence.as_deref(), Some("gemma"));
    let commit = content().repos[REPO].commit();
    assert_eq!(snapshot.commit, commit);
    let small = "9e26dfeeb6e641a33dae4961196235bdb965b21b"; // of `{}`
    let large = snapshot.files["sub dir/weights.safetensors"]
        .hash
        .hex()
        .to_owned();
    let mut expected = vec![
        format!("/.locks/models--org--model/{small}.lock"),
        format!("/.locks/models--org--model/{large}.lock"),
        format!("/models--org--model/blobs/{large}"),
        format!("/models--org--model/blobs/{small}"),
        "/models--org--model/refs/main".to_owned(),
        format!("/models--org--model/snapshots/{commit}/config.json"),
        format!("/models--org--model/snapshots/{commit}/sub dir/weights.safetensors"),
    ];
    expected.sort();
    assert_eq!(tree(&dir.path().join("hub")), expected);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(snapshot.dir.join("sub dir/weights.safetensors")).expect("a link"),
        PathBuf::from(format!("../../../blobs/{large}"))
    );
    let asked = mirror.asked();
    assert_eq!(asked.len(), 4, "{asked:?}");

    // What is there is not fetched again.
    fetch(&hub(&mirror, dir.path())).expect("all is there");
    assert_eq!(mirror.asked().len(), 1);
}

/// Whatever the answers of the store, the file is whole in the end, and what had arrived is not sent again.
#[test]
fn a_transfer_goes_on_where_it_broke_off() {
    let check = |fault: Fault, n_sent_at_most: usize| {
        let mirror = Mirror::start(content());
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut n_asked = 0;
        mirror.sabotage(move |asked| {
            n_asked += usize::from(asked.server == Server::Store);
            match asked.server == Server::Store && n_asked <= 3 {
                true => fault,
                false => Fault::Nothing,
            }
        });
        check_contents(&fetch(&hub(&mirror, dir.path())).expect("it arrives"));
        let sent = mirror
            .asked()
            .into_iter()
            .filter(|asked| asked.server == Server::Store);
        let starts: Vec<_> = sent.map(|asked| asked.start.unwrap_or(0)).collect();
        assert_eq!(starts.len(), 4, "{fault:?}: {starts:?}");
        let n_sent: usize = LARGE - starts.last().expect("several");
        assert!(n_sent <= n_sent_at_most, "{fault:?}: {starts:?}");
    };
    check(Fault::CutAfter(70_000), LARGE - 3 * 70_000);
    check(Fault::HangAfter(70_000), LARGE - 3 * 70_000);
    check(Fault::CutAfter(0), LARGE);
    check(Fault::Hang, LARGE);
    check(Fault::Status(503, "X-None", ""), LARGE);
    check(Fault::Status(429, "Retry-After", "0"), LARGE);
}

#[test]
fn a_process_goes_on_where_another_was_ended() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let snapshot = client.snapshot(&repo(), "main").expect("there");
    let files: Vec<&RepoFile> = snapshot.files.values().collect();
    assert_eq!(client.n_missing_bytes(&snapshot, &files), LARGE as u64 + 2);
    mirror.sabotage(|asked| match asked.server {
        Server::Store => Fault::CutAfter(100_000),
        _ => Fault::Nothing,
    });
    let stopped = client.fetch(&snapshot, &files, &mut |done, _| match done > 50_000 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    assert!(stopped.expect_err("it was stopped").is_interrupted());
    let n_missing = client.n_missing_bytes(&snapshot, &files) as usize;
    assert!(
        (LARGE - 100_000..LARGE - 50_000).contains(&n_missing),
        "{n_missing}"
    );

    mirror.sabotage(|_| Fault::Nothing);
    mirror.asked();
    let mut last = (0, 0);
    let again = hub(&mirror, dir.path());
    let mut progress = |done, total| {
        last = (done, total);
        ControlFlow::Continue(())
    };
    again
        .fetch(&snapshot, &files, &mut progress)
        .expect("it goes on");
    assert_eq!(last, (LARGE as u64 + 2, LARGE as u64 + 2));
    check_contents(&snapshot);
    let asked = mirror.asked();
    assert_eq!(
        asked.last().and_then(|asked| asked.start),
        Some(LARGE - n_missing)
    );
    assert_eq!(again.n_missing_bytes(&snapshot, &files), 0);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut n_asked = 0;
    mirror.sabotage(move |asked| {
        n_asked += usize::from(asked.server == Server::Store);
        match (asked.server, n_asked) {
            (Server::Store, 1) => Fault::CutAfter(100_000),
            _ => Fault::IgnoredRange,
        }
    });
    check_contents(&fetch(&hub(&mirror, dir.path())).expect("it arrives"));
}

#[test]
fn what_arrives_damaged_is_an_error_and_not_kept() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    mirror.sabotage(|asked| match asked.server {
        Server::Store => Fault::WrongByte,
        _ => Fault::Nothing,
    });
    let error = fetch(&hub(&mirror, dir.path())).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(
        error
            .to_string()
            .contains("`sub dir/weights.safetensors` of `org/model`"),
        "{error}"
    );
    assert_eq!(
        fs::read_dir(blobs(dir.path())).expect("a folder").count(),
        1
    );

    // The small file comes from the hub itself.
    let dir = tempfile::tempdir().expect("a temporary folder");
    mirror.sabotage(|asked| match asked.path.contains("config.json") {
        true => Fault::WrongByte,
        false => Fault::Nothing,
    });
    let error = fetch(&hub(&mirror, dir.path())).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    mirror.sabotage(|_| Fault::Nothing);
    check_contents(&fetch(&hub(&mirror, dir.path())).expect("it arrives"));
}

/// Left by another program, or by a disk: the beginning of a blob, a whole one, one that is too long.
#[test]
fn what_lies_damaged_in_the_cache_is_fetched_again() {
    let mirror = Mirror::start(content());
    let check = |ending: &str, n_bytes: usize| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let snapshot = hub(&mirror, dir.path())
            .snapshot(&repo(), "main")
            .expect("there");
        let hash = snapshot.files["sub dir/weights.safetensors"].hash.hex();
        fs::create_dir_all(blobs(dir.path())).expect("a folder of our own");
        let path = blobs(dir.path()).join(format!("{hash}{ending}"));
        fs::write(&path, vec![7; n_bytes]).expect("writable");
        check_contents(&fetch(&hub(&mirror, dir.path())).expect("it arrives"));
        assert_eq!(
            fs::read_dir(blobs(dir.path())).expect("a folder").count(),
            2,
            "{ending}"
        );
    };
    check(".incomplete", 1000);
    check(".incomplete", LARGE);
    check(".incomplete", LARGE + 1);
    check("", LARGE);
    check("", 1000);
    check("", 0);
}

/// Without links, other clients keep a snapshot's files as they are.
#[test]
fn a_snapshot_without_links_is_used() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let snapshot = hub(&mirror, dir.path())
        .snapshot(&repo(), "main")
        .expect("there");
    for (name, bytes) in &content().repos[REPO].files {
        let path = snapshot.dir.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder of our own");
        fs::write(path, bytes).expect("writable");
    }
    mirror.asked();
    fetch(&hub(&mirror, dir.path())).expect("all is there");
    assert_eq!(mirror.asked().len(), 1);
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| check_contents(&fetch(&hub(&mirror, dir.path())).expect("it arrives")));
        }
    });
    let n_sent = mirror
        .asked()
        .iter()
        .filter(|asked| asked.server == Server::Store)
        .count();
    assert_eq!(n_sent, 1);
}

#[test]
fn offline_uses_what_is_there() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let error = fetch(&offline(&mirror, dir.path())).expect_err("nothing is there");
    assert_eq!(error.kind(), ErrorKind::Offline);
    assert!(mirror.asked().is_empty());

    let online = fetch(&hub(&mirror, dir.path())).expect("all is there");
    mirror.asked();
    let snapshot = fetch(&offline(&mirror, dir.path())).expect("all is there");
    assert_eq!(
        (&snapshot.commit, &snapshot.files),
        (&online.commit, &online.files)
    );
    check_contents(&snapshot);

    // A commit may be asked for by its name; another one is not there.
    let client = offline(&mirror, dir.path());
    assert!(client.snapshot(&repo(), &online.commit).is_ok());
    let error = client.snapshot(&repo(), "v2").expect_err("not there");
    assert_eq!(error.kind(), ErrorKind::Offline);
    assert!(mirror.asked().is_empty());
}

#[test]
fn downloads_are_dropped() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(&mirror, dir.path());
    let snapshot = fetch(&client).expect("all is there");
    let large = [&snapshot.files["sub dir/weights.safetensors"]];
    client.drop_downloads(&snapshot, &large).expect("removable");
    assert_eq!(client.n_missing_bytes(&snapshot, &large), LARGE as u64);
    assert_eq!(
        fs::read_dir(blobs(dir.path())).expect("a folder").count(),
        1
    );
    client
        .drop_downloads(&snapshot, &large)
        .expect("it is gone already");
}

#[test]
fn the_token_reaches_no_other_server() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    fetch(&with_token(&mirror, dir.path())).expect("all is there");
    let has_token =
        |asked: &Asked| asked.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
    let asked = mirror.asked();
    for asked in &asked {
        assert_eq!(has_token(asked), asked.server == Server::Hub, "{asked:?}");
    }
    assert!(asked.iter().any(|asked| asked.server == Server::Store));
}

#[test]
fn pauses_and_transfers_can_be_stopped() {
    let mirror = Mirror::start(content());
    let dir = tempfile::tempdir().expect("a temporary folder");
    mirror.sabotage(|_| Fault::Status(429, "Retry-After", "2"));
    let n_looks = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_looks);
    let is_cancelled = move || counter.fetch_add(1, Ordering::Relaxed) > 2;
    let client = Hub::new(settings(&mirror, dir.path()), Arc::new(is_cancelled));
    assert!(fetch(&client).expect_err("it was stopped").is_interrupted());
    assert_eq!(mirror.asked().len(), 1);
}
