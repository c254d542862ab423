//! Models in several files.

use std::fs;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Gguf, Overwrite, ShardName, TensorType, Writer};

use crate::command_line::run;

/// Shard `shard_idx` of the model `m` in `dir`, with two tensors unless it has none.
struct Shard {
    shard_idx: u16,
    n_shards: u16,
    tensors: &'static [&'static str],
    n_tensors_in_all: i32,
}

impl Shard {
    fn write(&self, dir: &Path) -> PathBuf {
        let (shard_idx, n_shards) = (self.shard_idx, self.n_shards);
        let name = ShardName {
            stem: "m",
            shard_idx,
            n_shards,
        };
        let path = dir.join(name.to_string());
        let mut writer = Writer::create(&path, Overwrite::Replace).expect("a folder of our own");
        if shard_idx == 0 {
            writer.set("general.architecture", "llama");
        }
        writer.set("split.no", shard_idx);
        writer.set("split.count", n_shards);
        writer.set("split.tensors.count", self.n_tensors_in_all);
        for name in self.tensors {
            writer.declare(name, &[2], TensorType::F32);
        }
        let mut writer = writer.begin().expect("right");
        for _ in self.tensors {
            writer
                .write_f32(&[f32::from(shard_idx), 1.0])
                .expect("two values");
        }
        writer.finish().expect("complete");
        path
    }
}

/// A model in three shards, the first of which has no tensors.
fn write_model(dir: &Path) -> Vec<PathBuf> {
    let tensors: [&[_]; 3] = [&[], &["a", "b"], &["c"]];
    let shards = (0..).zip(tensors).map(|(shard_idx, tensors)| Shard {
        shard_idx,
        n_shards: 3,
        tensors,
        n_tensors_in_all: 3,
    });
    shards.map(|shard| shard.write(dir)).collect()
}

#[test]
fn any_shard_opens_the_whole() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let paths = write_model(dir.path());
    for path in &paths {
        let whole = Gguf::open_with_shards(path).expect("all shards are there");
        assert_eq!(whole.paths(), paths);
        assert_eq!(whole.path(), paths[0]);
        assert_eq!(
            whole.require_str("general.architecture").ok(),
            Some("llama")
        );
        let names: Vec<_> = whole.tensors().iter().map(|tensor| &tensor.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        for (name, shard_idx) in [("a", 1.0), ("b", 1.0), ("c", 2.0)] {
            let tensor = whole.require_tensor(name, &[2]).expect("it is there");
            assert_eq!(whole.read_f32(tensor).ok(), Some(vec![shard_idx, 1.0]));
        }
        let error = whole
            .require_tensor("c", &[3])
            .expect_err("it has 2")
            .to_string();
        assert!(error.contains("m-00003-of-00003.gguf"), "{error}");
    }
    let (code, stdout, _) = run(dir.path(), &["show", "m-00002-of-00003.gguf"]);
    assert_eq!(code, Some(0));
    assert!(stdout.contains("shard 2 of 3 of a model"), "{stdout}");
}

#[test]
fn faults_of_shards_are_named() {
    let check = |words: &[&str], change: &dyn Fn(&[PathBuf]) -> PathBuf| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let opened = change(&write_model(dir.path()));
        let error = Gguf::open_with_shards(&opened)
            .expect_err("a fault")
            .to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    for missing in 0..3 {
        let word = format!("shard {} of 3", missing + 1);
        check(&[&word, "missing"], &|paths| {
            fs::remove_file(&paths[missing]).expect("it is there");
            paths[(missing + 1) % 3].clone()
        });
    }
    for name in ["m.gguf", "m-00002-of-00004.gguf", "m-2-of-3.gguf"] {
        check(&[name, "shard 2 of 3", "-00002-of-00003.gguf"], &|paths| {
            let renamed = paths[1].with_file_name(name);
            fs::rename(&paths[1], &renamed).expect("it is there");
            renamed
        });
    }
    check(
        &["m-00003-of-00003.gguf", "`split.no` is 1", "says 2"],
        &|paths| {
            fs::copy(&paths[1], &paths[2]).expect("both are there");
            paths[0].clone()
        },
    );
    let replace = |shard: Shard| {
        move |paths: &[PathBuf]| shard.write(paths[0].parent().expect("in a folder"))
    };
    let last = |tensors, n_shards, shard_idx| Shard {
        shard_idx,
        n_shards,
        tensors,
        n_tensors_in_all: 3,
    };
    check(
        &["tensor `b` is present twice"],
        &replace(last(&["b"], 3, 2)),
    );
    check(
        &["have 4 tensors, expected 3"],
        &replace(last(&["c", "d"], 3, 2)),
    );
    check(
        &["`split.no` is 3", "`split.count` is 3"],
        &replace(last(&["c"], 3, 3)),
    );
}

#[test]
fn names_of_shards() {
    let check = |name, expected| {
        let parts = ShardName::parse(name);
        let parts = parts.map(|parts| (parts.stem, parts.shard_idx, parts.n_shards));
        assert_eq!(parts, expected, "{name}");
    };
    check("a-00001-of-00002.gguf", Some(("a", 0, 2)));
    check("a-of-b-00012-of-00345.gguf", Some(("a-of-b", 11, 345)));
    for name in [
        "a.gguf",
        "a-00000-of-00002.gguf",
        "a-1-of-2.gguf",
        "a-00001-of-00002.bin",
        "a-00001-of-99999.gguf",
    ] {
        check(name, None);
    }
}
