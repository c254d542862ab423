//! Several runs side by side are each the run alone, and a sweep's numbers are their formulas'.

use gguf_tools::gguf::TensorType;
use std::ops::ControlFlow;
use std::sync::Arc;

use llava_sae_cpp::steering::{Positions, Steering};
use llava_sae_cpp::{Keep, PromptForm, RunOptions, Session, SessionOptions, Token};

use crate::bad_input::{check, send};
use crate::command_line::{json, program, run, stdout};
use crate::fixture::{Fixture, NEIGHBOURS, bound, exact_options, prompt, relative_error, steering};

const PICTURE: &str = "00.png";

/// Greedy runs of this many tokens.
fn tokens(max_tokens: usize) -> RunOptions {
    RunOptions {
        max_tokens,
        ..RunOptions::default()
    }
}

#[test]
fn each_sequence_is_the_run_alone() {
    let oracle = Fixture::Demo.oracle();
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
    let (feature, strength, _) = oracle.steered(PICTURE)[0].clone();
    let steerings: Vec<Arc<Steering>> = [-1.0, -0.5, 0.5, 1.0, 1.5]
        .map(|part| steering(&mut session, feature, part * strength, Positions::ALL))
        .into();
    let sweep = session
        .sweep(&prompt, &steerings, &tokens(24))
        .expect("the sweep succeeds");
    assert_eq!(sweep.steered.len(), steerings.len());
    for (i, (steering, together)) in steerings.iter().zip(&sweep.steered).enumerate() {
        let options = RunOptions {
            steering: Some(steering.clone()),
            keep: Keep {
                logits: true,
                ..Keep::default()
            },
            max_tokens: 24,
            ..RunOptions::default()
        };
        let alone = session
            .run(&prompt, options.clone())
            .expect("the run succeeds");
        assert_eq!(together.run.token_ids, alone.token_ids, "run {i}");
        assert_eq!(together.run.text, alone.text, "run {i}");
        assert_eq!(together.run.stop, alone.stop, "run {i}");
        let error = relative_error(&together.run.logits, &alone.logits);
        assert!(error < NEIGHBOURS, "run {i}: logits {error:.2e}");
    }
}

/// Rows of runs side by side reach their own trace: features and residuals are those of the run alone.
#[test]
fn each_trace_is_that_of_the_run_alone() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
    let options = RunOptions {
        steering: None,
        keep: Keep::ALL,
        max_tokens: 6,
        ..RunOptions::default()
    };
    let alone = session
        .run(&prompt, options.clone())
        .expect("the run succeeds");
    let nothing_kept = RunOptions {
        keep: Keep::default(),
        ..options.clone()
    };
    let runs = session
        .run_side_by_side(
            &prompt,
            vec![options.clone(), nothing_kept, options],
            &mut |_, _| ControlFlow::Continue(()),
        )
        .expect("the runs succeed");
    assert!(runs[1].trace.saes[0].residuals.is_empty());
    for run in [&runs[0], &runs[2]] {
        assert_eq!(run.trace.tokens, alone.trace.tokens);
        assert_eq!(
            run.trace.saes[0].activations.n_rows(),
            alone.trace.tokens.len()
        );
        let error = relative_error(&run.trace.saes[0].residuals, &alone.trace.saes[0].residuals);
        assert!(error < NEIGHBOURS, "residuals {error:.2e}");
    }
}

#[test]
fn the_original_scores_best_and_nothing_diverges_at_strength_0() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
    let (feature, strength, _) = Fixture::Demo.oracle().steered(PICTURE)[0].clone();
    let steerings: Vec<Arc<Steering>> = [0.0, 4.0]
        .map(|part| steering(&mut session, feature, part * strength, Positions::ALL))
        .into();
    let sweep = session
        .sweep(&prompt, &steerings, &tokens(24))
        .expect("the sweep succeeds");
    let original = sweep.original.mean_log_prob.expect("a text");
    let [nothing, much] = &sweep.steered[..] else {
        panic!("two strengths");
    };
    assert!(nothing.kl < Some(1e-9), "{:?}", nothing.kl);
    let same = nothing.mean_log_prob.expect("a text");
    assert_eq!(nothing.run.token_ids, sweep.original.run.token_ids);
    assert_eq!(same, original);
    assert!(much.kl > nothing.kl);
    assert!(much.mean_log_prob.expect("a text") < original - 0.1);
}

/// Log-probabilities of logits.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| x - max - sum.ln()).collect()
}

