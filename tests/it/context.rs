//! What the safe functions over a context refuse, where llama.cpp would end the process.

use std::sync::Arc;

use llava_sae_cpp::llama::{
    Context, ContextOptions, Edited, Extent, HookedNode, Model, ModelOptions, Output, OutputRow,
    Pass, RowHook, Rows, Sampler,
};
use llava_sae_cpp::{FlashAttention, GraphNode, KvType, Result, Sampling, SessionOptions};

use crate::fixture::exact_options;
use crate::hook_points::{model, open};

/// Counts rows.
struct Counter(usize);

impl RowHook for Counter {
    fn on_rows(&mut self, _: usize, rows: &mut [f32]) -> Result<Edited> {
        self.0 += rows.len() / 32;
        Ok(Edited::No)
    }
}

fn options() -> ContextOptions {
    ContextOptions {
        n_tokens: 4,
        n_sequences: 2,
        n_ubatch: 512,
        n_together: 0,
        threads: 1,
        kv_type: KvType::F32,
        flash_attention: FlashAttention::Off,
        eval_callback: true,
    }
}

fn context(options: ContextOptions) -> Result<(Arc<Model>, Context<Counter>)> {
    let loaded = ModelOptions {
        gpu_layers: 0,
        repack: false,
    };
    let model = Arc::new(Model::load(&model("llama"), loaded)?);
    let node = HookedNode {
        node: GraphNode::Named("l_out-1".to_owned()),
        width: 32,
    };
    let context = Context::new(Arc::clone(&model), options, vec![node], Counter(0))?;
    Ok((model, context))
}

fn check<T>(result: Result<T>, words: &str) {
    let error = result.err().unwrap_or_else(|| panic!("expected: {words}"));
    let said = error.to_string();
    assert!(said.contains(words), "`{said}` should say `{words}`");
}

#[test]
fn sequences_and_tokens_that_do_not_exist() {
    let (_, mut context) = context(options()).expect("it is made");
    check(
        context.truncate(2, Extent::default()),
        "no sequence 2: the context has 2",
    );
    check(context.truncate(300, Extent::default()), "no sequence 300");
    check(
        context.decode(2, Rows::Tokens(&[1]), Output::None),
        "no sequence 2",
    );
    for id in [-1, 64] {
        check(
            context.decode(0, Rows::Tokens(&[id]), Output::None),
            "llama_decode failed",
        );
    }
}

#[test]
fn more_or_less_than_there_is_room_for() {
    let (_, mut context) = context(options()).expect("it is made");
    context.set_pass(Pass::WHOLE);
    check(
        context.decode(0, Rows::Tokens(&[1; 5]), Output::None),
        "holds 4 tokens",
    );
    context
        .decode_side_by_side(&[], &[])
        .expect("nothing to do");
    check(
        context.decode_side_by_side(&[0, 1], &[1]),
        "one token for each sequence",
    );
    check(
        context.decode_side_by_side(&[0, 0], &[1, 1]),
        "one token for each sequence",
    );
    check(
        context.decode_side_by_side(&[0, 2], &[1, 1]),
        "no sequence 2",
    );
    context
        .decode(1, Rows::Tokens(&[1; 4]), Output::None)
        .expect("there is room");
    check(
        context.decode_side_by_side(&[0, 1], &[1, 1]),
        "holds 4 tokens, and 5",
    );
    assert_eq!(context.hook().0, 4, "what is refused is not computed");
    context
        .decode(0, Rows::Tokens(&[]), Output::LastRow)
        .expect("nothing to do");
}

#[test]
fn logits_that_were_not_asked_for() {
    let (model, mut context) = context(options()).expect("it is made");
    let mut sampler = Sampler::new(&model, Sampling::default());
    let last = OutputRow::Last;
    check(sampler.sample(context.logits(last)), "no logits");
    context
        .decode(0, Rows::Tokens(&[1, 7]), Output::None)
        .expect("there is room");
    check(sampler.sample(context.logits(last)), "no logits");
    context
        .decode(0, Rows::Tokens(&[8]), Output::LastRow)
        .expect("there is room");
    check(
        sampler.sample(context.logits(OutputRow::Index(7))),
        "no logits",
    );
    let next = sampler
        .sample(context.logits(last))
        .expect("they were asked for");
    assert!((0..64).contains(&next));
}

#[test]
fn options_of_nothing() {
    for (options, words) in [
        (
            ContextOptions {
                n_ubatch: 0,
                ..options()
            },
            "0 rows of a graph",
        ),
        (
            ContextOptions {
                threads: 0,
                ..options()
            },
            "0 processor threads",
        ),
        (
            ContextOptions {
                n_sequences: 0,
                ..options()
            },
            "0 sequences",
        ),
    ] {
        check(context(options), words);
    }
    for (options, words) in [
        (
            SessionOptions {
                n_ubatch: 0,
                ..exact_options()
            },
            "0 rows of a graph",
        ),
        (
            SessionOptions {
                threads: 0,
                ..exact_options()
            },
            "0 processor threads",
        ),
        (
            SessionOptions {
                threads: usize::MAX,
                ..exact_options()
            },
            "processor threads",
        ),
    ] {
        check(
            open("llama", "blocks.1.hook_resid_post", 32, options),
            words,
        );
    }
}
