//! Many pictures, from a folder or any list, and the features that each activates: what scans and baselines share.

mod folder;
mod item;
mod read;

pub use folder::{Folder, PICTURE_EXTENSIONS};
pub use item::{Item, Stamp, file_of};
pub use read::{ActiveFeature, PictureFeatures, Scan, ScanPrompt, jobs_at_once, read_pictures};

#[cfg(feature = "scan")]
pub(super) use item::folder_of;
pub(super) use item::none_read;
#[cfg(feature = "scan")]
pub(super) use read::{features_of, for_many_pictures};
