//! SAEs: what they are, and rows to features and back.

use std::path::Path;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use llava_sae_cpp::{
    Activations, Decoder, Encoder, EncoderOptions, EncoderWeights, Error, HookedModel, Result,
    SessionOptions,
};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use serde::Serialize;

use crate::arrays::{self, Csr};
use crate::error::OrRaise;

/// An SAE, of a model or alone.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Sae {
    sae: Arc<llava_sae_cpp::Sae>,
    model: Option<(Arc<HookedModel>, usize)>, // whose encoder it takes, and its place there
    encoder: Mutex<Option<Encoder>>,          // none before the first rows
}

/// What an SAE is, by `SAELens`' names.
#[derive(Serialize)]
struct Config<'a> {
    id: &'a str,
    architecture: &'static str,
    k: Option<usize>,
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    hook_name: &'a str,
    hook_names_out: &'a [String],
    apply_b_dec_to_input: bool,
    normalize_activations: &'static str,
    norm_factor: Option<f32>,
    model_name: Option<&'a str>,
    release: Option<&'a str>,
    labels_source: Option<&'a str>,
    has_baseline: bool,
}

impl Sae {
    pub(crate) fn of_model(model: &Arc<HookedModel>, place: usize) -> Self {
        Self {
            sae: Arc::clone(&model.saes()[place]),
            model: Some((Arc::clone(model), place)),
            encoder: Mutex::new(None),
        }
    }

    fn load_encoder(&self) -> Result<Encoder> {
        if let Some((model, place)) = &self.model {
            return model.encoder(*place);
        }
        let options = EncoderOptions {
            use_gpu: false,
            threads: SessionOptions::default().threads,
            screen: true,
        };
        EncoderWeights::load(&self.sae, options)?.encoder()
    }

    fn encode_rows(&self, rows: &[f32]) -> Result<Activations> {
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let encoder = match &mut *encoder {
            Some(loaded) => loaded,
            unloaded => unloaded.insert(self.load_encoder()?),
        };
        let mut activations = Activations::default();
        encoder.encode(rows, &mut activations)?;
        Ok(activations)
    }

    fn reconstruct(
        &self,
        indptr: &[i64],
        indices: &[i64],
        data: &[f32],
        rows: &[f32],
    ) -> Result<Vec<f32>> {
        let meta = self.sae.meta();
        let wrong = || Error::invalid("the features are no CSR matrix of this SAE's");
        let mut activations = Activations::default();
        for ends in indptr.windows(2) {
            let [start, end] = [ends[0], ends[1]].map(usize::try_from);
            let range = start.ok().zip(end.ok()).ok_or_else(wrong)?;
            let indices = indices.get(range.0..range.1).ok_or_else(wrong)?;
            let data = data.get(range.0..range.1).ok_or_else(wrong)?;
            for (&index, &value) in indices.iter().zip(data) {
                let index = usize::try_from(index).ok();
                let index = index
                    .filter(|&index| index < meta.d_sae)
                    .ok_or_else(wrong)?;
                activations.push(index, value);
            }
            activations.finish_row();
        }
        if activations.n_rows() * meta.d_in != rows.len() {
            return Err(wrong());
        }
        let mut decoder = Decoder::new(Arc::clone(&self.sae))?;
        let mut decoded = vec![0.0; activations.n_rows() * meta.d_out];
        let both = rows
            .chunks_exact(meta.d_in)
            .zip(decoded.chunks_exact_mut(meta.d_out));
        for (row_idx, (row, out)) in both.enumerate() {
            decoder.reconstruct(&activations, row_idx, row, out)?;
        }
        Ok(decoded)
    }

    fn decoder_rows(&self) -> Result<Vec<f32>> {
        let rows = (0..self.sae.meta().d_sae).map(|feature| self.sae.decoder_row(feature));
        let mut w_dec = Vec::new();
        for row in rows {
            w_dec.extend(row?);
        }
        Ok(w_dec)
    }
}

