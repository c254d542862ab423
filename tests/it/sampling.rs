//! How tokens are chosen, and how likely they are, against the logits along the text.

use std::ops::ControlFlow;
use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::{Positions, Steering};
use llava_sae_cpp::{
    HookedModel, Keep, Kinds, Prompt, PromptForm, RunOptions, Sampling, Segment, Session, Stop,
    TokenLogProbs,
};

use crate::fixture::{F32, Fixture, exact_options, prompt, steering};

/// What differs of log-probabilities at most, where a text is read as a prompt and where it is generated: its rows are
/// summed in other orders, and a GELU is looked up in a table of f16; 1.4e-3 was seen.
pub(crate) const READ_OR_GENERATED: f64 = 10.0 * F32;

const LOGITS: Keep = Keep {
    features: Kinds::NONE,
    residuals: false,
    logits: true,
};

fn session() -> Session {
    Fixture::Demo.session(TensorType::F32, exact_options())
}

fn ids(session: &mut Session, prompt: &Prompt, sampling: Sampling) -> Vec<i32> {
    let options = RunOptions {
        max_tokens: 12,
        sampling,
        ..RunOptions::default()
    };
    session.run(prompt, options).expect("it runs").token_ids
}

/// The logits that each of `ids` is chosen from behind `prompt`, of a run of its own for each.
pub(crate) fn logits_along(
    session: &mut Session,
    prompt: &Prompt,
    ids: &[i32],
    steering: Option<Arc<Steering>>,
) -> Vec<Vec<f32>> {
    let mut logits_behind = |ids: &[i32]| {
        let options = RunOptions {
            steering: steering.clone(),
            keep: LOGITS,
            ..RunOptions::default()
        };
        let prompt = followed_by(session.model(), prompt, ids);
        let run = session.run(&prompt, options);
        run.expect("it runs").logits
    };
    // The longest first, so that one context is enough.
    let lengths = (0..ids.len()).rev();
    let mut found: Vec<_> = lengths.map(|n| logits_behind(&ids[..n])).collect();
    found.reverse();
    found
}

/// A prompt with more text behind it.
pub(crate) fn followed_by(model: &HookedModel, prompt: &Prompt, ids: &[i32]) -> Prompt {
    let mut segments = prompt.segments().to_vec();
    let Some(Segment::Text(last)) = segments.last_mut() else {
        unreachable!("prompts end with text");
    };
    last.extend(ids);
    model.prompt_of_segments(segments).expect("known ids")
}

/// `softmax(logits)`, in f64.
fn probabilities(logits: &[f32]) -> Vec<f64> {
    let powers: Vec<_> = logits.iter().map(|&x| f64::from(x).exp()).collect(); // none is large
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn most_likely(logits: &[f32]) -> i32 {
    let likelier = |a: &(i32, &f32), b: &(i32, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
    let (id, _) = (0..).zip(logits).max_by(likelier).expect("some");
    id
}

const ANYTHING: Sampling = Sampling {
    temperature: 3.0,
    seed: 1,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    frequency_penalty: 0.0,
    presence_penalty: 0.0,
};

#[test]
fn a_seed_is_a_text() {
    let mut session = session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let texts: Vec<_> = (0..4)
        .map(|seed| ids(&mut session, &prompt, Sampling { seed, ..ANYTHING }))
        .collect();
    let again = Sampling {
        seed: 2,
        ..ANYTHING
    };
    assert_eq!(ids(&mut session, &prompt, again), texts[2]);
    assert!(texts[1..].iter().all(|text| *text != texts[0]), "{texts:?}");
}

#[test]
fn one_candidate_is_the_most_likely_token() {
    let mut session = session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let greedy = ids(&mut session, &prompt, Sampling::default());
    let with = [
        Sampling {
            top_k: 1,
            ..ANYTHING
        },
        Sampling {
            top_p: 1e-9,
            ..ANYTHING
        },
        Sampling {
            min_p: 1.0,
            ..ANYTHING
        },
        Sampling {
            temperature: 1e-30, // logits divided by it are no f32
            ..ANYTHING
        },
    ];
    for sampling in with {
        let chosen = ids(&mut session, &prompt, sampling);
        assert_eq!(chosen, greedy, "{sampling:?}");
    }
}

/// Each token that was chosen is among those that `allows` names, given their probabilities and the token; without
/// the limit, some are not.
fn check_limit(sampling: Sampling, allows: impl Fn(&[f64], usize) -> bool) {
    let mut session = session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let mut are_allowed = |sampling| {
        let ids = ids(&mut session, &prompt, sampling);
        let logits = logits_along(&mut session, &prompt, &ids, None);
        let greedy = logits.iter().map(|logits| most_likely(logits));
        assert!(greedy.ne(ids.iter().copied()), "it is all most likely");
        let chosen = logits.iter().zip(ids);
        let mut allowed = chosen.map(|(logits, id)| {
            let id = usize::try_from(id).expect("an id");
            allows(&probabilities(logits), id)
        });
        allowed.all(|is_allowed| is_allowed)
    };
    assert!(are_allowed(sampling), "{sampling:?}");
    assert!(!are_allowed(ANYTHING), "the limit limits nothing");
}

/// The probability of all tokens that are likelier.
fn likelier<'a>(of: &'a [f64], id: usize) -> impl Iterator<Item = f64> + 'a {
    of.iter().copied().filter(move |&other| other > of[id])
}

