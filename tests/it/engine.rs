//! Runs on one model: in threads, admitted at any time, cancelled, watched, edited, with several SAEs.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::llama::Edited;
use llava_sae_cpp::steering::{Change, Intervention, Positions};
use llava_sae_cpp::{
    CancelFlag, Editor, EditorAt, Engine, EngineSize, FeatureId, HookPoint, HookedModel, Keep,
    ModelFiles, Prompt, PromptForm, Request, Result, Run, RunId, RunOptions, Session,
    SessionOptions, Step, Stop, Token,
};

use crate::fixture::{
    Fixture, NEIGHBOURS, ROUNDING, everything, exact_options, prompt, relative_error, steering,
};
use crate::hook_points::{model, sae_at};

fn demo() -> Session {
    let options = SessionOptions {
        threads: 1,
        ..SessionOptions::default()
    };
    Fixture::Demo.session(TensorType::F16, options)
}

fn engine(model: &Arc<HookedModel>, n_tokens: usize, n_sequences: usize) -> Engine {
    let size = EngineSize {
        n_tokens,
        n_sequences,
        n_shared: 0,
        n_together: 0,
    };
    model.engine(size).expect("there is memory")
}

/// Steps until all runs have ended.
fn finish(engine: &mut Engine, done: &mut Vec<(RunId, Result<Run>)>) {
    while !engine.is_idle() {
        let ended = engine.step(&mut |_, _| ControlFlow::Continue(()));
        done.extend(ended.expect("no run is without an owner"));
    }
}

fn run_of(done: &[(RunId, Result<Run>)], id: RunId) -> &Run {
    let found = done.iter().find(|(of, _)| *of == id);
    let (_, run) = found.expect("it has ended");
    run.as_ref().expect("it succeeded")
}

fn check_same(ours: &Run, theirs: &Run, name: &str) {
    assert_eq!(ours.text, theirs.text, "{name}");
    assert_eq!(ours.token_ids, theirs.token_ids, "{name}");
    assert_eq!(ours.logits, theirs.logits, "{name}");
    assert_eq!(ours.trace.tokens, theirs.trace.tokens, "{name}");
    for (ours, theirs) in ours.trace.saes.iter().zip(&theirs.trace.saes) {
        assert_eq!(ours.residuals, theirs.residuals, "{name}");
        assert_eq!(ours.steered_residuals, theirs.steered_residuals, "{name}");
        assert_eq!(ours.activations, theirs.activations, "{name}");
    }
}

#[test]
fn two_runs_in_two_threads_are_those_of_each_alone() {
    let mut session = demo();
    let model = Arc::clone(session.model());
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let steered = RunOptions {
        steering: Some(steering(&mut session, feature, strength, Positions::IMAGE)),
        ..everything(16)
    };
    let jobs = [("00.png", steered), ("05.png", everything(16))]
        .map(|(picture, options)| (prompt(&mut session, Fixture::Demo, picture), options));
    let alone = jobs.clone().map(|(prompt, options)| {
        let mut session = Session::new(Arc::clone(&model));
        session.run(&prompt, options).expect("it runs")
    });
    for round in 0..3 {
        let together = std::thread::scope(|scope| {
            let started = jobs.clone().map(|(prompt, options)| {
                let model = Arc::clone(&model);
                scope.spawn(move || Session::new(model).run(&prompt, options))
            });
            started.map(|thread| thread.join().expect("no panic").expect("it runs"))
        });
        for (ours, theirs) in together.iter().zip(&alone) {
            check_same(ours, theirs, &format!("round {round}"));
        }
    }
}

