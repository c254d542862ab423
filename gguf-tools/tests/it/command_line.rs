//! `gguf-tools` as its user meets it.

use std::path::Path;
use std::process::{Command, Stdio};

use gguf_tools::gguf::{Overwrite, Writer};

use crate::{demo, listing};

/// Runs the program in `dir`: its exit code, stdout and stderr.
pub(crate) fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
        .args(arguments)
        .current_dir(dir)
        .output()
        .expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn help_has_examples() {
    for arguments in [
        &["--help"][..],
        &["llava", "--help"],
        &["sae", "--help"],
        &["show", "--help"],
    ] {
        let (code, stdout, stderr) = run(Path::new("."), arguments);
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        assert!(stdout.contains("Examples:\n  gguf-tools "), "{stdout}");
    }
}

#[test]
fn wrong_usage_is_2() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for arguments in [
        &[][..],
        &["paint"],
        &["sae", "x"],
        &["sae", "x", "-o", "y", "--type", "bf16"],
        &["sae", "x", "-o", "y", "--norm-factor", "much"],
        &["llava", "x", "-o", "y", "--type", "q4_k_m"],
        &["show"],
    ] {
        let (code, stdout, stderr) = run(dir.path(), arguments);
        assert_eq!(
            (code, stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}: {stderr}"
        );
    }
}

#[test]
fn failures_are_1_with_an_error_and_a_hint() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().to_str().expect("UTF-8");
    let sae = demo().join("sae");
    let sae = sae.to_str().expect("UTF-8");
    for arguments in [
        &["sae", out, "-o", "sae.gguf"][..],
        &["sae", sae, "-o", "sae.gguf", "--norm-factor", "-2"],
        &["sae", sae, "-o", "sae.gguf", "--norm-factor", "2"],
        &["llava", sae, "-o", "out"],
    ] {
        let (code, stdout, stderr) = run(dir.path(), arguments);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        let lines: Vec<_> = stderr.lines().collect();
        assert!(lines[0].starts_with("error: "), "{stderr}");
        assert!(
            lines[1..].iter().all(|line| line.starts_with("hint: ")) && lines.len() <= 2,
            "{stderr}"
        );
    }
    assert_eq!(listing(dir.path()), [""; 0]);
}

/// What is said of the demo's SAE.
const READ: &str = "\
read an SAE of SAELens: jumprelu, 768 features at blocks.1.hook_resid_post
192 inputs × 768 features; hook point from the SAE's files; normalisation of activations: none
";

#[test]
fn an_sae_is_converted_and_shown() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (sae, labels) = (demo().join("sae"), demo().join("sae/labels.json"));
    let (sae, labels) = (
        sae.to_str().expect("UTF-8"),
        labels.to_str().expect("UTF-8"),
    );
    let arguments = [
        "sae", sae, "-o", "sae.gguf", "--type", "q8_0", "--labels", labels,
    ];
    let (code, stdout, stderr) = run(dir.path(), &arguments);
    assert_eq!(
        (code, stdout, stderr),
        (
            Some(0),
            "sae.gguf\n".to_owned(),
            format!("{READ}labels of 748 features, from `llava-gemma-emoji/1-res`\n")
        )
    );
    let (code, _, stderr) = run(dir.path(), &arguments);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("hint: ") && stderr.contains("--force"),
        "{stderr}"
    );
    let (code, ..) = run(dir.path(), &[&arguments[..], &["--force"]].concat());
    assert_eq!(code, Some(0));
    assert_eq!(listing(dir.path()), ["sae.gguf"]);

    let (code, stdout, stderr) = run(dir.path(), &["show", "sae.gguf"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    for line in [
        "GGUF version 3, alignment 32",
        "  sae.d_sae                  768",
        "  sae.hook_name              \"blocks.1.hook_resid_post\"",
        "  sae.w_enc         q8_0     192 × 768",
    ] {
        assert!(
            stdout.lines().any(|shown| shown == line),
            "no `{line}` in:\n{stdout}"
        );
    }
    assert!(stdout.contains("… (768 values)"), "{stdout}");

    let (code, stdout, _) = run(dir.path(), &["show", "sae.gguf", "--json"]);
    assert_eq!(code, Some(0));
    let shown: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    assert_eq!(shown["metadata"]["sae.d_in"], 192);
    assert_eq!(
        shown["metadata"]["sae.labels"].as_array().map(Vec::len),
        Some(768)
    );
    assert_eq!(shown["tensors"][0]["name"], "sae.w_enc");
    assert_eq!(shown["tensors"][0]["dims"], serde_json::json!([192, 768]));
    assert_eq!(shown["tensors"][0]["n_bytes"], 192 / 32 * 34 * 768);
}

#[test]
fn the_output_folder_is_made_and_goes_again_after_a_failure() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let sae = demo().join("sae");
    let sae = sae.to_str().expect("UTF-8");
    let made = ["sae", sae, "-o", "a/b/sae.gguf"];
    let (code, stdout, stderr) = run(dir.path(), &made);
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (Some(0), "a/b/sae.gguf\n", READ)
    );
    assert_eq!(listing(&dir.path().join("a/b")), ["sae.gguf"]);

    // The demo's first encoder row times this is more than f16 holds.
    let normalized = dir.path().join("sae");
    std::fs::create_dir(&normalized).expect("writable");
    let config = std::fs::read_to_string(demo().join("sae/cfg.json")).expect("readable");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["normalize_activations"] = "expected_average_only_in".into();
    std::fs::write(normalized.join("cfg.json"), config.to_string()).expect("writable");
    let weights = "sae_weights.safetensors";
    std::fs::copy(demo().join("sae").join(weights), normalized.join(weights)).expect("writable");
    let refused = ["sae", "sae", "-o", "c/d/sae.gguf", "--norm-factor", "1e9"];
    let (code, _, stderr) = run(dir.path(), &refused);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("f16 cannot hold"), "{stderr}");
    assert_eq!(listing(dir.path()), ["a", "sae"]);
}

