//! Interventions on captured rows, beside the formulas in f64.

use gguf_tools::gguf::{Overwrite, TensorType};
use gguf_tools::sae::{self, SaeFile, SaeOptions};
use llava_sae_cpp::steering::{Change, Intervention, Positions, Units};
use llava_sae_cpp::{FeatureId, Keep, ModelFiles, Prompt, Run, RunOptions, Session, Token};
use serde_json::json;

use crate::fixture::{Fixture, bound, exact_options, prompt, temporary_root};

fn feature_of(intervention: &Intervention) -> usize {
    let feature = intervention.target.feature();
    feature.expect("a feature is changed").index
}

/// The SAE's file, read in f64: the reference.
struct Reference {
    file: SaeFile,
    b_dec: Vec<f64>,     // [d_model]; zeros where it is not subtracted from rows
    b_enc: Vec<f32>,     // [d_sae]
    threshold: Vec<f32>, // [d_sae]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Reference {
    fn open(fixture: Fixture) -> Self {
        let path = fixture.converted(TensorType::F32).join("sae.gguf");
        let file = SaeFile::open(&path).expect("converted");
        let b_dec = file.b_dec().expect("readable");
        let factor = f64::from(u8::from(file.meta.apply_b_dec_to_input));
        let threshold = file.threshold().expect("readable");
        Self {
            b_dec: b_dec.iter().map(|b| factor * f64::from(*b)).collect(),
            b_enc: file.b_enc().expect("readable"),
            threshold: threshold.unwrap_or_else(|| vec![0.0; file.meta.d_sae]),
            file,
        }
    }

    fn row(&self, read: impl FnOnce(&SaeFile, &mut [f32])) -> Vec<f64> {
        let mut row = vec![0.0; self.b_dec.len()];
        read(&self.file, &mut row);
        row.into_iter().map(f64::from).collect()
    }

    fn w_dec(&self, feature: usize) -> Vec<f64> {
        self.row(|file, row| file.decoder_row(feature, row).expect("readable"))
    }

    /// `(x − b_dec) · W_enc[:, feature] + b_enc`, and whether it is above the threshold.
    fn h(&self, feature: usize, x: &[f64]) -> (f64, bool) {
        let w_enc = self.row(|file, row| file.encoder_row(feature, row).expect("readable"));
        let centred: Vec<f64> = x.iter().zip(&self.b_dec).map(|(x, b)| x - b).collect();
        let h = dot(&centred, &w_enc) + f64::from(self.b_enc[feature]);
        (h, h > f64::from(self.threshold[feature]))
    }

    /// The row of `token` after the interventions that touch it.
    fn steer(&self, interventions: &[Intervention], token: Token, x: &[f64]) -> Vec<f64> {
        let mut steered = x.to_vec();
        for intervention in interventions
            .iter()
            .filter(|one| one.at.kinds().contain(token))
        {
            let feature = feature_of(intervention);
            let w_dec = self.w_dec(feature);
            let length = dot(&w_dec, &w_dec).sqrt();
            let norm = match intervention.units {
                Units::Raw => 1.0,
                Units::Unit => length,
                Units::Usual => unreachable!("this SAE has no baseline"),
            };
            let (h, is_active) = self.h(feature, x);
            let a = if is_active { h } else { 0.0 };
            let p = dot(x, &w_dec) / length;
            let number = intervention.change.number().map_or(0.0, f64::from);
            let coefficient = match intervention.change.kind().name {
                "steer" => number / norm,
                "clamp" => number / norm - a,
                "ablate" => -a,
                "scale" => (number - 1.0) * a,
                "project" => (number - 1.0) * p / length,
                "cap" => (number.min(p) - p) / length,
                other => panic!("`{other}` has no formula here"),
            };
            for (x, w) in steered.iter_mut().zip(&w_dec) {
                *x += coefficient * w;
            }
        }
        steered
    }

    /// Whether f32 can see another activity than f64: next to the threshold, by the row's scale.
    fn is_near_threshold(&self, feature: usize, x: &[f64]) -> bool {
        let (h, _) = self.h(feature, x);
        let scale = dot(x, x).sqrt().max(1.0);
        (h - f64::from(self.threshold[feature])).abs() < 1e-5 * scale
    }
}

