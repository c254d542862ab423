//! What a run looks like: JSON, tables, heat maps, a page. A front end decides where they go and what they
//! are called; nothing here knows a command line.

pub mod capture;
pub(crate) mod difference;
pub mod explain;
pub mod features;
#[cfg(feature = "scan")]
pub mod gallery;
pub mod heatmap;
pub mod json;
pub mod metrics;
pub mod page;
mod reproduction;
pub mod sweep;
pub mod table;
pub mod view;
