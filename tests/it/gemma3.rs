//! Gemma 3 with pictures beside transformers: pixels, image rows, prompts, rows, logits, texts
//! (`tests/fixtures/make_gemma3.py`).

use std::path::{Path, PathBuf};

use gguf_tools::gguf::Value;
use image::RgbImage;
use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    ImageEmbeddings, ImagePrep, Keep, Kinds, ModelFiles, Picture, Prompt, PromptForm, RunOptions,
    Session, SessionOptions, VisionGraph,
};

use crate::fixture::{
    F32, IMAGE_EMBEDDINGS, ON_DEVICE, Oracle, exact_options, image_rows, relative_error, steering,
};
use crate::hook_points::{sae_at, with_ubatch, worst_row};
use crate::rewritten::{Tensor, rewritten};

const PICTURES: [&str; 4] = ["square", "wide", "tall", "tiny"];
pub(crate) const HOOK: &str = "blocks.1.hook_resid_post";

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gemma3")
}

fn picture(name: &str) -> Picture {
    let path = root().join("pictures").join(format!("{name}.png"));
    Picture::open(&path).expect("a committed file")
}

pub(crate) fn files(hook: &str) -> ModelFiles {
    ModelFiles {
        model: root().join("model.gguf"),
        mmproj: Some(root().join("mmproj.gguf")),
        saes: vec![sae_at(hook, 32)],
    }
}

fn session(hook: &str, options: SessionOptions) -> Session {
    Session::open(&files(hook), options).expect("it loads")
}

fn image(session: &Session, name: &str) -> ImageEmbeddings {
    let image = session.encode_image(&picture(name));
    image.expect("the picture is encoded")
}

fn prompt(session: &Session, oracle: &Oracle, name: &str) -> Prompt {
    let text = oracle.json["prompt"].as_str().expect("a text");
    let image = image(session, name);
    let prompt = session.prompt(text, PromptForm::Chat, Some(&image));
    prompt.expect("it is tokenised")
}

#[test]
fn pictures_are_stretched_as_in_transformers() {
    let oracle = Oracle::read(&root());
    for name in PICTURES {
        let ours = picture(name).prepare(64, ImagePrep::Stretch);
        let ours = ours.expect("it is not too long");
        let theirs = oracle.u8(&format!("{name}/pixels"));
        let apart = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b));
        assert!(apart.max().is_some_and(|most| most <= 1), "{name}");
    }
}

#[test]
fn image_rows_are_those_of_transformers() {
    let oracle = Oracle::read(&root());
    for (vision_graph, is_right) in [
        (VisionGraph::Corrected, true),
        (VisionGraph::AsLlamaCpp, false),
    ] {
        let options = SessionOptions {
            vision_graph,
            ..exact_options()
        };
        let session = session(HOOK, options);
        for name in PICTURES {
            let theirs = oracle.f32(&format!("{name}/image_embeddings"));
            let error = |picture: &Picture| {
                let image = session.encode_image(picture);
                relative_error(image_rows(&image.expect("it is encoded")), &theirs)
            };
            // Of transformers' own pixels, from which ours are 1 apart here and there.
            let pixels = oracle.u8(&format!("{name}/pixels"));
            let pixels = RgbImage::from_raw(64, 64, pixels).expect("64 × 64 pixels");
            let same = error(&Picture::from_rgb(pixels));
            let whole = error(&picture(name));
            println!("{name}, {vision_graph:?}: {same:.1e}, {whole:.1e}");
            // If this fails for `AsLlamaCpp`, patches and GELUs are no longer rounded to f16 on the processor.
            if is_right || !ON_DEVICE {
                assert_eq!(same < IMAGE_EMBEDDINGS, is_right, "{name}: {same:.2e}");
            }
            assert!(whole < F32, "{name}: {whole:.2e}");
        }
    }
}

