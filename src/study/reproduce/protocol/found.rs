//! The features that a protocol finds by their labels.

use super::Protocol;
use crate::{Error, ErrorKind, Result, Sae, holds_word};

impl Protocol {
    /// The protocol with the features that its words find among this SAE's labels, hidden ones excepted. A
    /// class whose words are in no label stays without.
    ///
    /// # Errors
    /// Words, and an SAE without labels; no feature to steer.
    pub(crate) fn with_found_features(&self, sae: &Sae) -> Result<Self> {
        let mut found = self.clone();
        let labels = self.reading.classes.iter().map(|class| &class.labels);
        let has_words = labels
            .chain([&self.steering.labels])
            .any(|words| !words.is_empty());
        if !has_words {
            return Ok(found);
        }
        let labels = sae.labels();
        let labels = labels.filter(|(feature, _)| !self.reading.hidden.contains(feature));
        let labels: Vec<(usize, &str)> = labels.collect();
        if labels.is_empty() {
            let what = format!(
                "the protocol `{}` finds features by their labels, and this SAE has none",
                self.name
            );
            return Err(Error::new(ErrorKind::Missing, what)
                .with_hint("convert it again with Neuronpedia's labels"));
        }
        let with_one_of = |words: &[String]| -> Vec<(usize, &str)> {
            let has_one = |label: &str| words.iter().any(|word| holds_word(label, word));
            let all = labels.iter().filter(|(_, label)| has_one(label));
            all.copied().collect()
        };
        for class in &mut found.reading.classes {
            for (feature, _) in with_one_of(&class.labels) {
                if !class.features.contains(&feature) {
                    class.features.push(feature);
                }
            }
        }
        if self.steering.feature.is_none() {
            let candidates = with_one_of(&self.steering.labels);
            let shortest = candidates
                .iter()
                .min_by_key(|(_, label)| label.chars().count());
            let Some((feature, _)) = shortest else {
                return Err(Error::new(
                    ErrorKind::UnknownFeature,
                    format!(
                        "no feature to steer: none has a label with one of `{}`",
                        self.steering.labels.join("`, `")
                    ),
                )
                .with_hint("give a protocol with other words, or with the feature's index"));
            };
            found.steering.feature = Some(*feature);
        }
        Ok(found)
    }
}
