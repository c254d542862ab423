//! Prompts that were read are remembered, and no result shows it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::{Change, Intervention, Vector};
use llava_sae_cpp::{
    EngineSize, HookPoint, Keep, Kinds, Positions, Prompt, PromptForm, PromptStore, Request, Run,
    RunOptions, Session, SessionOptions, Step,
};

use crate::fixture::{
    Fixture, NEIGHBOURS, ON_DEVICE, ROUNDING, everything, exact_options, relative_error, steering,
};

const MAX_BYTES: usize = 100 << 20;

fn with_store(store: &PromptStore) -> SessionOptions {
    SessionOptions {
        prompt_store: Some(store.clone()),
        ..exact_options()
    }
}

fn session(options: SessionOptions) -> Session {
    Fixture::Demo.session(TensorType::F32, options)
}

fn prompt(session: &Session, text: &str, picture: &str) -> Prompt {
    let image = session.encode_image(&Fixture::Demo.open_picture(picture));
    let image = image.expect("the picture is encoded");
    let prompt = session.prompt(text, PromptForm::Chat, &[&image]);
    prompt.expect("the prompt is tokenised")
}

const DESCRIBE: &str = "Describe the image.";

fn positions(words: &str) -> Positions {
    Positions::parse(words).expect("positions")
}

/// What a person tries on a prompt, one after another, and from which row on something is computed of it anew
/// where all before was remembered.
fn tries(session: &mut Session) -> Vec<(&'static str, RunOptions)> {
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let mut steered = |at: &str, strength: f32, keep: Keep| RunOptions {
        steering: Some(steering(session, feature, strength, positions(at))),
        keep,
        ..everything(8)
    };
    let nothing = Keep::default();
    let mut tries = vec![
        (
            "steered everywhere, in llama.cpp's graph",
            steered("all", strength, nothing),
        ),
        (
            "with another strength",
            steered("all", strength / 2.0, Keep::ALL),
        ),
        (
            "where it is generated",
            steered("generated", strength, Keep::ALL),
        ),
        ("from the image on", steered("image", strength, Keep::ALL)),
        ("at the end", steered("last", strength, Keep::ALL)),
    ];
    tries.push(("plain, with all that there is", everything(8)));
    let plain = RunOptions {
        keep: nothing,
        ..everything(8)
    };
    tries.push(("plain", plain.clone()));
    let features = Keep {
        features: Kinds::IMAGE,
        ..nothing
    };
    let features = RunOptions {
        keep: features,
        max_tokens: 0,
        ..plain.clone()
    };
    tries.push(("the image's features", features));
    let low = HookPoint::parse("blocks.0.hook_mlp_out").expect("a hook point");
    let width = session.model().saes()[0].meta().d_in;
    let vector = Vector::new("v", low, vec![0.3; width]).expect("finite numbers");
    for at in ["all", "last"] {
        let add = Intervention {
            at: positions(at),
            ..Intervention::new(vector.clone(), Change::vector(1.0))
        };
        let vector = RunOptions {
            steering: Some(session.model().steering(vec![add]).expect("it fits")),
            ..plain.clone()
        };
        tries.push(("a vector below the SAE", vector));
    }
    tries
}

/// Logits, tokens, and what was seen of rows, to the bit; on a device, where nodes are fused, but for rounding.
fn assert_same(ours: &Run, theirs: &Run, what: &str) {
    assert_eq!(ours.token_ids, theirs.token_ids, "{what}");
    assert_eq!(ours.text, theirs.text, "{what}");
    let is_same = |ours: &[f32], theirs: &[f32]| {
        ours == theirs || ON_DEVICE && relative_error(ours, theirs) < ROUNDING
    };
    assert!(is_same(&ours.logits, &theirs.logits), "{what}: logits");
    for (ours, theirs) in ours.trace.saes.iter().zip(&theirs.trace.saes) {
        assert!(is_same(&ours.residuals, &theirs.residuals), "{what}: rows");
        let [steered, theirs_steered] = [ours, theirs].map(|seen| &seen.steered_residuals);
        assert!(is_same(steered, theirs_steered), "{what}: steered rows");
        let [ours, theirs] = [ours, theirs].map(|seen| &seen.activations);
        // Where nothing is kept, features are told of no row.
        let has_none = [ours, theirs].iter().all(|seen| seen.n_active() == 0);
        assert!(has_none || ON_DEVICE || ours == theirs, "{what}: features");
    }
}

