//! Language models with valid headers and wrong contents: each was seen to end the process by a signal,
//! to hang, or to change the output without a word.

use gguf_tools::gguf::{Array, TensorType, Value};

use crate::bad_input::check;
use crate::command_line::{stdout, text};
use crate::hook_points::{LIKE_LLAMA, model, sae_at};
use crate::rewritten::{Change, Parts, Tensor, rewritten};

fn args<'a>(model: &'a str, sae: &'a str) -> [&'a str; 10] {
    ["-m", model, "--sae", sae, "-t", "1", "-n", "2", "-p", "a"]
}

/// The model with the change is refused, and what is wrong is named.
fn check_refused(architecture: &str, word: &str, change: Change<'_>) {
    let model = rewritten(&model(architecture), change);
    let sae = sae_at("blocks.1.hook_resid_post", 32);
    let words = [word, "rewritten.gguf", "hint: "];
    check(&args(text(&model), text(&sae)), 1, &words);
}

/// The model with the change works.
fn check_works(architecture: &str, change: Change<'_>) {
    let model = rewritten(&model(architecture), change);
    let sae = sae_at("blocks.1.hook_resid_post", 32);
    stdout(&args(text(&model), text(&sae)));
}

fn set(key: &str, value: impl Into<Value>) -> impl Fn(&mut Parts) {
    let (key, value) = (key.to_owned(), value.into());
    move |parts| parts.set(&key, value.clone())
}

#[test]
fn keys_that_every_architecture_has() {
    for architecture in LIKE_LLAMA {
        let refused = |name: &str, value: Value| {
            let key = format!("{architecture}.{name}");
            check_refused(architecture, &format!("`{key}`"), &set(&key, value));
        };
        refused("rope.dimension_count", 0_u32.into());
        refused("block_count", 513_u32.into());
        refused("attention.head_count_kv", vec![1_u32, 0, 1].into());
        refused("attention.layer_norm_rms_epsilon", f32::NAN.into());
    }
}

#[test]
fn keys_out_of_range() {
    let refused = |name: &str, value: Value| {
        let key = format!("llama.{name}");
        check_refused("llama", &format!("`{key}`"), &set(&key, value));
    };
    for (name, values) in [
        (
            "context_length",
            vec![0_u32.into(), u32::MAX.into(), 256_u64.into()],
        ),
        ("embedding_length", vec![0_u32.into()]),
        ("block_count", vec![0_u32.into()]),
        (
            "feed_forward_length",
            vec![0_u32.into(), vec![48_u32, 48, 40].into()],
        ),
        (
            "attention.head_count",
            vec![0_u32.into(), 33_u32.into(), vec![4_u32, 4].into()],
        ),
        (
            "attention.head_count_kv",
            vec![0_u32.into(), 3_u32.into(), 5_u32.into()],
        ),
        ("attention.key_length", vec![0_u32.into(), 7_u32.into()]),
        ("attention.value_length", vec![16_u32.into(), "8".into()]),
        ("attention.key_length_swa", vec![16_u32.into()]),
        ("attention.causal", vec![false.into()]),
        (
            "attention.layer_norm_rms_epsilon",
            vec![
                0_f32.into(),
                (-1e-5_f32).into(),
                f32::INFINITY.into(),
                1e-5_f64.into(),
            ],
        ),
        (
            "rope.dimension_count",
            vec![3_u32.into(), 6_u32.into(), 10_u32.into()],
        ),
        (
            "rope.freq_base",
            vec![0_f32.into(), (-1e4_f32).into(), f32::NAN.into()],
        ),
        ("rope.scaling.type", vec!["su".into(), 1_u32.into()]),
        (
            "rope.scaling.factor",
            vec![0_f32.into(), (-2_f32).into(), f32::INFINITY.into()],
        ),
        ("rope.scaling.attn_factor", vec![0_f32.into()]),
        ("expert_count", vec![2000_u32.into()]),
        ("expert_used_count", vec![2_u32.into()]),
        ("expert_group_count", vec![2_u32.into()]),
        ("nextn_predict_layers", vec![1_u32.into(), 9_u32.into()]),
        ("embedding_length_out", vec![16_u32.into()]),
    ] {
        for value in values {
            refused(name, value);
        }
    }
    for (architecture, name, value) in [
        ("gemma", "rope.dimension_count", 15_u32.into()),
        ("gemma", "rope.dimension_count", 18_u32.into()),
        ("gemma", "expert_count", 2_u32.into()),
        ("gemma2", "attention.sliding_window", 0_u32.into()),
        ("gemma2", "attention.sliding_window", (1_u32 << 31).into()),
        ("gemma2", "attention.sliding_window_pattern", 1_u32.into()),
        (
            "gemma2",
            "attention.sliding_window_pattern",
            vec![false; 3].into(),
        ),
        (
            "gemma2",
            "attention.sliding_window_pattern",
            vec![true; 2].into(),
        ),
        ("gemma2", "attn_logit_softcapping", 0_f32.into()),
        ("gemma2", "final_logit_softcapping", f32::NAN.into()),
        ("gemma3", "attention.sliding_window", (1_u32 << 31).into()),
        ("gemma3", "attention.sliding_window_pattern", 1_u32.into()),
        ("gemma3", "rope.freq_base_swa", 0_f32.into()),
        // ggml would divide by their sum.
        ("qwen2vl", "rope.dimension_sections", vec![0_i32; 4].into()),
        (
            "qwen2vl",
            "rope.dimension_sections",
            vec![-1_i32, 5, 0, 0].into(),
        ),
        (
            "qwen2vl",
            "rope.dimension_sections",
            vec![2_i32, 1, 1].into(),
        ),
        ("qwen2vl", "rope.dimension_sections", 1_u32.into()),
        ("qwen2vl", "rope.dimension_count", 4_u32.into()),
        ("gemma3", "final_logit_softcapping", (-30_f32).into()),
        ("gpt2", "attention.layer_norm_epsilon", 0_f32.into()),
        ("gpt2", "context_length", 0_u32.into()),
        ("gptneox", "attention.layer_norm_epsilon", f32::NAN.into()),
        ("gptneox", "use_parallel_residual", 1_u32.into()),
        ("gptneox", "rope.dimension_count", 3_u32.into()),
        ("olmo2", "rope.dimension_count", 4_u32.into()),
        ("olmo2", "attention.sliding_window", (1_u32 << 31).into()),
        ("phi3", "attention.layer_norm_rms_epsilon", 0_f32.into()),
    ] {
        let value: Value = value;
        let key = format!("{architecture}.{name}");
        check_refused(architecture, &format!("`{key}`"), &set(&key, value));
    }
    check_refused(
        "llama",
        "general.alignment",
        &set("general.alignment", 8_u32),
    );
    check_refused("llama", "general.name", &set("general.name", 8_u32));
}

