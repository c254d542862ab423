//! What `scan` takes from a folder, what it leaves out, and what it says of that.

use std::fs;
use std::path::Path;

use crate::command_line::{run, text};
use crate::scan::{add, folder, rows, scan, stderr};

/// The paths in the table of a scan of `dir`, and what it says.
fn scanned(dir: &Path, args: &[&str]) -> (Vec<String>, String) {
    let file = dir.with_extension("parquet");
    let output = scan(dir, &file, &[args, &["--force"]].concat());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let mut paths: Vec<_> = rows(&file).into_iter().map(|row| row.path).collect();
    paths.dedup();
    (paths, said)
}

fn write(dir: &Path, to: &str, bytes: &[u8]) {
    let target = dir.join(to);
    fs::create_dir_all(target.parent().expect("it is in a folder")).expect("a folder of our own");
    fs::write(target, bytes).expect("a file of our own");
}

/// What Macs, NAS and notebooks leave beside pictures.
#[test]
fn litter_is_left_out_and_counted() {
    let dir = folder("litter/pictures");
    add("00.png", &dir, "cat/1.png");
    write(&dir, "cat/._1.png", b"\0\x05\x16\x07");
    write(&dir, "cat/.DS_Store", b"\0\0\0\x01Bud1");
    write(&dir, "cat/Thumbs.db", b"\xd0\xcf\x11\xe0");
    let kept = [
        "@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
        ".ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/1.png",
        ".Trash-1000/files/1.png",
        "lost+found/1.png",
        "#recycle/1.png",
        "$RECYCLE.BIN/1.png",
        ".@__thumb/1.png",
    ];
    for path in kept {
        add("02.png", &dir.join("cat"), path);
    }
    let (paths, said) = scanned(&dir, &[]);
    assert_eq!(paths, ["cat/1.png"], "{said}");
    let line = "left out, files and folders that are hidden or the system's: 11\n";
    assert!(said.contains(line), "{said}");
    let (_, said) = scanned(&dir, &["-q"]);
    assert!(said.is_empty(), "{said}");

    // Names that only look alike, and a scanned folder that is hidden itself.
    let dir = folder("litter/.pictures");
    for path in ["@friend/1.png", "#cats/1.png", "lost/1.png", "_1.png"] {
        add("00.png", &dir, path);
    }
    let (paths, said) = scanned(&dir, &["-q"]);
    assert_eq!(
        paths,
        ["#cats/1.png", "@friend/1.png", "_1.png", "lost/1.png"],
        "{said}"
    );
}

/// Pictures are known by how they begin, where their names do not tell.
#[test]
fn names_that_do_not_tell() {
    let dir = folder("names/pictures");
    let jpeg = {
        let image = image::open("assets/pictures/apple.png").expect("a committed file");
        let mut bytes = std::io::Cursor::new(Vec::new());
        image
            .to_rgb8()
            .write_to(&mut bytes, image::ImageFormat::Jpeg)
            .expect("in memory");
        bytes.into_inner()
    };
    for name in [
        "a.jpg",
        "b.jfif",
        "c.jpe",
        "d.JPG_large",
        "e",
        "f.mpo",
        "g.heic",
    ] {
        write(&dir, name, &jpeg);
    }
    add("02.png", &dir, "h.txt");
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    let avif = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf";
    write(&dir, "i.heic", heic);
    write(&dir, "j.HIF", heic);
    write(&dir, "k.avif", avif);
    write(&dir, "l", b"\xff\x0a jxl");
    write(&dir, "m.CR2", b"II*\0\x10\0\0\0CR\x02\0");
    write(&dir, "n.svg", b"<?xml version='1.0'?>\n<svg xmlns='x'/>");
    write(&dir, "o.md", b"BM is how some texts begin, and no bitmap");
    write(&dir, "p.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42");
    write(&dir, "q", b"");
    for args in [&["-q"][..], &[]] {
        let (paths, said) = scanned(&dir, args);
        let expected = [
            "a.jpg",
            "b.jfif",
            "c.jpe",
            "d.JPG_large",
            "e",
            "f.mpo",
            "g.heic",
            "h.txt",
        ];
        assert_eq!(paths, expected, "{said}");
        let line = "warning: left out, pictures of types that are not read: 2 HEIC, 1 AVIF, 1 CR2, 1 JPEG XL, 1 SVG; convert";
        assert!(said.contains(line), "{said}");
        let line = "left out, other files: 1 .md, 1 .mp4, 1 without an extension\n";
        assert_eq!(said.contains(line), args.is_empty(), "{said}");
    }

    // A folder of nothing else says why it has no pictures.
    let dir = folder("names/heic");
    write(&dir, "1.heic", heic);
    let file = dir.with_extension("parquet");
    let said = stderr(&run(&["scan", "-q", text(&dir), "-o", text(&file)]));
    assert!(
        said.contains("1 HEIC; convert") && said.contains("no pictures in"),
        "{said}"
    );
}