#[test]
fn runs_are_admitted_at_any_time() {
    let mut session = Fixture::Demo.exact_session();
    let model = Arc::clone(session.model());
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let prompts = ["00.png", "03.png", "05.png"]
        .map(|picture| Arc::new(prompt(&mut session, Fixture::Demo, picture)));
    let steered = RunOptions {
        steering: Some(steering(&mut session, feature, strength, Positions::ALL)),
        ..everything(12)
    };
    let all = [everything(16), steered, everything(8)];
    let alone: Vec<Run> = prompts
        .iter()
        .zip(all.clone())
        .map(|(prompt, options)| session.run(prompt, options).expect("it runs"))
        .collect();
    let mut engine = engine(&model, 256, 2);
    let mut requests = prompts.into_iter().zip(all);
    let mut admit = |engine: &mut Engine| {
        let (prompt, options) = requests.next().expect("three of them");
        engine.admit(Request::new(prompt, options))
    };
    let mut done = Vec::new();
    let first = admit(&mut engine).expect("there is room");
    for _ in 0..3 {
        let ended = engine.step(&mut |_, _| ControlFlow::Continue(()));
        done.extend(ended.expect("it steps"));
    }
    let second = admit(&mut engine).expect("there is room");
    let full = Request::new(
        Arc::new(prompt(&mut session, Fixture::Demo, "01.png")),
        everything(1),
    );
    assert!(engine.admit(full).is_err(), "both sequences are taken");
    finish(&mut engine, &mut done);
    // A sequence that was used before.
    let third = admit(&mut engine).expect("all have ended");
    finish(&mut engine, &mut done);
    for (id, alone) in [first, second, third].into_iter().zip(&alone) {
        let run = run_of(&done, id);
        assert_eq!(run.token_ids, alone.token_ids);
        assert_eq!(run.trace.tokens, alone.trace.tokens);
        let error = relative_error(&run.logits, &alone.logits);
        assert!(error < NEIGHBOURS, "logits {error:.2e}");
        let [ours, theirs] = [run, alone].map(|run| &run.trace.saes[0].residuals);
        let error = relative_error(ours, theirs);
        assert!(error < NEIGHBOURS, "rows {error:.2e}");
    }
}

/// Waits at every ubatch, as a large model would.
struct Slow(Duration);

impl Editor for Slow {
    fn write(&mut self, _: &mut [f32], _: &[Token]) -> Result<Edited> {
        std::thread::sleep(self.0);
        Ok(Edited::No)
    }
}

fn slow(model: &HookedModel, milliseconds: u64) -> EditorAt {
    let hook_point = model.saes()[0].hook_point();
    EditorAt {
        read: hook_point,
        write: hook_point,
        editor: Box::new(Slow(Duration::from_millis(milliseconds))),
    }
}

/// Cancels `flag` when `after` is over, and says when.
fn cancel_later(flag: &CancelFlag, after: Duration) -> std::thread::JoinHandle<Instant> {
    let flag = flag.clone();
    std::thread::spawn(move || {
        std::thread::sleep(after);
        flag.cancel();
        Instant::now()
    })
}

const SOON: Duration = Duration::from_millis(300);

#[test]
fn a_prompt_is_cancelled_from_another_thread() {
    let slowly = SessionOptions {
        n_ubatch: 1,
        threads: 1,
        ..SessionOptions::default()
    };
    let mut session = Fixture::Demo.session(TensorType::F16, slowly);
    let model = Arc::clone(session.model());
    let prompt = Arc::new(prompt(&mut session, Fixture::Demo, "00.png"));
    let n_rows = prompt.tokens().len();
    let mut engine = engine(&model, n_rows + 8, 1);
    let run = RunOptions {
        max_tokens: 8,
        ..RunOptions::default()
    };
    let cancel = run.cancel.clone();
    let request = Request {
        editors: vec![slow(&model, 50)],
        ..Request::new(Arc::clone(&prompt), run)
    };
    assert!(n_rows * 50 > 2000, "it takes seconds");
    engine.admit(request).expect("there is room");
    let cancelled = cancel_later(&cancel, SOON);
    let mut done = Vec::new();
    finish(&mut engine, &mut done);
    let took = cancelled.join().expect("no panic").elapsed();
    assert!(took < SOON, "{took:?}");
    let [(_, Err(error))] = &done[..] else {
        panic!("a run without a token has no result");
    };
    assert!(error.is_interrupted());
    // What comes next is as if it had never been.
    let plain = everything(4);
    let id = engine.admit(Request::new(Arc::clone(&prompt), plain.clone()));
    finish(&mut engine, &mut done);
    let alone = session.run(&prompt, plain).expect("it runs");
    check_same(
        run_of(&done, id.expect("there is room")),
        &alone,
        "afterwards",
    );
}