#[test]
fn tensors_of_wrong_types() {
    // i8, i16, i32, i64, f64 and q8_1 have no product.
    for code in [24, 25, 26, 27, 28, 9] {
        for name in [
            "token_embd.weight",
            "blk.1.attn_q.weight",
            "blk.2.ffn_down.weight",
        ] {
            if code != 9 || name == "blk.1.attn_q.weight" {
                check_refused("llama", &format!("`{name}`"), &|parts| {
                    parts.tensor(name).tensor_type = TensorType::Other(code);
                });
            }
        }
    }
    for (architecture, name) in [
        ("gemma", "output_norm.weight"),
        ("gemma2", "blk.1.post_ffw_norm.weight"),
        ("gemma3", "blk.0.attn_q_norm.weight"),
        ("qwen2", "blk.0.attn_k.bias"),
        ("llama", "blk.2.ffn_up.bias"),
    ] {
        for tensor_type in [TensorType::F16, TensorType::Bf16, TensorType::Other(28)] {
            check_refused(architecture, &format!("`{name}`"), &|parts| {
                parts.tensor(name).tensor_type = tensor_type;
            });
        }
    }
}

#[test]
fn tensors_of_wrong_shapes_and_others() {
    for architecture in LIKE_LLAMA {
        let extra = |name: &str, dims: &[u64]| {
            check_refused(architecture, &format!("`{name}`"), &|parts| {
                parts.add(Tensor::ones(name, dims));
            });
        };
        extra("blk.0.attn_sinks.weight", &[4]);
        extra("blk.3.attn_norm.weight", &[32]);
        extra("blk.*.attn_norm.weight", &[32]);
        extra("blk.00.attn_norm.weight", &[32]);
        extra("output.scale", &[1]); // for one type of `output.weight` only
        for name in [
            "blk.1.attn_q.weight",
            "blk.1.ffn_norm.weight",
            "token_embd.weight",
        ] {
            check_refused(architecture, &format!("`{name}`"), &|parts| {
                parts.take(name);
            });
            check_refused(architecture, &format!("`{name}`"), &|parts| {
                let tensor = parts.take(name);
                let mut dims = tensor.dims.clone();
                dims[0] /= 2;
                parts.add(Tensor::ones(name, &dims));
            });
        }
    }
    for (architecture, names) in [
        (
            "gpt2",
            &[
                "position_embd.weight",
                "output_norm.bias",
                "blk.1.attn_qkv.weight",
                "blk.1.attn_output.bias",
                "blk.2.ffn_up.bias",
            ][..],
        ),
        (
            "gptneox",
            &[
                "output.weight",
                "blk.1.attn_norm.bias",
                "blk.0.ffn_down.bias",
            ],
        ),
        (
            "olmo2",
            &[
                "output.weight",
                "blk.1.attn_q_norm.weight",
                "blk.1.post_ffw_norm.weight",
            ],
        ),
        ("phi3", &["blk.1.attn_qkv.weight", "blk.1.ffn_up.weight"]),
    ] {
        for name in names {
            let block_has_others = *name == "blk.1.attn_qkv.weight" && architecture == "phi3";
            let missing = if block_has_others {
                "blk.1.attn_q.weight"
            } else {
                name
            };
            check_refused(architecture, &format!("`{missing}`"), &|parts| {
                parts.take(name);
            });
            check_refused(architecture, &format!("`{name}`"), &|parts| {
                let mut dims = parts.take(name).dims.clone();
                *dims.last_mut().expect("a dimension") += 32;
                parts.add(Tensor::ones(name, &dims));
            });
        }
        check_refused(architecture, "`blk.3.attn_output.weight`", &|parts| {
            parts.add(Tensor::ones("blk.3.attn_output.weight", &[32, 32]));
        });
    }
    // llama.cpp would leave it out of the product.
    check_refused("gemma", "`blk.1.ffn_up.scale`", &|parts| {
        parts.add(Tensor::ones("blk.1.ffn_up.scale", &[1]));
    });
    check_refused("llama", "`blk.1.attn_qkv.weight`", &|parts| {
        parts.add(Tensor::ones("blk.1.attn_qkv.weight", &[32, 64]));
    });
}