fn run(session: &mut Session, prompt: &Prompt, interventions: Vec<Intervention>) -> Run {
    let steering = session.model().steering(interventions).expect("it fits");
    let steered = !steering.interventions().is_empty();
    let options = RunOptions {
        steering: steered.then(|| steering.clone()),
        keep: Keep::ALL,
        max_tokens: 4,
        ..RunOptions::default()
    };
    session.run(prompt, options).expect("the run succeeds")
}

/// On how many rows each feature is active, `[d_sae]`.
fn counts(run: &Run, d_sae: usize) -> Vec<usize> {
    let mut n_active = vec![0; d_sae];
    for row_idx in 0..run.trace.tokens.len() {
        for (feature, _) in run.trace.saes[0].activations.row(row_idx) {
            n_active[feature] += 1;
        }
    }
    n_active
}

/// Features that are active on most rows, on some, and on none.
fn telling_features(run: &Run, d_sae: usize) -> [usize; 3] {
    let n_active = counts(run, d_sae);
    let n_rows = run.trace.tokens.len();
    let find = |is_wanted: &dyn Fn(usize) -> bool| {
        let found = n_active.iter().position(|&n| is_wanted(n));
        found.expect("there is such a feature")
    };
    [
        find(&|n| n == n_active.iter().copied().max().expect("there are features")),
        find(&|n| (1..=n_rows / 2).contains(&n)),
        find(&|n| n == 0),
    ]
}

fn to_f64(row: &[f32]) -> Vec<f64> {
    row.iter().copied().map(f64::from).collect()
}

/// `‖a − b‖ / ‖b‖`.
fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    let difference: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (dot(&difference, &difference) / dot(b, b)).sqrt()
}

/// Every row of a steered run is what the formulas give; untouched rows are the same bits.
fn check_rows(reference: &Reference, interventions: &[Intervention], run: &Run, name: &str) {
    let d_model = reference.b_dec.len();
    let before = run.trace.saes[0].residuals.chunks_exact(d_model);
    let after = run.trace.saes[0].steered_residuals.chunks_exact(d_model);
    assert_eq!(before.len(), run.trace.tokens.len(), "{name}");
    assert_eq!(before.len(), after.len(), "{name}");
    let (mut n_near, mut n_changed) = (0, 0);
    for ((before, after), token) in before.zip(after).zip(&run.trace.tokens) {
        if !interventions
            .iter()
            .any(|one| one.at.kinds().contain(*token))
        {
            assert_eq!(before, after, "{name}: {token:?}");
            continue;
        }
        n_changed += usize::from(before != after);
        let x = to_f64(before);
        if interventions
            .iter()
            .any(|one| reference.is_near_threshold(feature_of(one), &x))
        {
            n_near += 1;
            continue;
        }
        let expected = reference.steer(interventions, *token, &x);
        // f32: the dot product sums up to 160 products, each of which rounds by up to 6e-8.
        let error = relative_error(&to_f64(after), &expected);
        assert!(error < 1e-5, "{name}, {token:?}: {error:.2e}");
    }
    assert!(n_changed > 0, "{name}: nothing was changed");
    assert!(n_near <= run.trace.tokens.len() / 10, "{name}: {n_near}");
}

