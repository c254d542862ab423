//! How likely the texts of prompts are, beside transformers and runs of their beginnings.

use std::ops::ControlFlow;
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::llama::{
    Context, ContextOptions, Edited, Embeddings, Output, OutputRow, RowHook, Rows,
};
use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    EngineSize, Prompt, PromptForm, PromptStore, Request, Result, Run, RunOptions, Segment,
    Session, SessionOptions, Step, TokenLogProbs,
};

use crate::chunks;
use crate::fixture::{F32, Fixture, Oracle, exact_options, prompt, steering};
use crate::hook_points::{self, with_ubatch};
use crate::sampling::{READ_OR_GENERATED, check_log_probs, followed_by, logits_along};

fn scored() -> RunOptions {
    RunOptions {
        prompt_log_probs: Some(5),
        ..RunOptions::default()
    }
}

fn score(session: &mut Session, prompt: &Prompt, options: RunOptions) -> Run {
    let run = session.run(prompt, options).expect("it runs");
    let has_some = run.prompt_log_probs.iter().map(Option::is_some);
    let is_text = prompt.tokens().iter().map(|token| token.id.is_some());
    let behind = is_text.enumerate().map(|(row, is_text)| is_text && row > 0);
    assert!(has_some.eq(behind), "each text token but the first");
    run
}

fn log_probs(run: &Run) -> impl DoubleEndedIterator<Item = f64> + '_ {
    let known = run.prompt_log_probs.iter().flatten();
    known.map(|token| token.log_prob)
}

#[test]
fn texts_are_as_likely_as_in_transformers() {
    let oracle = Oracle::read(&hook_points::root());
    for architecture in hook_points::ARCHITECTURES {
        for n_ubatch in [512, 3] {
            let options = with_ubatch(n_ubatch);
            let hook = "blocks.1.hook_resid_post";
            let session = hook_points::open(architecture, hook, 32, options);
            let mut session = session.expect("it loads");
            let ids = oracle.ids(&format!("{architecture}/prompt_ids"));
            let segments = vec![Segment::Text(ids)];
            let prompt = session.model().prompt_of_segments(segments);
            let run = score(&mut session, &prompt.expect("known ids"), scored());
            // The token behind `<bos>` is not counted there.
            let n_special = usize::from(hook_points::begins_with_bos(architecture));
            let counted: Vec<_> = log_probs(&run).skip(n_special).collect();
            let loss = -counted.iter().sum::<f64>() / counted.len() as f64;
            let expected = &oracle.json["losses"][architecture]["without_sae"];
            let expected = expected.as_f64().expect("a number");
            let error = (loss / expected - 1.0).abs();
            assert!(error < F32, "{architecture}: {loss}, expected {expected}");
        }
    }
}

/// Images whose rows see one another, and those with four positions a row.
#[test]
fn texts_behind_images_are_as_likely_as_in_transformers() {
    let oracle = Oracle::read(&chunks::root());
    for architecture in chunks::ARCHITECTURES {
        for n_ubatch in [512, 3] {
            let options = with_ubatch(n_ubatch);
            let mut session = chunks::session(architecture, chunks::HOOK, chunks::D_MODEL, options);
            let prompt = chunks::prompt(&session, &oracle, architecture);
            let ids = oracle.ids(&format!("{architecture}/greedy_ids"));
            let prompt = followed_by(session.model(), &prompt, &ids);
            let run = score(&mut session, &prompt, scored());
            let mean = log_probs(&run).rev().take(ids.len()).sum::<f64>() / ids.len() as f64;
            let expected = oracle.f32(&format!("{architecture}/mean_log_prob"))[0];
            let error = (mean / f64::from(expected) - 1.0).abs();
            assert!(error < F32, "{architecture}: {mean}, expected {expected}");
            let last = &run.prompt_log_probs[prompt.tokens().len() - ids.len()..];
            for (token, id) in last.iter().flatten().zip(ids) {
                assert_eq!(token.top[0], (id, token.log_prob), "it is the likeliest");
            }
        }
    }
}