#[test]
fn a_cancelled_run_leaves_the_others_as_they_are() {
    let mut session = demo();
    let model = Arc::clone(session.model());
    let prompt = Arc::new(prompt(&mut session, Fixture::Demo, "00.png"));
    let long = RunOptions {
        max_tokens: 200,
        ..everything(0)
    };
    // Its text goes on and on.
    let endless = RunOptions {
        steering: Some(steering(&mut session, 3, 60.0, Positions::ALL)),
        ..long.clone()
    };
    let cancel = CancelFlag::default();
    let to_cancel = RunOptions {
        cancel: cancel.clone(),
        ..endless
    };
    let mut engine = engine(&model, 400, 2);
    let kept = engine.admit(Request::new(Arc::clone(&prompt), long.clone()));
    let kept = kept.expect("there is room");
    let cancelled = engine.admit(Request::new(Arc::clone(&prompt), to_cancel));
    let cancelled = cancelled.expect("there is room");
    let mut done = Vec::new();
    let mut n_steps = 0;
    while !engine.is_idle() {
        let ended = engine.step(&mut |_, _| ControlFlow::Continue(()));
        done.extend(ended.expect("it steps"));
        n_steps += 1;
        if n_steps == 5 {
            cancel.cancel();
        }
    }
    let alone = session.run(&prompt, long).expect("it runs");
    let run = run_of(&done, kept);
    assert_eq!(run.token_ids, alone.token_ids);
    assert_eq!(run.trace.tokens, alone.trace.tokens);
    let run = run_of(&done, cancelled);
    assert_eq!((run.stop, run.token_ids.len()), (Stop::Interrupted, 5));
    assert_eq!(run.trace.tokens.len(), prompt.tokens().len() + 5);
}

/// A prompt that goes no further than the hook, and is cancelled there, while another run generates.
#[test]
fn a_prompt_that_ends_early_leaves_the_others_as_they_are() {
    let mut session = demo();
    let model = Arc::clone(session.model());
    let prompt = Arc::new(prompt(&mut session, Fixture::Demo, "00.png"));
    let mut engine = engine(&model, 256, 2);
    let kept = engine.admit(Request::new(Arc::clone(&prompt), everything(16)));
    let kept = kept.expect("there is room");
    let mut done = Vec::new();
    for _ in 0..3 {
        let ended = engine.step(&mut |_, _| ControlFlow::Continue(()));
        done.extend(ended.expect("it steps"));
    }
    let rows = RunOptions {
        keep: Keep {
            logits: false,
            ..Keep::ALL
        },
        ..everything(0)
    };
    rows.cancel.cancel();
    engine
        .admit(Request::new(Arc::clone(&prompt), rows))
        .expect("there is room");
    finish(&mut engine, &mut done);
    let alone = session.run(&prompt, everything(16)).expect("it runs");
    let run = run_of(&done, kept);
    assert_eq!(run.token_ids, alone.token_ids);
    assert_eq!(run.trace.tokens, alone.trace.tokens);
    let too_many = [1, 2, 3].map(|_| Request::new(Arc::clone(&prompt), everything(1)));
    let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
    assert!(engine.run(too_many.into(), go_on).is_err());
}

/// Fails in the middle of a text.
struct Failing(usize);

