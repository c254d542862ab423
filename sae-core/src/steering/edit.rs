//! What interventions do at one hook point, prepared for the hot path.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;

use super::intervention::{Intervention, check_contradictions};
use super::kinds::Formula;
use super::target::Target;
use crate::feature::{DecoderDirection, Encoded, FeatureId, FeatureReader};
use crate::hook_point::HookPoint;
use crate::positions::{Positions, RowSet};
use crate::product::dot;
use crate::token::{Part, Token, TokenKind};
use crate::{Error, Result};

/// What interventions do at one hook point.
#[derive(Clone, Debug)]
pub struct Edit {
    hook_point: HookPoint,
    d_in: usize,
    interventions: Vec<Intervention>,
    rows: Vec<RowSet>,        // of each intervention
    additions: Vec<Addition>, // by rising target, and then strength
    settings: Vec<Setting>,   // likewise
    /// Sums of additions, `[d_in]` or empty: for each of `Part::ALL`, by kinds of rows alone, and then those
    /// of rows that some addition has a place for.
    deltas: Vec<Vec<f32>>,
    delta_of_row: Vec<usize>, // of each row of the prompt; empty where kinds tell it
    delta_of_id: BTreeMap<i32, usize>, // of generated tokens for which their kind does not tell it
    is_placed: bool,
}

/// Something that is added to rows, whatever they contain.
#[derive(Clone, Debug)]
struct Addition {
    intervention: usize,
    target: Target,
    strength: f64,
    direction: Arc<DecoderDirection>,
}

/// A change that depends on the row.
#[derive(Clone, Debug)]
struct Setting {
    intervention: usize,
    number: f32,
    formula: Formula,
    direction: Arc<DecoderDirection>,
    activation: Option<Reading>, // of the feature, where the formula asks
    when: Option<(Reading, f32)>, // and what it has to be above
    coefficient: f32,            // for the row at hand
}

/// Where a feature's activation comes from.
#[derive(Clone, Debug)]
struct Reading {
    feature: FeatureId,
    reader: Option<FeatureReader>, // where it can be read by itself, in the row at hand
}

impl Reading {
    fn of(&self, row: &[f32], encoded: &impl Fn(FeatureId) -> Encoded) -> Encoded {
        match &self.reader {
            Some(reader) => Encoded {
                activation: reader.activation(row),
                decoder_scale: 1.0,
            },
            None => encoded(self.feature),
        }
    }
}

impl Edit {
    /// Prepares `interventions` for rows of length `d_in` at `hook_point`. `direction` and `reader` give what
    /// is known of a feature; without a reader, its activation comes from the whole encoder, or from a hook
    /// below. The order of the interventions changes no bit of the results.
    ///
    /// # Errors
    /// A number that is not finite, or too large; a direction of zeros where one of length 1 is needed; a kind
    /// that does not apply to the target; two changes of one target at overlapping positions, unless both are
    /// additions; an error of `direction` or `reader`.
    pub fn new(
        hook_point: HookPoint,
        interventions: &[Intervention],
        d_in: usize,
        mut direction: impl FnMut(FeatureId) -> Result<DecoderDirection>,
        mut reader: impl FnMut(FeatureId) -> Result<Option<FeatureReader>>,
    ) -> Result<Self> {
        let kinds_of = |i: usize| interventions[i].at.kinds();
        check_contradictions(interventions, |i, j| kinds_of(i).overlap(kinds_of(j)))?;
        let mut directions = BTreeMap::<Target, Arc<DecoderDirection>>::new();
        let mut edit = Self {
            hook_point,
            d_in,
            interventions: interventions.to_vec(),
            rows: Vec::new(),
            additions: Vec::new(),
            settings: Vec::new(),
            deltas: Vec::new(),
            delta_of_row: Vec::new(),
            delta_of_id: BTreeMap::new(),
            is_placed: true,
        };
        for (i, intervention) in interventions.iter().enumerate() {
            let target = &intervention.target;
            let known = match directions.get(target) {
                Some(known) => known,
                None => {
                    let found = match target {
                        Target::Feature(feature) => direction(*feature)?,
                        Target::Vector(vector) => DecoderDirection {
                            row: vector.values().to_vec(),
                            norm: vector.norm(),
                            usual: None,
                        },
                    };
                    directions.entry(target.clone()).or_insert(Arc::new(found))
                }
            };
            let number = intervention.number(known)?;
            let kind = intervention.change.kind();
            if let (Formula::Constant, None) = (kind.formula, intervention.when) {
                edit.additions.push(Addition {
                    intervention: i,
                    target: target.clone(),
                    strength: number,
                    direction: Arc::clone(known),
                });
                continue;
            }
            let mut reading = |feature: FeatureId| {
                let reader = reader(feature)?;
                Ok::<_, Error>(Reading { feature, reader })
            };
            let read = target
                .feature()
                .filter(|_| matches!(kind.formula, Formula::OfActivation(_)));
            let when = intervention.when;
            edit.settings.push(Setting {
                intervention: i,
                number: number as f32,
                formula: kind.formula,
                direction: Arc::clone(known),
                activation: read.map(&mut reading).transpose()?,
                when: when
                    .map(|when| Ok::<_, Error>((reading(when.feature)?, when.above)))
                    .transpose()?,
                coefficient: 0.0,
            });
        }
        // Strengths of one target are summed first, so that `+a` and `-a` cancel.
        edit.additions.sort_by(|a, b| {
            let targets = a.target.cmp(&b.target);
            targets.then(a.strength.total_cmp(&b.strength))
        });
        let target = |setting: &Setting| &interventions[setting.intervention].target;
        edit.settings.sort_by(|a, b| {
            let targets = target(a).cmp(target(b));
            targets.then(a.number.total_cmp(&b.number))
        });
        for part in Part::ALL {
            let delta = edit.delta(|i| kinds_of(i).contain_part(part))?;
            edit.deltas.push(delta);
        }
        let by_kinds = |one: &Intervention| Positions::of(one.at.kinds()).rows(&[]);
        edit.rows = interventions.iter().map(by_kinds).collect::<Result<_>>()?;
        edit.is_placed = interventions.iter().all(|one| one.at.places().is_empty());
        Ok(edit)
    }

