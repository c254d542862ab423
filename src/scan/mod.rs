//! The features of a folder of pictures, as one Parquet file, and what can be asked of it.
//!
//! ```text
//! folder.rs: pictures, sorted ─► workers.rs: a session a thread ─► features of each, in order
//!   ─► parts.rs: small sealed files beside the target, so that a run can go on where it stopped
//!   ─► joined into the target ─► top.rs: the images of a feature, the features of a class
//! ```
//!
//! `table.rs` holds the schema, and `seal.rs` the checksum that is checked before the `parquet` crate
//! reads a byte.

mod folder;
mod parts;
mod seal;
mod settings;
mod table;
mod top;
mod workers;

pub use folder::{FoundPicture, PICTURE_EXTENSIONS, pictures_in};
pub use parts::{Parts, Progress, Totals};
pub use settings::Settings;
pub use table::{ActiveFeature, ClassSize, Contents, Row, ScanFile};
pub use top::{
    By, ClassFeature, ClassFeatures, FeatureImages, TopImage, features_of_class, images_of_feature,
};
pub use workers::{ScanPrompt, read_image, scan};
