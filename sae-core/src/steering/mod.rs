//! Interventions at hook points: pure edits of rows. Nothing here knows a runtime or a file.
//!
//! What an intervention does is one of [`KINDS`], each in its own file. Where it does so is said by
//! [`Positions`] and, optionally, by a [`Condition`] on another feature. An edit reads only the unmodified row,
//! so that the order of interventions changes no bit.

mod edit;
mod intervention;
mod kinds;
mod target;

use std::collections::BTreeMap;

use self::kinds::Formula;
use crate::feature::FeatureId;
use crate::hook_point::HookPoint;
use crate::sae::Sae;
use crate::sae_set::SaeSet;
use crate::token::{Kinds, Token};
use crate::{Error, ErrorKind, Result};

pub use self::edit::Edit;
pub use self::intervention::{Condition, Intervention, Units};
pub use self::kinds::{Change, KINDS, Kind, Number, Targets};
pub use self::target::{Target, Vector};
pub use crate::feature::{DecoderDirection, Encoded, FeatureReader};
pub use crate::positions::Positions;

/// A feature whose activation interventions above its hook point ask for: of their conditions, or of a transcoder, which
/// writes above where it reads.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The feature.
    pub feature: FeatureId,
    /// Where its SAE reads.
    pub hook_point: HookPoint,
    /// What gives its activation; if none, the whole encoder does.
    pub reader: Option<FeatureReader>,
    /// The kinds of rows in which it is asked for.
    pub kinds: Kinds,
}

/// All interventions of a run, prepared for the hot path.
#[derive(Clone, Debug)]
pub struct Steering {
    interventions: Vec<Intervention>,
    edits: Vec<Edit>,      // by rising hook point
    watched: Vec<Watched>, // each feature once
}

impl Steering {
    /// Prepares `interventions` on features of `saes` and along vectors. Their order changes no bit of the
    /// results.
    ///
    /// # Errors
    /// A feature that does not exist; a vector whose length is not that of rows at its hook point, as far as an
    /// SAE or another vector tells it; a condition on a feature above the edit; those of [`Edit::new`]; a file
    /// that cannot be read.
    pub fn new(interventions: Vec<Intervention>, saes: &SaeSet) -> Result<Self> {
        let mut by_hook_point = BTreeMap::<HookPoint, Vec<Intervention>>::new();
        let mut watched = BTreeMap::<FeatureId, Watched>::new();
        for intervention in &interventions {
            let hook_points = match &intervention.target {
                Target::Feature(feature) => sae_of(*feature, saes)?.outputs().to_vec(),
                Target::Vector(vector) => vec![vector.hook_point()],
            };
            if let Some(condition) = intervention.when {
                check_condition(condition, hook_points[0], intervention, saes)?;
            }
            let is_projection =
                matches!(intervention.change.kind().formula, Formula::OfProjection(_));
            if hook_points.len() > 1 && is_projection {
                return Err(of_several_places(intervention, hook_points.len()));
            }
            for &hook_point in &hook_points {
                for feature in intervention.read_features() {
                    watch(feature, hook_point, intervention, saes, &mut watched)?;
                }
                let at_hook = by_hook_point.entry(hook_point).or_default();
                at_hook.push(intervention.clone());
            }
        }
        let edits = by_hook_point
            .into_iter()
            .map(|(hook_point, interventions)| {
                let targets = interventions.iter().map(|one| &one.target);
                let d_in = width(targets, width_of_saes(saes, hook_point), hook_point)?;
                let direction = |feature: FeatureId| {
                    saes[feature.sae].decoder_direction_at(feature.index, hook_point)
                };
                // What a lower hook has seen is not in this row.
                let reader = |feature: FeatureId| match &saes[feature.sae] {
                    sae if sae.hook_point() == hook_point => sae.feature_reader(feature.index),
                    _ => Ok(None),
                };
                Edit::new(hook_point, &interventions, d_in, direction, reader)
            });
        Ok(Self {
            edits: edits.collect::<Result<_>>()?,
            watched: watched.into_values().collect(),
            interventions,
        })
    }

    /// The same for runs of this prompt, whose rows `prompt` describes: they decide which rows the
    /// interventions change.
    ///
    /// # Errors
    /// Those of [`Positions::rows`]; contradictions at positions that only the prompt tells.
    pub fn placed(&self, prompt: &[Token]) -> Result<Self> {
        let mut placed = self.clone();
        for edit in &mut placed.edits {
            edit.place(prompt)?;
        }
        Ok(placed)
    }

    /// Whether [`Steering::placed`] has something to do: whether some position is a single place.
    pub fn has_places(&self) -> bool {
        let mut positions = self.interventions.iter().map(|one| &one.at);
        positions.any(|at| !at.places().is_empty())
    }

