//! Hook points of every known architecture beside transformers: rows, logits, greedy tokens
//! (`tests/fixtures/make_hook_points.py`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeOptions};
use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    FlashAttention, Keep, KvType, ModelFiles, Prompt, PromptForm, Run, RunOptions, Session,
    SessionOptions,
};

use crate::bad_input::check;
use crate::command_line::{json, stdout, text};
use crate::fixture::{F32, Oracle, exact_options, relative_error, steering, temporary_root};
use crate::language_models::mixture_of_experts;
use crate::rewritten::{Tensor, rewritten};

pub(crate) const ARCHITECTURES: [&str; 12] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "gptneox-sequential",
    "llama",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2vl",
    "qwen3",
];
/// Those whose blocks have tensors of the same names, and tokens of SentencePiece.
pub(crate) const LIKE_LLAMA: [&str; 7] = [
    "gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen2vl", "qwen3",
];
const SITES: [&str; 4] = [
    "hook_resid_post",
    "hook_mlp_out",
    "hook_attn_out",
    "attn.hook_z",
];
const N_LAYERS: usize = 3;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hook_points")
}

/// Whether `<s>` stands in front of prompts.
pub(crate) fn begins_with_bos(architecture: &str) -> bool {
    !architecture.starts_with("gpt")
}

pub(crate) fn model(architecture: &str) -> PathBuf {
    root().join(architecture).join("model.gguf")
}

/// The fixture's SAE for rows of `width`, at the hook point `hook`.
pub(crate) fn sae_at(hook: &str, width: usize) -> PathBuf {
    sae_with(hook, width, serde_json::json!({}))
}

/// The same with these keys of its configuration instead.
pub(crate) fn sae_with(hook: &str, width: usize, keys: serde_json::Value) -> PathBuf {
    let dir = temporary_root().join("hook-points");
    let source = tempfile::tempdir().expect("a folder of our own");
    let weights = "sae_weights.safetensors";
    let from = root().join(format!("sae-{width}")).join(weights);
    std::fs::copy(from, source.path().join(weights)).expect("a committed file");
    let mut config = serde_json::json!({
        "architecture": "standard", "d_in": width, "d_sae": 16, "dtype": "float32",
        "apply_b_dec_to_input": false, "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": hook},
    });
    let known = config.as_object_mut().expect("an object");
    known.extend(keys.as_object().expect("an object").clone());
    std::fs::write(source.path().join("cfg.json"), config.to_string()).expect("a file of our own");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    // Tests run side by side: each writes its own.
    let target = dir.join(format!(
        "{hook}-{}.gguf",
        source.path().file_name().expect("a name").to_string_lossy()
    ));
    convert_sae(source.path(), &target, None);
    target
}