/// KL along the original's text, beside the distributions of runs by themselves, one for each token
/// and steering, on a prompt that is longer by the tokens before it.
#[test]
fn kl_is_the_mean_along_the_originals_tokens() {
    const N_TOKENS: usize = 10;
    let mut session = Fixture::Demo.exact_session();
    let picture = Fixture::Demo.open_picture(PICTURE);
    let image = session.encode_image(&picture).expect("it is encoded");
    let start = "<bos><start_of_turn>user\n<image>\nDescribe the image.<end_of_turn>\n\
        <start_of_turn>model\n";
    let prompt_of = |session: &mut Session, text: &str| {
        let text = format!("{start}{text}");
        let prompt = session.prompt(&text, PromptForm::Raw, &[&image]);
        prompt.expect("a valid prompt")
    };
    let prompt = prompt_of(&mut session, "");
    let (feature, strength, _) = Fixture::Demo.oracle().steered(PICTURE)[0].clone();
    let steerings = [("all", 1.0), ("image", 1.5), ("all,no-special", -1.0)].map(|(at, part)| {
        let at = Positions::parse(at).expect("valid positions");
        steering(&mut session, feature, part * strength, at)
    });
    let sweep = session
        .sweep(&prompt, &steerings, &tokens(N_TOKENS))
        .expect("the sweep succeeds");
    assert_eq!(sweep.original.kl, Some(0.0));
    let ids = &sweep.original.run.token_ids;
    assert_eq!(ids.len(), N_TOKENS);

    let mut text = String::new();
    let mut sums = [0.0; 3];
    let mut log_prob_sum = 0.0;
    for (i, &id) in ids.iter().enumerate() {
        let longer = prompt_of(&mut session, &text);
        let before: Vec<_> = longer
            .tokens()
            .iter()
            .filter_map(|token| token.id)
            .collect();
        assert!(
            before.ends_with(&ids[..i]),
            "`{text}` is tokenised as it was generated"
        );
        let mut distribution = |steering: Option<&Arc<Steering>>| {
            let options = RunOptions {
                steering: steering.cloned(),
                keep: Keep {
                    logits: true,
                    ..Keep::default()
                },
                max_tokens: 0,
                ..RunOptions::default()
            };
            let run = session.run(&longer, options);
            log_softmax(&run.expect("the run succeeds").logits)
        };
        let p = distribution(None);
        log_prob_sum += p[usize::try_from(id).expect("an id")];
        for ((steering, sum), scored) in steerings.iter().zip(&mut sums).zip(&sweep.steered) {
            let q = distribution(Some(steering));
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
            *sum += kl;
            if i == 0 {
                assert!((kl - scored.first_kl).abs() < 1e-4 * kl.max(1.0), "{kl}");
            }
        }
        let piece = session.token_text(Token::generated(id));
        text.push_str(&piece.expect("a text token"));
    }
    for (sum, scored) in sums.iter().zip(&sweep.steered) {
        let (mean, kl) = (sum / N_TOKENS as f64, scored.kl.expect("not interrupted"));
        // Logits of runs side by side are `NEIGHBOURS` apart, and a mean of some nats is the harder
        // the smaller.
        assert!(
            (kl - mean).abs() < bound(1e-3, 1e-3, 1e-2) * mean.max(0.1),
            "{kl}, by itself {mean}"
        );
    }
    let mean = log_prob_sum / N_TOKENS as f64;
    let ours = sweep.original.mean_log_prob.expect("a text");
    let error = (ours - mean).abs(); // of logits that are `NEIGHBOURS` apart, as above
    assert!(error < bound(1e-3, 1e-3, 1e-2), "{ours}, by itself {mean}");
    assert!(sums[0] > 0.1, "the interventions have an effect: {sums:?}");
}

/// Texts are scored in graphs of few rows too.
#[test]
fn short_graphs_give_the_same_numbers() {
    let swept = |n_ubatch| {
        let options = SessionOptions {
            n_ubatch,
            ..exact_options()
        };
        let mut session = Fixture::Demo.session(TensorType::F32, options);
        let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
        let (feature, strength, _) = Fixture::Demo.oracle().steered(PICTURE)[0].clone();
        let steerings = [steering(&mut session, feature, strength, Positions::ALL)];
        let sweep = session.sweep(&prompt, &steerings, &tokens(12));
        sweep.expect("the sweep succeeds")
    };
    let (ours, theirs) = (swept(5), swept(512));
    for (ours, theirs) in [
        (&ours.original, &theirs.original),
        (&ours.steered[0], &theirs.steered[0]),
    ] {
        assert_eq!(ours.run.token_ids, theirs.run.token_ids);
        assert!(ours.run.token_ids.len() > 5, "several graphs");
        for (ours, theirs) in [
            (ours.kl, theirs.kl),
            (ours.mean_log_prob, theirs.mean_log_prob),
        ] {
            let (ours, theirs) = (ours.expect("a number"), theirs.expect("a number"));
            // Logits differ as those of runs with neighbours do, and both are means of them.
            let error = (ours - theirs).abs();
            assert!(error < 10.0 * NEIGHBOURS, "{ours} and {theirs}");
        }
    }
}

