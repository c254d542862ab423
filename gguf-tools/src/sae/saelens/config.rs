//! SAELens' `cfg.json`, in the spellings of its versions.

use std::path::Path;

use serde::Deserialize;

use super::super::gemma_scope;
use super::super::meta::{Architecture, NormalizeActivations};
use crate::{Error, ErrorKind, Result};

/// `cfg.json`; keys that make no difference to inference are left out.
#[derive(Deserialize)]
pub(super) struct Config {
    architecture: Option<String>,
    pub(super) d_in: Option<usize>,
    pub(super) d_sae: Option<usize>,
    /// Of a transcoder.
    pub(super) d_out: Option<usize>,
    hook_name: Option<String>,
    /// Before SAELens 3; may hold `{layer}`.
    hook_point: Option<String>,
    hook_point_layer: Option<LayerIdx>,
    /// Before SAELens 3, and in what version 6 makes of older files.
    activation_fn: Option<String>,
    /// SAELens 3 to 5: the same.
    activation_fn_str: Option<String>,
    activation_fn_kwargs: Option<ActivationArguments>,
    /// With architecture `topk`.
    k: Option<K>,
    pub(super) rescale_acts_by_decoder_norm: Option<bool>,
    normalize_activations: Option<BoolOrWord>,
    pub(super) apply_b_dec_to_input: Option<bool>,
    pub(super) finetuning_scaling_factor: Option<bool>,
    model_name: Option<String>,
    model_from_pretrained_kwargs: Option<ModelArguments>,
    hook_head_index: Option<usize>,
    hook_point_head_index: Option<usize>,
    /// Of a transcoder.
    hook_name_out: Option<String>,
    /// SAELens 6.
    metadata: Option<ConfigMetadata>,
}

#[derive(Deserialize)]
struct ConfigMetadata {
    hook_name: Option<String>,
    hook_name_out: Option<String>,
    /// The module of Hugging Face's that SAELens' `hook_name` of Gemma Scope 2's transcoders stands for.
    hf_hook_name: Option<String>,
    hook_head_index: Option<usize>,
    model_name: Option<String>,
    model_from_pretrained_kwargs: Option<ModelArguments>,
}

/// How `TransformerLens` loads the model (`load_model` in SAELens' `load_model.py`, which asks for no processing
/// beside this).
#[derive(Clone, Copy, Deserialize)]
struct ModelArguments {
    center_writing_weights: Option<bool>,
}

#[derive(Deserialize)]
struct ActivationArguments {
    k: Option<K>,
}

/// How many features stay; Python writes some as `32.0`.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum K {
    Whole(usize),
    Float(f64),
}

/// An index, or a list with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum LayerIdx {
    Plain(usize),
    Listed([usize; 1]),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BoolOrWord {
    /// Before SAELens 3: whether to do what is now `expected_average_only_in`.
    Bool(bool),
    Word(String),
}

/// How an SAE of SAELens encodes; a gated one differs in its tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoder {
    Plain(Architecture),
    Gated,
    /// A transcoder's (`saes/transcoder.py`).
    Transcoder {
        architecture: Architecture,
        has_skip: bool,
    },
}

/// SAELens' words for transcoders, with what they encode by and whether they have a skip connection.
const TRANSCODERS: [(&str, Architecture, bool); 4] = [
    ("transcoder", Architecture::Standard, false),
    ("skip_transcoder", Architecture::Standard, true),
    ("jumprelu_transcoder", Architecture::JumpRelu, false),
    ("jumprelu_skip_transcoder", Architecture::JumpRelu, true),
];
impl Encoder {
    fn transcoder(&(_, architecture, has_skip): &(&str, Architecture, bool)) -> Self {
        Self::Transcoder {
            architecture,
            has_skip,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain(architecture) => architecture.name(),
            Self::Gated => "gated",
            Self::Transcoder { .. } => {
                let mut known = TRANSCODERS
                    .iter()
                    .filter(|known| self == Self::transcoder(known));
                known.next().expect("the table holds every one").0
            }
        }
    }
}

