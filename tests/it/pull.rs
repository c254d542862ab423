//! Published models by name and address: from a mirror that has the demo's checkpoint under the names of the
//! real one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use gguf_tools::sae::SaeFile;
use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{names, program};
use crate::fixture::{Example, Fixture, example, picture};
use crate::mirror::{Access, Content, Fault, Mirror, Repo, Server, TOKEN};

pub(crate) const NAME: &str = "llava-gemma-2b";
const MODEL: &str = "Intel/llava-gemma-2b";
pub(crate) const SAE: &str = "jbloom/Gemma-2b-Residual-Stream-SAEs";
pub(crate) const SAE_DIR: &str = "gemma_2b_blocks.12.hook_resid_post_16384";

/// The demo's checkpoint, SAE and labels, where the table expects those of the real model, with weights beside
/// them that nobody is to fetch.
pub(crate) fn content() -> Content {
    let demo = Fixture::Demo.dir();
    let read = |name: &str| fs::read(demo.join(name)).expect("a committed file");
    let mut sae = Repo::default();
    for name in ["cfg.json", "sae_weights.safetensors"] {
        sae.files
            .insert(format!("{SAE_DIR}/{name}"), read(&format!("sae/{name}")));
    }
    let model = Repo::default()
        .with_dir("", &demo.join("llava"))
        .with_more(&[("model-00001-of-00009.safetensors", "foreign")]);
    let mut gguf = Repo::default().with_more(&[("README.md", "two models")]);
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/model-f16.gguf");
    let whole = fs::read(whole).expect("a committed file");
    gguf.files.insert("demo-f16.gguf".to_owned(), whole);
    gguf.files
        .insert("other-f16.gguf".to_owned(), b"GGUF".to_vec());
    Content {
        repos: [
            (
                MODEL.to_owned(),
                Repo {
                    licence: Some("gemma"),
                    ..model
                },
            ),
            (SAE.to_owned(), sae),
            ("org/demo-GGUF".to_owned(), gguf),
        ]
        .into(),
        bucket: labels(&read("sae/labels.json")),
    }
}

/// The labels as Neuronpedia has them: JSON lines in several files.
fn labels(json: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let all: Vec<Value> = serde_json::from_slice(json).expect("a list");
    let file = |(number, labels): (usize, &[Value])| {
        let mut text = GzEncoder::new(Vec::new(), Compression::fast());
        for label in labels {
            writeln!(text, "{label}").expect("memory");
        }
        let key = format!("v1/gemma-2b/12-res-jb/explanations/batch-{number}.jsonl.gz");
        (key, text.finish().expect("memory"))
    };
    all.chunks(300).enumerate().map(file).collect()
}

/// A user with empty caches and no models.
pub(crate) struct User {
    pub(crate) dir: TempDir,
    endpoint: String,
    neuronpedia: String,
}

impl User {
    pub(crate) fn of(mirror: &Mirror) -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
            endpoint: mirror.endpoint.clone(),
            neuronpedia: mirror.neuronpedia.clone(),
        }
    }

    pub(crate) fn program(&self, args: &[&str]) -> Command {
        let mut program = program();
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
        ] {
            program.env_remove(name);
        }
        program
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_HOME", self.dir.path().join("hf"))
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "2")
            .env("NEURONPEDIA_DATASETS", &self.neuronpedia)
            .env("LLAVA_SAE_MODELS", self.models())
            .env("XDG_CACHE_HOME", self.dir.path().join("cache"))
            .args(args);
        program
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.program(args).output().expect("the program starts")
    }

    /// The stdout of a run that succeeds.
    pub(crate) fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The stderr of a run that fails.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
        stderr(&output)
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.models().join(NAME)
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("written")).expect("JSON")
}

/// What is visible in a folder.
pub(crate) fn visible(dir: &Path) -> Vec<String> {
    let mut visible = names(dir);
    visible.retain(|name| !name.starts_with('.'));
    visible.sort();
    visible
}

