//! What is known without a run: `/v1/capabilities`, `/v1/tokenize`, `/v1/util/…`.

use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::{HookedModel, ModelFiles, PromptForm};
use serde_json::{Value, json};

use super::{Folded, HOOK, TEXT, dot, near, tiny};
use crate::fixture::{Fixture, exact_options, temporary_root};
use crate::serve_fixture::{Served, options};
use crate::several_saes::sae_at;

#[test]
fn what_is_known_without_a_run() {
    let (served, session) = tiny();
    let sae = Folded::open(Fixture::Tiny, TensorType::F32);
    let told = served.get("/v1/capabilities").json();
    assert_eq!(told["model"], "demo"); // as the server of the tests calls what it serves
    assert_eq!(told["backend"], "llama.cpp");
    assert_eq!(told["max_concurrent_requests"], 2);
    assert_eq!(
        told["num_layers"],
        session.model().language_model().n_layers()
    );
    assert_eq!(told["sae_sets"], json!(["sae"]));
    assert_eq!(told["sources"], json!(["1-sae"]));
    assert_eq!(told["endpoints"]["activation_topk_by_token"], true);
    assert_eq!(told["endpoints"]["lens_logit"], false);

    let tokenize = |more: Value| {
        let mut request = json!({"text": "the image", "model": "demo"});
        request
            .as_object_mut()
            .expect("members")
            .extend(more.as_object().expect("members").clone());
        served.ask("/v1/tokenize", &request)
    };
    let usual = tokenize(json!({}));
    assert_eq!(usual["prependBos"], true);
    assert_eq!(usual["tokenStrings"][0], "<bos>");
    let prompt = session
        .prompt("the image", PromptForm::Raw, &[])
        .expect("tokens");
    let ids: Vec<i32> = prompt
        .tokens()
        .iter()
        .filter_map(|token| token.id)
        .collect();
    assert_eq!(usual["tokens"], json!(ids));
    let without = tokenize(json!({"prependBos": false}));
    assert_eq!(without["tokens"], json!(ids[1..]));
    assert_eq!(without["prependBos"], false);
    let strings = without["tokenStrings"].as_array().expect("a list").iter();
    let text: String = strings
        .map(|piece| piece.as_str().expect("a text"))
        .collect();
    assert_eq!(text.trim_start(), "the image");
    assert_eq!(tokenize(json!({"prepend_bos": true})), usual);
    let begun = tokenize(json!({"text": "<bos>the image"}));
    assert_eq!(begun["tokens"][0], ids[0]);
    assert_eq!(begun["prependBos"], false);

    let vector = served.ask(
        "/v1/util/sae-vector",
        &json!({"model": "demo", "source": "1-sae", "index": 17}),
    );
    assert_eq!(vector["hookName"], HOOK);
    let values = vector["vector"].as_array().expect("a list");
    assert_eq!(values.len(), sae.w_enc[17].len());
    assert!(
        values
            .iter()
            .zip(&sae.w_enc[17])
            .all(|(ours, theirs)| near(ours, *theirs))
    );

    let feature = json!({"model": "demo", "source": "1-sae", "index": 17});
    let by_feature = served.ask(
        "/v1/util/sae-topk-by-decoder-cossim",
        &json!({"model": "demo", "source": "1-sae", "numResults": 4, "feature": feature}),
    );
    assert_eq!(by_feature["feature"], feature);
    let mut cosines: Vec<f64> = sae
        .w_dec
        .iter()
        .map(|row| dot(row, &sae.w_dec[17]))
        .collect();
    let found = by_feature["topkDecoderCossimFeatures"]
        .as_array()
        .expect("a list");
    assert_eq!(found.len(), 4);
    assert_eq!(found[0]["feature"], feature);
    for one in found {
        let index = one["feature"]["index"].as_u64().expect("an index") as usize;
        assert!(near(&one["cosineSimilarity"], cosines[index]), "{one}");
    }
    cosines.sort_by(|a, b| b.total_cmp(a));
    assert!(near(&found[3]["cosineSimilarity"], cosines[3]));
    let long: Vec<f64> = sae.w_dec[17].iter().map(|x| 5.0 * x).collect();
    let by_vector = served.ask(
        "/v1/util/sae-topk-by-decoder-cossim",
        &json!({"model": "demo", "source": "sae", "num_results": 1_000, "vector": long}),
    );
    assert!(by_vector.get("feature").is_none());
    let found = by_vector["topkDecoderCossimFeatures"]
        .as_array()
        .expect("a list");
    assert_eq!(found.len(), 128);
    assert_eq!(found[0]["feature"]["index"], 17);
}

/// With several SAEs, each has its name: Neuronpedia's where it is known, as the labels say it here, else one of its
/// layer and id.
#[test]
fn each_sae_has_a_source() {
    let dir = temporary_root().join("neuronpedia");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let sae = |name: &str, layer: usize| {
        let hook_name = format!("blocks.{layer}.hook_resid_post");
        sae_at(&hook_name, &dir.join(format!("{name}.gguf")))
    };
    let saes = vec![sae("lower", 0), sae("upper", 1)];
    let models = Fixture::Demo.converted(TensorType::F32);
    let files = ModelFiles::find(Some(&models), None, None, saes).expect("all files are there");
    let model = HookedModel::open(&files, exact_options()).expect("it loads");
    let served = Served::of(Arc::clone(&model), options());
    let told = served.get("/v1/capabilities").json();
    assert_eq!(told["sources"], json!(["0-lower", "1-res"]));
    assert_eq!(told["sae_sets"], json!(["lower", "res"]));
    let of_source = |source: &str| {
        let query = json!({"prompts": [TEXT], "model": "demo", "source": source});
        served.ask("/v1/activation/source", &query)["results"][0]["activeFeatures"].clone()
    };
    let lower = of_source("0-lower");
    assert_eq!(lower, of_source("lower"));
    assert_eq!(of_source("1-res"), of_source("upper"));
    assert_ne!(lower, of_source("upper"));
    let all = json!({"prompt": TEXT, "model": "demo", "sourceSet": "lower", "selectedSources": [],
        "sortByTokenIndexes": [], "ignoreBos": true, "numResults": 1});
    let feature = &served.ask("/v1/activation/all", &all)["activations"][0];
    assert_eq!(feature["source"], "0-lower");
    let places = lower[feature["index"].to_string()]
        .as_array()
        .expect("it is active");
    let is_there = |place: &Value| {
        place[0] == feature["maxValueIndex"]
            && near(&place[1], feature["maxValue"].as_f64().expect("a number"))
    };
    assert!(places.iter().any(is_there), "{feature}");
}
