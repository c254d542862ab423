//! Folders of other formats than SAELens' that are malformed, or ask for what is not supported. What
//! right ones give is compared with SAELens where SAEs run, in the main package.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::sae_conversion::options;
use crate::sae_faults::check_source;

/// The SAEs of the main package's tests.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/saes")
        .join(name)
}

/// A copy of one of them, with its folder's name.
pub(crate) fn copy(name: &str, dir: &Path) -> PathBuf {
    let (source, target) = (fixture(name), dir.join(name));
    std::fs::create_dir_all(&target).expect("writable");
    for entry in std::fs::read_dir(source).expect("a committed folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            let inner = path.file_name().expect("a name").to_string_lossy();
            copy(&format!("{name}/{inner}"), dir);
        } else {
            std::fs::copy(&path, target.join(path.file_name().expect("a name"))).expect("writable");
        }
    }
    target
}

/// Changes a JSON file.
pub(crate) fn edit(path: &Path, key: &str, value: serde_json::Value) {
    let bytes = std::fs::read(path).expect("readable");
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    config[key] = value;
    std::fs::write(path, config.to_string()).expect("writable");
}

const GEMMA_SCOPE: &str = "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71";
const DEFLATED: &str = "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71";
const GEMMA_SCOPE_2: &str = "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium";
const SPARSIFY: &str = "sparsify/layers.1";
const LLAMA_SCOPE: &str = "llama-scope/Llama3_1-8B-Base-L1R-8x";

#[test]
fn configurations() {
    let check = |name: &str, file: &str, key: &str, value: serde_json::Value, expected: &[&str]| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy(name, dir.path());
        edit(&source.join(file), key, value);
        check_source(&source, &options(), expected);
    };
    let check_2 = |key, value, expected: &[&str]| {
        check(GEMMA_SCOPE_2, "config.json", key, value, expected);
    };
    check_2("architecture", json!("topk"), &["config.json", "`topk`"]);
    check_2(
        "hf_hook_point_in",
        json!("model.layers.1.mlp.input"),
        &["config.json", "`model.layers.1.mlp.input` is not known"],
    );
    check_2(
        "hf_hook_point_out",
        json!("model.layers.1.mlp.output"),
        &["config.json", "`model.layers.1.mlp.output` is not known"],
    );
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(GEMMA_SCOPE_2, dir.path());
    let crosscoder = dir.path().join("crosscoder_65k");
    std::fs::create_dir(&crosscoder).expect("writable");
    let file = crosscoder.join("params_layer_0.safetensors");
    std::fs::rename(source.join("params.safetensors"), &file).expect("writable");
    check_source(&file, &options(), &["crosscoder", "several layers"]);
    check_source(
        &crosscoder,
        &options(),
        &["1 of them", "`params_layer_0.safetensors`"],
    );
    let check_sparsify = |key, value, expected: &[&str]| {
        check(SPARSIFY, "cfg.json", key, value, expected);
    };
    check_sparsify("transcode", json!(true), &["transcoder of something else"]);
    check_sparsify("skip_connection", json!(true), &["no transcoder"]);
    check_sparsify("signed", json!(true), &["`signed`"]);
    check_sparsify("activation", json!("groupmax"), &["`groupmax`", "topk"]);
    check_sparsify("k", json!(0), &["`k` is 0, expected 1 to 40"]);
    check_sparsify("k", json!(41), &["`k` is 41"]);
    check_sparsify("k", json!(-1), &["cfg.json", "-1"]);
    check_sparsify("d_in", json!(7), &["`d_in` is 7", "[40, 24]"]);
    let check_llama = |key, value, expected: &[&str]| {
        check(LLAMA_SCOPE, "hyperparams.json", key, value, expected);
    };
    check_llama(
        "hook_point_out",
        json!("blocks.1.hook_mlp_out"),
        &["is a transcoder", "`blocks.1.hook_mlp_out`"],
    );
    check_llama("act_fn", json!("topk"), &["`act_fn` is `topk`"]);
    check_llama("use_glu_encoder", json!(true), &["`use_glu_encoder`"]);
    check_llama(
        "dataset_average_activation_norm",
        json!({"in": 0.0, "out": 1.0}),
        &["hyperparams.json", "above 0"],
    );
    // Deeper than any parser may recurse.
    for (name, file) in [
        (GEMMA_SCOPE_2, "config.json"),
        (SPARSIFY, "cfg.json"),
        (LLAMA_SCOPE, "hyperparams.json"),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy(name, dir.path());
        let deep = format!("{{\"k\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        std::fs::write(source.join(file), deep).expect("writable");
        check_source(&source, &options(), &[file]);
        std::fs::write(source.join(file), b"{\"k\": \"\xff\"}").expect("writable");
        check_source(&source, &options(), &[file]);
    }
}

