//! Text as it comes.

use llava_sae_cpp::{FeatureName, HookedModel, Result, Step};
use pyo3::prelude::*;
use serde::Serialize;

use crate::error::OrRaise;
use crate::raised::Raised;
use crate::shared_session::Pending;

/// What a running text gives, as JSON: steps, and at the end what `generate` gives.
#[pyclass(frozen, module = "llava_sae._native")]
pub(crate) struct Stream {
    pub(crate) pending: Pending<Result<Event>>,
    pub(crate) raised: Raised,
}

/// What comes of a run.
pub(crate) enum Event {
    Step(String),
    End(String),
}

/// A step as JSON.
#[derive(Serialize)]
struct Piece<'a> {
    text: &'a str,
    id: Option<i32>,
    /// What is active in the row that the token was predicted from, and its activation.
    features: Vec<(FeatureName, f32)>,
}

/// A step with its features as JSON.
pub(crate) fn piece(step: &Step<'_>, model: &HookedModel) -> String {
    let row = step.new_rows.end.checked_sub(1);
    let row = row.filter(|_| !step.new_rows.is_empty());
    let mut features = Vec::new();
    for (sae_idx, seen) in step.trace.saes.iter().enumerate() {
        let known = row.filter(|&row| row < seen.activations.n_rows());
        let active = known.into_iter().flat_map(|row| seen.activations.row(row));
        features.extend(active.map(|(index, value)| {
            let sae = model.saes().shown_id(sae_idx);
            (FeatureName::new(sae, index), value)
        }));
    }
    let piece = Piece {
        text: step.text,
        id: step.id,
        features,
    };
    serde_json::to_string(&piece).expect("plain data")
}

#[pymethods]
impl Stream {
    /// The next step as `(True, JSON)`, the end as `(False, JSON)`, and nothing behind it.
    fn next(&self, py: Python<'_>) -> PyResult<Option<(bool, String)>> {
        let event = self.pending.next(py)?;
        let event = self.raised.or(event.transpose().or_raise(py))?;
        Ok(event.map(|event| match event {
            Event::Step(json) => (true, json),
            Event::End(json) => (false, json),
        }))
    }

    /// Ends the run.
    fn close(&self) {
        self.pending.cancel();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pending.cancel();
    }
}