    /// Prepares it for runs of a prompt, whose rows `prompt` describes.
    ///
    /// # Errors
    /// Those of [`Positions::rows`]; a contradiction at a place; strengths that are too large together.
    pub fn place(&mut self, prompt: &[Token]) -> Result<()> {
        let rows = self.interventions.iter().map(|one| one.at.rows(prompt));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        check_contradictions(&self.interventions, |i, j| {
            let has_place = |i: usize| !self.interventions[i].at.places().is_empty();
            (has_place(i) || has_place(j)) && rows[i].overlap(&rows[j], prompt)
        })?;
        self.rows = rows;
        self.is_placed = true;
        self.deltas.truncate(Part::ALL.len());
        self.delta_of_row.clear();
        self.delta_of_id.clear();
        let added = self.additions.iter();
        let mut added = added.map(|addition| &self.interventions[addition.intervention]);
        if added.all(|one| one.at.places().is_empty()) {
            return Ok(());
        }
        let mut known = HashMap::new();
        for (i, &token) in prompt.iter().enumerate() {
            let delta = self.delta_for(i, token, &mut known)?;
            self.delta_of_row.push(delta);
        }
        let ids = self.rows.iter().flat_map(RowSet::ids).copied();
        for id in ids.collect::<Vec<_>>() {
            let delta = self.delta_for(0, Token::generated(id), &mut known)?;
            self.delta_of_id.insert(id, delta);
        }
        Ok(())
    }

    /// The index of the delta of a row; `known` has those of the additions that rows before have.
    fn delta_for(
        &mut self,
        prompt_idx: usize,
        token: Token,
        known: &mut HashMap<Vec<bool>, usize>,
    ) -> Result<usize> {
        let applies = self.rows.iter().map(|rows| rows.contain(prompt_idx, token));
        let applies: Vec<bool> = applies.collect();
        let place = match known.entry(applies) {
            Entry::Occupied(known) => return Ok(*known.get()),
            Entry::Vacant(place) => place,
        };
        let delta = self.delta(|i| place.key()[i])?;
        self.deltas.push(delta);
        Ok(*place.insert(self.deltas.len() - 1))
    }

    /// What the additions that apply come to, `[d_in]`; empty where none does.
    fn delta(&self, applies: impl Fn(usize) -> bool) -> Result<Vec<f32>> {
        let mut sums = BTreeMap::<&Target, (f64, &DecoderDirection)>::new();
        for addition in &self.additions {
            if applies(addition.intervention) {
                let none = (0.0, &*addition.direction);
                sums.entry(&addition.target).or_insert(none).0 += addition.strength;
            }
        }
        let mut delta = Vec::new();
        if !sums.is_empty() {
            delta.resize(self.d_in, 0.0);
        }
        for (strength, direction) in sums.into_values() {
            add_scaled(&mut delta, strength as f32, &direction.row);
        }
        match has_finite_length(&delta) {
            true => Ok(delta),
            false => Err(too_large("the strengths add up to")),
        }
    }

    /// Where rows are edited.
    pub fn hook_point(&self) -> HookPoint {
        self.hook_point
    }

    /// The length of the rows.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// What is done there.
    pub fn interventions(&self) -> &[Intervention] {
        &self.interventions
    }

