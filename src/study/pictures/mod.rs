//! Many pictures or texts, from a folder or any list, and the features that each activates: what scans and baselines
//! share.

mod folder;
mod item;
mod read;
mod text;

pub use folder::{Folder, PICTURE_EXTENSIONS, TEXT_EXTENSION};
pub use item::{Item, Stamp, file_of};
pub use read::{
    ActiveFeature, ItemFeatures, ItemKind, Reading, Scan, ScanPrompt, for_many_items, jobs_at_once,
    read_items,
};
pub use text::{InContext, ReadText};

#[cfg(feature = "scan")]
pub(super) use item::folder_of;
pub(super) use item::none_read;
#[cfg(feature = "scan")]
pub(super) use read::features_of;
pub(super) use text::contexts;
