//! `gguf-tools show` of every kind of file that is converted.

use std::path::Path;

use crate::command_line::run;
use crate::demo;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What `show` says of a file in `dir`.
fn shown(dir: &Path, file: &str) -> String {
    let (code, stdout, stderr) = run(dir, &["show", file]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{file}");
    stdout
}

#[test]
fn models_and_projectors() {
    for name in ["demo", "tiny"] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let llava = demo().with_file_name(name).join("llava");
        let (code, ..) = run(dir.path(), &["llava", text(&llava), "-o", "."]);
        assert_eq!(code, Some(0), "{name}");
        for file in ["model-q8_0.gguf", "mmproj-f16.gguf"] {
            insta::assert_snapshot!(format!("{name}-{file}"), shown(dir.path(), file));
        }
    }
}

#[test]
fn saes() {
    let saes = demo().with_file_name("saes");
    for name in [
        "../transcoders/saes/saelens-jumprelu-skip-transcoder",
        "saelens-0-standard",
        "saelens-3-gated",
        "saelens-5-jumprelu",
        "saelens-6-layer-norm",
        "saelens-6-topk-rescaled-normalised",
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71",
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "llama-scope/Llama3_1-8B-Base-L1R-8x",
        "sparsify/layers.1",
    ] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let source = saes.join(name);
        let mut arguments = vec!["sae", text(&source), "-o", "sae.gguf"];
        if name.ends_with("normalised") {
            arguments.extend(["--norm-factor", "0.37"]);
        }
        let (code, _, stderr) = run(dir.path(), &arguments);
        assert_eq!(code, Some(0), "{stderr}");
        let name = name.trim_start_matches("../transcoders/saes/");
        let first = name.split('/').next().expect("a name");
        let said = format!("{stderr}{}", shown(dir.path(), "sae.gguf"));
        // It changes with the last bit of an exponential.
        let key = "sae.checksum               ";
        let (before, after) = said.split_once(key).expect("it has a checksum");
        let (_, after) = after.split_once('\n').expect("a line");
        let said = format!("{before}{key}…\n{after}");
        insta::assert_snapshot!(format!("sae-{first}"), said);
    }
}
