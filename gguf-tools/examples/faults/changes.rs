//! Changes to a file, one at a time.

use std::collections::HashSet;

use gguf_tools::gguf::{Array, Value};

use crate::file::{GgufFile, TYPES, Tensor};

/// One change.
pub(crate) struct Case {
    /// What is changed, and how.
    pub(crate) name: String,
    apply: Box<dyn Fn(&mut GgufFile) + Send + Sync>,
}

impl Case {
    /// The changed file's bytes.
    pub(crate) fn apply(&self, original: &GgufFile) -> Vec<u8> {
        let mut file = original.clone();
        (self.apply)(&mut file);
        file.bytes()
    }
}

/// All changes to a file.
pub(crate) fn of(file: &GgufFile) -> Vec<Case> {
    let mut cases = Vec::new();
    for (idx, (key, value)) in file.metadata.iter().enumerate() {
        let mut add = |what: &str, apply: Box<dyn Fn(&mut GgufFile) + Send + Sync>| {
            let name = format!("{key}: {what}");
            cases.push(Case { name, apply });
        };
        add(
            "removed",
            Box::new(move |file| drop(file.metadata.remove(idx))),
        );
        for (what, new) in values_for(value) {
            add(
                &what,
                Box::new(move |file| file.metadata[idx].1 = new.clone()),
            );
        }
    }
    for (key, value) in further_keys(file) {
        let name = format!("{key}: added, {}", shown(&value));
        let apply = move |file: &mut GgufFile| {
            if let ("general.alignment", Value::U32(alignment)) = (&*key, &value) {
                file.alignment = *alignment as usize;
            }
            file.metadata.push((key.clone(), value.clone()));
        };
        cases.push(Case {
            name,
            apply: Box::new(apply),
        });
    }
    for (idx, tensor) in file.tensors.iter().enumerate() {
        let mut add = |what: String, new: Option<Tensor>| {
            let apply = move |file: &mut GgufFile| match &new {
                Some(new) => file.tensors[idx] = new.clone(),
                None => drop(file.tensors.remove(idx)),
            };
            cases.push(Case {
                name: format!("{}: {what}", tensor.name),
                apply: Box::new(apply),
            });
        };
        let mut changes = tensors_for(tensor);
        changes.push(("removed".to_owned(), None));
        // Blocks are alike: all changes to the first one, and a fourth of them to each other.
        let is_first = !tensor.name.contains("blk.") || tensor.name.contains("blk.0.");
        for (change_idx, (what, new)) in changes.into_iter().enumerate() {
            if is_first || (idx + change_idx) % 4 == 0 {
                add(what, new);
            }
        }
    }
    for (name, dims) in further_tensors(file) {
        let n_values = dims.iter().product::<u64>() as usize;
        let tensor = Tensor {
            name: name.clone(),
            dims: dims.clone(),
            type_name: "f32",
            bytes: 0.5_f32.to_le_bytes().repeat(n_values),
        };
        cases.push(Case {
            name: format!("{name}: added, {dims:?}"),
            apply: Box::new(move |file| file.tensors.push(tensor.clone())),
        });
    }
    // Short arrays have the same place first and last.
    let mut seen = HashSet::new();
    cases.retain(|case| seen.insert(case.name.clone()));
    cases
}

