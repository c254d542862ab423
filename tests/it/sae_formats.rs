//! SAEs of every format and architecture beside the libraries that they come from: SAELens and
//! sparsify (`tests/fixtures/make_saes.py`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use llava_sae_cpp::{
    Activations, Decoder, Encoder, EncoderOptions, EncoderWeights, ErrorKind, Sae,
};

use crate::fixture::{Oracle, relative_error, temporary_root};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saes")
}

/// Converts the SAE `name` in `root` in f32.
fn convert(root: &Path, name: &str, oracle: &Oracle) -> SaeFile {
    let target = temporary_root().join(format!("sae-{}.gguf", name.replace('/', "-")));
    let factor = oracle.json["norm_factors"][name].as_f64();
    let options = SaeOptions {
        weight_type: TensorType::F32,
        norm_factor: factor.map(|factor| factor as f32),
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    let progress = &mut |_, _| ControlFlow::Continue(());
    sae::convert(&root.join(name), &target, &options, progress).expect(name);
    SaeFile::open(&target).expect(name)
}

/// Folders of SAEs, with their formats and architectures as stored.
const CASES: [(&str, &str); 18] = [
    ("saelens-0-standard", "SAELens: standard"),
    ("saelens-3-standard", "SAELens: standard"),
    ("saelens-3-gated", "SAELens: jumprelu"),
    ("saelens-3-topk", "SAELens: topk"),
    ("saelens-5-jumprelu", "SAELens: jumprelu"),
    ("saelens-6-standard", "SAELens: standard"),
    ("saelens-6-jumprelu", "SAELens: jumprelu"),
    ("saelens-6-gated", "SAELens: jumprelu"),
    ("saelens-6-topk", "SAELens: topk"),
    ("saelens-6-topk-rescaled", "SAELens: topk"),
    ("saelens-6-topk-rescaled-normalised", "SAELens: topk"),
    ("saelens-6-layer-norm", "SAELens: standard"),
    ("saelens-6-constant-norm-rescale", "SAELens: jumprelu"),
    (
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        "Gemma Scope: jumprelu",
    ),
    (
        "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71",
        "Gemma Scope: jumprelu",
    ),
    (
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "Gemma Scope 2: jumprelu",
    ),
    (
        "llama-scope/Llama3_1-8B-Base-L1R-8x",
        "Llama Scope: jumprelu",
    ),
    ("sparsify/layers.1", "sparsify: topk"),
];

/// OpenMOSS' newer layout, beside its formulas in double precision (`tests/fixtures/make_openmoss.py`).
const OPENMOSS: [(&str, &str); 5] = [
    ("openmoss/jumprelu", "OpenMOSS: jumprelu"),
    ("openmoss/plain", "OpenMOSS: jumprelu"),
    ("openmoss/topk", "OpenMOSS: topk"),
    ("openmoss/relu", "OpenMOSS: standard"),
    ("openmoss/inference", "OpenMOSS: jumprelu"),
];

const ON_THE_PROCESSOR: EncoderOptions = EncoderOptions {
    use_gpu: false,
    threads: 1,
    screen: true,
};

#[test]
fn activations_and_reconstructions_are_those_of_the_sources() {
    let at = "40 features at blocks.1.hook_resid_post";
    let oracle = Oracle::read(&root());
    for (name, meta) in CASES {
        check(&root(), name, &format!("an SAE of {meta}, {at}"), &oracle);
    }
    let oracle = Oracle::read(&root().join("openmoss"));
    for (name, meta) in OPENMOSS {
        check(&root(), name, &format!("an SAE of {meta}, {at}"), &oracle);
    }
}

/// Transcoders with and without a skip connection beside SAELens' `encode` and `forward`
/// (`tests/fixtures/make_transcoders.py`).
#[test]
fn transcoders_are_those_of_the_sources() {
    let root = root().with_file_name("transcoders").join("saes");
    let oracle = Oracle::read(&root);
    for (name, format, input) in [
        ("saelens-transcoder", "SAELens: standard", "mlp.hook_in"),
        (
            "saelens-skip-transcoder",
            "SAELens: standard",
            "mlp.hook_in",
        ),
        (
            "saelens-jumprelu-transcoder",
            "SAELens: jumprelu",
            "mlp.hook_in",
        ),
        (
            "saelens-jumprelu-skip-transcoder",
            "SAELens: jumprelu",
            "mlp.hook_in",
        ),
        (
            "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_76",
            "Gemma Scope: jumprelu",
            "ln2.hook_normalized",
        ),
        (
            "gemma-scope-2-270m-pt/transcoder_all/layer_1_width_16k_l0_small",
            "Gemma Scope 2: jumprelu",
            "mlp.hook_in",
        ),
        (
            "gemma-scope-2-270m-pt/transcoder_all/layer_1_width_16k_l0_small_affine",
            "Gemma Scope 2: jumprelu",
            "mlp.hook_in",
        ),
        (
            "circuit-tracer/layer_1.safetensors",
            "circuit-tracer: standard",
            "mlp.hook_in",
        ),
        (
            "circuit-tracer-jumprelu-skip/layer_1.safetensors",
            "circuit-tracer: jumprelu",
            "hook_resid_mid",
        ),
        ("sparsify/layers.1.mlp", "sparsify: topk", "mlp.hook_in"),
        (
            "sparsify-skip/layers.1.mlp",
            "sparsify: topk",
            "mlp.hook_in",
        ),
    ] {
        let places = format!("from blocks.1.{input} to blocks.1.hook_mlp_out");
        let meta = format!("a transcoder of {format}, 40 features {places}");
        check(&root, name, &meta, &oracle);
    }
}

/// The crate's own product gives the same features as ggml's.
fn check_without_a_runtime(sae: &Arc<Sae>, x: &[f32], expected: &Activations, name: &str) {
    let mut found = Activations::default();
    let mut in_memory = Encoder::in_memory(Arc::clone(sae)).expect(name);
    in_memory.encode(x, &mut found).expect(name);
    assert_eq!(found.ends(), expected.ends(), "{name}");
    assert_eq!(found.indices(), expected.indices(), "{name}");
    let error = relative_error(found.data(), expected.data());
    assert!(error < 1e-6, "{name}: {error:.2e}");
}

fn check(root: &Path, name: &str, meta: &str, oracle: &Oracle) {
    let file = convert(root, name, oracle);
    file.verify().expect(name);
    assert_eq!(file.meta.to_string(), meta, "{name}");
    let (d_sae, d_in, d_out) = (file.meta.d_sae, file.meta.d_in, file.meta.d_out);
    let sae = Arc::new(Sae::from_file(file).expect(name));
    let mut activations = Activations::default();
    let x = oracle.f32("x");
    let mut on_ggml = EncoderWeights::load(&sae, ON_THE_PROCESSOR)
        .and_then(|weights| weights.encoder())
        .expect(name);
    on_ggml.encode(&x, &mut activations).expect(name);
    check_without_a_runtime(&sae, &x, &activations, name);
    check_activations(
        &activations,
        d_sae,
        &oracle.f32(&format!("{name}/acts")),
        name,
    );
    let mut decoder = Decoder::new(sae).expect(name);
    let mut decoded = Vec::new();
    for row_idx in 0..activations.n_rows() {
        let row = &x[row_idx * d_in..(row_idx + 1) * d_in];
        let mut out = vec![0.0; d_out];
        decoder
            .reconstruct(&activations, row_idx, row, &mut out)
            .expect(name);
        decoded.extend(out);
    }
    let error = relative_error(&decoded, &oracle.f32(&format!("{name}/decoded")));
    assert!(
        error < 1e-5,
        "{name}: reconstruction {error:.2e}, {d_in} numbers a row"
    );
}

fn check_activations(activations: &Activations, d_sae: usize, theirs: &[f32], name: &str) {
    let mut ours = Vec::new();
    for row_idx in 0..activations.n_rows() {
        let active: BTreeMap<usize, f32> = activations.row(row_idx).collect();
        ours.extend((0..d_sae).map(|feature| active.get(&feature).copied().unwrap_or(0.0)));
    }
    for (idx, (&ours, &theirs)) in ours.iter().zip(theirs).enumerate() {
        // f32 sums of 24 products in another order; no activation here is that near its threshold.
        let both = (ours > 0.0) == (theirs > 0.0);
        assert!(
            both && (ours - theirs).abs() <= 1e-4 * theirs.max(1.0),
            "{name}, row {}, feature {}: {ours}, expected {theirs}",
            idx / d_sae,
            idx % d_sae
        );
    }
}

/// One layer's features of a cross-layer transcoder. SAELens sums what they write at all layers.
#[test]
fn cross_layer_features_are_those_of_the_sources() {
    let root = root().with_file_name("transcoders").join("saes");
    let oracle = Oracle::read(&root);
    let x = oracle.f32("x");
    for (name, format, input) in [
        (
            "gemma-scope-2-270m-pt/clt/width_16k_l0_small/params_layer_1.safetensors",
            "Gemma Scope 2: jumprelu",
            "mlp.hook_in",
        ),
        (
            "circuit-tracer-clt/W_enc_1.safetensors",
            "circuit-tracer: standard",
            "hook_resid_mid",
        ),
    ] {
        let file = convert(&root, name, &oracle);
        file.verify().expect(name);
        let places = "2 places, blocks.1.hook_mlp_out to blocks.2.hook_mlp_out";
        let meta = format!(
            "a cross-layer transcoder of {format}, 40 features from blocks.1.{input} to {places}"
        );
        assert_eq!(file.meta.to_string(), meta);
        let d_out = file.meta.d_out;
        let sae = Arc::new(Sae::from_file(file).expect(name));
        let mut activations = Activations::default();
        let mut encoder = Encoder::in_memory(Arc::clone(&sae)).expect(name);
        encoder.encode(&x, &mut activations).expect(name);
        let theirs = oracle.f32(&format!("{name}/acts"));
        check_activations(&activations, sae.meta().d_sae, &theirs, name);
        let mut decoded = Vec::new();
        for row_idx in 0..activations.n_rows() {
            let mut row = sae.b_dec().to_vec();
            for (feature, activation) in activations.row(row_idx) {
                for place in sae.outputs() {
                    let direction = sae.decoder_direction_at(feature, *place).expect(name);
                    let values = row.iter_mut().zip(&direction.row);
                    values.for_each(|(x, value)| *x += activation * value);
                }
            }
            assert_eq!(row.len(), d_out);
            decoded.extend(row);
        }
        let error = relative_error(&decoded, &oracle.f32(&format!("{name}/decoded")));
        assert!(error < 1e-5, "{name}: {error:.2e}");
    }
}

/// The place of a Gemma Scope or sparsify SAE can be told where folders do not tell it.
#[test]
fn a_hook_point_that_no_folder_tells() {
    let npz = root().join("gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71/params.npz");
    let dir = temporary_root().join("unnamed");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    std::fs::copy(npz, dir.join("params.npz")).expect("a committed file");
    let target = dir.join("sae.gguf");
    let convert = |hook_name: Option<&str>| {
        let options = SaeOptions {
            weight_type: TensorType::F32,
            norm_factor: None,
            hook_name: hook_name.map(str::to_owned),
            labels: Vec::new(),
            overwrite: Overwrite::Replace,
        };
        sae::convert(&dir, &target, &options, &mut |_, _| {
            ControlFlow::Continue(())
        })
    };
    let error = convert(None).expect_err("no layer");
    assert_eq!(error.kind(), ErrorKind::HookPointMissing);
    let converted = convert(Some("blocks.7.hook_resid_post")).expect("told");
    assert_eq!(converted.meta.hook_name, "blocks.7.hook_resid_post");
}
