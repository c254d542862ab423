//! What a prompt activates.

use std::sync::{Arc, OnceLock};

use llava_sae_cpp::rank::FeatureScore;
use llava_sae_cpp::report::features::{Ranking, Seen};
use llava_sae_cpp::report::json;
use llava_sae_cpp::report::page::{About, Page, Shown};
use llava_sae_cpp::{
    Error, FeatureId, FeatureName, HookedModel, Picture, Prompt, Result, Run, Session, saved_set,
};
use numpy::PyArray2;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::arrays::{self, Csr};
use crate::error::OrRaise;
use crate::image::Encoded;
use crate::settings::{Asked, Whole};

/// What a prompt activates, ranked when it is asked for.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Features {
    model: Arc<HookedModel>,
    names: [String; 2], // the model's and the SAE's
    prompt: Prompt,
    shown: String,
    images: Vec<Arc<Encoded>>,
    pictures: OnceLock<Vec<Picture>>, // of the images, for what draws
    ranking: Ranking,
    run: Run,
}

/// Rank, name, label, score, lift, largest activation, its position, and at how many positions.
type Standing<'a> = (
    usize,
    Name,
    Option<&'a str>,
    f32,
    Option<f32>,
    f32,
    usize,
    usize,
);

/// The first features of each SAE, best first. A row becomes Python's when it is asked for.
#[pyclass(frozen, sequence, module = "llava_sae._native")]
pub(crate) struct Standings {
    model: Arc<HookedModel>,
    rows: Vec<(usize, usize, FeatureScore)>, // the SAE and the rank in it
}

#[pymethods]
impl Standings {
    fn __len__(&self) -> usize {
        self.rows.len()
    }

    /// A row as the fields of `llava_sae.Feature`.
    fn __getitem__(&self, row: usize) -> PyResult<Standing<'_>> {
        let row = self.rows.get(row);
        let (sae, rank, score) = row.ok_or_else(|| PyIndexError::new_err("no such row"))?;
        let saes = self.model.saes();
        let feature = FeatureId {
            sae: *sae,
            index: score.feature,
        };
        let name = match saes.shown(feature) {
            FeatureName::Index(index) => Name::Index(index),
            FeatureName::Name(name) => Name::Text(name),
        };
        Ok((
            *rank,
            name,
            saes.label(feature),
            score.score,
            score.lift,
            score.max,
            score.argmax_position,
            score.n_tokens,
        ))
    }
}

/// An index, or the name of one of several SAEs' features.
#[derive(IntoPyObject)]
pub(crate) enum Name {
    Index(usize),
    Text(String),
}

/// A heat map as a PNG file, and the patches in it, `[n_rows, n_columns]`.
type HeatMap<'py> = (Option<Vec<u8>>, Bound<'py, PyArray2<f32>>);

impl Features {
    pub(crate) fn new(
        model: Arc<HookedModel>,
        names: [String; 2],
        asked: Asked,
        ranking: Ranking,
        run: Run,
    ) -> Self {
        Self {
            model,
            names,
            prompt: asked.prompt,
            shown: asked.shown,
            images: asked.images,
            pictures: OnceLock::new(),
            ranking,
            run,
        }
    }

    /// The first `top` features of each SAE.
    pub(crate) fn standings(&self, top: usize) -> Result<Standings> {
        let seen = self.seen(&[])?;
        let of_sae = |sae| {
            let ranked = seen.top(sae, top).iter().zip(1..);
            ranked.map(move |(score, rank)| (sae, rank, score.clone()))
        };
        Ok(Standings {
            model: Arc::clone(&self.model),
            rows: (0..self.model.saes().len()).flat_map(of_sae).collect(),
        })
    }

    /// The ranked features; those that draw need the pictures.
    fn seen<'a>(&'a self, pictures: &'a [Picture]) -> Result<Seen<'a>> {
        let saes = self.model.saes();
        Seen::new(saes, &self.prompt, pictures, &self.run.trace, &self.ranking)
    }

    fn pictures(&self) -> &[Picture] {
        self.pictures.get_or_init(|| {
            let images = self.images.iter();
            let copy = |image: &Arc<Encoded>| Picture::from_rgb(image.picture.rgb().clone());
            images.map(copy).collect()
        })
    }