    /// The first row of a prompt that it touches, if there is one; `prompt` says what each row is.
    ///
    /// # Panics
    /// When [`Steering::has_places`], and this is not [`Steering::placed`] for the prompt.
    pub fn first_row(&self, prompt: &[Token]) -> Option<usize> {
        let mut rows = prompt.iter().enumerate();
        rows.position(|(i, &token)| self.edits.iter().any(|edit| edit.touches(i, token)))
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

    /// The features below an edit that it asks for.
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// The vector that is added to every row at one hook point, `[d_in]`, if that is all that is done.
    pub fn constant(&self) -> Option<(HookPoint, &[f32])> {
        let [edit] = &self.edits[..] else { return None };
        Some((edit.hook_point(), edit.constant()?))
    }
}

/// The SAE of a feature, which must exist.
fn sae_of(feature: FeatureId, saes: &SaeSet) -> Result<&Sae> {
    let FeatureId { sae, index } = feature;
    let sae = saes.iter().nth(sae).ok_or_else(|| {
        let what = format!("no SAE {sae}: there are {}", saes.len());
        Error::new(ErrorKind::UnknownFeature, what)
    })?;
    sae.check_feature(index)?;
    Ok(sae)
}

/// The length of rows at a hook point, where an SAE reads or writes there.
fn width_of_saes(saes: &SaeSet, hook_point: HookPoint) -> Option<usize> {
    saes.iter().find_map(|sae| {
        let meta = sae.meta();
        let is_read = (sae.hook_point() == hook_point).then_some(meta.d_in);
        is_read.or_else(|| sae.outputs().contains(&hook_point).then_some(meta.d_out))
    })
}

/// The length of rows at a hook point, where an SAE's are of `d_in` or these targets tell it.
fn width<'a>(
    targets: impl Iterator<Item = &'a Target>,
    mut d_in: Option<usize>,
    hook_point: HookPoint,
) -> Result<usize> {
    for target in targets {
        let Target::Vector(vector) = target else {
            continue;
        };
        let n_values = vector.values().len();
        let d_in = *d_in.get_or_insert(n_values);
        if n_values != d_in {
            return Err(vector.of_another_width(d_in));
        }
    }
    Ok(d_in.unwrap_or_else(|| unreachable!("`{hook_point}` has a target")))
}

/// The error for a projection on a feature that writes at several places.
fn of_several_places(intervention: &Intervention, n_places: usize) -> Error {
    let kind = intervention.change.kind();
    Error::invalid(format!(
        "{} cannot be {}: it is a cross-layer transcoder's, which has another direction at each of {n_places} places",
        intervention.target, kind.past_participle
    ))
    .with_hint("use an addition, a clamp or a factor")
}

/// Checks that the feature of a condition of an edit at `hook_point`, and of those that follow, is known by then.
fn check_condition(
    condition: Condition,
    hook_point: HookPoint,
    intervention: &Intervention,
    saes: &SaeSet,
) -> Result<()> {
    let Condition { feature, above } = condition;
    let sae = sae_of(feature, saes)?;
    let shown = saes.shown(feature);
    if !above.is_finite() {
        return Err(Error::invalid(format!(
            "feature `{shown}` cannot be above `{above}`: the number must be finite"
        )));
    }
    if sae.hook_point() > hook_point {
        return Err(Error::invalid(format!(
            "{} cannot be {} when feature `{shown}` is active: its SAE reads at `{}`, which the model computes \
             after `{hook_point}`, where the rows are changed",
            intervention.target,
            intervention.change.kind().past_participle,
            sae.hook_point(),
        ))
        .with_hint("use a feature of an SAE at the same hook point or an earlier one"));
    }
    Ok(())
}

/// Notes a feature whose activation an edit at `hook_point` asks for, where its SAE reads below.
fn watch(
    feature: FeatureId,
    hook_point: HookPoint,
    intervention: &Intervention,
    saes: &SaeSet,
    watched: &mut BTreeMap<FeatureId, Watched>,
) -> Result<()> {
    let sae = &saes[feature.sae];
    if sae.hook_point() == hook_point {
        return Ok(());
    }
    let kinds = intervention.at.possible_kinds();
    if let Some(known) = watched.get_mut(&feature) {
        known.kinds = known.kinds.or(kinds);
        return Ok(());
    }
    let one = Watched {
        feature,
        hook_point: sae.hook_point(),
        reader: sae.feature_reader(feature.index)?,
        kinds,
    };
    watched.insert(feature, one);
    Ok(())
}

#[cfg(test)]
mod tests;
