//! The SAE's GGUF: its keys and tensors, defined here for writing and reading alike.
//!
//! `general.architecture` is `sae`. A gated SAE is stored as the jumprelu one that computes the same
//! (see `saelens`), and a top-k one with its activations rescaled by decoder norms with decoder rows of
//! unit length. Tensors are row-major below; matrices are f32, f16 or q8_0,
//! vectors always f32.
//!
//! | tensor | shape | |
//! | --- | --- | --- |
//! | `sae.w_enc` | `[d_sae, d_in]` | row `i`: encoder direction of feature `i` (the transpose of `W_enc` in SAELens) |
//! | `sae.w_dec` | `[d_sae, d_in]` | row `i`: decoder direction of feature `i` |
//! | `sae.w_enc_screen` | `[d_sae, d_in]` | optional: `sae.w_enc` in q8_0, which a reader computes with to see which features can be active |
//! | `sae.screen_error` | `[d_sae]` | with the screen: L2 norm of each row's difference from `sae.w_enc` |
//! | `sae.screen_norm` | `[d_sae]` | with the screen: L2 norm of each of its rows |
//! | `sae.b_enc` | `[d_sae]` | |
//! | `sae.b_dec` | `[d_in]` | |
//! | `sae.decoder_norm` | `[d_sae]` | L2 norm of each decoder row |
//! | `sae.threshold` | `[d_sae]` | with architecture `jumprelu` alone |
//! | `sae.log_sparsity` | `[d_sae]` | optional: log10 of how often a feature is active in training |
//! | `sae.image_baseline` | `[d_sae]` | optional: mean over pictures of the largest activation on image rows |
//! | `sae.image_frequency` | `[d_sae]` | with the baseline: share of image rows on which a feature is active |
//! | `sae.image_usual` | `[d_sae]` | optional, with the baseline: mean over pictures of the largest activation `m` on image rows, each counting by its own: `Σ m² / Σ m`, or 0 where there is none |
//!
//! Version 2 has the key `sae.centred` (bool): rows are read less their mean.
//! Version 3 is of transcoders, which write elsewhere than they read. It has the keys `sae.hook_names_out` (array of
//! strings), the `n` places where it writes, several for a cross-layer transcoder, and `sae.d_out` (u32), the width there.
//! `sae.w_dec` is `[d_sae, n · d_out]` then, what a feature writes at all places side by side, and `sae.b_dec` is `[d_out]`,
//! of the first place. `sae.w_skip`, `[d_out, d_in]`, is optional: `sae.w_skip · x` is added to the reconstruction.
//! Files without either are of version 1.
//!
//! With the baseline goes the key `sae.image_baseline_pictures` (u32): how many pictures it is of; and
//! `sae.image_baseline_checksum` (u32, optional): the CRC-32 of its vectors' bytes and of that number.
//! `sae.checksum` (u32, optional) is of the keys that decide how features are computed
//! (`SaeMeta::crc32`) and of all tensors above but the baseline's: the CRC-32 of their CRC-32s, the
//! keys' first, then in the file's order, each as four bytes with the lowest first.

use std::path::Path;

use super::meta::{Architecture, NormalizeActivations, SaeMeta};
use crate::gguf::{Array, Gguf, Overwrite, TensorType, TensorWriter, Value, Writer};
use crate::{Error, Result};

const FILE_ARCHITECTURE: &str = "sae";
const FORMAT_VERSION: u32 = 1;
/// Of files with [`CENTRED`], of which programs for the first version would compute other features.
const CENTRED_VERSION: u32 = 2;
/// Of files with [`HOOK_NAMES_OUT`], which programs for the versions before would write where they read.
const TRANSCODER_VERSION: u32 = 3;

