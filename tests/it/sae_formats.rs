//! SAEs of every format and architecture beside the libraries that they come from: SAELens and
//! sparsify (`tests/fixtures/make_saes.py`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use llava_sae_cpp::{Activations, Sae};

use crate::fixture::{Oracle, relative_error, temporary_root};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saes")
}

/// Converts the SAE in f32.
fn convert(name: &str, oracle: &Oracle) -> SaeFile {
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
    sae::convert(&root().join(name), &target, &options, progress).expect(name);
    SaeFile::open(&target).expect(name)
}

/// What is wanted of an SAE: its format and architecture as stored, whether rows are normalised when
/// it runs, so that its reconstruction is not `a·W_dec + b_dec`.
struct Case {
    name: &'static str,
    meta: &'static str,
    is_normalised: bool,
}

const fn case(name: &'static str, meta: &'static str) -> Case {
    Case {
        name,
        meta,
        is_normalised: false,
    }
}

const fn normalised(name: &'static str, meta: &'static str) -> Case {
    Case {
        name,
        meta,
        is_normalised: true,
    }
}

const CASES: [Case; 18] = [
    case("saelens-0-standard", "SAELens: standard"),
    case("saelens-3-standard", "SAELens: standard"),
    case("saelens-3-gated", "SAELens: jumprelu"),
    case("saelens-3-topk", "SAELens: topk"),
    case("saelens-5-jumprelu", "SAELens: jumprelu"),
    case("saelens-6-standard", "SAELens: standard"),
    case("saelens-6-jumprelu", "SAELens: jumprelu"),
    case("saelens-6-gated", "SAELens: jumprelu"),
    case("saelens-6-topk", "SAELens: topk"),
    case("saelens-6-topk-rescaled", "SAELens: topk"),
    case("saelens-6-topk-rescaled-normalised", "SAELens: topk"),
    normalised("saelens-6-layer-norm", "SAELens: standard"),
    normalised("saelens-6-constant-norm-rescale", "SAELens: jumprelu"),
    case(
        "gemma-scope-2b-pt-res/layer_1/width_16k/average_l0_71",
        "Gemma Scope: jumprelu",
    ),
    case(
        "gemma-scope-9b-it-res/layer_1/width_16k/average_l0_71",
        "Gemma Scope: jumprelu",
    ),
    case(
        "gemma-scope-2-270m-pt/resid_post/layer_1_width_16k_l0_medium",
        "Gemma Scope 2: jumprelu",
    ),
    case(
        "llama-scope/Llama3_1-8B-Base-L1R-8x",
        "Llama Scope: jumprelu",
    ),
    case("sparsify/layers.1", "sparsify: topk"),
];

#[test]
fn activations_and_reconstructions_are_those_of_the_sources() {
    let oracle = Oracle::read(&root());
    for case in CASES {
        check(&case, &oracle);
    }
}

fn check(case: &Case, oracle: &Oracle) {
    let name = case.name;
    let file = convert(name, oracle);
    let expected_meta = format!(
        "an SAE of {}, 40 features at blocks.1.hook_resid_post",
        case.meta
    );
    assert_eq!(file.meta.to_string(), expected_meta, "{name}");
    let (d_sae, d_in) = (file.meta.d_sae, file.meta.d_in);
    let mut sae = Sae::new(file, false, 1).expect(name);
    let mut activations = Activations::default();
    sae.encode(&oracle.f32("x"), &mut activations).expect(name);

    let (mut ours, mut decoded) = (Vec::new(), Vec::new());
    for row_idx in 0..activations.n_rows() {
        let active: BTreeMap<usize, f32> = activations.row(row_idx).collect();
        ours.extend((0..d_sae).map(|feature| active.get(&feature).copied().unwrap_or(0.0)));
        let mut row = sae.file().b_dec().expect(name);
        for (feature, activation) in active {
            let direction = sae.decoder_direction(feature).expect(name).row;
            for (x, value) in row.iter_mut().zip(direction) {
                *x += activation * value;
            }
        }
        decoded.extend(row);
    }
    let theirs = oracle.f32(&format!("{name}/acts"));
    for (idx, (&ours, &theirs)) in ours.iter().zip(&theirs).enumerate() {
        // f32 sums of 24 products in another order; no activation here is that near its threshold.
        let both = (ours > 0.0) == (theirs > 0.0);
        assert!(
            both && (ours - theirs).abs() <= 1e-4 * theirs.max(1.0),
            "{name}, row {}, feature {}: {ours}, expected {theirs}",
            idx / d_sae,
            idx % d_sae
        );
    }
    if !case.is_normalised {
        let error = relative_error(&decoded, &oracle.f32(&format!("{name}/decoded")));
        assert!(
            error < 1e-5,
            "{name}: reconstruction {error:.2e}, {d_in} numbers a row"
        );
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
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("--hook-name"))
    );
    let meta = convert(Some("blocks.7.hook_resid_post")).expect("told");
    assert_eq!(meta.hook_name, "blocks.7.hook_resid_post");
}
