//! Prompts of text and image chunks beside transformers: images whose rows see one another, and rows with four
//! positions each (`tests/fixtures/make_chunks.py`).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llava_sae_cpp::steering::Positions;
use llava_sae_cpp::{
    Engine, EngineSize, Grid, ImageAttention, ImageChunk, Keep, ModelFiles, Prompt, PromptStore,
    Request, RowPositions, RunId, RunOptions, Segment, Session, SessionOptions, Step,
};

use crate::fixture::{
    F32, ON_DEVICE, Oracle, ROUNDING, everything, exact_options, largest_error, relative_error,
    steering,
};
use crate::hook_points::{self, sae_at, with_ubatch, worst_row};

pub(crate) const ARCHITECTURES: [&str; 2] = ["gemma", "qwen2vl"];
pub(crate) const HOOK: &str = "blocks.1.hook_resid_post";
pub(crate) const D_MODEL: usize = 32;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chunks")
}

pub(crate) fn session(
    architecture: &str,
    hook: &str,
    width: usize,
    options: SessionOptions,
) -> Session {
    let files = ModelFiles {
        model: hook_points::model(architecture),
        mmproj: None,
        saes: vec![sae_at(hook, width)],
    };
    Session::open(&files, options).expect("it loads")
}

/// The fixture's texts and images, in their order.
fn segments(oracle: &Oracle, architecture: &str) -> Vec<Segment> {
    let texts = oracle.json["texts"].as_array().expect("a list");
    let images = oracle.json["images"][architecture].as_array();
    let images = images.expect("a list");
    let text = |i: usize| Segment::Text(oracle.ids(&format!("{architecture}/text_{i}")));
    let image = |(i, image): (usize, &serde_json::Value)| {
        let grid: [usize; 2] = serde_json::from_value(image["grid"].clone()).expect("two numbers");
        let chunk = ImageChunk {
            rows: oracle.f32(&format!("{architecture}/image_{i}")).into(),
            width: D_MODEL,
            grid: Some(Grid::of_patches(grid[0], grid[1])),
            place: Some([0.0, 0.0, 1.0, 1.0]),
            positions: match architecture {
                "qwen2vl" => RowPositions::mrope_grid(grid),
                _ => RowPositions::InOrder,
            },
            attention: match image["bidirectional"].as_bool() {
                Some(true) => ImageAttention::Bidirectional,
                _ => ImageAttention::Causal,
            },
            image: i,
        };
        [text(i), Segment::Image(chunk)]
    };
    let pairs = images.iter().enumerate().flat_map(image);
    pairs.chain([text(texts.len() - 1)]).collect()
}

pub(crate) fn prompt(session: &Session, oracle: &Oracle, architecture: &str) -> Prompt {
    let prompt = session
        .model()
        .prompt_of_segments(segments(oracle, architecture));
    prompt.expect("the model reads it")
}

fn number(oracle: &Oracle, name: &str) -> usize {
    oracle.json[name].as_u64().expect("a number") as usize
}

/// Steered at the image rows alone, as the fixture is.
fn steered(session: &mut Session, oracle: &Oracle, architecture: &str) -> RunOptions {
    let strength = oracle.json["strengths"][architecture].as_f64();
    let strength = strength.expect("a number") as f32;
    let feature = number(oracle, "feature");
    RunOptions {
        steering: Some(steering(session, feature, strength, Positions::IMAGE)),
        ..everything(number(oracle, "max_tokens"))
    }
}

/// In one graph for each piece, and in graphs of fewer rows than an image has: images whose rows see one another
/// are in one graph all the same.
const UBATCHES: [usize; 2] = [512, 3];

