//! Interventions at hook points: pure edits of rows. Nothing here knows a runtime or a file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::hook_point::HookPoint;
use crate::positions::{Part, Token, TokenKind};
use crate::product::dot;
use crate::sae::{FeatureId, SaeSet};
use crate::{Error, ErrorKind, Result};

pub use crate::positions::Positions;

/// One change of one feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Intervention {
    /// The feature.
    pub feature: FeatureId,
    /// What is done to it.
    pub change: Change,
    /// What the change's number counts.
    pub units: Units,
    /// Where it is done.
    pub at: Positions,
}

/// What is done to a feature whose activation in the unmodified row `x` is `a(x)`.
///
/// Only the feature's own part of the row changes: what the SAE does not explain of the row, its
/// error, is kept, as Anthropic does when it clamps features (*Scaling Monosemanticity*, 2024).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// `x += strength · W_dec[feature]`, without the decoder's bias, as `SAELens` and the original
    /// experiment steer.
    Add(f32),
    /// `x += (value − a(x)) · W_dec[feature]`.
    Clamp(f32),
    /// `x −= a(x) · W_dec[feature]`: a clamp to 0.
    Ablate,
    /// `x += (factor − 1) · a(x) · W_dec[feature]`.
    Scale(f32),
}

impl Change {
    fn past_participle(self) -> &'static str {
        match self {
            Self::Add(_) => "steered",
            Self::Clamp(_) => "clamped",
            Self::Ablate => "ablated",
            Self::Scale(_) => "scaled",
        }
    }
}

/// What strengths and clamp values count. Factors have no unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Units {
    /// Decoder rows as trained: `SAELens` and the original experiment.
    #[default]
    Raw,
    /// Decoder rows scaled to length 1, and activations by the rows' lengths: Neuronpedia. A raw
    /// number is this one divided by `‖W_dec[feature]‖`.
    Unit,
}

/// A feature's row of the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderDirection {
    /// `W_dec[feature]`, `[d_in]`.
    pub row: Vec<f32>,
    /// Its length, `‖W_dec[feature]‖`.
    pub norm: f32,
}

/// What an SAE's encoder says of a feature in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded {
    /// The activation `a(x)`.
    pub activation: f32,
    /// How long `W_dec[feature]` is in the row's own units: 1, unless the SAE normalises each row.
    pub decoder_scale: f32,
}

/// What gives a feature's activation in a row, for an SAE whose features do not depend on each
/// other.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureReader {
    /// `W_enc[:, feature]`, `[d_in]`.
    pub encoder_row: Vec<f32>,
    /// `b_enc[feature]`, less `b_dec · W_enc[:, feature]` where the SAE subtracts `b_dec` from rows.
    pub bias: f32,
    /// What `h` must exceed; 0 for a ReLU.
    pub threshold: f32,
}

impl FeatureReader {
    /// The activation in `row`, `[d_in]`: `h = row · W_enc[:, feature] + bias` where that is above
    /// the threshold, else 0 (`SAELens`, `saes/*_sae.py`).
    pub fn activation(&self, row: &[f32]) -> f32 {
        let h = dot(row, &self.encoder_row) + self.bias;
        if h > self.threshold { h } else { 0.0 }
    }
}

/// All interventions of a run, prepared for the hot path.
#[derive(Clone, Debug)]
pub struct Steering {
    interventions: Vec<Intervention>,
    edits: Vec<Edit>, // by rising hook point
}

/// What interventions do at one hook point.
#[derive(Clone, Debug)]
pub struct Edit {
    hook_point: HookPoint,
    deltas: [Vec<f32>; 4], // for each of `Part::ALL`: [d_in], the sum of what is added; empty where nothing is
    settings: Vec<Setting>, // by rising feature
}

/// A change that depends on the activation: `x += (constant + slope · a(x)) · W_dec[feature]`.
#[derive(Clone, Debug)]
struct Setting {
    feature: FeatureId,
    at: Positions,
    constant: f32,
    slope: f32,
    reader: Option<FeatureReader>, // where the feature can be read by itself
    decoder_row: Vec<f32>,         // [d_in]
    coefficient: f32,              // for the row at hand
}