pub(crate) fn convert_sae(source: &Path, target: &Path, hook_name: Option<&str>) {
    let options = SaeOptions {
        weight_type: TensorType::F32,
        norm_factor: None,
        hook_name: hook_name.map(str::to_owned),
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    sae::convert(source, target, &options, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect("the fixture converts");
}

pub(crate) fn open(
    architecture: &str,
    hook: &str,
    width: usize,
    options: SessionOptions,
) -> llava_sae_cpp::Result<Session> {
    let files = ModelFiles {
        model: model(architecture),
        mmproj: None,
        saes: vec![sae_at(hook, width)],
    };
    Session::open(&files, options)
}

/// The prompt that all is about.
pub(crate) fn prompt(session: &Session) -> Prompt {
    let oracle = Oracle::read(&root());
    let text = oracle.json["prompt"].as_str().expect("a text");
    let prompt = session.prompt(text, PromptForm::Raw, &[]);
    prompt.expect("it is tokenised")
}

pub(crate) fn run(session: &mut Session, options: RunOptions) -> Run {
    let prompt = prompt(session);
    session.run(&prompt, options).expect("the run succeeds")
}

fn options() -> RunOptions {
    RunOptions {
        steering: None,
        keep: Keep::ALL,
        max_tokens: 0,
        ..RunOptions::default()
    }
}

/// Whether llama.cpp computes all rows there in the last block.
fn has_last_block(architecture: &str, site: &str) -> bool {
    let has_post_norms = matches!(architecture, "gemma2" | "gemma3" | "olmo2");
    site == "attn.hook_z" || site == "hook_attn_out" && !has_post_norms
}

/// Every hook point of the fixtures, with its name in the oracle and the width of its rows.
fn hook_points(oracle: &Oracle) -> Vec<(&'static str, &'static str, usize, String, usize)> {
    let mut found = Vec::new();
    for architecture in ARCHITECTURES {
        let n_rows = oracle.ids(&format!("{architecture}/prompt_ids")).len();
        for site in SITES {
            for layer in 0..N_LAYERS {
                let hook = format!("blocks.{layer}.{site}");
                let width = oracle.f32(&format!("{architecture}/{hook}/rows")).len() / n_rows;
                found.push((architecture, site, layer, hook, width));
            }
        }
    }
    found
}

/// The largest relative error of a row.
pub(crate) fn worst_row(ours: &[f32], theirs: &[f32], width: usize) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.chunks_exact(width)
        .zip(theirs.chunks_exact(width))
        .map(|(ours, theirs)| relative_error(ours, theirs))
        .fold(0.0, f64::max)
}

pub(crate) fn with_ubatch(n_ubatch: usize) -> SessionOptions {
    SessionOptions {
        n_ubatch,
        ..exact_options()
    }
}

#[test]
fn rows_are_those_of_transformers() {
    let oracle = Oracle::read(&root());
    for (architecture, site, layer, hook, width) in hook_points(&oracle) {
        let shown = format!("{architecture} {hook}");
        if layer + 1 == N_LAYERS && !has_last_block(architecture, site) {
            let error = open(architecture, &hook, width, exact_options()).err();
            let error = error.unwrap_or_else(|| panic!("{shown} is refused"));
            assert!(error.to_string().contains("last layer"), "{shown}: {error}");
            continue;
        }
        let theirs = oracle.f32(&format!("{architecture}/{hook}/rows"));
        // The prompt in one graph, and in three.
        for n_ubatch in [512, 5] {
            let session = open(architecture, &hook, width, with_ubatch(n_ubatch));
            let mut session = session.expect(&shown);
            let run = run(&mut session, options());
            let ids = run.trace.tokens.iter().map(|token| token.id.expect("text"));
            let expected = oracle.ids(&format!("{architecture}/prompt_ids"));
            assert_eq!(ids.collect::<Vec<_>>(), expected, "{shown}");
            // f32 throughout.
            let error = worst_row(&run.trace.saes[0].residuals, &theirs, width);
            println!("{shown}, ubatches of {n_ubatch}: {error:.1e}");
            assert!(error < F32, "{shown}: {error:.2e}");
            let logits = oracle.f32(&format!("{architecture}/logits"));
            let error = relative_error(&run.logits, &logits);
            assert!(error < F32, "{shown}: logits {error:.2e}");
        }
    }
}

/// Flash attention makes another graph around `hook_z`.
#[test]
fn flash_attention_does_not_matter() {
    let oracle = Oracle::read(&root());
    let flash = SessionOptions {
        flash_attention: FlashAttention::On,
        kv_type: KvType::F16,
        ..exact_options()
    };
    for (architecture, _, layer, hook, width) in hook_points(&oracle) {
        if layer != 1 {
            continue;
        }
        let mut session = open(architecture, &hook, width, flash.clone()).expect(&hook);
        let run = run(&mut session, options());
        let theirs = oracle.f32(&format!("{architecture}/{hook}/rows"));
        // Keys and values in f16, whose last bit is 1e-3.
        let error = worst_row(&run.trace.saes[0].residuals, &theirs, width);
        assert!(error < 1e-2, "{architecture} {hook}: {error:.2e}");
    }
}

#[test]
fn steering_is_that_of_transformers() {
    let oracle = Oracle::read(&root());
    let index = |key: &str| oracle.json[key].as_u64().expect("a number") as usize;
    let (feature, max_tokens) = (index("feature"), index("max_tokens"));
    let strengths = oracle.json["strengths"].as_object().expect("an object");
    for (architecture, _, _, hook, width) in hook_points(&oracle) {
        let shown = format!("{architecture}/{hook}");
        let Some(strength) = strengths.get(&shown) else {
            continue;
        };
        let strength = strength.as_f64().expect("a number") as f32;
        for n_ubatch in [512, 5] {
            let session = open(architecture, &hook, width, with_ubatch(n_ubatch));
            let mut session = session.expect(&shown);
            let steering = steering(&mut session, feature, strength, Positions::ALL);
            let plain = RunOptions {
                max_tokens,
                keep: Keep {
                    logits: true,
                    ..Keep::default()
                },
                ..options()
            };
            let steered = RunOptions {
                steering: Some(steering.clone()),
                ..plain.clone()
            };
            let plain = run(&mut session, plain);
            let steered = run(&mut session, steered);
            let error = relative_error(
                &steered.logits,
                &oracle.f32(&format!("{shown}/steered_logits")),
            );
            // f32, as above.
            assert!(error < F32, "{shown}: logits {error:.2e}");
            let ids = |name: &str| oracle.ids(&format!("{architecture}/{name}"));
            assert_eq!(plain.token_ids, ids("greedy_ids"), "{shown}");
            let expected = ids(&format!("{hook}/steered_ids"));
            assert_eq!(steered.token_ids, expected, "{shown}");
        }
    }
}

/// Tokens of bytes, as GPT-2 and Pythia have them.
#[test]
fn texts_of_bytes_have_the_ids_of_tokenizers() {
    let oracle = Oracle::read(&root());
    let texts = oracle.json["texts"].as_object().expect("an object");
    for (architecture, texts) in texts {
        let session = open(
            architecture,
            "blocks.1.hook_resid_post",
            32,
            exact_options(),
        );
        let session = session.expect("the fixture loads");
        for one in texts.as_array().expect("a list") {
            let text = one["text"].as_str().expect("a text");
            let expected: Vec<i32> = serde_json::from_value(one["ids"].clone()).expect("ids");
            let Ok(prompt) = session.prompt(text, PromptForm::Raw, &[]) else {
                assert!(expected.is_empty(), "{architecture}: {text:?}");
                continue;
            };
            let ids: Vec<i32> = prompt.tokens().iter().flat_map(|token| token.id).collect();
            assert_eq!(ids, expected, "{architecture}: {text:?}");
        }
    }
}

/// Positions of GPT-2 are rows of a table: behind its end, llama.cpp would end the process.
#[test]
fn tables_of_positions_have_an_end() {
    let (model, sae) = (model("gpt2"), sae_at("blocks.1.hook_resid_post", 32));
    let files = ["-m", text(&model), "--sae", text(&sae), "--raw-prompt"];
    let prompt = "a".repeat(90);
    let run = |prompt, n| [&files[..], &["--json", "-p", prompt, "-n", n]].concat();
    let report = json(&run(&prompt, "64"));
    let ids = report["original"]["token_ids"].as_array();
    // The last one is not read.
    assert_eq!(ids.expect("a list").len(), 7);
    assert_eq!(report["original"]["stop"], "length");
    let too_long = "a".repeat(97);
    check(
        &run(&too_long, "1"),
        1,
        &["97 tokens", "96 positions", "hint: "],
    );
    let wide = [&run("a", "1")[..], &["-c", "97"]].concat();
    check(&wide, 1, &["97 tokens", "96 positions", "hint: "]);
}

/// What attention and MLP of a block give is computed beside one another in Pythia, the MLP first.
#[test]
fn parallel_places_are_hooked_one_at_a_time() {
    let saes =
        ["hook_attn_out", "hook_mlp_out"].map(|site| sae_at(&format!("blocks.1.{site}"), 32));
    let [attention, mlp] = saes.each_ref().map(|sae| text(sae));
    let sequential = model("gptneox-sequential");
    let parallel = model("gptneox");
    let args = |model| {
        [
            "features",
            "-m",
            model,
            "--sae",
            attention,
            "--sae",
            mlp,
            "--raw-prompt",
            "-p",
            "a",
        ]
    };
    stdout(&args(text(&sequential)));
    check(
        &args(text(&parallel)),
        1,
        &["blocks.1.hook_attn_out", "together", "hint: "],
    );
}

/// llama.cpp's control vector is added to the residual stream.
#[test]
fn control_vectors_are_of_the_residual_stream() {
    let mut session = open("llama", "blocks.1.hook_mlp_out", 32, exact_options()).expect("fits");
    let prompt = session.prompt("a cat", PromptForm::Raw, &[]);
    let prompt = prompt.expect("tokenised");
    let error = session.set_control_vector(&prompt, 1, &[1.0; 32]);
    let error = error.expect_err("another place").to_string();
    assert!(error.contains("`blocks.1.hook_mlp_out`"), "{error}");
}

/// Text models without a projector, from the command line.
#[test]
fn text_goes_without_a_picture() {
    let oracle = Oracle::read(&root());
    let prompt = oracle.json["prompt"].as_str().expect("a text");
    for architecture in ARCHITECTURES {
        let (model, sae) = (model(architecture), sae_at("blocks.1.hook_mlp_out", 32));
        let files = ["-m", text(&model), "--sae", text(&sae), "-t", "1"];
        let with = |args: &[&'static str]| [&files[..], args].concat();
        let exact = ["--kv-type", "f32", "-fa", "off", "--raw-prompt", "-n", "8"];
        let raw = with(&exact);
        let report = json(&[&raw[..], &["--json", "-p", prompt]].concat());
        let expected = oracle.ids(&format!("{architecture}/greedy_ids"));
        let ids: Vec<i32> =
            serde_json::from_value(report["original"]["token_ids"].clone()).expect("a list of ids");
        assert_eq!(ids, expected, "{architecture}");

        let chat = [&files[..], &["-p", prompt, "--steer", "3:2", "--top", "2"]].concat();
        let shown = stdout(&[&chat[..], &["--compare", "-n", "4"]].concat());
        assert!(shown.contains("the prompt activated most"), "{shown}");

        let features = [&["features"], &files[..], &["-p", prompt]].concat();
        let shown = stdout(&features);
        assert!(shown.contains("the prompt's text tokens"), "{shown}");
        let report = json(&[&features[..], &["--json", "--over", "-1"]].concat());
        assert!(report["image"].is_null() && report["grid"].is_null());

        let out = temporary_root().join(format!("text-{architecture}.safetensors"));
        let capture = [&["capture", "-n", "2", "-o", text(&out)], &files[..]].concat();
        stdout(&[&capture[..], &["-p", prompt]].concat());
        let bytes = std::fs::read(&out).expect("it was written");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a valid file");
        assert!(tensors.tensor("image_embeddings").is_err());
        assert_eq!(tensors.tensor("resid").expect("rows").shape()[1], 32);
    }
}

fn check_refused(model: &Path, sae: &Path, more: &[&str], words: &[&str]) {
    let files = ["-m", text(model), "--sae", text(sae), "-p", "a"];
    check(
        &[&files[..], more].concat(),
        1,
        &[words, &["hint: "]].concat(),
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let hook = "blocks.1.attn.hook_z";
    let sae = sae_at(hook, 48);
    check_refused(
        &model("qwen3"),
        &sae,
        &["--kv-type", "q8_0"],
        &[hook, "q8_0 KV cache", "`--kv-type f16`"],
    );
    let words = [hook, "rows of 48", "have 32", "do not belong together"];
    check_refused(&model("llama"), &sae, &[], &words);
    let words = [hook, "rows of 32", "have 48", "do not belong together"];
    check_refused(&model("gemma2"), &sae_at(hook, 32), &[], &words);
    let sae = sae_at("blocks.1.hook_mlp_in", 32);
    check_refused(
        &model("llama"),
        &sae,
        &[],
        &["`blocks.1.hook_mlp_in`", "`hook_mlp_out`"],
    );
    let sae = sae_at("blocks.1.hook_mlp_out", 32);
    let other = rewritten(&model("llama"), &|parts| {
        parts.rename("llama", "starcoder2")
    });
    check_refused(&other, &sae, &[], &["`starcoder2`", "qwen3"]);
}

/// An architecture that was not compared: its graph and tensors are Llama's, so that its numbers have to be.
#[test]
fn other_architectures_show_the_residual_stream() {
    let other = rewritten(&model("llama"), &|parts| parts.rename("llama", "mistral3"));
    let oracle = Oracle::read(&root());
    for layer in 0..2 {
        let hook = format!("blocks.{layer}.hook_resid_post");
        let files = ModelFiles {
            model: other.clone(),
            mmproj: None,
            saes: vec![sae_at(&hook, 32)],
        };
        let mut session = Session::open(&files, exact_options()).expect("it is taken");
        let run = run(&mut session, options());
        let theirs = oracle.f32(&format!("llama/{hook}/rows"));
        let error = worst_row(&run.trace.saes[0].residuals, &theirs, 32);
        assert!(error < F32, "{hook}: {error:.2e}");
    }
    let sae = sae_at("blocks.1.hook_resid_post", 32);
    let prompt = oracle.json["prompt"].as_str().expect("a text");
    let strength = oracle.json["strengths"]["llama/blocks.1.hook_resid_post"].to_string();
    let steer = format!("{}:{strength}", oracle.json["feature"]);
    let files = [
        "-m",
        text(&other),
        "--sae",
        text(&sae),
        "-t",
        "1",
        "-p",
        prompt,
    ];
    let exact = [
        "--kv-type",
        "f32",
        "-fa",
        "off",
        "--raw-prompt",
        "-n",
        "8",
        "--json",
    ];
    let report = json(&[&files[..], &exact, &["--steer", &steer, "--compare"]].concat());
    for (run, name) in [
        ("original", "greedy_ids"),
        ("steered", "blocks.1.hook_resid_post/steered_ids"),
    ] {
        let ids: Vec<i32> =
            serde_json::from_value(report[run]["token_ids"].clone()).expect("a list of ids");
        assert_eq!(ids, oracle.ids(&format!("llama/{name}")), "{run}");
    }
    let output = crate::command_line::run(&[&files[..], &["-n", "1"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr.matches("were not compared").count(), 1, "{stderr}");
    check_refused(
        &other,
        &sae_at("blocks.2.hook_resid_post", 32),
        &[],
        &["last layer"],
    );
    check_refused(
        &other,
        &sae_at("blocks.1.hook_resid_post", 48),
        &[],
        &["rows of 48"],
    );
}

/// Mamba has a state, from which no token can be taken back.
#[test]
fn models_with_a_state_are_refused() {
    let mamba = rewritten(&model("llama"), &|parts| {
        parts.rename("llama", "mamba");
        for (key, value) in [
            ("conv_kernel", 4),
            ("inner_size", 64),
            ("state_size", 8),
            ("time_step_rank", 2),
        ] {
            parts.set(&format!("mamba.ssm.{key}"), value as u32);
        }
        for block in 0..3 {
            let name = |part: &str| format!("blk.{block}.{part}");
            for part in [
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_up",
                "ffn_gate",
                "ffn_down",
            ] {
                parts.take(&name(&format!("{part}.weight")));
                parts.take(&name(&format!("{part}.bias")));
            }
            parts.take(&name("ffn_norm.weight"));
            for (part, dims) in [
                ("ssm_in.weight", &[32, 128][..]),
                ("ssm_conv1d.weight", &[4, 64]),
                ("ssm_conv1d.bias", &[64]),
                ("ssm_x.weight", &[64, 18]),
                ("ssm_dt.weight", &[2, 64]),
                ("ssm_dt.bias", &[64]),
                ("ssm_a", &[8, 64]),
                ("ssm_d", &[64]),
                ("ssm_out.weight", &[64, 32]),
            ] {
                parts.add(Tensor::ones(&name(part), dims));
            }
        }
    });
    let sae = sae_at("blocks.1.hook_resid_post", 32);
    check_refused(&mamba, &sae, &[], &["`mamba`", "cannot be hooked"]);
}

/// Tensors that make a node another place than its name says.
#[test]
fn models_whose_nodes_show_something_else_are_refused() {
    let sae = sae_at("blocks.1.hook_mlp_out", 32);
    let experts = rewritten(&model("llama"), &mixture_of_experts);
    check_refused(&experts, &sae, &[], &["mixture of experts"]);
    let sae = sae_at("blocks.1.hook_attn_out", 32);
    let name = "blk.1.attn_output.scale";
    let scaled = rewritten(&model("qwen2"), &|parts| {
        parts.add(Tensor::ones(name, &[1]))
    });
    check_refused(&scaled, &sae, &[], &[name]);

    // sparsify reads a module's output, before the norm that follows it in Gemma 2 and 3.
    let source = root().with_file_name("saes").join("sparsify/layers.1");
    let sae = temporary_root().join("sparsify-mlp.gguf");
    convert_sae(&source, &sae, Some("blocks.1.hook_mlp_out"));
    check_refused(&model("gemma2"), &sae, &[], &["normalises", "sparsify"]);
    // The fixture's rows are of another width than this model's: that is what is said elsewhere.
    check_refused(&model("qwen2"), &sae, &[], &["rows of 24", "have 32"]);
}