#[test]
fn rows_at_every_hook_are_those_of_transformers() {
    let oracle = Oracle::read(&root());
    for architecture in ARCHITECTURES {
        for (hook, width) in [
            ("blocks.0.hook_resid_post", D_MODEL),
            ("blocks.1.hook_resid_post", D_MODEL),
            ("blocks.1.hook_mlp_out", D_MODEL),
            ("blocks.2.hook_attn_out", D_MODEL),
            (
                "blocks.2.attn.hook_z",
                if architecture == "gemma" { 48 } else { D_MODEL },
            ),
        ] {
            for n_ubatch in UBATCHES {
                let shown = format!("{architecture} {hook}, ubatches of {n_ubatch}");
                let mut session = session(architecture, hook, width, with_ubatch(n_ubatch));
                let prompt = prompt(&session, &oracle, architecture);
                let run = session.run(&prompt, everything(0)).expect("it runs");
                let theirs = oracle.f32(&format!("{architecture}/{hook}/rows"));
                let error = worst_row(&run.trace.saes[0].residuals, &theirs, width);
                println!("{shown}: {error:.1e}");
                assert!(error < F32, "{shown}: rows {error:.2e}");
                let logits = oracle.f32(&format!("{architecture}/logits"));
                let error = relative_error(&run.logits, &logits);
                assert!(error < F32, "{shown}: logits {error:.2e}");
            }
        }
    }
}

#[test]
fn texts_are_those_of_transformers() {
    let oracle = Oracle::read(&root());
    for architecture in ARCHITECTURES {
        for n_ubatch in UBATCHES {
            let mut session = session(architecture, HOOK, D_MODEL, with_ubatch(n_ubatch));
            let prompt = prompt(&session, &oracle, architecture);
            let steered = steered(&mut session, &oracle, architecture);
            for (name, options) in [
                ("greedy", everything(number(&oracle, "max_tokens"))),
                ("steered", steered),
            ] {
                let shown = format!("{architecture}, {name}, ubatches of {n_ubatch}");
                let run = session.run(&prompt, options).expect("it runs");
                let expected = oracle.ids(&format!("{architecture}/{name}_ids"));
                assert_eq!(run.token_ids, expected, "{shown}");
                let logits = match name {
                    "greedy" => "logits",
                    _ => "steered_logits",
                };
                let logits = oracle.f32(&format!("{architecture}/{logits}"));
                let error = relative_error(&run.logits, &logits);
                assert!(error < F32, "{shown}: logits {error:.2e}");
            }
        }
    }
}

/// Side by side, with the blocks below the hook computed once, and from a remembered prompt.
#[test]
fn what_runs_share_changes_no_bit() {
    let oracle = Oracle::read(&root());
    for architecture in ARCHITECTURES {
        let mut session = session(architecture, HOOK, D_MODEL, with_ubatch(3));
        let prompt = prompt(&session, &oracle, architecture);
        let steered = steered(&mut session, &oracle, architecture);
        let plain = everything(number(&oracle, "max_tokens"));
        let go_on = &mut |_, _: Step<'_>| ControlFlow::Continue(());
        let together =
            session.run_side_by_side(&prompt, vec![plain.clone(), steered.clone()], go_on);
        for (name, run) in ["greedy", "steered"]
            .iter()
            .zip(together.expect("they run"))
        {
            let expected = oracle.ids(&format!("{architecture}/{name}_ids"));
            assert_eq!(run.token_ids, expected, "{architecture}, {name}");
        }
        let alone = session.run(&prompt, steered.clone()).expect("it runs");
        let store = PromptStore::in_memory(1 << 20);
        let options = SessionOptions {
            prompt_store: Some(store),
            ..with_ubatch(3)
        };
        let mut remembering = self::session(architecture, HOOK, D_MODEL, options);
        for n_remembered in [0, prompt.tokens().len()] {
            let run = remembering.run(&prompt, steered.clone()).expect("it runs");
            assert_eq!(run.n_remembered, n_remembered, "{architecture}");
            assert_eq!(run.token_ids, alone.token_ids, "{architecture}");
            assert_eq!(run.logits, alone.logits, "{architecture}");
            let [ours, theirs] = [&run, &alone].map(|run| &run.trace.saes[0].residuals);
            assert_eq!(ours, theirs, "{architecture}");
        }
    }
}

