//! The features of many pictures or texts, as one Parquet file, and what can be asked of it.
//!
//! ```text
//! a folder, list.rs or texts.rs: items, sorted ─► shard.rs: all, or a range of them
//!   ─► pictures::read_items: features of each, in order
//!   ─► parts.rs: small files beside the target, so that a run can go on where it stopped
//!   ─► join.rs: the target ─► top.rs: the images of a feature, the features of a class
//! worker.rs: lines, one after another ─► features of each ─► batches
//! merge.rs: shards ─► agree.rs: whether they are of one scan ─► join.rs
//! ```
//!
//! `steps.rs` does all this. `table.rs` holds the schema, `sidecar.rs` what is said about a table beside it, and
//! `file.rs` reads both, of several tables too, and tables that other programs have rewritten.

mod agree;
mod file;
mod join;
mod lines;
mod list;
mod manifest;
mod merge;
mod parts;
mod settings;
mod shard;
mod sidecar;
mod steps;
mod table;
mod table_file;
mod texts;
mod top;
mod worker;

pub use file::{NoContents, ScanFile};
pub use list::{ItemList, Separator};
pub use merge::merge;
pub use parts::{Totals, check_output};
pub use settings::Settings;
pub use shard::{Listing, ScanItems, Shard};
pub use sidecar::{ClassSize, Contents, ScannedSae, ScannedSaes};
pub use steps::{ScanEvent, scan_items};
pub use table::Row;
pub use top::{
    By, ClassFeatures, FeatureImages, SaeFeatures, TopImage, features_of_class, images_of_feature,
};
pub use worker::answer;

pub(in crate::study) use top::no_class;