impl Editor for Failing {
    fn write(&mut self, _: &mut [f32], tokens: &[Token]) -> Result<Edited> {
        self.0 -= usize::from(tokens.len() == 1);
        match self.0 {
            0 => Err(llava_sae_cpp::Error::invalid(
                "an editor of the test's has failed",
            )),
            _ => Ok(Edited::No),
        }
    }
}

#[test]
fn a_run_that_fails_leaves_the_others_as_they_are() {
    let mut session = demo();
    let model = Arc::clone(session.model());
    let prompt = Arc::new(prompt(&mut session, Fixture::Demo, "00.png"));
    let mut engine = engine(&model, 256, 2);
    let hook_point = model.saes()[0].hook_point();
    let failing = Request {
        editors: vec![EditorAt {
            read: hook_point,
            write: hook_point,
            editor: Box::new(Failing(4)),
        }],
        ..Request::new(Arc::clone(&prompt), everything(16))
    };
    let failing = engine.admit(failing).expect("there is room");
    let kept = engine.admit(Request::new(Arc::clone(&prompt), everything(16)));
    let kept = kept.expect("there is room");
    let mut done = Vec::new();
    finish(&mut engine, &mut done);
    let (_, failed) = done
        .iter()
        .find(|(id, _)| *id == failing)
        .expect("it has ended");
    let error = failed.as_ref().expect_err("its editor fails");
    assert!(error.to_string().contains("of the test's"), "{error}");
    let alone = session.run(&prompt, everything(16)).expect("it runs");
    assert_eq!(run_of(&done, kept).token_ids, alone.token_ids);
    assert_eq!(run_of(&done, kept).trace.tokens, alone.trace.tokens);
}