/// A text is scored by going back to the prompt's end, which is a position of its own with M-RoPE.
#[test]
fn texts_are_scored_behind_the_prompt() {
    let oracle = Oracle::read(&root());
    for architecture in ARCHITECTURES {
        let mut session = session(architecture, HOOK, D_MODEL, exact_options());
        let prompt = prompt(&session, &oracle, architecture);
        let steered = steered(&mut session, &oracle, architecture);
        let steerings = [steered.steering.clone().expect("it is steered")];
        let sweep = session
            .sweep(&prompt, &steerings, &steered)
            .expect("it runs");
        let ours = sweep.original.mean_log_prob.expect("there is a text");
        let theirs = f64::from(oracle.f32(&format!("{architecture}/mean_log_prob"))[0]);
        assert!((ours / theirs - 1.0).abs() < F32, "{ours} beside {theirs}");
        assert_eq!(sweep.original.kl, Some(0.0));
        assert!(sweep.steered[0].kl.is_some_and(|kl| kl > 1e-3));
    }
}

fn engine(session: &Session, prompt: &Prompt, n_sequences: usize) -> Engine {
    let size = EngineSize {
        n_tokens: prompt.tokens().len() + 16,
        n_sequences,
        n_shared: 0,
        n_together: prompt.n_together(),
    };
    session.model().engine(size).expect("there is memory")
}

/// A long prompt is read piece by piece, and others get tokens in between.
#[test]
fn others_go_on_while_a_prompt_is_read() {
    let oracle = Oracle::read(&root());
    let mut session = session("gemma", HOOK, D_MODEL, with_ubatch(3));
    let prompt = Arc::new(prompt(&session, &oracle, "gemma"));
    let first = everything(12);
    let second = steered(&mut session, &oracle, "gemma");
    let [alone_first, alone_second] = [&first, &second].map(|options| {
        let run = session.run(&prompt, options.clone());
        run.expect("it runs")
    });
    let mut engine = engine(&session, &prompt, 2);
    let mut n_tokens = std::collections::BTreeMap::<RunId, usize>::new();
    let mut runs = std::collections::BTreeMap::new();
    let mut step = |engine: &mut Engine| {
        let ended = engine.step(&mut |id, step| {
            *n_tokens.entry(id).or_default() += usize::from(step.id.is_some());
            ControlFlow::Continue(())
        });
        for (id, run) in ended.expect("it steps") {
            runs.insert(id, run.expect("it runs"));
        }
        n_tokens.clone()
    };
    let first = engine.admit(Request::new(Arc::clone(&prompt), first));
    let first = first.expect("there is room");
    while step(&mut engine).is_empty() {}
    let second = engine.admit(Request::new(Arc::clone(&prompt), second));
    let second = second.expect("there is room");
    let mut n_before = 0; // tokens of the first before the second's first
    while !engine.is_idle() {
        let n_tokens = step(&mut engine);
        if !n_tokens.contains_key(&second) {
            n_before = n_tokens[&first];
        }
    }
    assert!(n_before >= 4, "{n_before} tokens while a prompt was read");
    for (id, alone) in [(first, alone_first), (second, alone_second)] {
        assert_eq!(runs[&id].token_ids, alone.token_ids);
        let [ours, theirs] = [&runs[&id], &alone].map(|run| &run.trace.saes[0].residuals);
        assert!(relative_error(ours, theirs) < F32);
    }
}

/// Rows behind those of patches show none.
#[test]
fn a_grid_may_have_newlines() {
    let session = session("gemma", HOOK, D_MODEL, exact_options());
    let chunk = ImageChunk {
        rows: vec![0.1; 6 * D_MODEL].into(),
        width: D_MODEL,
        grid: Some(Grid {
            n_rows: 2,
            n_columns: 2,
            has_newlines: true,
        }),
        place: Some([0.0, 0.0, 1.0, 1.0]),
        positions: RowPositions::InOrder,
        attention: ImageAttention::Causal,
        image: 0,
    };
    let expected = [
        Some([0, 0]),
        Some([0, 1]),
        None,
        Some([1, 0]),
        Some([1, 1]),
        None,
    ];
    assert_eq!(Vec::from_iter(chunk.patches()), expected);
    let segments = vec![Segment::Image(chunk), Segment::Text(vec![1])];
    let prompt = session.model().prompt_of_segments(segments);
    let prompt = prompt.expect("the model reads it");
    let patches = prompt.tokens()[..6].iter().map(|token| token.patch);
    assert_eq!(Vec::from_iter(patches), expected);
}

