//! Image embeddings on the disk are those of the encoder, and no others.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{ImageCache, ImagePrep, Picture, SessionOptions, VisionGraph};

use crate::command_line::program;
use crate::fixture::{Fixture, exact_options, image_rows, picture, temporary_root};

fn options(dir: &Path) -> SessionOptions {
    SessionOptions {
        image_cache: Some(ImageCache::new(dir.to_owned(), 100 << 20)),
        ..exact_options()
    }
}

fn embeddings(options: SessionOptions, picture: &Picture) -> Vec<f32> {
    let session = Fixture::Demo.session(TensorType::F32, options);
    let image = session.encode_image(picture);
    image_rows(&image.expect("the picture is encoded")).to_vec()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("readable").path());
    let is_kept = |path: &PathBuf| path.extension().is_some_and(|name| name == "image-rows");
    // That a device was checked is kept as a single number, behind its checksum.
    let n_bytes = |path: &PathBuf| std::fs::metadata(path).expect("readable").len();
    let is_note = |path: &PathBuf| n_bytes(path) == 32 + 4;
    paths
        .filter(|path| is_kept(path) && !is_note(path))
        .collect()
}

fn n_files(dir: &Path) -> usize {
    files(dir).len()
}

#[test]
fn what_is_kept_is_what_was_encoded() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let pictures = ["00.png", "01.png"].map(|name| Fixture::Demo.open_picture(name));
    for (i, picture) in pictures.iter().enumerate() {
        let encoded = embeddings(exact_options(), picture);
        for _ in 0..2 {
            assert_eq!(embeddings(options(dir.path()), picture), encoded);
            assert_eq!(n_files(dir.path()), i + 1);
        }
    }
}

/// What changes the embeddings changes the file's name.
#[test]
fn other_settings_are_other_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tall = image::RgbImage::from_fn(60, 100, |x, y| image::Rgb([x as u8, y as u8, 90]));
    let picture = Picture::from_rgb(tall);
    let one = options(dir.path());
    let padded = SessionOptions {
        image_prep: Some(ImagePrep::Pad),
        ..one.clone()
    };
    let uncorrected = SessionOptions {
        vision_graph: VisionGraph::AsLlamaCpp,
        ..one.clone()
    };
    for (i, options) in [one, padded, uncorrected].into_iter().enumerate() {
        let without = SessionOptions {
            image_cache: None,
            ..options.clone()
        };
        assert_eq!(embeddings(options, &picture), embeddings(without, &picture));
        assert_eq!(n_files(dir.path()), i + 1);
    }
}

/// A projector that was replaced by another one of the same size is another one.
#[test]
fn another_projector_is_another_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let picture = Fixture::Demo.open_picture("00.png");
    let models = Fixture::Demo.converted(TensorType::F32);
    let copies = temporary_root().join("projectors");
    std::fs::create_dir_all(&copies).expect("a folder of our own");
    let open = |mmproj: &Path| {
        let files =
            llava_sae_cpp::ModelFiles::find(Some(&models), None, Some(mmproj.into()), Vec::new());
        let files = files.expect("all files are there");
        let session = llava_sae_cpp::Session::open(&files, options(dir.path()));
        let image = session.expect("it loads").encode_image(&picture);
        image_rows(&image.expect("the picture is encoded")).to_vec()
    };
    let original = models.join("mmproj-f32.gguf");
    let copy = copies.join("mmproj.gguf");
    std::fs::copy(&original, &copy).expect("our own folder");
    let time = std::fs::metadata(&copy).and_then(|metadata| metadata.modified());
    let time = time.expect("a time");
    let first = open(&copy);
    // The projector's bias, in the middle of the file.
    let file = gguf_tools::gguf::Gguf::open(&copy).expect("a right file");
    let offset = file
        .tensor("mm.2.bias")
        .expect("a projector has one")
        .offset as usize;
    let mut bytes = std::fs::read(&copy).expect("readable");
    bytes[offset..offset + 4].copy_from_slice(&100.0_f32.to_le_bytes());
    std::fs::write(&copy, bytes).expect("our own folder");
    let file = std::fs::File::options().append(true).open(&copy);
    let set = file.and_then(|file| file.set_modified(time));
    set.expect("our own file");
    assert_ne!(open(&copy), first);
    assert_eq!(n_files(dir.path()), 2);
}

#[cfg(target_os = "linux")] // where `XDG_CACHE_HOME` says where the cache is
#[test]
fn the_command_keeps_images_unless_told_otherwise() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let images = dir.path().join("llava-sae-cpp/images");
    let run = |options: &[&str]| {
        let command = ["-q", "-n", "4", "--json", picture()];
        let mut program = program();
        program.env("XDG_CACHE_HOME", dir.path());
        let output = program.args([&command[..], options].concat()).output();
        let output = output.expect("the program starts");
        assert!(output.status.success());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["original"]["text"].clone()
    };
    let text = run(&["--image-cache", "0"]);
    assert_eq!(n_files(&images), 0);
    assert_eq!(run(&[]), text);
    assert_eq!(n_files(&images), 1);
    assert_eq!(run(&[]), text);
    // A damaged file is replaced, and a folder that cannot be written is no error.
    let file = files(&images).pop().expect("one file");
    let whole = std::fs::read(&file).expect("readable");
    std::fs::write(&file, &whole[..100]).expect("writable");
    assert_eq!(run(&[]), text);
    assert_eq!(std::fs::read(&file).expect("readable"), whole);
    std::fs::remove_dir_all(&images).expect("our own folder");
    std::fs::write(&images, "a file in its place").expect("our own folder");
    assert_eq!(run(&[]), text);
}

/// A run through many pictures would push out those that are looked at again and again.
#[cfg(target_os = "linux")]
#[test]
fn runs_through_many_pictures_keep_none_and_use_what_is_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let images = dir.path().join("llava-sae-cpp/images");
    let pictures = dir.path().join("pictures");
    std::fs::create_dir(&pictures).expect("our own folder");
    for name in ["apple.png", "boat.png"] {
        let source = Path::new("assets/pictures").join(name);
        std::fs::copy(source, pictures.join(name)).expect("a copy");
    }
    let path = |name: &str| dir.path().join(name).to_str().expect("plain").to_owned();
    let run = |args: &[&str]| {
        let mut program = program();
        program.env("XDG_CACHE_HOME", dir.path());
        let output = program.args(args).output().expect("the program starts");
        assert!(output.status.success(), "{args:?}");
    };
    let [folder, apple, boat] = ["pictures", "pictures/apple.png", "pictures/boat.png"].map(path);
    let scan = |target: &str| {
        run(&["scan", "-q", &folder, "-o", &path(target)]);
        std::fs::read(path(target)).expect("written")
    };
    let scanned = scan("one.parquet");
    run(&["baseline", "-q", &folder, "-o", &path("sae.gguf")]);
    run(&["metrics", "-q", &apple, &boat]);
    assert_eq!(n_files(&images), 0);

    run(&["-q", "-n", "1", &apple]);
    assert_eq!(scan("two.parquet"), scanned);
    assert_eq!(n_files(&images), 1);
    // Zeros under a checksum of their own: other features say that they were read.
    let file = files(&images).pop().expect("one file");
    let n_bytes = std::fs::metadata(&file).expect("there").len() as usize - 32;
    let zeros = vec![0; n_bytes];
    let forged = [&blake3::hash(&zeros).as_bytes()[..], &zeros].concat();
    std::fs::write(&file, forged).expect("our own folder");
    assert_ne!(scan("three.parquet"), scanned);
}