#[test]
fn rows_and_texts_are_those_of_transformers() {
    let oracle = Oracle::read(&root());
    let number = |name: &str| oracle.json[name].as_u64().expect("a number") as usize;
    for hook in ["blocks.0.hook_resid_post", HOOK] {
        for n_ubatch in [512, 5] {
            let mut session = session(hook, with_ubatch(n_ubatch));
            for name in PICTURES {
                let shown = format!("{name} at {hook}, ubatches of {n_ubatch}");
                let prompt = prompt(&session, &oracle, name);
                let ids: Vec<i32> = prompt
                    .tokens()
                    .iter()
                    .filter_map(|token| token.id)
                    .collect();
                let expected = oracle.ids("prompt_ids");
                let soft_token = 7; // stands for the image's rows
                let expected: Vec<i32> = expected
                    .into_iter()
                    .filter(|&id| id != soft_token)
                    .collect();
                assert_eq!(ids, expected, "{shown}");
                let plain = RunOptions {
                    keep: Keep {
                        features: Kinds::ALL,
                        residuals: true,
                        logits: true,
                    },
                    max_tokens: number("max_tokens"),
                    ..RunOptions::default()
                };
                let run = session.run(&prompt, plain.clone()).expect("it runs");
                let theirs = oracle.f32(&format!("{name}/{hook}/rows"));
                let ours = &run.trace.saes[0].residuals[..theirs.len()];
                let error = worst_row(ours, &theirs, 32);
                println!("{shown}: {error:.1e}");
                assert!(error < F32, "{shown}: rows {error:.2e}");
                let check = |run: &llava_sae_cpp::Run, logits: &str, ids: &str| {
                    let logits = oracle.f32(&format!("{name}/{logits}"));
                    let error = relative_error(&run.logits, &logits);
                    assert!(error < F32, "{shown}: logits {error:.2e}");
                    assert_eq!(
                        run.token_ids,
                        oracle.ids(&format!("{name}/{ids}")),
                        "{shown}"
                    );
                };
                check(&run, "logits", "greedy_ids");
                if hook != HOOK {
                    continue;
                }
                let strength = oracle.json["strengths"][name].as_f64().expect("a number");
                let feature = number("feature");
                let steering = steering(&mut session, feature, strength as f32, Positions::IMAGE);
                let steered = RunOptions {
                    steering: Some(steering),
                    ..plain
                };
                let run = session.run(&prompt, steered).expect("it runs");
                check(&run, "steered_logits", "steered_ids");
            }
        }
    }
}

/// llama.cpp would keep the window between an image's rows, and transformers does not.
#[test]
fn windows_shorter_than_an_image_are_refused() {
    let short = rewritten(&root().join("model.gguf"), &|parts| {
        parts.set("gemma3.attention.sliding_window", 15_u32);
    });
    let files = ModelFiles {
        model: short,
        ..files(HOOK)
    };
    let session = Session::open(&files, exact_options()).expect("it loads");
    let image = image(&session, "square");
    let error = session.prompt("what", PromptForm::Chat, Some(&image)).err();
    let said = error.expect("it is refused").to_string();
    assert!(said.contains("sliding windows have 15"), "{said}");
}

#[test]
fn what_is_no_gemma_3_projector_is_refused() {
    let original = root().join("mmproj.gguf");
    let refused = |change: &dyn Fn(&mut crate::rewritten::Parts), words: &str| {
        let files = ModelFiles {
            mmproj: Some(rewritten(&original, change)),
            ..files(HOOK)
        };
        let said = files.check().expect_err(words).to_string();
        assert!(said.contains(words), "`{said}` should say `{words}`");
    };
    let set = |key: &'static str, value: Value| {
        move |parts: &mut crate::rewritten::Parts| parts.set(key, value.clone())
    };
    refused(&set("clip.use_gelu", false.into()), "`clip.use_gelu`");
    refused(
        &set("clip.vision.projector.scale_factor", 3_u32.into()),
        "cannot be averaged by 3",
    );
    refused(
        &set("clip.vision.image_size", 60_u32.into()),
        "averaged by 4",
    );
    refused(
        &set("clip.vision.block_count", 2_u32.into()),
        "does not belong to a Gemma 3 projector",
    );
    refused(&set("clip.projector_type", "gemma9".into()), "`gemma9`");
    for name in [
        "v.patch_embd.bias",
        "v.post_ln.weight",
        "v.blk.2.ln1.bias",
        "mm.soft_emb_norm.weight",
        "mm.input_projection.weight",
    ] {
        refused(
            &|parts| {
                parts.take(name);
            },
            name,
        );
        refused(
            &|parts| {
                let tensor = parts.take(name);
                let mut dims = tensor.dims.clone();
                dims[0] /= 2;
                parts.add(Tensor::ones(name, &dims));
            },
            match name {
                "mm.input_projection.weight" => "makes rows of 16",
                name => name,
            },
        );
    }
}
