//! What interventions change: features, and rows along given vectors.

use std::cmp::Ordering;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::feature::FeatureId;
use crate::hook_point::HookPoint;
use crate::{Error, Result};

/// What an intervention changes. Targets have an order, in which they are summed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A feature: its activation, or rows along its decoder direction.
    Feature(FeatureId),
    /// Rows along a vector.
    Vector(Arc<Vector>),
}

/// A direction at a hook point that comes from no SAE. Two with the same numbers at the same place are one.
#[derive(Clone, Debug)]
pub struct Vector {
    name: String,
    hook_point: HookPoint,
    values: Vec<f32>, // [d_in]
}

impl Vector {
    /// A vector of these values, `[d_in]`, where rows are as long; reports call it `name`.
    ///
    /// # Errors
    /// No values, or some that are not finite.
    pub fn new(name: &str, hook_point: HookPoint, values: Vec<f32>) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::invalid(format!("the vector `{name}` has no values")));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::invalid(format!(
                "the vector `{name}` holds {value}, expected finite numbers"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            hook_point,
            values,
        })
    }

    /// Reads the only tensor of a safetensors file, of one dimension that is more than 1.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else; those of [`Vector::new`].
    pub fn read(path: &Path, hook_point: HookPoint) -> Result<Self> {
        let values = gguf_tools::vector_file::read(path)?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self::new(&name.to_string_lossy(), hook_point, values)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is added.
    pub fn hook_point(&self) -> HookPoint {
        self.hook_point
    }

    /// Its values, `[d_in]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Its length, `‖v‖`.
    pub fn norm(&self) -> f32 {
        let squares = self.values.iter().map(|&x| f64::from(x).powi(2));
        squares.sum::<f64>().sqrt() as f32
    }

    /// The error where rows at its hook point have `width` values.
    pub fn of_another_width(&self, width: usize) -> Error {
        Error::invalid(format!(
            "the vector `{}` has {} values, but rows at `{}` have {width}",
            self.name,
            self.values.len(),
            self.hook_point
        ))
        .with_hint("use a vector that was made for this model and this hook point")
    }
}

impl Ord for Vector {
    fn cmp(&self, other: &Self) -> Ordering {
        let bits = |vector: &Self| {
            vector
                .values
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>()
        };
        let places = self.hook_point.cmp(&other.hook_point);
        places.then_with(|| bits(self).cmp(&bits(other)))
    }
}

impl PartialOrd for Vector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Vector {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Vector {}

impl Target {
    /// The feature, if it is one.
    pub fn feature(&self) -> Option<FeatureId> {
        match self {
            Self::Feature(feature) => Some(*feature),
            Self::Vector(_) => None,
        }
    }
}

impl From<FeatureId> for Target {
    fn from(feature: FeatureId) -> Self {
        Self::Feature(feature)
    }
}

impl From<Vector> for Target {
    fn from(vector: Vector) -> Self {
        Self::Vector(Arc::new(vector))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(feature) => write!(f, "feature `{}`", feature.index),
            Self::Vector(vector) => write!(f, "the vector `{}`", vector.name),
        }
    }
}
