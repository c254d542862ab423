//! Other number types than f32: the captions stay, and llama.cpp's own quantiser agrees.

use std::path::Path;

use gguf_tools::gguf::{Gguf, TensorType};
use gguf_tools::sae::SaeFile;
use llava_sae_cpp::llama::{Quant, quantize};
use llava_sae_cpp::{Keep, ModelFiles, Run, RunOptions, Session, SessionOptions, demo};

use crate::fixture::{Fixture, largest_error, prompt, relative_error, temporary_root, threads};

fn run(session: &mut Session, picture: &str) -> Run {
    let prompt = prompt(session, Fixture::Demo, picture);
    let options = RunOptions {
        steering: None,
        keep: Keep {
            logits: true,
            ..Keep::default()
        },
        max_tokens: 48,
        ..RunOptions::default()
    };
    session.run(&prompt, options).expect("the run succeeds")
}

/// Compares a number type with the reference's f32: logits after the prompt by `bound`, and captions
/// where the reference's two best logits are further apart at every step than two times the largest error
/// of a single logit, all as parts of the logits' norm. Below that, how a processor rounds decides.
fn check_captions(session: &mut Session, name: &str, bound: f64, n_expected: usize) {
    let oracle = Fixture::Demo.oracle();
    let runs: Vec<_> = Fixture::Demo
        .picture_names()
        .into_iter()
        .map(|picture| (run(session, &picture), picture))
        .collect();
    let errors = runs.iter().map(|(run, picture)| {
        let expected = oracle.f32(&format!("{picture}/logits"));
        let error = relative_error(&run.logits, &expected);
        assert!(error < bound, "{name} {picture}: logits {error:.2e}");
        largest_error(&run.logits, &expected)
    });
    let error = errors.fold(0.0, f64::max);
    let mut n_compared = 0;
    for (run, picture) in &runs {
        if oracle.margin(picture) > 2.0 * error {
            assert_eq!(run.text, oracle.caption(picture), "{name} {picture}");
            n_compared += 1;
        }
    }
    println!(
        "{name}: each logit within {error:.1e}, captions of {n_compared} of {} pictures compared",
        runs.len()
    );
    assert!(
        n_compared >= n_expected,
        "{name}: logits within {error:.1e} leave {n_compared} pictures, expected {n_expected}"
    );
}

/// The checkpoint's numbers are f16, so that the weights lose nothing: what is left is the KV cache, whose
/// numbers are rounded by 2⁻¹¹ at most, and so are activations where they meet weights of f16.
#[test]
fn f16_gives_the_references_captions() {
    let mut session = Fixture::Demo.session(TensorType::F16, options());
    check_captions(&mut session, "f16", 1e-3, 14);
}

/// A block of q8_0 rounds by 1/254 of its largest number at most.
#[test]
fn q8_0_gives_the_references_captions() {
    let mut session = Fixture::Demo.session(TensorType::Q8_0, options());
    check_captions(&mut session, "q8_0", 5e-2, 12);
}

#[test]
fn the_embedded_demo_gives_the_references_captions() {
    let files = demo::files_in(&temporary_root().join("embedded")).expect("a folder of our own");
    let mut session = Session::open(&files, options()).expect("the demo loads");
    check_captions(&mut session, "the embedded demo", 1e-3, 14);
}

/// The pictures that come with the program are far from where rounding decides: users on any processor
/// see what the README shows.
#[test]
fn shipped_pictures_have_margin() {
    let oracle = Fixture::Demo.oracle();
    for (path, picture) in Fixture::shipped() {
        let margin = oracle.margin(&picture);
        assert!(margin > SHIPPED_MARGIN, "{}: {margin}", path.display());
    }
}

/// Twice what q8_0 may change.
const SHIPPED_MARGIN: f64 = 2e-3;

fn options() -> SessionOptions {
    SessionOptions {
        threads: threads(),
        ..SessionOptions::default()
    }
}