/// What is steered in the text only begins behind the first token.
#[test]
fn kl_sees_what_the_first_token_does_not() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, PICTURE);
    let (feature, strength, _) = Fixture::Demo.oracle().steered(PICTURE)[0].clone();
    let generated = Positions::parse("generated").expect("valid positions");
    let steerings = [steering(&mut session, feature, 4.0 * strength, generated)];
    let sweep = session
        .sweep(&prompt, &steerings, &tokens(24))
        .expect("the sweep succeeds");
    let [steered] = &sweep.steered[..] else {
        panic!("one strength");
    };
    assert!(steered.first_kl < 1e-9, "{}", steered.first_kl);
    assert!(steered.kl > Some(0.1), "{:?}", steered.kl);
}

#[test]
fn the_command_prints_a_table() {
    let picture = "assets/pictures/carrot-mushroom.png";
    let sweep = [
        "sweep",
        "-q",
        "--steer",
        "carrot:-16..0:8",
        "--at",
        "image",
        "--word",
        "carrot",
    ];
    let table = stdout(&[&sweep[..], &[picture]].concat());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 6, "{table}");
    assert!(lines[0].contains("`carrot` steered at image"), "{table}");
    for (line, start, answer) in [
        (lines[2], "  original", "yes"),
        (lines[3], "       -16", "no"),
        (lines[5], "         0", "yes"),
    ] {
        assert!(line.starts_with(start), "{table}");
        assert_eq!(line.split_whitespace().nth(3), Some(answer), "{table}");
    }
    let report = json(&[&sweep[..], &["--json", picture]].concat());
    assert_eq!(report["steered"][1]["strength"], -8.0);
    assert_eq!(report["original"]["has_word"], true);
    let kl = |key: &str| report["steered"][0][key].as_f64().expect("a number");
    // The first token is always `The`.
    assert!(kl("first_kl") < 0.05 && kl("kl") > 0.1, "{report}");
}

#[test]
fn bad_ranges_are_refused() {
    for (range, reason) in [
        ("carrot:0..4:0", "a step of 0"),
        ("carrot:0..4:-1", "do not lead"),
        ("carrot:0..4", "expected a feature"),
        ("carrot:0..1000:1", "255 fit"),
    ] {
        let output = run(&[
            "sweep",
            "--steer",
            range,
            "assets/pictures/carrot-mushroom.png",
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{range}: {stderr}");
        assert!(stderr.contains(reason), "{range}: {stderr}");
    }
}

/// The caches of two runs of this length take more memory than any machine has, and one does too.
#[test]
fn caches_that_do_not_fit_are_refused() {
    let long = ["-c", "2000000000", "assets/pictures/carrot-mushroom.png"];
    let sweep = ["sweep", "--steer", "carrot:-8..0:8"];
    let words = ["3 runs", "GB are free", "runs fit", "hint: "];
    check(&[&sweep[..], &long].concat(), 1, &words);
    let words = ["a context of 2000000000 tokens", "`--ctx-size`"];
    check(&long, 1, &words);
}

/// Ctrl-C prints the table as far as it is.
#[cfg(unix)]
#[test]
fn ctrl_c_prints_what_there_is() {
    let dir = Fixture::Tiny.converted(TensorType::F32);
    let dir = dir.to_str().expect("a plain path");
    let picture = "tests/fixtures/tiny/pictures/00.png";
    let long = ["-n", "1000000", "-c", "100000"];
    let sweep = ["sweep", "-d", dir, "--steer", "17:0..2:1", picture];
    // It shows nothing before its end, so it gets longer and longer to begin.
    for seconds in [1, 4, 16, 64] {
        let child = program()
            .args([&sweep[..], &long].concat())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn();
        let child = child.expect("the program starts");
        std::thread::sleep(std::time::Duration::from_secs(seconds));
        send("INT", &child);
        let output = child.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        let table = String::from_utf8_lossy(&output.stdout);
        if !table.is_empty() {
            assert_eq!(table.lines().count(), 6, "{table}");
            return;
        }
    }
    panic!("the table is never printed");
}