#[test]
fn steps_bring_text_and_features_and_can_end_a_run() {
    let mut session = demo();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let (mut text, mut ids, mut n_rows) = (String::new(), Vec::new(), 0);
    let mut seen = Vec::new();
    let run = session.run_with(&prompt, everything(16), &mut |step: Step<'_>| {
        text.push_str(step.text);
        ids.extend(step.id);
        assert_eq!(step.new_rows.start, n_rows, "each row is told once");
        n_rows = step.new_rows.end;
        let activations = &step.trace.saes[0].activations;
        seen.extend(
            step.new_rows
                .map(|row| activations.row(row).collect::<Vec<_>>()),
        );
        ControlFlow::Continue(())
    });
    let run = run.expect("it runs");
    assert_eq!((&text, &ids), (&run.text, &run.token_ids));
    let activations = &run.trace.saes[0].activations;
    assert!(seen.len() >= prompt.tokens().len());
    for (row_idx, seen) in seen.iter().enumerate() {
        assert_eq!(seen, &activations.row(row_idx).collect::<Vec<_>>());
    }
    let mut n_steps = 0;
    let stopped = session.run_with(&prompt, everything(16), &mut |_| {
        n_steps += 1;
        match n_steps {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    let stopped = stopped.expect("it runs");
    assert_eq!(stopped.stop, Stop::Caller);
    assert_eq!(stopped.token_ids, run.token_ids[..3]);
}

/// Adds a vector to every row.
struct Add(Vec<f32>);

impl Editor for Add {
    fn write(&mut self, rows: &mut [f32], _: &[Token]) -> Result<Edited> {
        for row in rows.chunks_exact_mut(self.0.len()) {
            for (x, delta) in row.iter_mut().zip(&self.0) {
                *x += delta;
            }
        }
        Ok(Edited::Yes)
    }
}

/// Copies what was read at one place over what is written at another.
#[derive(Default)]
struct Copy(Vec<f32>);

impl Editor for Copy {
    fn read(&mut self, rows: &[f32], _: &[Token]) -> Result<()> {
        self.0 = rows.to_vec();
        Ok(())
    }

    fn write(&mut self, rows: &mut [f32], _: &[Token]) -> Result<Edited> {
        rows.copy_from_slice(&self.0);
        Ok(Edited::Yes)
    }
}

#[test]
fn an_editor_is_as_good_as_an_intervention() {
    let mut session = demo();
    let model = Arc::clone(session.model());
    let prompt = Arc::new(prompt(&mut session, Fixture::Demo, "00.png"));
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let steered = RunOptions {
        steering: Some(steering(&mut session, feature, strength, Positions::ALL)),
        ..everything(16)
    };
    let steered = session.run(&prompt, steered).expect("it runs");
    let mut vector = model.saes()[0].decoder_row(feature).expect("it is there");
    vector.iter_mut().for_each(|x| *x *= strength);
    let hook_point = model.saes()[0].hook_point();
    let mut engine = engine(&model, 256, 1);
    let request = Request {
        editors: vec![EditorAt {
            read: hook_point,
            write: hook_point,
            editor: Box::new(Add(vector)),
        }],
        ..Request::new(Arc::clone(&prompt), everything(16))
    };
    let id = engine.admit(request).expect("there is room");
    let mut done = Vec::new();
    finish(&mut engine, &mut done);
    let edited = run_of(&done, id);
    assert_eq!(edited.token_ids, steered.token_ids);
    assert_eq!(edited.logits, steered.logits);
}

#[test]
fn an_editor_reads_at_one_place_and_writes_at_another() {
    let hook = |layer: usize| {
        let name = format!("blocks.{layer}.hook_resid_post");
        HookPoint::parse(&name).expect("a place")
    };
    let (model, prompt) = two_saes(
        "llama",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    );
    let mut engine = engine(&model, 64, 1);
    let request = Request {
        editors: vec![EditorAt {
            read: hook(0),
            write: hook(1),
            editor: Box::new(Copy::default()),
        }],
        ..Request::new(Arc::new(prompt), everything(0))
    };
    let edited = engine.admit(request).expect("there is room");
    let mut done = Vec::new();
    finish(&mut engine, &mut done);
    let trace = &run_of(&done, edited).trace;
    // The SAE at the second place reads the row before the edit, as with interventions.
    assert_ne!(trace.saes[0].residuals, trace.saes[1].residuals);
    let plain = Request::new(Arc::new(text(&model)), everything(0));
    let plain = engine.admit(plain).expect("there is room");
    finish(&mut engine, &mut done);
    assert_ne!(run_of(&done, plain).logits, run_of(&done, edited).logits);
}

fn files(architecture: &str, saes: Vec<PathBuf>) -> ModelFiles {
    ModelFiles {
        model: model(architecture),
        mmproj: None,
        saes,
    }
}

fn text(model: &Arc<HookedModel>) -> Prompt {
    let never = CancelFlag::default();
    let prompt = model.prompt("a cat sits on the mat", PromptForm::Raw, &[], &never);
    prompt.expect("known words")
}

/// A model with SAEs at two places, and a text.
fn two_saes(architecture: &str, one: &str, other: &str) -> (Arc<HookedModel>, Prompt) {
    let width = |hook: &str| if hook.ends_with("hook_z") { 24 } else { 32 };
    let saes = [one, other].map(|hook| sae_at(hook, width(hook))).to_vec();
    let model = HookedModel::open(&files(architecture, saes), exact_options());
    let model = model.expect("they fit");
    let prompt = text(&model);
    (model, prompt)
}

#[test]
fn two_saes_in_one_pass_give_what_each_gives_alone() {
    for (one, other) in [
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.0.hook_mlp_out"),
        ("blocks.1.hook_attn_out", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
    ] {
        let (both, prompt) = two_saes("llama", one, other);
        let mut session = Session::new(Arc::clone(&both));
        for max_tokens in [0, 6] {
            for keep in [
                Keep::ALL,
                Keep {
                    logits: false,
                    ..Keep::ALL
                },
            ] {
                let options = RunOptions {
                    keep,
                    ..everything(max_tokens)
                };
                let together = session.run(&prompt, options.clone()).expect("it runs");
                for (sae, seen) in both.saes().iter().zip(&together.trace.saes) {
                    let path = sae.file().expect("it has one").path().to_owned();
                    let alone = HookedModel::open(&files("llama", vec![path]), exact_options());
                    let mut alone = Session::new(alone.expect("they fit"));
                    let alone = alone.run(&prompt, options.clone()).expect("it runs");
                    assert_eq!(together.token_ids, alone.token_ids, "{one}, {other}");
                    assert_eq!(together.logits, alone.logits, "{one}, {other}");
                    assert_eq!(together.trace.tokens, alone.trace.tokens);
                    assert_eq!(seen.residuals, alone.trace.saes[0].residuals);
                    assert_eq!(seen.activations, alone.trace.saes[0].activations);
                    assert!(seen.activations.n_active() > 0, "{one}, {other}");
                }
            }
        }
    }
}

/// Runs side by side share what is below the lowest edit; those above see edited rows.
#[test]
fn saes_above_an_edit_see_the_edited_stream() {
    let (lower, upper) = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post");
    let (model, prompt) = two_saes("gemma2", lower, upper);
    let steer = |sae: usize| {
        let intervention = Intervention::new(FeatureId { sae, index: 3 }, Change::steer(4.0));
        model.steering(vec![intervention]).expect("a feature")
    };
    let runs = [None, Some(steer(0)), Some(steer(1))].map(|steering| RunOptions {
        steering,
        ..everything(6)
    });
    let mut session = Session::new(Arc::clone(&model));
    // Alone, together with a run that is edited at the same place, and with one edited lower.
    for together in [&[0, 2][..], &[0, 1, 2]] {
        let chosen = together.iter().map(|&i| runs[i].clone()).collect();
        let side_by_side = session
            .run_side_by_side(&prompt, chosen, &mut |_, _| ControlFlow::Continue(()))
            .expect("they run");
        for (run, &i) in side_by_side.iter().zip(together) {
            let alone = session.run(&prompt, runs[i].clone()).expect("it runs");
            assert_eq!(run.token_ids, alone.token_ids, "{together:?}: {i}");
            let n_values = prompt.tokens().len() * 32;
            for (sae, (run, alone)) in run.trace.saes.iter().zip(&alone.trace.saes).enumerate() {
                let [ours, theirs] = [run, alone].map(|seen| &seen.residuals[..n_values]);
                let error = relative_error(ours, theirs);
                assert!(
                    error < ROUNDING,
                    "{together:?}: {i}, SAE {sae}: {error:.2e}"
                );
                assert_eq!(run.activations.n_rows(), alone.activations.n_rows());
            }
        }
    }
    let [plain, low, high] = runs.map(|run| session.run(&prompt, run).expect("it runs").trace);
    assert_eq!(plain.saes[0].residuals[..32], low.saes[0].residuals[..32]);
    assert_ne!(
        plain.saes[1].residuals[..32],
        low.saes[1].residuals[..32],
        "above the edit"
    );
    assert_eq!(
        plain.saes[1].residuals[..32],
        high.saes[1].residuals[..32],
        "at the edit"
    );
}

#[test]
fn features_are_named_by_their_saes() {
    let (model, _) = two_saes(
        "llama",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    );
    let saes = model.saes();
    let name = format!("{}/3", saes[1].id());
    let feature = saes.find_feature(&name).expect("it is there");
    assert_eq!(feature, FeatureId { sae: 1, index: 3 });
    assert_eq!(saes.shown(feature).to_string(), name);
    let error = saes.find_feature("3").expect_err("of which SAE?");
    assert!(error.hint().is_some_and(|hint| hint.contains(saes[0].id())));
    assert!(saes.find_feature(&format!("{}/16", saes[1].id())).is_err());
    // Two files of the same id.
    let one = saes[0].file().expect("it has one").path().to_owned();
    let twice = HookedModel::open(&files("llama", vec![one.clone(), one]), exact_options());
    let error = twice.err().expect("both are called the same");
    assert!(error.to_string().contains("called"), "{error}");
}