/// Other values for a key.
fn values_for(value: &Value) -> Vec<(String, Value)> {
    let mut new: Vec<Value> = Vec::new();
    match value {
        Value::String(_) => {
            new.extend(["", "other", &"long".repeat(5_000)].map(Value::from));
            new.extend([Value::from(7_u32), Value::from(vec!["text".to_owned()])]);
        }
        Value::Bool(truth) => {
            new.extend([
                Value::from(!truth),
                Value::from(u8::from(*truth)),
                Value::from("true"),
            ]);
        }
        Value::F32(number) => {
            let floats = [
                0.0,
                1.0,
                -1.0,
                f32::NAN,
                f32::INFINITY,
                f32::MAX,
                f32::MIN_POSITIVE,
            ];
            new.extend(floats.map(Value::from));
            new.extend([
                Value::from(f64::from(*number)),
                Value::from(1_u32),
                Value::from("1"),
            ]);
        }
        Value::U32(number) => {
            let numbers = [0, 1, number.wrapping_sub(1), number + 1, 1 << 31, u32::MAX];
            new.extend(numbers.map(Value::from));
            new.extend([
                Value::from(-1_i32),
                Value::from(u64::from(*number)),
                Value::from(*number as f32),
            ]);
            new.extend([
                Value::from(*number as u8),
                Value::from("1"),
                Value::from(Vec::<u32>::new()),
            ]);
            new.extend([vec![*number], vec![*number, 0], vec![*number; 600]].map(Value::from));
        }
        Value::Array(array) => new.extend(arrays_for(array)),
        other => panic!("no changes for a value of type {}", other.type_name()),
    }
    new.retain(|new| new != value);
    new.into_iter().map(|new| (shown(&new), new)).collect()
}

/// Other values for an array: of other lengths and types, and with an odd first, middle and last one.
fn arrays_for(array: &Array) -> Vec<Value> {
    fn spoilt<T: Clone>(values: &[T], odd: &[T]) -> Vec<Vec<T>> {
        if values.is_empty() {
            return vec![odd.to_vec()];
        }
        let mut new = vec![Vec::new(), values[..values.len() - 1].to_vec()];
        new.push(values.iter().chain(&values[..1]).cloned().collect());
        for place in [0, values.len() / 2, values.len() - 1] {
            for odd in odd {
                let mut values = values.to_vec();
                values[place] = odd.clone();
                new.push(values);
            }
        }
        new
    }
    let mut new = vec![Value::from("text"), Value::from(1_u32)];
    match array {
        Array::String(values) => {
            let twin = values.get(values.len() / 3).cloned();
            let odd = [
                String::new(),
                twin.unwrap_or_default(),
                "long".repeat(300),
                "\u{1b}[31m".to_owned(),
            ];
            new.extend(spoilt(values, &odd).into_iter().map(Value::from));
            new.push(Value::from(vec![1_u32; values.len()]));
        }
        Array::F32(values) => {
            let odd = [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MIN];
            new.extend(spoilt(values, &odd).into_iter().map(Value::from));
            new.push(Value::from(vec![1_i32; values.len()]));
        }
        Array::I32(values) => {
            let odd = [0, -1, 2, 6, i32::MAX];
            new.extend(spoilt(values, &odd).into_iter().map(Value::from));
            new.push(Value::from(vec![1.0_f32; values.len()]));
        }
        Array::U32(values) => {
            new.extend(
                spoilt(values, &[0, 1, u32::MAX])
                    .into_iter()
                    .map(Value::from),
            );
        }
        _ => panic!("no changes for such an array"),
    }
    new
}

/// A value in few characters, different for each change.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(array) => {
            let last = serde_json::to_string(array).expect("plain values");
            let first: String = last.chars().take(24).collect();
            let hash = last
                .bytes()
                .fold(7_u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
            return format!(
                "{} of {}, {first}… ({hash:08x})",
                value.type_name(),
                array.len()
            );
        }
        Value::F32(number) => number.to_string(),
        other => serde_json::to_string(other).expect("plain values"),
    };
    let head: String = text.chars().take(24).collect();
    format!("{} {head}", value.type_name())
}