#[test]
fn vocabularies() {
    let tokens = |change: &dyn Fn(&mut Vec<String>)| {
        let Value::Array(Array::String(mut all)) = Parts::read(&model("gemma"))
            .get("tokenizer.ggml.tokens")
            .clone()
        else {
            panic!("an array of strings");
        };
        change(&mut all);
        Value::from(all)
    };
    let ggml = |name: &str| format!("tokenizer.ggml.{name}");
    let refused = |name: &str, value: Value| {
        check_refused(
            "gemma",
            &format!("`{}`", ggml(name)),
            &set(&ggml(name), value),
        );
    };
    for name in ["bert", "t5", "rwkv", "plamo2", "none", "test", "unknown"] {
        refused("model", name.into());
    }
    refused("tokens", tokens(&|all| all[9] = all[8].clone()));
    refused(
        "tokens",
        tokens(&|all| (all[9], all[8]) = (String::new(), "[EMPTY_9]".to_owned())),
    );
    refused("tokens", Vec::<String>::new().into());
    refused("tokens", vec![1_i32; 64].into());
    refused("token_type", tokens(&|_| ()));
    refused("token_type", vec![1_i32; 63].into());
    refused("token_type", vec![7_i32; 64].into());
    refused("token_type", vec![6_i32; 64].into()); // bytes, all of them
    refused("scores", vec![1_f32; 65].into());
    refused("scores", vec![f32::NAN; 64].into());
    refused("scores", vec![1_u8; 64].into());
    for id in ["bos", "eos", "eot", "eom"] {
        refused(&format!("{id}_token_id"), 64_u32.into());
        refused(&format!("{id}_token_id"), (-1_i32).into());
    }
    refused("padding_token_id", "0".into());
    refused("add_bos_token", 1_u32.into());
    refused("merges", 1_u32.into());
    for name in ["tokens", "token_type", "scores", "model"] {
        check_refused("gemma", &format!("`{}`", ggml(name)), &|parts| {
            parts.remove(&ggml(name))
        });
    }
    let bpe = |parts: &mut Parts| parts.set("tokenizer.ggml.model", "gpt2");
    check_refused("llama", "`tokenizer.ggml.merges`", &bpe);
    check_refused("llama", "`tokenizer.ggml.merges`", &|parts| {
        bpe(parts);
        parts.set(
            "tokenizer.ggml.merges",
            vec!["a b".to_owned(), "ab".to_owned()],
        );
    });
    check_refused("llama", "`tokenizer.ggml.pre`", &|parts| {
        bpe(parts);
        parts.set("tokenizer.ggml.pre", "of-tomorrow");
    });
    // A token more than the embedding has rows.
    check_refused("gemma", "`token_embd.weight`", &|parts| {
        parts.set(
            "tokenizer.ggml.tokens",
            tokens(&|all| all.push("more".to_owned())),
        );
        parts.set("tokenizer.ggml.token_type", vec![1_i32; 65]);
        parts.set("tokenizer.ggml.scores", vec![1_f32; 65]);
    });
}

