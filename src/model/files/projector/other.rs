//! Projectors of types that were not compared with their references, which llama.cpp runs: what of their files
//! can be known without knowing their graphs.
//!
//! llama.cpp ends the process on much else, such as shapes that do not fit one another. That is left to the trial in
//! a child process ([`crate::probe`]). The tables mirror `clip_model_loader`, `clip_n_mmproj_embd` (`tools/mtmd/clip.cpp`)
//! and `PROJECTOR_TYPE_NAMES` (`clip-impl.h`), as llama-cpp-sys-2 0.1.161 carries them.

use gguf_tools::gguf::{Array, Edits, Gguf, TensorInfo, Value};

use super::blocks::{BLOCK_COUNT, FEATURE_LAYER};
use super::header::{
    FFN_WIDTH, HEAD_COUNT, IMAGE_SIZE, LONGEST_EDGE, MAX_BLOCKS, MAX_FFN_WIDTH, MAX_I32, MAX_WIDTH,
    MERGE_TYPE, PATCH_SIZE, PINPOINTS, SCALE_FACTOR, TYPE, WIDTH,
};
use super::say_once;
use super::tensors::Unchecked;
use crate::model::files::rules::{Key, Kind, Role, broken, check_tensor};
use crate::{Error, ErrorKind, Result};

/// llama.cpp's own limit, which the largest in use, 1540, is far below.
const MAX_IMAGE_SIZE: u32 = 8192;
const MAX_PATCH_SIZE: u32 = 1024;
/// The largest in use is 12.8 megapixels.
const MAX_PIXELS: u32 = 1 << 26;
/// Parts that a picture is cut into: 64 at most are in use.
const MAX_TILES: u32 = 256;
/// Patches that become one row, a side: 4 at most are in use.
const MAX_MERGE: u32 = 64;

const VISION_TYPE: &str = "clip.vision.projector_type";
const HAS_VISION: &str = "clip.has_vision_encoder";
const HAS_AUDIO: &str = "clip.has_audio_encoder";
const HAS_GEN_AUDIO: &str = "clip.has_gen_audio_encoder";

/// The types with which llama.cpp sees, and the tensor and its dimension that say how wide their rows are; none
/// where several do.
const SEE: [(&str, Option<(&str, usize)>); 44] = [
    ("mlp", None),    // has a table of its own
    ("gemma3", None), // likewise
    ("ldp", Some(("mm.model.mb_block.1.block.2.1.bias", 0))),
    ("ldpv2", Some(("mm.model.peg.0.bias", 0))),
    ("resampler", Some(("resampler.proj.weight", 0))),
    ("adapter", Some(("adapter.linear.dense_4h_to_h.weight", 1))),
    ("qwen2vl_merger", Some(("mm.2.bias", 0))),
    ("qwen2.5vl_merger", Some(("mm.2.bias", 0))),
    ("qwen2.5o", Some(("mm.2.bias", 0))),
    ("qwen3vl_merger", None),
    ("ling3vl", Some(("mm.2.bias", 0))),
    ("step3vl", Some(("mm.model.fc.weight", 1))),
    ("gemma3nv", Some(("mm.input_projection.weight", 0))),
    ("gemma4v", Some(("mm.input_projection.weight", 1))),
    ("gemma4uv", Some(("mm.input_projection.weight", 1))),
    ("phi4", Some(("mm.2.weight", 1))),
    ("idefics3", Some(("mm.model.fc.weight", 1))),
    ("pixtral", Some(("mm.2.weight", 1))),
    ("internvl", Some(("mm.model.mlp.3.weight", 1))),
    ("llama4", Some(("mm.model.fc.weight", 1))),
    ("lfm2", Some(("mm.2.weight", 1))),
    ("kimivl", Some(("mm.2.weight", 1))),
    ("paddleocr", Some(("mm.2.weight", 1))),
    ("lightonocr", Some(("mm.2.weight", 1))),
    ("cogvlm", Some(("mm.down.weight", 1))),
    ("janus_pro", Some(("mm.1.bias", 0))),
    ("dots_ocr", Some(("mm.2.weight", 1))),
    ("dots3note_v", Some(("mm.2.weight", 1))),
    ("deepseekocr", Some(("mm.model.fc.weight", 1))),
    ("deepseekocr2", Some(("mm.model.fc.weight", 1))),
    ("deepseek4v", Some(("mm.2.weight", 1))),
    ("glm4v", Some(("mm.down.weight", 1))),
    ("glm5v", Some(("mm.down.weight", 1))),
    ("youtuvl", Some(("mm.2.bias", 0))),
    ("yasa2", Some(("mm.2.weight", 1))),
    ("kimik25", Some(("mm.2.weight", 1))),
    ("nemotron_v2_vl", Some(("mm.model.mlp.3.weight", 1))),
    ("exaone4_5", Some(("mm.2.bias", 0))),
    ("hunyuanvl", Some(("mm.model.fc.weight", 1))),
    ("minicpmv4_6", Some(("mm.down.weight", 1))),
    ("mimovl", Some(("mm.2.weight", 1))),
    ("minimax_m3", Some(("mm.merger.fc2.bias", 0))),
    ("granite4_vision", None),
    ("muse-glimmer", Some(("mm.2.weight", 1))),
];

