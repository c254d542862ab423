//! The SAEs of a model, and the names of their features.

use std::sync::Arc;

use crate::feature::{FeatureId, FeatureName};
use crate::labels::{self, Found, Matching};
use crate::sae::Sae;
use crate::{Error, Result};

/// The SAEs of a model, each with its own name.
#[derive(Clone, Debug, Default)]
pub struct SaeSet {
    saes: Vec<Arc<Sae>>,
}

impl SaeSet {
    /// These SAEs, in this order.
    ///
    /// # Errors
    /// Two SAEs with the same id.
    pub fn new(saes: Vec<Arc<Sae>>) -> Result<Self> {
        for (i, sae) in saes.iter().enumerate() {
            if saes[..i].iter().any(|other| other.id() == sae.id()) {
                return Err(
                    Error::invalid(format!("two of the SAEs are called `{}`", sae.id())).with_hint(
                        "the name is the id in the file, else the file's name: convert one of them again with another id, or leave one out",
                    ),
                );
            }
        }
        Ok(Self { saes })
    }

    /// The SAEs, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Sae>> {
        self.saes.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.saes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.saes.is_empty()
    }

    /// The feature that `name` means: `SAE_ID/FEATURE`, of which the first part may be left out if there is
    /// only one SAE; `FEATURE` as [`Sae::find_feature`] takes it.
    ///
    /// # Errors
    /// Those of [`Sae::find_feature`]; with several SAEs, a name that does not say which.
    pub fn find_feature(&self, name: &str) -> Result<FeatureId> {
        let ids: Vec<_> = self.saes.iter().map(|sae| sae.id()).collect();
        labels::find_in_saes(name, &ids, |sae, rest| self.saes[sae].find_feature(rest))
    }

    /// The features of all SAEs whose labels match `text` ([`labels::search`]).
    ///
    /// # Errors
    /// SAEs without labels; a text without a word.
    pub fn search_labels(
        &self,
        text: &str,
        matching: Option<Matching>,
    ) -> Result<Found<FeatureId>> {
        let labels = self.saes.iter().enumerate().flat_map(|(sae, labelled)| {
            let labels = labelled.labels();
            labels.map(move |(index, label)| (FeatureId { sae, index }, label))
        });
        labels::search(text, matching, labels)
    }

    /// A feature's usual activation, where its SAE's file says it ([`Sae::usual`]).
    pub fn usual(&self, feature: FeatureId) -> Option<f32> {
        self.saes[feature.sae].usual(feature.index)
    }

    /// A feature's label, where it has one.
    pub fn label(&self, feature: FeatureId) -> Option<&str> {
        self.saes[feature.sae].label(feature.index)
    }

    /// A feature as it is written: `4501`, or `SAE_ID/4501` where there are several SAEs.
    pub fn shown(&self, feature: FeatureId) -> FeatureName {
        FeatureName::new(self.shown_id(feature.sae), feature.index)
    }

    /// An SAE's id where features are written with it: where there are several SAEs.
    pub fn shown_id(&self, sae: usize) -> Option<&str> {
        (self.len() > 1).then(|| self[sae].id())
    }
}

impl std::ops::Index<usize> for SaeSet {
    type Output = Arc<Sae>;

    fn index(&self, sae: usize) -> &Arc<Sae> {
        &self.saes[sae]
    }
}

impl<'a> IntoIterator for &'a SaeSet {
    type Item = &'a Arc<Sae>;
    type IntoIter = std::slice::Iter<'a, Arc<Sae>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
