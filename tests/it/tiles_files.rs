//! Files of SmolVLM, Idefics3 and InternVL that cannot be read or say less, and checkpoints that are refused.

use gguf_tools::gguf::Value;
use gguf_tools::llava;
use llava_sae_cpp::{ModelFiles, PromptForm};

use crate::families::options;
use crate::fixture::{IMAGE_EMBEDDINGS, everything, exact_options, relative_error, temporary_root};
use crate::picture_files::{
    F16, check_command_line_refuses, check_f16, check_marker_is_wanted, check_refused, shaded,
    with_projector,
};
use crate::picture_set::LANGUAGE_MODEL;
use crate::rewritten::{Parts, Tensor};
use crate::tiles_set::{Set, image, open, picture, rows};

const LONGEST_EDGE: &str = "clip.vision.preproc_image_size";

fn files(name: &'static str) -> ModelFiles {
    Set::named(name).files_at(1)
}

/// What `change` makes of a set's projector is refused.
fn refused(name: &'static str, change: &dyn Fn(&mut Parts), words: &str) {
    check_refused(&with_projector(files(name), change), words);
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let set =
        |key: &'static str, value: Value| move |parts: &mut Parts| parts.set(key, value.clone());
    let removed = |key: &'static str| move |parts: &mut Parts| parts.remove(key);
    let scale = "clip.vision.projector.scale_factor";
    for name in ["smolvlm", "internvl-qwen2"] {
        for key in [
            "clip.vision.patch_size",
            "clip.vision.image_size",
            "clip.vision.embedding_length",
            "clip.vision.block_count",
            "clip.vision.attention.head_count",
            "clip.vision.image_mean",
            "clip.use_gelu",
            scale,
        ] {
            refused(name, &removed(key), key);
        }
        refused(name, &set(scale, 3_u32.into()), "side by side by 3");
        refused(name, &set(scale, 0_u32.into()), scale);
        let patch = "clip.vision.patch_size";
        refused(name, &set(patch, 0_u32.into()), patch);
        refused(name, &set(patch, 33_u32.into()), patch);
        refused(name, &set("clip.use_gelu", false.into()), "use_gelu");
    }
    refused("smolvlm", &set(scale, 1_u32.into()), scale);
    refused("smolvlm", &set(LONGEST_EDGE, 0_u32.into()), LONGEST_EDGE);
    refused(
        "smolvlm",
        &set(LONGEST_EDGE, 257_u32.into()),
        "more than 8 tiles",
    );
    refused("smolvlm", &set(LONGEST_EDGE, 5000_u32.into()), LONGEST_EDGE);
    let [least, most] = [
        "clip.vision.preproc_min_tiles",
        "clip.vision.preproc_max_tiles",
    ];
    refused("internvl-qwen2", &set(least, 13_u32.into()), "is more than");
    refused("internvl-qwen2", &set(most, 65_u32.into()), most);
    refused("internvl-qwen2", &set(most, 0_u32.into()), most);
    refused(
        "internvl-qwen2",
        &set("clip.vision.patch_size", 7_u32.into()),
        "times `clip.vision.patch_size` 7",
    );
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let of_both = [
        "v.patch_embd.weight",
        "v.patch_embd.bias",
        "v.position_embd.weight",
        "v.blk.1.ln2.bias",
    ];
    let of_one: [(&'static str, &[&'static str]); 2] = [
        ("idefics3", &["v.post_ln.weight"]),
        (
            "internvl-qwen3",
            &[
                "v.class_embd",
                "v.blk.1.ls1.weight",
                "v.blk.0.ls2.weight",
                "mm.model.mlp.0.bias",
                "mm.model.mlp.1.weight",
                "mm.model.mlp.3.bias",
            ],
        ),
    ];
    for (set, names) in of_one {
        for &name in names.iter().chain(&of_both) {
            let taken = |parts: &mut Parts| {
                parts.take(name);
            };
            let stem = name.trim_end_matches(".weight");
            refused(set, &taken, stem);
            let halved = |parts: &mut Parts| {
                let mut dims = parts.take(name).dims;
                dims[0] /= 2;
                parts.add(Tensor::ones(name, &dims));
            };
            refused(set, &halved, stem);
        }
        let more = |parts: &mut Parts| parts.add(Tensor::ones("v.another", &[8]));
        refused(set, &more, "`v.another` does not belong");
    }
    let wider = |parts: &mut Parts| {
        parts.take("mm.model.fc.weight");
        parts.add(Tensor::ones("mm.model.fc.weight", &[144, 40]));
    };
    refused("idefics3", &wider, "makes rows of 40");
    let mixed = ModelFiles {
        mmproj: files("internvl-qwen3").mmproj,
        ..files("internvl-qwen2")
    };
    let error = mixed.check().expect_err("of another model");
    assert!(error.to_string().contains("makes rows of 48"), "{error}");
}