/// The types with which it hears or speaks.
const HEAR: [&str; 19] = [
    "gemma3na",
    "gemma4a",
    "gemma4ua",
    "ultravox",
    "qwen2a",
    "qwen3a",
    "glma",
    "voxtral",
    "meralion",
    "musicflamingo",
    "dots3note_a",
    "lfm2a",
    "granite_speech",
    "mimo_audio",
    "parakeet",
    "qwen3tts_spkenc",
    "qwen3tts_gen",
    "pockettts_spkenc",
    "pockettts_gen",
];

/// The keys that are read of any vision encoder, of whatever type: llama.cpp ends the process where one is of
/// another type than it should be.
const KEYS: &[Key] = &[
    Key::optional("general.name", Kind::Text),
    Key::optional("general.description", Kind::Text),
    Key::optional(TYPE, Kind::Text),
    Key::optional(VISION_TYPE, Kind::Text),
    Key::required(HAS_VISION, Kind::True),
    Key::optional(HAS_AUDIO, Kind::Flag),
    Key::optional(HAS_GEN_AUDIO, Kind::Flag),
    Key::optional("clip.use_gelu", Kind::Flag),
    Key::optional("clip.use_silu", Kind::Flag),
    Key::required(IMAGE_SIZE, Kind::Count(1, MAX_IMAGE_SIZE)),
    Key::required(PATCH_SIZE, Kind::Count(1, MAX_PATCH_SIZE)),
    Key::required(WIDTH, Kind::Count(1, MAX_WIDTH)),
    Key::required(FFN_WIDTH, Kind::Count(0, MAX_FFN_WIDTH)),
    Key::required(BLOCK_COUNT, Kind::Count(1, MAX_BLOCKS)),
    Key::required("clip.vision.projection_dim", Kind::Count(0, MAX_I32)),
    Key::required(HEAD_COUNT, Kind::Count(1, MAX_WIDTH)),
    Key::optional(
        "clip.vision.attention.head_count_kv",
        Kind::Count(1, MAX_WIDTH),
    ),
    Key::optional("clip.vision.attention.head_dim", Kind::Count(1, MAX_WIDTH)),
    Key::required(
        "clip.vision.attention.layer_norm_epsilon",
        Kind::Positive(1.0),
    ),
    Key::required("clip.vision.image_mean", Kind::Three),
    Key::required("clip.vision.image_std", Kind::ThreePositive),
    Key::optional(FEATURE_LAYER, Kind::Ints),
    Key::optional(PINPOINTS, Kind::Ints),
    Key::optional(MERGE_TYPE, Kind::Text),
    Key::optional("clip.minicpmv_version", Kind::Int),
    Key::optional("clip.minicpmv_query_num", Kind::Count(0, MAX_WIDTH)),
    Key::optional("clip.vision.image_min_pixels", Kind::Count(0, MAX_PIXELS)),
    Key::optional("clip.vision.image_max_pixels", Kind::Count(0, MAX_PIXELS)),
    Key::optional("clip.vision.preproc_min_tiles", Kind::Count(0, MAX_TILES)),
    Key::optional("clip.vision.preproc_max_tiles", Kind::Count(1, MAX_TILES)),
    Key::optional(LONGEST_EDGE, Kind::Count(0, MAX_IMAGE_SIZE)),
    Key::optional(SCALE_FACTOR, Kind::Count(1, MAX_MERGE)),
    Key::optional("clip.vision.spatial_merge_size", Kind::Count(1, MAX_MERGE)),
    Key::optional(
        "clip.vision.projector.query_side",
        Kind::Count(1, MAX_MERGE),
    ),
    Key::optional(
        "clip.vision.projector.window_side",
        Kind::Count(1, MAX_MERGE),
    ),
    Key::optional("clip.vision.projector.spatial_offsets", Kind::Ints),
    Key::optional("clip.vision.n_wa_pattern", Kind::Count(0, MAX_BLOCKS)),
    Key::optional("clip.vision.window_size", Kind::Count(0, MAX_IMAGE_SIZE)),
    Key::optional("clip.vision.wa_layer_indexes", Kind::Ints),
    Key::optional("clip.vision.wa_pattern_mode", Kind::Ints),
    Key::optional("clip.vision.sam.head_count", Kind::Count(1, MAX_WIDTH)),
    Key::optional("clip.vision.sam.block_count", Kind::Count(1, MAX_BLOCKS)),
    Key::optional(
        "clip.vision.sam.embedding_length",
        Kind::Count(1, MAX_WIDTH),
    ),
    Key::optional("clip.vision.expert_used_count", Kind::Count(1, MAX_WIDTH)),
    Key::optional("clip.vision.swiglu_clamp", Kind::NotNegative),
];

