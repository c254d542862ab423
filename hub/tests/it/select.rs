//! Which files of a repository are fetched.

use std::ops::ControlFlow;
use std::path::Path;

use gguf_tools::{ErrorKind, Result};
use llava_sae_hub::{ModelFormat, ModelParts};

use crate::hub;
use crate::mirror::{Content, Mirror, Repo};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

fn mirror(repo: Repo) -> Mirror {
    Mirror::start(Content {
        repos: [("org/model".to_owned(), repo)].into(),
        ..Content::default()
    })
}

fn with_files(names: &[&str]) -> Repo {
    let files = names
        .iter()
        .map(|name| ((*name).to_owned(), name.as_bytes().to_vec()));
    Repo {
        files: files.collect(),
        ..Repo::default()
    }
}

fn parts(mirror: &Mirror, address: &str) -> Result<ModelParts> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let client = hub(mirror, dir.path());
    let address = address.parse()?;
    let snapshot = client.snapshot(&"org/model".parse()?, "main")?;
    client.model_parts(&snapshot, &address, &mut |_, _| ControlFlow::Continue(()))
}

fn paths(files: &[llava_sae_hub::RepoFile]) -> Vec<&str> {
    files.iter().map(|file| file.path.as_str()).collect()
}

/// The fixture has a third file of weights, which its index does not name; and no weights are fetched before
/// anybody was asked.
#[test]
fn a_checkpoints_weights_are_those_that_its_index_names() {
    let mirror = mirror(Repo::default().with_dir("", &fixture("tiny/llava")));
    let found = parts(&mirror, "org/model").expect("a checkpoint");
    assert_eq!(found.format, ModelFormat::Checkpoint);
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    assert_eq!(paths(&found.weights), shards);
    assert!(paths(&found.small).contains(&"tokenizer.model"));
    let asked = mirror.asked();
    assert!(
        asked
            .iter()
            .all(|asked| !asked.path.ends_with(".safetensors")),
        "{asked:?}"
    );
}

#[test]
fn gguf_files_are_named_unless_there_is_one() {
    let check = |files: &[&str], address: &str, expected: &[&str]| {
        let found = parts(&mirror(with_files(files)), address).expect(address);
        assert_eq!(found.format, ModelFormat::Gguf);
        assert_eq!(paths(&found.weights), expected);
    };
    check(
        &["README.md", "mmproj-f16.gguf", "a.gguf"],
        "org/model",
        &["a.gguf"],
    );
    check(&["a.gguf", "b.gguf"], "org/model:b.gguf", &["b.gguf"]);
    let shards = ["q8/a-00001-of-00002.gguf", "q8/a-00002-of-00002.gguf"];
    check(&shards, "org/model", &shards);
    check(
        &["b.gguf", shards[0], shards[1]],
        "org/model:q8/a-00002-of-00002.gguf",
        &shards,
    );

    let refused = |files: &[&str], address: &str, kind: ErrorKind, hint: &str| {
        let error = parts(&mirror(with_files(files)), address).expect_err(address);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.hint().is_some_and(|found| found.contains(hint)),
            "{error:?}"
        );
    };
    refused(
        &["a.gguf", "b.gguf"],
        "org/model",
        ErrorKind::Invalid,
        "`org/model:FILE`: `a.gguf`, `b.gguf`",
    );
    refused(
        &["a.gguf"],
        "org/model:c.gguf",
        ErrorKind::NotPublished,
        "whole path",
    );
    refused(
        &["pytorch_model.bin", "config.json"],
        "org/model",
        ErrorKind::NotPublished,
        "model.safetensors",
    );
    refused(
        &[shards[1]],
        "org/model:q8/a-00002-of-00002.gguf",
        ErrorKind::NotPublished,
        "whole path",
    );
}

#[test]
fn an_saes_files_are_those_of_its_folder() {
    let check = |address: &str, expected: &[&str]| {
        let mirror = mirror(Repo::default().with_dir("", &fixture("saes")));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let snapshot =
            hub(&mirror, dir.path()).snapshot(&"org/model".parse().expect("right"), "main");
        let snapshot = snapshot.expect("there");
        let files = snapshot
            .sae_files(&address.parse().expect("an address"))
            .expect(address);
        let folder = address.strip_prefix("org/model/").expect("in it");
        let names: Vec<_> = files
            .iter()
            .map(|file| file.path.strip_prefix(folder).expect("in it"))
            .collect();
        assert_eq!(names, expected);
    };
    check(
        "org/model/saelens-3-topk",
        &["/cfg.json", "/sae_weights.safetensors"],
    );
    check(
        "org/model/gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        &["/params.npz"],
    );
    check(
        "org/model/llama-scope/Llama3_1-8B-Base-L1R-8x",
        &["/checkpoints/final.safetensors", "/hyperparams.json"],
    );
    check(
        "org/model/openmoss/topk",
        &["/config.json", "/sae_weights.safetensors"],
    );
}

/// Transcoders with a file for each block are at the path of that file.
#[test]
fn files_of_one_block_come_with_what_belongs_to_them() {
    let mirror = mirror(Repo::default().with_dir("", &fixture("transcoders/saes")));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let snapshot = hub(&mirror, dir.path()).snapshot(&"org/model".parse().expect("right"), "main");
    let snapshot = snapshot.expect("there");
    let check = |address: &str, expected: &[&str]| {
        let address = format!("org/model/{address}").parse().expect("an address");
        let files = snapshot.sae_files(&address).expect("they are there");
        let names: Vec<_> = files.iter().map(|file| &*file.path).collect();
        assert_eq!(names, expected);
    };
    check(
        "circuit-tracer/layer_1.safetensors",
        &[
            "circuit-tracer/config.yaml",
            "circuit-tracer/layer_1.safetensors",
        ],
    );
    check(
        "circuit-tracer-clt/W_enc_1.safetensors",
        &[
            "circuit-tracer-clt/W_dec_1.safetensors",
            "circuit-tracer-clt/W_enc_1.safetensors",
            "circuit-tracer-clt/config.yaml",
        ],
    );
    let clt = "gemma-scope-2-270m-pt/clt/width_16k_l0_small/params_layer_1.safetensors";
    check(clt, &[clt]);
    let folder = "org/model/circuit-tracer".parse().expect("an address");
    let error = snapshot
        .sae_files(&folder)
        .expect_err("a folder of several");
    assert!(
        error
            .hint()
            .expect("a way out")
            .contains("`layer_1.safetensors`"),
        "{error}"
    );
}

#[test]
fn what_is_no_sae_is_refused_before_it_is_fetched() {
    let mirror = mirror(
        Repo::default()
            .with_dir("", &fixture("saes"))
            .with_more(&[("pickle/ae.pt", ""), ("other/a.txt", "")]),
    );
    let dir = tempfile::tempdir().expect("a temporary folder");
    let snapshot = hub(&mirror, dir.path()).snapshot(&"org/model".parse().expect("right"), "main");
    let snapshot = snapshot.expect("there");
    let check = |address: &str, what: &str| {
        let error = snapshot
            .sae_files(&address.parse().expect("an address"))
            .expect_err(address);
        assert!(error.to_string().contains(what), "{error}");
    };
    check("org/model/openmoss", "a folder with 5 of them below");
    check("org/model/pickle", "is a pickle");
    check("org/model/other", "`org/model/other` is not an SAE");
    check("org/model/nowhere", "no folder `nowhere`");
}