/// Keys that llama.cpp reads and the fixtures lack.
fn further_keys(file: &GgufFile) -> Vec<(String, Value)> {
    let architecture = file
        .metadata
        .iter()
        .find(|(key, _)| key == "general.architecture");
    let Some((_, Value::String(architecture))) = architecture else {
        panic!("fixtures have an architecture");
    };
    let has = |key: &String| file.metadata.iter().any(|(other, _)| other == key);
    let alignments =
        [1_u32, 2, 8, 16, 64].map(|n| ("general.alignment".to_owned(), Value::from(n)));
    let keys: &[(&str, Value)] = match &**architecture {
        "sae" => &[],
        "clip" => &[
            ("clip.has_audio_encoder", true.into()),
            ("clip.has_text_encoder", true.into()),
            ("clip.use_silu", true.into()),
            ("clip.vision.projector_type", "ldp".into()),
            ("clip.vision.feature_layer", vec![0_i32].into()),
            ("clip.vision.feature_layer", vec![-1_i32].into()),
            (
                "clip.vision.image_grid_pinpoints",
                vec![224_i32, 448].into(),
            ),
            ("clip.vision.mm_patch_merge_type", "spatial_unpad".into()),
            ("clip.vision.spatial_merge_size", 0_u32.into()),
            ("clip.vision.window_size", 7_u32.into()),
            ("clip.vision.n_wa_pattern", 0_u32.into()),
            ("clip.vision.wa_layer_indexes", vec![1_i32].into()),
            ("clip.vision.projector.scale_factor", 0_u32.into()),
        ],
        _ => &[
            ("expert_count", 4_u32.into()),
            ("expert_used_count", 9_u32.into()),
            ("nextn_predict_layers", 1_u32.into()),
            ("leading_dense_block_count", 1_u32.into()),
            ("rope.scaling.type", "other".into()),
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", 0.0_f32.into()),
            ("rope.scaling.factor", (-2.0_f32).into()),
            ("rope.scale_linear", f32::NAN.into()),
            ("rope.dimension_sections", vec![1_i32, 1, 1, 1].into()),
            ("attention.sliding_window", 0x8000_0000_u32.into()),
            ("attention.sliding_window", 0_u32.into()),
            ("attention.sliding_window_pattern", 1_u32.into()),
            ("attention.layer_norm_epsilon", f32::NAN.into()),
            ("attention.causal", false.into()),
            ("attention.scale", f32::NAN.into()),
            ("attn_logit_softcapping", 0.0_f32.into()),
            ("final_logit_softcapping", f32::NAN.into()),
            ("vocab_size", 1_u32.into()),
            ("pooling_type", 9_u32.into()),
            ("tokenizer.ggml.pre", "other".into()),
            ("tokenizer.ggml.eot_token_id", u32::MAX.into()),
            ("tokenizer.ggml.mask_token_id", u32::MAX.into()),
            ("tokenizer.ggml.suppress_tokens", vec![-1_i32].into()),
            ("tokenizer.ggml.add_eos_token", true.into()),
            ("tokenizer.ggml.add_space_prefix", 1_u32.into()),
            ("tokenizer.ggml.precompiled_charsmap", vec![1_u32].into()),
            ("general.sampling.top_k", (-1_i32).into()),
            ("split.count", 0_u32.into()),
        ],
    };
    let own = keys.iter().map(|(key, value)| {
        let is_whole = ["clip.", "tokenizer.", "general.", "split."];
        let is_whole = is_whole.iter().any(|start| key.starts_with(start));
        let key = if is_whole {
            (*key).to_owned()
        } else {
            format!("{architecture}.{key}")
        };
        (key, value.clone())
    });
    own.chain(alignments).filter(|(key, _)| !has(key)).collect()
}

/// Tensors that llama.cpp reads and the fixtures lack, in shapes that do not fit, and an unknown one.
fn further_tensors(file: &GgufFile) -> Vec<(String, Vec<u64>)> {
    let names = [
        "unknown.weight",
        // language models
        "rope_freqs.weight",
        "output.bias",
        "output.scale",
        "output_norm.bias",
        "token_embd_norm.weight",
        "blk.0.attn_qkv.weight",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_output.scale",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.rope_freqs.weight",
        "blk.9.attn_q.weight",
        // projectors
        "mm.0.scale",
        "mm.1.weight",
        "mm.3.weight",
        "mm.model.fc.weight",
        "v.post_ln.weight",
        "v.image_newline",
        "v.patch_embd.bias",
        "v.patch_embd.weight.1",
        "v.blk.0.attn_qkv.weight",
        "v.blk.0.attn_q_norm.weight",
        "v.blk.0.ffn_gate.weight",
        "v.blk.0.ls1.weight",
        "v.blk.9.ln1.weight",
        // SAEs
        "sae.w_gate",
        "sae.norm_factor",
    ];
    let is_there = |name: &&str| file.tensors.iter().any(|tensor| tensor.name == *name);
    let names = names.iter().filter(|name| !is_there(name));
    names
        .flat_map(|name| [vec![7], vec![7, 3]].map(|dims| ((*name).to_owned(), dims)))
        .collect()
}