/// Two processes may start at once, and a damaged file is replaced.
#[test]
fn the_embedded_demo_is_written_whole() {
    let dir = temporary_root().join("embedded-twice");
    let write = || demo::files_in(&dir).expect("a folder of our own");
    let files = std::thread::scope(|scope| {
        let other = scope.spawn(write);
        write();
        other.join().expect("no panic")
    });
    let whole = std::fs::read(&files.model).expect("it was written");
    std::fs::write(&files.model, &whole[..whole.len() / 2]).expect("a file of our own");
    write();
    assert_eq!(std::fs::read(&files.model).expect("it was written"), whole);
    assert_eq!(
        std::fs::read_dir(&dir).expect("a folder").count(),
        3,
        "nothing else is left"
    );
}

/// The demo's files are what the converter makes of the fixture today; the SAE has a baseline besides.
#[test]
fn the_embedded_demo_is_up_to_date() {
    let converted = Fixture::Demo.converted(TensorType::F16);
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    for name in ["model-f16.gguf", "mmproj-f16.gguf"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).expect("a file");
        assert!(
            read(&converted) == read(&assets),
            "{name}: run scripts/make-assets.sh"
        );
    }
    let open = |path: &Path| SaeFile::open(path).expect("a right file");
    let (fresh, embedded) = (
        open(&converted.join("sae.gguf")),
        open(&assets.join("sae-f16.gguf")),
    );
    assert_eq!(fresh.meta, embedded.meta);
    assert!(embedded.baseline().expect("readable").is_some());
    let tensors = |file: &SaeFile| {
        let gguf = Gguf::open(file.path()).expect("a right file");
        [
            "sae.w_enc",
            "sae.w_dec",
            "sae.b_enc",
            "sae.b_dec",
            "sae.threshold",
        ]
        .map(|name| {
            gguf.read_f32(gguf.tensor(name).expect("present"))
                .expect("readable")
        })
    };
    assert!(
        tensors(&fresh) == tensors(&embedded),
        "run scripts/make-assets.sh"
    );
}

/// Each of llama.cpp's K-quantisations of the model loads and describes.
#[test]
fn k_quants_run() {
    let source = Fixture::Demo.converted(TensorType::F32);
    for (k_quant, name) in [
        (Quant::Q6K, "q6_k"),
        (Quant::Q5KM, "q5_k_m"),
        (Quant::Q4KM, "q4_k_m"),
    ] {
        let model = temporary_root().join(format!("model-{name}.gguf"));
        quantize(&source.join("model-f32.gguf"), &model, k_quant, 2).expect("it quantises");
        let files =
            ModelFiles::find(Some(&source), Some(model), None, Vec::new()).expect("all are there");
        let mut session = Session::open(&files, SessionOptions::default()).expect("it loads");
        let caption = run(&mut session, "00.png").text;
        assert!(
            caption.starts_with("The image shows a"),
            "{name}: {caption}"
        );
    }
}

/// Our q8_0 is ggml's, block by block: the same tensors as llama.cpp's quantiser makes of f32.
#[test]
fn q8_0_is_llama_cpps() {
    let ours = Fixture::Demo
        .converted(TensorType::Q8_0)
        .join("model-q8_0.gguf");
    let source = Fixture::Demo
        .converted(TensorType::F32)
        .join("model-f32.gguf");
    let theirs = temporary_root().join("llama-cpp-q8_0.gguf");
    quantize(&source, &theirs, Quant::Q8_0, 2).expect("it quantises");
    let (ours, theirs) = (
        Gguf::open(&ours).expect("valid"),
        Gguf::open(&theirs).expect("valid"),
    );
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    for tensor in theirs.tensors() {
        let same = ours.tensor(&tensor.name).expect("the same tensors");
        assert_eq!(same.tensor_type, tensor.tensor_type, "{}", tensor.name);
        assert!(
            ours.read_f32(same).expect("readable") == theirs.read_f32(tensor).expect("readable"),
            "{}",
            tensor.name
        );
    }
}
