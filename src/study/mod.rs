//! What is measured with runs: sweeps, how well SAEs fit, folders of pictures, baselines, control
//! vectors, published experiments.

pub mod baseline;
pub(crate) mod control_vector;
pub mod metrics;
pub mod reproduce;
pub mod scan;
mod sweep;

pub use sweep::{ScoredRun, Sweep};