pub(super) const W_ENC: &str = "sae.w_enc";
pub(super) const W_DEC: &str = "sae.w_dec";
pub(super) const W_SKIP: &str = "sae.w_skip";
pub(super) const W_ENC_SCREEN: &str = "sae.w_enc_screen";
pub(super) const SCREEN_ERROR: &str = "sae.screen_error";
pub(super) const SCREEN_NORM: &str = "sae.screen_norm";
pub(super) const B_ENC: &str = "sae.b_enc";
pub(super) const B_DEC: &str = "sae.b_dec";
pub(super) const DECODER_NORM: &str = "sae.decoder_norm";
pub(super) const THRESHOLD: &str = "sae.threshold";
pub(super) const LOG_SPARSITY: &str = "sae.log_sparsity";
pub(super) const IMAGE_BASELINE: &str = "sae.image_baseline";
pub(super) const IMAGE_FREQUENCY: &str = "sae.image_frequency";
pub(super) const IMAGE_USUAL: &str = "sae.image_usual";
const CENTRED: &str = "sae.centred";
const HOOK_NAMES_OUT: &str = "sae.hook_names_out";
const D_OUT: &str = "sae.d_out";
pub(super) const BASELINE_PICTURES: &str = "sae.image_baseline_pictures";
pub(super) const BASELINE_CHECKSUM: &str = "sae.image_baseline_checksum";
pub(super) const CHECKSUM: &str = "sae.checksum";

/// Whether a tensor is of the baseline, which a later measurement replaces, and which has a checksum of its own.
pub(super) fn is_of_baseline(tensor: &str) -> bool {
    matches!(tensor, IMAGE_BASELINE | IMAGE_FREQUENCY | IMAGE_USUAL)
}

/// A tensor as the schema wants it.
struct TensorSpec {
    name: &'static str,
    dims: Vec<u64>, // ggml's order: the contiguous dimension first
    kind: Kind,
    is_required: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Matrix,
    Screen,
    Vector,
}

impl SaeMeta {
    /// The tensors that belong to such an SAE, in the file's order.
    fn tensors(&self) -> Vec<TensorSpec> {
        let [d_in, d_out, d_sae] = [self.d_in, self.d_out, self.d_sae].map(|size| size as u64);
        let matrix = |name, dims: [u64; 2], is_required| TensorSpec {
            name,
            dims: dims.to_vec(),
            kind: Kind::Matrix,
            is_required,
        };
        let vector = |name, length, is_required| TensorSpec {
            name,
            dims: vec![length],
            kind: Kind::Vector,
            is_required,
        };
        let mut tensors = vec![
            matrix(W_ENC, [d_in, d_sae], true),
            matrix(W_DEC, [self.decoder_width() as u64, d_sae], true),
            vector(B_ENC, d_sae, true),
            vector(B_DEC, d_out, true),
            vector(DECODER_NORM, d_sae, true),
        ];
        if self.architecture == Architecture::JumpRelu {
            tensors.push(vector(THRESHOLD, d_sae, true));
        }
        if self.is_transcoder() {
            tensors.push(matrix(W_SKIP, [d_in, d_out], false));
        }
        tensors.push(TensorSpec {
            name: W_ENC_SCREEN,
            dims: vec![d_in, d_sae],
            kind: Kind::Screen,
            is_required: false,
        });
        tensors.push(vector(SCREEN_ERROR, d_sae, false));
        tensors.push(vector(SCREEN_NORM, d_sae, false));
        tensors.push(vector(LOG_SPARSITY, d_sae, false));
        tensors.push(vector(IMAGE_BASELINE, d_sae, false));
        tensors.push(vector(IMAGE_FREQUENCY, d_sae, false));
        tensors.push(vector(IMAGE_USUAL, d_sae, false));
        tensors
    }

