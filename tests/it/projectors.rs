//! Projectors as people have them, of every age; and those that would bring llama.cpp down.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{TensorType, Value};
use llava_sae_cpp::{Keep, ModelFiles, PromptForm, RunOptions, Session};

use crate::bad_input::check_file;
use crate::command_line::run;
use crate::fixture::{Fixture, exact_options, image_rows, picture, relative_error};
use crate::rewritten::{Parts, Tensor, rewritten};

const FEATURE_LAYER: &str = "clip.vision.feature_layer";
const BLOCK_COUNT: &str = "clip.vision.block_count";
const WIDTH: &str = "clip.vision.embedding_length";

fn original(fixture: Fixture, tensor_type: TensorType) -> PathBuf {
    let name = format!("mmproj-{}.gguf", tensor_type.name());
    fixture.converted(tensor_type).join(name)
}

/// What the projector at `path` gives for a picture, and the text on it.
fn rows_and_caption(fixture: Fixture, path: &Path) -> (Vec<f32>, String) {
    let models = fixture.converted(TensorType::F32);
    let files = ModelFiles::find(Some(&models), None, Some(path.into()), Vec::new());
    let mut session = Session::open(&files.expect("all are there"), exact_options())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let image = session.encode_image(&fixture.open_picture("01.png"));
    let image = image.expect("the picture is encoded");
    let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[&image]);
    let options = RunOptions {
        steering: None,
        keep: Keep::default(),
        max_tokens: 24,
        ..RunOptions::default()
    };
    let run = session.run(&prompt.expect("a text"), options);
    (image_rows(&image).to_vec(), run.expect("it runs").text)
}

/// A projector in other words gives what the original gives.
fn check_same(fixture: Fixture, tensor_type: TensorType, name: &str, change: fn(&mut Parts)) {
    let original = original(fixture, tensor_type);
    let path = rewritten(&original, &change);
    let (rows, caption) = rows_and_caption(fixture, &path);
    let (expected_rows, expected_caption) = rows_and_caption(fixture, &original);
    let error = relative_error(&rows, &expected_rows);
    assert!(error < 1e-5, "{name} of {fixture:?}: {error:.2e}");
    assert_eq!(caption, expected_caption, "{name} of {fixture:?}");
}

fn number(file: &Parts, key: &str) -> u32 {
    match file.get(key) {
        Value::U32(number) => *number,
        other => panic!("`{key}` is {other:?}"),
    }
}

fn zeros(name: &str, dims: &[u64]) -> Tensor {
    let mut tensor = Tensor::ones(name, dims);
    tensor.values.fill(0.0);
    tensor
}

fn exchange_names_in(file: &mut Parts, block_idx: u32) {
    for part in ["weight", "bias"] {
        let [up, down] = ["up", "down"].map(|at| format!("v.blk.{block_idx}.ffn_{at}.{part}"));
        "between".clone_into(&mut file.tensor(&up).name);
        file.tensor(&down).name = up;
        file.tensor("between").name = down;
    }
}

/// `ffn_up` and `ffn_down` bear each other's name, as in all files from before 2025.
fn exchange_names(file: &mut Parts) {
    for block_idx in 0..number(file, BLOCK_COUNT) {
        exchange_names_in(file, block_idx);
    }
}

fn forget_feature_layer(file: &mut Parts) {
    file.remove(FEATURE_LAYER);
}

/// What llama.cpp's `convert_image_encoder_to_gguf.py` wrote.
fn as_of_2024(file: &mut Parts) {
    exchange_names(file);
    forget_feature_layer(file);
    file.set("clip.has_text_encoder", false);
    file.set("general.file_type", 1_u32);
    file.set("general.name", "vit-large336-custom");
    file.set("general.description", "image encoder for LLaVA");
    file.set("clip.vision.projection_dim", 768_u32);
    file.set("clip.vision.image_aspect_ratio", "pad");
    file.set("clip.vision.mm_patch_merge_type", "flat");
    file.set("clip.vision.mm_projector_type", "mlp2x_gelu");
    file.set("clip.vision.image_crop_resolution", 224_u32);
}

/// The first ones, which name no type of projector.
fn as_of_2023(file: &mut Parts) {
    exchange_names(file);
    forget_feature_layer(file);
    file.remove("clip.projector_type");
    file.set("clip.has_text_encoder", false);
}

fn with_post_norm(file: &mut Parts) {
    let width = number(file, WIDTH).into();
    for part in ["weight", "bias"] {
        file.add(zeros(&format!("v.post_ln.{part}"), &[width]));
    }
}

