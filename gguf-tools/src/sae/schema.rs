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
//!
//! With the baseline goes the key `sae.image_baseline_pictures` (u32): how many pictures it is of; and
//! `sae.image_baseline_checksum` (u32, optional): the CRC-32 of its two vectors' bytes and of that number.
//! `sae.checksum` (u32, optional) is of the keys that decide how features are computed
//! (`SaeMeta::crc32`) and of all tensors above but the baseline's: the CRC-32 of their CRC-32s, the
//! keys' first, then in the file's order, each as four bytes with the lowest first.

use std::fmt;
use std::path::Path;

use flate2::Crc;

use crate::gguf::{Array, Gguf, Overwrite, TensorType, TensorWriter, Value, Writer};
use crate::{Error, Result};

const FILE_ARCHITECTURE: &str = "sae";
const FORMAT_VERSION: u32 = 1;

pub(super) const W_ENC: &str = "sae.w_enc";
pub(super) const W_DEC: &str = "sae.w_dec";
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
pub(super) const BASELINE_PICTURES: &str = "sae.image_baseline_pictures";
pub(super) const BASELINE_CHECKSUM: &str = "sae.image_baseline_checksum";
pub(super) const CHECKSUM: &str = "sae.checksum";

/// What an SAE is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct SaeMeta {
    /// How activations come of pre-activations.
    pub architecture: Architecture,
    /// The width of what it reads: the model's `d_model`.
    pub d_in: usize,
    /// The number of features.
    pub d_sae: usize,
    /// Where in the model it reads, such as `blocks.12.hook_resid_post`.
    pub hook_name: String,
    /// Whether the encoder reads `x - b_dec` instead of `x`.
    pub apply_b_dec_to_input: bool,
    /// What its inputs went through in training; the stored weights take them as the model has them.
    pub normalize_activations: NormalizeActivations,
    /// The factor that was folded into the weights; given exactly with `expected_average_only_in`.
    pub norm_factor: Option<f32>,
    /// The format that it was published in: `SAELens`, `Gemma Scope`.
    pub source_format: Option<String>,
    /// The model it was trained on, as the field calls it: `gemma-2b`.
    pub model_name: Option<String>,
    /// SAELens' name for the collection: `gemma-2b-res-jb`.
    pub release: Option<String>,
    /// SAELens' name within the release.
    pub id: Option<String>,
    /// What each feature stands for: `[d_sae]`, with empty texts where unknown, or nothing at all.
    pub labels: Vec<String>,
    /// Where the labels come from.
    pub labels_source: Option<String>,
}

/// How activations `a` come of pre-activations `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `a = max(h, 0)`.
    Standard,
    /// `a = h` where `h` is positive and above the feature's threshold, else 0.
    JumpRelu,
    /// `a = max(h, 0)` for the `k` features with the largest `h`, else 0.
    TopK {
        /// How many, from 1 to `d_sae`.
        k: usize,
    },
}

/// What an SAE's inputs went through in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormalizeActivations {
    /// Nothing.
    None,
    /// A constant factor that brings their average norm to `sqrt(d_in)`; it is folded into the
    /// weights.
    ExpectedAverageOnlyIn,
    /// Each row was brought to the norm `sqrt(d_in)`; the encoder has to do so too.
    ConstantNormRescale,
    /// Each row's mean was subtracted, and it was divided by its standard deviation; the encoder has
    /// to do so too.
    LayerNorm,
}

const NORMALIZATIONS: [(NormalizeActivations, &str); 4] = [
    (NormalizeActivations::None, "none"),
    (
        NormalizeActivations::ExpectedAverageOnlyIn,
        "expected_average_only_in",
    ),
    (
        NormalizeActivations::ConstantNormRescale,
        "constant_norm_rescale",
    ),
    (NormalizeActivations::LayerNorm, "layer_norm"),
];

impl Architecture {
    /// SAELens' word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::JumpRelu => "jumprelu",
            Self::TopK { .. } => "topk",
        }
    }

    fn read(gguf: &Gguf) -> Result<Self> {
        match gguf.require_str("sae.architecture")? {
            "standard" => Ok(Self::Standard),
            "jumprelu" => Ok(Self::JumpRelu),
            "topk" => Ok(Self::TopK {
                k: gguf.require_u32("sae.k")? as usize,
            }),
            word => Err(unknown(gguf, "sae.architecture", word)),
        }
    }
}

impl NormalizeActivations {
    /// SAELens' word for it.
    pub fn name(self) -> &'static str {
        let entry = NORMALIZATIONS.iter().find(|(value, _)| *value == self);
        entry.expect("the table holds every value").1
    }

    /// The normalisation with that name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let entry = NORMALIZATIONS.iter().find(|(_, known)| *known == name);
        entry.map(|(value, _)| *value)
    }
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

impl fmt::Display for SaeMeta {
    /// In a line: format, architecture, size and hook point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = &self.source_format {
            write!(f, "an SAE of {format}: ")?;
        }
        write!(
            f,
            "{}, {} features at {}",
            self.architecture.name(),
            self.d_sae,
            self.hook_name
        )
    }
}