/// A prompt of more rows than are scored at once, steered or not: as runs of its beginnings say.
#[test]
fn each_token_is_as_likely_as_behind_its_beginning() {
    let mut session = Fixture::Demo.exact_session();
    let beginning = prompt(&mut session, Fixture::Demo, "00.png");
    let (feature, strength, caption) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let text = session.prompt(&caption.repeat(8), PromptForm::Raw, &[]);
    let text = text.expect("known characters");
    let ids = text.tokens()[1..].iter().filter_map(|token| token.id);
    let ids: Vec<_> = ids.take(70).collect();
    assert_eq!(ids.len(), 70);
    let prompt = followed_by(session.model(), &beginning, &ids);
    for at in [None, Some(Positions::IMAGE), Some(Positions::ALL)] {
        let steering = at.map(|at| steering(&mut session, feature, strength, at));
        let options = RunOptions {
            steering: steering.clone(),
            ..scored()
        };
        let run = score(&mut session, &prompt, options);
        let found = &run.prompt_log_probs[beginning.tokens().len()..];
        let logits = logits_along(&mut session, &beginning, &ids, steering);
        for ((found, &id), logits) in found.iter().flatten().zip(&ids).zip(&logits) {
            check_log_probs(found, id, logits, READ_OR_GENERATED);
        }
    }
}

struct Nothing;

impl RowHook for Nothing {
    fn on_rows(&mut self, _: usize, _: &mut [f32]) -> Result<Edited> {
        Ok(Edited::No)
    }
}

/// No prompt ends with an image, so a context says what follows one.
#[test]
fn the_token_behind_an_image_is_said_by_its_last_row() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let options = ContextOptions {
        n_tokens: prompt.tokens().len(),
        n_sequences: 1,
        n_ubatch: 512,
        n_together: 0,
        threads: 1,
        kv_type: exact_options().kv_type,
        flash_attention: exact_options().flash_attention,
        eval_callback: true,
    };
    let model = Arc::clone(session.model().language_model());
    let mut context = Context::new(model, options, Vec::new(), Nothing).expect("it is made");
    let [
        Segment::Text(before),
        Segment::Image(image),
        Segment::Text(after),
    ] = prompt.segments()
    else {
        panic!("one image in a text");
    };
    let rows = Embeddings {
        values: &image.rows,
        width: image.width,
        positions: &[],
        n_positions: image.n_rows(),
        is_causal: true,
    };
    let before = Rows::Tokens(before);
    context.decode(0, before, Output::None).expect("it decodes");
    let rows = Rows::Embeddings(rows);
    context
        .decode(0, rows, Output::LastRow)
        .expect("it decodes");
    let run = score(&mut session, &prompt, scored());
    let behind = &run.prompt_log_probs[prompt.tokens().len() - after.len()];
    let behind = behind.as_ref().expect("it is text");
    check_log_probs(
        behind,
        after[0],
        context.logits(OutputRow::Last),
        READ_OR_GENERATED,
    );
}

fn close(ours: &[Option<TokenLogProbs>], theirs: &[Option<TokenLogProbs>], bound: f64) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
        let error = (ours.log_prob - theirs.log_prob).abs();
        assert!(error < bound, "{ours:?}, expected {theirs:?}");
    }
}

