//! The hook: what it costs nothing, where it reaches, and llama.cpp's own control vector beside it.

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{Keep, Kinds, Run, RunOptions, Session, SessionOptions, TokenKind};

use crate::fixture::{Fixture, ROUNDING, exact_options, prompt, relative_error, steering};
use gguf_tools::gguf::TensorType;

const PICTURE: &str = "00.png";

/// The feature of what the picture shows, and a strength that changes the caption.
fn subject() -> (usize, f32) {
    let oracle = Fixture::Demo.oracle();
    let original = oracle.caption(PICTURE);
    let mut runs = oracle.steered(PICTURE).into_iter();
    let changed = runs.find(|(_, _, caption)| *caption != original);
    let (feature, strength, _) = changed.expect("some strength changes it");
    (feature, strength)
}

fn options() -> RunOptions {
    RunOptions {
        steering: None,
        keep: Keep {
            logits: true,
            ..Keep::default()
        },
        max_tokens: 24,
        ..RunOptions::default()
    }
}

fn run(session: &mut Session, options: RunOptions) -> Run {
    let prompt = prompt(session, Fixture::Demo, PICTURE);
    session.run(&prompt, options).expect("the run succeeds")
}

#[test]
fn reading_changes_no_bit() {
    let mut session = Fixture::Demo.exact_session();
    let plain = run(&mut session, options());
    let keep = Keep::ALL;
    let hooked = run(&mut session, RunOptions { keep, ..options() });
    assert_eq!(plain.logits, hooked.logits);
    assert_eq!(plain.token_ids, hooked.token_ids);
    assert!(plain.trace.tokens.is_empty(), "nothing was hooked");
    assert_eq!(
        hooked.trace.tokens.len(),
        hooked.trace.saes[0].activations.n_rows()
    );
}

/// What the hook reads cannot be steered in the graph alone.
const THROUGH_THE_HOOK: Keep = Keep {
    features: Kinds::NONE,
    residuals: true,
    logits: true,
};

/// llama.cpp's control vector is an independent implementation of adding a vector everywhere.
#[test]
fn steering_equals_llama_cpps_control_vector() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
    let (subject, strength) = subject();
    for (feature, strength) in [
        (subject, strength),
        (subject, -2.0 * strength),
        (120, -30.0),
    ] {
        let steering = steering(&mut session, feature, strength, Positions::ALL);
        let delta = scaled_direction(&mut session, feature, strength);
        let ours = RunOptions {
            steering: Some(steering.clone()),
            keep: THROUGH_THE_HOOK,
            ..options()
        };
        let ours = session.run(&prompt, ours).expect("the run succeeds");
        session
            .set_control_vector(&prompt, 24, &delta)
            .expect("a vector of this width");
        let theirs = session.run(&prompt, options()).expect("the run succeeds");
        session
            .set_control_vector(&prompt, 24, &[])
            .expect("removal");
        // The same additions in the same order of f32; only the graph around them differs.
        let error = relative_error(&ours.logits, &theirs.logits);
        assert!(error < 1e-4, "{feature}:{strength}: logits {error:.2e}");
        assert_eq!(ours.text, theirs.text, "{feature}:{strength}");
        let plain = session.run(&prompt, options()).expect("the run succeeds");
        assert!(
            relative_error(&plain.logits, &theirs.logits) > 1e-2,
            "the vector has an effect"
        );
    }
}

/// `strength · W_dec[feature]`.
fn scaled_direction(session: &mut Session, feature: usize, strength: f32) -> Vec<f32> {
    let direction = session.sae().decoder_direction(feature);
    let row = direction.expect("the feature exists").row;
    row.iter().map(|value| strength * value).collect()
}

/// Ubatches of any size: the rows are the same rows, and the text the same text.
#[test]
fn ubatches_do_not_matter() {
    let with_ubatch = |n_ubatch| {
        let options = SessionOptions {
            n_ubatch,
            ..exact_options()
        };
        Fixture::Demo.session(TensorType::F32, options)
    };
    let keep = Keep::ALL;
    let mut runs = [512, 3, 1].map(|n_ubatch| {
        let mut session = with_ubatch(n_ubatch);
        let (feature, strength) = subject();
        let steering = steering(&mut session, feature, strength, Positions::ALL);
        let steered = RunOptions {
            steering: Some(steering.clone()),
            ..options()
        };
        let read = run(&mut session, RunOptions { keep, ..options() });
        (read, run(&mut session, steered))
    });
    let (reference, steered_reference) = runs[0].clone();
    for (read, steered) in &mut runs[1..] {
        assert_eq!(read.text, reference.text);
        assert_eq!(steered.text, steered_reference.text);
        assert_eq!(read.trace.tokens, reference.trace.tokens);
        // Other ubatches take other kernels, whose sums are ordered otherwise: f32 rounding.
        let error = relative_error(
            &read.trace.saes[0].residuals,
            &reference.trace.saes[0].residuals,
        );
        assert!(error < ROUNDING, "{error:.2e}");
        check_same_features(read, &reference);
    }
}

