//! What a vocabulary must hold (`llama_vocab::impl::load` in `src/llama-vocab.cpp` of llama.cpp).

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use gguf_tools::gguf::{Array, Gguf, Value};

use super::rules::{Key, Kind, broken, wrong_value};
use crate::Result;

const KEYS: &[Key] = &[
    // SentencePiece and BPE: the architectures' own, and what prompts here are made for.
    Key::required(
        "tokenizer.ggml.model",
        Kind::OneOf(&["llama", "gpt2", "gemma4"]),
    ),
    Key::optional("tokenizer.ggml.pre", Kind::Text),
    Key::required("tokenizer.ggml.tokens", Kind::Texts),
    Key::required("tokenizer.ggml.token_type", Kind::Ints),
    Key::optional("tokenizer.ggml.merges", Kind::Texts),
    Key::optional("tokenizer.ggml.add_bos_token", Kind::Flag),
    Key::optional("tokenizer.ggml.add_eos_token", Kind::Flag),
    Key::optional("tokenizer.ggml.add_sep_token", Kind::Flag),
    Key::optional("tokenizer.ggml.add_space_prefix", Kind::Flag),
    Key::optional("tokenizer.ggml.remove_extra_whitespaces", Kind::Flag),
    Key::optional("tokenizer.ggml.normalizer.lowercase", Kind::Flag),
    Key::optional("tokenizer.ggml.normalizer.strip_accents", Kind::Flag),
    Key::optional("tokenizer.ggml.suppress_tokens", Kind::Ints),
    Key::optional("tokenizer.ggml.token_type_count", ANY),
    Key::optional("tokenizer.chat_template", Kind::Text),
    // llama.cpp leaves out those of these that are no token, and many files have such.
    Key::optional("tokenizer.ggml.unknown_token_id", ANY),
    Key::optional("tokenizer.ggml.seperator_token_id", ANY),
    Key::optional("tokenizer.ggml.padding_token_id", ANY),
    Key::optional("tokenizer.ggml.mask_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_pre_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_suf_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_mid_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_pad_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_rep_token_id", ANY),
    Key::optional("tokenizer.ggml.fim_sep_token_id", ANY),
    Key::optional("tokenizer.ggml.prefix_token_id", ANY),
    Key::optional("tokenizer.ggml.suffix_token_id", ANY),
    Key::optional("tokenizer.ggml.middle_token_id", ANY),
];

const ANY: Kind = Kind::Count(0, u32::MAX);

/// The ways to cut text for BPE that llama.cpp knows (`llama_vocab::impl::load`).
const PRE_TOKENIZERS: &str = "\
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe \
    command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone \
    exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o \
    gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 \
    hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de \
    jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe \
    llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 \
    mmbert modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe \
    sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe \
    talkie tekken tiny_aya trillion ufakzeka viking whitespace youtu";

/// `LLAMA_TOKEN_TYPE_BYTE`, the last of the types.
const BYTE: i32 = 6;

/// Checks the vocabulary of a language model, and returns its number of tokens.
pub(super) fn check(model: &Gguf) -> Result<u64> {
    for key in KEYS {
        key.check(model, "")?;
    }
    let is_gemma4 = model.require_str("tokenizer.ggml.model")? == "gemma4"; // BPE, with bytes as SentencePiece has them
    let is_bpe = is_gemma4 || model.require_str("tokenizer.ggml.model")? == "gpt2";
    let tokens = strings(model, "tokenizer.ggml.tokens");
    check_tokens(model, tokens)?;
    check_types(model, tokens)?;
    check_scores(model, tokens.len(), is_bpe)?;
    if is_bpe {
        check_pre_tokenizer(model)?;
        check_merges(model)?;
    }
    // Where a file lacks one of the first two, llama.cpp takes these, or aborts.
    let (bos, eos) = match (is_gemma4, is_bpe) {
        (true, _) => (usize::MAX, usize::MAX),
        (false, true) => (11, 11),
        (false, false) => (1, 2),
    };
    for (name, default) in [
        ("bos", Some(bos)),
        ("eos", Some(eos)),
        ("eot", None),
        ("eom", None),
    ] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let expected = format!("one of the {} tokens", tokens.len());
        match (model.get(&key), default) {
            (Some(Value::U32(id)), _) if (*id as usize) < tokens.len() => {}
            (Some(value), _) => return Err(wrong_value(model, &key, expected, value)),
            (None, Some(id)) if id >= tokens.len() => {
                let what = format!("there is no key `{key}`, which must be {expected}");
                return Err(broken(model, what));
            }
            (None, _) => {}
        }
    }
    Ok(tokens.len() as u64)
}

