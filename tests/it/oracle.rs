//! The numbers of transformers: token ids, image embeddings, residual stream, SAE activations,
//! logits, captions, steered captions. All in f32.

use std::collections::BTreeMap;
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::{Positions, Steering};
use llava_sae_cpp::{
    Activations, EncoderOptions, EncoderWeights, Keep, Picture, Run, RunOptions, Sae, Session,
    TokenKind,
};

use crate::fixture::{
    F32, Fixture, IMAGE_EMBEDDINGS, Oracle, bound, image_rows, prompt, relative_error, steering,
};
use crate::hook_points;

/// How far the worst row may be: with CUDA, 3 of 1248 were 3.6e-3 to 7e-3 off, all in one picture, and all
/// others at most 2.2e-3; why those were is not known.
const RESIDUAL_ROW: f64 = bound(F32, F32, 1e-2);
/// Active sets may differ where an activation is within this part of its threshold.
pub(crate) const NEAR_THRESHOLD: f32 = F32 as f32;

fn max_tokens(fixture: Fixture) -> usize {
    match fixture {
        Fixture::Demo => 48,
        Fixture::Tiny => 12,
    }
}

fn run(
    session: &mut Session,
    fixture: Fixture,
    picture: &str,
    keep: Keep,
    max_tokens: usize,
) -> Run {
    let prompt = prompt(session, fixture, picture);
    let options = RunOptions {
        steering: None,
        keep,
        max_tokens,
        ..RunOptions::default()
    };
    session.run(&prompt, options).expect("the run succeeds")
}

fn check_fidelity(fixture: Fixture) {
    let oracle = fixture.oracle();
    let mut session = fixture.exact_session();
    let d_model = session.sae().meta().d_in;
    for name in fixture.picture_names() {
        let image = session
            .encode_image(&fixture.open_picture(&name))
            .expect("the picture is encoded");
        let error = relative_error(
            image_rows(&image),
            &oracle.f32(&format!("{name}/image_embeddings")),
        );
        assert!(
            error < IMAGE_EMBEDDINGS,
            "{name}: image embeddings {error:.2e}"
        );

        let run = run(&mut session, fixture, &name, Keep::ALL, max_tokens(fixture));
        check_token_ids(&run, &oracle);
        let n_prompt = oracle.ids("prompt_ids").len();
        let expected = oracle.f32(&format!("{name}/resid"));
        let rows = run.trace.saes[0]
            .residuals
            .chunks_exact(d_model)
            .take(n_prompt);
        for (position, (row, expected)) in rows.zip(expected.chunks_exact(d_model)).enumerate() {
            let error = relative_error(row, expected);
            assert!(error < RESIDUAL_ROW, "{name}, row {position}: {error:.2e}");
        }
        check_activations(
            session.sae(),
            &run,
            &oracle.f32(&format!("{name}/acts")),
            &name,
        );
        let error = relative_error(&run.logits, &oracle.f32(&format!("{name}/logits")));
        assert!(error < F32, "{name}: logits {error:.2e}");
        assert_eq!(run.text, oracle.caption(&name), "{name}");
        assert_eq!(
            run.token_ids,
            without_end(&session, oracle.ids(&format!("{name}/greedy_ids")))
        );
    }
}

/// The reference's ids include the one that ends a text.
fn without_end(session: &Session, mut ids: Vec<i32>) -> Vec<i32> {
    ids.pop_if(|id| session.language_model().is_end(*id));
    ids
}

fn check_token_ids(run: &Run, oracle: &Oracle) {
    let expected = oracle.ids("prompt_ids");
    for (token, &expected) in run.trace.tokens.iter().zip(&expected) {
        match token.kind {
            TokenKind::Text => assert_eq!(token.id, Some(expected)),
            TokenKind::Image => assert_eq!(token.id, None),
            TokenKind::Generated => panic!("the prompt is longer in the reference"),
        }
    }
}

/// Compares the activations of a prompt's rows with `expected`, `[n_rows, d_sae]`.
pub(crate) fn check_activations(sae: &Sae, run: &Run, expected: &[f32], name: &str) {
    check_activations_near(sae, run, expected, NEAR_THRESHOLD, name);
}

/// The same, where features are active in one of the two alone if they are as near to their threshold as `near`.
pub(crate) fn check_activations_near(
    sae: &Sae,
    run: &Run,
    expected: &[f32],
    near: f32,
    name: &str,
) {
    let d_sae = sae.meta().d_sae;
    let threshold = sae.threshold();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (row_idx, expected) in expected.chunks_exact(d_sae).enumerate() {
        let active: BTreeMap<usize, f32> = run.trace.saes[0].activations.row(row_idx).collect();
        let scale = expected.iter().copied().fold(0.0, f32::max);
        for (feature, &expected) in expected.iter().enumerate() {
            match (active.get(&feature), expected > 0.0) {
                (None, false) => {}
                (Some(&value), true) => {
                    ours.push(value);
                    theirs.push(expected);
                }
                // One of the two is active: then its activation is next to the threshold, which a
                // ReLU has at 0, where only the row's scale tells what is near.
                (value, _) => {
                    let value = value.copied().unwrap_or(expected);
                    let margin = near * threshold[feature].max(scale);
                    assert!(
                        (value - threshold[feature]).abs() < margin,
                        "{name}, row {row_idx}, feature {feature}: {value} on one side only"
                    );
                }
            }
        }
    }
    let error = relative_error(&ours, &theirs);
    assert!(error < F32, "{name}: activations {error:.2e}");
}