/// The error for a transcoder in a format of which none is known to be published.
pub(in crate::sae) fn transcoder(path: &Path, hook_in: &str, hook_out: &str) -> Error {
    Error::invalid(format!(
        "`{}`: this is a transcoder from `{hook_in}` to `{hook_out}`, which is not read in this format",
        path.display()
    ))
    .with_hint("transcoders of SAELens (architecture `transcoder` and its kin), Gemma Scope, sparsify and circuit-tracer are read")
}
impl Config {
    /// The architecture. Before SAELens 6, a top-k SAE was a standard one whose activation function
    /// was `topk`.
    pub(super) fn encoder(&self, path: &Path) -> Result<Encoder> {
        let word = self.architecture.as_deref().unwrap_or("standard");
        let metadata = self.metadata.as_ref();
        let hook_out = metadata.and_then(|metadata| metadata.hook_name_out.as_ref());
        let known = TRANSCODERS.iter().find(|known| known.0 == word);
        if known.is_none()
            && let Some(out) = hook_out.or(self.hook_name_out.as_ref())
        {
            let hook_in = self.hook_name(path).unwrap_or_default();
            return Err(transcoder(path, &hook_in, out));
        }
        let head = metadata.and_then(|metadata| metadata.hook_head_index);
        if let Some(head) = head.or(self.hook_head_index).or(self.hook_point_head_index) {
            return Err(Error::invalid(format!(
                "`{}`: it reads attention head {head} alone, which is not supported",
                path.display()
            ))
            .with_hint("use an SAE of all heads, or of the residual stream"));
        }
        let activation_fn = self
            .activation_fn
            .as_ref()
            .or(self.activation_fn_str.as_ref());
        let is_topk = match (word, activation_fn.map(String::as_str)) {
            (_, Some("topk")) | ("topk", _) => true,
            (_, None | Some("relu")) => false,
            (_, Some(word)) => {
                let key = self
                    .activation_fn
                    .as_ref()
                    .map_or("activation_fn_str", |_| "activation_fn");
                return Err(unsupported(path, key, word, "`relu` and `topk`"));
            }
        };
        if let (Some(known), false) = (known, is_topk) {
            return Ok(Encoder::transcoder(known));
        }
        match word {
            "standard" | "topk" if is_topk => {
                Ok(Encoder::Plain(Architecture::TopK { k: self.k(path)? }))
            }
            "standard" => Ok(Encoder::Plain(Architecture::Standard)),
            "jumprelu" if !is_topk => Ok(Encoder::Plain(Architecture::JumpRelu)),
            "gated" if !is_topk => Ok(Encoder::Gated),
            word if word.contains("batchtopk") => Err(Error::invalid(format!(
                "`{}`: `architecture` is `{word}`: this is a checkpoint of the training, in which features depend on the rest of the batch",
                path.display()
            ))
            .with_hint("save it for inference, with SAELens: `TrainingSAE.load_from_disk(folder).save_inference_model(other_folder)` makes a `jumprelu` SAE of it")),
            word => Err(unsupported(
                path,
                "architecture",
                word,
                "`standard`, `jumprelu` (which BatchTopK SAEs are saved as), `topk`, `gated`, and of transcoders `transcoder`, `skip_transcoder`, `jumprelu_transcoder` and `jumprelu_skip_transcoder`",
            )),
        }
    }

    /// The model, as the field calls it.
    pub(super) fn model_name(self) -> Option<String> {
        let of_metadata = self.metadata.and_then(|metadata| metadata.model_name);
        of_metadata.or(self.model_name)
    }

    /// Whether the model's rows had their mean subtracted, where the file says it.
    pub(super) fn is_centred(&self) -> Option<bool> {
        let metadata = self.metadata.as_ref();
        let of_metadata = metadata.and_then(|metadata| metadata.model_from_pretrained_kwargs);
        of_metadata
            .or(self.model_from_pretrained_kwargs)?
            .center_writing_weights
    }

