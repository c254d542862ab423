//! `explain`: what raised a word, beside transformers' numbers, and what is refused.

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::explain::{Ablated, Answer, Cause, ExplainOptions, Explanation};
use llava_sae_cpp::steering::{Change, Intervention, Positions};
use llava_sae_cpp::{CancelFlag, ErrorKind, PromptForm, RunOptions, Session, SessionOptions};
use serde_json::Value;

use crate::bad_input::check;
use crate::command_line::{json, stdout};
use crate::fixture::{F32, Fixture, NEIGHBOURS, bound, exact_options, prompt};
use crate::several_saes;

const PICTURE: &str = "assets/pictures/carrot-mushroom.png";

fn options(answer: Answer, n_candidates: usize) -> ExplainOptions {
    ExplainOptions {
        answer,
        n_candidates,
        n_patches: 8,
        cancel: CancelFlag::default(),
    }
}

fn own_answer() -> Answer {
    Answer::Generated {
        max_tokens: 48,
        sampling: Default::default(),
    }
}

/// Why the demo says `word` of one of its pictures.
fn explain(
    session: &mut Session,
    picture: &str,
    word: &str,
    answer: Answer,
    n_candidates: usize,
) -> Explanation {
    let prompt = prompt(session, Fixture::Demo, picture);
    let options = options(answer, n_candidates);
    let found = session.explain(&prompt, word, &options, &mut |_| {});
    found.expect("the word is there")
}

fn cause<'a>(found: &'a Explanation, feature: usize, at: &str) -> &'a Cause {
    let mut causes = found.causes.iter();
    let found = causes.find(|one| one.feature.index == feature && one.at.to_string() == at);
    found.unwrap_or_else(|| panic!("feature {feature} at {at} is large"))
}

/// Log-probabilities of words, effects of features at images, tokens, answers and patches, and direct effects are
/// those of `make_explain.py`, which takes the same from transformers' rows.
#[test]
fn effects_are_those_of_transformers() {
    let cases = std::fs::read(Fixture::Demo.dir().join("explain.json"));
    let cases: Vec<Value> =
        serde_json::from_slice(&cases.expect("a committed file")).expect("JSON");
    let mut session = Fixture::Demo.exact_session();
    for case in &cases {
        let text = |key: &str| case[key].as_str();
        let answer =
            text("answer").map_or_else(own_answer, |given| Answer::Given(given.to_owned()));
        let (picture, word) = (
            text("picture").expect("a name"),
            text("word").expect("a word"),
        );
        // More than there: which is the last one may turn on rounding.
        let n_candidates = case["effects"].as_array().expect("a list").len() + 3;
        let found = explain(&mut session, picture, word, answer, n_candidates);
        assert_eq!(
            found.pieces.concat(),
            case["text"].as_str().expect("a text")
        );
        assert_eq!(
            found.word.start as u64,
            case["start"].as_u64().expect("an index")
        );
        assert_eq!(found.pieces[1].trim(), word);
        let number = |value: &Value| value.as_f64().expect("a number");
        // An effect is the difference of two log-probabilities, each of logits that are `F32` apart.
        let is_near = |ours: f64, theirs: f64, what: &str| {
            let error = (ours - theirs).abs() / theirs.abs().max(1.0);
            assert!(
                error < 2.0 * F32,
                "{picture}, {word}, {what}: {ours}, {theirs}"
            );
        };
        is_near(found.log_prob, number(&case["log_prob"]), "log-probability");
        assert!(found.causes.is_sorted_by(|a, b| a.effect >= b.effect));
        for theirs in case["effects"].as_array().expect("a list") {
            let feature = theirs["feature"].as_u64().expect("an index") as usize;
            let ours = cause(&found, feature, theirs["at"].as_str().expect("positions"));
            is_near(ours.effect, number(&theirs["effect"]), &format!("{theirs}"));
            let direct = ours.direct_effect.map(f64::from);
            assert_eq!(
                direct.is_some(),
                theirs["direct_effect"].is_number(),
                "{theirs}"
            );
            if let Some(ours) = direct {
                is_near(
                    ours,
                    number(&theirs["direct_effect"]),
                    &format!("{theirs}, direct"),
                );
            }
        }
        let feature = case["patches"]["feature"].as_u64().expect("an index") as usize;
        let by_patch = &cause(&found, feature, "image").patches;
        assert!(by_patch.is_sorted_by(|a, b| a.effect >= b.effect));
        // Where few patches are active, they are all.
        let of_image = cause(&found, feature, "image");
        if by_patch.len() == of_image.active.len() {
            let together = of_image.patches_effect.expect("it was tried");
            is_near(of_image.effect, together, "patches together");
        }
        for theirs in case["patches"]["effects"].as_array().expect("a list") {
            let mut ours = by_patch.iter();
            let ours = ours.find(|one| Some(one.position as u64) == theirs[0].as_u64());
            let ours = ours.expect("the most active patches");
            is_near(ours.effect, number(&theirs[1]), &format!("patch {theirs}"));
        }
    }
}