#[test]
fn vocabularies_without_markers_are_refused() {
    check_marker_is_wanted(files("smolvlm"), "<fake_token_around_image>");
    check_marker_is_wanted(files("internvl-qwen2"), "</img>");
}

/// llama.cpp's first files do not say how pictures are scaled, and all published checkpoints scale alike.
#[test]
fn keys_that_the_first_files_lack_have_published_values() {
    let older = |parts: &mut Parts| {
        for key in [
            LONGEST_EDGE,
            "clip.vision.preproc_min_tiles",
            "clip.vision.preproc_max_tiles",
        ] {
            parts.remove(key);
        }
    };
    for name in ["smolvlm", "internvl-qwen2"] {
        let set = Set::named(name);
        let session = open(&with_projector(files(name), &older), exact_options());
        for picture in ["wide", "tall"] {
            let theirs = set
                .oracle
                .f32(&format!("picture/{picture}/image_embeddings"));
            let error = relative_error(&rows(&image(&session, picture)), &theirs);
            assert!(error < IMAGE_EMBEDDINGS, "{name}, {picture}: {error:.2e}");
        }
    }
}

/// Where the longest side is that of one tile, a picture is that, with no tag of a tile.
#[test]
fn pictures_of_one_tile_have_no_tags() {
    for name in ["smolvlm", "idefics3"] {
        let set = Set::named(name);
        let side = set.number("image_size") as u32;
        let files = with_projector(files(name), &|parts| parts.set(LONGEST_EDGE, side));
        let mut session = open(&files, exact_options());
        let image = image(&session, "wide");
        let error = relative_error(&rows(&image), &set.oracle.f32("unsplit/image_embeddings"));
        assert!(error < IMAGE_EMBEDDINGS, "{name}: {error:.2e}");
        let prompt = set.prompt(&session, "wide");
        let image_pad = set.number("image_pad") as i32;
        let ids = prompt.tokens().iter();
        let ids: Vec<i32> = ids.map(|token| token.id.unwrap_or(image_pad)).collect();
        assert_eq!(ids, set.oracle.ids("unsplit/prompt_ids"), "{name}");
        let run = session.run(&prompt, everything(0)).expect("it runs");
        let error = relative_error(&run.logits, &set.oracle.f32("unsplit/logits"));
        assert!(error < LANGUAGE_MODEL, "{name}: {error:.2e}");
    }
}

#[test]
fn pictures_of_any_size_are_seen_or_refused() {
    for name in ["smolvlm", "internvl-qwen2"] {
        let session = open(&files(name), exact_options());
        let plain = |width, height| session.encode_image(&shaded(width, height));
        for [width, height] in [[1, 1], [1, 64], [64, 1], [3, 100], [2000, 1999]] {
            let image = plain(width, height).expect("it is not too long");
            assert!(rows(&image).iter().all(|value| value.is_finite()));
        }
        let error = plain(65, 1).err().expect("too long");
        assert!(error.to_string().contains("more than 64 times"), "{error}");
        assert!(error.hint().is_some());
        // A row of the picture is the last of a prompt.
        let image = session
            .encode_image(&picture("wide"))
            .expect("it is encoded");
        let ends = session.prompt("<image>", PromptForm::Raw, &[&image]);
        assert!(ends.is_ok(), "a marker stands behind it");
    }
}