/// The SAE is large, and a hole in a sparse file.
#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (source, out) = (dir.path().join("sae"), dir.path().join("out"));
    std::fs::create_dir(&source).expect("writable");
    std::fs::create_dir(&out).expect("writable");
    let config = r#"{"hook_name": "blocks.0.hook_resid_post"}"#;
    std::fs::write(source.join("cfg.json"), config).expect("writable");
    let (d_in, d_sae) = (2048, 65536);
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in [
        ("W_enc", vec![d_in, d_sae]),
        ("b_enc", vec![d_sae]),
        ("W_dec", vec![d_sae, d_in]),
        ("b_dec", vec![d_in]),
    ] {
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        let tensor =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.to_owned(), tensor);
    }
    let header = serde_json::Value::Object(header).to_string();
    let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let weights = source.join("sae_weights.safetensors");
    std::fs::write(&weights, &start).expect("writable");
    let file = std::fs::File::options().write(true).open(&weights);
    file.and_then(|file| file.set_len(start.len() as u64 + end))
        .expect("a sparse file");

    for signal in ["-INT", "-TERM", "-HUP"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
            .args(["sae", "sae", "-o", "out/sae.gguf"])
            .current_dir(dir.path())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program runs");
        while listing(&out).is_empty() {
            let ended = child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "it ended before it wrote anything");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let sent = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(sent.expect("kill is there").success());
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(
            (output.status.code(), stderr.as_str()),
            (Some(130), "error: interrupted\n"),
            "{signal}"
        );
        assert_eq!(listing(&out), [""; 0], "{signal}");
    }
}

#[test]
fn a_file_cannot_steer_the_terminal() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut writer =
        Writer::create(&dir.path().join("x.gguf"), Overwrite::Refuse).expect("no target");
    writer.set("key\u{1b}[2J", "value\u{1b}]0;\u{9b}31m\n");
    writer
        .begin()
        .and_then(gguf_tools::gguf::TensorWriter::finish)
        .expect("complete");
    let (code, stdout, _) = run(dir.path(), &["show", "x.gguf"]);
    assert_eq!(code, Some(0));
    assert!(
        stdout.chars().all(|c| c == '\n' || !c.is_control()),
        "{stdout:?}"
    );
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("x.gguf");
    let mut writer = Writer::create(&path, Overwrite::Refuse).expect("no target");
    // More than any pipe holds, so that writing must meet the closed end.
    writer.set("long", vec![7_u32; 1 << 20]);
    writer
        .begin()
        .and_then(gguf_tools::gguf::TensorWriter::finish)
        .expect("complete");
    let mut child = Command::new(env!("CARGO_BIN_EXE_gguf-tools"))
        .args(["show", "--json"])
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}