    fn k(&self, path: &Path) -> Result<usize> {
        let arguments = self.activation_fn_kwargs.as_ref();
        match arguments.and_then(|arguments| arguments.k).or(self.k) {
            Some(K::Whole(k)) => Ok(k),
            Some(K::Float(k)) if k.fract() == 0.0 && k >= 0.0 => Ok(k as usize),
            Some(K::Float(k)) => Err(unsupported(path, "k", &k.to_string(), "a whole number")),
            None => Err(Error::invalid(format!(
                "`{}` has no key `k`, which says how many features a top-k SAE keeps",
                path.display()
            ))),
        }
    }

    pub(super) fn normalization(&self, path: &Path) -> Result<NormalizeActivations> {
        match &self.normalize_activations {
            None | Some(BoolOrWord::Bool(false)) => Ok(NormalizeActivations::None),
            Some(BoolOrWord::Bool(true)) => Ok(NormalizeActivations::ExpectedAverageOnlyIn),
            Some(BoolOrWord::Word(word)) if word == "covariance_whitening" => {
                Err(Error::invalid(format!(
                    "`{}`: the SAE reads whitened activations (`covariance_whitening`), but the whitening matrix is not in the files",
                    path.display()
                ))
                .with_hint("fold it into the weights with `fold_activation_whitening` of SAELens and save the SAE again"))
            }
            Some(BoolOrWord::Word(word)) => {
                NormalizeActivations::from_name(word).ok_or_else(|| {
                    unsupported(
                        path,
                        "normalize_activations",
                        word,
                        "`none`, `expected_average_only_in`, `constant_norm_rescale` and `layer_norm`",
                    )
                })
            }
        }
    }

    /// Where a transcoder writes.
    pub(super) fn hook_name_out(&self, path: &Path) -> Result<String> {
        let metadata = self.metadata.as_ref();
        let of_metadata = metadata.and_then(|metadata| metadata.hook_name_out.as_ref());
        let name = of_metadata.or(self.hook_name_out.as_ref());
        name.cloned().ok_or_else(|| {
            Error::invalid(format!(
                "`{}` has no key `hook_name_out`, which says where the transcoder writes",
                path.display()
            ))
            .with_hint(
                "add it to its `metadata`, such as `\"hook_name_out\": \"blocks.12.hook_mlp_out\"`",
            )
        })
    }

    pub(super) fn hook_name(&self, path: &Path) -> Result<String> {
        let metadata = self.metadata.as_ref();
        let spellings = [
            metadata.and_then(|metadata| metadata.hook_name.as_ref()),
            self.hook_name.as_ref(),
            self.hook_point.as_ref(),
        ];
        let Some(name) = spellings.into_iter().flatten().next() else {
            return Err(
                Error::invalid(format!("`{}` has no key `hook_name`", path.display()))
                    .of_kind(ErrorKind::HookPointMissing)
                    .with_hint("name the hook point, such as `blocks.12.hook_resid_post`"),
            );
        };
        // SAELens calls what its Gemma Scope 2 transcoders read `hook_mlp_in`, which is another place in
        // TransformerLens.
        let module = metadata.and_then(|metadata| metadata.hf_hook_name.as_deref());
        if name.ends_with(".hook_mlp_in")
            && let Some(name) = module.and_then(gemma_scope::hook_of_module)
        {
            return Ok(name);
        }
        Ok(match self.hook_point_layer {
            Some(LayerIdx::Plain(layer) | LayerIdx::Listed([layer])) => {
                name.replace("{layer}", &layer.to_string())
            }
            None => name.clone(),
        })
    }
}

/// The error for a key of a configuration with a value that is not read.
pub(in crate::sae) fn unsupported(path: &Path, key: &str, word: &str, supported: &str) -> Error {
    Error::invalid(format!(
        "`{}`: `{key}` is `{word}`, which is not supported",
        path.display()
    ))
    .with_hint(format!("supported: {supported}"))
}