#[test]
fn what_a_model_cannot_read_is_refused() {
    let oracle = Oracle::read(&root());
    let qwen = session("qwen2vl", HOOK, D_MODEL, exact_options());
    let gemma = session("gemma", HOOK, D_MODEL, with_ubatch(3));
    let text = Segment::Text(vec![1, 7]);
    let chunk = ImageChunk {
        rows: vec![0.1; 4 * D_MODEL].into(),
        width: D_MODEL,
        grid: None,
        place: Some([0.0, 0.0, 1.0, 1.0]),
        positions: RowPositions::InOrder,
        attention: ImageAttention::Causal,
        image: 0,
    };
    let check = |session: &Session, chunk: ImageChunk, words: &str| {
        let segments = vec![Segment::Image(chunk), text.clone()];
        let error = session.model().prompt_of_segments(segments).err();
        let said = error.expect("it is refused").to_string();
        assert!(said.contains(words), "`{said}` should say `{words}`");
    };
    let wide = ImageChunk {
        width: 64,
        ..chunk.clone()
    };
    check(&gemma, wide, "expected image rows of 32 values");
    let cut = ImageChunk {
        rows: vec![0.1; 33].into(),
        ..chunk.clone()
    };
    check(&gemma, cut, "got 33 values");
    for (grid, words) in [
        (Grid::of_patches(3, 2), "no grid of 3 × 2"),
        (
            Grid::of_patches(usize::MAX, 2),
            "an image of 4 rows is no grid of",
        ),
        (Grid::of_patches(0, 0), "no grid of 0 × 0"),
        (
            Grid {
                has_newlines: true,
                ..Grid::of_patches(2, 2)
            },
            "no grid of 2 × 2 with a row behind each row of it",
        ),
    ] {
        let grid = ImageChunk {
            grid: Some(grid),
            ..chunk.clone()
        };
        check(&gemma, grid, words);
    }
    let four = |positions: Vec<[i32; 4]>, n_positions| ImageChunk {
        positions: RowPositions::Mrope {
            of_rows: positions.into(),
            n_positions,
        },
        ..chunk.clone()
    };
    check(&gemma, four(vec![[0; 4]; 4], 1), "four positions each");
    for (positions, words) in [
        (vec![[0; 4]; 3], "positions of 4 image rows"),
        (vec![[1, 0, 0, 0], [0; 4], [0; 4], [0; 4]], "do not fall"),
        (vec![[0, 0, 2, 0]; 4], "outside of the 2"),
        (vec![[0, -1, 0, 0]; 4], "outside of the 2"),
    ] {
        check(&qwen, four(positions, 2), words);
    }
    for (segments, words) in [
        (vec![Segment::Text(vec![1, 9999])], "none with the id 9999"),
        (vec![Segment::Text(vec![-1])], "none with the id -1"),
        (
            vec![text.clone(), Segment::Image(chunk.clone())],
            "no text after the image",
        ),
        (Vec::new(), "the prompt has no tokens"),
        (vec![Segment::Text(Vec::new())], "the prompt has no tokens"),
    ] {
        let error = gemma.model().prompt_of_segments(segments).err();
        let said = error.expect("it is refused").to_string();
        assert!(said.contains(words), "`{said}` should say `{words}`");
    }
    // More rows that see one another than a graph has room for, where llama.cpp would end the process.
    let prompt = Arc::new(prompt(&gemma, &oracle, "gemma"));
    let mut small = gemma
        .model()
        .engine(EngineSize {
            n_tokens: 64,
            n_sequences: 1,
            n_shared: 0,
            n_together: 5,
        })
        .expect("there is memory");
    let error = small.admit(Request::new(Arc::clone(&prompt), everything(1)));
    let said = error.expect_err("it is refused").to_string();
    assert!(said.contains("6 rows that see one another"), "{said}");
}

