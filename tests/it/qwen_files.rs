//! Qwen-VL's files and pictures that cannot be read, and files of another number type.

use gguf_tools::gguf::Value;
use image::RgbImage;
use llava_sae_cpp::{ImageCache, Keep, ModelFiles, Picture, RunOptions, Session, SessionOptions};

use crate::fixture::{ON_DEVICE, exact_options, image_rows, largest_error, temporary_root};
use crate::picture_files::{
    F16, check_command_line_refuses, check_f16, check_marker_is_wanted, check_refused, check_sizes,
    shaded, with_projector,
};
use crate::qwen_set::{Set, open};
use crate::rewritten::{Parts, Tensor, rewritten};

fn files(name: &'static str) -> ModelFiles {
    Set::named(name).files_at(0)
}

/// What `change` makes of a set's projector is refused.
fn refused(set: &'static str, change: &dyn Fn(&mut Parts), words: &str) {
    check_refused(&with_projector(files(set), change), words);
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let all = ["qwen2vl-a", "qwen2.5vl-a", "qwen3vl-a"];
    let set =
        |key: &'static str, value: Value| move |parts: &mut Parts| parts.set(key, value.clone());
    let removed = |key: &'static str| move |parts: &mut Parts| parts.remove(key);
    for name in all {
        for key in [
            "clip.vision.patch_size",
            "clip.vision.embedding_length",
            "clip.vision.block_count",
            "clip.vision.attention.head_count",
            "clip.vision.attention.layer_norm_epsilon",
            "clip.vision.image_mean",
            "clip.vision.projection_dim",
        ] {
            refused(name, &removed(key), key);
        }
        for (key, value) in [
            ("clip.vision.spatial_merge_size", 3_u32),
            ("clip.vision.patch_size", 0),
            ("clip.vision.patch_size", 65),
            ("clip.vision.feature_layer", 1), // no array
            ("clip.vision.image_grid_pinpoints", 1),
            ("clip.vision.mm_patch_merge_type", 1),
            ("clip.vision.image_min_pixels", 0),
            ("clip.vision.attention.head_dim", 3),
            ("clip.vision.attention.head_count_kv", 1),
        ] {
            refused(name, &set(key, value.into()), key);
        }
        let heads = "clip.vision.attention.head_count";
        refused(name, &set(heads, 3_u32.into()), "multiples of 4");
        refused(name, &set(heads, 4_u32.into()), "multiples of 4");
        let least = "clip.vision.image_min_pixels";
        refused(name, &set(least, 1_000_000_000_u32.into()), "is more than");
        let limits = |parts: &mut Parts| {
            parts.set("clip.vision.image_min_pixels", 4000_u32);
            parts.set("clip.vision.image_max_pixels", 3999_u32);
        };
        refused(name, &limits, "is more than");
    }
    // Each has its own function in its blocks, and windows or none.
    refused("qwen2vl-a", &set("clip.use_gelu", true.into()), "use_gelu");
    refused("qwen2vl-a", &set("clip.use_silu", true.into()), "use_silu");
    refused("qwen2.5vl-a", &removed("clip.use_silu"), "use_silu");
    refused("qwen3vl-a", &removed("clip.use_gelu"), "use_gelu");
    let pattern = "clip.vision.n_wa_pattern";
    refused("qwen2vl-a", &set(pattern, 2_u32.into()), pattern);
    refused("qwen2.5vl-a", &removed(pattern), pattern);
    refused("qwen2.5vl-a", &set(pattern, 0_u32.into()), pattern);
    refused("qwen3vl-a", &set(pattern, 2_u32.into()), pattern);
    let window = "clip.vision.window_size";
    refused("qwen2.5vl-a", &set(window, 56_u32.into()), window);
    let projection = "clip.vision.projection_dim";
    refused("qwen2.5vl-a", &set(projection, 16_u32.into()), projection);
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    for (set, names) in [
        ("qwen2vl-a", &["v.blk.1.attn_k.bias", "v.post_ln.bias"][..]),
        (
            "qwen2.5vl-a",
            &["v.blk.1.ffn_gate.weight", "v.post_ln.weight"],
        ),
        (
            "qwen3vl-a",
            &[
                "v.blk.2.attn_qkv.weight",
                "v.patch_embd.bias",
                "v.deepstack.1.norm.weight",
                "v.deepstack.1.fc2.bias",
            ],
        ),
    ] {
        let common = ["v.patch_embd.weight", "v.patch_embd.weight.1", "mm.0.bias"];
        for name in names.iter().copied().chain(common) {
            let taken = |parts: &mut Parts| {
                parts.take(name);
            };
            refused(set, &taken, name);
            let halved = |parts: &mut Parts| {
                let mut dims = parts.take(name).dims;
                dims[0] /= 2;
                parts.add(Tensor::ones(name, &dims));
            };
            refused(set, &halved, name);
        }
        let more = |parts: &mut Parts| parts.add(Tensor::ones("v.class_embd", &[8]));
        refused(set, &more, "`v.class_embd` does not belong");
        let wider = |parts: &mut Parts| {
            parts.take("mm.2.weight");
            parts.add(Tensor::ones("mm.2.weight", &[32, 30]));
        };
        refused(set, &wider, "makes rows of 30");
    }
    let oblong = |parts: &mut Parts| {
        parts.take("v.position_embd.weight");
        parts.add(Tensor::ones("v.position_embd.weight", &[8, 35]));
    };
    refused("qwen3vl-a", &oblong, "must be of a square");
    let none = |parts: &mut Parts| {
        for part in ["norm", "fc1", "fc2"] {
            parts.take(&format!("v.deepstack.1.{part}.weight"));
            parts.take(&format!("v.deepstack.1.{part}.bias"));
        }
    };
    refused("qwen3vl-a", &none, "makes rows for 0 blocks");
}