/// Files of one block each: of circuit-tracer, and of cross-layer transcoders.
#[test]
fn files_of_blocks() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let saes = |name: &str| {
        let from = fixture("..").join("transcoders/saes").join(name);
        let target = dir.path().join(name);
        std::fs::create_dir_all(target.parent().expect("one above")).expect("writable");
        std::fs::copy(from, &target).expect("a committed file");
        target
    };
    let check = |source: &Path, expected: &[&str]| check_source(source, &options(), expected);
    let plain = saes("circuit-tracer/layer_1.safetensors");
    saes("circuit-tracer/config.yaml");
    check(
        &dir.path().join("circuit-tracer"),
        &["1 of them", "`layer_1.safetensors`"],
    );
    let renamed = plain.with_file_name("layer_x.safetensors");
    std::fs::copy(&plain, &renamed).expect("writable");
    check(
        &renamed,
        &["not an SAE of a known format", "circuit-tracer"],
    );
    let config = plain.with_file_name("config.yaml");
    let with_config = |text: &str| std::fs::write(&config, text).expect("writable");
    with_config("model_name: google/gemma-3-1b\nfeature_output_hook: mlp.hook_out\n");
    check(
        &plain,
        &["`mlp.hook_out`", "may be before a norm", "config.yaml"],
    );
    with_config("feature_input_hook: hook_mlp_out\n");
    check(&plain, &["`blocks.1.hook_mlp_out` twice"]);
    with_config("version https://git-lfs.github.com/spec/v1\n");
    check(&plain, &["Git LFS pointer"]);
    with_config("model_name: google/gemma-2-2b\n");
    let skip = saes("circuit-tracer-jumprelu-skip/layer_1.safetensors");
    for path in [&plain, &skip] {
        let bytes = std::fs::read(path).expect("readable");
        std::fs::write(path, &bytes[..bytes.len() - 1]).expect("writable");
        check(path, &["layer_1.safetensors", "truncated"]);
    }

    let encoder = saes("circuit-tracer-clt/W_enc_1.safetensors");
    saes("circuit-tracer-clt/config.yaml");
    check(&encoder, &["W_dec_1.safetensors"]);
    let decoder = saes("circuit-tracer-clt/W_dec_1.safetensors");
    check(&decoder, &["not an SAE of a known format", "W_enc_N"]);
    std::fs::copy(&encoder, &decoder).expect("writable");
    check(&encoder, &["no tensor `W_dec_1`"]);
    // Of another block than its tensors.
    let other = encoder.with_file_name("W_enc_2.safetensors");
    std::fs::rename(&encoder, &other).expect("writable");
    check(&other, &["no tensor `W_enc_2`"]);

    let block = saes("gemma-scope-2-270m-pt/clt/width_16k_l0_small/params_layer_1.safetensors");
    let last = block.with_file_name("params_layer_3.safetensors");
    std::fs::rename(&block, &last).expect("writable");
    check(&last, &["`w_dec`", "[40, 3, 24]", "more than 3"]);
}