/// llama.cpp has a default where a file names none.
fn check_pre_tokenizer(model: &Gguf) -> Result<()> {
    const KEY: &str = "tokenizer.ggml.pre";
    match model.get(KEY) {
        Some(value @ Value::String(name))
            if !name.is_empty() && !PRE_TOKENIZERS.split(' ').any(|known| known == name) =>
        {
            Err(wrong_value(model, KEY, "one that llama.cpp knows", value))
        }
        _ => Ok(()),
    }
}

/// The strings of a key whose type is checked; none where it is not there.
fn strings<'a>(model: &'a Gguf, key: &str) -> &'a [String] {
    match model.get(key) {
        Some(Value::Array(Array::String(texts))) => texts,
        _ => &[],
    }
}

/// llama.cpp asserts that no two tokens are the same, after it has given names to empty ones.
fn check_tokens(model: &Gguf, tokens: &[String]) -> Result<()> {
    if tokens.is_empty() {
        return Err(broken(model, "key `tokenizer.ggml.tokens` holds no token"));
    }
    let names = || {
        tokens.iter().enumerate().map(|(id, token)| match &**token {
            "" => Cow::from(format!("[EMPTY_{id}]")),
            text => text.into(),
        })
    };
    // Sorting hashes takes half the time of filling a set: 7 ms for 262,208 tokens.
    let state = RandomState::new();
    let mut hashes: Vec<u64> = names().map(|name| state.hash_one(name)).collect();
    hashes.sort_unstable();
    if hashes.windows(2).all(|pair| pair[0] != pair[1]) {
        return Ok(());
    }
    let mut seen = HashSet::with_capacity(tokens.len());
    match names().position(|name| !seen.insert(name)) {
        Some(id) => Err(broken(
            model,
            format!(
                "token {id} of `tokenizer.ggml.tokens`, `{}`, is present twice",
                tokens[id].escape_debug()
            ),
        )),
        None => Ok(()),
    }
}

/// Types are known, and tokens of bytes are spelled as such: `<0x0A>`.
fn check_types(model: &Gguf, tokens: &[String]) -> Result<()> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let Some(Value::Array(Array::I32(types))) = model.get(KEY) else {
        return Ok(());
    };
    check_length(model, KEY, types.len(), tokens.len())?;
    for (id, (token_type, token)) in types.iter().zip(tokens).enumerate() {
        if !(0..=BYTE).contains(token_type) {
            let what = format!("token {id} has type {token_type} in `{KEY}`, which is not known");
            return Err(broken(model, what));
        }
        if *token_type == BYTE && !is_byte(token) {
            let what = format!(
                "token {id} has the type of a byte in `{KEY}`, and is `{}`, not such as `<0x0A>`",
                token.escape_debug()
            );
            return Err(broken(model, what));
        }
    }
    Ok(())
}

fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| {
        digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    })
}

/// SentencePiece joins what has the best score; BPE needs none.
fn check_scores(model: &Gguf, n_tokens: usize, is_bpe: bool) -> Result<()> {
    const KEY: &str = "tokenizer.ggml.scores";
    let n_scores = match model.get(KEY) {
        Some(Value::Array(Array::F32(scores))) => {
            if let Some(id) = scores.iter().position(|score| score.is_nan()) {
                return Err(broken(
                    model,
                    format!("token {id} has no number in `{KEY}`"),
                ));
            }
            scores.len()
        }
        Some(Value::Array(Array::I32(scores))) => scores.len(),
        Some(other) => return Err(wrong_value(model, KEY, "an array of f32", other)),
        None if is_bpe => return Ok(()),
        None => return Err(broken(model, format!("there is no key `{KEY}`"))),
    };
    check_length(model, KEY, n_scores, n_tokens)
}

/// BPE joins by a list of pairs, each with a space between.
fn check_merges(model: &Gguf) -> Result<()> {
    const KEY: &str = "tokenizer.ggml.merges";
    // Its tokens are found without them.
    let is_kimi_k2 = matches!(
        model.get("tokenizer.ggml.pre"),
        Some(Value::String(name)) if name == "kimi-k2"
    );
    if model.get(KEY).is_none() && !is_kimi_k2 {
        return Err(broken(model, format!("there is no key `{KEY}`")));
    }
    let is_pair = |merge: &String| merge.bytes().skip(1).any(|byte| byte == b' ');
    match strings(model, KEY).iter().find(|merge| !is_pair(merge)) {
        Some(merge) => Err(broken(
            model,
            format!("`{}` in `{KEY}` is not a pair", merge.escape_debug()),
        )),
        None => Ok(()),
    }
}

fn check_length(model: &Gguf, key: &str, length: usize, n_tokens: usize) -> Result<()> {
    if length == n_tokens {
        return Ok(());
    }
    Err(broken(
        model,
        format!("key `{key}` must have one value for each of the {n_tokens} tokens, got {length}"),
    ))
}