/// The type of a projector that sees, as llama.cpp reads it.
///
/// # Errors
/// A file without one; a projector that hears and does not see; a type that llama.cpp does not know.
pub(super) fn type_name(file: &Gguf) -> Result<&str> {
    let text = |key| file.str(key).filter(|text| !text.is_empty());
    let is_set = |key| file.get(key) == Some(&Value::Bool(true));
    let found = text(TYPE).or_else(|| text(VISION_TYPE));
    let hears = found.is_some_and(|name| HEAR.contains(&name));
    if hears || is_set(HAS_AUDIO) && !is_set(HAS_VISION) {
        let shown = file.path().display();
        let what = format!("the projector in `{shown}` hears and does not see");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .with_hint("use the projector of a model that sees"));
    }
    let name = match found {
        Some(name) => name,
        None => return Err(broken(file, format!("there is no key `{TYPE}`"))),
    };
    if SEE.iter().any(|(known, _)| *known == name) {
        return Ok(name);
    }
    let what = format!(
        "the projector in `{}` is of type `{}`, which llama.cpp does not know",
        file.path().display(),
        name.escape_debug()
    );
    let known: Vec<_> = SEE.iter().map(|(known, _)| *known).collect();
    Err(Error::new(ErrorKind::Unsupported, what)
        .with_hint(format!("known types are {}", known.join(", "))))
}

/// Checks such a file, for a language model of this width, and says once that it was not compared. Returns what
/// llama.cpp has to read in it otherwise than it stands there.
pub(super) fn check(file: &Gguf, d_model: u64) -> Result<Edits> {
    for key in KEYS {
        key.check(file, "clip")?;
    }
    check_sizes(file)?;
    let name = type_name(file)?;
    let width = SEE.iter().find(|(known, _)| *known == name);
    if let Some((tensor, dim_idx)) = width.and_then(|(_, width)| *width) {
        Unchecked::of(file).check_rows(tensor, dim_idx, d_model)?;
    }
    for tensor in file.tensors().iter().filter(|tensor| !is_of_sound(tensor)) {
        check_type(file, tensor)?;
        check_width(file, tensor)?;
    }
    if name != "gemma3nv" {
        check_blocks(file)?;
    }
    let mut decision = format!(
        "projectors of type `{name}` were not compared with their reference: pictures are read as llama.cpp does it"
    );
    if name == "gemma4uv" {
        decision += ", which scales them to other sides than transformers";
    }
    say_once(file.path(), &[decision]);
    Ok(without_sound(file))
}

/// Leaves out what hears and speaks.
pub(super) fn without_sound(file: &Gguf) -> Edits {
    let mut edits = Edits::default();
    for key in [HAS_AUDIO, HAS_GEN_AUDIO] {
        if file.get(key) == Some(&Value::Bool(true)) {
            edits.set(key, false);
        }
    }
    if edits.is_empty() {
        return edits;
    }
    for tensor in file.tensors().iter().filter(|tensor| is_of_sound(tensor)) {
        edits.leave_out(&tensor.name);
    }
    edits
}

/// Whether a tensor belongs to what hears or speaks.
pub(super) fn is_of_sound(tensor: &TensorInfo) -> bool {
    tensor.name.starts_with("a.") || tensor.name.starts_with("mm.a.")
}

