//! What tests of a family's files share: projectors that are refused, vocabularies without markers, strips of pictures,
//! files in f16.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Array, TensorType, Value};
use image::RgbImage;
use llava_sae_cpp::{Grid, ImagePrep, ModelFiles, Picture, Session, SessionOptions};

use crate::bad_input::check;
use crate::fixture::{everything, exact_options, relative_error, temporary_root};
use crate::picture_set::{PictureSet, open, rows};
use crate::rewritten::{Parts, rewritten};

/// The files with what `change` makes of their projector.
pub(crate) fn with_projector(good: ModelFiles, change: &dyn Fn(&mut Parts)) -> ModelFiles {
    let mmproj = rewritten(good.mmproj.as_deref().expect("given"), change);
    ModelFiles {
        mmproj: Some(mmproj),
        ..good
    }
}

/// Files are refused by a header, with these words and a way out.
pub(crate) fn check_refused(files: &ModelFiles, words: &str) {
    let error = files.check().expect_err(words);
    let said = error.to_string();
    assert!(said.contains(words), "`{said}` should say `{words}`");
    assert!(error.hint().is_some(), "{said}");
}

/// A vocabulary without a token that stands at images, which would be spelled out, is refused.
pub(crate) fn check_marker_is_wanted(good: ModelFiles, marker: &str) {
    let model = rewritten(&good.model, &|parts| {
        let Value::Array(Array::String(tokens)) = parts.get("tokenizer.ggml.tokens").clone() else {
            panic!("an array of strings");
        };
        let renamed = tokens.into_iter().map(|token| match token == marker {
            true => "<|another|>".to_owned(),
            false => token,
        });
        let renamed = Value::Array(Array::String(renamed.collect()));
        parts.set("tokenizer.ggml.tokens", renamed);
    });
    let error = Session::open(&ModelFiles { model, ..good }, exact_options()).err();
    let error = error.expect("there is no such token");
    let quoted = format!("`{marker}`");
    assert!(error.to_string().contains(&quoted), "{error}");
    assert!(error.hint().is_some());
}

/// A picture with shades, and no two sides alike.
pub(crate) fn shaded(width: u32, height: u32) -> Picture {
    let shade = |x: u32, y: u32| image::Rgb([(x % 251) as u8, (y % 241) as u8, 90]);
    Picture::from_rgb(RgbImage::from_fn(width, height, shade))
}

/// The command line refuses a picture of more than `most` times its side, and another way to prepare pictures.
pub(crate) fn check_command_line_refuses(good: &ModelFiles, family: &str, most: &str) {
    let dir = temporary_root().join(family);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let strip = dir.join("strip.png");
    RgbImage::new(3, 700).save(&strip).expect("it is written");
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let mmproj = text(good.mmproj.as_ref().expect("given"));
    let [model, sae, strip] = [&good.model, &good.saes[0], &strip].map(|path| text(path));
    let args = [&*strip, "-m", &model, "--mmproj", &mmproj, "--sae", &sae];
    check(&args, 1, &["3 × 700", most, "hint: "]);
    let pad = SessionOptions {
        image_prep: Some(ImagePrep::Pad),
        ..exact_options()
    };
    let error = Session::open(good, pad).err().expect("one way alone");
    assert!(error.to_string().contains("`pad`"), "{error}");
}

/// Pictures of these widths and heights have so many rows and columns of image rows, and longer ones are refused.
pub(crate) fn check_sizes(session: &Session, seen: &[([u32; 2], [usize; 2])]) {
    for &([width, height], [n_rows, n_columns]) in seen {
        let image = session.encode_image(&shaded(width, height));
        let image = image.expect("it is not too long");
        let chunk = image.only_chunk().expect("one image");
        assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
        assert!(chunk.rows.iter().all(|value| value.is_finite()));
    }
    for [width, height] in [[201, 1], [13, 2613]] {
        let error = session.encode_image(&shaded(width, height)).err();
        let error = error.expect("too long");
        assert!(error.to_string().contains("more than 200 times"), "{error}");
        assert!(error.hint().is_some());
    }
}

/// How far image rows and logits may be where weights are in f16: matrices, kernels and what meets them are rounded by
/// 2⁻¹² on average; random layers make it ten times as much.
pub(crate) const F16: [f64; 2] = [5e-3, 1e-2];

/// Image rows and logits of files in f16 are within these of transformers' in f32.
pub(crate) fn check_f16(set: &PictureSet, good: ModelFiles, [of_rows, of_logits]: [f64; 2]) {
    let in_f16 = |path: &Path| -> PathBuf {
        rewritten(path, &|parts| {
            parts.convert(&|tensor| match tensor.dims.len() {
                2 if tensor.name != "v.position_embd.weight" => Some(TensorType::F16),
                4 => Some(TensorType::F16),
                _ => None,
            });
        })
    };
    let files = ModelFiles {
        model: in_f16(&good.model),
        mmproj: good.mmproj.as_deref().map(in_f16),
        saes: good.saes,
    };
    let mut session = open(&files, exact_options());
    let theirs = set.oracle.f32("picture/wide/image_embeddings");
    let error = relative_error(&rows(&set.image(&session, "wide")), &theirs);
    let prompt = set.prompt(&session, "wide");
    let run = session.run(&prompt, everything(0)).expect("it runs");
    let logits = relative_error(&run.logits, &set.oracle.f32("wide/logits"));
    let name = set.name;
    println!("{name}: rows {error:.1e}, logits {logits:.1e}");
    assert!(
        error < of_rows && logits < of_logits,
        "{name}: {error:.2e}, {logits:.2e}"
    );
}
