//! `metrics`: fits against their formulas in f64, losses against transformers.

use std::sync::Arc;

use gguf_tools::gguf::TensorType;
use llava_sae_cpp::metrics::{self, Fit, Metrics};
use llava_sae_cpp::{
    CancelFlag, Decoder, Keep, ModelFiles, Prompt, PromptForm, RunOptions, Session, SessionOptions,
    Token, TokenKind, TryShortcuts,
};

use crate::bad_input::check;
use crate::command_line::{json, run, stdout};
use crate::fixture::{Fixture, Oracle, everything, exact_options, prompt, temporary_root};
use crate::{hook_points, several_saes};

fn close(ours: Option<f64>, expected: f64, tolerance: f64, what: &str) {
    let ours = ours.unwrap_or_else(|| panic!("{what} is there"));
    let error = (ours - expected).abs() / expected.abs().max(1e-6);
    assert!(error < tolerance, "{what}: {ours}, expected {expected}");
}

/// A row, its reconstruction, and how many features are active in it.
type Reconstructed = (Vec<f64>, Vec<f64>, usize);

/// The rows of one kind; those of `<bos>` and of the marks of turns do not count.
fn rows(session: &mut Session, prompt: &Prompt, kind: TokenKind) -> Vec<Reconstructed> {
    let options = RunOptions {
        steering: None,
        keep: Keep::ALL,
        max_tokens: 0,
        ..RunOptions::default()
    };
    let run = session.run(prompt, options);
    let trace = run.expect("the run succeeds").trace;
    let is_special = |token: &Token| {
        let text = session.token_text(*token).unwrap_or_default();
        text.starts_with('<') && text.ends_with('>')
    };
    let is_special: Vec<bool> = trace.tokens.iter().map(is_special).collect();
    let sae = session.sae();
    let d_in = sae.meta().d_in;
    let b_dec = sae.b_dec();
    let mut found = Vec::new();
    for (i, row) in trace.saes[0].residuals.chunks_exact(d_in).enumerate() {
        if trace.tokens[i].kind != kind || is_special[i] {
            continue;
        }
        let mut y: Vec<f64> = b_dec.iter().map(|&b| f64::from(b)).collect();
        let mut n_active = 0;
        for (feature, activation) in trace.saes[0].activations.row(i) {
            let direction = sae.decoder_direction(feature).expect("it exists").row;
            for (y, value) in y.iter_mut().zip(direction) {
                *y += f64::from(activation) * f64::from(value);
            }
            n_active += 1;
        }
        let x = row.iter().map(|&x| f64::from(x)).collect();
        found.push((x, y, n_active));
    }
    found
}

fn check_fit(fit: &Fit, rows: &[Reconstructed], what: &str) {
    let n = rows.len() as f64;
    let mean = |value: &dyn Fn(&Reconstructed) -> f64| rows.iter().map(value).sum::<f64>() / n;
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let distance =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    let d_in = rows[0].0.len();
    let centre: Vec<f64> = (0..d_in).map(|j| mean(&|row| row.0[j])).collect();
    let mse = mean(&|(x, y, _)| distance(x, y));
    let variance = mean(&|(x, _, _)| distance(x, &centre));
    assert_eq!(fit.n_rows(), rows.len(), "{what}");
    close(fit.l0(), mean(&|row| row.2 as f64), 1e-12, what);
    close(fit.mse(), mse, 1e-4, what);
    close(fit.explained_variance(), 1.0 - mse / variance, 1e-4, what);
    let cosine = mean(&|(x, y, _)| dot(x, y) / (dot(x, x) * dot(y, y)).sqrt());
    close(fit.cosine(), cosine, 1e-5, what);
}

#[test]
fn fits_are_what_their_formulas_say() {
    let mut session = Fixture::Demo.exact_session();
    let mut metrics = Metrics::new(&session, 0);
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for picture in ["00.png", "01.png"] {
        let prompt = prompt(&mut session, Fixture::Demo, picture);
        metrics
            .add(&mut session, &prompt, &CancelFlag::default())
            .expect("it runs");
        texts.extend(rows(&mut session, &prompt, TokenKind::Text));
        images.extend(rows(&mut session, &prompt, TokenKind::Image));
    }
    check_fit(&metrics.text, &texts, "text rows");
    check_fit(&metrics.image, &images, "image rows");
    let never = metrics.image.never_active().expect("there are rows");
    assert!((0.0..1.0).contains(&never), "{never}");
    // Of each prompt's text tokens, the one behind `<bos>` is not predicted.
    assert_eq!(metrics.loss.n_tokens(), texts.len() - 2);
}