/// In any order, each try gives what it gives without a store, from memory and from the disk; and what is known
/// is not computed.
#[test]
fn a_second_try_is_the_same_and_computes_less() {
    let mut bare = session(exact_options());
    let asked = prompt(&bare, DESCRIBE, "00.png");
    let tries = tries(&mut bare);
    let alone: Vec<Run> = tries
        .iter()
        .map(|(_, options)| bare.run(&asked, options.clone()).expect("it runs"))
        .collect();
    let n_rows = asked.tokens().len();
    for first in 0..tries.len() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = PromptStore::new(dir.path().join("prompts"), MAX_BYTES);
        let mut remembering = session(with_store(&store));
        let order = (first..tries.len()).chain(0..first);
        for (nth, i) in order.enumerate() {
            let (name, options) = &tries[i];
            let what = format!("{name}, behind {nth} from {first}");
            let run = remembering.run(&asked, options.clone()).expect("it runs");
            assert_same(&run, &alone[i], &what);
            let again = remembering.run(&asked, options.clone()).expect("it runs");
            assert_same(&again, &alone[i], &format!("{what}, again"));
            let is_low = options.steering.as_ref().is_some_and(|steering| {
                steering
                    .edits()
                    .iter()
                    .any(|edit| edit.hook_point().layer() == 0)
            });
            // Nothing leads to the lowest block's feed-forward part but rows that are edited themselves.
            if !is_low {
                assert!(again.n_remembered > 0, "{what}");
                let is_all = again.n_remembered == n_rows;
                assert_eq!(
                    is_all,
                    options.max_tokens > 0,
                    "{what}: {}",
                    again.n_remembered
                );
            }
            if nth % 4 == 3 {
                store.clear_memory();
                let from_disk = remembering.run(&asked, options.clone()).expect("it runs");
                assert_same(&from_disk, &alone[i], &format!("{what}, from the disk"));
                assert_eq!(from_disk.n_remembered, again.n_remembered, "{what}");
            }
        }
    }
}

pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("readable").path());
    let is_kept = |path: &PathBuf| path.extension().is_some_and(|name| name == "prompt-piece");
    paths.filter(is_kept).collect()
}

/// Writes a file's content anew, under a checksum of its own.
fn forge(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(path).expect("readable").split_off(32);
    change(&mut content);
    let forged = [&blake3::hash(&content).as_bytes()[..], &content].concat();
    std::fs::write(path, forged).expect("our own folder");
}

fn plain() -> RunOptions {
    RunOptions {
        keep: Keep {
            logits: true,
            ..Keep::default()
        },
        ..everything(4)
    }
}

/// Other numbers in a file show that the model did not compute them.
#[test]
fn what_is_remembered_is_not_computed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = PromptStore::new(dir.path().to_owned(), MAX_BYTES);
    let mut session = session(with_store(&store));
    let asked = prompt(&session, DESCRIBE, "00.png");
    let original = session.run(&asked, plain()).expect("it runs");
    for path in files(dir.path()) {
        // Tensors lie in the order of their alignment and names; the logits' is known by its bytes.
        let bytes: Vec<u8> = original
            .logits
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        forge(&path, |content| {
            let place = content
                .windows(bytes.len())
                .position(|window| window == bytes);
            if let Some(place) = place {
                content[place..place + bytes.len()].fill(0);
            }
        });
    }
    store.clear_memory();
    let forged = session.run(&asked, plain()).expect("it runs");
    assert!(forged.logits.iter().all(|&logit| logit == 0.0));
}

