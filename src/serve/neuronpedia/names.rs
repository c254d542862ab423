//! What the model and its SAEs are called here.
//!
//! Neuronpedia calls an SAE `LAYER-SET`, a source of the set of SAEs `SET`: `12-res-jb`. Where that is not known of an
//! SAE, its id is the set, so that clients that read the layer in front of the first `-` find it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::serve::refusal::Refusal;
use crate::{Error, HookedModel, NeuronpediaSource, Sae};

/// The names of a model and its SAEs.
pub(in crate::serve) struct Names {
    /// The one under which it is served, and those of the models that its SAEs were trained on.
    models: Vec<String>,
    sources: Vec<Source>,
}

/// An SAE by Neuronpedia's names.
pub(super) struct Source {
    /// Its place among the model's.
    pub(super) sae: usize,
    /// Its id in its file, which is understood too.
    id: String,
    /// The model that it was trained on, if that is known.
    model: Option<String>,
    /// The layer and the set.
    pub(super) name: String,
}

impl Source {
    fn new((place, sae): (usize, &Arc<Sae>)) -> Self {
        let meta = sae.meta();
        let known = NeuronpediaSource::of(sae).map(|known| (known.model, known.source));
        let (model, name) = known.unzip();
        Self {
            sae: place,
            id: sae.id().to_owned(),
            model: model.or_else(|| meta.model_name.clone()),
            name: name.unwrap_or_else(|| format!("{}-{}", sae.hook_point().layer(), sae.id())),
        }
    }

    /// The set that it belongs to.
    pub(super) fn set(&self) -> &str {
        let (_, set) = self.name.split_once('-').expect("a layer and a set");
        set
    }
}

impl Names {
    /// The names of a model that is served as `shown`.
    pub(in crate::serve) fn new(model: &HookedModel, shown: &str) -> Self {
        let sources: Vec<_> = model.saes().iter().enumerate().map(Source::new).collect();
        let of_saes = sources.iter().filter_map(|source| source.model.clone());
        let mut models = vec![shown.to_owned()];
        for name in of_saes {
            if !models.contains(&name) {
                models.push(name);
            }
        }
        Self { models, sources }
    }

    /// The model's SAEs.
    pub(super) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The sets that they belong to.
    pub(super) fn sets(&self) -> BTreeSet<&str> {
        self.sources.iter().map(Source::set).collect()
    }

    /// The SAE of this name, or of this id.
    pub(super) fn source(&self, name: &str) -> Result<&Source, Refusal> {
        let mut sources = self.sources.iter();
        let found = sources.find(|source| source.name == name || source.id == name);
        let known = || self.sources.iter().map(|source| &source.name[..]);
        found.ok_or_else(|| unknown("source", name, known()))
    }

    /// These SAEs of a set; all of it if none is named.
    pub(super) fn sources_of_set(
        &self,
        set: &str,
        selected: &[String],
    ) -> Result<Vec<&Source>, Refusal> {
        let sources = self.sources.iter();
        let of_set: Vec<_> = sources.filter(|source| source.set() == set).collect();
        match (of_set.is_empty(), selected.is_empty()) {
            (true, _) => Err(unknown("source set", set, self.sets().into_iter())),
            (false, true) => Ok(of_set),
            (false, false) => selected.iter().map(|name| self.source(name)).collect(),
        }
    }

    /// Checks that the model is meant.
    pub(super) fn check_model(&self, name: &str) -> Result<(), Refusal> {
        let known = || self.models.iter().map(String::as_str);
        match known().any(|known| known == name) {
            true => Ok(()),
            false => Err(unknown("model", name, known())),
        }
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> Refusal {
    let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
    let known = match known.is_empty() {
        true => "none".to_owned(),
        false => known.join(", "),
    };
    let error = Error::invalid(format!("there is no {what} `{name}` here"));
    error.with_hint(format!("there is {known}")).into()
}

#[cfg(all(test, feature = "pull"))]
mod tests {
    use std::sync::Arc;

    use gguf_tools::sae::{Architecture, NormalizeActivations, SaeMeta};

    use super::Source;
    use crate::{Sae, SaeArrays};

    /// The source of an SAE that was published so, with labels of this name.
    fn source(published: Option<(&str, &str)>, labels: Option<&str>) -> Source {
        let meta = SaeMeta {
            architecture: Architecture::Standard,
            d_in: 1,
            d_out: 1,
            d_sae: 1,
            hook_name: "blocks.3.hook_resid_post".to_owned(),
            hook_names_out: Vec::new(),
            apply_b_dec_to_input: false,
            normalize_activations: NormalizeActivations::None,
            is_centred: false,
            norm_factor: None,
            source_format: None,
            model_name: Some("its-config".to_owned()),
            release: published.map(|(release, _)| release.to_owned()),
            id: published.map(|(_, id)| id.to_owned()),
            labels: Vec::new(),
            labels_source: labels.map(str::to_owned),
        };
        let arrays = SaeArrays {
            meta,
            w_enc: vec![1.0],
            w_dec: vec![1.0],
            b_enc: vec![0.0],
            b_dec: vec![0.0],
            threshold: None,
        };
        let sae = Sae::from_arrays(arrays, "file").expect("an SAE");
        Source::new((0, &Arc::new(sae)))
    }

    #[test]
    fn sources_are_called_as_on_neuronpedia() {
        let check = |published, labels, model: &str, name: &str, set: &str| {
            let source = source(published, labels);
            assert_eq!(source.model.as_deref(), Some(model));
            assert_eq!((&source.name[..], source.set()), (name, set));
        };
        let gemma = Some(("gemma-2b-res-jb", "blocks.12.hook_resid_post"));
        check(gemma, None, "gemma-2b", "12-res-jb", "res-jb");
        check(
            gemma,
            Some("labels.json"),
            "gemma-2b",
            "12-res-jb",
            "res-jb",
        );
        check(None, Some("gemma/7-a-b"), "gemma", "7-a-b", "a-b");
        check(None, Some("labels/mine"), "its-config", "3-file", "file");
        let unknown = Some(("mine", "my-sae"));
        check(unknown, None, "its-config", "3-my-sae", "my-sae");
    }
}