#[test]
fn the_command_line_refuses_with_a_hint() {
    check_command_line_refuses(&files("smolvlm"), "tiles", "64 times");
}

#[test]
fn f16_is_near_transformers() {
    for set in Set::all() {
        check_f16(&set, set.files_at(1), F16);
    }
}

/// A checkpoint with one text of a file changed is refused with these words.
fn refuses(name: &'static str, file: &str, [from, to]: [&str; 2], words: &str) {
    let dir = tempfile::tempdir_in(temporary_root()).expect("a folder of our own");
    for entry in std::fs::read_dir(Set::named(name).dir()).expect("a committed folder") {
        let entry = entry.expect("it can be read");
        let to = dir.path().join(entry.file_name());
        std::fs::copy(entry.path(), to).expect("it is copied");
    }
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).expect("a text");
    assert!(text.contains(from), "{file} should have {from}");
    std::fs::write(&path, text.replacen(from, to, 1)).expect("it is written");
    let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
    let out = dir.path().join("out");
    let error = llava::convert(dir.path(), &out, &options(), go_on).expect_err(words);
    let said = error.to_string();
    assert!(said.contains(words), "`{said}` should say `{words}`");
}

#[test]
fn checkpoints_that_do_not_fit_are_refused() {
    let [config, preprocessor] = ["config.json", "preprocessor_config.json"];
    let vision = |from, to, words| refuses("internvl-qwen2", config, [from, to], words);
    vision("\"layer_norm\"", "\"rms_norm\"", "`rms_norm`");
    vision(
        "\"use_qk_norm\": false",
        "\"use_qk_norm\": true",
        "use_qk_norm",
    );
    vision(
        "\"attention_bias\": true",
        "\"attention_bias\": false",
        "attention_bias",
    );
    vision(
        "\"use_mean_pooling\": true",
        "\"use_mean_pooling\": false",
        "use_mean_pooling",
    );
    vision(
        "\"downsample_ratio\": 0.5",
        "\"downsample_ratio\": 0.3",
        "downsample_ratio",
    );
    vision(
        "\"downsample_ratio\": 0.5",
        "\"downsample_ratio\": 1.0",
        "downsample_ratio",
    );
    vision(
        "\"vision_feature_layer\": -1",
        "\"vision_feature_layer\": -2",
        "vision_feature_layer",
    );
    vision("\"internvl\"", "\"internvl_chat\"", "own code");
    // Keys that are missing have transformers' defaults.
    for (name, width, expected) in [
        ("smolvlm", 12, "[1152, 3, 4, 4]"),
        ("idefics3", 16, "[1152, 3, 4, 4]"),
        ("internvl-qwen2", 12, "[1, 1, 1024]"),
        ("internvl-qwen3", 48, "4096]"),
    ] {
        let key = format!("\"hidden_size\": {width},");
        refuses(name, config, [&key, ""], expected);
    }
    refuses(
        "internvl-qwen2",
        preprocessor,
        ["\"min_patches\": 1", "\"min_patches\": 13"],
        "more than",
    );
    refuses(
        "internvl-qwen2",
        preprocessor,
        ["\"max_patches\": 12", "\"max_patches\": 65"],
        "max_patches",
    );
    refuses(
        "internvl-qwen2",
        preprocessor,
        ["\"height\": 32", "\"height\": 64"],
        "`size`",
    );
    refuses(
        "smolvlm",
        config,
        ["\"scale_factor\": 4", "\"scale_factor\": 3"],
        "`scale_factor`",
    );
    let pictures = |from, to, words| refuses("smolvlm", preprocessor, [from, to], words);
    pictures(
        "\"do_image_splitting\": true",
        "\"do_image_splitting\": false",
        "do_image_splitting",
    );
    pictures(
        "\"longest_edge\": 32",
        "\"longest_edge\": 36",
        "max_image_size",
    );
    pictures(
        "\"longest_edge\": 128",
        "\"longest_edge\": 300",
        "size.longest_edge",
    );
    pictures("\"longest_edge\": 128", "\"height\": 128", "longest_edge");
    pictures("\"resample\": 1", "\"resample\": 3", "Lanczos");
}