/// What is damaged, foreign or of another version counts as missing, and is written anew.
#[test]
fn what_is_damaged_is_missing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = PromptStore::new(dir.path().to_owned(), MAX_BYTES);
    let mut session = session(with_store(&store));
    let [asked, other] = ["00.png", "05.png"].map(|name| prompt(&session, DESCRIBE, name));
    let original = session.run(&asked, plain()).expect("it runs");
    let mut whole = files(dir.path());
    whole.sort();
    let whole: Vec<(PathBuf, Vec<u8>)> = whole
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).expect("readable")))
        .collect();
    assert!(whole.len() >= 3, "text, image, text");
    session.run(&other, plain()).expect("it runs");
    let foreign = files(dir.path());
    let foreign = foreign
        .iter()
        .find(|path| whole.iter().all(|(ours, _)| ours != *path));
    let foreign = std::fs::read(foreign.expect("another image's")).expect("readable");
    let damages: [&dyn Fn(&Path); 5] = [
        &|path| {
            let mut bytes = std::fs::read(path).expect("readable");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).expect("our own folder");
        },
        &|path| {
            let bytes = std::fs::read(path).expect("readable");
            std::fs::write(path, &bytes[..bytes.len() - 1]).expect("our own folder");
        },
        &|path| std::fs::write(path, &foreign).expect("our own folder"),
        &|path| {
            forge(path, |content| {
                let from = b"\\\"format\\\":1";
                let place = content
                    .windows(from.len())
                    .position(|window| window == from);
                content[place.expect("a version") + from.len() - 1] = b'9';
            });
        },
        &|path| forge(path, |content| *content = b"{}".to_vec()),
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        for (path, _) in &whole {
            damage(path);
        }
        store.clear_memory();
        let run = session.run(&asked, plain()).expect("it runs");
        assert_same(&run, &original, &format!("damage {i}"));
        assert_eq!(run.n_remembered, 0, "damage {i}");
        for (path, bytes) in &whole {
            let written = std::fs::read(path).expect("readable");
            assert!(written == *bytes, "damage {i}: {}", path.display());
        }
    }
}

/// Prompts share their beginnings: another question about the same picture, and what comes after an answer.
#[test]
fn prompts_share_what_they_begin_with() {
    let store = PromptStore::in_memory(MAX_BYTES);
    let mut remembering = session(with_store(&store));
    let mut bare = session(exact_options());
    let first = prompt(&bare, DESCRIBE, "00.png");
    let second = prompt(&bare, "What is it?", "00.png");
    let other = prompt(&bare, "What is it?", "05.png");
    let n_image_end = first.tokens().iter().rposition(|token| token.id.is_none());
    let n_image_end = n_image_end.expect("it has an image") + 1;
    for (prompt, expected) in [(&first, 0), (&second, n_image_end)] {
        let run = remembering.run(prompt, everything(6)).expect("it runs");
        assert_eq!(run.n_remembered, expected);
        let alone = bare.run(prompt, everything(6)).expect("it runs");
        assert_same(&run, &alone, "another question");
    }
    let run = remembering.run(&other, everything(6)).expect("it runs");
    assert!(run.n_remembered < n_image_end, "another picture");
    let alone = bare.run(&other, everything(6)).expect("it runs");
    assert_same(&run, &alone, "another picture");
}

/// Of a prompt that has no room, no part is kept, which would push out what has.
#[test]
fn a_prompt_without_room_is_not_kept() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut n_bytes = MAX_BYTES;
    for is_kept in [true, false] {
        let folder = dir.path().join(is_kept.to_string());
        let store = PromptStore::new(folder.clone(), n_bytes);
        let mut session = session(with_store(&store));
        let asked = prompt(&session, DESCRIBE, "00.png");
        for _ in 0..2 {
            let run = session.run(&asked, plain()).expect("it runs");
            assert!(is_kept || run.n_remembered == 0);
        }
        assert_eq!(store.n_bytes() > 0, is_kept);
        assert_ne!(files(&folder).is_empty(), is_kept);
        n_bytes = store.n_bytes() / 2;
    }
}