#[test]
fn top_k_tokens_are_chosen_from() {
    let sampling = Sampling {
        top_k: 3,
        ..ANYTHING
    };
    check_limit(sampling, |of, id| likelier(of, id).count() < 3);
}

#[test]
fn tokens_of_probability_top_p_are_chosen_from() {
    let sampling = Sampling {
        top_p: 0.999,
        ..ANYTHING
    };
    // llama.cpp sums in f32.
    check_limit(sampling, |of, id| {
        likelier(of, id).sum::<f64>() < 0.999 + 1e-6
    });
}

#[test]
fn tokens_above_min_p_are_chosen_from() {
    let sampling = Sampling {
        min_p: 1e-5,
        ..ANYTHING
    };
    check_limit(sampling, |of, id| {
        let most = of.iter().copied().fold(0.0, f64::max);
        of[id] > 0.999e-5 * most
    });
}

/// Greedy, with penalties: the text is the argmax of the logits less the penalties of what was generated before.
#[test]
fn penalties_count_what_was_generated() {
    let mut session = session();
    let caption = Fixture::Demo.oracle().caption("00.png");
    let text = format!("{caption} {caption}");
    let prompt = session.prompt(&text, PromptForm::Chat, &[]);
    let prompt = prompt.expect("known characters");
    let in_prompt: Vec<i32> = prompt
        .tokens()
        .iter()
        .filter_map(|token| token.id)
        .collect();
    let count = |ids: &[i32], id: i32| ids.iter().filter(|&&other| other == id).count() as f32;
    let plain = ids(&mut session, &prompt, Sampling::default());
    let mut n_moved_by_prompt = 0;
    for (frequency, presence) in [(2.0, 0.0), (0.0, 2.0), (0.5, 1.5), (2.0, -1.0)] {
        let sampling = Sampling {
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..Sampling::default()
        };
        let chosen = ids(&mut session, &prompt, sampling);
        assert_ne!(chosen, plain, "{sampling:?}");
        let logits = logits_along(&mut session, &prompt, &chosen, None);
        for (n, logits) in logits.iter().enumerate() {
            let penalised = |seen: &[i32]| {
                let logits = logits.iter().zip(0..).map(|(logit, id)| {
                    let n = count(seen, id);
                    logit - n * frequency - n.min(1.0) * presence
                });
                most_likely(&logits.collect::<Vec<_>>())
            };
            assert_eq!(
                penalised(&chosen[..n]),
                chosen[n],
                "{sampling:?}, token {n}"
            );
            let with_prompt = [&in_prompt[..], &chosen[..n]].concat();
            n_moved_by_prompt += usize::from(penalised(&with_prompt) != chosen[n]);
        }
    }
    assert!(
        n_moved_by_prompt > 0,
        "the prompt's tokens would change nothing"
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut session = session();
    let prompt = session.prompt("Describe the image.", PromptForm::Chat, &[]);
    let prompt = prompt.expect("known characters");
    let greedy = Sampling::default();
    let wrong = [
        (
            Sampling {
                temperature: -0.1,
                ..greedy
            },
            "`temperature` is -0.1",
        ),
        (
            Sampling {
                temperature: f32::NAN,
                ..greedy
            },
            "`temperature` is NaN",
        ),
        (
            Sampling {
                temperature: f32::INFINITY,
                ..greedy
            },
            "`temperature` is inf",
        ),
        (
            Sampling {
                top_p: 0.0,
                ..greedy
            },
            "`top_p` is 0",
        ),
        (
            Sampling {
                top_p: 1.01,
                ..greedy
            },
            "`top_p` is 1.01",
        ),
        (
            Sampling {
                min_p: -0.01,
                ..greedy
            },
            "`min_p` is -0.01",
        ),
        (
            Sampling {
                min_p: 1.01,
                ..greedy
            },
            "`min_p` is 1.01",
        ),
        (
            Sampling {
                frequency_penalty: 2.1,
                ..greedy
            },
            "`frequency_penalty` is 2.1",
        ),
        (
            Sampling {
                presence_penalty: -2.1,
                ..greedy
            },
            "`presence_penalty` is -2.1",
        ),
        (
            Sampling {
                seed: u32::MAX,
                ..greedy
            },
            "`seed` is 4294967295",
        ),
    ];
    for (sampling, expected) in wrong {
        let options = RunOptions {
            max_tokens: 1,
            sampling,
            ..RunOptions::default()
        };
        let error = session.run(&prompt, options).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let most = Sampling {
        temperature: f32::MAX,
        top_k: usize::MAX,
        top_p: 1.0,
        min_p: 1.0,
        frequency_penalty: 2.0,
        presence_penalty: -2.0,
        seed: u32::MAX - 1,
    };
    assert!(!ids(&mut session, &prompt, most).is_empty());
}

/// Five most likely tokens, and `id`, are as likely as these logits say.
pub(crate) fn check_log_probs(found: &TokenLogProbs, id: i32, logits: &[f32], bound: f64) {
    let expected: Vec<_> = probabilities(logits).iter().map(|p| p.ln()).collect();
    let mut ranked = expected.clone();
    ranked.sort_by(|a, b| b.total_cmp(a));
    let check = |ours: f64, theirs: f64| {
        assert!((ours - theirs).abs() < bound, "{found:?}: {ours}, {theirs}");
    };
    let of = |id: i32| expected[usize::try_from(id).expect("an id")];
    check(found.log_prob, of(id));
    assert_eq!(found.top.len(), 5);
    for (&(id, log_prob), &ranked) in found.top.iter().zip(&ranked) {
        check(log_prob, of(id));
        check(log_prob, ranked);
    }
}

/// Log-probabilities are of the logits as the model gives them, whatever is chosen by.
#[test]
fn log_probabilities_are_those_of_the_logits() {
    let mut session = session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let (feature, strength, _) = Fixture::Demo.oracle().steered("00.png").remove(0);
    let steered = steering(&mut session, feature, strength, Positions::ALL);
    let penalised = Sampling {
        frequency_penalty: 1.0,
        ..ANYTHING
    };
    for (steering, sampling) in [
        (None, Sampling::default()),
        (None, penalised),
        (Some(steered), penalised),
    ] {
        let options = RunOptions {
            steering,
            sampling,
            max_tokens: 32,
            top_log_probs: Some(5),
            keep: LOGITS,
            ..RunOptions::default()
        };
        let mut shown = Vec::new();
        let run = session.run_with(&prompt, options.clone(), &mut |step| {
            assert_eq!(step.log_probs.is_some(), step.id.is_some());
            shown.extend(step.log_probs.cloned());
            ControlFlow::Continue(())
        });
        let run = run.expect("it runs");
        let is_greedy = sampling == Sampling::default();
        assert!(!is_greedy || run.stop == Stop::End, "its end is no token");
        assert_eq!(run.log_probs, shown);
        assert_eq!(run.log_probs.len(), run.token_ids.len());
        let steering = options.steering.clone();
        let logits = logits_along(&mut session, &prompt, &run.token_ids, steering);
        let found = run.log_probs.iter().zip(&run.token_ids);
        for ((found, &id), logits) in found.clone().zip(&logits) {
            check_log_probs(found, id, logits, READ_OR_GENERATED);
        }
        let (found, &id) = found.clone().next().expect("some");
        check_log_probs(found, id, &run.logits, 1e-6); // exponents in f32
        let without = RunOptions {
            top_log_probs: None,
            ..options.clone()
        };
        let without = session.run(&prompt, without).expect("it runs");
        assert_eq!(
            (without.token_ids, without.log_probs),
            (run.token_ids, vec![])
        );
        let chosen_alone = RunOptions {
            top_log_probs: Some(0),
            ..options
        };
        let chosen_alone = session.run(&prompt, chosen_alone).expect("it runs");
        for (alone, with_others) in chosen_alone.log_probs.iter().zip(&run.log_probs) {
            assert_eq!((alone.log_prob, alone.top.len()), (with_others.log_prob, 0));
        }
    }
    let too_many = RunOptions {
        top_log_probs: Some(21),
        ..RunOptions::default()
    };
    let error = too_many.check().expect_err("refused").to_string();
    assert!(error.contains("`top_log_probs` is 21"), "{error}");
}

#[test]
fn a_stop_string_ends_the_text() {
    let mut session = session();
    let prompt = prompt(&mut session, Fixture::Demo, "00.png");
    let mut run = |stop: &[&str]| {
        let options = RunOptions {
            max_tokens: 64,
            stop: stop.iter().map(|&stop| stop.to_owned()).collect(),
            ..RunOptions::default()
        };
        let mut steps = Vec::new();
        let run = session.run_with(&prompt, options, &mut |step| {
            steps.push(step.text.to_owned());
            ControlFlow::Continue(())
        });
        run.inspect(|run| assert_eq!(steps.concat(), run.text))
    };
    let caption = Fixture::Demo.oracle().caption("00.png");
    let whole = run(&["no such text", "\u{fffd}"]).expect("it runs");
    assert_eq!((&whole.text, whole.stop), (&caption, Stop::End));
    // Nine characters from some places on: within tokens and across several.
    for start in (0..caption.len()).step_by(3) {
        let stop: String = caption[start..].chars().take(9).collect();
        let before = &caption[..caption.find(&stop).expect("it is there")];
        let cut = run(&[&stop, "no such text"]).expect("it runs");
        assert_eq!(
            (&cut.text[..], cut.stop),
            (before, Stop::StopString),
            "{stop}"
        );
        assert_eq!(cut.token_ids, whole.token_ids[..cut.token_ids.len()]);
    }
    // The last token may complete it.
    let shorter = run(&[&caption[caption.len() - 4..]]).expect("it runs");
    assert_eq!(shorter.stop, Stop::StopString);
    let error = run(&["x", ""]).expect_err("refused").to_string();
    assert!(error.contains("a string in `stop` is empty"), "{error}");
}
