//! How positions turn a head's pairs (RoPE), and how far a model's context was stretched.

use serde::Deserialize;

use super::checks::{expect, positive};

/// The angles of blocks that see the whole context.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) theta: f32,
    pub(crate) scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// All positions are divided by it.
    Linear(f32),
    /// What each pair's angle is divided by.
    Factors(Vec<f32>), // [d_head / 2]
}

/// `rope_scaling`, or transformers 5's `rope_parameters`.
#[derive(Default, Deserialize)]
pub(super) struct RawRope {
    pub(super) rope_theta: Option<f32>,
    rope_type: Option<String>,
    /// Its older name; some files have both.
    #[serde(rename = "type")]
    old_rope_type: Option<String>,
    pub(super) factor: Option<f32>,
    /// The share of a head's pairs that turn.
    pub(super) partial_rotary_factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    /// For each kind of block, where there are two.
    full_attention: Option<Box<RawRope>>,
    sliding_attention: Option<Box<RawRope>>,
}

impl RawRope {
    /// The one of blocks that see all, and of those that see a window, if it is said.
    pub(super) fn by_kind(self) -> (Self, Option<Self>) {
        match self.full_attention {
            Some(full) => (*full, self.sliding_attention.map(|sliding| *sliding)),
            None => (self, None),
        }
    }

    /// The type under one of its names, where it is not the default.
    pub(super) fn check_type(&self, supported: &[&str]) -> std::result::Result<(), String> {
        self.check_type_or("default", supported)
    }

    /// The same, where another type is the default.
    pub(super) fn check_type_or(
        &self,
        default: &str,
        supported: &[&str],
    ) -> std::result::Result<(), String> {
        for rope_type in [&self.rope_type, &self.old_rope_type] {
            expect(rope_type, "rope_type", default, supported)?;
        }
        Ok(())
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.rope_theta.is_none()
            && self.rope_type.is_none()
            && self.partial_rotary_factor.is_none()
    }

    /// What is made of it for heads of `d_head` values.
    pub(super) fn scaling(
        &self,
        theta: f32,
        d_head: usize,
    ) -> std::result::Result<RopeScaling, String> {
        // A `dynamic` one changes nothing within the context that the file says.
        self.check_type(&["default", "linear", "llama3", "dynamic"])?;
        let number = |key: &str, value: Option<f32>| {
            let key = format!("rope_scaling.{key}");
            let value = value.ok_or_else(|| format!("`{key}` is missing"))?;
            positive(&key, value).map(|()| value)
        };
        match self.rope_type.as_ref().or(self.old_rope_type.as_ref()) {
            Some(name) if name == "linear" => {
                Ok(RopeScaling::Linear(number("factor", self.factor)?))
            }
            Some(name) if name == "llama3" => {
                let bands = Bands {
                    factor: number("factor", self.factor)?,
                    low: number("low_freq_factor", self.low_freq_factor)?,
                    high: number("high_freq_factor", self.high_freq_factor)?,
                    original_context: number(
                        "original_max_position_embeddings",
                        self.original_max_position_embeddings.map(|n| n as f32),
                    )?,
                };
                if bands.low >= bands.high {
                    return Err(
                        "`rope_scaling.low_freq_factor` must be below `high_freq_factor`"
                            .to_owned(),
                    );
                }
                let pairs = (0..d_head / 2).map(|pair_idx| {
                    let angle = f64::from(theta).powf(-2.0 * pair_idx as f64 / d_head as f64);
                    bands.divisor(std::f64::consts::TAU / angle)
                });
                Ok(RopeScaling::Factors(pairs.collect()))
            }
            _ => Ok(RopeScaling::None),
        }
    }
}

/// Llama 3.1's stretching: short waves stay, long ones are divided by `factor`, those between in part
/// (`_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`).
struct Bands {
    factor: f32,
    low: f32,
    high: f32,
    original_context: f32,
}

impl Bands {
    /// What the angle of a wave of that many positions is divided by.
    fn divisor(&self, wave: f64) -> f32 {
        let [factor, low, high, context] =
            [self.factor, self.low, self.high, self.original_context].map(f64::from);
        let kept = ((context / wave - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / factor + kept)) as f32
    }
}