#[test]
fn language_models_that_do_not_fit_are_refused() {
    let changed = |set: &'static str, change: &dyn Fn(&mut Parts)| {
        let good = files(set);
        let model = rewritten(&good.model, change);
        ModelFiles { model, ..good }
    };
    let key = "qwen3vl.n_deepstack_layers";
    let too_many = changed("qwen3vl-a", &|parts| parts.set(key, 3_u32));
    check_refused(&too_many, key);
    let another = changed("qwen3vl-a", &|parts| parts.set(key, 2_u32));
    check_refused(&another, "the model takes them in 2");
    let sections = "qwen3vl.rope.dimension_sections";
    let none = changed("qwen3vl-a", &|parts| parts.remove(sections));
    check_refused(&none, sections);
    let mixed = ModelFiles {
        mmproj: files("qwen3vl-b").mmproj,
        ..files("qwen3vl-a")
    };
    check_refused(&mixed, "makes rows of 48");
    check_marker_is_wanted(files("qwen2.5vl-a"), "<|vision_start|>");
}

#[test]
fn pictures_of_any_size_are_seen_or_refused() {
    let session = open(&files("qwen2vl-a"), exact_options());
    let seen = [
        ([1, 1], [2, 2]),
        ([1, 200], [29, 1]),
        ([200, 1], [1, 29]),
        ([2600, 13], [1, 29]),
        ([99, 101], [4, 4]),
    ];
    check_sizes(&session, &seen);
    // More than llama.cpp's 4096 rows are scaled down to them, and have no room without flash attention where there
    // are more heads.
    let more_heads = |parts: &mut Parts| {
        parts.set("clip.vision.attention.head_count", 4_u32);
        parts.remove("clip.vision.image_max_pixels");
    };
    let files = with_projector(files("qwen2vl-b"), &more_heads);
    let session = open(&files, exact_options());
    let error = session.encode_image(&shaded(4000, 3000)).err();
    let error = error.expect("no room");
    assert!(
        error.to_string().contains("without flash attention"),
        "{error}"
    );
}

/// Turned, a plain picture has the same pixels one after another.
#[test]
fn kept_rows_are_those_of_pictures_of_this_shape() {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    let options = SessionOptions {
        image_cache: Some(ImageCache::new(dir.path().join("images"), 1 << 20)),
        ..exact_options()
    };
    let [kept, plain] =
        [options, exact_options()].map(|options| open(&files("qwen3vl-b"), options));
    let colour = image::Rgb([200, 100, 50]);
    let rows = |session: &Session, width, height| {
        let picture = Picture::from_rgb(RgbImage::from_pixel(width, height, colour));
        let image = session.encode_image(&picture).expect("it is encoded");
        image_rows(&image).to_vec()
    };
    let expected = [(64, 32), (32, 64)].map(|(width, height)| rows(&plain, width, height));
    assert_ne!(expected[0], expected[1]);
    for _ in 0..2 {
        let found = [(64, 32), (32, 64)].map(|(width, height)| rows(&kept, width, height));
        assert!(found == expected);
    }
}

#[test]
fn the_command_line_refuses_with_a_hint() {
    check_command_line_refuses(&files("qwen2.5vl-a"), "qwen", "200 times");
}

#[test]
fn f16_is_near_transformers() {
    for name in ["qwen2vl-b", "qwen2.5vl-b", "qwen3vl-b"] {
        let set = Set::named(name);
        check_f16(&set, set.files_at(1), F16);
    }
}

#[test]
fn pairs_that_are_left_over_turn_by_time() {
    let set = Set::named("qwen3vl-a");
    let error = |eval_callback| {
        let options = SessionOptions {
            eval_callback,
            ..exact_options()
        };
        let mut session = open(&set.files_at(1), options);
        let prompt = set.prompt(&session, "text");
        let logits_alone = RunOptions {
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            ..RunOptions::default()
        };
        let run = session.run(&prompt, logits_alone).expect("it runs");
        largest_error(&run.logits, &set.oracle.f32("text/logits"))
    };
    let (ours, as_it_is) = (error(true), error(false));
    println!("{ours:.1e} beside {as_it_is:.1e}");
    // If this fails, llama.cpp does it by itself, and `llama::mrope_positions` can go.
    assert!(
        ON_DEVICE || ours < 1e-5 && as_it_is > 10.0 * ours,
        "{ours:.1e} beside {as_it_is:.1e}"
    );
}
