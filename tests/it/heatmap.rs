//! `features --heatmap`: what is drawn, and where it is written.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use crate::bad_input;
use crate::command_line::{names, run, stdout, text};
use crate::fixture::temporary_root;

const CARROT: &str = "assets/pictures/carrot-mushroom.png";

fn folder(name: &str) -> PathBuf {
    temporary_root().join("heatmap").join(name)
}

fn read(path: &Path) -> RgbImage {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    image::open(path).expect("a PNG").into_rgb8()
}

/// README's heat map is what its command draws. Activations differ in their last digits from
/// processor to processor, and one near its threshold may be off, so a patch may differ.
#[test]
fn the_readmes_heat_map() {
    let dir = folder("readme");
    stdout(&["features", "--top", "1", "--heatmap", text(&dir), CARROT]);
    assert_eq!(names(&dir), ["carrot-mushroom-1-430.png"]);
    let drawn = read(&dir.join("carrot-mushroom-1-430.png"));
    let reference = read("assets/heatmap.png".as_ref());
    assert_eq!(drawn.dimensions(), reference.dimensions());
    let differs =
        |(a, b): &(&Rgb<u8>, &Rgb<u8>)| a.0.iter().zip(b.0).any(|(a, b)| a.abs_diff(b) > 8);
    let n_different = drawn
        .pixels()
        .zip(reference.pixels())
        .filter(differs)
        .count();
    let n_pixels = drawn.pixels().len();
    assert!(
        n_different * 100 < n_pixels,
        "{n_different} of {n_pixels} pixels differ"
    );
}

#[test]
fn names_and_what_stays() {
    let dir = folder("names");
    let other = folder("other");
    std::fs::create_dir_all(&other).expect("a folder of our own");
    let same_name = other.join("carrot-mushroom.png");
    std::fs::copy("assets/pictures/boat.png", &same_name).expect("a file of our own");
    let args = [
        "features",
        "-q",
        "--top",
        "2",
        "--heatmap",
        text(&dir),
        CARROT,
        text(&same_name),
    ];
    stdout(&args);
    let written = names(&dir);
    assert_eq!(written.len(), 4, "{written:?}");
    assert_eq!(written[0], "carrot-mushroom-1-430.png");
    let of_other = ["carrot-mushroom-2-1-", "carrot-mushroom-2-2-"];
    for start in of_other {
        let n_named = written
            .iter()
            .filter(|name| name.starts_with(start))
            .count();
        assert_eq!(n_named, 1, "{written:?}");
    }
    // A second time they are there already.
    bad_input::check(&args, 1, &["exists", "carrot-mushroom-1-430.png", "hint: "]);
    stdout(&[&args[..], &["--force"]].concat());
    assert_eq!(names(&dir), written);
}

/// A feature that is active on the text only has no heat map, which is said.
#[test]
fn features_of_the_text() {
    let dir = folder("text");
    let args = [
        "features",
        "--over",
        "0",
        "--top",
        "50",
        "--heatmap",
        text(&dir),
        CARROT,
    ];
    let output = run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let n_listed = String::from_utf8_lossy(&output.stdout).lines().count() - 2;
    let said = stderr.lines().find(|line| line.contains("no heat map"));
    let n_without = said.expect("a warning").split(", ").count();
    assert_eq!(names(&dir).len() + n_without, n_listed, "{stderr}");
}
