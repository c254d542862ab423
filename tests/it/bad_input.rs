//! Bad input: a clear error, what to do, a non-zero exit code, nothing left behind.

use std::io::Read;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::TensorType;
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use llava_sae_cpp::{Keep, KvType, PromptForm, RunOptions, SessionOptions};

use crate::command_line::{names, program, run, text};
use crate::fixture::{Fixture, exact_options, example, picture, temporary_root};

/// Runs the program, which must fail with `code` and say all of `words`.
pub(crate) fn check(args: &[&str], code: i32, words: &[&str]) {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains("error: "), "{args:?}: {stderr}");
    for word in words {
        assert!(
            stderr.contains(word),
            "{args:?} should say `{word}`: {stderr}"
        );
    }
}

fn folder(name: &str) -> PathBuf {
    let dir = temporary_root().join("bad").join(name);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    dir
}

/// The three files of the demo model.
fn good_files() -> [(&'static str, PathBuf); 3] {
    let dir = Fixture::Demo.converted(TensorType::F32);
    [
        ("--model", dir.join("model-f32.gguf")),
        ("--mmproj", dir.join("mmproj-f32.gguf")),
        ("--sae", dir.join("sae.gguf")),
    ]
}

/// Runs with one of the three files exchanged.
pub(crate) fn check_file(role: &str, bad: &Path, words: &[&str]) {
    let mut args = vec![picture()];
    let files = good_files();
    for (option, good) in &files {
        args.extend([*option, text(if *option == role { bad } else { good })]);
    }
    check(&args, 1, words);
}

#[test]
fn missing_empty_truncated_and_foreign_files() {
    let dir = folder("files");
    for (role, good) in good_files() {
        check_file(role, &dir.join("no-such-file"), &["no-such-file"]);
        let bytes = std::fs::read(&good).expect("converted");
        let bad = dir.join("bad.gguf");
        for n_bytes in [0, 3, 20, 500, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&bad, &bytes[..n_bytes]).expect("a file of our own");
            check_file(role, &bad, &["bad.gguf"]);
        }
        std::fs::copy(picture(), &bad).expect("a file of our own");
        check_file(role, &bad, &["bad.gguf"]);
        for (other_role, other) in good_files() {
            if other_role != role {
                check_file(role, &other, &["gguf", "hint: "]);
            }
        }
    }
}

/// A projector file whose blocks do not fit: llama.cpp would abort on the first product.
#[test]
fn projectors_with_wrong_blocks() {
    let bad = folder("blocks").join("bad.gguf");
    let [_, (_, good), _] = good_files();
    let bytes = std::fs::read(good).expect("converted");
    let check = |name: &str, change: &dyn Fn(&mut [u8]), words: &[&str]| {
        let mut changed = bytes.clone();
        let mut windows = changed.windows(name.len());
        let start = windows.position(|window| window == name.as_bytes());
        change(&mut changed[start.expect("the name is there")..]);
        std::fs::write(&bad, changed).expect("a file of our own");
        check_file("--mmproj", &bad, words);
    };
    // Behind a tensor's name stand the number of dimensions as u32 and each dimension as u64.
    for name in ["v.blk.0.ffn_up.weight", "mm.0.weight"] {
        let transpose = |entry: &mut [u8]| entry[name.len() + 4..][..16].rotate_left(8);
        check(name, &transpose, &[name, "bad.gguf"]);
    }
    for name in ["v.blk.3.attn_q.weight", "v.blk.0.ln2.bias", "mm.2.bias"] {
        let rename = |entry: &mut [u8]| entry[0] = b'x';
        check(name, &rename, &[name, "bad.gguf"]);
    }
    // Behind a key stand its type as u32 and its value.
    let key = "clip.vision.attention.head_count";
    let change = |entry: &mut [u8]| entry[key.len() + 4] = 3;
    check(key, &change, &["3 attention heads", "bad.gguf"]);
}

#[test]
fn files_of_another_model() {
    let dir = Fixture::Tiny.converted(TensorType::F32);
    check_file(
        "--sae",
        &dir.join("sae.gguf"),
        &["rows of 48", "192", "hint: "],
    );
    check_file(
        "--mmproj",
        &dir.join("mmproj-f32.gguf"),
        &["rows of 48", "192", "hint: "],
    );
    check_file(
        "--model",
        &dir.join("model-f32.gguf"),
        &["do not belong together"],
    );
}

