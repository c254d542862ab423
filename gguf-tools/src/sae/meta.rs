//! What an SAE is, apart from its weights, however it is stored.

use std::fmt;

use flate2::Crc;

/// What an SAE is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct SaeMeta {
    /// How activations result from pre-activations.
    pub architecture: Architecture,
    /// The width of what it reads: the model's `d_model`.
    pub d_in: usize,
    /// The width of what it writes at each place; `d_in`, unless it is a transcoder.
    pub d_out: usize,
    /// The number of features.
    pub d_sae: usize,
    /// Where in the model it reads, such as `blocks.12.hook_resid_post`.
    pub hook_name: String,
    /// Where a transcoder writes, such as `blocks.12.hook_mlp_out`; several places for a cross-layer transcoder. Empty
    /// where it writes where it reads.
    pub hook_names_out: Vec<String>,
    /// Whether the encoder reads `x - b_dec` instead of `x`.
    pub apply_b_dec_to_input: bool,
    /// What its inputs went through in training; the stored weights take them as the model has them.
    pub normalize_activations: NormalizeActivations,
    /// Whether it reads rows less their mean, as `TransformerLens` shows the stream of a model with layer norms
    /// (`center_writing_weights`); that comes before everything else.
    pub is_centred: bool,
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

/// How activations `a` result from pre-activations `h`.
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

impl fmt::Display for SaeMeta {
    /// In a line: format, architecture, size and hook point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = &self.source_format {
            write!(f, "{} of {format}: ", self.kind())?;
        }
        let (architecture, d_sae, read) = (self.architecture.name(), self.d_sae, &self.hook_name);
        match &self.hook_names_out[..] {
            [] => write!(f, "{architecture}, {d_sae} features at {read}"),
            [write] => write!(f, "{architecture}, {d_sae} features from {read} to {write}"),
            [first, .., last] => write!(
                f,
                "{architecture}, {d_sae} features from {read} to {} places, {first} to {last}",
                self.hook_names_out.len()
            ),
        }
    }
}

impl SaeMeta {
    /// What the field calls it, with its article.
    pub fn kind(&self) -> &'static str {
        match self.hook_names_out.len() {
            0 => "an SAE",
            1 => "a transcoder",
            _ => "a cross-layer transcoder",
        }
    }

    /// Whether it writes elsewhere than it reads.
    pub fn is_transcoder(&self) -> bool {
        !self.hook_names_out.is_empty()
    }

    /// The length of a row of the decoder: what a feature writes at all places, side by side.
    pub fn decoder_width(&self) -> usize {
        self.d_out * self.hook_names_out.len().max(1)
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
        if self.is_centred {
            crc.update(b"centred");
        }
        if self.is_transcoder() {
            crc.update(&(self.d_out as u64).to_le_bytes());
            for name in &self.hook_names_out {
                crc.update(name.as_bytes());
                crc.update(&[0]);
            }
        }
        crc.sum()
    }

    /// What is wrong with the values as a whole, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        if self.d_in == 0 || self.d_sae == 0 {
            return Some(format!(
                "an SAE cannot have {} inputs and {} features",
                self.d_in, self.d_sae
            ));
        }
        let mut names = std::iter::once(&self.hook_name).chain(&self.hook_names_out);
        if names.any(String::is_empty) {
            return Some("the hook point has no name".to_owned());
        }
        if let Some(fault) = self.transcoder_fault() {
            return Some(fault);
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
            return Some(format!("`k` is {k}, expected 1 to {}", self.d_sae));
        }
        let is_normalized =
            self.normalize_activations == NormalizeActivations::ExpectedAverageOnlyIn;
        match self.norm_factor {
            Some(factor) if !(factor.is_finite() && factor > 0.0) => Some(format!(
                "the norm factor must be finite and above 0, got {factor}"
            )),
            factor if factor.is_some() != is_normalized => Some(format!(
                "normalisation `{}` {}",
                self.normalize_activations.name(),
                match is_normalized {
                    true => "needs a norm factor",
                    false => "takes no norm factor",
                }
            )),
            _ => None,
        }
    }
    /// What is wrong with where it writes, if anything. What goes through an encoder differently from how it is
    /// published would decode to something else, and no published transcoder does.
    fn transcoder_fault(&self) -> Option<String> {
        if !self.is_transcoder() {
            let (d_in, d_out) = (self.d_in, self.d_out);
            return (d_in != d_out)
                .then(|| format!("an SAE that reads {d_in} cannot write {d_out}"));
        }
        if self.d_out == 0 {
            return Some("a transcoder cannot have 0 outputs".to_owned());
        }
        for (i, name) in self.hook_names_out.iter().enumerate() {
            if *name == self.hook_name || self.hook_names_out[..i].contains(name) {
                return Some(format!("a transcoder cannot read or write `{name}` twice"));
            }
        }
        let unsupported = |what: &str| Some(format!("a transcoder {what} is not supported"));
        if self.apply_b_dec_to_input {
            return unsupported("that subtracts `b_dec` from its input");
        }
        if self.is_centred {
            return unsupported("of rows less their mean");
        }
        match self.normalize_activations {
            NormalizeActivations::None => None,
            other => unsupported(&format!("that normalises its input (`{}`)", other.name())),
        }
    }
}
