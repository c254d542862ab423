//! Gemma 4 with pictures beside transformers, of three kinds in two sets of shapes each: image rows, prompts of one
//! picture and of two, rows at hook points, features, logits, texts.

use llava_sae_cpp::{Grid, ImageAttention, SessionOptions, VisionGraph};

use crate::fixture::{IMAGE_EMBEDDINGS, ON_DEVICE, exact_options, relative_error};
use crate::gemma4_picture_set::Set;
use crate::picture_files::with_projector;
use crate::picture_set::{check_image_rows, check_remembered, check_runs, check_sites, open, rows};
use crate::rewritten::Parts;

/// `SEEN` in `make_gemma4_pictures.py`.
const PICTURES: [&str; 6] = ["wide", "tall", "tiny", "multiple", "strip", "huge"];

#[test]
fn image_rows_are_those_of_transformers() {
    for set in Set::all() {
        check_image_rows(&set, &set.files_at(1), &PICTURES, &|name, image, _| {
            let [n_rows, n_columns] = set.grid(name);
            let chunk = image.only_chunk().expect("one image");
            assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
            let expected = match set.is_causal() {
                true => ImageAttention::Causal,
                false => ImageAttention::Bidirectional,
            };
            assert_eq!(chunk.attention, expected, "{}", set.name);
        });
    }
}

/// Without the key, which llama.cpp's converter does not write, pictures are as large as transformers makes them by
/// default.
#[test]
fn published_pictures_have_280_rows() {
    let set = Set::named("dense-a");
    let files = with_projector(set.files_at(1), &|parts: &mut Parts| {
        parts.remove("clip.vision.image_max_pixels");
    });
    let image = set.image(&open(&files, exact_options()), "wide");
    let grid = set.oracle.json["published_grid"].clone();
    let [n_rows, n_columns]: [usize; 2] = serde_json::from_value(grid).expect("two numbers");
    let chunk = image.only_chunk().expect("one image");
    assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
    let theirs = set.oracle.f32("published/wide/image_embeddings");
    let error = relative_error(&rows(&image), &theirs);
    assert!(error < IMAGE_EMBEDDINGS, "{error:.2e}");
}

/// Files of llama.cpp's converter do not say which GELU it is, and llama.cpp takes another one then.
#[test]
fn gelus_are_the_familys_whatever_a_file_says() {
    let set = Set::named("shared-a");
    let theirs = set.oracle.f32("picture/wide/image_embeddings");
    let error = |gelu: Option<bool>, vision_graph| {
        let files = with_projector(set.files_at(1), &|parts: &mut Parts| match gelu {
            Some(gelu) => parts.set("clip.use_gelu", gelu),
            None => parts.remove("clip.use_gelu"),
        });
        let options = SessionOptions {
            vision_graph,
            ..exact_options()
        };
        let image = set.image(&open(&files, options), "wide");
        relative_error(&rows(&image), &theirs)
    };
    for gelu in [None, Some(false), Some(true)] {
        let error = error(gelu, VisionGraph::Corrected);
        assert!(error < IMAGE_EMBEDDINGS, "{gelu:?}: {error:.2e}");
    }
    let [without, with] = [None, Some(true)].map(|gelu| error(gelu, VisionGraph::AsLlamaCpp));
    println!("as llama.cpp: {without:.1e} without the key, {with:.1e} with it");
    assert!(
        ON_DEVICE || without > 2.0 * with,
        "{without:.2e}, {with:.2e}"
    );
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for set in Set::all() {
        for n_ubatch in [512, 5] {
            check_runs(&set, &|layer| set.files_at(layer), n_ubatch);
        }
    }
}

#[test]
fn remembered_prompts_give_the_same_bits() {
    for name in ["dense-a", "shared-a", "experts-a"] {
        let set = Set::named(name);
        check_remembered(&set, &set.files_at(0));
    }
}

#[test]
fn every_site_is_that_of_transformers() {
    for set in Set::all() {
        check_sites(&set, &["hook_mlp_out", "hook_attn_out"], &|hook, width| {
            set.files_with(hook, width)
        });
    }
}