/// A word that is the answer's first is what a run with the feature ablated says of it.
#[test]
fn effects_are_those_of_the_run_alone() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let found = explain(&mut session, "00.png", "The", own_answer(), 12);
    assert_eq!(found.word, 0..1);
    let mut log_prob = |ablated: Option<&Cause>| {
        let steering = ablated.map(|cause| {
            let ablate = Intervention::new(cause.feature, Change::ablate());
            let steering = session.model().steering(vec![ablate.at(cause.at.clone())]);
            steering.expect("the feature exists")
        });
        let options = RunOptions {
            steering,
            max_tokens: 1,
            top_log_probs: Some(20),
            ..RunOptions::default()
        };
        let run = session.run(&prompt, options).expect("the run succeeds");
        let mut top = run.log_probs[0].top.iter();
        top.find(|one| one.0 == found.token_ids[0])
            .expect("likely")
            .1
    };
    let original = log_prob(None);
    assert!((found.log_prob - original).abs() < NEIGHBOURS);
    for cause in &found.causes {
        let alone = original - log_prob(Some(cause));
        // Differences of log-probabilities of runs beside others.
        assert!(
            (cause.effect - alone).abs() < bound(1e-3, 1e-3, 1e-2),
            "{cause:?}, alone {alone}"
        );
    }
}

/// Candidates have the same effects whatever is ablated beside them, and an answer that is given those of the
/// model's own.
#[test]
fn what_else_is_tried_changes_nothing() {
    let mut session = Fixture::Demo.exact_session();
    let many = explain(&mut session, "08.png", "mushroom", own_answer(), 20);
    let same = Answer::Given(many.pieces.concat());
    for few in [
        explain(&mut session, "08.png", "mushroom", own_answer(), 3),
        explain(&mut session, "08.png", "MUSHROOM", same, 3),
    ] {
        assert_eq!(few.causes.len(), 3);
        assert_eq!((few.n_active, &few.word), (many.n_active, &many.word));
        for ours in &few.causes {
            let theirs = cause(&many, ours.feature.index, &ours.at.to_string());
            assert_eq!(ours.active.len(), theirs.active.len());
            let error = (ours.effect - theirs.effect).abs();
            assert!(error < bound(1e-3, 1e-3, 1e-2), "{ours:?}, {theirs:?}");
        }
    }
}

/// In a word of several tokens, the log-probabilities of all count.
#[test]
fn words_of_several_tokens() {
    let mut session = Fixture::Demo.exact_session();
    let mut of = |word: &str| explain(&mut session, "08.png", word, own_answer(), 1).log_prob;
    let (both, parts) = (of("carrot at"), of("carrot") + of("at"));
    assert!((both - parts).abs() < F32, "{both}, {parts}");
    assert!(both < 0.0);
}

/// It says how far it has come, patches too, and a cancelled one is an error.
#[test]
fn progress_and_cancellation() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let mut heard: Vec<Ablated> = Vec::new();
    let wanted = options(own_answer(), 10);
    let found = session.explain(&prompt, "apple", &wanted, &mut |done| heard.push(done));
    let found = found.expect("the word is there");
    let tried = found
        .causes
        .iter()
        .filter(|cause| cause.patches_effect.is_some());
    let by_patch: usize = tried.map(|cause| cause.patches.len() + 1).sum(); // and together
    let last = heard.last().expect("it was told");
    assert_eq!((last.n_done, last.n_in_all), (10 + by_patch, 10 + by_patch));
    assert!(heard.len() > 2 && by_patch > 0);

    let flag = wanted.cancel.clone();
    let stopped = session.explain(&prompt, "apple", &wanted, &mut |_| flag.cancel());
    assert_eq!(
        stopped.expect_err("cancelled").kind(),
        ErrorKind::Interrupted
    );
}

/// A text without a picture has its tokens and its answer, and no patches.
#[test]
fn texts_are_explained_too() {
    let mut session = Fixture::Demo.exact_session();
    let prompt = session.prompt("The dog sees the", PromptForm::Raw, &[]);
    let prompt = prompt.expect("known characters");
    let run = RunOptions {
        max_tokens: 1,
        ..RunOptions::default()
    };
    let next = session.run(&prompt, run).expect("the run succeeds").text;
    let wanted = options(own_answer(), 200);
    let found = session.explain(&prompt, next.trim(), &wanted, &mut |_| {});
    let found = found.expect("the word is there");
    assert_eq!(found.word.start, 0);
    let last = Positions::parse(&(prompt.tokens().len() - 1).to_string()).expect("an index");
    for cause in &found.causes {
        assert_eq!(cause.direct_effect.is_some(), cause.at == last, "{cause:?}");
        assert!(cause.patches.is_empty());
        assert!(cause.active[0].0 > 0, "special tokens are left out");
    }
}

