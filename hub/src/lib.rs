//! Published models and SAEs by name or by address: from Hugging Face's hub into the cache that its other
//! clients share, and labels from Neuronpedia.
//!
//! ```text
//! a name ─► models ─┐
//! a release ─► releases ─┤─► address ─► Hub::snapshot: commit, files, sizes, hashes ─► select: what is needed
//! ORG/REPO… ────────┘                                          │
//!                              http: redirects, retries, the token ─► cache: blobs/HASH, checked, linked
//!                                                              └─► a folder, as the conversion reads it
//! gemma-2b/12-res-jb ─► Neuronpedia's bucket ─► batch-N.jsonl.gz
//! ```
//!
//! It is synchronous and has no C but what TLS is made of; it knows nothing of running a model, and does not
//! convert.

#![forbid(unsafe_code)]

pub mod address;
mod cache;
mod download;
mod hash;
mod http;
mod hub;
mod labels;
mod lock;
pub mod models;
pub mod releases;
mod select;
mod settings;
mod snapshot;

pub use address::{LabelsAddress, ModelAddress, RepoId, SaeAddress};
pub use hash::Hash;
pub use http::Cancelled;
pub use hub::Hub;
pub use labels::Labels;
pub use lock::Lock;
pub use select::{ModelFormat, ModelParts};
pub use settings::{Settings, Token};
pub use snapshot::{RepoFile, Snapshot};
