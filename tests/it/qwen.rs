//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL with pictures beside transformers, in two sets of shapes each: image rows, prompts
//! of one picture and of two, rows at hook points, features, logits, texts.

use llava_sae_cpp::{Grid, ImageAttention};

use crate::picture_set::{
    PICTURES, SITES, check_image_rows, check_remembered, check_runs, check_sites,
};
use crate::qwen_set::Set;

#[test]
fn image_rows_are_those_of_transformers() {
    for set in Set::all() {
        check_image_rows(&set, &set.files_at(1), &PICTURES, &|name, image, _| {
            let [n_rows, n_columns] = set.grid(name);
            let chunk = image.only_chunk().expect("one image");
            assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
            assert_eq!(chunk.attention, ImageAttention::Causal);
        });
    }
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for set in Set::all() {
        for n_ubatch in [512, 5] {
            check_runs(&set, &|layer| set.files_at(layer), n_ubatch);
        }
    }
}

/// Prompts that are remembered, and steered where Qwen3-VL's image rows are still to be added above, give the same.
#[test]
fn remembered_prompts_give_the_same_bits() {
    for name in ["qwen2.5vl-a", "qwen3vl-a", "qwen3vl-b"] {
        let set = Set::named(name);
        check_remembered(&set, &set.files_at(0));
    }
}

#[test]
fn every_site_is_that_of_transformers() {
    for set in Set::all() {
        check_sites(&set, &SITES, &|hook, width| set.files_with(hook, width));
    }
}