/// Cross-entropies without the SAE, with its reconstruction and with zeros in every architecture.
#[test]
fn losses_are_those_of_transformers() {
    let oracle = Oracle::read(&hook_points::root());
    for architecture in hook_points::ARCHITECTURES {
        let files = ModelFiles {
            model: hook_points::model(architecture),
            mmproj: None,
            saes: vec![hook_points::sae_at("blocks.1.hook_resid_post", 32)],
        };
        let mut session = Session::open(&files, exact_options()).expect(architecture);
        let text = oracle.json["prompt"].as_str().expect("a text");
        let prompt = session
            .prompt(text, PromptForm::Raw, &[])
            .expect("it is tokenised");
        let mut metrics = Metrics::new(&session, 0);
        metrics
            .add(&mut session, &prompt, &CancelFlag::default())
            .expect("it runs");
        let expected = &oracle.json["losses"][architecture];
        let expected = |key: &str| expected[key].as_f64().expect("a number");
        let loss = &metrics.loss;
        let n_special = usize::from(hook_points::begins_with_bos(architecture));
        let n_predicted = prompt.tokens().len() - 1;
        assert_eq!(loss.n_tokens(), n_predicted - n_special, "{architecture}");
        for (ours, key) in [
            (loss.without_sae(), "without_sae"),
            (loss.with_sae(), "with_sae"),
            (loss.with_ablation(), "with_ablation"),
        ] {
            close(ours, expected(key), 1e-3, &format!("{architecture}, {key}"));
        }
        let score = loss
            .with_ablation()
            .zip(loss.with_sae())
            .zip(loss.without_sae());
        let ((zeros, sae), plain) = score.expect("there are tokens");
        close(
            loss.score(),
            (zeros - sae) / (zeros - plain),
            1e-9,
            architecture,
        );
    }
}

/// Blocks below the hook are computed once, and where prompts share nothing each time, to the same numbers.
#[test]
fn shared_blocks_change_no_number() {
    let dir = Fixture::Demo.converted(TensorType::F16);
    let text = "The cat sits on the mat, and a dog looks at it. ".repeat(20);
    for hook in [
        "blocks.3.hook_resid_post",
        "blocks.2.hook_mlp_out",
        "blocks.2.attn.hook_z",
        "blocks.0.hook_attn_out",
    ] {
        let sae = temporary_root().join(format!("metrics-{hook}.gguf"));
        let sae = several_saes::sae_at(hook, &sae);
        let files = ModelFiles::find(Some(&dir), None, None, vec![sae]).expect("all files");
        let measured = |share_prompts, try_shortcuts, n_ubatch| {
            let options = SessionOptions {
                threads: 1,
                gpu_layers: 0,
                share_prompts,
                try_shortcuts,
                n_ubatch,
                ..SessionOptions::default()
            };
            let mut session = Session::open(&files, options).expect("it loads");
            let mut prompts = metrics::text_prompts(&session, &text, &CancelFlag::default());
            let prompts = prompts.as_mut().expect("a text");
            assert!(prompts.len() > 1, "the last context is a short one");
            prompts.push(prompt(&mut session, Fixture::Demo, "00.png"));
            let mut metrics = Metrics::new(&session, 0);
            for prompt in prompts {
                let added = metrics.add(&mut session, prompt, &CancelFlag::default());
                added.expect("it runs");
            }
            assert!(metrics.loss.with_sae() != metrics.loss.with_ablation());
            assert!(metrics.loss.with_sae() != metrics.loss.without_sae());
            format!("{metrics:?}") // every number, to the last bit
        };
        for (tried, n_ubatch) in [(TryShortcuts::OnDevices, 512), (TryShortcuts::Always, 24)] {
            let whole = measured(false, TryShortcuts::OnDevices, n_ubatch);
            let shared = measured(true, tried, n_ubatch);
            assert!(shared == whole, "{hook}, {tried:?}");
        }
    }
}

/// Rows are those of a run, to the bit, also where a text is scored in pieces of which the last is short.
#[test]
fn rows_are_those_of_a_run() {
    let options = SessionOptions {
        threads: 1,
        gpu_layers: 0,
        ..SessionOptions::default()
    };
    let mut session = Fixture::Demo.session(TensorType::F16, options);
    let sae = Arc::clone(session.sae());
    for n_words in [20, 80, 127] {
        let text = " cat".repeat(n_words);
        let prompts = metrics::text_prompts(&session, &text, &CancelFlag::default());
        let prompt = prompts.expect("a text").remove(0);
        let mut metrics = Metrics::new(&session, 0);
        metrics
            .add(&mut session, &prompt, &CancelFlag::default())
            .expect("it runs");
        let run = session.run(&prompt, everything(0)).expect("it runs");
        let seen = &run.trace.saes[0];
        let mut decoder = Decoder::new(Arc::clone(&sae)).expect("one layer's");
        let mut squares = 0.0;
        let rows = seen.residuals.chunks_exact(sae.meta().d_in).enumerate();
        for (row_idx, row) in rows.skip(1) {
            let mut reconstruction = vec![0.0; row.len()];
            decoder
                .reconstruct(&seen.activations, row_idx, row, &mut reconstruction)
                .expect("it fits");
            for (&x, y) in row.iter().zip(reconstruction) {
                squares += (f64::from(x) - f64::from(y)).powi(2);
            }
        }
        let n_rows = prompt.tokens().len() - 1; // without `<bos>`
        assert_eq!(
            metrics.text.mse(),
            Some(squares / n_rows as f64),
            "{n_rows}"
        );
    }
}