fn check_formulas(fixture: Fixture) {
    let reference = Reference::open(fixture);
    let mut session = fixture.exact_session();
    let prompt = prompt(&mut session, fixture, "00.png");
    let plain = run(&mut session, &prompt, Vec::new());
    let [most, some, none] = telling_features(&plain, reference.b_enc.len());
    let sets: [&[(usize, Change)]; 9] = [
        &[(most, Change::steer(-3.5)), (none, Change::steer(2.0))],
        &[(some, Change::clamp(7.5)), (none, Change::clamp(-1.5))],
        &[(most, Change::ablate())],
        &[(most, Change::scale(2.5)), (some, Change::scale(-1.0))],
        &[
            (none, Change::steer(4.0)),
            (some, Change::clamp(3.0)),
            (none, Change::steer(0.5)),
            (most, Change::ablate()),
        ],
        &[(none, Change::project(0.0)), (most, Change::project(-1.5))],
        &[(most, Change::project(3.0)), (some, Change::scale(2.0))],
        &[(most, Change::cap(0.25)), (none, Change::cap(-2.5))],
        &[
            (most, Change::cap(-1.0)),
            (some, Change::clamp(2.0)),
            (none, Change::steer(-1.0)),
        ],
    ];
    for at in [
        "all",
        "image",
        "prompt",
        "generated",
        "image,generated",
        "special",
        "all,no-special",
    ] {
        for units in [Units::Raw, Units::Unit] {
            for set in sets {
                let name = format!("{fixture:?}, {set:?}, {units:?}, {at}");
                let at = Positions::parse(at).expect("valid positions");
                // A feature that is active on some rows need not be on these, and then stays as it is.
                let reads_only = |(_, change): &(usize, Change)| {
                    matches!(change.kind().name, "ablate" | "scale")
                };
                let is_idle = set.iter().all(reads_only) && at != Positions::ALL;
                if is_idle {
                    continue;
                }
                let intervention = |&(feature, change)| Intervention {
                    units,
                    at: at.clone(),
                    ..Intervention::new(FeatureId::of_only(feature), change)
                };
                let set: Vec<_> = set.iter().map(intervention).collect();
                let run = run(&mut session, &prompt, set.clone());
                check_rows(&reference, &set, &run, &name);
            }
        }
    }
}

#[test]
fn demo_rows_follow_the_formulas() {
    check_formulas(Fixture::Demo);
}

#[test]
fn tiny_rows_follow_the_formulas() {
    check_formulas(Fixture::Tiny);
}

/// One set, other positions and units for each of its interventions.
#[test]
fn each_intervention_has_its_own_positions_and_units() {
    let reference = Reference::open(Fixture::Tiny);
    let mut session = Fixture::Tiny.exact_session();
    let prompt = prompt(&mut session, Fixture::Tiny, "00.png");
    let plain = run(&mut session, &prompt, Vec::new());
    let [most, some, none] = telling_features(&plain, reference.b_enc.len());
    let set: Vec<_> = [
        (none, Change::steer(9.0), Units::Raw, "generated"),
        (most, Change::clamp(2.0), Units::Unit, "image"),
        (most, Change::scale(3.0), Units::Raw, "prompt,generated"),
        (some, Change::steer(-3.0), Units::Unit, "image,prompt"),
    ]
    .into_iter()
    .map(|(feature, change, units, at)| Intervention {
        units,
        at: Positions::parse(at).expect("valid positions"),
        ..Intervention::new(FeatureId::of_only(feature), change)
    })
    .collect();
    let run = run(&mut session, &prompt, set.clone());
    check_rows(&reference, &set, &run, "mixed");
}

/// The activation that interventions use is the one that ggml's product gives, so that clamping to
/// a captured activation is idle: in f32, whose sums the two order otherwise.
#[test]
fn activations_are_those_of_the_encoder() {
    let rounding = bound(1e-5, 1e-5, 5e-4) as f32;
    for fixture in [Fixture::Demo, Fixture::Tiny] {
        let mut session = fixture.exact_session();
        let prompt = prompt(&mut session, fixture, "00.png");
        let run = run(&mut session, &prompt, Vec::new());
        let d_model = session.sae().meta().d_in;
        let mut n_compared = 0;
        for (row_idx, row) in run.trace.saes[0]
            .residuals
            .chunks_exact(d_model)
            .enumerate()
        {
            let scale = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (feature, value) in run.trace.saes[0].activations.row(row_idx).step_by(7) {
                let reader = session.sae().feature_reader(feature).expect("it exists");
                let reader = reader.expect("it is read by itself");
                let own = reader.activation(row);
                let is_near = (value - reader.threshold).abs() < rounding * scale;
                let difference = (own - value).abs();
                assert!(
                    is_near || difference < rounding * scale.max(value),
                    "{fixture:?}, row {row_idx}, {feature}: {own} and {value}"
                );
                n_compared += 1;
            }
        }
        assert!(n_compared > 20, "{fixture:?}: {n_compared}");
    }
}

