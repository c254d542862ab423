//! What a run leaves out changes nothing of what it gives.

use gguf_tools::gguf::TensorType;
use std::ops::ControlFlow;
use std::sync::Arc;

use llava_sae_cpp::steering::{Change, Intervention, Positions, Steering};
use llava_sae_cpp::{
    FeatureId, FlashAttention, Keep, Kinds, KvType, Prompt, PromptForm, Run, RunOptions, Session,
    SessionOptions, TokenKind,
};

use crate::fixture::{
    Fixture, NEIGHBOURS, ROUNDING, exact_options, prompt, relative_error, steering,
};
use crate::hook_points;

const LOGITS: Keep = Keep {
    features: Kinds::NONE,
    residuals: false,
    logits: true,
};

fn options(keep: Keep) -> RunOptions {
    RunOptions {
        steering: None,
        keep,
        max_tokens: 16,
        ..RunOptions::default()
    }
}

fn run(session: &mut Session, prompt: &Prompt, options: RunOptions) -> Run {
    session.run(prompt, options).expect("the run succeeds")
}

/// As users run it, and as the reference was.
fn sessions() -> [Session; 2] {
    let usual = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    [
        Fixture::Demo.session(TensorType::F16, usual),
        Fixture::Demo.exact_session(),
    ]
}

#[test]
fn a_run_that_stops_at_the_hook_sees_the_same() {
    for mut session in sessions() {
        let prompt = prompt(&mut session, Fixture::Demo, "01.png");
        let whole = run(
            &mut session,
            &prompt,
            RunOptions {
                max_tokens: 0,
                ..options(Keep::ALL)
            },
        );
        let keep = Keep {
            logits: false,
            ..Keep::ALL
        };
        let stopped = RunOptions {
            max_tokens: 0,
            ..options(keep)
        };
        let stopped = run(&mut session, &prompt, stopped);
        assert!(stopped.logits.is_empty() && !whole.logits.is_empty());
        assert_eq!(stopped.trace.tokens, whole.trace.tokens);
        assert_eq!(
            stopped.trace.saes[0].residuals,
            whole.trace.saes[0].residuals
        );
        assert_eq!(
            stopped.trace.saes[0].activations,
            whole.trace.saes[0].activations
        );
        // Without the rows behind the image, if nobody asks for them.
        let n_text = (whole.trace.tokens.iter().rev())
            .take_while(|token| token.kind == TokenKind::Text)
            .count();
        let features = Kinds::IMAGE;
        let keep = Keep {
            features,
            ..Keep::default()
        };
        let shorter = RunOptions {
            max_tokens: 0,
            ..options(keep)
        };
        let shorter = run(&mut session, &prompt, shorter).trace;
        assert!(n_text > 0);
        assert_eq!(shorter.tokens.len(), whole.trace.tokens.len() - n_text);
        for (row_idx, token) in shorter.tokens.iter().enumerate() {
            if token.kind == TokenKind::Image {
                let [ours, theirs] = [&shorter, &whole.trace]
                    .map(|trace| trace.saes[0].activations.row(row_idx).collect::<Vec<_>>());
                assert_eq!(ours, theirs, "row {row_idx}");
            }
        }
        // It leaves nothing behind.
        let again = run(&mut session, &prompt, options(LOGITS));
        assert_eq!(again.logits, whole.logits);
    }
}

#[test]
fn rows_that_are_not_asked_for_have_no_features() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "01.png");
    let all = run(&mut session, &prompt, options(Keep::ALL));
    let features = Kinds::IMAGE;
    let keep = Keep { features, ..LOGITS };
    let some = run(&mut session, &prompt, options(keep));
    assert_eq!(some.trace.tokens, all.trace.tokens);
    for (row_idx, token) in all.trace.tokens.iter().enumerate() {
        let [some, all] = [&some, &all].map(|run| {
            let row = run.trace.saes[0].activations.row(row_idx);
            row.collect::<Vec<_>>()
        });
        match features.contain(*token) {
            true => assert_eq!(some, all, "row {row_idx}"),
            false => assert!(some.is_empty() && !all.is_empty(), "row {row_idx}"),
        }
    }
}

/// Without anything to read, an addition everywhere is llama.cpp's control vector.
#[test]
fn an_addition_in_the_graph_is_that_of_the_hook() {
    for mut session in sessions() {
        let prompt = prompt(&mut session, Fixture::Demo, "00.png");
        let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
        let steering = steering(&mut session, feature, strength, Positions::ALL);
        let steered = |keep| RunOptions {
            steering: Some(steering.clone()),
            ..options(keep)
        };
        let plain = run(&mut session, &prompt, options(LOGITS));
        let in_graph = run(&mut session, &prompt, steered(LOGITS));
        assert!(in_graph.trace.tokens.is_empty(), "the hook saw nothing");
        let hooked = run(&mut session, &prompt, steered(Keep::ALL));
        assert_eq!(in_graph.token_ids, hooked.token_ids);
        assert_eq!(in_graph.logits, hooked.logits);
        assert!(relative_error(&in_graph.logits, &plain.logits) > 1e-3);
        // The vector is gone with the run.
        let again = run(&mut session, &prompt, options(LOGITS));
        assert_eq!(again.logits, plain.logits);
    }
}

