//! What SAE files get of the files that need not be there: sparsity and labels.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Overwrite};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use safetensors::Dtype;

use crate::random_values;
use crate::sae_conversion::{convert, matrix, options};
use crate::sae_folder::{D_SAE, Folder, write_safetensors};

#[test]
fn sparsity_is_kept_where_it_is_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::jumprelu().write(dir.path());
    let sparsity = random_values(11, D_SAE);
    let tensor = (Dtype::F32, vec![D_SAE], sparsity.clone());
    let tensors = BTreeMap::from([("sparsity".to_owned(), tensor)]);
    write_safetensors(&source.join("sparsity.safetensors"), &tensors);
    let target = dir.path().join("sae.gguf");
    sae::convert(&source, &target, &options(), &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect("convertible");
    let file = SaeFile::open(&target).expect("the schema holds");
    assert_eq!(matrix(&file, "sae.log_sparsity"), sparsity);
    assert_eq!(
        file.threshold().expect("readable").expect("jumprelu"),
        Folder::jumprelu().values("threshold")
    );
}

#[test]
fn a_sparsity_that_is_not_as_it_should_be_is_left_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let source = Folder::jumprelu().write(dir.path());
    let path = source.join("sparsity.safetensors");
    let check = || {
        let target = dir.path().join("sae.gguf");
        let replace = SaeOptions {
            overwrite: Overwrite::Replace,
            ..options()
        };
        let mut go_on = |_, _| ControlFlow::Continue(());
        sae::convert(&source, &target, &replace, &mut go_on).expect("convertible");
        SaeFile::open(&target).expect("the schema holds");
        let gguf = Gguf::open(&target).expect("a right file");
        assert!(gguf.tensor("sae.log_sparsity").is_none());
    };
    std::fs::write(&path, "{}").expect("writable");
    check();
    let mut with_nan = random_values(11, D_SAE);
    with_nan[3] = f32::NAN;
    for (name, dtype, values) in [
        ("sparsity", Dtype::F32, with_nan),
        ("sparsity", Dtype::F32, random_values(11, D_SAE - 1)),
        ("sparsity", Dtype::I32, random_values(11, D_SAE)),
        ("log_sparsity", Dtype::F32, random_values(11, D_SAE)),
    ] {
        let tensor = (dtype, vec![values.len()], values);
        write_safetensors(&path, &BTreeMap::from([(name.to_owned(), tensor)]));
        check();
    }
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).expect("in memory");
    encoder.finish().expect("in memory")
}

fn write_labels(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("writable");
    path
}

#[test]
fn labels_merge_and_the_first_one_counts() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let array = r#"[{"index": "3", "description": " dogs\n"}, {"index": 5, "description": null}]"#;
    let lines = "{\"index\": \"3\", \"description\": \"cats\"}\n{\"index\": \"4\", \"description\": \"é\\u001b[31m\"}\n";
    let more = r#"{"index": "5", "description": "birds", "modelId": "m", "layer": "4-res"}"#;
    let labels = vec![
        write_labels(dir.path(), "labels.json", array),
        write_labels(dir.path(), "labels.jsonl", lines),
        write_labels(dir.path(), "more.jsonl.gz", gzipped(more)),
    ];
    let (_dir, file) = convert(
        &Folder::standard(),
        &SaeOptions {
            labels,
            ..options()
        },
    );
    assert_eq!(file.meta.labels.len(), D_SAE);
    assert_eq!(file.meta.labels[2..7], ["", "dogs", "é [31m", "birds", ""]);
    assert_eq!(file.meta.labels_source.as_deref(), Some("m/4-res"));

    let labels = vec![write_labels(dir.path(), "mine.json", array)];
    let (_dir, file) = convert(
        &Folder::standard(),
        &SaeOptions {
            labels,
            ..options()
        },
    );
    assert_eq!(file.meta.labels_source.as_deref(), Some("mine.json"));
}

#[test]
fn labels_are_known_by_their_content() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |name: &str, content: &[u8]| {
        let labels = vec![write_labels(dir.path(), name, content)];
        let with_labels = SaeOptions {
            labels,
            ..options()
        };
        let (_dir, file) = convert(&Folder::standard(), &with_labels);
        assert_eq!(file.meta.labels[3], "dogs", "{name}");
    };
    for text in [
        r#"[{"index": "3", "description": "dogs"}]"#,
        r#"{"index": "3", "description": "dogs"}"#,
    ] {
        for start in ["", "\n", "\u{feff}", "\u{feff}\r\n \t"] {
            let text = format!("{start}{text}\n");
            check("labels.gz", text.as_bytes());
            check("labels.json", &gzipped(&text));
        }
    }
}