/// A copy of the random checkpoint's SAE whose configuration says something else, with its model.
fn session_with(name: &str, keys: &[(&str, serde_json::Value)]) -> Session {
    let source = Fixture::Tiny.dir().join("sae");
    let dir = temporary_root().join(name);
    std::fs::create_dir_all(&dir).expect("a folder of our own");
    let weights = "sae_weights.safetensors";
    std::fs::copy(source.join(weights), dir.join(weights)).expect("a committed file");
    let config = std::fs::read(source.join("cfg.json")).expect("a committed file");
    let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    for (key, value) in keys {
        config[key] = value.clone();
    }
    std::fs::write(dir.join("cfg.json"), config.to_string()).expect("a folder of our own");
    let options = SaeOptions {
        weight_type: TensorType::F32,
        norm_factor: None,
        hook_name: None,
        labels: Vec::new(),
        overwrite: Overwrite::Replace,
    };
    let sae = dir.join("sae.gguf");
    let go_on = &mut |_, _| std::ops::ControlFlow::Continue(());
    sae::convert(&dir, &sae, &options, go_on).expect("convertible");
    let models = Fixture::Tiny.converted(TensorType::F32);
    let files = ModelFiles::find(Some(&models), None, None, vec![sae]).expect("all are there");
    Session::open(&files, exact_options()).expect("they fit")
}

/// Where a feature cannot be read by itself, the activations are the encoder's, which `sae_formats`
/// compares with SAELens; a normalised row's directions are as long as its deviation says.
#[test]
fn features_that_need_the_whole_encoder() {
    let none = ("normalize_activations", json!("none"));
    let topk = [
        ("activation_fn_str", json!("topk")),
        ("activation_fn_kwargs", json!({"k": 8})),
        none,
    ];
    let norm = |word| [("normalize_activations", json!(word))];
    let mut cases = [
        (session_with("topk", &topk), 0),
        (session_with("constant", &norm("constant_norm_rescale")), 1),
        (session_with("layer", &norm("layer_norm")), 2),
    ];
    for (session, kind) in &mut cases {
        let prompt = prompt(session, Fixture::Tiny, "00.png");
        let plain = run(session, &prompt, Vec::new());
        let d_sae = session.sae().meta().d_sae;
        let counts = counts(&plain, d_sae);
        let mut active: Vec<usize> = (0..d_sae).filter(|&feature| counts[feature] > 0).collect();
        active.sort_by_key(|&feature| counts[feature]);
        let changes = [
            (active[active.len() - 1], Change::scale(2.5)),
            (active[active.len() / 2], Change::clamp(3.0)),
            (active[0], Change::ablate()),
        ];
        let intervention =
            |(feature, change)| Intervention::new(FeatureId::of_only(feature), change);
        let run = run(session, &prompt, changes.map(intervention).to_vec());
        let d_model = session.sae().meta().d_in;
        let direction = |feature| session.sae().decoder_direction(feature).expect("there").row;
        let directions = changes.map(|(feature, _)| direction(feature));
        let before = run.trace.saes[0].residuals.chunks_exact(d_model);
        let after = run.trace.saes[0].steered_residuals.chunks_exact(d_model);
        for (row_idx, (before, after)) in before.zip(after).enumerate() {
            let x = to_f64(before);
            let scale = deviation(&x, *kind);
            let mut expected = x.clone();
            for ((feature, change), direction) in changes.iter().zip(&directions) {
                let a = f64::from(run.trace.saes[0].activations.get(row_idx, *feature));
                let number = change.number().map_or(0.0, f64::from);
                let coefficient = match change.kind().name {
                    "scale" => (number - 1.0) * a,
                    _ => number - a,
                };
                for (x, w) in expected.iter_mut().zip(direction) {
                    *x += scale * coefficient * f64::from(*w);
                }
            }
            // A few products and sums in f32; CUDA computes activations of one row otherwise than of many.
            let error = relative_error(&to_f64(after), &expected);
            assert!(
                error < bound(1e-6, 1e-6, 5e-4),
                "case {kind}, row {row_idx}: {error:.2e}"
            );
        }
        assert_ne!(plain.logits, run.logits);
    }
}

/// What one unit of a normalised row is in the row itself: 1, the root mean square, or torch's `std`.
fn deviation(x: &[f64], kind: usize) -> f64 {
    let n = x.len() as f64;
    match kind {
        0 => 1.0,
        1 => (dot(x, x) / n).sqrt(),
        _ => {
            let mean = x.iter().sum::<f64>() / n;
            let centred: Vec<f64> = x.iter().map(|x| x - mean).collect();
            (dot(&centred, &centred) / (n - 1.0)).sqrt()
        }
    }
}
