//! Shards: a scan's items by name, cut into ranges, so that several machines scan one each and their tables in a
//! row are that of one scan.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::study::pictures::Item;

/// The largest number of shards.
const MAX_SHARDS: u32 = 1_000_000;

/// Which of how many shards, counted from 1: `3/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Shard {
    index: u32,
    count: u32,
}

/// A shard as a sidecar has it, unchecked.
#[derive(Deserialize)]
struct Fields {
    index: u32,
    count: u32,
}

impl Shard {
    /// The shard `index` of `count`, the first of which is 1; none where there is no such shard.
    pub fn new(index: u32, count: u32) -> Option<Self> {
        let exists = (1..=count).contains(&index) && count <= MAX_SHARDS;
        exists.then_some(Self { index, count })
    }

    /// Its number, from 1 to [`Shard::count`].
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Which of so many items are its own; shards differ by one item at most.
    fn range(self, n_items: usize) -> Range<usize> {
        let start = |index: u32| {
            let start = n_items as u128 * u128::from(index) / u128::from(self.count);
            usize::try_from(start).expect("not above `n_items`")
        };
        start(self.index - 1)..start(self.index)
    }
}

impl TryFrom<Fields> for Shard {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        Self::new(fields.index, fields.count).ok_or("no such shard")
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, count) = numbers.ok_or("give `I/N`, such as `3/64`")?;
        Self::new(index, count).ok_or_else(|| match count {
            1..=MAX_SHARDS => {
                format!("shards count from 1: I is from 1 to {count}, and not {index}")
            }
            _ => format!("N is from 1 to {MAX_SHARDS}"),
        })
    }
}

/// What a scan, or all shards of one, are of: the items' names and classes in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// How many items there are.
    pub n_items: u64,
    /// The BLAKE3 hash of their names and classes, and of texts that are in no file of their own, each behind its
    /// length in 8 bytes.
    pub blake3: String,
}

impl Listing {
    fn of(items: &[Item]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: Option<&str>| {
            // No text is as long as what stands for none.
            let n_bytes = text.map_or(u64::MAX, |text| text.len() as u64);
            hasher.update(&n_bytes.to_le_bytes());
            hasher.update(text.unwrap_or_default().as_bytes());
        };
        for item in items {
            add(Some(&item.name));
            add(item.class.as_deref());
            if let Some(text) = item.text() {
                add(Some(text));
            }
        }
        Self {
            n_items: items.len() as u64,
            blake3: hasher.finalize().to_hex().to_string(),
        }
    }
}

/// What a scan reads: all items of a listing, or a shard of them.
#[derive(Clone, Debug)]
pub struct ScanItems {
    items: Vec<Item>,
    listing: Listing,
    shard: Option<Shard>,
}

impl ScanItems {
    /// Of all `items`, which are in the order of their names, those of `shard`, or all; the others are dropped.
    /// Relative paths begin at `dir`.
    pub fn new(mut items: Vec<Item>, shard: Option<Shard>, dir: &Path) -> Self {
        let listing = Listing::of(&items);
        if let Some(shard) = shard {
            let range = shard.range(items.len());
            items.truncate(range.end);
            items.drain(..range.start);
            items.shrink_to_fit();
        }
        for (position, item) in items.iter_mut().enumerate() {
            item.position = position;
            item.look(dir);
        }
        Self {
            items,
            listing,
            shard,
        }
    }

    /// The items, in the order of their names.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// What they are, or are a shard, of.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Which shard they are.
    pub fn shard(&self) -> Option<Shard> {
        self.shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards are all items, each once, in order, and of equal sizes.
    #[test]
    fn shards_are_all_items() {
        for n_items in [0, 1, 5, 63, 64, 65, 1000] {
            for count in [1, 2, 7, 64] {
                let shards = (1..=count).map(|index| Shard::new(index, count).expect("it exists"));
                let ranges: Vec<_> = shards.map(|shard| shard.range(n_items)).collect();
                let joined: Vec<_> = ranges.iter().flat_map(Clone::clone).collect();
                assert_eq!(joined, (0..n_items).collect::<Vec<_>>());
                let sizes = ranges.iter().map(ExactSizeIterator::len);
                let (min, max) = (sizes.clone().min(), sizes.max());
                assert!(max.unwrap_or(0) - min.unwrap_or(0) <= 1);
            }
        }
        let last = Shard::new(MAX_SHARDS, MAX_SHARDS).expect("it exists");
        assert_eq!(last.range(usize::MAX).end, usize::MAX);
    }

    /// A listing tells names from classes, and none from an empty one.
    #[test]
    fn listings_differ() {
        let of = |items: &[(&str, Option<&str>)]| {
            let item = |&(name, class): &(&str, Option<&str>)| {
                Item::of_file(Path::new(name), class.map(Into::into))
            };
            Listing::of(&items.iter().map(item).collect::<Vec<_>>()).blake3
        };
        let hashes = [
            of(&[]),
            of(&[("ab", None)]),
            of(&[("ab", Some(""))]),
            of(&[("a", Some("b"))]),
            of(&[("a", None), ("b", None)]),
        ];
        for (i, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..i].contains(hash), "{i}");
        }
    }

    #[test]
    fn shards_as_options_have_them() {
        let shard: Shard = "3/64".parse().expect("it exists");
        assert_eq!((shard.index(), shard.count()), (3, 64));
        for (text, word) in [
            ("0/4", "count from 1"),
            ("5/4", "from 1 to 4"),
            ("1/0", "from 1 to 1000000"),
            ("3", "`I/N`"),
            ("a/b", "`I/N`"),
            ("-1/4", "`I/N`"),
        ] {
            let error = text.parse::<Shard>().expect_err("no shard");
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(serde_json::from_str::<Shard>(r#"{"index": 3, "count": 2}"#).is_err());
    }
}
