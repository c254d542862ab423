//! What has no name, by its addresses.

use std::fs;

use gguf_tools::sae::SaeFile;
use serde_json::Value;

use crate::fixture::{example, picture};
use crate::gemma4_converted::write_blind;
use crate::mirror::{Mirror, Repo, Server};
use crate::pull::{NAME, SAE, SAE_DIR, User, content, stderr, visible};

/// A text model in GGUF is taken as it is: another name of the cache's file, which stays when the cache goes.
#[test]
fn addresses_do_for_what_has_no_name() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let sae = format!("{SAE}/{SAE_DIR}");
    let address = ["--hf-repo", "org/demo-GGUF:demo-f16.gguf", "--sae-hf", &sae];
    let run = [
        "features",
        "--json",
        "--raw-prompt",
        "-p",
        "The carrot",
        "--over",
        "all",
    ];
    let text = user.stdout(&[&run[..], &address, &["--yes"]].concat());
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert!(!report["features"].as_array().expect("a list").is_empty());
    let asked = mirror.asked();
    assert!(
        asked.iter().all(|asked| asked.server != Server::Bucket),
        "{asked:?}"
    );
    assert_eq!(user.stdout(&[&run[..], &address].concat()), text);
    assert!(mirror.asked().is_empty());

    let all = [
        "pull",
        "demo-text",
        "--labels",
        "neuronpedia:gemma-2b/12-res-jb",
        "--drop-downloads",
        "--yes",
    ];
    user.stdout(&[&all[..], &address].concat());
    let made = ["model-demo-f16.gguf", "sae-f16.gguf", "sources.json"];
    assert_eq!(visible(&user.models().join("demo-text")), made);
    let meta = SaeFile::open(&user.models().join("demo-text/sae-f16.gguf"))
        .expect("an SAE")
        .meta;
    assert!(meta.labels.iter().any(|label| label == "doughnut"));
    let blobs = user.dir.path().join("hf/hub/models--org--demo-GGUF/blobs");
    assert_eq!(fs::read_dir(blobs).expect("a folder").count(), 0);
    let whole = fs::read("assets/model-f16.gguf").expect("a committed file");
    assert!(
        fs::read(user.models().join("demo-text/model-demo-f16.gguf")).expect("it stays") == whole
    );
    let by_name = user.stdout(&[&run[..], &["-d", "demo-text"]].concat());
    assert!(by_name.contains("\"features\""));

    let said = user.fails(&["pull", "--hf-repo", "org/demo-GGUF", "--yes"]);
    assert!(
        said.contains("`org/demo-GGUF:FILE`: `demo-f16.gguf`, `other-f16.gguf`"),
        "{said}"
    );
}

/// What sees nothing is asked for a text.
#[test]
fn the_next_command_goes_by_what_was_made() {
    let dir = tempfile::tempdir().expect("a folder of our own");
    let checkpoint = dir.path().join("blind");
    write_blind(&checkpoint);
    let mut content = content();
    let blind = Repo::default().with_dir("", &checkpoint);
    content.repos.insert("org/blind".to_owned(), blind);
    let mirror = Mirror::start(content);
    let user = User::of(&mirror);
    let output = user.run(&["pull", "blind", "--hf-repo", "org/blind", "--yes"]);
    let said = stderr(&output);
    let next = "next: `llava-sae-cpp -d blind --sae SAE.gguf --prompt TEXT`";
    assert!(output.status.success() && said.contains(next), "{said}");
}

#[test]
fn releases_are_saelens_own() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let release = [
        "--sae-release",
        "gemma-2b-res-jb",
        "--sae-id",
        "blocks.12.hook_resid_post",
    ];
    user.stdout(&[&["pull", "sae-alone", "--yes"], &release[..]].concat());
    let folder = user.models().join("sae-alone");
    assert_eq!(visible(&folder), ["sae-f16.gguf", "sources.json"]);
    // The list knows its labels.
    let meta = SaeFile::open(&folder.join("sae-f16.gguf"))
        .expect("an SAE")
        .meta;
    assert!(meta.labels.iter().any(|label| label == "doughnut"));
    let model = [
        "-m",
        "assets/model-f16.gguf",
        "--mmproj",
        "assets/mmproj-f16.gguf",
    ];
    let args = [&model[..], &release, &["--yes", "--offline", picture()]].concat();
    assert_eq!(user.stdout(&args), format!("{}\n", example().caption));

    let said = user.fails(&[
        "pull",
        "--sae-release",
        "gemma-2b-res-jb",
        "--sae-id",
        "blocks.12",
        "--yes",
    ]);
    assert!(
        said.contains("hint: it has 5 of them, such as `blocks.12.hook_resid_post`"),
        "{said}"
    );
    let said = user.fails(&[
        "--sae-release",
        "llama-3.1-8b-instruct-andyrdt",
        "--sae-id",
        "x",
        "--yes",
        picture(),
    ]);
    assert!(
        said.contains("cannot be converted: its files are pickles"),
        "{said}"
    );
}

#[test]
fn arguments_that_exclude_each_other_are_wrong_usage() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    for args in [
        &["-d", "x", "--hf-repo", "org/x", "y.png"][..],
        &["pull"],
        &["pull", "--list", "x"],
        &["pull", "--sae-release", "x"],
        &["pull", "--sae-hf", "org/x/../y"],
        &["pull", "--hf-repo", "x"],
        &["pull", NAME, "--labels", "gemma-2b/12-res-jb"],
    ] {
        let output = user.run(args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    let labels = ["--labels", "neuronpedia:gemma-2b/12-res-jb"];
    for others in [&["-d", NAME][..], &["--hf-repo", "org/demo-GGUF"]] {
        let said = user.fails(&[others, &labels, &["--yes", picture()]].concat());
        assert!(said.contains("no SAE that they are of"), "{said}");
    }
    let said = user.fails(&["pull", "../x", "--sae-hf", "org/x/y", "--yes"]);
    assert!(said.contains("`../x` is no name for a model"), "{said}");
    assert!(mirror.asked().is_empty());
}