/// Logits and greedy texts of a steered run, where features are read one by one and where all are, beside
/// `{shown}/logits` and `{shown}/ids`.
pub(crate) fn check_steered(
    session: &mut Session,
    oracle: &Oracle,
    shown: &str,
    steering: Option<&Arc<Steering>>,
    max_tokens: usize,
) {
    for keep in [Keep::default(), Keep::ALL] {
        let options = RunOptions {
            steering: steering.cloned(),
            keep: Keep {
                logits: true,
                ..keep
            },
            max_tokens,
            ..RunOptions::default()
        };
        let run = hook_points::run(session, options);
        let error = relative_error(&run.logits, &oracle.f32(&format!("{shown}/logits")));
        println!("{shown}: {error:.1e}");
        assert!(error < F32, "{shown}: logits {error:.2e}");
        assert_eq!(
            run.token_ids,
            oracle.ids(&format!("{shown}/ids")),
            "{shown}"
        );
    }
}

/// A device adds products of an encoder in f16 in f32, as the processor does, which rounds rows to f16 besides: it
/// is no further from products in f32.
#[test]
fn activations_of_an_encoder_in_f16() {
    let rows = Fixture::Demo.oracle().f32("00.png/resid");
    let path = Fixture::Demo.converted(TensorType::F16).join("sae.gguf");
    let sae = Arc::new(Sae::open(&path).expect("it was converted"));
    let features = 0..sae.meta().d_sae;
    let readers = features.clone().map(|feature| {
        let reader = sae.feature_reader(feature).expect("it is in the file");
        reader.expect("a feature is read by itself")
    });
    let readers: Vec<_> = readers.collect();
    let exact: Vec<f32> = rows
        .chunks_exact(sae.meta().d_in)
        .flat_map(|row| readers.iter().map(|reader| reader.activation(row)))
        .collect();
    let [processor, device] = [false, true].map(|use_gpu| {
        let options = EncoderOptions {
            use_gpu,
            threads: 1,
            screen: false,
        };
        let mut encoder = EncoderWeights::load(&sae, options)
            .and_then(|weights| weights.encoder())
            .expect("it loads");
        let mut activations = Activations::default();
        encoder
            .encode(&rows, &mut activations)
            .expect("ggml computes");
        let dense: Vec<f32> = (0..activations.n_rows())
            .flat_map(|row_idx| features.clone().map(move |feature| (row_idx, feature)))
            .map(|(row_idx, feature)| activations.get(row_idx, feature))
            .collect();
        relative_error(&dense, &exact)
    });
    println!("{device:.1e} beside {processor:.1e}");
    assert!(processor < 1e-2, "{processor:.2e}");
    assert!(
        device < processor + 1e-4,
        "{device:.2e} beside {processor:.2e}"
    );
}

#[test]
fn demo_agrees_with_transformers() {
    check_fidelity(Fixture::Demo);
}

#[test]
fn tiny_agrees_with_transformers() {
    check_fidelity(Fixture::Tiny);
}

fn check_steering(fixture: Fixture) {
    let oracle = fixture.oracle();
    let mut session = fixture.exact_session();
    for name in fixture.picture_names() {
        let prompt = prompt(&mut session, fixture, &name);
        for (feature, strength, caption) in oracle.steered(&name) {
            let steering = steering(&mut session, feature, strength, Positions::ALL);
            // Without rows to read, an addition everywhere is llama.cpp's control vector.
            let in_graph = Keep {
                logits: true,
                ..Keep::default()
            };
            for keep in [in_graph, Keep::ALL] {
                let options = RunOptions {
                    steering: Some(steering.clone()),
                    keep,
                    max_tokens: max_tokens(fixture),
                    ..RunOptions::default()
                };
                let run = session.run(&prompt, options).expect("the run succeeds");
                let error = relative_error(
                    &run.logits,
                    &oracle.f32(&format!("{name}/steer{strength}/logits")),
                );
                assert!(
                    error < F32,
                    "{name}, {feature}:{strength}: logits {error:.2e}"
                );
                assert_eq!(run.text, caption, "{name}, {feature}:{strength}");
            }
        }
    }
}

#[test]
fn demo_steers_as_transformers_does() {
    check_steering(Fixture::Demo);
}

#[test]
fn tiny_steers_as_transformers_does() {
    check_steering(Fixture::Tiny);
}

/// Awkward text gets transformers' ids: Unicode, byte fallback, spaces, special tokens.
#[test]
fn hard_texts_have_transformers_token_ids() {
    use llava_sae_cpp::llama::AddBos;
    for (fixture, file) in [
        (Fixture::Demo, "../demo-hard-texts.json"),
        (Fixture::Tiny, "hard_texts.json"),
    ] {
        let texts = std::fs::read(fixture.dir().join(file)).expect("a committed file");
        let texts: serde_json::Value = serde_json::from_slice(&texts).expect("valid JSON");
        let session = fixture.exact_session();
        for entry in texts.as_array().expect("a list") {
            let text = entry["text"].as_str().expect("a text");
            let expected: Vec<i32> =
                serde_json::from_value(entry["ids"].clone()).expect("a list of ids");
            let ids = session
                .language_model()
                .tokenize(text, AddBos::No)
                .expect("short text");
            assert_eq!(ids, expected, "{fixture:?}: {text:?}");
        }
    }
}

/// A picture of another size goes through transformers' resizing and cropping.
#[test]
fn preprocessing_agrees_with_transformers() {
    let expected = Fixture::Tiny.oracle().u8("02.png/pixels");
    let picture = Picture::open(&Fixture::Tiny.picture("02.png")).expect("a committed file");
    let pixels = picture
        .prepare(40, llava_sae_cpp::ImagePrep::Crop)
        .expect("an ordinary picture");
    assert_eq!(pixels, expected);
}
