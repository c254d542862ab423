//! The command line as a user sees it: exit code, stdout, stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use gguf_tools::gguf::TensorType;

use crate::fixture::{Example, Fixture, example, picture, temporary_root};

pub(crate) fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_llava-sae-cpp"));
    program.current_dir(env!("CARGO_MANIFEST_DIR"));
    // Tests run side by side: threads that wait for each other must not spin.
    program.env("OMP_WAIT_POLICY", "passive");
    // The demo's files go to a cache of this test run.
    program.env("XDG_CACHE_HOME", temporary_root().join("cache"));
    program
}

pub(crate) fn run(args: &[&str]) -> Output {
    program().args(args).output().expect("the program starts")
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The stdout of a run that succeeds.
pub(crate) fn stdout(args: &[&str]) -> String {
    let output = run(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(args)).expect("one JSON object")
}

#[test]
fn the_main_job() {
    let Example {
        caption,
        feature,
        label,
        strength,
        steered,
        ..
    } = example();
    assert_eq!(stdout(&[picture()]), format!("{caption}\n"));
    for feature in [label.clone(), feature.to_string()] {
        let steer = format!("{feature}:{strength}");
        let text = stdout(&["--steer", &steer, picture()]);
        assert_eq!(text, format!("{steered}\n"), "{steer}");
    }
}

/// What README shows: the picture's features, and what is left without one of them.
#[test]
fn the_readmes_example() {
    let args = ["--steer", "mushroom:-12", "--compare", "--top", "5"];
    let text = stdout(&[&args[..], &["demo:carrot-mushroom"]].concat());
    let of_file = stdout(&[&args[..], &["assets/pictures/carrot-mushroom.png"]].concat());
    assert_eq!(of_file, text);
    let expected = "Original output:
The image shows a carrot at the bottom and a mushroom on the right, on calm water.

Output after intervention:
The image shows a carrot at the bottom, on calm water.

Features that the image activated most (largest activation over its tokens, minus the usual one):
  rank  feature      lift       max  tokens  label
";
    let table = text.strip_prefix(expected);
    let rows: Vec<_> = table.expect("the texts above").lines().collect();
    assert_eq!(rows.len(), 5, "{text}");
    assert!(rows[0].ends_with("  carrot"), "{text}");
    assert!(rows[1].ends_with("  mushroom"), "{text}");
}

#[test]
fn an_unknown_picture_of_the_demo() {
    let output = run(&["demo:dinosaur"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("the demo has no picture `dinosaur`"),
        "{said}"
    );
    assert!(said.contains("`carrot-mushroom`, `apple`"), "{said}");
}

#[test]
fn the_demo_says_so_unless_it_is_quiet() {
    let noisy = run(&[picture()]).stderr;
    assert_eq!(String::from_utf8_lossy(&noisy).lines().count(), 1);
    assert!(run(&["-q", picture()]).stderr.is_empty());
}

#[test]
fn json_of_the_main_command() {
    let Example {
        caption,
        feature,
        label,
        strength,
        steered,
        ..
    } = example();
    let report = json(&[
        "--json",
        "--steer",
        &format!("{label}:{strength}"),
        "--compare",
        "--top",
        "3",
        picture(),
    ]);
    assert_eq!(report["original"]["text"], *caption);
    assert_eq!(report["steered"]["text"], *steered);
    assert_eq!(report["steered"]["stop"], "end");
    assert_eq!(report["interventions"][0]["feature"], *feature);
    assert_eq!(report["interventions"][0]["label"], *label);
    assert_eq!(report["features"].as_array().expect("a list").len(), 3);
    assert_eq!(report["n_prompt_tokens"], 78);
    assert_eq!(report["n_image_tokens"], 64);
    let plain = json(&["--json", "-n", "3", picture()]);
    assert!(plain["steered"].is_null());
    assert_eq!(plain["original"]["stop"], "length");
    assert_eq!(
        plain["original"]["token_ids"]
            .as_array()
            .expect("a list")
            .len(),
        3
    );
}

#[test]
fn features_pool_and_locate() {
    let report = json(&["features", "--json", "--top", "4", picture()]);
    assert_eq!(report["grid"], serde_json::json!([8, 8]));
    assert_eq!(report["tokens"].as_array().expect("a list").len(), 78);
    let features = report["features"].as_array().expect("a list");
    assert_eq!(features.len(), 4);
    for feature in features {
        let patches = feature["patches"].as_array().expect("a list");
        assert_eq!(patches.len(), 64);
        let largest = patches
            .iter()
            .filter_map(serde_json::Value::as_f64)
            .fold(0.0, f64::max);
        assert_eq!(Some(largest), feature["max"].as_f64());
        assert_eq!(feature["score"], feature["max"], "max is the default");
        let n_active = patches
            .iter()
            .filter(|value| value.as_f64() > Some(0.0))
            .count();
        assert_eq!(feature["n_tokens"], n_active);
    }
    let by = |pool| {
        json(&[
            "features",
            "--json",
            "--top",
            "1",
            "--pool",
            pool,
            picture(),
        ])
    };
    let (sum, mean) = (by("sum"), by("mean"));
    let score = |report: &serde_json::Value| report["features"][0]["score"].as_f64();
    let ratio = score(&sum).expect("a number") / score(&mean).expect("a number");
    assert!((ratio - 64.0).abs() < 1e-3, "a mean over 64 patches");
    let last = json(&["features", "--json", "--over", "-1", picture()]);
    assert_eq!(last["features"][0]["argmax_position"], 77);
}

#[test]
fn capture_holds_what_the_hook_saw() {
    let path = temporary_root().join("capture.safetensors");
    let path = path.to_str().expect("a plain path");
    let steer = format!("{}:{}", example().label, example().strength);
    stdout(&[
        "capture",
        "-o",
        path,
        "-n",
        "4",
        "--steer",
        &steer,
        picture(),
    ]);
    let bytes = std::fs::read(path).expect("it was written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a valid file");
    let shape = |name: &str| tensors.tensor(name).expect("present").shape().to_vec();
    let n_rows = 78 + 3; // the fourth token is sampled, but not decoded
    assert_eq!(shape("token_ids"), [n_rows]);
    assert_eq!(shape("kinds"), [n_rows]);
    assert_eq!(shape("resid"), [n_rows, 192]);
    assert_eq!(shape("resid_steered"), [n_rows, 192]);
    assert_eq!(shape("feature_offsets"), [n_rows + 1]);
    assert_eq!(shape("feature_ids"), shape("feature_values"));
    assert_eq!(shape("image_embeddings"), [64, 192]);
    assert_eq!(shape("logits"), [2048]);
}

#[test]
fn convert_makes_a_folder_to_run() {
    let dir = temporary_root().join("converted-by-command");
    let dir = dir.to_str().expect("a plain path");
    let convert = |type_name| {
        let (llava, sae) = ("tests/fixtures/demo/llava", "tests/fixtures/demo/sae");
        stdout(&[
            "convert", "--llava", llava, "--sae", sae, "-o", dir, "--type", type_name, "--force",
        ])
    };
    convert("q4_k_m");
    assert!(stdout(&["-d", dir, picture()]).starts_with("The image shows a"));
    assert_eq!(
        names(Path::new(dir)),
        ["mmproj-f16.gguf", "model-q4_k_m.gguf", "sae-f16.gguf"]
    );
    convert("f16");
    let ambiguous = run(&["-d", dir, picture()]);
    assert_eq!(ambiguous.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&ambiguous.stderr)
            .contains("hint: say which of them is the model (`--model`")
    );
    let model = Path::new(dir).join("model-f16.gguf");
    let model = model.to_str().expect("a plain path");
    assert_eq!(
        stdout(&["-d", dir, "-m", model, picture()]),
        format!("{}\n", example().caption)
    );
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry
            .expect("readable")
            .file_name()
            .into_string()
            .expect("a plain name")
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

#[test]
fn help_has_examples() {
    let help = stdout(&["--help"]);
    assert!(
        help.contains("Examples:") && help.contains("--steer"),
        "{help}"
    );
    for command in ["features", "capture", "convert"] {
        assert!(help.contains(command), "{command}");
        assert!(!stdout(&[command, "--help"]).is_empty());
    }
    assert!(stdout(&["completions", "bash"]).contains("llava-sae-cpp"));
    assert!(stdout(&["man"]).contains(".TH"));
}

/// llama.cpp's `-fa` and `-ngl` are flags where a flag may stand, and texts elsewhere.
#[test]
fn short_flags_of_several_letters() {
    let stderr = |args: &[&str]| String::from_utf8(run(args).stderr).expect("UTF-8");
    assert!(stderr(&["-q", "--", "-fa"]).contains("`-fa`"));
    assert!(stderr(&["features", "-q", "--", "-ngl"]).contains("`-ngl`"));
    assert!(stderr(&["features", "--over", "-fa", picture()]).contains("`-fa`"));
    assert!(stderr(&["-fa", "sometimes", picture()]).contains("--flash-attn"));
    assert!(stderr(&["-ngl=some", picture()]).contains("--gpu-layers"));
}

/// A vocabulary's control characters reach a file as they are, and a terminal by their codes.
#[cfg(unix)]
#[test]
fn generated_text_does_not_steer_a_terminal() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let plain = std::fs::read(dir.join("model-f32.gguf")).expect("it was converted");
    // The piece ` shows`, which every caption has, becomes one of the same length that clears the screen.
    let (piece, escape) = ("\u{2581}shows", "\u{1b}[2J\u{7}\u{1b}c\t");
    assert_eq!(piece.len(), escape.len());
    let start = [&(piece.len() as u64).to_le_bytes()[..], piece.as_bytes()].concat();
    let found = plain.windows(start.len()).position(|bytes| bytes == start);
    let at = found.expect("the vocabulary has it") + size_of::<u64>();
    let mut changed = plain;
    changed[at..at + escape.len()].copy_from_slice(escape.as_bytes());
    let model = temporary_root().join("control-characters.gguf");
    std::fs::write(&model, changed).expect("a file of our own");
    let model = model.to_str().expect("a plain path");
    let dir = dir.to_str().expect("a plain path");
    let args = ["-d", dir, "-m", model, picture()];
    assert!(stdout(&args).contains(escape), "a pipe gets what it was");

    let command = [&[env!("CARGO_BIN_EXE_llava-sae-cpp")], &args[..]]
        .concat()
        .join(" ");
    let script = Command::new("script")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-qec", &command, "/dev/null"])
        .output();
    let Ok(script) = script else {
        println!("skipped: the test of a terminal needs `script` of util-linux");
        return;
    };
    let shown = String::from_utf8_lossy(&script.stdout);
    assert!(shown.contains("\\u{1b}[2J\\u{7}\\u{1b}c\t"), "{shown}");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = program()
        .args(["features", "-q", "--json", picture()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn the_demo_runs_from_any_folder() {
    let picture: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(picture());
    let output = program()
        .current_dir("/")
        .arg(picture)
        .output()
        .expect("the program starts");
    assert_eq!(
        output.stdout,
        format!("{}\n", example().caption).into_bytes()
    );
}
