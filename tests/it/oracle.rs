//! The numbers of transformers: token ids, image embeddings, residual stream, SAE activations,
//! logits, captions, steered captions. All in f32.

use std::collections::BTreeMap;

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{Keep, Picture, Run, RunOptions, Sampling, Session, TokenKind};

use crate::fixture::{Fixture, Oracle, prompt, relative_error, steering};

/// How far f32 on llama.cpp may be from f32 on transformers. What is left is ggml's GELU, which
/// works on a table of f16 (and, in the projector, by tanh where transformers takes erf); random
/// weights amplify rounding more than trained ones.
struct Tolerance {
    image_embeddings: f64,
    /// Of the worst text row.
    resid_text: f64,
    /// Of the worst image row, which carries the error of its embedding on.
    resid_image: f64,
    activations: f64,
    /// An active set may differ where an activation is within this part of its threshold.
    near_threshold: f32,
    logits: f64,
    max_tokens: usize,
}

fn tolerance(fixture: Fixture) -> Tolerance {
    match fixture {
        // Five blocks of the vision encoder go through that table, and add up: half of the image rows
        // are within 1.2e-3, the worst within 7e-3.
        Fixture::Demo => Tolerance {
            image_embeddings: 2e-3,
            resid_text: 1e-3,
            resid_image: 1e-2,
            activations: 3e-3,
            near_threshold: 0.01,
            logits: 1e-3,
            max_tokens: 48,
        },
        Fixture::Tiny => Tolerance {
            image_embeddings: 1e-3,
            resid_text: 3e-3,
            resid_image: 3e-3,
            activations: 3e-3,
            near_threshold: 0.01,
            logits: 1e-3,
            max_tokens: 12,
        },
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
        sampling: Sampling::Greedy,
    };
    session
        .run(&prompt, options, &mut |_| {})
        .expect("the run succeeds")
}

const EVERYTHING: Keep = Keep {
    features: true,
    residuals: true,
};

fn check_fidelity(fixture: Fixture) {
    let oracle = fixture.oracle();
    let tolerance = tolerance(fixture);
    let mut session = fixture.exact_session();
    let d_model = session.sae().meta().d_in;
    for name in fixture.picture_names() {
        let image = session
            .encode_image(&fixture.open_picture(&name))
            .expect("the picture is encoded");
        let error = relative_error(
            &image.rows,
            &oracle.f32(&format!("{name}/image_embeddings")),
        );
        assert!(
            error < tolerance.image_embeddings,
            "{name}: image embeddings {error:.2e}"
        );

        let run = run(
            &mut session,
            fixture,
            &name,
            EVERYTHING,
            tolerance.max_tokens,
        );
        check_token_ids(&run, &oracle);
        let n_prompt = oracle.ids("prompt_ids").len();
        let expected = oracle.f32(&format!("{name}/resid"));
        let rows = run.trace.residuals.chunks_exact(d_model).take(n_prompt);
        for (position, (row, expected)) in rows.zip(expected.chunks_exact(d_model)).enumerate() {
            let error = relative_error(row, expected);
            let bound = match run.trace.tokens[position].kind {
                TokenKind::Image => tolerance.resid_image,
                TokenKind::Text | TokenKind::Generated => tolerance.resid_text,
            };
            assert!(error < bound, "{name}, row {position}: {error:.2e}");
        }
        check_activations(&mut session, &run, &oracle, &name, &tolerance);
        let error = relative_error(&run.logits, &oracle.f32(&format!("{name}/logits")));
        assert!(error < tolerance.logits, "{name}: logits {error:.2e}");
        assert_eq!(run.text, oracle.caption(&name), "{name}");
        assert_eq!(
            run.token_ids,
            without_end(&session, oracle.ids(&format!("{name}/greedy_ids")))
        );
    }
}

/// The reference's ids include the one that ends a text.
fn without_end(session: &Session, mut ids: Vec<i32>) -> Vec<i32> {
    ids.pop_if(|id| session.model().is_end(*id));
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

fn check_activations(
    session: &mut Session,
    run: &Run,
    oracle: &Oracle,
    name: &str,
    tolerance: &Tolerance,
) {
    let d_sae = session.sae().meta().d_sae;
    let threshold = session.sae().threshold().to_vec();
    let expected = oracle.f32(&format!("{name}/acts"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (row_idx, expected) in expected.chunks_exact(d_sae).enumerate() {
        let active: BTreeMap<usize, f32> = run.trace.activations.row(row_idx).collect();
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
                    let margin = tolerance.near_threshold * threshold[feature].max(scale);
                    assert!(
                        (value - threshold[feature]).abs() < margin,
                        "{name}, row {row_idx}, feature {feature}: {value} on one side only"
                    );
                }
            }
        }
    }
    let error = relative_error(&ours, &theirs);
    assert!(
        error < tolerance.activations,
        "{name}: activations {error:.2e}"
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
    let tolerance = tolerance(fixture);
    let mut session = fixture.exact_session();
    for name in fixture.picture_names() {
        let prompt = prompt(&mut session, fixture, &name);
        for (feature, strength, caption) in oracle.steered(&name) {
            let steering = steering(&mut session, feature, strength, Positions::ALL);
            let options = RunOptions {
                steering: Some(&steering),
                keep: Keep::default(),
                max_tokens: tolerance.max_tokens,
                sampling: Sampling::Greedy,
            };
            let run = session
                .run(&prompt, options, &mut |_| {})
                .expect("the run succeeds");
            let error = relative_error(
                &run.logits,
                &oracle.f32(&format!("{name}/steer{strength}/logits")),
            );
            assert!(
                error < tolerance.logits,
                "{name}, {feature}:{strength}: logits {error:.2e}"
            );
            assert_eq!(run.text, caption, "{name}, {feature}:{strength}");
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
                .model()
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
    let worst = pixels
        .iter()
        .zip(&expected)
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(worst <= Some(1), "off by {worst:?} of 255");
}