#[test]
fn the_command_prints_a_table() {
    let args = ["explain", "-q", "--word", "mushroom", "--top", "4"];
    let table = stdout(&[&args[..], &[PICTURE]].concat());
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("Answer: The image shows a carrot"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("Word `mushroom`: log-probability -0.0"),
        "{table}"
    );
    assert!(lines[1].contains("of 32 candidates among "), "{table}");
    assert!(lines[3].starts_with("     1      766  image "), "{table}");
    assert!(lines[3].ends_with("  mushroom"), "{table}");
    assert!(lines[6].starts_with("     4  "), "{table}");
    let by_patch = "Feature 766 at the patches 4,6 ";
    assert!(lines[7].starts_with(by_patch), "{table}");
    assert!(lines[7].contains(" raised it by 2."), "{table}");
    let report = json(&[&args[..], &["--json", PICTURE]].concat());
    assert_eq!(report["causes"].as_array().expect("a list").len(), 4);
    let first = &report["causes"][0];
    assert_eq!(
        (&first["feature"], &first["at"]),
        (&766.into(), &"image".into())
    );
    let effect = first["patches"][0]["effect"].as_f64().expect("a number");
    assert!(lines[7].contains(&format!(" {effect:.3}")), "{table}");
    assert_eq!(report["word_tokens"][0]["text"], " mushroom");
}

/// With several SAEs, features have their SAE's name, and what only one knows is the same as with that alone.
#[test]
fn several_saes_are_searched() {
    let dir = Fixture::Demo.converted(TensorType::F32);
    let saes = several_saes::saes("explain");
    let with = several_saes::with(&dir, &saes);
    let args = [
        "explain",
        "-q",
        "--json",
        "--word",
        "mushroom",
        "--top",
        "60",
        "--candidates",
        "60",
    ];
    let both = json(&[&args[..], &with, &[PICTURE]].concat());
    let alone = json(&[&args[..], &several_saes::with(&dir, &saes[1..]), &[PICTURE]].concat());
    let effect = |report: &Value, feature: Value| {
        let mut causes = report["causes"].as_array().expect("a list").iter();
        let found = causes.find(|one| one["feature"] == feature && one["at"] == "image");
        found.expect("it is large")["effect"]
            .as_f64()
            .expect("a number")
    };
    let (both, alone) = (
        effect(&both, "upper/766".into()),
        effect(&alone, 766.into()),
    );
    assert!(
        (both - alone).abs() < bound(1e-2, 1e-2, 5e-2),
        "{both}, {alone}"
    );
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let explain = |args: &[&str], code, words: &[&str]| {
        check(&[&["explain", "-q"], args].concat(), code, words);
    };
    let answer =
        "`The image shows a carrot at the bottom and a mushroom on the right, on calm water.`";
    explain(
        &["--word", "dog", PICTURE],
        1,
        &[
            "the word `dog` is not in the answer: ",
            answer,
            "hint: take a word of the answer",
        ],
    );
    explain(
        &["--word", "mush", PICTURE],
        1,
        &["`mush` is not in the answer"],
    );
    explain(
        &["--word", " ", PICTURE],
        1,
        &["the word that is to be explained is empty", "hint: "],
    );
    explain(
        &["--word", "dog", "-n", "0", PICTURE],
        1,
        &["not in the answer: ``"],
    );
    explain(
        &["--word", "dog", "--answer", "", PICTURE],
        1,
        &["not in the answer: ``"],
    );
    explain(&["--word", "dog"], 2, &["IMAGE"]);
    explain(&[PICTURE], 2, &["--word <TEXT>"]);
    explain(
        &["--word", "a", "--answer", "a", "-n", "3", PICTURE],
        2,
        &["--answer"],
    );
    explain(
        &["--word", "a", "--candidates", "0", PICTURE],
        2,
        &["--candidates"],
    );
    explain(
        &["--word", "a", "no-such-picture.png"],
        1,
        &["no-such-picture.png"],
    );
    explain(
        &["--word", "a", "--html", PICTURE, PICTURE],
        1,
        &["it is an input", "hint: "],
    );
    explain(&["--word", "a", "--force", PICTURE], 2, &["--html <FILE>"]);
    explain(
        &[
            "--word",
            "dog",
            "--ctx-size",
            "82",
            "--answer",
            "A cat and a dog.",
            PICTURE,
        ],
        1,
        &["context", "`--ctx-size`"],
    );
}

/// A context of a fixed length has to hold the prompt and a given answer.
#[test]
fn given_answers_have_to_fit() {
    let short = SessionOptions {
        context_size: 80,
        ..exact_options()
    };
    let mut session = Fixture::Demo.session(TensorType::F32, short);
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let mut explain = |answer: &str, word| {
        let wanted = options(Answer::Given(answer.to_owned()), 3);
        session.explain(&prompt, word, &wanted, &mut |_| {})
    };
    let error = explain("A cat and a dog.", "dog").expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::ContextTooSmall);
    assert_eq!(explain("A dog", "A").expect("it fits").causes.len(), 3);
}