/// What is generated behind it, and what is remembered of prompts, is as without.
#[test]
fn scores_change_nothing_else() {
    let store = PromptStore::in_memory(1 << 24);
    let options = SessionOptions {
        prompt_store: Some(store),
        ..exact_options()
    };
    let mut remembering = Fixture::Demo.session(TensorType::F32, options);
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let everywhere = steering(&mut session, feature, strength, Positions::ALL);
    for steering in [None, Some(everywhere)] {
        let plain = RunOptions {
            steering: steering.clone(),
            max_tokens: 8,
            top_log_probs: Some(5),
            ..RunOptions::default()
        };
        let with_scores = RunOptions {
            prompt_log_probs: Some(5),
            ..plain.clone()
        };
        let expected = session.run(&prompt, plain.clone()).expect("it runs");
        assert!(expected.prompt_log_probs.is_empty());
        let alone = score(&mut session, &prompt, with_scores.clone());
        assert_eq!(alone.token_ids, expected.token_ids);
        let some = |found: &[TokenLogProbs]| found.iter().cloned().map(Some).collect::<Vec<_>>();
        close(
            &some(&alone.log_probs),
            &some(&expected.log_probs),
            READ_OR_GENERATED,
        );
        // The generated text as a prompt's.
        let longer = followed_by(session.model(), &prompt, &alone.token_ids);
        let again = score(&mut session, &longer, with_scores.clone());
        let (of_prompt, of_text) = again.prompt_log_probs.split_at(prompt.tokens().len());
        close(of_prompt, &alone.prompt_log_probs, READ_OR_GENERATED);
        close(of_text, &some(&alone.log_probs), READ_OR_GENERATED);
        for n_remembered in [0, prompt.tokens().len()] {
            let ours = score(&mut remembering, &prompt, with_scores.clone());
            assert_eq!(ours.prompt_log_probs, alone.prompt_log_probs);
            assert_eq!((ours.n_remembered, &ours.token_ids), (0, &alone.token_ids));
            let ours = remembering.run(&prompt, plain.clone()).expect("it runs");
            if steering.is_none() {
                assert_eq!(ours.n_remembered, n_remembered);
            }
            assert_eq!(ours.log_probs, expected.log_probs);
        }
        // Beside a run of the same prompt without scores, which it may share nothing with.
        let both = vec![plain, with_scores];
        let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
        let both = session
            .run_side_by_side(&prompt, both, go_on)
            .expect("they run");
        assert!(both[0].prompt_log_probs.is_empty());
        close(
            &both[1].prompt_log_probs,
            &alone.prompt_log_probs,
            READ_OR_GENERATED,
        );
        for run in both {
            assert_eq!(run.token_ids, expected.token_ids);
        }
    }
}

/// In an engine, before and between steps of another run, whose prompt is remembered all the same.
#[test]
fn scores_come_beside_other_runs() {
    let options = SessionOptions {
        prompt_store: Some(PromptStore::in_memory(1 << 24)),
        ..exact_options()
    };
    let mut session = Fixture::Demo.session(TensorType::F32, options);
    let prompts = ["00.png", "03.png"].map(|picture| prompt(&mut session, Fixture::Demo, picture));
    let mut alone = Fixture::Demo.exact_session();
    let scored_alone = score(&mut alone, &prompts[0], scored());
    let generated = RunOptions {
        max_tokens: 6,
        ..RunOptions::default()
    };
    let alone = alone.run(&prompts[1], generated.clone()).expect("it runs");
    let size = EngineSize {
        n_tokens: 256,
        n_sequences: 2,
        n_shared: prompts[1].tokens().len(),
        n_together: 0,
    };
    let mut engine = session.model().engine(size).expect("there is memory");
    let [of_scored, of_generated] = prompts.map(Arc::new);
    let n_rows = of_generated.tokens().len();
    let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
    for n_remembered in [0, n_rows] {
        let request = Request::new(Arc::clone(&of_scored), scored());
        let first = engine.admit(request).expect("there is room");
        let request = Request::new(Arc::clone(&of_generated), generated.clone());
        let second = engine.admit(request).expect("there is room");
        let mut ended = engine.step(go_on).expect("it steps");
        let request = Request::new(Arc::clone(&of_scored), scored());
        let third = engine.admit(request).expect("the first has ended");
        while !engine.is_idle() {
            ended.extend(engine.step(go_on).expect("it steps"));
        }
        for (id, run) in ended {
            let run = run.expect("it runs");
            if id == second {
                assert_eq!(run.token_ids, alone.token_ids);
                assert_eq!(run.n_remembered, n_remembered);
            } else {
                assert!([first, third].contains(&id));
                let (ours, theirs) = (&run.prompt_log_probs, &scored_alone.prompt_log_probs);
                close(ours, theirs, READ_OR_GENERATED);
            }
        }
    }
}

#[test]
fn a_prompt_of_one_token_has_nothing_to_say() {
    let mut session = Fixture::Demo.exact_session();
    let segments = vec![Segment::Text(vec![5])];
    let prompt = session.model().prompt_of_segments(segments);
    let run = score(&mut session, &prompt.expect("a known id"), scored());
    assert_eq!(run.prompt_log_probs, [None]);
    let too_many = RunOptions {
        prompt_log_probs: Some(21),
        ..RunOptions::default()
    };
    let error = too_many.check().expect_err("refused").to_string();
    assert!(error.contains("`prompt_log_probs` is 21"), "{error}");
}
