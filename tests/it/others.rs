//! Projectors that run as llama.cpp does it, beside transformers where llama.cpp prepares pictures as it does
//! (`tests/fixtures/make_others.py`).

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Array, Value};
use llava_sae_cpp::{
    Grid, ImageAttention, ImagePrep, ModelFiles, Picture, PromptForm, RowPositions, Session,
    SessionOptions,
};

use crate::fixture::{F32, IMAGE_EMBEDDINGS, Oracle, everything, exact_options, relative_error};
use crate::hook_points::{sae_at, with_ubatch, worst_row};
use crate::picture_set::LANGUAGE_MODEL;
use crate::rewritten::{Tensor, rewritten};

/// A Qwen2.5-VL under this name, as which it is not compared.
pub(crate) const EXAONE: &str = "exaone4_5";
const HOOK: &str = "blocks.1.hook_resid_post";

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/others")
}

pub(crate) fn files(model: &str) -> ModelFiles {
    if model == EXAONE {
        return exaone();
    }
    let file = |name: &str| root().join(model).join(name);
    ModelFiles {
        model: file("model.gguf"),
        mmproj: Some(file("mmproj.gguf")),
        saes: vec![sae_at(HOOK, 32)],
    }
}

/// EXAONE 4.5's encoder is Qwen2.5-VL's, with one matrix for queries, keys and values.
fn exaone() -> ModelFiles {
    let qwen = files("qwen2.5vl");
    let mmproj = rewritten(qwen.mmproj.as_deref().expect("it has one"), &|parts| {
        parts.set("clip.projector_type", "exaone4_5");
        parts.set("clip.vision.attention.head_count_kv", 2_u32);
        parts.set("clip.vision.image_min_pixels", 3136_u32);
        parts.set("clip.vision.image_max_pixels", 1_000_000_u32);
        for (block_idx, part) in (0..3).flat_map(|i| [(i, "weight"), (i, "bias")]) {
            let name = |of: &str| format!("v.blk.{block_idx}.attn_{of}.{part}");
            let all = ["q", "k", "v"].map(|of| parts.take(&name(of)));
            let mut joined = all[0].clone();
            joined.name = name("qkv");
            *joined.dims.last_mut().expect("it has rows") *= 3;
            joined.values = all.into_iter().flat_map(|tensor| tensor.values).collect();
            parts.add(joined);
        }
    });
    let model = rewritten(&qwen.model, &|parts| {
        let tokens = parts.get("tokenizer.ggml.tokens").clone();
        let Value::Array(Array::String(mut tokens)) = tokens else {
            panic!("a list of texts")
        };
        for token in &mut tokens {
            match token.as_str() {
                "<|vision_start|>" => "<vision>".clone_into(token),
                "<|vision_end|>" => "</vision>".clone_into(token),
                _ => {}
            }
        }
        parts.set("tokenizer.ggml.tokens", tokens);
    });
    ModelFiles {
        model,
        mmproj: Some(mmproj),
        ..qwen
    }
}

pub(crate) fn picture_path(name: &str) -> PathBuf {
    root().join("pictures").join(format!("{name}.png"))
}

pub(crate) fn picture(name: &str) -> Picture {
    Picture::open(&picture_path(name)).expect("a committed file")
}

pub(crate) fn prompt_text(oracle: &Oracle) -> &str {
    oracle.json["prompt"].as_str().expect("a text")
}

/// llama.cpp rounds pixels and GELUs of the encoder to f16: all rows together are within 1e-3 of transformers', a single
/// one within twice that.
const SINGLE_ROW: f64 = 2.0 * F32;

