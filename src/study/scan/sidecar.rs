//! What a scan says of its table, in a JSON file beside it: `FILE.parquet.json`. It holds the table's
//! checksum, so that a damaged table is found before the `parquet` crate sees a byte: that crate (56)
//! believes the lengths in a damaged file. The table itself is a plain Parquet file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gguf_tools::new_file::{CompleteFile, NewFile};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use super::shard::{Listing, Shard};
use super::table::Row;
use crate::labels::find_in_saes;
use crate::study::pictures::{Item, ItemKind, Stamp};
use crate::{Error, FeatureId, Result, Sae, SaeSet};

/// The version of the table's schema and of this file.
const FORMAT: u32 = 2;
/// The same of a table of several SAEs, which has a column more.
const FORMAT_OF_SEVERAL: u32 = 3;
/// The same of a table of texts, which has columns more; of several SAEs too.
const FORMAT_OF_TEXTS: u32 = 4;
/// Bytes of the largest sidecar that is read; one of 100,000 classes has ten megabytes.
const MAX_BYTES: u64 = 256 << 20;

/// What a file holds: its length and its BLAKE3 hash, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksum {
    pub(super) n_bytes: u64,
    pub(super) blake3: String,
}

impl Checksum {
    /// Of what `hasher` has seen.
    pub(super) fn of(hasher: &blake3::Hasher) -> Self {
        Self {
            n_bytes: hasher.count(),
            blake3: hasher.finalize().to_hex().to_string(),
        }
    }

    /// Of a whole file, in bounded memory.
    pub(super) fn of_file(mut file: &File) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        file.rewind()?;
        hasher.update_reader(file)?;
        Ok(Self::of(&hasher))
    }
}

/// How many pictures, or texts, of a class could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassSize {
    /// The class; none for pictures directly in the folder.
    pub class: Option<String>,
    /// Its pictures, those without an active feature too.
    pub n_images: u64,
}

/// The SAEs of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ScannedSaes {
    /// One, whose name is in no row.
    One {
        /// Its number of features.
        d_sae: usize,
    },
    /// Several, in the order of their rows on a picture.
    Several {
        /// Their names and sizes.
        saes: Vec<ScannedSae>,
    },
}

/// One of the SAEs of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScannedSae {
    /// Its name in the rows.
    pub id: String,
    /// Its number of features.
    pub d_sae: usize,
}

impl ScannedSaes {
    /// What a scan says of `saes`.
    pub(super) fn new(saes: &SaeSet) -> Self {
        let d_sae = |sae: &Sae| sae.meta().d_sae;
        if saes.len() == 1 {
            let d_sae = d_sae(&saes[0]);
            return Self::One { d_sae };
        }
        let scanned = |sae: &Arc<Sae>| ScannedSae {
            id: sae.id().to_owned(),
            d_sae: d_sae(sae),
        };
        Self::Several {
            saes: saes.iter().map(scanned).collect(),
        }
    }

    /// Whether rows name their SAE.
    pub(super) fn are_named(&self) -> bool {
        matches!(self, Self::Several { .. })
    }

    /// For each SAE its name, where rows name it, and its number of features.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, usize)> {
        let (one, several) = match self {
            Self::One { d_sae } => (Some((None, *d_sae)), &[][..]),
            Self::Several { saes } => (None, &saes[..]),
        };
        let several = several.iter().map(|sae| (Some(&*sae.id), sae.d_sae));
        one.into_iter().chain(several)
    }

    /// The feature that `name` means, `SAE_ID/FEATURE` where rows name their SAE; `find` finds it in one of them, by
    /// its place.
    ///
    /// # Errors
    /// As [`find_in_saes`]; those of `find`.
    pub(in crate::study) fn find(
        &self,
        name: &str,
        find: impl Fn(usize, &str) -> Result<usize>,
    ) -> Result<FeatureId> {
        match self {
            Self::One { .. } => find(0, name).map(FeatureId::of_only),
            Self::Several { saes } => {
                let ids: Vec<_> = saes.iter().map(|sae| &*sae.id).collect();
                find_in_saes(name, &ids, find)
            }
        }
    }

    /// The place of the SAE that a row names.
    pub(in crate::study) fn place_of(&self, row: &Row<'_>) -> usize {
        let mut saes = self.iter();
        let place = saes.position(|(id, _)| id == row.sae);
        place.expect("a file's rows are of its SAEs")
    }
}

/// What a scan says about its rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contents {
    /// What the numbers depend on.
    pub settings: Settings,
    /// What computed them: devices and the kernels that llama.cpp has for them, on which last bits depend.
    #[serde(default)]
    pub computed_by: BTreeSet<String>,
    /// What was scanned; not known of parts, and of older tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
    /// Which shard of that the rows are, where they are not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The SAEs.
    #[serde(flatten)]
    pub saes: ScannedSaes,
    /// The pictures that were read, by class.
    pub classes: Vec<ClassSize>,
    /// The number of pictures that could not be read.
    pub n_skipped: u64,
    /// The pictures of a part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pictures: Vec<CoveredPicture>,
}

