//! A published pair of GGUF files, of a model and of its projector, and an SAE of Gemma Scope 2: from a mirror that
//! has small ones under the names of the real ones.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::families::{converted, dir};
use crate::hook_points;
use crate::mirror::{Content, Mirror, Repo};
use crate::pull::{User, visible};

const NAME: &str = "gemma-3-4b";
const MODEL: &str = "ggml-org/gemma-3-4b-it-GGUF";
const SAE: &str = "google/gemma-scope-2-4b-it";
const SAE_DIR: &str = "resid_post/layer_17_width_16k_l0_medium";

/// The SAE of the hook points' fixture in Gemma Scope 2's files, which say the block that the small model has.
fn sae() -> Repo {
    let weights = hook_points::root().join("sae-32/sae_weights.safetensors");
    let weights = fs::read(weights).expect("a committed file");
    let weights = SafeTensors::deserialize(&weights).expect("safetensors");
    let threshold = 0.25_f32.to_le_bytes().repeat(16);
    let threshold = TensorView::new(safetensors::Dtype::F32, vec![16], &threshold);
    let named = weights
        .iter()
        .map(|(name, tensor)| (name.to_lowercase(), tensor));
    let named = named.chain([("threshold".to_owned(), threshold.expect("16 numbers"))]);
    let params = safetensors::serialize(named, None).expect("memory");
    let config = json!({
        "architecture": "jump_relu", "model_name": "gemma-3-4b-it", "hf_hook_point_in": "model.layers.1.output",
        "width": 16, "l0": 5, "affine_connection": false, "type": "sae",
    });
    let mut repo = Repo::default();
    for (name, bytes) in [
        ("config.json", config.to_string().into_bytes()),
        ("params.safetensors", params),
    ] {
        repo.files.insert(format!("{SAE_DIR}/{name}"), bytes);
    }
    repo
}

fn content() -> Content {
    let made = converted("gemma3");
    let read = |path: &std::path::Path| fs::read(path).expect("it was made");
    let mut model = Repo::default().with_more(&[("gemma-3-4b-it-f16.gguf", "another type")]);
    for (name, bytes) in [
        ("gemma-3-4b-it-Q8_0.gguf", read(&made.model.expect("made"))),
        ("mmproj-model-f16.gguf", read(&made.mmproj.expect("made"))),
    ] {
        model.files.insert(name.to_owned(), bytes);
    }
    let mut labels = GzEncoder::new(Vec::new(), Compression::fast());
    for feature in 0..16 {
        let label =
            json!({ "index": feature.to_string(), "description": format!("label {feature}") });
        writeln!(labels, "{label}").expect("memory");
    }
    let key = "v1/gemma-3-4b-it/17-gemmascope-2-res-16k/explanations/batch-0.jsonl.gz";
    Content {
        repos: [(MODEL.to_owned(), model), (SAE.to_owned(), sae())].into(),
        bucket: [(key.to_owned(), labels.finish().expect("memory"))].into(),
    }
}

#[test]
fn a_model_and_its_projector_are_taken_as_they_are() {
    let mirror = Mirror::start(content());
    let user = User::of(&mirror);
    user.stdout(&["pull", NAME, "--yes"]);
    let folder = user.models().join(NAME);
    let made = [
        "mmproj-model-f16.gguf",
        "model-gemma-3-4b-it-Q8_0.gguf",
        "sae-f16.gguf",
        "sources.json",
    ];
    assert_eq!(visible(&folder), made);
    let asked = mirror.asked();
    assert!(
        asked.iter().all(|asked| !asked.path.contains("it-f16")),
        "{asked:?}"
    );

    let picture = dir("gemma3").join("square.png").display().to_string();
    let text = user.stdout(&["features", "-d", NAME, "--json", "--top", "3", &picture]);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["n_image_tokens"], 16);
    let feature = &report["features"][0];
    assert_eq!(feature["label"], format!("label {}", feature["feature"]));
    assert!(mirror.asked().is_empty());
}

/// A repository without the projector is no model that sees.
#[test]
fn a_projector_that_is_not_there_is_named() {
    let mut content = content();
    let model = content.repos.get_mut(MODEL).expect("there");
    model.files.remove("mmproj-model-f16.gguf");
    let mirror = Mirror::start(content);
    let user = User::of(&mirror);
    let said = user.fails(&["pull", NAME, "--yes"]);
    assert!(
        said.contains("`ggml-org/gemma-3-4b-it-GGUF` has no file `mmproj-model-f16.gguf`"),
        "{said}"
    );
    assert!(visible(&user.models()).is_empty());
}
