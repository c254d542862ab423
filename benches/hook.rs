//! What the hook computes: the encoder, with and without its screen, and interventions.
//!
//! `cargo bench` compares with its last run. Sizes are those of SAEs for Gemma 2B.

#![allow(missing_docs)] // of what criterion's macro makes

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gguf_tools::gguf::TensorType;
use llava_sae_cpp::steering::{Change, Encoded, Intervention, Steering};
use llava_sae_cpp::{
    Activations, Encoder, EncoderOptions, EncoderWeights, FeatureId, Sae, SaeSet, SessionOptions,
    Token,
};

#[allow(dead_code)] // tests use more of it
#[path = "../tests/it/random_sae.rs"]
mod random_sae;

const D_IN: usize = 2048;
const D_SAE: usize = 16384;
/// A generated token, and a part of a prompt.
const N_ROWS: [usize; 2] = [1, 256];

fn open(path: &Path, screen: bool) -> Encoder {
    let options = EncoderOptions {
        use_gpu: false,
        threads: SessionOptions::default().threads,
        screen,
    };
    let sae = Arc::new(Sae::open(path).expect("just written"));
    EncoderWeights::load(&sae, options)
        .and_then(|weights| weights.encoder())
        .expect("a valid file")
}

fn hook(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let make = |name: &str, weight_type| {
        let dir = dir.path().join(name);
        let file = random_sae::make(&dir, "standard", [D_IN, D_SAE], weight_type);
        file.path().to_owned()
    };
    let (f16, q8_0) = (make("f16", TensorType::F16), make("q8_0", TensorType::Q8_0));
    let mut saes = [
        ("f16", open(&f16, false)),
        ("q8_0", open(&q8_0, false)),
        ("screened", open(&f16, true)),
    ];
    let mut group = criterion.benchmark_group("encoder");
    for n_rows in N_ROWS {
        let rows = random_sae::Random(1).rows(n_rows, D_IN);
        group.throughput(Throughput::Elements(n_rows as u64));
        for (name, encoder) in &mut saes {
            group.bench_function(BenchmarkId::new(*name, n_rows), |bencher| {
                bencher.iter_batched_ref(
                    Activations::default,
                    |activations| encoder.encode(&rows, activations),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();

    let mut group = criterion.benchmark_group("interventions");
    let row = random_sae::Random(1).rows(1, D_IN);
    for (name, change) in [
        ("add", Change::steer(1.0)),
        ("clamp", Change::clamp(1.0)),
        ("ablate", Change::ablate()),
    ] {
        let intervention = |feature| Intervention::new(FeatureId::of_only(feature), change);
        let saes = SaeSet::new(vec![Arc::clone(saes[0].1.sae())]).expect("one SAE");
        for n_features in [1, 16] {
            let interventions = (0..n_features).map(intervention).collect();
            let steering = Steering::new(interventions, &saes);
            let mut steering = steering.expect("these features exist");
            let edit = &mut steering.edits_mut()[0];
            group.bench_function(BenchmarkId::new(name, n_features), |bencher| {
                bencher.iter_batched_ref(
                    || row.clone(),
                    |row| edit.apply(0, Token::image(), black_box(row), nothing_encoded),
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

/// These features are read by themselves.
fn nothing_encoded(_: FeatureId) -> Encoded {
    unreachable!("the encoder is not asked")
}

criterion_group!(benches, hook);
criterion_main!(benches);