    /// Whether [`Edit::apply`] has something to do in the row of `token`, the row `prompt_idx` of the prompt.
    ///
    /// # Panics
    /// As [`Edit::apply`].
    pub fn touches(&self, prompt_idx: usize, token: Token) -> bool {
        assert!(self.is_placed, "its positions are known");
        let mut rows = self.rows.iter();
        rows.any(|rows| rows.contain(prompt_idx, token))
    }

    /// The vector that is added to every row, `[d_in]`, if that is all that is done.
    pub fn constant(&self) -> Option<&[f32]> {
        let (by_part, _) = self.deltas.split_at(Part::ALL.len());
        let first = &by_part[0];
        let has_no_place = |one: &Intervention| one.at.places().is_empty();
        let is_all = self.settings.is_empty()
            && self.interventions.iter().all(has_no_place)
            && by_part.iter().all(|other| other == first);
        (is_all && !first.is_empty()).then_some(first)
    }

    /// Whether rows of this kind have to go through the whole encoder of the SAE `sae` before
    /// [`Edit::apply`].
    pub fn needs_encoder(&self, sae: usize, kind: TokenKind) -> bool {
        let needs = |setting: &Setting| {
            let of_when = setting.when.as_ref().map(|(reading, _)| reading);
            let mut readings = setting.activation.iter().chain(of_when);
            readings.any(|reading| reading.feature.sae == sae && reading.reader.is_none())
        };
        self.settings.iter().any(|setting| {
            let at = &self.interventions[setting.intervention].at;
            needs(setting) && at.possible_kinds().contain_some(kind)
        })
    }

    /// Edits the row of `token`, of length `d_in`, which is the row `prompt_idx` of the prompt, unless it was
    /// generated; tells whether there was something to edit. `encoded` gives what the whole encoder says about
    /// a feature in this row; it is called where [`Edit::needs_encoder`] says so, and for features of lower
    /// hook points.
    ///
    /// # Errors
    /// When what depends on the row makes it too large for 32-bit numbers.
    ///
    /// # Panics
    /// When its positions include single places and [`Edit::place`] has not been called.
    pub fn apply(
        &mut self,
        prompt_idx: usize,
        token: Token,
        row: &mut [f32],
        encoded: impl Fn(FeatureId) -> Encoded,
    ) -> Result<bool> {
        assert!(self.is_placed, "its positions are known");
        // All that is read is of the unmodified row.
        for setting in &mut self.settings {
            let is_here = self.rows[setting.intervention].contain(prompt_idx, token);
            setting.coefficient = match is_here && setting.is_on(row, &encoded) {
                true => setting.coefficient(row, &encoded),
                false => 0.0,
            };
        }
        let delta = &self.deltas[self.delta_idx(prompt_idx, token)];
        let mut edited = !delta.is_empty();
        for (x, delta) in row.iter_mut().zip(delta) {
            *x += delta;
        }
        let effective = |setting: &&Setting| setting.coefficient != 0.0;
        let mut settings = self.settings.iter().filter(effective).peekable();
        if settings.peek().is_some() {
            for setting in settings {
                add_scaled(row, setting.coefficient, &setting.direction.row);
            }
            if !has_finite_length(row) {
                return Err(too_large("the interventions make"));
            }
            edited = true;
        }
        Ok(edited)
    }

    fn delta_idx(&self, prompt_idx: usize, token: Token) -> usize {
        let of_place = match (token.kind, token.id) {
            (TokenKind::Generated, Some(id)) => self.delta_of_id.get(&id),
            _ => self.delta_of_row.get(prompt_idx),
        };
        of_place.copied().unwrap_or(token.part() as usize)
    }
}

impl Setting {
    /// Whether its condition holds, if it has one.
    fn is_on(&self, row: &[f32], encoded: &impl Fn(FeatureId) -> Encoded) -> bool {
        let holds =
            |(reading, above): &(Reading, f32)| reading.of(row, encoded).activation > *above;
        self.when.as_ref().is_none_or(holds)
    }

    /// `k` of `x += k · w` for this row.
    fn coefficient(&self, row: &[f32], encoded: &impl Fn(FeatureId) -> Encoded) -> f32 {
        match self.formula {
            Formula::Constant => self.number,
            Formula::OfActivation(coefficient) => {
                let reading = self.activation.as_ref().expect("the formula asks for it");
                let read = reading.of(row, encoded);
                read.decoder_scale * coefficient(self.number, read.activation)
            }
            Formula::OfProjection(projection) => {
                let norm = f64::from(self.direction.norm);
                let p = f64::from(dot(row, &self.direction.row)) / norm;
                ((projection(self.number.into(), p) - p) / norm) as f32
            }
        }
    }
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