/// Other tensors in a tensor's place.
fn tensors_for(tensor: &Tensor) -> Vec<(String, Option<Tensor>)> {
    let (_, block, _) = tensor.layout();
    let dims = &tensor.dims;
    let mut new = Vec::new();
    for (_, type_name, _, _) in TYPES
        .into_iter()
        .filter(|layout| layout.1 != tensor.type_name)
    {
        new.push((
            format!("as {type_name}"),
            tensor.reshaped(dims.clone(), type_name),
        ));
    }
    let last = dims.len() - 1;
    let reshape = |change: &dyn Fn(&mut Vec<u64>)| {
        let mut dims = dims.clone();
        change(&mut dims);
        (
            format!("dims {dims:?}"),
            tensor.reshaped(dims, tensor.type_name),
        )
    };
    new.push(reshape(&|dims| dims[0] += block));
    new.push(reshape(&|dims| {
        dims[0] = dims[0].saturating_sub(block).max(block)
    }));
    new.push(reshape(&|dims| dims.push(2)));
    if last > 0 {
        new.push(reshape(&|dims| dims.reverse()));
        new.push(reshape(&|dims| dims[last] += 1));
        new.push(reshape(&|dims| {
            dims[last] = dims[last].saturating_sub(1).max(1)
        }));
        new.push(reshape(&|dims| *dims = vec![dims.iter().product()]));
    }
    new.push((
        "renamed".to_owned(),
        Some(Tensor {
            name: format!("x.{}", tensor.name),
            ..tensor.clone()
        }),
    ));
    new.extend(contents_for(tensor).map(|(what, bytes)| {
        (
            what.to_owned(),
            Some(Tensor {
                bytes,
                ..tensor.clone()
            }),
        )
    }));
    // What does not fit blocks, and what is too many dimensions, is no other tensor.
    new.retain(|(_, new)| {
        new.as_ref()
            .is_some_and(|new| new.dims.len() <= 4 && new.dims != [0])
    });
    new.retain(|(what, new)| {
        what == "renamed" || new.as_ref().is_some_and(|new| !is_same(new, tensor))
    });
    new
}

fn is_same(new: &Tensor, old: &Tensor) -> bool {
    (&new.dims, new.type_name, &new.bytes) == (&old.dims, old.type_name, &old.bytes)
}

/// Zeros everywhere, and odd numbers in one row or everywhere.
fn contents_for(tensor: &Tensor) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let (_, _, block_bytes) = tensor.layout();
    let odd = |bits16: u16, number: f32| match tensor.type_name {
        "f32" => number.to_le_bytes().to_vec(),
        "bf16" => ((number.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
        // An f16, or a block that begins with its scale.
        _ => {
            let mut block = vec![1; block_bytes as usize];
            block[..2].copy_from_slice(&bits16.to_le_bytes());
            block
        }
    };
    let all = |value: Vec<u8>| value.repeat(tensor.bytes.len() / value.len());
    let row_bytes = tensor.bytes.len() / tensor.dims[1..].iter().product::<u64>() as usize;
    let first_row = |bytes: Vec<u8>| {
        let mut new = tensor.bytes.clone();
        new[..row_bytes].copy_from_slice(&bytes[..row_bytes]);
        new
    };
    let (nan, infinity) = (all(odd(0x7e00, f32::NAN)), all(odd(0x7c00, f32::INFINITY)));
    let zeros = vec![0; tensor.bytes.len()];
    let negative = all(odd(0xbc00, -1.0));
    [
        ("a row of zeros", first_row(zeros.clone())),
        ("a row of NaN", first_row(nan.clone())),
        ("zeros", zeros),
        ("NaN", nan),
        ("infinite", infinity),
        ("-1", negative),
    ]
    .into_iter()
}