/// Checks what keys say of one another.
fn check_sizes(file: &Gguf) -> Result<()> {
    let [width, n_heads] = [file.require_u32(WIDTH)?, file.require_u32(HEAD_COUNT)?];
    if !width.is_multiple_of(n_heads) {
        let what =
            format!("it asks for {n_heads} attention heads (`{HEAD_COUNT}`) of a width of {width}");
        return Err(broken(file, what));
    }
    let [image, patch] = [file.require_u32(IMAGE_SIZE)?, file.require_u32(PATCH_SIZE)?];
    if patch > image {
        let what = format!("`{IMAGE_SIZE}` {image} is less than `{PATCH_SIZE}` {patch}");
        return Err(broken(file, what));
    }
    let longest = match file.get(LONGEST_EDGE) {
        Some(Value::U32(longest)) => *longest,
        _ => 0,
    };
    let n_tiles = longest.div_ceil(image).pow(2);
    if n_tiles > MAX_TILES {
        let what = format!(
            "`{LONGEST_EDGE}` {longest} cuts a picture into {n_tiles} parts of `{IMAGE_SIZE}` {image}"
        );
        return Err(broken(file, what));
    }
    if let Some(Value::Array(Array::I32(sides))) = file.get(PINPOINTS) {
        let is_side = |side: &i32| {
            u32::try_from(*side).is_ok_and(|side| (1..=MAX_IMAGE_SIZE).contains(&side))
        };
        let most = 2 * MAX_TILES as usize;
        if !sides.iter().all(is_side) || !sides.len().is_multiple_of(2) || sides.len() > most {
            return Err(broken(
                file,
                format!("key `{PINPOINTS}` must be pairs of sides"),
            ));
        }
    }
    if let Some(Value::Array(Array::I32(layers))) = file.get(FEATURE_LAYER) {
        let n_blocks = file.require_u32(BLOCK_COUNT)?;
        let is_layer = |layer: &i32| u32::try_from(*layer).is_ok_and(|layer| layer <= n_blocks);
        if !layers.iter().all(is_layer) || layers.len() > MAX_BLOCKS as usize {
            let what = format!("key `{FEATURE_LAYER}` must be some of the {n_blocks} blocks");
            return Err(broken(file, what));
        }
    }
    Ok(())
}

/// Checks a tensor's number type by what it can be, and its bias by its own outputs.
fn check_type(file: &Gguf, tensor: &TensorInfo) -> Result<()> {
    let n_dims = tensor
        .dims
        .iter()
        .rposition(|&dim| dim != 1)
        .map_or(0, |last| last + 1);
    let role = match n_dims {
        0 | 1 => Role::Vector,
        2 | 3 => Role::Matrix,
        _ => Role::Kernel,
    };
    check_tensor(file, tensor, role, &tensor.dims)?;
    if role == Role::Vector {
        return Ok(());
    }
    let bias = tensor
        .name
        .strip_suffix(".weight")
        .and_then(|stem| file.tensor(&format!("{stem}.bias")));
    match bias {
        Some(bias) => check_tensor(file, bias, Role::Vector, &tensor.dims[n_dims - 1..n_dims]),
        None => Ok(()),
    }
}

/// Checks tensors that make, take or accompany the encoder's rows. llama.cpp repeats norms and position embeddings
/// that are too short.
fn check_width(file: &Gguf, tensor: &TensorInfo) -> Result<()> {
    let part = match tensor.name.strip_prefix("v.blk.") {
        Some(rest) => rest.split_once('.').map_or("", |(_, part)| part),
        None => &tensor.name,
    };
    let is_as_wide = matches!(
        part,
        "v.class_embd"
            | "v.position_embd.weight"
            | "ln1.weight"
            | "ln1.bias"
            | "ln2.weight"
            | "ln2.bias"
            | "attn_q.weight"
            | "attn_k.weight"
            | "attn_v.weight"
            | "attn_qkv.weight"
    );
    let width = u64::from(file.require_u32(WIDTH)?);
    if !is_as_wide || tensor.dims[0] == width {
        return Ok(());
    }
    let what = format!(
        "tensor `{}` must be for rows of {width}, but has the dims {:?}",
        tensor.name, tensor.dims
    );
    Err(broken(file, what))
}

/// Checks that all blocks have what llama.cpp asks of each.
fn check_blocks(file: &Gguf) -> Result<()> {
    for block_idx in 0..file.require_u32(BLOCK_COUNT)? {
        let name = |part| format!("v.blk.{block_idx}.{part}.weight");
        let has_experts = file.tensor(&name("ffn_gate_exps")).is_some();
        let parts: &[&str] = match has_experts {
            true => &["attn_out"],
            false => &["attn_out", "ffn_up", "ffn_down"],
        };
        for name in parts.iter().map(|part| name(part)) {
            if file.tensor(&name).is_none() {
                return Err(broken(file, format!("there is no tensor `{name}`")));
            }
        }
    }
    Ok(())
}
