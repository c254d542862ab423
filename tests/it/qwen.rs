//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL with pictures beside transformers, in two sets of shapes each: image rows, prompts
//! of one picture and of two, rows at hook points, features, logits, texts.

use std::ops::ControlFlow;

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    Grid, ImageAttention, PromptStore, Run, RunOptions, SessionOptions, VisionGraph,
};

use crate::fixture::{
    IMAGE_EMBEDDINGS, ON_DEVICE, bound, everything, exact_options, image_rows, relative_error,
    steering,
};
use crate::hook_points::with_ubatch;
use crate::oracle::check_activations;
use crate::qwen_set::{Set, image, open, resid_post};

const PICTURES: [&str; 7] = [
    "square", "wide", "tall", "tiny", "multiple", "strip", "huge",
];
/// The prompt of which rows at every site are known.
const SITES_CASE: &str = "wide";
/// … and of these, at one.
const ROWS_CASES: [&str; 3] = ["wide", "two", "text"];
/// There is no GELU in these language models, so they are computed in f32 throughout.
const LANGUAGE_MODEL: f64 = bound(1e-4, 1e-3, 2e-3);

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

/// Ids, rows at the upper layer, features, logits and texts of all prompts, and texts that are steered at the lower one.
fn check_runs(set: &Set, n_ubatch: usize) {
    let [steered_layer, layer] = set.layers();
    let max_tokens = set.number("max_tokens");
    let mut plain = open(&set.files_at(layer), with_ubatch(n_ubatch));
    let mut steered = open(&set.files_at(steered_layer), with_ubatch(n_ubatch));
    for case in set.case_names() {
        let shown = format!("{}, {case}, ubatches of {n_ubatch}", set.name);
        let check = |run: &Run, logits: &str, ids: &str| {
            let theirs = set.oracle.f32(&format!("{case}/{logits}"));
            let error = relative_error(&run.logits, &theirs);
            println!("{shown}: {logits} {error:.1e}");
            assert!(error < LANGUAGE_MODEL, "{shown}: {logits} {error:.2e}");
            let ids = set.oracle.ids(&format!("{case}/{ids}"));
            assert_eq!(run.token_ids, ids, "{shown}");
        };
        let prompt = set.prompt(&plain, case);
        let image_pad = set.number("image_pad") as i32;
        let ids = prompt
            .tokens()
            .iter()
            .map(|token| token.id.unwrap_or(image_pad));
        assert_eq!(
            ids.collect::<Vec<_>>(),
            set.oracle.ids(&format!("{case}/prompt_ids")),
            "{shown}"
        );
        let run = plain.run(&prompt, everything(max_tokens)).expect("it runs");
        if ROWS_CASES.contains(&case) {
            let hook = resid_post(layer);
            let error = set.row_error(&run, case, &hook);
            println!("{shown}: rows {error:.1e}");
            assert!(error < LANGUAGE_MODEL, "{shown}: rows {error:.2e}");
            let acts = set.oracle.f32(&format!("{case}/{hook}/acts"));
            check_activations(plain.sae(), &run, &acts, &shown);
        }
        check(&run, "logits", "greedy_ids");
        let strength = set.case(case)["strength"].as_f64().expect("a number") as f32;
        let feature = set.number("feature");
        // Texts without pictures are steered everywhere, which a control vector could do.
        let at = match case {
            "text" => Positions::ALL,
            _ => Positions::IMAGE,
        };
        let options = RunOptions {
            steering: Some(steering(&mut steered, feature, strength, at)),
            ..everything(max_tokens)
        };
        let run = steered.run(&prompt, options.clone()).expect("it runs");
        check(&run, "steered_logits", "steered_ids");
        let logits_alone = RunOptions {
            steering: options.steering.clone(),
            max_tokens,
            keep: llava_sae_cpp::Keep {
                logits: true,
                ..llava_sae_cpp::Keep::default()
            },
            ..RunOptions::default()
        };
        let run = steered.run(&prompt, logits_alone).expect("it runs");
        check(&run, "steered_logits", "steered_ids");
        // The second shares what the first computes below the hook, if everything above depends on that alone.
        let both = vec![everything(max_tokens), options];
        let both = steered.run_side_by_side(&prompt, both, &mut |_, _| ControlFlow::Continue(()));
        let both = both.expect("they run");
        check(&both[0], "logits", "greedy_ids");
        check(&both[1], "steered_logits", "steered_ids");
    }
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    for set in Set::all() {
        for n_ubatch in [512, 5] {
            check_runs(&set, n_ubatch);
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
        let [_, upper] = set.layers();
        let others = ["hook_mlp_out", "hook_attn_out", "attn.hook_z"];
        let others = others.map(|site| format!("blocks.{upper}.{site}"));
        for hook in (0..set.number("n_layers") - 1)
            .map(resid_post)
            .chain(others)
        {
            let theirs = set.oracle.f32(&format!("{SITES_CASE}/{hook}/rows"));
            let n_rows = set.oracle.ids(&format!("{SITES_CASE}/prompt_ids")).len();
            let width = theirs.len() / n_rows;
            let mut session = open(&set.files_with(&hook, width), exact_options());
            let prompt = set.prompt(&session, SITES_CASE);
            let run = session.run(&prompt, everything(0)).expect("it runs");
            let error = set.row_error(&run, SITES_CASE, &hook);
            println!("{}, {hook}: {error:.1e}", set.name);
            assert!(error < LANGUAGE_MODEL, "{}, {hook}: {error:.2e}", set.name);
        }
    }
}
