//! Gemma 4's projectors and pictures that cannot be read, and files of another number type.

use gguf_tools::gguf::Value;
use llava_sae_cpp::ModelFiles;

use crate::fixture::exact_options;
use crate::gemma4_picture_set::Set;
use crate::picture_files::{
    F16, check_command_line_refuses, check_f16, check_marker_is_wanted, check_refused, check_sizes,
    with_projector,
};
use crate::picture_set::{open, rows};
use crate::rewritten::{Parts, Tensor, rewritten};

fn files(name: &'static str) -> ModelFiles {
    Set::named(name).files_at(1)
}

/// What `change` makes of a set's projector is refused.
fn refused(set: &'static str, change: &dyn Fn(&mut Parts), words: &str) {
    check_refused(&with_projector(files(set), change), words);
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    for key in [
        "clip.vision.patch_size",
        "clip.vision.embedding_length",
        "clip.vision.feed_forward_length",
        "clip.vision.block_count",
        "clip.vision.attention.head_count",
        "clip.vision.attention.layer_norm_epsilon",
        "clip.vision.image_size",
        "clip.vision.image_mean",
        "clip.vision.image_std",
        "clip.vision.projection_dim",
        "clip.has_vision_encoder",
    ] {
        refused("dense-a", &|parts| parts.remove(key), key);
    }
    let cases: &[(&str, Value)] = &[
        ("clip.use_gelu", 1_u32.into()),
        ("clip.use_silu", true.into()),
        ("clip.vision.patch_size", 0_u32.into()),
        ("clip.vision.patch_size", 33_u32.into()),
        ("clip.vision.projector.scale_factor", 0_u32.into()),
        ("clip.vision.projector.scale_factor", 9_u32.into()),
        ("clip.vision.image_max_pixels", 0_u32.into()),
        ("clip.vision.image_max_pixels", (71 * 144_u32).into()),
        ("clip.vision.image_max_pixels", u32::MAX.into()),
        ("clip.vision.n_wa_pattern", 2_u32.into()),
        ("clip.vision.attention.head_dim", 4_u32.into()),
        ("clip.vision.attention.head_count_kv", 1_u32.into()),
        ("clip.vision.attention.layer_norm_epsilon", 0.0_f32.into()),
        ("clip.vision.image_std", vec![1.0_f32, 0.0, 1.0].into()),
    ];
    for (key, value) in cases {
        refused("dense-a", &|parts| parts.set(key, value.clone()), key);
    }
    let heads = "clip.vision.attention.head_count";
    for n_heads in [3_u32, 8] {
        refused(
            "dense-a",
            &|parts| parts.set(heads, n_heads),
            "multiples of 4",
        );
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    for (set, names) in [
        ("dense-a", &["v.blk.0.attn_post_norm.weight"][..]),
        ("dense-b", &["v.std_bias", "v.std_scale"]),
    ] {
        let common = [
            "v.patch_embd.weight",
            "v.position_embd.weight",
            "v.blk.1.ln2.weight",
            "v.blk.1.ffn_gate.weight",
            "v.blk.1.attn_q_norm.weight",
            "v.blk.1.ffn_post_norm.weight",
            "mm.input_projection.weight",
        ];
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
        for name in [
            "v.class_embd",
            "v.patch_embd.bias",
            "v.blk.0.attn_q.bias",
            "v.blk.0.out_scale.weight",
        ] {
            let more = |parts: &mut Parts| parts.add(Tensor::ones(name, &[16]));
            refused(set, &more, "does not belong to a Gemma 4 projector");
        }
        let wider = |parts: &mut Parts| {
            let mut dims = parts.take("mm.input_projection.weight").dims;
            dims[1] = 30;
            parts.add(Tensor::ones("mm.input_projection.weight", &dims));
        };
        refused(set, &wider, "makes rows of 30");
    }
    // Position embeddings are looked up, which ends the process where there are too few.
    let few = |parts: &mut Parts| {
        parts.take("v.position_embd.weight");
        parts.add(Tensor::ones("v.position_embd.weight", &[16, 209, 2]));
    };
    let words = "is for 209 patches a side, and a picture may have 210";
    refused("dense-a", &few, words);
    let more_rows = |parts: &mut Parts| parts.remove("clip.vision.image_max_pixels");
    refused("shared-a", &more_rows, "a picture may have 840");
    let limits = |parts: &mut Parts| {
        parts.take("v.blk.0.attn_q.input_min");
        parts.add(Tensor::ones("v.blk.0.attn_q.input_min", &[2]));
    };
    refused("dense-a", &limits, "v.blk.0.attn_q.input_min");
    // Files of which nothing is clipped have no limits, and there may be some alone.
    let without = |parts: &mut Parts| drop(parts.take("v.blk.0.attn_q.input_min"));
    let files = with_projector(files("dense-a"), &without);
    files.check().expect("it fits");
}

#[test]
fn language_models_that_do_not_fit_are_refused() {
    let mixed = ModelFiles {
        mmproj: files("dense-b").mmproj,
        ..files("dense-a")
    };
    check_refused(&mixed, "makes rows of 48");
    for marker in ["<|image>", "<image|>"] {
        check_marker_is_wanted(files("dense-a"), marker);
    }
    // Image rows have the per-layer embedding of the padding token.
    let padding = "tokenizer.ggml.padding_token_id";
    let with_padding = |name| {
        let good = files(name);
        let model = rewritten(&good.model, &|parts| parts.set(padding, 3_u32));
        ModelFiles { model, ..good }
    };
    check_refused(&with_padding("shared-a"), padding);
    with_padding("dense-a").check().expect("it has none");
}

/// A file that sees and hears, as published ones of E2B and E4B: it is run without what hears.
#[test]
fn what_hears_is_left_out() {
    let image = |files: &ModelFiles| {
        let session = open(files, exact_options());
        rows(&Set::named("shared-a").image(&session, "tall"))
    };
    let omni = with_projector(files("shared-a"), &|parts| {
        parts.set("clip.has_audio_encoder", true);
        parts.set("clip.audio.projector_type", "gemma4a");
        parts.add(Tensor::ones("a.conv1d.0.weight", &[3, 3, 1, 2]));
        parts.add(Tensor::ones("mm.a.input_projection.weight", &[8, 32]));
    });
    assert_eq!(image(&omni), image(&files("shared-a")));
}

#[test]
fn pictures_of_any_size_are_seen_or_refused() {
    let session = open(&files("dense-b"), exact_options());
    let seen = [
        ([1, 1], [8, 8]),
        ([1, 200], [70, 1]),
        ([200, 1], [1, 70]),
        ([2600, 13], [1, 70]),
        ([4000, 3000], [7, 9]),
    ];
    check_sizes(&session, &seen);
}

#[test]
fn the_command_line_refuses_with_a_hint() {
    check_command_line_refuses(&files("dense-a"), "gemma4", "200 times");
}

/// In transformers itself, weights that are moved by 2⁻¹¹ move logits of `dense-b` by 0.024, of `shared-a` by 0.07, and those
/// of `shared-b` by 0.3.
#[test]
fn f16_is_near_transformers() {
    let of_rows = F16[0];
    for (name, bounds) in [
        ("dense-b", [of_rows, 0.03]),
        ("shared-a", [of_rows, 0.07]),
        ("experts-a", F16),
    ] {
        let set = Set::named(name);
        check_f16(&set, set.files_at(1), bounds);
    }
}