    fn draw(
        &self,
        feature: FeatureId,
        view: Option<usize>,
    ) -> Result<(Option<Vec<u8>>, Vec<f32>, usize)> {
        let seen = self.seen(self.pictures())?;
        let view = view.or_else(|| seen.strongest_view(feature)).unwrap_or(0);
        let Some(shown) = seen.views.get(view) else {
            let n_views = seen.views.len();
            return Err(
                Error::invalid(format!("there is no view {view} of {n_views}"))
                    .with_hint("views are parts of pictures; a text has none"),
            );
        };
        let activations = &self.run.trace.saes[feature.sae].activations;
        let patches = shown.positions();
        let patches = patches.map(|position| activations.get(position, feature.index));
        Ok((
            seen.heat_map(view, feature),
            patches.collect(),
            shown.grid[1],
        ))
    }

    fn html(&self, title: &str) -> Result<String> {
        let seen = self.seen(self.pictures())?;
        let saes = self.model.saes();
        let lifts = saes.iter().map(|sae| self.ranking.has_lift(sae));
        let has_lift = lifts.collect::<Result<Vec<_>>>()?.contains(&true);
        let positions = self.ranking.over.to_string();
        let hooks: Vec<_> = saes
            .iter()
            .map(|sae| sae.hook_point().to_string())
            .collect();
        let mut page = Page::new(About {
            model: self.names[0].clone(),
            sae: self.names[1].clone(),
            hook: hooks.join(", "),
            prompt: self.shown.clone(),
            ranked_by: self.ranking.described(has_lift),
            positions,
            has_lift,
            neuronpedia: llava_sae_cpp::neuronpedia_addresses(self.model.saes()),
            interventions: saved_set::entries(None, saes),
        });
        let shown = Shown {
            name: title.to_owned(),
            pictures: self.pictures(),
            views: &seen.views,
            scores: &seen.scores,
            original: &self.run,
            steered: None,
        };
        page.add(&shown, &Session::new(Arc::clone(&self.model)));
        Ok(page.html())
    }
}

#[pymethods]
impl Features {
    /// The object that `features --json` prints, without the picture's name, with `top` features of each SAE.
    fn report(&self, py: Python<'_>, top: Whole<usize>) -> PyResult<String> {
        py.detach(|| {
            let seen = self.seen(&[])?;
            let report = seen.report(&self.model, top.0);
            Ok(serde_json::to_string(&report).expect("plain data"))
        })
        .or_raise(py)
    }

    /// The same features without what is said of each position.
    fn top(&self, py: Python<'_>, top: Whole<usize>) -> PyResult<Standings> {
        py.detach(|| self.standings(top.0)).or_raise(py)
    }

    /// The features of the given labels' search, by their names.
    fn search(&self, py: Python<'_>, text: &str) -> PyResult<Vec<String>> {
        let found = self.model.saes().search_labels(text, None).or_raise(py)?;
        let shown = |id| self.model.saes().shown(id).to_string();
        Ok(found.features.into_iter().map(shown).collect())
    }

    /// The positions, as `features --json` prints them.
    fn tokens(&self) -> String {
        let tokens = json::tokens(self.prompt.tokens(), &self.model);
        serde_json::to_string(&tokens).expect("plain data")
    }

    /// The features of all positions of an SAE, `[n_positions, d_sae]`.
    fn csr<'py>(&self, py: Python<'py>, sae: usize) -> Csr<'py> {
        arrays::csr(py, &self.run.trace.saes[sae].activations)
    }

    /// What a feature is called, by its name or a part of its label.
    fn find(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let feature = self.model.find_feature(name).or_raise(py)?;
        let shown: FeatureName = self.model.saes().shown(feature);
        Ok(shown.to_string())
    }

    /// A feature over a view of a picture, the one where it is strongest if none is given.
    fn heat_map<'py>(
        &self,
        py: Python<'py>,
        feature: &str,
        view: Option<usize>,
    ) -> PyResult<HeatMap<'py>> {
        let feature = self.model.find_feature(feature).or_raise(py)?;
        let (png, patches, n_columns) = py.detach(|| self.draw(feature, view)).or_raise(py)?;
        Ok((png, arrays::matrix(py, patches, n_columns)?))
    }

    /// The page that `features --html` writes, without captions.
    fn page(&self, py: Python<'_>, title: &str) -> PyResult<String> {
        py.detach(|| self.html(title)).or_raise(py)
    }

    /// Seconds that the prompt took.
    #[getter]
    fn seconds(&self) -> f64 {
        self.run.prompt_time.as_secs_f64()
    }
}