/// The issue's own line, from nothing. Captions are transformers', and the files those that `convert` makes of
/// the same folder.
#[test]
fn a_name_is_enough() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let Example {
        caption,
        feature,
        strength,
        steered,
        label,
        ..
    } = example();
    let steer = format!("{feature}:{strength}");
    let args = [
        "-d",
        NAME,
        "--yes",
        "--steer",
        &steer,
        "--compare",
        "--top",
        "3",
        picture(),
    ];
    let output = user.run(&args);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains(caption) && text.contains(steered) && text.contains(label),
        "{text}"
    );
    for part in [
        "LLaVA-Gemma 2B",
        MODEL,
        "licence: gemma",
        SAE,
        "neuronpedia:gemma-2b/12-res-jb",
        "to download: 11.",
        "are free there",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let made = [
        "mmproj-f16.gguf",
        "model-q8_0.gguf",
        "sae-f16.gguf",
        "sources.json",
    ];
    assert_eq!(visible(&user.folder()), made);
    assert_eq!(visible(&user.models()), [NAME]);

    let converted = user.dir.path().join("converted");
    let demo = Fixture::Demo.dir();
    let sae = demo.join("sae").display().to_string();
    // The model is called as its folder.
    let llava = user.dir.path().join(NAME);
    fs::create_dir(&llava).expect("a folder of our own");
    for (name, bytes) in &Repo::default().with_dir("", &demo.join("llava")).files {
        fs::write(llava.join(name), bytes).expect("writable");
    }
    let llava = llava.display().to_string();
    let output = converted.display().to_string();
    user.stdout(&[
        "-q", "convert", "--llava", &llava, "--sae", &sae, "-o", &output,
    ]);
    for name in ["model-q8_0.gguf", "mmproj-f16.gguf"] {
        let read = |dir: &Path| fs::read(dir.join(name)).expect("made");
        assert!(read(&user.folder()) == read(&converted), "{name}");
    }
    let meta = SaeFile::open(&user.folder().join("sae-f16.gguf"))
        .expect("an SAE")
        .meta;
    assert_eq!(meta.release.as_deref(), Some("gemma-2b-res-jb"));
    assert_eq!(meta.id.as_deref(), Some("blocks.12.hook_resid_post"));
    assert_eq!(meta.labels[*feature], *label);
    let sources = read_json(&user.folder().join("sources.json"));
    assert_eq!(sources["model"]["commit"], content().repos[MODEL].commit());
    assert_eq!(sources["types"]["model"], "q8_0");

    // Nothing foreign was fetched; and from now on nothing is.
    let asked = mirror.asked();
    assert!(
        asked.iter().all(|asked| !asked.path.contains("00009")),
        "{asked:?}"
    );
    assert_eq!(
        user.stdout(&["-d", NAME, "--steer", &steer, picture()]),
        format!("{steered}\n")
    );
    assert!(mirror.asked().is_empty());
}

#[test]
fn nothing_is_downloaded_without_a_word() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let said = user.fails(&["-d", NAME, picture()]);
    assert!(
        said.contains("the model `llava-gemma-2b` is not on this machine"),
        "{said}"
    );
    assert!(said.contains("(about 6.0 GB)"), "{said}");
    assert!(
        said.contains("hint: `llava-sae-cpp pull llava-gemma-2b --yes`"),
        "{said}"
    );
    assert!(user.fails(&["pull", NAME]).contains("--yes"));
    let said = user.fails(&["-d", "llava-gemma-3b", picture()]);
    assert!(
        said.contains("neither a folder nor a published model called `llava-gemma-3b`"),
        "{said}"
    );
    assert!(said.contains("`llava-gemma-2b`, `gemma-2-2b`"), "{said}");
    assert!(mirror.asked().is_empty());
}

/// On a terminal, which util-linux's `script` makes one of.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_is_asked() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let says = |answer: &str| {
        let line = format!("{} pull {NAME}", env!("CARGO_BIN_EXE_llava-sae-cpp"));
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]);
        for (name, value) in user.program(&[]).get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().ok()?;
        let stdin = child.stdin.as_mut().expect("a pipe");
        stdin.write_all(answer.as_bytes()).expect("it reads");
        Some(child.wait_with_output().expect("a child"))
    };
    let Some(no) = says("n\n") else {
        eprintln!("skipped: needs `script`, of util-linux");
        return;
    };
    let text = String::from_utf8_lossy(&no.stdout);
    assert!(text.contains("licence: gemma"), "{text}");
    assert!(text.contains("download and convert? [y/N]"), "{text}");
    assert!(
        text.contains("was not downloaded: the answer was no"),
        "{text}"
    );
    assert_eq!(no.status.code(), Some(1));
    assert!(!user.folder().exists());
    let yes = says("y\n").expect("as before");
    assert!(
        yes.status.success(),
        "{}",
        String::from_utf8_lossy(&yes.stdout)
    );
    assert!(user.folder().join("model-q8_0.gguf").exists());
}

#[test]
fn a_folder_of_that_name_comes_first() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let here = user.dir.path().join(NAME);
    fs::create_dir(&here).expect("a folder of our own");
    let mut program = user.program(&["-d", NAME, "--yes", "x.png"]);
    let output = program
        .current_dir(user.dir.path())
        .output()
        .expect("it starts");
    assert!(
        stderr(&output).contains("no `model*.gguf` in `llava-gemma-2b`"),
        "{}",
        stderr(&output)
    );
    assert!(mirror.asked().is_empty());
}

