//! Files that are written beside their target and renamed.

use std::fs;
use std::io::Write;

use gguf_tools::ErrorKind;
use gguf_tools::new_file::{NewFile, Overwrite, UNFINISHED};

use crate::listing;

#[test]
fn a_file_is_whole_or_not_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("file");
    let mut file = NewFile::create(&target, Overwrite::Refuse).expect("no target yet");
    file.write_all(b"half").expect("there is room");
    let names = listing(dir.path());
    assert!(
        names.len() == 1 && names[0].ends_with(UNFINISHED),
        "{names:?}"
    );
    drop(file);
    assert_eq!(listing(dir.path()), [""; 0]);

    let file = NewFile::create(&target, Overwrite::Refuse).expect("no target yet");
    file.finish_with(b"whole").expect("there is room");
    assert_eq!(fs::read(&target).expect("it was written"), b"whole");
    let error = NewFile::create(&target, Overwrite::Refuse).expect_err("it exists");
    assert_eq!(error.kind(), ErrorKind::Exists);
    let file = NewFile::create(&target, Overwrite::Replace).expect("allowed");
    assert_eq!(fs::read(&target).expect("untouched"), b"whole");
    file.finish_with(b"new").expect("there is room");
    assert_eq!(fs::read(&target).expect("it was written"), b"new");
    assert_eq!(listing(dir.path()), ["file"]);
}

#[test]
fn what_came_into_being_meanwhile_stays() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let target = dir.path().join("file");
    let file = NewFile::create(&target, Overwrite::Refuse).expect("no target yet");
    fs::write(&target, "precious").expect("writable");
    let error = file.finish_with(b"new").expect_err("there is one now");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(fs::read(&target).expect("untouched"), b"precious");
    assert_eq!(listing(dir.path()), ["file"]);
}

#[test]
fn a_file_may_be_written_elsewhere() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (target, work) = (dir.path().join("file"), dir.path().join("work"));
    fs::create_dir(&work).expect("a folder of our own");
    let file = NewFile::create_in(&work, &target, Overwrite::Refuse).expect("no target yet");
    assert_eq!(listing(&work).len(), 1);
    file.finish_with(b"whole").expect("there is room");
    assert_eq!(listing(dir.path()), ["file", "work"]);
    assert_eq!(listing(&work), [""; 0]);
}

#[cfg(unix)]
#[test]
fn links_stay_and_caches_are_private() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().expect("a temporary folder");
    let [target, link, cached] = ["file", "link", "cached"].map(|name| dir.path().join(name));
    fs::write(&target, "old").expect("writable");
    symlink(&target, &link).expect("a link");
    let file = NewFile::create(&link, Overwrite::Replace).expect("allowed");
    file.finish_with(b"new").expect("there is room");
    assert!(link.is_symlink());
    assert_eq!(fs::read(&target).expect("it was written"), b"new");

    for content in [b"one", b"two"] {
        let file = NewFile::in_cache(&cached).expect("writable");
        file.finish_with(content).expect("there is room");
        assert_eq!(fs::read(&cached).expect("it was written"), content);
    }
    let mode = |path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(&cached), 0o600);
    // Others read outputs as far as the system's settings let them.
    let plain = dir.path().join("plain");
    fs::write(&plain, "").expect("writable");
    assert_eq!(mode(&target), mode(&plain));
}
