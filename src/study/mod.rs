//! What is measured with runs: sweeps, why a word was said, how well SAEs fit, folders of pictures, baselines, control
//! vectors, published experiments.

pub mod baseline;
pub mod compare;
mod control;
pub(crate) mod control_vector;
pub mod explain;
#[cfg(feature = "scan")]
pub mod gallery;
mod identity;
pub mod metrics;
pub mod pictures;
pub mod reproduce;
#[cfg(feature = "scan")]
pub mod scan;
mod sweep;

pub use control::random_control;
pub use sweep::{ScoredRun, Sweep};