#[test]
fn places_that_folders_do_not_tell() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(GEMMA_SCOPE, dir.path());
    let place = |name: &str| {
        let target = dir.path().join(name);
        std::fs::create_dir_all(&target).expect("writable");
        std::fs::copy(source.join("params.npz"), target.join("params.npz")).expect("writable");
        target
    };
    for name in ["layer_3/width_16k", "gemma-scope-2b-pt-res/average_l0_1"] {
        check_source(
            &place(name),
            &options(),
            &["which hook point", "name the hook point"],
        );
    }
    check_source(
        &place("gemma-scope-2b-pt-res/embedding/width_4k"),
        &options(),
        &["an SAE of the embeddings"],
    );
    let sparsify = copy(SPARSIFY, dir.path());
    for name in [
        "embed_tokens",
        "layers.x",
        "layers.1.norm",
        "vision_tower.vision_model.encoder.layers.3",
    ] {
        let renamed = sparsify.with_file_name(name);
        std::fs::rename(&sparsify, &renamed).expect("writable");
        check_source(&renamed, &options(), &[name, "name the hook point"]);
        std::fs::rename(&renamed, &sparsify).expect("writable");
    }
}

/// A `.npy` array: its header's text, and its data.
pub(crate) fn array(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).expect("short").to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn write_npz(path: &Path, compression: CompressionMethod, entries: &[(&str, Vec<u8>)]) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).expect("writable"));
    let options = SimpleFileOptions::default().compression_method(compression);
    for (name, bytes) in entries {
        zip.start_file(*name, options).expect("writable");
        zip.write_all(bytes).expect("writable");
    }
    zip.finish().expect("writable");
}

const FLOATS: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";

#[test]
fn arrays() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(GEMMA_SCOPE, dir.path());
    let check = |entries: &[(&str, Vec<u8>)], expected: &[&str]| {
        for compression in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            write_npz(&source.join("params.npz"), compression, entries);
            check_source(&source, &options(), &[expected, &["params.npz"]].concat());
        }
    };
    let one = |header: &str, data: &[u8]| [("b_enc.npy", array(header, data))];
    check(&[], &["no tensor `W_dec`"]);
    check(&one(FLOATS, &[0; 8]), &["no tensor `W_dec`"]);
    check(&one(FLOATS, &[0; 7]), &["`b_enc`", "[2]", "bytes"]);
    check(&one(FLOATS, &[0; 9]), &["`b_enc`", "[2]", "bytes"]);
    check(&one("{", &[]), &["`b_enc`", "cannot read"]);
    check(&[("b_enc.npy", b"\x93NUMPY".to_vec())], &["`b_enc`"]);
    check(&[("b_enc.npy", vec![7; 64])], &["`b_enc`"]);
    check(
        &[("notes.txt", b"text".to_vec())],
        &["`notes.txt` in it is not an `.npy` array"],
    );
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend(u32::MAX.to_le_bytes());
    check(
        &[("b_enc.npy", long)],
        &["`b_enc`", "its header claims 4294967295 bytes"],
    );
    for descr in ["<f16", "<i4", ">f4", "|O"] {
        let header = FLOATS.replace("<f4", descr);
        check(&one(&header, &[0; 8]), &["`b_enc`", "float32"]);
    }
    let columns = FLOATS.replace("False", "True").replace("(2,)", "(2, 1)");
    check(&one(&columns, &[0; 8]), &["Fortran", "ascontiguousarray"]);
    let huge = FLOATS.replace("(2,)", "(4611686018427387904, 4)");
    check(&one(&huge, &[0; 8]), &["`b_enc`"]);
    // Parsers that go back and forth take time that doubles with each bracket.
    for (open, close) in [("[", "]"), ("(", ")"), ("{", "}")] {
        let nested = open.repeat(9000) + "1" + &close.repeat(9000);
        for header in [
            FLOATS.replace("'<f4'", &nested),
            FLOATS.replace("(2,)", &nested),
        ] {
            check(&one(&header, &[0; 8]), &["`b_enc`", "a plain array"]);
        }
    }
}