/// The last block is there, and not counted.
fn with_a_block_more(file: &mut Parts) {
    forget_feature_layer(file);
    let n_blocks = number(file, BLOCK_COUNT);
    for part in [
        "attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down", "ln1", "ln2",
    ] {
        for part in ["weight", "bias"].map(|kind| format!("{part}.{kind}")) {
            let mut tensor = file.tensor(&format!("v.blk.0.{part}")).clone();
            tensor.name = format!("v.blk.{n_blocks}.{part}");
            file.add(tensor);
        }
    }
}

#[test]
fn names_of_the_feed_forward_parts_may_be_exchanged() {
    let in_one_block = |file: &mut Parts| exchange_names_in(file, 1);
    check_same(Fixture::Demo, TensorType::F32, "exchanged", exchange_names);
    check_same(Fixture::Demo, TensorType::F32, "one-block", in_one_block);
    check_same(Fixture::Tiny, TensorType::F32, "exchanged", exchange_names);
}

/// Before, llama.cpp left out the last block: an apple became a pizza.
#[test]
fn without_a_feature_layer_the_checkpoints_blocks_are_run() {
    use TensorType::{F16, F32, Q8_0};
    check_same(Fixture::Demo, F32, "no-layer", forget_feature_layer);
    check_same(Fixture::Demo, F16, "no-layer", forget_feature_layer);
    check_same(Fixture::Demo, Q8_0, "no-layer", forget_feature_layer);
    check_same(Fixture::Tiny, F32, "no-layer", forget_feature_layer);
    check_same(Fixture::Demo, F32, "block-more", with_a_block_more);
    check_same(Fixture::Demo, F32, "of-2024", as_of_2024);
    check_same(Fixture::Demo, F16, "of-2023", as_of_2023);
    check_same(Fixture::Demo, F32, "post-norm", with_post_norm);
}