#[test]
fn texts_are_read_in_contexts_of_128() {
    let session = Fixture::Demo.exact_session();
    let text = "the cat sits on the mat. ".repeat(60);
    let prompts = metrics::text_prompts(&session, &text, &CancelFlag::default()).expect("a text");
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens().len()).collect();
    let (last, whole) = lengths.split_last().expect("several");
    assert!(!whole.is_empty() && whole.iter().all(|&n| n == 128) && *last <= 128);
    let first = prompts[0].tokens()[0];
    assert!(prompts.iter().all(|prompt| prompt.tokens()[0] == first));
    assert!(prompts[1].tokens()[1] != first, "one beginning each");
}

#[test]
fn the_command_reports_them() {
    let picture = "assets/pictures/carrot-mushroom.png";
    let shown = stdout(&["metrics", picture]);
    assert!(
        shown.contains("explained variance") && shown.contains("Loss on"),
        "{shown}"
    );
    assert!(shown.contains("the same tokens every time"), "{shown}");
    assert!(!shown.contains("says nothing"), "{shown}");
    let report = json(&["metrics", "--json", picture]);
    assert_eq!(report["image"]["n_rows"], 64);
    assert!(report["loss"]["ce_loss_score"].as_f64().is_some());
    let dir = temporary_root().join("metrics");
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let text = dir.join("text.txt");
    std::fs::write(&text, "The image shows a carrot on the table.").expect("our own");
    let text = text.to_str().expect("a plain path");
    let alone = json(&["metrics", "--json", "--text", text]);
    assert_eq!(alone["image"]["n_rows"], 0);
    assert!(alone["image"]["l0"].is_null());
    let both = json(&["metrics", "--json", "--text", text, picture]);
    assert_eq!(both["loss"], alone["loss"]);
    assert_eq!(both["image"], report["image"]);
    // A text that the demo expects less than zeros do.
    let foreign = dir.join("foreign.txt");
    std::fs::write(
        &foreign,
        "Quartz jugglers vex nymphs; the senate adjourned on Tuesday.",
    )
    .expect("our own");
    let foreign = foreign.to_str().expect("a plain path");
    let flagged = json(&["metrics", "--json", "--text", foreign]);
    assert_eq!(flagged["loss"]["zeros_cost_nothing"], true);
    assert_eq!(report["loss"]["zeros_cost_nothing"], false);
    let shown = stdout(&["metrics", "--text", foreign]);
    assert!(shown.contains("The score says nothing here"), "{shown}");
    assert!(!shown.contains("the same tokens every time"), "{shown}");
    let prompt = json(&["metrics", "--json", "-p", "What is it?"]);
    assert!(prompt["text"]["n_rows"].as_u64() > Some(0));

    // One picture that cannot be read does not end it, and is not hidden.
    let broken = dir.join("broken.png");
    std::fs::write(&broken, "broken").expect("our own");
    let broken = broken.to_str().expect("a plain path");
    let output = run(&["metrics", "-q", "--json", broken, picture]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("skipped: ") && said.contains("skipped 1 of 2 pictures"),
        "{said}"
    );
    let rest: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&rest["image"], &rest["loss"]),
        (&report["image"], &report["loss"])
    );
    let words = ["none of the 2 pictures", "hint: "];
    check(&["metrics", broken, "missing.png"], 1, &words);
    check(&["metrics", broken], 1, &["broken.png"]);

    check(&["metrics"], 2, &["IMAGE"]);
    check(&["metrics", "--text", "missing.txt"], 1, &["missing.txt"]);
    check(&["metrics", "missing.png"], 1, &["missing.png"]);
    std::fs::write(dir.join("bad.txt"), [0xff, 0xfe, 0x00]).expect("our own");
    std::fs::write(dir.join("empty.txt"), "  \n").expect("our own");
    let path = |name: &str| dir.join(name).to_str().expect("a plain path").to_owned();
    check(
        &["metrics", "--text", &path("bad.txt")],
        1,
        &["UTF-8", "hint: "],
    );
    check(&["metrics", "--text", &path("empty.txt")], 1, &["no text"]);
}