impl Steering {
    /// Prepares `interventions` on features of `saes`. Their order changes no bit of the results.
    ///
    /// # Errors
    /// A feature that there is not; those of [`Edit::new`]; a file that cannot be read.
    pub fn new(interventions: Vec<Intervention>, saes: &SaeSet) -> Result<Self> {
        let mut by_hook_point = BTreeMap::<HookPoint, Vec<Intervention>>::new();
        for intervention in &interventions {
            let FeatureId { sae, index } = intervention.feature;
            let sae = saes.iter().nth(sae).ok_or_else(|| {
                let what = format!("no SAE {sae}: there are {}", saes.len());
                Error::new(ErrorKind::UnknownFeature, what)
            })?;
            sae.check_feature(index)?;
            let at_hook = by_hook_point.entry(sae.hook_point()).or_default();
            at_hook.push(intervention.clone());
        }
        let edits = by_hook_point
            .into_iter()
            .map(|(hook_point, interventions)| {
                let sae = &saes[interventions[0].feature.sae];
                let direction =
                    |feature: FeatureId| saes[feature.sae].decoder_direction(feature.index);
                let reader = |feature: FeatureId| saes[feature.sae].feature_reader(feature.index);
                let d_in = sae.meta().d_in;
                Edit::new(hook_point, &interventions, d_in, direction, reader)
            });
        Ok(Self {
            edits: edits.collect::<Result<_>>()?,
            interventions,
        })
    }

    /// What was asked for, in order.
    pub fn interventions(&self) -> &[Intervention] {
        &self.interventions
    }

    /// What is done at each hook point, by rising ones.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The same, to be applied.
    pub fn edits_mut(&mut self) -> &mut [Edit] {
        &mut self.edits
    }

    /// The vector that is added to every row at one hook point, `[d_in]`, if that is all that is done.
    pub fn constant(&self) -> Option<(HookPoint, &[f32])> {
        let [edit] = &self.edits[..] else { return None };
        Some((edit.hook_point, edit.constant()?))
    }
}

impl Edit {
    /// Prepares `interventions` for rows of length `d_in` at `hook_point`. `direction` and `reader` give what
    /// is known of a feature; without a reader, its activation comes from the whole encoder. The order of
    /// the interventions changes no bit of the results.
    ///
    /// # Errors
    /// A number that is not finite, or too large; unit-length directions of a row of zeros; a
    /// feature that is clamped, ablated or scaled where something else is done to it too; an error
    /// of `direction` or `reader`.
    pub fn new(
        hook_point: HookPoint,
        interventions: &[Intervention],
        d_in: usize,
        mut direction: impl FnMut(FeatureId) -> Result<DecoderDirection>,
        mut reader: impl FnMut(FeatureId) -> Result<Option<FeatureReader>>,
    ) -> Result<Self> {
        check_contradictions(interventions)?;
        let mut directions = BTreeMap::new();
        let mut strengths = Vec::new();
        let mut settings = BTreeMap::new();
        for (i, intervention) in interventions.iter().enumerate() {
            let feature = intervention.feature;
            let known: &DecoderDirection = match directions.get(&feature) {
                Some(known) => known,
                None => directions.entry(feature).or_insert(direction(feature)?),
            };
            let raw = |number| raw_number(number, intervention, known.norm);
            let (constant, slope) = match intervention.change {
                Change::Add(strength) => {
                    strengths.push((feature, raw(strength)?, intervention.at));
                    continue;
                }
                Change::Clamp(value) => (raw(value)? as f32, -1.0),
                Change::Ablate => (0.0, -1.0),
                Change::Scale(factor) if factor.is_finite() => (0.0, factor - 1.0),
                Change::Scale(factor) => return Err(not_finite(factor, intervention)),
            };
            let setting = Setting {
                feature,
                at: intervention.at,
                constant,
                slope,
                reader: reader(feature)?,
                decoder_row: known.row.clone(),
                coefficient: 0.0,
            };
            settings.insert((feature, i), setting);
        }
        // Strengths of one feature are summed first, so that `+a` and `-a` cancel.
        strengths.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut deltas = <[Vec<f32>; 4]>::default();
        for (part, delta) in Part::ALL.into_iter().zip(&mut deltas) {
            let mut sums = BTreeMap::<FeatureId, f64>::new();
            for (feature, strength, at) in &strengths {
                if at.contain_part(part) {
                    *sums.entry(*feature).or_default() += strength;
                }
            }
            if !sums.is_empty() {
                delta.resize(d_in, 0.0);
            }
            for (feature, strength) in sums {
                add_scaled(delta, strength as f32, &directions[&feature].row);
            }
            if !has_finite_length(delta) {
                return Err(too_large("the strengths add up to"));
            }
        }
        Ok(Self {
            hook_point,
            deltas,
            settings: settings.into_values().collect(),
        })
    }

    /// Where rows are edited.
    pub fn hook_point(&self) -> HookPoint {
        self.hook_point
    }