impl SaeMeta {
    /// The tensors that belong to such an SAE, in the file's order.
    fn tensors(&self) -> Vec<TensorSpec> {
        let (d_in, d_sae) = (self.d_in as u64, self.d_sae as u64);
        let matrix = |name| TensorSpec {
            name,
            dims: vec![d_in, d_sae],
            kind: Kind::Matrix,
            is_required: true,
        };
        let vector = |name, length, is_required| TensorSpec {
            name,
            dims: vec![length],
            kind: Kind::Vector,
            is_required,
        };
        let mut tensors = vec![
            matrix(W_ENC),
            matrix(W_DEC),
            vector(B_ENC, d_sae, true),
            vector(B_DEC, d_in, true),
            vector(DECODER_NORM, d_sae, true),
        ];
        if self.architecture == Architecture::JumpRelu {
            tensors.push(vector(THRESHOLD, d_sae, true));
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
        Ok(())
    }

    /// The CRC-32 of what decides how features are computed.
    pub(super) fn crc32(&self) -> u32 {
        let mut crc = Crc::new();
        for text in [
            self.architecture.name(),
            &self.hook_name,
            self.normalize_activations.name(),
        ] {
            crc.update(text.as_bytes());
            crc.update(&[0]);
        }
        let k = match self.architecture {
            Architecture::TopK { k } => k,
            Architecture::Standard | Architecture::JumpRelu => 0,
        };
        for number in [
            k as u64,
            self.d_in as u64,
            self.d_sae as u64,
            u64::from(self.apply_b_dec_to_input),
            u64::from(self.norm_factor.map_or(0, f32::to_bits)),
        ] {
            crc.update(&number.to_le_bytes());
        }
        crc.sum()
    }

    /// What is wrong with the values as a whole, if anything.
    fn fault(&self) -> Option<String> {
        if self.d_in == 0 || self.d_sae == 0 {
            return Some(format!(
                "{} inputs and {} features are too few",
                self.d_in, self.d_sae
            ));
        }
        if self.hook_name.is_empty() {
            return Some("the hook point has no name".to_owned());
        }
        if !self.labels.is_empty() && self.labels.len() != self.d_sae {
            return Some(format!(
                "{} features have {} labels",
                self.d_sae,
                self.labels.len()
            ));
        }
        if let Architecture::TopK { k } = self.architecture
            && (k == 0 || k > self.d_sae)
        {
            return Some(format!("`k` is {k}, and there are {} features", self.d_sae));
        }
        let is_normalized =
            self.normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn;
        match self.norm_factor {
            Some(factor) if !(factor.is_finite() && factor > 0.0) => Some(format!(
                "the norm factor must be finite and above 0, got {factor}"
            )),
            factor if factor.is_some() != is_normalized => Some(format!(
                "the norm factor is {factor:?} with normalisation `{}`",
                self.normalize_activations.name()
            )),
            _ => None,
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.set("general.architecture", FILE_ARCHITECTURE);
        writer.set("sae.format_version", FORMAT_VERSION);
        writer.set("sae.architecture", self.architecture.name());
        if let Architecture::TopK { k } = self.architecture {
            writer.set("sae.k", k as u32);
        }
        writer.set("sae.d_in", self.d_in as u32);
        writer.set("sae.d_sae", self.d_sae as u32);
        writer.set("sae.hook_name", self.hook_name.as_str());
        writer.set("sae.apply_b_dec_to_input", self.apply_b_dec_to_input);
        writer.set(
            "sae.normalize_activations",
            self.normalize_activations.name(),
        );
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
    /// When it is no SAE's file, of another version, or its values are not as the schema has them.
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
        if version != FORMAT_VERSION {
            return Err(refused(
                gguf,
                &format!("it has format version {version}, and this program reads version {FORMAT_VERSION}"),
            )
            .with_hint("convert the SAE again, or use a newer version of this program"));
        }
        let normalization = gguf.require_str("sae.normalize_activations")?;
        let meta = Self {
            architecture: Architecture::read(gguf)?,
            d_in: gguf.require_u32("sae.d_in")? as usize,
            d_sae: gguf.require_u32("sae.d_sae")? as usize,
            hook_name: gguf.require_str("sae.hook_name")?.to_owned(),
            apply_b_dec_to_input: gguf.require_bool("sae.apply_b_dec_to_input")?,
            normalize_activations: NormalizeActivations::from_name(normalization)
                .ok_or_else(|| unknown(gguf, "sae.normalize_activations", normalization))?,
            norm_factor: match gguf.get("sae.norm_factor") {
                None => None,
                Some(_) => Some(gguf.require_f32("sae.norm_factor")?),
            },
            source_format: optional_str(gguf, "sae.source_format")?,
            model_name: optional_str(gguf, "sae.model_name")?,
            release: optional_str(gguf, "sae.release")?,
            id: optional_str(gguf, "sae.id")?,
            labels: match gguf.get("sae.labels") {
                Some(Value::Array(Array::String(labels))) => labels.clone(),
                other => return Err(gguf.wrong_value("sae.labels", "array of string", other)),
            },
            labels_source: optional_str(gguf, "sae.labels_source")?,
        };
        match meta.fault() {
            Some(fault) => Err(refused(gguf, &fault)),
            None => Ok(meta),
        }
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