#[pymethods]
impl Sae {
    /// An SAE's GGUF file.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let open = |path: &Path| llava_sae_cpp::Sae::open(path);
        let sae = py.detach(|| open(&path)).or_raise(py)?;
        Ok(Self {
            sae: Arc::new(sae),
            model: None,
            encoder: Mutex::new(None),
        })
    }

    /// What it is, as JSON.
    fn config(&self) -> String {
        let meta = self.sae.meta();
        let k = match meta.architecture {
            gguf_tools::sae::Architecture::TopK { k } => Some(k),
            _ => None,
        };
        let config = Config {
            id: self.sae.id(),
            architecture: meta.architecture.name(),
            k,
            d_in: meta.d_in,
            d_out: meta.d_out,
            d_sae: meta.d_sae,
            hook_name: &meta.hook_name,
            hook_names_out: &meta.hook_names_out,
            apply_b_dec_to_input: meta.apply_b_dec_to_input,
            normalize_activations: meta.normalize_activations.name(),
            norm_factor: meta.norm_factor,
            model_name: meta.model_name.as_deref(),
            release: meta.release.as_deref(),
            labels_source: meta.labels_source.as_deref(),
            has_baseline: self.sae.baseline().is_some(),
        };
        serde_json::to_string(&config).expect("plain data")
    }

    /// Its file.
    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.sae.file().map(|file| file.path().to_owned())
    }

    /// Labels, `[d_sae]`; none where there is none.
    fn labels(&self) -> Vec<Option<&str>> {
        let features = 0..self.sae.meta().d_sae;
        features.map(|feature| self.sae.label(feature)).collect()
    }

    /// The feature of this index or label.
    fn find(&self, py: Python<'_>, name: &str) -> PyResult<usize> {
        self.sae.find_feature(name).or_raise(py)
    }

    /// The features whose labels hold these words.
    fn search(&self, py: Python<'_>, text: &str) -> PyResult<Vec<usize>> {
        let found = llava_sae_cpp::labels::search(text, None, self.sae.labels());
        found.map(|found| found.features).or_raise(py)
    }

    /// `[d_sae, d_in]`.
    fn w_enc<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let w_enc = py.detach(|| self.sae.w_enc()).or_raise(py)?;
        arrays::matrix(py, w_enc, self.sae.meta().d_in)
    }

    /// `[d_sae, decoder_width]`.
    fn w_dec<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let w_dec = py.detach(|| self.decoder_rows()).or_raise(py)?;
        arrays::matrix(py, w_dec, self.sae.meta().decoder_width())
    }

    /// `[d_out, d_in]`, of a transcoder that has it.
    fn w_skip<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray2<f32>>>> {
        let w_skip = py.detach(|| self.sae.w_skip()).or_raise(py)?;
        let d_in = self.sae.meta().d_in;
        w_skip
            .map(|w_skip| arrays::matrix(py, w_skip, d_in))
            .transpose()
    }

    /// `[d_sae]`.
    fn b_enc<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.sae.b_enc().to_vec().into_pyarray(py)
    }

    /// `[d_out]`.
    fn b_dec<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.sae.b_dec().to_vec().into_pyarray(py)
    }

    /// `[d_sae]`.
    fn threshold<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        self.sae.threshold().to_vec().into_pyarray(py)
    }

    /// The active features of rows, `[n_rows, d_in]`, contiguous.
    fn encode<'py>(&self, py: Python<'py>, rows: PyReadonlyArray2<'py, f32>) -> PyResult<Csr<'py>> {
        let rows = rows.as_slice()?;
        let activations = py.detach(|| self.encode_rows(rows)).or_raise(py)?;
        Ok(arrays::csr(py, &activations))
    }

    /// The reconstructions, `[n_rows, d_out]`, of rows with these features. `rows`, `[n_rows, d_in]`, are those that were
    /// encoded, where their normalisation is to be undone, or a skip connection reads them.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        indptr: PyReadonlyArray1<'py, i64>,
        indices: PyReadonlyArray1<'py, i64>,
        data: PyReadonlyArray1<'py, f32>,
        rows: PyReadonlyArray2<'py, f32>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = rows.as_slice()?;
        let (indptr, indices, data) = (indptr.as_slice()?, indices.as_slice()?, data.as_slice()?);
        let decoded = py.detach(|| self.reconstruct(indptr, indices, data, rows));
        arrays::matrix(py, decoded.or_raise(py)?, self.sae.meta().d_out)
    }
}