fn interventions(session: &mut Session, feature: usize, strength: f32) -> Vec<Arc<Steering>> {
    let one = |change, at| Intervention {
        at,
        ..Intervention::new(FeatureId::of_only(feature), change)
    };
    [
        one(Change::steer(strength), Positions::ALL),
        one(Change::steer(-strength), Positions::IMAGE),
        one(Change::clamp(strength), Positions::ALL),
        one(Change::ablate(), Positions::ALL),
    ]
    .map(|one| session.model().steering(vec![one]).expect("a feature"))
    .into()
}

/// Runs side by side, whose prompts share what is below the hook or do not, beside each run alone.
fn check_shared(
    open: &dyn Fn(SessionOptions) -> Session,
    options: &SessionOptions,
    prompt: &dyn Fn(&mut Session) -> Prompt,
    (feature, strength): (usize, f32),
    (name, bound): (&str, f64),
) {
    for share_prompts in [true, false] {
        let mut session = open(SessionOptions {
            share_prompts,
            ..options.clone()
        });
        let prompt = prompt(&mut session);
        let n_values = prompt.tokens().len() * session.sae().meta().d_in;
        let steerings = interventions(&mut session, feature, strength);
        let runs: Vec<_> = std::iter::once(None)
            .chain(steerings.iter().map(Some))
            .map(|steering| RunOptions {
                steering: steering.cloned(),
                ..self::options(Keep::ALL)
            })
            .collect();
        let together =
            session.run_side_by_side(&prompt, runs.clone(), &mut |_, _| ControlFlow::Continue(()));
        let together = together.expect("the runs succeed");
        for (i, (together, options)) in together.iter().zip(runs).enumerate() {
            let name = format!("{name}, run {i}, shared: {share_prompts}");
            let alone = run(&mut session, &prompt, options);
            assert_eq!(together.token_ids, alone.token_ids, "{name}");
            assert_eq!(together.trace.tokens, alone.trace.tokens, "{name}");
            let [ours, theirs] = [&together.trace, &alone.trace];
            for (what, ours, theirs) in [
                ("logits", &together.logits, &alone.logits),
                ("rows", &ours.saes[0].residuals, &theirs.saes[0].residuals),
                (
                    "steered rows",
                    &ours.saes[0].steered_residuals,
                    &theirs.saes[0].steered_residuals,
                ),
            ] {
                let error = relative_error(ours, theirs);
                assert!(
                    error < bound || ours.is_empty(),
                    "{name}: {what} {error:.2e}"
                );
            }
            if share_prompts {
                let [ours, theirs] =
                    [ours, theirs].map(|trace| &trace.saes[0].residuals[..n_values]);
                assert!(
                    ours == theirs,
                    "{name}: the prompt's rows are the same bit for bit"
                );
            }
        }
    }
}

#[test]
fn prompts_share_what_is_below_the_hook() {
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let with_cache = |kv_type, flash_attention, n_ubatch| SessionOptions {
        kv_type,
        flash_attention,
        n_ubatch,
        ..exact_options()
    };
    for (name, options) in [
        ("f32", exact_options()),
        ("f16", with_cache(KvType::F16, FlashAttention::On, 512)),
        ("q8_0", with_cache(KvType::Q8_0, FlashAttention::On, 512)),
        ("ubatches", with_cache(KvType::F32, FlashAttention::Off, 7)),
    ] {
        let open = |options| Fixture::Demo.session(TensorType::F32, options);
        let prompt = |session: &mut Session| prompt(session, Fixture::Demo, "00.png");
        let as_told = (name, NEIGHBOURS);
        check_shared(&open, &options, &prompt, (feature, strength), as_told);
    }
}

#[test]
fn prompts_share_blocks_in_every_architecture() {
    for architecture in hook_points::ARCHITECTURES {
        for n_ubatch in [512, 5] {
            let options = hook_points::with_ubatch(n_ubatch);
            let open = |options| {
                let hook = "blocks.1.hook_resid_post";
                let session = hook_points::open(architecture, hook, 32, options);
                session.expect("the fixture loads")
            };
            let prompt = |session: &mut Session| {
                let prompt = session.prompt("a cat sits on the mat", PromptForm::Raw, &[]);
                prompt.expect("tokenised")
            };
            // The others have no GELU, whose table rounds to f16.
            let has_gelu = architecture.starts_with("gemma") || architecture.starts_with("gpt");
            let bound = match has_gelu {
                true => NEIGHBOURS,
                false => ROUNDING,
            };
            check_shared(&open, &options, &prompt, (3, 4.0), (architecture, bound));
        }
    }
}