/// An SAE of a layer that the model does not have, or of its last one.
#[test]
fn saes_of_impossible_layers() {
    let dir = folder("layers");
    let source = Fixture::Demo.dir().join("sae");
    for (layer, words) in [
        (6, "the model's last layer"),
        (7, "has 7 layers"),
        (60, "has 7 layers"),
    ] {
        let changed = folder(&format!("layers/{layer}"));
        let weights = "sae_weights.safetensors";
        std::fs::copy(source.join(weights), changed.join(weights)).expect("a copy");
        let config = std::fs::read_to_string(source.join("cfg.json")).expect("a committed file");
        let config = config.replace("blocks.1.", &format!("blocks.{layer}."));
        std::fs::write(changed.join("cfg.json"), config).expect("a file of our own");
        let out = dir.join(format!("out-{layer}"));
        let output = run(&["convert", "--sae", text(&changed), "-o", text(&out)]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        check_file("--sae", &out.join("sae-f16.gguf"), &[words, "hint: "]);
    }
}

#[test]
fn features_and_strengths() {
    check(
        &["--steer", "768:-6", picture()],
        1,
        &["768 features", "hint: valid indices are 0 to 767"],
    );
    check(
        &["--steer", "e:-6", picture()],
        1,
        &["part of", "hint: use one of these indices: "],
    );
    let label = &example().label;
    check(
        &["--steer", "unicorn:-6", picture()],
        1,
        &["`unicorn`", "hint: "],
    );
    for malformed in [
        "dog", "dog:", ":3", "dog:nan", "dog:inf", "dog:-inf", "dog:1,", "",
    ] {
        check(&["--steer", malformed, picture()], 2, &["--steer"]);
    }
    check(
        &["--steer", &format!("{label}:3e38,7:3e38"), picture()],
        1,
        &["strengths add up", "hint: "],
    );
    let huge = format!("{label}:-1e30");
    check(&["--steer", &huge, picture()], 1, &["too large", "hint: "]);
    check(&["--steer=-1:1", picture()], 1, &["`-1`", "0 to 767"]);
    check(&["--at", "image", picture()], 2, &["--steer"]);
    check(&["--seed", "4294967295", picture()], 2, &["--seed"]);
    check(
        &["features", "--over", "foo", picture()],
        2,
        &["`image`, `prompt`"],
    );
    check(
        &["--steer", "dog:1", "--at", "images", picture()],
        2,
        &["--at", "`image,generated`"],
    );
    check(&["--compare", picture()], 2, &["--steer"]);
    check(
        &["--top", "3", "features", picture()],
        2,
        &["--top <N>", "after `features`"],
    );
    check(&["features", "--top", "0", picture()], 2, &["--top <N>"]);
    check(&[], 2, &[]);
    check(&["--temp=-1", picture()], 2, &["--temp"]);
    check(
        &["features", "--over", "78", picture()],
        1,
        &["78 rows", "hint: use -78 to 77"],
    );
}

#[test]
fn prompts() {
    check(&["-c", "16", picture()], 1, &["78 tokens", "16", "hint: "]);
    check(
        &["--raw-prompt", "-p", "no mark", picture()],
        1,
        &["<image>", "hint: "],
    );
    check(
        &["--raw-prompt", "-p", "<image><image> two", picture()],
        1,
        &["2 times", "hint: "],
    );
    check(
        &["--raw-prompt", "-p", "<image>", picture()],
        1,
        &["no text after the image", "hint: "],
    );
    check(&["-p", "an <image>", picture()], 1, &["<image>", "hint: "]);
    check(
        &["--kv-type", "q8_0", "-fa", "off", picture()],
        1,
        &["flash attention", "hint: "],
    );
}

/// A context that cannot be made is an error each time, and the session goes on.
#[test]
fn a_refused_context_can_be_asked_for_again() {
    let options = SessionOptions {
        kv_type: KvType::Q8_0,
        ..exact_options()
    };
    let mut session = Fixture::Demo.session(TensorType::F32, options);
    let prompt = session
        .prompt("Describe the image.", PromptForm::Chat, &[])
        .expect("a text");
    for _ in 0..2 {
        let run = RunOptions {
            steering: None,
            keep: Keep::default(),
            max_tokens: 1,
            ..RunOptions::default()
        };
        let error = session.run(&prompt, run).expect_err("refused");
        assert!(error.to_string().contains("flash attention"), "{error}");
        assert_eq!(session.sae().meta().d_in, 192);
    }
}

#[test]
fn folders() {
    let dir = folder("empty");
    check(
        &["-d", text(&dir), picture()],
        1,
        &["model*.gguf", "hint: "],
    );
    check(
        &["-d", "/no/such/folder", picture()],
        1,
        &["/no/such/folder"],
    );
    check(&["-m", "model.gguf", picture()], 1, &["--sae", "hint: "]);
}

#[test]
fn pictures_that_are_refused() {
    let dir = folder("pictures");
    check(&["/no/such/picture.png"], 1, &["/no/such/picture.png"]);
    check(&[text(&dir)], 1, &["not a file"]);
    let bad = dir.join("bad.png");
    let bytes = std::fs::read(picture()).expect("a committed file");
    for n_bytes in [0, 5, 40, bytes.len() / 2] {
        std::fs::write(&bad, &bytes[..n_bytes]).expect("a file of our own");
        check(&[text(&bad)], 1, &["bad.png", "hint: "]);
    }
    let jpeg = dir.join("bad.jpg");
    let dog = image::open(picture()).expect("a committed file");
    dog.save(&jpeg).expect("a file of our own");
    let whole = std::fs::read(&jpeg).expect("just written");
    assert!(llava_sae_cpp::Picture::open(&jpeg).is_ok());
    for n_missing in [whole.len() / 2, 40, 1] {
        std::fs::write(&jpeg, &whole[..whole.len() - n_missing]).expect("a file of our own");
        check(&[text(&jpeg)], 1, &["truncated", "bad.jpg", "hint: "]);
    }
    std::fs::write(&bad, "not a picture").expect("a file of our own");
    check(&[text(&bad)], 1, &["bad.png", "hint: "]);
    // The size stands in the header, and is believed before any pixel is.
    let huge = dir.join("huge.png");
    let mut header = bytes.clone();
    header[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20]);
    let crc = crc32(&header[12..29]);
    header[29..33].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(&huge, header).expect("a file of our own");
    check(
        &[text(&huge)],
        1,
        &["20000 × 20000", "megapixels", "hint: "],
    );
    let strip = dir.join("strip.png");
    RgbImage::new(2, 400)
        .save(&strip)
        .expect("a file of our own");
    check(&[text(&strip)], 1, &["2 × 400", "hint: "]);
}

