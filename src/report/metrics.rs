//! What was measured of an SAE, as JSON: names here are an interface.

use serde::Serialize;

use crate::metrics::{Fit, Loss, Metrics};

/// What was measured of an SAE.
#[derive(Serialize)]
pub struct Report {
    /// How text rows are reconstructed.
    pub text: FitReport,
    /// How image rows are.
    pub image: FitReport,
    /// How well text tokens are predicted.
    pub loss: LossReport,
}

/// [`Fit`], by `SAELens`' names.
#[derive(Serialize)]
pub struct FitReport {
    /// Rows.
    pub n_rows: usize,
    /// [`Fit::l0`].
    pub l0: Option<f64>,
    /// [`Fit::explained_variance`].
    pub explained_variance: Option<f64>,
    /// [`Fit::mse`].
    pub mse: Option<f64>,
    /// [`Fit::cosine`].
    pub cossim: Option<f64>,
    /// [`Fit::never_active`].
    pub never_active: Option<f64>,
}

/// [`Loss`], by `SAELens`' names.
#[derive(Serialize)]
pub struct LossReport {
    /// [`Loss::n_tokens`].
    pub n_tokens: usize,
    /// [`Loss::without_sae`].
    pub ce_loss_without_sae: Option<f64>,
    /// [`Loss::with_sae`].
    pub ce_loss_with_sae: Option<f64>,
    /// [`Loss::with_ablation`].
    pub ce_loss_with_ablation: Option<f64>,
    /// [`Loss::score`].
    pub ce_loss_score: Option<f64>,
    /// [`Loss::zeros_cost_nothing`].
    pub zeros_cost_nothing: bool,
}

impl Report {
    /// What `metrics` says.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            text: FitReport::new(&metrics.text),
            image: FitReport::new(&metrics.image),
            loss: LossReport::new(&metrics.loss),
        }
    }
}

impl FitReport {
    fn new(fit: &Fit) -> Self {
        Self {
            n_rows: fit.n_rows(),
            l0: fit.l0(),
            explained_variance: fit.explained_variance(),
            mse: fit.mse(),
            cossim: fit.cosine(),
            never_active: fit.never_active(),
        }
    }
}

impl LossReport {
    fn new(loss: &Loss) -> Self {
        Self {
            n_tokens: loss.n_tokens(),
            ce_loss_without_sae: loss.without_sae(),
            ce_loss_with_sae: loss.with_sae(),
            ce_loss_with_ablation: loss.with_ablation(),
            ce_loss_score: loss.score(),
            zeros_cost_nothing: loss.zeros_cost_nothing(),
        }
    }
}