#[test]
fn pull_makes_other_types_anew_when_told() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let pull = |args: &[&str]| user.run(&[&["pull", NAME, "--yes"], args].concat());
    let said = stderr(&pull(&["--type", "q4_k_m"]));
    assert!(
        said.contains("next: `llava-sae-cpp -d llava-gemma-2b IMAGE`"),
        "{said}"
    );
    assert!(stderr(&pull(&[])).contains("is there already"));
    assert!(stderr(&pull(&["--type", "q4_k_m"])).contains("is there already"));
    let other = pull(&["--type", "f16"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("hint: give another name, or make it anew (`--force`)"));
    fs::write(user.folder().join("sae-with-baseline.txt"), "mine").expect("writable");
    mirror.asked();
    assert!(
        pull(&["--type", "f16", "--force", "--offline"])
            .status
            .success()
    );
    assert!(mirror.asked().is_empty());
    let made = [
        "mmproj-f16.gguf",
        "model-f16.gguf",
        "sae-f16.gguf",
        "sae-with-baseline.txt",
        "sources.json",
    ];
    assert_eq!(visible(&user.folder()), made);
}

#[test]
fn the_list_says_what_there_is_and_what_is_here() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let text = user.stdout(&["pull", "--list"]);
    assert!(
        text.contains("llava-gemma-2b: ") && text.contains("about 6.0 GB to download"),
        "{text}"
    );
    assert!(mirror.asked().is_empty());
    user.stdout(&["pull", NAME, "--yes"]);
    let list: Value =
        serde_json::from_str(&user.stdout(&["pull", "--list", "--json"])).expect("JSON");
    let entries = list.as_array().expect("a list");
    let entry = entries
        .iter()
        .find(|entry| entry["name"] == NAME)
        .expect("listed");
    assert_eq!(entry["folder"], user.folder().display().to_string());
    assert_eq!(entry["labels"], "neuronpedia:gemma-2b/12-res-jb");
}

/// Each failure says what, why and what to do, and leaves no model; the next run goes on from what arrived.
#[test]
fn failures_leave_nothing_half_done() {
    let mut content = content();
    content.repos.get_mut(MODEL).expect("there").access = Access::Gated;
    let mirror = Mirror::start(content);
    let user = User::of(&mirror);
    let said = user.fails(&["pull", NAME, "--yes"]);
    assert!(
        said.contains("error: `Intel/llava-gemma-2b` is gated"),
        "{said}"
    );
    assert!(said.contains("hint: accept them at "), "{said}");
    assert!(visible(&user.models()).is_empty());

    let check = |server: Server, fault: Fault, what: &str, hint: &str| {
        mirror.sabotage(move |asked| match asked.server == server {
            true => fault,
            false => Fault::Nothing,
        });
        let mut program = user.program(&["-v", "pull", NAME, "--yes"]);
        let output = program.env("HF_TOKEN", TOKEN).output();
        let output = output.expect("the program starts");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(what) && said.contains(hint), "{said}");
        assert!(
            !said.contains(TOKEN) && !said.contains("signature"),
            "{said}"
        );
        assert_eq!(names(&user.models()), [format!(".{NAME}.lock")]);
    };
    let store = Server::Store;
    check(
        store,
        Fault::WrongByte,
        "arrived damaged",
        "hint: run it again",
    );
    let wait = Fault::Status(429, "Retry-After", "900");
    check(store, wait, "for 900 s", "hint: run it again later");
    let refusal = Fault::Status(403, "X-None", "");
    check(store, refusal, "status 403", "`HF_TOKEN`");
    let missing = Fault::Status(404, "X-None", "");
    check(Server::Bucket, missing, "status 404", "check the address");
    mirror.sabotage(|_| Fault::Nothing);
    let output = user
        .program(&["pull", NAME, "--yes"])
        .env("HF_TOKEN", TOKEN)
        .output();
    assert!(output.expect("it starts").status.success());
    assert!(user.folder().exists());
}

#[test]
fn offline_needs_everything_in_the_cache() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    let said = user.fails(&["pull", NAME, "--offline"]);
    assert!(
        said.contains("is not in the cache") && said.contains("`--offline`"),
        "{said}"
    );
    user.stdout(&["pull", NAME, "--yes"]);
    let files = |dir: &Path| -> Vec<_> {
        visible(dir)
            .into_iter()
            .map(|name| fs::read(dir.join(name)).expect("made"))
            .collect()
    };
    let made = files(&user.folder());
    fs::remove_dir_all(user.folder()).expect("ours");
    mirror.asked();
    let caption = user.stdout(&["-d", NAME, "--offline", picture()]);
    assert_eq!(caption, format!("{}\n", example().caption));
    let again = files(&user.folder());
    // All but `sources.json`, which says no licence, since the card is not in the cache.
    assert!(made[..3] == again[..3]);
    assert!(mirror.asked().is_empty());
}