/// Without a callback, nothing can be kept, and runs are what they are.
#[test]
fn without_a_callback_nothing_is_remembered() {
    let store = PromptStore::in_memory(MAX_BYTES);
    let with = |eval_callback| {
        session(SessionOptions {
            eval_callback,
            ..with_store(&store)
        })
    };
    let (mut without, mut usual) = (with(false), with(true));
    let asked = prompt(&usual, DESCRIBE, "00.png");
    let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
    let both = without.run_side_by_side(&asked, vec![plain(); 2], go_on);
    assert_eq!(store.n_bytes(), 0);
    let alone = usual.run(&asked, plain()).expect("it runs");
    for run in both.expect("they run") {
        assert_eq!(run.token_ids, alone.token_ids);
        assert_eq!(run.n_remembered, 0);
    }
}

/// Runs that come and go in an engine find what others have read, and its memory has a bound. Attention's sums depend
/// on where the cells of those others are in the cache, with a store as without.
#[test]
fn engines_share_a_store_of_limited_size() {
    let mut bare = session(exact_options());
    let prompts = ["00.png", "05.png", "09.png"].map(|name| prompt(&bare, DESCRIBE, name));
    let alone = prompts
        .each_ref()
        .map(|prompt| bare.run(prompt, everything(6)).expect("it runs"));
    let n_bytes = {
        let store = PromptStore::in_memory(MAX_BYTES);
        session(with_store(&store))
            .run(&prompts[0], everything(6))
            .expect("it runs");
        store.n_bytes()
    };
    // Room for one, for two, for all.
    for max_bytes in [3 * n_bytes / 2, 5 * n_bytes / 2, MAX_BYTES] {
        let store = PromptStore::in_memory(max_bytes);
        let session = session(with_store(&store));
        let size = EngineSize {
            n_tokens: prompts[0].tokens().len() + 16,
            n_sequences: 2,
            n_shared: 0,
            n_together: 0,
        };
        let mut n_remembered = 0;
        for which in [[0, 1], [0, 0], [2, 1], [1, 2]] {
            let mut engine = session.model().engine(size).expect("there is memory");
            let mut admitted = Vec::new();
            let mut ended = Vec::new();
            for i in which {
                let request = Request::new(Arc::new(prompts[i].clone()), everything(6));
                admitted.push((engine.admit(request).expect("there is room"), i));
                let step = engine.step(&mut |_, _: Step<'_>| ControlFlow::Continue(()));
                ended.extend(step.expect("it steps"));
            }
            while !engine.is_idle() {
                let step = engine.step(&mut |_, _: Step<'_>| ControlFlow::Continue(()));
                ended.extend(step.expect("it steps"));
            }
            for (id, run) in ended {
                let (_, i) = admitted.iter().find(|(of, _)| *of == id).expect("admitted");
                let run = run.expect("it runs");
                n_remembered += run.n_remembered;
                assert_eq!(run.token_ids, alone[*i].token_ids);
                let error = relative_error(&run.logits, &alone[*i].logits);
                assert!(error < NEIGHBOURS, "{error:.2e}");
                assert!(store.n_bytes() <= max_bytes);
            }
        }
        assert!(n_remembered > 0, "{max_bytes}");
    }
}

/// A remembered prompt whose run is cancelled before it is given to llama.cpp is no damaged one.
#[test]
fn a_cancelled_run_of_a_remembered_prompt_is_interrupted() {
    let store = PromptStore::in_memory(MAX_BYTES);
    let mut session = session(with_store(&store));
    let prompt = prompt(&session, DESCRIBE, "00.png");
    let expected = session.run(&prompt, everything(4)).expect("it runs");
    for keep in [Keep::ALL, Keep::default()] {
        let cancelled = RunOptions {
            keep,
            ..everything(4)
        };
        cancelled.cancel.cancel();
        let Err(error) = session.run(&prompt, cancelled) else {
            panic!("there is no result yet");
        };
        assert!(error.is_interrupted(), "{error}");
    }
    let again = session.run(&prompt, everything(4)).expect("it runs");
    assert_eq!(again.token_ids, expected.token_ids);
    assert!(again.n_remembered > 0, "nothing was remembered");
}