#[test]
fn what_was_worked_out_is_said() {
    let models = Fixture::Demo.converted(TensorType::F32);
    let stderr = |change: fn(&mut Parts)| {
        let path = rewritten(&original(Fixture::Demo, TensorType::F32), &change);
        let [models, path] = [&models, &path].map(|path| path.to_str().expect("plain"));
        let args = ["-d", models, "--mmproj", path, "--no-probe", "-n", "1"];
        let output = run(&[&args[..], &[picture()]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        stderr
    };
    let said = stderr(as_of_2024);
    assert_eq!(said.matches("rewritten.gguf").count(), 1, "{said}");
    assert!(said.contains("`clip.vision.feature_layer`"), "{said}");
    let said = stderr(with_post_norm);
    assert!(said.contains("`v.post_ln.weight`"), "{said}");
    assert_eq!(stderr(exchange_names), "");
}

/// What llama.cpp does not read is left alone, whatever it is.
#[test]
fn other_keys_are_left_alone() {
    let change = |file: &mut Parts| {
        file.set("general.file_type", "none");
        file.set("clip.text.block_count", -1_i32);
        file.set("clip.audio.block_count", 1.5_f32);
        file.set("my.own", vec!["a".to_owned(), "b".to_owned()]);
    };
    check_same(Fixture::Demo, TensorType::F32, "other-keys", change);
}

/// One change each to the demo's projector, and what the refusal names.
type Case = (&'static str, fn(&mut Parts));

fn check_refused(cases: &[Case]) {
    let good = original(Fixture::Demo, TensorType::F32);
    for (named, change) in cases {
        check_file(
            "--mmproj",
            &rewritten(&good, change),
            &[named, "rewritten.gguf"],
        );
    }
}

fn retype(file: &mut Parts, name: &str, tensor_type: TensorType) {
    file.tensor(name).tensor_type = tensor_type;
}

/// Seen as one square before, without a word; `next` tests what is not refused.
#[test]
fn signs_of_tiles_without_their_sizes_are_refused() {
    check_refused(&[
        ("v.image_newline", |file| {
            file.add(zeros("v.image_newline", &[192]));
        }),
        ("model.image_newline", |file| {
            as_of_2023(file);
            file.add(zeros("model.image_newline", &[192]));
        }),
        ("clip.vision.mm_patch_merge_type", |file| {
            file.set("clip.vision.mm_patch_merge_type", "spatial_unpad");
        }),
        ("clip.vision.image_aspect_ratio", |file| {
            file.set("clip.vision.image_aspect_ratio", "anyres");
        }),
    ]);
}

/// Before: SIGSEGV (types without a product, `mm.3.weight`), SIGFPE (types of no values), SIGABRT
/// (vectors that are not in f32, shapes), or another answer.
#[test]
fn tensors_that_do_not_belong_are_refused() {
    check_refused(&[
        // Types without a product: i8, i16, i32, i64, f64, q8_1.
        ("v.blk.0.attn_q.weight", |f| {
            retype(f, "v.blk.0.attn_q.weight", TensorType::Other(24));
        }),
        ("v.blk.0.attn_k.weight", |f| {
            retype(f, "v.blk.0.attn_k.weight", TensorType::Other(25));
        }),
        ("v.blk.1.attn_out.weight", |f| {
            retype(f, "v.blk.1.attn_out.weight", TensorType::Other(26));
        }),
        ("v.blk.0.ffn_up.weight", |f| {
            retype(f, "v.blk.0.ffn_up.weight", TensorType::Other(27));
        }),
        ("mm.0.weight", |f| {
            retype(f, "mm.0.weight", TensorType::Other(28))
        }),
        ("mm.2.weight", |f| {
            retype(f, "mm.2.weight", TensorType::Other(9))
        }),
        ("v.position_embd.weight", |f| {
            retype(f, "v.position_embd.weight", TensorType::Other(24));
        }),
        // Kernels of other types than f32 and f16.
        ("v.patch_embd.weight", |f| {
            retype(f, "v.patch_embd.weight", TensorType::Bf16);
        }),
        ("v.patch_embd.weight", |f| {
            retype(f, "v.patch_embd.weight", TensorType::Other(26));
        }),
        // Vectors that are not in f32.
        ("v.class_embd", |f| {
            retype(f, "v.class_embd", TensorType::F16)
        }),
        ("v.pre_ln.weight", |f| {
            retype(f, "v.pre_ln.weight", TensorType::F16)
        }),
        ("v.blk.0.ln1.bias", |f| {
            retype(f, "v.blk.0.ln1.bias", TensorType::Bf16)
        }),
        ("v.blk.0.ffn_down.bias", |f| {
            retype(f, "v.blk.0.ffn_down.bias", TensorType::F16);
        }),
        ("mm.0.bias", |f| {
            retype(f, "mm.0.bias", TensorType::Other(28))
        }),
        // Tensors that the encoder or projector does not have.
        ("mm.3.weight", |f| f.add(zeros("mm.3.weight", &[192, 192]))),
        ("mm.1.bias", |f| f.add(zeros("mm.1.bias", &[192]))),
        ("v.blk.0.ffn_gate.weight", |f| {
            f.add(zeros("v.blk.0.ffn_gate.weight", &[7, 9]));
        }),
        ("v.blk.0.attn_qkv.weight", |f| {
            f.add(zeros("v.blk.0.attn_qkv.weight", &[64, 192]));
        }),
        ("v.patch_embd.bias", |f| {
            f.add(zeros("v.patch_embd.bias", &[64]));
        }),
        ("v.patch_embd.weight.1", |f| {
            f.add(zeros("v.patch_embd.weight.1", &[8]));
        }),
        ("v.blk.99.ln1.weight", |f| {
            f.add(zeros("v.blk.99.ln1.weight", &[64]));
        }),
        ("t.blk.0.ln1.weight", |f| {
            f.add(zeros("t.blk.0.ln1.weight", &[64]));
        }),
        // Wrong shapes.
        ("v.post_ln.weight", |f| {
            f.add(zeros("v.post_ln.weight", &[3]))
        }),
        ("v.class_embd", |f| {
            let tensor = f.tensor("v.class_embd");
            tensor.dims.push(2);
            tensor.values.extend_from_within(..);
        }),
        ("v.blk.0.ffn_up.weight", |f| {
            f.tensor("v.blk.0.ffn_up.weight").dims.rotate_left(1);
        }),
    ]);
}

/// Before: SIGABRT (types, empty arrays, several feature layers, negative epsilon), minutes (large
/// pictures), or another answer.
#[test]
fn keys_of_other_types_or_ranges_are_refused() {
    check_refused(&[
        ("general.name", |f| f.set("general.name", 3_u32)),
        ("general.description", |f| {
            f.set("general.description", true)
        }),
        ("clip.projector_type", |f| {
            f.set("clip.projector_type", 1_u32)
        }),
        ("clip.vision.projector_type", |f| {
            f.set("clip.vision.projector_type", 1_u32);
        }),
        ("clip.has_vision_encoder", |f| {
            f.remove("clip.has_vision_encoder")
        }),
        ("clip.has_vision_encoder", |f| {
            f.set("clip.has_vision_encoder", false);
        }),
        ("clip.has_vision_encoder", |f| {
            f.set("clip.has_vision_encoder", 1_u32);
        }),
        ("clip.has_audio_encoder", |f| {
            f.set("clip.has_audio_encoder", true);
        }),
        ("clip.has_gen_audio_encoder", |f| {
            f.set("clip.has_gen_audio_encoder", "no");
        }),
        ("clip.use_gelu", |f| f.set("clip.use_gelu", 0_u32)),
        ("clip.use_silu", |f| f.set("clip.use_silu", "yes")),
        ("clip.use_silu", |f| {
            f.set("clip.use_gelu", true);
            f.set("clip.use_silu", true);
        }),
        ("clip.minicpmv_version", |f| {
            f.set("clip.minicpmv_version", 2_u32);
        }),
        ("clip.vision.projection_dim", |f| {
            f.set("clip.vision.projection_dim", 192_i32);
        }),
        ("clip.vision.projection_dim", |f| {
            f.set("clip.vision.projection_dim", u32::MAX);
        }),
        ("clip.vision.image_size", |f| {
            f.set("clip.vision.image_size", 2044_u32)
        }),
        ("clip.vision.image_size", |f| {
            f.set("clip.vision.image_size", 0_u32)
        }),
        ("clip.vision.image_size", |f| {
            f.set("clip.vision.image_size", 113_u32)
        }),
        ("clip.vision.patch_size", |f| {
            f.set("clip.vision.patch_size", 0_u32)
        }),
        ("clip.vision.patch_size", |f| {
            f.set("clip.vision.patch_size", 1_u32)
        }),
        ("clip.vision.patch_size", |f| {
            f.set("clip.vision.patch_size", 14_u64)
        }),
        ("clip.vision.embedding_length", |f| {
            f.set("clip.vision.embedding_length", 0_u32);
        }),
        ("clip.vision.feed_forward_length", |f| {
            f.set("clip.vision.feed_forward_length", u32::MAX);
        }),
        ("clip.vision.feed_forward_length", |f| {
            let width = number(f, WIDTH);
            f.set("clip.vision.feed_forward_length", width);
        }),
        ("clip.vision.block_count", |f| {
            f.set("clip.vision.block_count", 0_u32);
        }),
        ("clip.vision.block_count", |f| {
            f.set("clip.vision.block_count", 100_000_u32);
        }),
        ("clip.vision.attention.head_count", |f| {
            f.set("clip.vision.attention.head_count", 0_u32);
        }),
        ("clip.vision.attention.head_count_kv", |f| {
            f.set("clip.vision.attention.head_count_kv", 1_u32);
        }),
        ("clip.vision.attention.head_dim", |f| {
            f.set("clip.vision.attention.head_dim", 8_i32);
        }),
        ("clip.vision.attention.head_dim", |f| {
            f.set("clip.vision.attention.head_dim", 5_u32);
        }),
        ("clip.vision.attention.layer_norm_epsilon", |f| {
            f.set("clip.vision.attention.layer_norm_epsilon", -1e-5_f32);
        }),
        ("clip.vision.attention.layer_norm_epsilon", |f| {
            f.set("clip.vision.attention.layer_norm_epsilon", f32::NAN);
        }),
        ("clip.vision.attention.layer_norm_epsilon", |f| {
            f.set("clip.vision.attention.layer_norm_epsilon", 0.0_f32);
        }),
        ("clip.vision.attention.layer_norm_epsilon", |f| {
            f.set("clip.vision.attention.layer_norm_epsilon", 1_u32);
        }),
        ("clip.vision.image_mean", |f| {
            f.set("clip.vision.image_mean", Vec::<f32>::new());
        }),
        ("clip.vision.image_mean", |f| {
            f.set("clip.vision.image_mean", vec![0.5, f32::INFINITY, 0.5]);
        }),
        ("clip.vision.image_mean", |f| {
            f.set("clip.vision.image_mean", vec![0.5_f32; 4]);
        }),
        ("clip.vision.image_std", |f| {
            f.set("clip.vision.image_std", vec![0.5_f32, 0.0, 0.5]);
        }),
        ("clip.vision.image_std", |f| {
            f.set("clip.vision.image_std", vec![0.5_f32, -0.5, 0.5]);
        }),
        ("clip.vision.image_std", |f| {
            f.set("clip.vision.image_std", 0.5_f32)
        }),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![-1_i32])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![-2_i32])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![0_i32])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![1_i32, 2])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, Vec::<i32>::new())),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![99_i32])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, vec![1_u32])),
        (FEATURE_LAYER, |f| f.set(FEATURE_LAYER, 1_i32)),
        ("clip.vision.image_grid_pinpoints", |f| {
            f.set("clip.vision.image_grid_pinpoints", "none");
        }),
    ]);
}