    /// The vector that is added to every row, `[d_in]`, if that is all that is done.
    pub fn constant(&self) -> Option<&[f32]> {
        let [first, others @ ..] = &self.deltas;
        let is_all = self.settings.is_empty() && others.iter().all(|other| other == first);
        (is_all && !first.is_empty()).then_some(first)
    }

    /// Whether rows of this kind have to go through the whole encoder of the SAE `sae` before
    /// [`Edit::apply`].
    pub fn needs_encoder(&self, sae: usize, kind: TokenKind) -> bool {
        let needs = |setting: &Setting| {
            setting.feature.sae == sae && setting.reader.is_none() && setting.at.contain_some(kind)
        };
        self.settings.iter().any(needs)
    }

    /// Edits the row of `token`, of length `d_in`; tells whether there was something to edit. `encoded` is
    /// what the whole encoder says of a feature in this row, and is asked where
    /// [`Edit::needs_encoder`] says so.
    ///
    /// # Errors
    /// When a clamp or a factor makes the row too large for 32-bit numbers.
    pub fn apply(
        &mut self,
        token: Token,
        row: &mut [f32],
        encoded: impl Fn(FeatureId) -> Encoded,
    ) -> Result<bool> {
        // All activations are those of the unmodified row.
        for setting in &mut self.settings {
            setting.coefficient = if setting.at.contain(token) {
                let read = match &setting.reader {
                    Some(reader) => Encoded {
                        activation: reader.activation(row),
                        decoder_scale: 1.0,
                    },
                    None => encoded(setting.feature),
                };
                read.decoder_scale * (setting.constant + setting.slope * read.activation)
            } else {
                0.0
            };
        }
        let delta = &self.deltas[token.part() as usize];
        let mut edited = !delta.is_empty();
        for (x, delta) in row.iter_mut().zip(delta) {
            *x += delta;
        }
        let effective = |setting: &&Setting| setting.coefficient != 0.0;
        let mut settings = self.settings.iter().filter(effective).peekable();
        if settings.peek().is_some() {
            for setting in settings {
                add_scaled(row, setting.coefficient, &setting.decoder_row);
            }
            if !has_finite_length(row) {
                return Err(too_large("the interventions make"));
            }
            edited = true;
        }
        Ok(edited)
    }
}

/// Refuses a clamped, ablated or scaled feature to which something else is done at the same
/// positions.
fn check_contradictions(interventions: &[Intervention]) -> Result<()> {
    for (i, second) in interventions.iter().enumerate() {
        for first in &interventions[..i] {
            let additions = [first, second].map(|one| matches!(one.change, Change::Add(_)));
            if first.feature != second.feature
                || additions == [true; 2]
                || !first.at.overlap(second.at)
            {
                continue;
            }
            let [one, other] = [first, second].map(|one| one.change.past_participle());
            let both = if one == other {
                format!("{one} twice")
            } else {
                format!("{one} and {other}")
            };
            let feature = first.feature.index;
            return Err(Error::invalid(format!(
                "feature `{feature}` cannot be {both} at the same positions"
            ))
            .with_hint("keep one of the two, or let them touch different positions"));
        }
    }
    Ok(())
}

/// A strength or clamp value in decoder rows as trained.
fn raw_number(number: f32, intervention: &Intervention, norm: f32) -> Result<f64> {
    if !number.is_finite() {
        return Err(not_finite(number, intervention));
    }
    match intervention.units {
        Units::Raw => Ok(number.into()),
        Units::Unit if norm > 0.0 => Ok(f64::from(number) / f64::from(norm)),
        Units::Unit => Err(Error::invalid(format!(
            "feature `{}` has no direction of unit length: its decoder row is all zeros",
            intervention.feature.index
        ))
        .with_hint("use another feature: whatever is done to this one has no effect")),
    }
}

fn not_finite(number: f32, intervention: &Intervention) -> Error {
    let feature = intervention.feature.index;
    let verb = intervention.change.past_participle();
    Error::invalid(format!(
        "feature `{feature}` cannot be {verb} by `{number}`: the number must be finite"
    ))
}

/// Whether the next norm, which squares the row in 32 bits, can be computed.
fn has_finite_length(row: &[f32]) -> bool {
    dot(row, row).is_finite()
}

fn too_large(what: &str) -> Error {
    Error::invalid(format!("{what} a row that is too large for 32-bit numbers"))
        .with_hint("use smaller numbers")
}

fn add_scaled(row: &mut [f32], factor: f32, direction: &[f32]) {
    for (x, value) in row.iter_mut().zip(direction) {
        *x += factor * value;
    }
}

#[cfg(test)]
mod tests;
