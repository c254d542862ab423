//! The features of a folder of pictures, as one Parquet file, and what can be asked of it.
//!
//! ```text
//! folder.rs: pictures, sorted ─► workers.rs: a session a thread ─► features of each, in order
//!   ─► parts.rs: small files beside the target, so that a run can go on where it stopped
//!   ─► joined into the target ─► top.rs: the images of a feature, the features of a class
//! ```
//!
//! `steps.rs` does all this. `table.rs` holds the schema, `sidecar.rs` what is said about a table beside it, and `file.rs` reads
//! both, and tables that other programs have rewritten.

mod file;
mod folder;
mod parts;
mod settings;
mod sidecar;
mod steps;
mod table;
mod top;
mod workers;

pub use file::{NoContents, ScanFile};
pub use folder::{Folder, FoundPicture, PICTURE_EXTENSIONS};
pub use parts::{Totals, check_output};
pub use settings::{ScanPrompt, Settings};
pub use sidecar::{ClassSize, Contents, ScannedSae, ScannedSaes};
pub use steps::{ScanEvent, scan_folder};
pub use table::{ActiveFeature, Row};
pub use top::{
    By, ClassFeature, ClassFeatures, FeatureImages, SaeFeatures, TopImage, features_of_class,
    images_of_feature,
};
pub use workers::{PictureFeatures, Scan, jobs_at_once, read_pictures};

pub(in crate::study) use folder::none_read;
pub(in crate::study) use settings::identity;
