//! Image embeddings on the disk are those of the encoder, and no others.

use std::path::Path;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{ImageCache, ImagePrep, Picture, SessionOptions, VisionGraph};

use crate::command_line::program;
use crate::fixture::{Fixture, exact_options, picture, temporary_root};

fn options(dir: &Path) -> SessionOptions {
    SessionOptions {
        image_cache: Some(ImageCache::new(dir.to_owned(), 100 << 20)),
        ..exact_options()
    }
}

fn embeddings(options: SessionOptions, picture: &Picture) -> Vec<f32> {
    let mut session = Fixture::Demo.session(TensorType::F32, options);
    let image = session.encode_image(picture);
    image.expect("the picture is encoded").rows.to_vec()
}

fn n_files(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
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
        image_prep: ImagePrep::Pad,
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
        let files = llava_sae_cpp::ModelFiles::find(Some(&models), None, Some(mmproj.into()), None);
        let files = files.expect("all files are there");
        let session = llava_sae_cpp::Session::open(&files, options(dir.path()));
        let image = session.expect("it loads").encode_image(&picture);
        image.expect("the picture is encoded").rows.to_vec()
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
    let file = std::fs::read_dir(&images).expect("there").next();
    let file = file.expect("one file").expect("readable").path();
    let whole = std::fs::read(&file).expect("readable");
    std::fs::write(&file, &whole[..100]).expect("writable");
    assert_eq!(run(&[]), text);
    assert_eq!(std::fs::read(&file).expect("readable"), whole);
    std::fs::remove_dir_all(&images).expect("our own folder");
    std::fs::write(&images, "a file in its place").expect("our own folder");
    assert_eq!(run(&[]), text);
}