/// A picture of a part, as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CoveredPicture {
    pub(super) path: String,
    #[serde(default)]
    pub(super) class: Option<String>,
    #[serde(flatten)]
    pub(super) stamp: Stamp,
    pub(super) is_skipped: bool,
}

impl CoveredPicture {
    pub(super) fn is_still(&self, item: &Item) -> bool {
        let class = self.class.as_deref();
        (&self.path, class, Some(self.stamp)) == (&item.name, item.class.as_deref(), item.stamp)
    }
}

impl Contents {
    pub(super) fn new(settings: Settings, saes: ScannedSaes) -> Self {
        Self {
            settings,
            computed_by: BTreeSet::new(),
            listing: None,
            shard: None,
            saes,
            classes: Vec::new(),
            n_skipped: 0,
            pictures: Vec::new(),
        }
    }

    /// The number of pictures that were read.
    pub fn n_images(&self) -> u64 {
        self.classes.iter().map(|class| class.n_images).sum()
    }

    /// Adds the counts of another table of the same scan, and what computed it.
    pub(super) fn add(&mut self, other: &Self) {
        for class in &other.classes {
            self.add_images(class.class.as_deref(), class.n_images);
        }
        self.n_skipped += other.n_skipped;
        self.computed_by.extend(other.computed_by.iter().cloned());
    }

    /// Counts pictures of a class that were read.
    pub(super) fn add_images(&mut self, class: Option<&str>, n_images: u64) {
        let at = self
            .classes
            .binary_search_by(|entry| entry.class.as_deref().cmp(&class));
        match at {
            Ok(at) => self.classes[at].n_images += n_images,
            Err(at) => {
                let class = class.map(str::to_owned);
                self.classes.insert(at, ClassSize { class, n_images });
            }
        }
    }
}

/// The file beside a table.
#[derive(Serialize, Deserialize)]
pub(super) struct Sidecar {
    format: u32,
    pub(super) table: Checksum,
    #[serde(flatten)]
    pub(super) contents: Contents,
}

impl Sidecar {
    pub(super) fn new(table: Checksum, contents: Contents) -> Self {
        Self {
            format: match (contents.settings.kind(), contents.saes.are_named()) {
                (ItemKind::Texts, _) => FORMAT_OF_TEXTS,
                (ItemKind::Pictures, false) => FORMAT,
                (ItemKind::Pictures, true) => FORMAT_OF_SEVERAL,
            },
            table,
            contents,
        }
    }

    /// Where the sidecar of `table` is: beside the file that a link leads to.
    pub(super) fn path_of(table: &Path) -> PathBuf {
        let target = table.canonicalize().ok().filter(|_| table.is_symlink());
        let mut path = target.unwrap_or_else(|| table.to_owned()).into_os_string();
        path.push(".json");
        path.into()
    }

    /// The sidecar of `table`, if it has one.
    ///
    /// # Errors
    /// A file that cannot be read, or is not such a file of this version.
    pub(super) fn read(table: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let path = Self::path_of(table);
        let shown = path.display();
        let read = || -> io::Result<Option<Vec<u8>>> {
            if !path.try_exists()? {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            // A pipe would wait for ever.
            if path.is_file() {
                File::open(&path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
            }
            Ok(Some(bytes))
        };
        let Some(bytes) = read().map_err(Error::io("read", &path))? else {
            return Ok(None);
        };
        let error = |what: &str| {
            Error::invalid(format!("`{shown}` {what}")).with_hint(format!(
                "scan the folder again, or remove `{shown}` to read the table without counts"
            ))
        };
        let version: Version = serde_json::from_slice(&bytes)
            .map_err(|_| error("is damaged, or was not written by `llava-sae-cpp scan`"))?;
        if ![FORMAT, FORMAT_OF_SEVERAL, FORMAT_OF_TEXTS].contains(&version.format) {
            return Err(error("was written by another version of this program"));
        }
        let sidecar = serde_json::from_slice(&bytes).map_err(|_| error("is damaged"))?;
        Ok(Some(sidecar))
    }

    /// Gives a table and its sidecar, which is written to `file`, their names, the sidecar first: alone it is
    /// nothing, so that whoever finds the table finds both. Should the program die in between, and there was an
    /// older table, that has a sidecar that is not its own, which is an error to readers, and no wrong counts;
    /// what the new one is made of is still there.
    pub(super) fn publish(&self, file: NewFile, table: CompleteFile) -> Result<()> {
        file.finish_with(&self.to_json())?;
        table.publish()
    }

    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain data");
        json.push(b'\n');
        json
    }
}

/// The error of a table without a sidecar, where that is needed.
pub(super) fn no_sidecar(table: &Path) -> Error {
    let shown = table.display();
    Error::invalid(format!("`{shown}` has no `{shown}.json` beside it"))
        .with_hint("give a file as a scan wrote it, with what it wrote beside it")
}