    /// Whether such an SAE may have the tensor.
    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.tensors().iter().any(|tensor| tensor.name == name)
    }

    /// Checks that the file has the tensors that belong to such an SAE.
    ///
    /// # Errors
    /// When one is missing, or has another shape or type.
    pub(super) fn check_tensors(&self, gguf: &Gguf) -> Result<()> {
        for spec in self.tensors() {
            if !spec.is_required && gguf.tensor(spec.name).is_none() {
                continue;
            }
            let tensor = gguf.require_tensor(spec.name, &spec.dims)?;
            let allowed = match spec.kind {
                Kind::Matrix => &MATRIX_TYPES[..],
                Kind::Screen => &[TensorType::Q8_0],
                Kind::Vector => &[TensorType::F32],
            };
            if !allowed.contains(&tensor.tensor_type) {
                let names: Vec<_> = allowed
                    .iter()
                    .map(|tensor_type| tensor_type.name())
                    .collect();
                return Err(refused(
                    gguf,
                    &format!(
                        "tensor `{}` has the type {}, expected {}",
                        spec.name,
                        tensor.tensor_type.name(),
                        names.join(" or ")
                    ),
                ));
            }
        }
        if self.architecture != Architecture::JumpRelu && gguf.tensor(THRESHOLD).is_some() {
            return Err(refused(
                gguf,
                &format!(
                    "tensor `{THRESHOLD}` does not belong to architecture `{}`",
                    self.architecture.name()
                ),
            ));
        }
        if !self.is_transcoder() && gguf.tensor(W_SKIP).is_some() {
            let why = format!("tensor `{W_SKIP}` belongs to a transcoder alone");
            return Err(refused(gguf, &why));
        }
        for parts in [
            &[IMAGE_BASELINE, IMAGE_FREQUENCY][..],
            &[W_ENC_SCREEN, SCREEN_ERROR, SCREEN_NORM],
        ] {
            let n_there = parts.iter().filter(|name| gguf.tensor(name).is_some());
            if ![0, parts.len()].contains(&n_there.count()) {
                let names = parts.join("`, `");
                return Err(refused(gguf, &format!("`{names}` belong together")));
            }
        }
        if gguf.tensor(IMAGE_USUAL).is_some() && gguf.tensor(IMAGE_BASELINE).is_none() {
            let why = format!("`{IMAGE_USUAL}` belongs to `{IMAGE_BASELINE}`, which is missing");
            return Err(refused(gguf, &why));
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer) {
        writer.set("general.architecture", FILE_ARCHITECTURE);
        writer.set(
            "sae.format_version",
            match (self.is_transcoder(), self.is_centred) {
                (true, _) => TRANSCODER_VERSION,
                (false, true) => CENTRED_VERSION,
                (false, false) => FORMAT_VERSION,
            },
        );
        writer.set("sae.architecture", self.architecture.name());
        if let Architecture::TopK { k } = self.architecture {
            writer.set("sae.k", k as u32);
        }
        writer.set("sae.d_in", self.d_in as u32);
        writer.set("sae.d_sae", self.d_sae as u32);
        writer.set("sae.hook_name", self.hook_name.as_str());
        if self.is_transcoder() {
            writer.set(HOOK_NAMES_OUT, self.hook_names_out.clone());
            writer.set(D_OUT, self.d_out as u32);
        }
        writer.set("sae.apply_b_dec_to_input", self.apply_b_dec_to_input);
        writer.set(
            "sae.normalize_activations",
            self.normalize_activations.name(),
        );
        if self.is_centred {
            writer.set(CENTRED, true);
        }
        if let Some(factor) = self.norm_factor {
            writer.set("sae.norm_factor", factor);
        }
        for (key, text) in [
            ("sae.source_format", &self.source_format),
            ("sae.model_name", &self.model_name),
            ("sae.release", &self.release),
            ("sae.id", &self.id),
            ("sae.labels_source", &self.labels_source),
        ] {
            if let Some(text) = text {
                writer.set(key, text.as_str());
            }
        }
        writer.set("sae.labels", self.labels.clone());
    }

    /// Reads and checks the file's metadata.
    ///
    /// # Errors
    /// When it is not an SAE's file, of another version, or its values are not as the schema has them.
    pub(super) fn read(gguf: &Gguf) -> Result<Self> {
        let file_architecture = gguf.require_str("general.architecture")?;
        if file_architecture != FILE_ARCHITECTURE {
            return Err(refused(
                gguf,
                &format!("it is a file of architecture `{file_architecture}`, not an SAE"),
            )
            .with_hint(
                "convert an SAE with `llava-sae-cpp convert --sae` or `gguf-tools sae` first",
            ));
        }
        let version = gguf.require_u32("sae.format_version")?;
        if !(FORMAT_VERSION..=TRANSCODER_VERSION).contains(&version) {
            return Err(refused(
                gguf,
                &format!("it has format version {version}, but this program reads versions {FORMAT_VERSION} to {TRANSCODER_VERSION}"),
            )
            .with_hint("convert the SAE again, or use a newer version of this program"));
        }
        let normalization = gguf.require_str("sae.normalize_activations")?;
        let d_in = gguf.require_u32("sae.d_in")? as usize;
        let (hook_names_out, d_out) = match version {
            TRANSCODER_VERSION => {
                let names = texts(gguf, HOOK_NAMES_OUT)?;
                if names.is_empty() {
                    return Err(refused(gguf, &format!("key `{HOOK_NAMES_OUT}` is empty")));
                }
                (names, gguf.require_u32(D_OUT)? as usize)
            }
            _ => (Vec::new(), d_in),
        };
        let meta = Self {
            architecture: read_architecture(gguf)?,
            d_in,
            d_out,
            d_sae: gguf.require_u32("sae.d_sae")? as usize,
            hook_name: gguf.require_str("sae.hook_name")?.to_owned(),
            hook_names_out,
            apply_b_dec_to_input: gguf.require_bool("sae.apply_b_dec_to_input")?,
            normalize_activations: NormalizeActivations::from_name(normalization)
                .ok_or_else(|| unknown(gguf, "sae.normalize_activations", normalization))?,
            is_centred: version == CENTRED_VERSION && gguf.require_bool(CENTRED)?,
            norm_factor: match gguf.get("sae.norm_factor") {
                None => None,
                Some(_) => Some(gguf.require_f32("sae.norm_factor")?),
            },
            source_format: optional_str(gguf, "sae.source_format")?,
            model_name: optional_str(gguf, "sae.model_name")?,
            release: optional_str(gguf, "sae.release")?,
            id: optional_str(gguf, "sae.id")?,
            labels: texts(gguf, "sae.labels")?,
            labels_source: optional_str(gguf, "sae.labels_source")?,
        };
        match meta.fault() {
            Some(fault) => Err(refused(gguf, &fault)),
            None => Ok(meta),
        }
    }
}