/// What converters write beside what the fixtures have.
#[test]
fn what_models_may_hold() {
    for architecture in LIKE_LLAMA {
        let key = |name: &str| format!("{architecture}.{name}");
        check_works(architecture, &|parts| {
            for name in [
                "attention.head_count",
                "attention.head_count_kv",
                "feed_forward_length",
            ] {
                let Value::U32(n) = *parts.get(&key(name)) else {
                    panic!("a u32");
                };
                parts.set(&key(name), vec![n.cast_signed(); 3]);
            }
            parts.set(&key("vocab_size"), 64_u32);
            parts.set(&key("expert_count"), 0_u32);
            parts.set(&key("rope.scaling.type"), "linear");
            parts.set(&key("rope.scaling.factor"), 4_f32);
            parts.set(&key("a_key_of_tomorrow"), -1_i8);
            parts.set("general.file_type", 9999_u32);
            parts.set("general.tags", vec!["a".to_owned()]);
            parts.set("quantize.imatrix.entries_count", 1_i32);
            parts.set("tokenizer.ggml.padding_token_id", u32::MAX);
            for block in 0..3 {
                for part in ["q", "k", "v", "output"] {
                    parts.add(Tensor::ones(
                        &format!("blk.{block}.attn_{part}.scale"),
                        &[1],
                    ));
                }
            }
        });
        check_works(architecture, &|parts| {
            for block in 0..3 {
                let part = |name: &str| format!("blk.{block}.attn_{name}");
                let mut take = |suffix: &str| {
                    ["q", "k", "v"].map(|name| parts.take(&part(&format!("{name}.{suffix}"))))
                };
                let weights = take("weight");
                let n_rows = weights.iter().map(|tensor| tensor.dims[1]).sum();
                let values = weights.map(|tensor| tensor.values).concat();
                parts.add(Tensor {
                    values,
                    ..Tensor::ones(&part("qkv.weight"), &[32, n_rows])
                });
            }
        });
        check_works(architecture, &|parts| {
            parts.tensor("token_embd.weight").tensor_type = TensorType::Q8_0;
            parts.tensor("blk.1.attn_q.weight").tensor_type = TensorType::Bf16;
            parts.tensor("blk.1.ffn_up.weight").tensor_type = TensorType::Other(39); // mxfp4
        });
    }
    let window = |value: Value| set("gemma2.attention.sliding_window_pattern", value);
    check_works("gemma2", &window(0_u32.into()));
    check_works("gemma2", &window(3_u32.into()));
    check_works("gemma2", &window(vec![true, false, false].into()));
    check_works("gemma2", &window(vec![true; 3].into()));
    check_works("gemma3", &set("gemma3.attention.sliding_window", 0_u32));
    check_works("gemma3", &|parts| {
        parts.add(Tensor::ones("output.weight", &[32, 64]))
    });
    check_works("llama", &|parts| {
        parts.take("output.weight");
        parts.add(Tensor::ones("rope_freqs.weight", &[4]));
    });
    check_works("llama", &|parts| {
        parts.set("llama.rope.scaling.type", "longrope");
        parts.add(Tensor::ones("rope_factors_long.weight", &[4]));
        parts.add(Tensor::ones("rope_factors_short.weight", &[4]));
    });
    check_works("llama", &mixture_of_experts);
    check_works("qwen2", &|parts| {
        parts.add(Tensor::ones("output.bias", &[64]))
    });
}

/// Turns the fixture of Llama into a mixture of four experts, all the same.
pub(crate) fn mixture_of_experts(parts: &mut Parts) {
    parts.set("llama.expert_count", 4_u32);
    parts.set("llama.expert_used_count", 2_u32);
    for block in 0..3 {
        let name = |part: &str| format!("blk.{block}.ffn_{part}");
        parts.add(Tensor::ones(&name("gate_inp.weight"), &[32, 4]));
        for part in ["gate", "up", "down"] {
            parts.take(&name(&format!("{part}.bias")));
            let one = parts.take(&name(&format!("{part}.weight")));
            parts.add(Tensor {
                name: name(&format!("{part}_exps.weight")),
                dims: [&one.dims[..], &[4]].concat(),
                values: one.values.repeat(4),
                ..one
            });
        }
    }
}