/// Of all features of the SAE.
const THRESHOLD: f64 = 0.8405;

fn check_same_features(a: &Run, b: &Run) {
    for row_idx in 0..a.trace.saes[0].activations.n_rows() {
        for (feature, value) in a.trace.saes[0].activations.row(row_idx) {
            let mut other = b.trace.saes[0].activations.row(row_idx);
            let other = other
                .find(|entry| entry.0 == feature)
                .map_or(0.0, |entry| entry.1);
            let near_threshold =
                other == 0.0 && f64::from(value) < THRESHOLD * (1.0 + 10.0 * ROUNDING);
            assert!(
                near_threshold
                    || f64::from((value - other).abs())
                        < 100.0 * ROUNDING * f64::from(value.max(1.0)),
                "{feature}: {value} and {other}"
            );
        }
    }
}

/// Rows that an intervention changed.
fn touched(at: &str) -> Vec<(TokenKind, bool)> {
    let mut session = Fixture::Demo.exact_session();
    let positions = Positions::parse(at).expect("valid positions");
    let (feature, strength) = subject();
    let steering = steering(&mut session, feature, strength, positions);
    let keep = Keep {
        features: Kinds::NONE,
        residuals: true,
        logits: true,
    };
    let steered = RunOptions {
        steering: Some(steering.clone()),
        keep,
        ..options()
    };
    let run = run(&mut session, steered);
    let delta = scaled_direction(&mut session, feature, strength);
    let d_model = delta.len();
    let before = run.trace.saes[0].residuals.chunks_exact(d_model);
    let after = run.trace.saes[0].steered_residuals.chunks_exact(d_model);
    let changed = before.zip(after).map(|(before, after)| {
        let sum = before.iter().zip(&delta).map(|(x, delta)| x + delta);
        let is_sum = sum.zip(after).all(|(sum, after)| sum == *after);
        assert!(
            is_sum || before == after,
            "a row is steered whole or not at all"
        );
        is_sum
    });
    run.trace
        .tokens
        .iter()
        .map(|token| token.kind)
        .zip(changed)
        .collect()
}

fn check_touched(at: &str, expected: &[TokenKind]) {
    let touched = touched(at);
    assert!(
        touched
            .iter()
            .any(|(kind, _)| *kind == TokenKind::Generated),
        "tokens were generated"
    );
    for (position, (kind, changed)) in touched.into_iter().enumerate() {
        assert_eq!(
            changed,
            expected.contains(&kind),
            "--at {at}, position {position}, {kind:?}"
        );
    }
}

#[test]
fn steering_reaches_image_rows() {
    check_touched("image", &[TokenKind::Image]);
}

#[test]
fn steering_reaches_prompt_rows() {
    check_touched("prompt", &[TokenKind::Text]);
}

#[test]
fn steering_reaches_generated_tokens() {
    check_touched("generated", &[TokenKind::Generated]);
}

/// What was steered differs from what was not, for each kind of position by itself.
#[test]
fn each_kind_of_position_matters() {
    let mut session = Fixture::Demo.exact_session();
    let mut logits_at = |at: &str| {
        let positions = Positions::parse(at).expect("valid positions");
        let (feature, strength) = subject();
        let steering = steering(&mut session, feature, strength, positions);
        let steered = RunOptions {
            steering: Some(steering.clone()),
            ..options()
        };
        run(&mut session, steered)
    };
    let all = logits_at("all");
    let image = logits_at("image");
    let prompt = logits_at("prompt");
    let generated = logits_at("generated");
    let plain = run(&mut Fixture::Demo.exact_session(), options());
    assert_eq!(
        generated.logits, plain.logits,
        "the prompt's logits come before generation"
    );
    for (a, b) in [
        (&all, &image),
        (&all, &prompt),
        (&image, &prompt),
        (&image, &plain),
    ] {
        assert!(relative_error(&a.logits, &b.logits) > 1e-4);
    }
}

/// A session's runs do not leak into each other.
#[test]
fn runs_are_independent() {
    let mut session = Fixture::Demo.exact_session();
    let first = run(&mut session, options());
    let (feature, strength) = subject();
    let steering = steering(&mut session, feature, strength, Positions::ALL);
    let steered = RunOptions {
        steering: Some(steering.clone()),
        ..options()
    };
    let steered = run(&mut session, steered);
    let again = run(&mut session, options());
    assert_ne!(first.text, steered.text);
    assert_eq!(first.logits, again.logits);
    assert_eq!(first.text, again.text);
}