/// Whatever changes the numbers makes another prompt of it.
#[test]
fn what_is_read_in_another_way_is_not_remembered() {
    let oracle = Oracle::read(&root());
    for architecture in ARCHITECTURES {
        let options = SessionOptions {
            prompt_store: Some(PromptStore::in_memory(1 << 20)),
            ..exact_options()
        };
        let mut session = session(architecture, HOOK, D_MODEL, options);
        let mut is_remembered = |change: &dyn Fn(&mut ImageChunk)| {
            let mut segments = segments(&oracle, architecture);
            let Segment::Image(chunk) = &mut segments[1] else {
                panic!("the second piece is an image");
            };
            change(chunk);
            let prompt = session.model().prompt_of_segments(segments);
            let prompt = prompt.expect("the model reads it");
            let run = session.run(&prompt, everything(1)).expect("it runs");
            run.n_remembered == prompt.tokens().len()
        };
        assert!(!is_remembered(&|_| ()));
        assert!(
            is_remembered(&|chunk| chunk.place = Some([0.5; 4])),
            "{architecture}"
        );
        let others: [&dyn Fn(&mut ImageChunk); 3] = [
            &|chunk| {
                chunk.attention = match chunk.attention {
                    ImageAttention::Causal => ImageAttention::Bidirectional,
                    ImageAttention::Bidirectional => ImageAttention::Causal,
                };
            },
            &|chunk| chunk.rows = chunk.rows.iter().map(|x| x + 1.0).collect(),
            &|chunk| {
                chunk.positions = match architecture {
                    "qwen2vl" => RowPositions::InOrder,
                    _ => return chunk.rows = chunk.rows.iter().rev().copied().collect(),
                };
            },
        ];
        for (i, other) in others.into_iter().enumerate() {
            assert!(!is_remembered(other), "{architecture}, change {i}");
        }
    }
}

/// If this fails, llama.cpp reads the epsilon by itself, and `llama::norm_epsilon` can go.
#[test]
fn norms_get_the_epsilon_that_llama_cpp_misses() {
    let oracle = Oracle::read(&root());
    let logits = |eval_callback| {
        let options = SessionOptions {
            eval_callback,
            ..exact_options()
        };
        let mut session = session("qwen2vl", HOOK, D_MODEL, options);
        let prompt = prompt(&session, &oracle, "qwen2vl");
        let logits_alone = RunOptions {
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            ..RunOptions::default()
        };
        session.run(&prompt, logits_alone).expect("it runs").logits
    };
    let theirs = oracle.f32("qwen2vl/logits");
    let ours = relative_error(&logits(true), &theirs);
    let as_it_is = relative_error(&logits(false), &theirs);
    println!("{ours:.1e} beside {as_it_is:.1e}");
    assert!(
        ours < F32 && (ON_DEVICE || ours < ROUNDING && as_it_is > 3.0 * ours),
        "{ours:.1e} beside {as_it_is:.1e}"
    );
}

/// With one position a row, M-RoPE is `RoPE`: an image in order is what a text of such rows would be.
#[test]
fn rows_in_order_take_a_position_each() {
    let oracle = Oracle::read(&root());
    let mut session = session("qwen2vl", HOOK, D_MODEL, exact_options());
    let mut read = |positions: RowPositions| {
        let mut segments = segments(&oracle, "qwen2vl");
        for segment in &mut segments {
            if let Segment::Image(chunk) = segment {
                chunk.positions = match &positions {
                    RowPositions::InOrder => RowPositions::InOrder,
                    RowPositions::Mrope { .. } => {
                        let n_rows = i32::try_from(chunk.n_rows()).expect("few");
                        RowPositions::Mrope {
                            of_rows: (0..n_rows).map(|i| [i, i, i, 0]).collect(),
                            n_positions: chunk.n_rows(),
                        }
                    }
                };
            }
        }
        let prompt = session.model().prompt_of_segments(segments);
        let run = session.run(&prompt.expect("the model reads it"), everything(4));
        run.expect("it runs")
    };
    let in_order = read(RowPositions::InOrder);
    let four = read(RowPositions::mrope_grid([1, 1]));
    assert_eq!(in_order.logits, four.logits);
    let theirs = oracle.f32("qwen2vl/logits");
    assert!(
        largest_error(&in_order.logits, &theirs) > F32,
        "positions matter"
    );
}