/// A file that is called a picture and is something else says what it is.
#[test]
fn files_that_are_called_pictures() {
    let dir = folder("called");
    let cases: [(&[u8], &str); 5] = [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "of type HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1", "of type AVIF"),
        (b"\n<!DOCTYPE html><title>404</title>", "of type HTML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer",
        ),
        (b"%PDF-1.7\n", "of type PDF"),
    ];
    for (bytes, word) in cases {
        write(&dir, "a.jpg", bytes);
        let output = run(&[text(&dir.join("a.jpg"))]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(word) && said.contains("hint: convert"),
            "{said}"
        );
    }
}

/// Names in another encoding are read, and shown apart from each other.
#[cfg(target_os = "linux")] // where names are bytes
#[test]
fn names_that_are_not_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = folder("bytes/pictures");
    let names: [&[u8]; 3] = [
        b"caf\xe9/\xff1.png",
        b"caf\xe9/\xfe1.png",
        b"caf\xe8/b\\\xff",
    ];
    for name in names {
        let target = dir.join(OsStr::from_bytes(name));
        let parent = target.parent().expect("it is in a folder");
        fs::create_dir_all(parent).expect("a folder of our own");
        fs::copy("assets/pictures/apple.png", target).expect("a copy");
    }
    add("00.png", &dir, "café/1.png");
    for jobs in ["1", "2"] {
        let (paths, said) = scanned(&dir, &["--jobs", jobs]);
        let expected = [
            r"caf\xE8/b\\\xFF",
            r"caf\xE9/\xFE1.png",
            r"caf\xE9/\xFF1.png",
            "café/1.png",
        ];
        assert_eq!(paths, expected, "{said}");
        assert!(!said.contains("skipped"), "{said}");
    }
    let classes: Vec<_> = rows(&dir.with_extension("parquet"))
        .into_iter()
        .filter_map(|row| row.class)
        .collect();
    assert!(classes.contains(&r"caf\xE9".to_owned()));

    // Two that would be shown alike: one is left out, and that is said.
    write(&dir, r"caf\xE9/\xFF1.png", b"");
    let (_, said) = scanned(&dir, &["-q"]);
    assert!(said.contains("two files have the path"), "{said}");
}

/// Circles are left, and what cannot be read does not end a scan.
#[cfg(unix)]
#[test]
fn links_and_folders_that_cannot_be_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = folder("links/pictures");
    add("00.png", &dir, "a/1.png");
    symlink("..", dir.join("a/up")).expect("a link");
    symlink("b", dir.join("b")).expect("a link to itself");
    symlink("nowhere", dir.join("c")).expect("a link to nothing");
    symlink("nowhere.png", dir.join("d.png")).expect("a link to nothing");
    let (paths, said) = scanned(&dir, &["-q"]);
    assert_eq!(paths, ["a/1.png"], "{said}");
    let warnings: Vec<_> = said.lines().collect();
    assert_eq!(warnings.len(), 5, "{said}");
    let says = |words: &[&str]| {
        let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
        warnings.iter().any(has_all)
    };
    assert!(
        says(&["cannot read", "/b`"]) && says(&["cannot read", "/c`"]),
        "{said}"
    );
    assert!(says(&["left out", "cannot be read: 2"]), "{said}");
    assert!(
        says(&["skipped: ", "d.png"]) && says(&["skipped 1 of 2"]),
        "{said}"
    );

    let dir = folder("links/locked");
    add("00.png", &dir, "a/1.png");
    add("00.png", &dir, "b/1.png");
    fs::set_permissions(dir.join("b"), fs::Permissions::from_mode(0o000)).expect("our own folder");
    let is_locked = fs::read_dir(dir.join("b")).is_err();
    let scanned = is_locked.then(|| scanned(&dir, &["-q"]));
    fs::set_permissions(dir.join("b"), fs::Permissions::from_mode(0o755)).expect("our own folder");
    let Some((paths, said)) = scanned else {
        eprintln!("skipped: root reads any folder; run it as another user");
        return;
    };
    assert_eq!(paths, ["a/1.png"], "{said}");
    assert!(said.contains("cannot be read: 1"), "{said}");
}
