//! Models in several files work as one file.

use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Overwrite, ShardName, TensorInfo, Writer};
use llava_sae_cpp::pictures::{Reading, ScanPrompt};
use llava_sae_cpp::scan::Settings;
use llava_sae_cpp::{CancelFlag, ModelFiles, PromptForm, SessionOptions};

use crate::bad_input::check;
use crate::command_line::{json, stdout, text};
use crate::hook_points::{model, sae_at};

const HOOK: &str = "blocks.1.hook_mlp_out";
const ALL: usize = usize::MAX;

/// Splits the llama fixture into shards of so many tensors, the last of which may be changed.
fn split(dir: &Path, n_tensors: &[usize], change: &dyn Fn(&mut TensorInfo)) -> Vec<PathBuf> {
    let original = Gguf::open(&model("llama")).expect("a committed file");
    let mut left = original.tensors();
    let n_shards = n_tensors.len() as u16;
    let shard = |(shard_idx, &n_tensors): (usize, &usize)| {
        let name = ShardName {
            stem: "model",
            shard_idx: shard_idx as u16,
            n_shards,
        };
        let path = dir.join(name.to_string());
        let mut writer = Writer::create(&path, Overwrite::Replace).expect("a folder of our own");
        if shard_idx == 0 {
            for (key, value) in original.metadata() {
                writer.set(key, value.clone());
            }
        }
        writer.set("split.no", name.shard_idx);
        writer.set("split.count", n_shards);
        writer.set("split.tensors.count", original.tensors().len() as i32);
        let (tensors, rest) = left.split_at(n_tensors.min(left.len()));
        left = rest;
        for tensor in tensors {
            let mut declared = tensor.clone();
            if left.is_empty() && tensor == tensors.last().expect("this one") {
                change(&mut declared);
            }
            writer.declare(&declared.name, &declared.dims, declared.tensor_type);
        }
        let mut writer = writer.begin().expect("a valid header");
        for tensor in tensors {
            let values = original.read_f32(tensor).expect("a valid tensor");
            writer.write_f32(&values).expect("as many values");
        }
        writer.finish().expect("complete");
        path
    };
    n_tensors.iter().enumerate().map(shard).collect()
}

#[test]
fn shards_are_one_model() {
    let sae = sae_at(HOOK, 32);
    let run = |files: &[&str]| {
        let mut report = json(&[files, &["-p", "a cat", "-n", "4", "--json"]].concat());
        let object = report.as_object_mut().expect("an object");
        object.retain(|key, _| !["model", "sae", "timings"].contains(&&**key));
        report
    };
    let expected = run(&["-m", text(&model("llama")), "--sae", text(&sae)]);
    // The first shard may have no tensors (ggml-org/llama.cpp #7072).
    for n_tensors in [&[20, ALL][..], &[17, 17, ALL], &[0, ALL], &[0, 30, ALL]] {
        let dir = tempfile::tempdir().expect("a folder of our own");
        for shard in split(dir.path(), n_tensors, &|_| ()) {
            let report = run(&["-m", text(&shard), "--sae", text(&sae)]);
            assert_eq!(report, expected, "{n_tensors:?}: {}", shard.display());
        }
        std::fs::copy(&sae, dir.path().join("sae.gguf")).expect("a folder of our own");
        assert_eq!(run(&["-d", text(dir.path())]), expected, "{n_tensors:?}");
        let features = ["features", "-d", text(dir.path()), "-p", "a cat"];
        assert!(stdout(&features).contains("the prompt's text tokens"));
    }
}

#[test]
fn faults_in_any_shard_are_named() {
    let sae = sae_at(HOOK, 32);
    let dir = tempfile::tempdir().expect("a folder of our own");
    let refused = |opened: &Path, words: &[&str]| {
        let args = ["-m", text(opened), "--sae", text(&sae), "-p", "a"];
        check(&args, 1, words);
    };
    let shards = split(dir.path(), &[0, 20, ALL], &|last| {
        last.name = "blk.1.ffn_gate_inp.weight".to_owned();
    });
    refused(
        &shards[1],
        &["`blk.1.ffn_gate_inp.weight`", "00001-of-00003"],
    );

    let shards = split(dir.path(), &[20, 20, ALL], &|_| ());
    std::fs::remove_file(&shards[1]).expect("it is there");
    let words = [
        "shard 2 of 3",
        "missing",
        "model-00002-of-00003.gguf",
        "hint: ",
    ];
    refused(&shards[0], &words);
    refused(&shards[2], &words);
    std::fs::copy(&sae, dir.path().join("sae.gguf")).expect("a folder of our own");
    check(&["-d", text(dir.path()), "-p", "a"], 1, &words);
    std::fs::remove_file(&shards[0]).expect("it is there");
    check(&["-d", text(dir.path()), "-p", "a"], 1, &["shard 1 of 3"]);

    // Two models are still two.
    split(dir.path(), &[20, ALL], &|_| ());
    let words = ["several `model*.gguf`", "00001-of-00002", "00003-of-00003"];
    check(&["-d", text(dir.path()), "-p", "a"], 1, &words);
}

/// A scan goes on only with the same weights, whichever shard they lie in.
#[test]
fn scans_know_all_shards() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let shards = split(dir.path(), &[20, ALL], &|_| ());
    let settings = |model: &Path| {
        let files = ModelFiles {
            model: model.to_owned(),
            mmproj: None,
            saes: vec![sae_at(HOOK, 32)],
        };
        let prompt = ScanPrompt {
            text: "a",
            form: PromptForm::Raw,
        };
        let settings = Settings::new(
            &files,
            &files.open_saes().expect("one SAE"),
            &SessionOptions::default(),
            Reading::Pictures(prompt),
            &CancelFlag::default(),
        );
        serde_json::to_value(settings.expect("files that can be read")).expect("texts")["model"]
            .clone()
    };
    let before = settings(&shards[0]);
    assert_eq!(settings(&shards[1]), before);
    let mut bytes = std::fs::read(&shards[1]).expect("written");
    *bytes.last_mut().expect("values") ^= 1;
    std::fs::write(&shards[1], bytes).expect("a file of our own");
    assert_ne!(settings(&shards[0]), before);
}
