//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL with pictures beside transformers, in two sets of shapes each: image rows, prompts
//! of one picture and of two, rows at hook points, features, logits, texts.

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{Grid, ImageAttention, PromptStore, RunOptions, SessionOptions, VisionGraph};

use crate::fixture::{
    IMAGE_EMBEDDINGS, ON_DEVICE, everything, exact_options, image_rows, relative_error, steering,
};
use crate::hook_points::with_ubatch;
use crate::picture_set::{check_runs, check_sites};
use crate::qwen_set::{Set, image, open};

const PICTURES: [&str; 7] = [
    "square", "wide", "tall", "tiny", "multiple", "strip", "huge",
];

#[test]
fn image_rows_are_those_of_transformers() {
    for set in Set::all() {
        for (vision_graph, is_right) in [
            (VisionGraph::Corrected, true),
            (VisionGraph::AsLlamaCpp, false),
        ] {
            let options = SessionOptions {
                vision_graph,
                ..exact_options()
            };
            let session = open(&set.files_at(1), options);
            for name in PICTURES {
                let image = image(&session, name);
                let [n_rows, n_columns] = set.grid(name);
                let chunk = image.only_chunk().expect("one image");
                assert_eq!(chunk.grid, Some(Grid::of_patches(n_rows, n_columns)));
                assert_eq!(chunk.attention, ImageAttention::Causal);
                let theirs = set.oracle.f32(&format!("picture/{name}/image_embeddings"));
                let error = relative_error(image_rows(&image), &theirs);
                let shown = format!("{}, {name}, {vision_graph:?}", set.name);
                println!("{shown}: {error:.1e}");
                // If this fails for `AsLlamaCpp`, patches and GELUs are no longer rounded to f16 on the processor.
                if is_right || !ON_DEVICE {
                    assert_eq!(error < IMAGE_EMBEDDINGS, is_right, "{shown}: {error:.2e}");
                }
            }
        }
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
        let run = |store: Option<PromptStore>, case: &str| {
            let options = SessionOptions {
                prompt_store: store,
                ..with_ubatch(64)
            };
            let mut session = open(&set.files_at(0), options);
            let prompt = set.prompt(&session, case);
            let strengths = [None, Some(2.0), Some(3.0)];
            let runs = strengths.map(|strength| {
                let steering =
                    strength.map(|strength| steering(&mut session, 5, strength, Positions::ALL));
                let options = RunOptions {
                    steering,
                    ..everything(3)
                };
                session.run(&prompt, options).expect("it runs").logits
            });
            runs.concat()
        };
        for case in ["wide", "text", "two"] {
            let store = PromptStore::in_memory(1 << 24);
            assert_eq!(run(None, case), run(Some(store), case), "{name}, {case}");
        }
    }
}

#[test]
fn every_site_is_that_of_transformers() {
    for set in Set::all() {
        check_sites(&set, &|hook, width| set.files_with(hook, width));
    }
}
