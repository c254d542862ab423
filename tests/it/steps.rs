//! Steps of several sequences: each gets what it gets alone.

use std::path::PathBuf;
use std::sync::Arc;

use llava_sae_cpp::llama::{
    Context, ContextOptions, Edited, Model, ModelOptions, Output, OutputRow, Quant, RowHook, Rows,
    quantize,
};
use llava_sae_cpp::{FlashAttention, KvType, Result};

use crate::fixture::temporary_root;
use crate::hook_points::model;
use crate::rewritten::rewritten;

/// Sees nothing.
struct NoHook;

impl RowHook for NoHook {
    fn on_rows(&mut self, _: usize, _: &mut [f32]) -> Result<Edited> {
        unreachable!("no node is hooked")
    }
}

/// The Llama fixture with rows that are wide enough for K-quantised weights, and numbers of its own.
fn wide_model(quant: Quant) -> PathBuf {
    let wide = rewritten(&model("llama"), &|parts| {
        for (key, n) in [
            ("llama.embedding_length", 256_u32),
            ("llama.feed_forward_length", 512),
            ("llama.attention.key_length", 64),
            ("llama.attention.value_length", 64),
            ("llama.rope.dimension_count", 64),
        ] {
            parts.set(key, n);
        }
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        for tensor in parts.tensors() {
            for dim in &mut tensor.dims {
                *dim = match *dim {
                    16 => 128,
                    32 => 256,
                    48 => 512,
                    n => n,
                };
            }
            let n_values = tensor.dims.iter().product::<u64>();
            tensor.values = (0..n_values).map(|_| 0.2 * next()).collect();
        }
    });
    let target = temporary_root().join(format!("wide-{quant:?}.gguf"));
    quantize(&wide, &target, quant, 2).expect("it quantises");
    target
}

fn context(model: &Arc<Model>, n_ubatch: usize) -> Context<NoHook> {
    let options = ContextOptions {
        n_tokens: 16,
        n_sequences: 16,
        n_ubatch,
        n_together: 0,
        threads: 2,
        kv_type: KvType::F16,
        flash_attention: FlashAttention::On, // which computes rows one by one
        eval_callback: true,
    };
    Context::new(Arc::clone(model), options, Vec::new(), NoHook).expect("it is made")
}

/// A sequence's prompt, and the token behind it.
fn prompt(sequence: usize) -> (Vec<i32>, i32) {
    let ids = (0..1 + sequence % 5).map(|i| (7 + 3 * sequence + i) as i32 % 64);
    (ids.collect(), 10 + sequence as i32)
}

/// The logits of a step of these sequences, each behind its own prompt.
fn step(context: &mut Context<NoHook>, sequences: &[usize]) -> Vec<Vec<f32>> {
    context.clear();
    let mut ids = Vec::new();
    for &sequence in sequences {
        let (prompt, id) = prompt(sequence);
        let decoded = context.decode(sequence, Rows::Tokens(&prompt), Output::None);
        decoded.expect("there is room");
        ids.push(id);
    }
    let decoded = context.decode_side_by_side(sequences, &ids);
    decoded.expect("there is room");
    let rows = 0..sequences.len();
    rows.map(|row| context.logits(OutputRow::Index(row)).to_vec())
        .collect()
}

/// With K-quantised weights, logits of a sequence beside others are those of the sequence alone, to the bit, and where
/// a step takes several graphs too.
#[test]
fn a_sequence_gets_the_logits_that_it_gets_alone() {
    for quant in [Quant::Q4KM, Quant::Q6K] {
        let loaded = ModelOptions {
            gpu_layers: 0,
            repack: false,
        };
        let model = Model::load(&wide_model(quant), loaded).expect("it loads");
        let model = Arc::new(model);
        let mut whole = context(&model, 512);
        let alone: Vec<_> = (0..16)
            .map(|sequence| step(&mut whole, &[sequence]).remove(0))
            .collect();
        assert!(alone[0] != alone[1], "prompts differ");
        let mut parted = context(&model, 3);
        for (context, counts) in [
            (&mut whole, &[2, 3, 8, 9, 16][..]),
            (&mut parted, &[3, 5, 6, 3]),
        ] {
            for &n_sequences in counts {
                let sequences: Vec<_> = (0..n_sequences).collect();
                let together = step(context, &sequences);
                for (sequence, (together, alone)) in together.iter().zip(&alone).enumerate() {
                    let what = format!("{quant:?}, {n_sequences} sequences, sequence {sequence}");
                    assert!(together == alone, "{what}");
                }
            }
        }
    }
}