/// The checksum of PNG chunks (ISO 3309).
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Odd pictures that work, with a warning where something is ignored.
#[test]
fn odd_pictures_work() {
    let dir = folder("odd");
    let check = |name: &str, warning: &str| {
        let output = run(&["-n", "2", text(&dir.join(name))]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        assert!(stderr.contains(warning), "{name}: {stderr}");
        assert_eq!(
            stderr.contains("warning: "),
            !warning.is_empty(),
            "{name}: {stderr}"
        );
    };
    let dog = image::open(picture()).expect("a committed file");
    RgbImage::from_pixel(1, 1, Rgb([9, 200, 30]))
        .save(dir.join("1x1.png"))
        .expect("saved");
    check("1x1.png", "");
    dog.to_luma8().save(dir.join("grey.png")).expect("saved");
    check("grey.png", "");
    dog.to_rgb16().save(dir.join("16-bit.png")).expect("saved");
    check("16-bit.png", "");
    RgbaImage::from_pixel(9, 9, Rgba([1, 2, 3, 4]))
        .save(dir.join("clear.png"))
        .expect("saved");
    check("clear.png", "warning: ");
    let file = std::fs::File::create(dir.join("moving.gif")).expect("a file of our own");
    let mut gif = image::codecs::gif::GifEncoder::new(file);
    let frame = || image::Frame::new(dog.to_rgba8());
    gif.encode_frames([frame(), frame()]).expect("saved");
    drop(gif);
    check("moving.gif", "first frame");
}

/// A JPEG with an EXIF orientation shows the same as the upright picture.
#[test]
fn exif_rotation_is_applied() {
    let dir = folder("exif");
    let save = |image: &image::DynamicImage, name: &str| {
        image.save(dir.join(name)).expect("saved");
        std::fs::read(dir.join(name)).expect("saved")
    };
    // A left half and a right half of flat colours survive JPEG unchanged in either direction.
    let half = RgbImage::from_fn(112, 112, |x, _| {
        Rgb(if x < 56 { [250, 10, 10] } else { [10, 10, 250] })
    });
    let half = image::DynamicImage::from(half);
    let upright = save(&half, "upright.jpg");
    let turned = save(&half.rotate270(), "turned.jpg");
    // Orientation 6: turn clockwise by a quarter to see it upright.
    let exif: &[u8] = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let tagged = [&turned[..2], exif, &turned[2..]].concat();
    let pixels = |bytes: &[u8]| {
        let path = dir.join("picture.jpg");
        std::fs::write(&path, bytes).expect("a file of our own");
        let picture = llava_sae_cpp::Picture::open(&path).expect("a valid file");
        picture
            .prepare(112, llava_sae_cpp::ImagePrep::Crop)
            .expect("an ordinary picture")
    };
    let (upright, tagged, turned) = (pixels(&upright), pixels(&tagged), pixels(&turned));
    let worst = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(
        worst(&upright, &tagged) <= Some(4),
        "only JPEG's rounding: {:?}",
        worst(&upright, &tagged)
    );
    assert!(worst(&upright, &turned) > Some(200));
}

#[test]
fn conversions_that_are_refused() {
    let dir = folder("conversions");
    let out = dir.join("out");
    for (key, from, to) in [
        ("architecture", "\"jumprelu\"", "\"wavelet\""),
        ("normalize_activations", "\"none\"", "\"sideways\""),
    ] {
        let changed = folder(&format!("conversions/{key}"));
        let source = Fixture::Demo.dir().join("sae");
        let weights = "sae_weights.safetensors";
        std::fs::copy(source.join(weights), changed.join(weights)).expect("a copy");
        let config = std::fs::read_to_string(source.join("cfg.json")).expect("a committed file");
        std::fs::write(changed.join("cfg.json"), config.replace(from, to)).expect("our own");
        check(
            &["convert", "--sae", text(&changed), "-o", text(&out)],
            1,
            &[key, "hint: "],
        );
    }
    let sae = "tests/fixtures/tiny/sae";
    check(
        &["convert", "--sae", sae, "-o", text(&out)],
        1,
        &["hint: ", "--norm-factor"],
    );
    check(
        &["convert", "--llava", "/no/such", "-o", text(&out)],
        1,
        &["/no/such"],
    );
    check(&["convert", "-o", text(&out)], 2, &["--llava"]);
    let llava = "tests/fixtures/tiny/llava";
    let other_sae = "tests/fixtures/demo/sae";
    for model_type in ["f16", "q4_k_m"] {
        let both = ["convert", "--llava", llava, "--sae", other_sae];
        let more = ["--type", model_type, "-o", text(&out)];
        check(&[&both[..], &more].concat(), 1, &["do not belong together"]);
    }
    let below_a_file = dir.join("file/out");
    std::fs::write(dir.join("file"), "").expect("a file of our own");
    check(
        &[
            "convert",
            "--sae",
            "tests/fixtures/demo/sae",
            "-o",
            text(&below_a_file),
        ],
        1,
        &["file"],
    );
    assert!(!out.exists(), "{:?}", names(&out));
}

#[test]
fn a_second_type_in_a_folder_is_pointed_out() {
    let out = folder("two-types");
    for (model_type, warning) in [("f16", ""), ("f32", "several `model*.gguf`")] {
        let output = run(&[
            "convert",
            "--llava",
            "tests/fixtures/tiny/llava",
            "--type",
            model_type,
            "--force",
            "-o",
            text(&out),
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(
            stderr.contains("warning: several"),
            !warning.is_empty(),
            "{stderr}"
        );
        assert!(stderr.contains(warning), "{stderr}");
    }
}

#[test]
fn nothing_is_overwritten_unasked() {
    let out = folder("overwrite");
    let convert = |args: &[&str]| {
        let fixed = [
            "convert",
            "--llava",
            "tests/fixtures/tiny/llava",
            "-o",
            text(&out),
        ];
        run(&[&fixed, args].concat()).status.code()
    };
    for model_type in ["f16", "q4_k_m"] {
        for name in [
            format!("model-{model_type}.gguf"),
            "mmproj-f16.gguf".to_owned(),
        ] {
            assert_eq!(convert(&["--type", model_type, "--force"]), Some(0));
            let expected = ["mmproj-f16.gguf", &format!("model-{model_type}.gguf")[..]];
            assert!(
                expected
                    .iter()
                    .all(|name| names(&out).iter().any(|found| found == name))
            );
            for file in names(&out) {
                std::fs::remove_file(out.join(file)).expect("our own");
            }
            std::fs::write(out.join(&name), "mine").expect("a file of our own");
            assert_eq!(convert(&["--type", model_type]), Some(1), "{name}");
            assert_eq!(names(&out), std::slice::from_ref(&name));
            assert_eq!(
                std::fs::read(out.join(&name)).expect("still there"),
                b"mine"
            );
        }
    }
}

/// Neither a device nor an input is overwritten; a link stays.
#[cfg(unix)]
#[test]
fn captures_replace_nothing_but_files() {
    let dir = folder("capture-targets");
    let capture = |target: &Path, picture: &str| {
        let args = ["capture", "-q", "-n", "0", "--force", "-o"];
        run(&[&args[..], &[text(target), picture]].concat())
    };
    let pipe = dir.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo is there").success());
    assert_eq!(capture(&pipe, picture()).status.code(), Some(1));
    assert!(!pipe.metadata().expect("still there").is_file());
    let copy = dir.join("dog.png");
    std::fs::copy(picture(), &copy).expect("a copy");
    assert_eq!(capture(&copy, text(&copy)).status.code(), Some(1));
    assert!(image::open(&copy).is_ok());
    let (link, target) = (dir.join("link"), dir.join("target"));
    std::fs::write(&target, "").expect("a file of our own");
    std::os::unix::fs::symlink(&target, &link).expect("a link of our own");
    assert_eq!(capture(&link, picture()).status.code(), Some(0));
    assert!(link.is_symlink() && target.metadata().expect("there").len() > 0);
    for role in ["--model", "--mmproj", "--sae"] {
        check_file(role, &pipe, &["not a regular file"]);
    }
}

/// What is there already stays without `--force`.
#[test]
fn captures_overwrite_when_they_are_told_to() {
    let file = folder("capture-force").join("rows.safetensors");
    std::fs::write(&file, "kept").expect("a file of our own");
    let args = ["capture", "-q", "-n", "0", "-o", text(&file), picture()];
    check(&args, 1, &["exists", "--force"]);
    assert_eq!(std::fs::read(&file).expect("still there"), b"kept");
    assert!(run(&[&args[..], &["--force"]].concat()).status.success());
    assert!(file.metadata().expect("there").len() > 1000);
}

/// A name that the system does not take is refused before anything is computed, which `-v` would
/// tell.
#[cfg(unix)]
#[test]
fn names_that_are_too_long() {
    let dir = folder("long-names");
    let name = dir.join("a".repeat(300));
    let page = ["features", "-v", "--html", text(&name), picture()];
    let capture = ["capture", "-v", "-o", text(&name), picture()];
    let vector = ["export-cvec", "-v", "--steer", "1:1", "-o", text(&name)];
    let baseline = ["baseline", "-v", "assets/pictures", "-o", text(&name)];
    for args in [&page[..], &capture, &vector, &baseline] {
        check(args, 1, &["cannot write"]);
        let stderr = String::from_utf8(run(args).stderr).expect("UTF-8");
        assert!(!stderr.contains("llama"), "{args:?}: {stderr}");
    }
    assert!(names(&dir).is_empty());
}

/// A folder for heat maps that none were written to goes again, and those above it.
#[test]
fn heat_maps_that_come_to_nothing_leave_no_folder() {
    let dir = folder("no-maps");
    let maps = dir.join("deep/maps");
    let args = ["features", "--heatmap", text(&maps), "no-such-picture.png"];
    check(&args, 1, &["no-such-picture.png"]);
    assert!(names(&dir).is_empty());
    std::fs::create_dir_all(&maps).expect("a folder of our own");
    check(&args, 1, &["no-such-picture.png"]);
    assert!(maps.exists(), "it was there before");
}

#[test]
fn an_unwritable_capture_leaves_nothing() {
    let dir = folder("capture");
    check(
        &[
            "capture",
            "-n",
            "0",
            "-o",
            text(&dir.join("no/such/file")),
            picture(),
        ],
        1,
        &["no/such"],
    );
    check(
        &["capture", "-n", "0", "-o", text(&dir), picture()],
        1,
        &["capture"],
    );
    assert!(names(&dir).is_empty());
}

/// A full disk, played by a limit on file sizes, as the shell sets it (in blocks of 512 bytes).
#[cfg(unix)]
#[test]
fn no_room_on_the_disk() {
    let out = folder("full");
    let command = format!(
        "trap '' XFSZ; ulimit -f 100; exec '{}' convert --llava tests/fixtures/demo/llava -o '{}'",
        env!("CARGO_BIN_EXE_llava-sae-cpp"),
        out.display()
    );
    let output = std::process::Command::new("sh")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-c", &command])
        .output()
        .expect("a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!out.exists() || names(&out).is_empty(), "{:?}", names(&out));
}

/// Sends a signal: `INT` as Ctrl-C, `TERM` as `kill`.
#[cfg(unix)]
pub(crate) fn send(signal: &str, child: &std::process::Child) {
    let killed = std::process::Command::new("kill")
        .args([format!("-{signal}"), child.id().to_string()])
        .status();
    assert!(killed.expect("kill is there").success());
}

/// Ctrl-C, or `kill`, during a conversion leaves nothing. The SAE is large, and a hole in a sparse file.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_half_conversion() {
    const D_IN: usize = 2048;
    const D_SAE: usize = 1 << 18;
    let source = folder("interrupted/sae");
    let out = folder("interrupted/out");
    std::fs::copy(
        Fixture::Demo.dir().join("sae/cfg.json"),
        source.join("cfg.json"),
    )
    .expect("a copy");
    let config = std::fs::read_to_string(source.join("cfg.json")).expect("just copied");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("valid JSON");
    config["d_in"] = D_IN.into();
    config["d_sae"] = D_SAE.into();
    std::fs::write(source.join("cfg.json"), config.to_string()).expect("a file of our own");
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in [
        ("W_enc", vec![D_IN, D_SAE]),
        ("W_dec", vec![D_SAE, D_IN]),
        ("b_enc", vec![D_SAE]),
        ("b_dec", vec![D_IN]),
        ("threshold", vec![D_SAE]),
    ] {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::from(header).to_string();
    let path = source.join("sae_weights.safetensors");
    let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(&path, &start).expect("a file of our own");
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    let size = (start.len() + end) as u64;
    file.and_then(|file| file.set_len(size)).expect("a hole");

    for signal in ["INT", "TERM"] {
        let mut child = program()
            .args(["convert", "--sae", text(&source), "-o", text(&out)])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the program starts");
        while names(&out).is_empty() {
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "it ended before it wrote anything");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        send(signal, &child);
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{signal}: {stderr}");
        assert!(names(&out).is_empty(), "{signal}: {:?}", names(&out));
    }
}

/// Ctrl-C stops the generation, prints what there is, and exits with 130. The random model never
/// stops by itself.
#[cfg(unix)]
#[test]
fn ctrl_c_prints_what_there_is() {
    let dir = Fixture::Tiny.converted(TensorType::F32);
    let mut child = program()
        .args([
            "-d",
            text(&dir),
            "-n",
            "1000000",
            "-c",
            "100000",
            "tests/fixtures/tiny/pictures/00.png",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = [0];
    let stdout = child.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut first).expect("the text has begun");
    send("INT", &child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        output.status.code(),
        Some(130),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.ends_with(b"\n"));
}