fn read_architecture(gguf: &Gguf) -> Result<Architecture> {
    match gguf.require_str("sae.architecture")? {
        "standard" => Ok(Architecture::Standard),
        "jumprelu" => Ok(Architecture::JumpRelu),
        "topk" => Ok(Architecture::TopK {
            k: gguf.require_u32("sae.k")? as usize,
        }),
        word => Err(unknown(gguf, "sae.architecture", word)),
    }
}

fn texts(gguf: &Gguf, key: &str) -> Result<Vec<String>> {
    match gguf.get(key) {
        Some(Value::Array(Array::String(texts))) => Ok(texts.clone()),
        other => Err(gguf.wrong_value(key, "array of string", other)),
    }
}

fn optional_str(gguf: &Gguf, key: &str) -> Result<Option<String>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(_) => Ok(Some(gguf.require_str(key)?.to_owned())),
    }
}

fn unknown(gguf: &Gguf, key: &str, word: &str) -> Error {
    refused(gguf, &format!("key `{key}` has the unknown value `{word}`"))
        .with_hint("a newer version of this program may read it")
}

/// The error for a file that is not as the schema says.
pub(super) fn refused(gguf: &Gguf, why: &str) -> Error {
    Error::invalid(format!(
        "cannot read `{}` as an SAE: {why}",
        gguf.path().display()
    ))
}

/// Begins an SAE's file: what follows are its tensors in the schema's order, as
/// [`SaeMeta::tensors`] has them, of the optional ones those in `optional`.
///
/// # Errors
/// When the metadata contradict themselves, or the file cannot be written.
pub(super) fn begin(
    target: &Path,
    overwrite: Overwrite,
    meta: &SaeMeta,
    weight_type: TensorType,
    optional: &[&str],
) -> Result<TensorWriter> {
    if let Some(fault) = meta.fault() {
        return Err(Error::invalid(format!(
            "cannot write `{}`: {fault}",
            target.display()
        )));
    }
    let mut writer = Writer::create(target, overwrite)?;
    meta.write(&mut writer);
    writer.set_checksum(CHECKSUM, meta.crc32());
    for tensor in meta.tensors() {
        if tensor.is_required || optional.contains(&tensor.name) {
            let tensor_type = match tensor.kind {
                Kind::Matrix => weight_type,
                Kind::Screen => TensorType::Q8_0,
                Kind::Vector => TensorType::F32,
            };
            writer.declare(tensor.name, &tensor.dims, tensor_type);
        }
    }
    writer.begin()
}

/// The number types that matrices may have.
pub(super) const MATRIX_TYPES: [TensorType; 3] =
    [TensorType::F32, TensorType::F16, TensorType::Q8_0];