/// Numbers of a model, called so in the oracle, on pictures that need no scaling: all rows together, those of images and
/// those inside, are within `bounds`, and a single one inside within `worst_bound`.
fn check_numbers(files: &ModelFiles, model: &str, bounds: [f64; 2], worst_bound: f64) {
    let [image_bound, bound] = bounds;
    let oracle = Oracle::read(&root());
    for picture_name in ["square", "wide"] {
        let name = format!("{model}/{picture_name}");
        for n_ubatch in [512, 7] {
            let session = Session::open(files, with_ubatch(n_ubatch));
            let mut session = session.expect("it loads");
            let image = session.encode_image(&picture(&format!("{model}-{picture_name}")));
            let image = image.expect("the picture is encoded");
            for (i, chunk) in image.chunks().enumerate() {
                let theirs = oracle.f32(&format!("{name}/image_{i}"));
                let error = relative_error(&chunk.rows, &theirs);
                println!("{name}, image {i}: {error:.1e}");
                assert!(error < image_bound, "{name}, image {i}: {error:.2e}");
                assert_eq!(chunk.attention, ImageAttention::Causal);
            }
            let prompt = session.prompt(prompt_text(&oracle), PromptForm::Raw, &[&image]);
            let prompt = prompt.expect("it is tokenised");
            let ids = prompt.tokens().iter().filter_map(|token| token.id);
            let n_texts = image.chunks().count() + 1;
            let theirs = (0..n_texts).flat_map(|i| oracle.ids(&format!("{name}/text_{i}")));
            assert!(ids.eq(theirs), "{name}: {:?}", prompt.tokens());
            let max_tokens = oracle.json["max_tokens"].as_u64().expect("a number") as usize;
            let run = session
                .run(&prompt, everything(max_tokens))
                .expect("it runs");
            let theirs = oracle.f32(&format!("{name}/{HOOK}/rows"));
            let ours = &run.trace.saes[0].residuals[..theirs.len()];
            let rows = relative_error(ours, &theirs);
            let worst = worst_row(ours, &theirs, 32);
            let logits = relative_error(&run.logits, &oracle.f32(&format!("{name}/logits")));
            println!(
                "{name}, ubatches of {n_ubatch}: rows {rows:.1e} ({worst:.1e}), logits {logits:.1e}"
            );
            assert!(
                rows < bound && worst < worst_bound,
                "{name}: rows {rows:.2e}, {worst:.2e}"
            );
            assert!(logits < bound, "{name}: logits {logits:.2e}");
            assert_eq!(
                run.token_ids,
                oracle.ids(&format!("{name}/greedy_ids")),
                "{name}"
            );
        }
    }
}

#[test]
fn numbers_are_those_of_transformers_where_pictures_need_no_scaling() {
    check_numbers(&files(EXAONE), "qwen2.5vl", [F32; 2], SINGLE_ROW);
}

/// A pair as llama.cpp's converter would write it, of a type that is compared.
#[test]
fn numbers_of_idefics3_are_those_of_transformers() {
    let bounds = [IMAGE_EMBEDDINGS, LANGUAGE_MODEL];
    check_numbers(&files("idefics3"), "idefics3", bounds, LANGUAGE_MODEL);
}

/// Where llama.cpp says where rows are, we do.
#[test]
fn grids_and_places_are_known_where_llama_cpp_says_them() {
    let oracle = Oracle::read(&root());
    let image = |files: &ModelFiles, name: &str| {
        let session = Session::open(files, exact_options()).expect("it loads");
        let image = session.encode_image(&picture(name));
        image.expect("the picture is encoded")
    };
    let exaone = files(EXAONE);
    let wide = image(&exaone, "qwen2.5vl-wide");
    let chunk = wide.only_chunk().expect("one image");
    let [n_rows, n_columns]: [usize; 2] =
        serde_json::from_value(oracle.json["grids"]["qwen2.5vl/wide"].clone()).expect("a grid");
    assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
    assert_eq!(
        chunk.positions,
        RowPositions::mrope_grid([n_rows, n_columns])
    );
    assert_eq!(chunk.place, Some([0.0, 0.0, 1.0, 1.0]));
}

pub(crate) fn args<'a>(files: &'a ModelFiles, more: &[&'a str]) -> Vec<&'a str> {
    let text = |path: &'a Path| path.to_str().expect("a plain path");
    let mmproj = files.mmproj.as_deref().expect("it has one");
    let files = [
        "-m",
        text(&files.model),
        "--mmproj",
        text(mmproj),
        "--sae",
        text(&files.saes[0]),
    ];
    [&files[..], more].concat()
}

#[test]
fn ways_to_prepare_pictures_are_refused() {
    let options = SessionOptions {
        image_prep: Some(ImagePrep::Pad),
        ..exact_options()
    };
    let error = Session::open(&files(EXAONE), options).err();
    let error = error.expect("llama.cpp prepares pictures");
    assert!(error.to_string().contains("`pad`"), "{error}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("leave it out"))
    );
}

/// A file that sees and hears: it is run without what hears.
#[test]
fn of_a_projector_that_hears_too_the_rest_is_run() {
    let of = |mmproj: PathBuf| {
        let files = ModelFiles {
            mmproj: Some(mmproj),
            ..files("qwen2.5vl")
        };
        let session = Session::open(&files, exact_options()).expect("it loads");
        let image = session
            .encode_image(&picture("odd"))
            .expect("it is encoded");
        image.only_chunk().expect("one image").rows.clone()
    };
    let original = root().join("qwen2.5vl/mmproj.gguf");
    let omni = rewritten(&original, &|parts| {
        parts.set("clip.projector_type", "qwen2.5o");
        parts.set("clip.has_audio_encoder", true);
        parts.add(Tensor::ones("a.conv1d.1.weight", &[3, 8, 16]));
        parts.add(Tensor::ones("a.conv1d.1.bias", &[1, 16])); // as converters write it
    });
    assert_eq!(of(omni), of(original));
}