/// Each field of the zip's own records, made wrong.
#[test]
fn zips() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(GEMMA_SCOPE, dir.path());
    let path = source.join("params.npz");
    let bytes = std::fs::read(&path).expect("readable");
    let check = |from_end: usize, field: &[u8], expected: &str| {
        let mut bytes = bytes.clone();
        let start = bytes.len() - from_end;
        bytes[start..start + field.len()].copy_from_slice(field);
        std::fs::write(&path, bytes).expect("writable");
        check_source(&source, &options(), &["params.npz", expected]);
    };
    check(12, &[9, 0], "params.npz");
    check(12, &[4, 0, 4, 0], "params.npz");
    check(22, b"PK\x05\x07", "Could not find EOCD");
    let directory = bytes.windows(4).position(|window| window == b"PK\x01\x02");
    let entry = bytes.len() - directory.expect("there is one");
    check(entry, b"PK\x01\x03", "params.npz");
    check(entry - 8, &[1], "Password required");
    check(entry - 10, &[12], "not supported");
    check(entry - 20, &[0xff, 0xff, 0xff, 0x7f], "its arrays overlap");
    check(
        entry - 24,
        &[0xff, 0xff, 0xff, 0x7f],
        "more than the file has",
    );
    check(entry - 28, &[0xff, 0xff], "params.npz");
    check(entry - 42, &[1, 0, 0, 0], "params.npz");
    check(entry - 46, &[0xff], "params.npz");
    // All arrays where the first one is.
    let mut overlapping = bytes.clone();
    let first = bytes[directory.expect("there is one")..][20..46].to_vec();
    let mut at = directory.expect("there is one");
    while overlapping[at..].starts_with(b"PK\x01\x02") {
        let lengths = [28, 30].map(|field| usize::from(overlapping[at + field]));
        overlapping[at + 20..at + 28].copy_from_slice(&first[..8]);
        overlapping[at + 42..at + 46].copy_from_slice(&first[22..]);
        at += 46 + lengths[0] + lengths[1];
    }
    std::fs::write(&path, overlapping).expect("writable");
    check_source(&source, &options(), &["params.npz", "its arrays overlap"]);
}

/// Zeros shrink a thousandfold; weights do not.
#[test]
fn what_unpacks_to_more_than_weights_do() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = copy(GEMMA_SCOPE, dir.path());
    let header = FLOATS.replace("(2,)", "(16777216,)");
    let bomb = array(&header, &vec![0; 64 << 20]);
    let path = source.join("params.npz");
    write_npz(&path, CompressionMethod::Deflated, &[("W_enc.npy", bomb)]);
    assert!(path.metadata().expect("there").len() < 1 << 20);
    check_source(&source, &options(), &["params.npz", "more than weights do"]);
}

/// Every file, cut anywhere near a boundary, is an error and nothing worse.
#[test]
fn truncated_files() {
    for (name, file) in [
        (GEMMA_SCOPE, "params.npz"),
        (DEFLATED, "params.npz"),
        (GEMMA_SCOPE_2, "params.safetensors"),
        (GEMMA_SCOPE_2, "config.json"),
        (SPARSIFY, "sae.safetensors"),
        (SPARSIFY, "cfg.json"),
        (LLAMA_SCOPE, "checkpoints/final.safetensors"),
        (LLAMA_SCOPE, "hyperparams.json"),
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = copy(name, dir.path());
        let path = source.join(file);
        let bytes = std::fs::read(&path).expect("readable");
        let cuts = [
            0,
            1,
            7,
            8,
            9,
            30,
            100,
            bytes.len() / 2,
            bytes.len() - 23,
            bytes.len() - 2,
        ];
        for cut in cuts {
            std::fs::write(&path, &bytes[..cut]).expect("writable");
            check_source(&source, &options(), &[file]);
        }
    }
}
