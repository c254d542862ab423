//! Saved sets of interventions, as JSON: a list, or an object with one under `interventions`.

mod entry;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use gguf_tools::json_text;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::sae_set::SaeSet;
use crate::steering::{Intervention, Steering};
use crate::{Error, Result};

pub use self::entry::{Entry, default_hook_point};

const SCHEMA_HINT: &str = "a saved set is a list such as \
    `[{\"kind\": \"steer\", \"feature\": 12, \"value\": -6}]`, or an object with one under `interventions`";

/// Largest file that is read; what a report holds besides interventions may be long.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Longest list that is read: some thousand interventions, or some dozen vectors.
const MAX_LIST_BYTES: usize = 1 << 20;

/// The interventions of a run, whose features are of `saes`; empty without steering.
pub fn entries(steering: Option<&Steering>, saes: &SaeSet) -> Vec<Entry> {
    let interventions = steering.map_or(&[][..], Steering::interventions);
    let entry = |intervention: &Intervention| Entry::new(intervention, saes);
    interventions.iter().map(entry).collect()
}

/// Reads a saved set from a file, and the files of vectors that it names, by their paths from its folder.
///
/// # Errors
/// A file that cannot be read; those of [`parse`], with the file's name.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text))
        .map_err(Error::io("read", path))?;
    let shown = path.display().to_string();
    let mut entries = parse(&text, &shown)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for (i, entry) in entries.iter_mut().enumerate() {
        let read = entry.read_vector(folder);
        read.map_err(|error| in_entry(i, &shown, &error))?;
    }
    Ok(entries)
}

/// What the entries of `shown`, such as a file, mean for these SAEs.
///
/// # Errors
/// A feature that does not exist, or has another label; a value that is missing, superfluous or too large;
/// malformed positions; a vector's file that was not read: only [`read`] does that.
pub fn interventions(entries: &[Entry], shown: &str, saes: &SaeSet) -> Result<Vec<Intervention>> {
    let intervention = |(i, entry): (usize, &Entry)| {
        let intervention = entry.intervention(saes);
        intervention.map_err(|error| in_entry(i, shown, &error))
    };
    entries.iter().enumerate().map(intervention).collect()
}

/// An error of the entry `i` of what is called `shown`.
fn in_entry(i: usize, shown: &str, error: &Error) -> Error {
    let hint = error.hint().unwrap_or(SCHEMA_HINT);
    Error::new(
        error.kind(),
        format!("intervention {} in `{shown}`: {error}", i + 1),
    )
    .with_hint(hint)
}

/// Reads the entries of `shown`, such as a file. Only their list is taken apart, for in memory values take
/// many times their text.
///
/// # Errors
/// What is not JSON, holds no list, or too long a one; an entry of another form.
pub fn parse(text: &[u8], shown: &str) -> Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Set<'a> {
        #[serde(borrow)]
        interventions: Option<&'a RawValue>,
    }
    let refused = |what: String| Error::invalid(what).with_hint(SCHEMA_HINT);
    let no_json =
        |error: serde_json::Error| refused(format!("`{shown}` is not a JSON file: {error}"));
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(format!(
            "`{shown}` has more than {MAX_FILE_BYTES} bytes"
        )));
    }
    let text = json_text::plain(text);
    let whole: &RawValue = serde_json::from_slice(&text).map_err(no_json)?;
    let list = if whole.get().starts_with('{') {
        let set: Set = serde_json::from_str(whole.get()).map_err(no_json)?;
        set.interventions
    } else {
        Some(whole)
    };
    let list = list
        .filter(|list| list.get().starts_with('['))
        .ok_or_else(|| refused(format!("`{shown}` contains no list of interventions")))?;
    if list.get().len() > MAX_LIST_BYTES {
        return Err(refused(format!(
            "the list of interventions in `{shown}` has more than {MAX_LIST_BYTES} bytes"
        )));
    }
    let list: Vec<&RawValue> = serde_json::from_str(list.get()).map_err(no_json)?;
    if list.is_empty() {
        return Err(refused(format!(
            "the list of interventions in `{shown}` is empty"
        )));
    }
    let entry = |(i, entry): (usize, &&RawValue)| {
        serde_json::from_str(entry.get())
            .map_err(|error| refused(format!("intervention {} in `{shown}`: {error}", i + 1)))
    };
    list.iter().enumerate().map(entry).collect()
}

#[cfg(test)]
mod tests;
