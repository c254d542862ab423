//! What SAEs are called on Neuronpedia, and their features' pages there.

use std::collections::BTreeMap;

use crate::{Sae, SaeSet};

/// An SAE by Neuronpedia's names, a source of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeuronpediaSource {
    /// The model, such as `gemma-2b`.
    pub model: String,
    /// The layer and the set that the SAE belongs to, such as `12-res-jb`.
    pub source: String,
}

impl NeuronpediaSource {
    /// The names that the SAE's labels come with, or that SAELens' list of published SAEs has; with labels of one's
    /// own, it need not be one that Neuronpedia has.
    pub fn of(sae: &Sae) -> Option<Self> {
        let from_labels = sae.meta().labels_source.as_deref().and_then(|labels| {
            let (model, source) = labels.split_once('/')?;
            Some(Self {
                model: model.to_owned(),
                source: source.to_owned(),
            })
        });
        let has_layer = |one: &Self| {
            let layer = one.source.split_once('-').map(|(layer, _)| layer);
            layer.is_some_and(|layer| layer.parse::<usize>().is_ok())
        };
        let named = from_labels.filter(has_layer);
        named.or_else(|| published(sae).filter(has_layer))
    }

    /// The address of its features' pages, each of which is `/INDEX` below; none where the list of published SAEs does
    /// not have it.
    pub fn address(&self) -> Option<String> {
        let Self { model, source } = self;
        is_listed(self).then(|| format!("https://www.neuronpedia.org/{model}/{source}"))
    }
}

/// The addresses of the SAEs that are known on Neuronpedia, by what their features are named with, or by nothing where
/// there is one SAE.
pub fn addresses(saes: &SaeSet) -> BTreeMap<String, String> {
    let address = |sae: &_| NeuronpediaSource::of(sae)?.address();
    let known = saes.iter().enumerate().filter_map(|(i, sae)| {
        let name = saes.shown_id(i).unwrap_or_default();
        Some((name.to_owned(), address(sae)?))
    });
    known.collect()
}

#[cfg(feature = "pull")]
fn published(sae: &Sae) -> Option<NeuronpediaSource> {
    let (release, id) = (sae.meta().release.as_deref()?, sae.meta().id.as_deref()?);
    let labels = llava_sae_hub::releases::find(release, id).ok()?.labels?;
    Some(NeuronpediaSource {
        model: labels.model,
        source: labels.source,
    })
}

#[cfg(feature = "pull")]
fn is_listed(source: &NeuronpediaSource) -> bool {
    llava_sae_hub::releases::has_labels(&source.model, &source.source)
}

#[cfg(not(feature = "pull"))]
fn published(_: &Sae) -> Option<NeuronpediaSource> {
    None
}

#[cfg(not(feature = "pull"))]
fn is_listed(_: &NeuronpediaSource) -> bool {
    false
}

#[cfg(all(test, feature = "pull"))]
mod tests {
    use super::NeuronpediaSource;

    #[test]
    fn only_what_neuronpedia_has_gets_a_link() {
        let check = |model: &str, source: &str, expected: Option<&str>| {
            let (model, source) = (model.to_owned(), source.to_owned());
            let address = NeuronpediaSource { model, source }.address();
            assert_eq!(address.as_deref(), expected);
        };
        let gemma = "https://www.neuronpedia.org/gemma-2b/12-res-jb";
        check("gemma-2b", "12-res-jb", Some(gemma));
        check("gemma-2b", "12-res", None);
        check("llava-gemma-emoji", "1-res", None);
        check("", "", None);
    }
}
