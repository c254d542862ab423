//! Saved sets of interventions, as JSON: a list, or an object with one under `interventions`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use gguf_tools::json_text;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::sae::{FeatureId, SaeSet};
use crate::steering::{Change, Intervention, Positions, Steering, Units};
use crate::{Error, Result};

const SCHEMA_HINT: &str = "a saved set is a list such as \
    `[{\"kind\": \"steer\", \"feature\": 12, \"value\": -6}]`, or an object with one under `interventions`";

/// Largest file that is read; what a report holds besides interventions may be long.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Longest list that is read: some thousand interventions.
const MAX_LIST_BYTES: usize = 1 << 20;

/// One intervention as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    kind: Kind,
    feature: FeatureName,
    label: Option<String>,
    value: Option<f32>,
    units: Option<Units>,
    at: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Steer,
    Clamp,
    Ablate,
    Scale,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "`feature` must be an index or a label")]
enum FeatureName {
    Index(usize),
    Name(String),
}

/// The interventions of a run, whose features are of `saes`; empty without steering.
pub fn entries(steering: Option<&Steering>, saes: &SaeSet) -> Vec<Entry> {
    let interventions = steering.map_or(&[][..], Steering::interventions);
    let entry = |intervention: &Intervention| {
        let (kind, value) = match intervention.change {
            Change::Add(strength) => (Kind::Steer, Some(strength)),
            Change::Clamp(value) => (Kind::Clamp, Some(value)),
            Change::Ablate => (Kind::Ablate, None),
            Change::Scale(factor) => (Kind::Scale, Some(factor)),
        };
        Entry {
            kind,
            feature: match saes.len() {
                1 => FeatureName::Index(intervention.feature.index),
                _ => FeatureName::Name(saes.shown(intervention.feature).to_string()),
            },
            label: saes.label(intervention.feature).map(str::to_owned),
            value,
            units: Some(intervention.units),
            at: Some(intervention.at.words().join(",")),
        }
    };
    interventions.iter().map(entry).collect()
}

/// Reads a saved set from a file.
///
/// # Errors
/// A file that cannot be read; those of [`parse`] and [`interventions`], with the file's name.
pub fn read(path: &Path, saes: &SaeSet) -> Result<Vec<Intervention>> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text))
        .map_err(Error::io("read", path))?;
    let shown = path.display().to_string();
    interventions(&parse(&text, &shown)?, &shown, saes)
}

/// What the entries of `shown`, such as a file, mean for these SAEs.
///
/// # Errors
/// A feature that there is not, or with another label; a value that is missing, superfluous or too large;
/// positions that are none.
pub fn interventions(entries: &[Entry], shown: &str, saes: &SaeSet) -> Result<Vec<Intervention>> {
    let intervention = |(i, entry): (usize, &Entry)| {
        entry.intervention(saes).map_err(|error| {
            let hint = error.hint().unwrap_or(SCHEMA_HINT).to_owned();
            let what = format!("intervention {} in `{shown}`: {error}", i + 1);
            error.with_message(what).with_hint(hint)
        })
    };
    entries.iter().enumerate().map(intervention).collect()
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
        .ok_or_else(|| refused(format!("`{shown}` holds no list of interventions")))?;
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

impl Entry {
    fn intervention(&self, saes: &SaeSet) -> Result<Intervention> {
        let change = match (self.kind, self.value) {
            (Kind::Steer, Some(strength)) => Change::Add(strength),
            (Kind::Clamp, Some(value)) => Change::Clamp(value),
            (Kind::Scale, Some(factor)) => Change::Scale(factor),
            (Kind::Ablate, None) => Change::Ablate,
            (Kind::Ablate, Some(_)) => {
                return Err(Error::invalid("`ablate` takes no `value`")
                    .with_hint("leave it out, or use `clamp`"));
            }
            (_, None) => return Err(Error::invalid("`value` is missing")),
        };
        if self.value.is_some_and(|value| !value.is_finite()) {
            return Err(Error::invalid("`value` is too large for a 32-bit number"));
        }
        let feature = match &self.feature {
            FeatureName::Index(index) => saes.find_feature(&index.to_string())?,
            FeatureName::Name(name) => saes.find_feature(name)?,
        };
        self.check_label(feature, saes)?;
        Ok(Intervention {
            feature,
            change,
            units: self.units.unwrap_or_default(),
            at: self
                .at
                .as_deref()
                .map_or(Ok(Positions::ALL), Positions::parse)?,
        })
    }

    /// A feature of another label is a feature of another SAE.
    fn check_label(&self, feature: FeatureId, saes: &SaeSet) -> Result<()> {
        let known = saes.label(feature);
        let Some(label) = self.label.as_deref().filter(|label| Some(*label) != known) else {
            return Ok(());
        };
        let known = known.map_or("no label".to_owned(), |known| {
            format!("the label `{known}`")
        });
        Err(Error::invalid(format!(
            "feature `{}` has {known} in this SAE, not `{label}`: the set was made with another SAE",
            saes.shown(feature)
        ))
        .with_hint("use that SAE, or leave `label` out"))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    const RIGHT: &str = r#"{"text": "", "interventions": [{"kind": "steer", "feature": 12, "label": "dog",
        "value": -6, "units": "raw", "at": "all"}, {"kind": "ablate", "feature": "dog"}]}"#;

    #[test]
    fn broken_sets_are_refused() {
        let n_entries = |text: &[u8]| parse(text, "set.json").map(|entries| entries.len());
        assert_eq!(n_entries(RIGHT.as_bytes()).expect("a right set"), 2);
        let rewritten = RIGHT.replacen('{', "\u{feff}{\"seconds\": NaN, ", 1);
        assert_eq!(
            n_entries(rewritten.as_bytes()).expect("as Python writes"),
            2
        );
        for end in 0..RIGHT.len() {
            assert!(n_entries(&RIGHT.as_bytes()[..end]).is_err(), "cut at {end}");
        }
        // Either is right for a byte in a text.
        for place in 0..RIGHT.len() {
            for byte in [0, b'"', b'[', b'{', b'9', 0xff] {
                let mut broken = RIGHT.as_bytes().to_vec();
                broken[place] = byte;
                let _ = n_entries(&broken);
            }
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let many = format!("[{}0]", "0,".repeat(1 << 20));
        let wide = format!(
            r#"[{{"kind": "steer", "feature": [{}0]}}]"#,
            "0,".repeat(1 << 18)
        );
        for text in [
            "null",
            "7",
            "\"text\"",
            "{}",
            "[]",
            "[null]",
            "[[]]",
            "[{}]",
            &deep,
            &many,
            &wide,
            r#"{"interventions": {}}"#,
            r#"{"interventions": [], "interventions": []}"#,
            r#"[{"kind": "steer", "kind": "steer", "feature": 1, "value": 1}]"#,
            r#"[{"kind": "steer", "feature": 18446744073709551616, "value": 1}]"#,
            r#"[{"kind": "steer", "feature": -1, "value": 1}]"#,
            r#"[{"kind": "steer", "feature": 1, "value": "1"}]"#,
            r#"[{"kind": "wave", "feature": 1, "value": 1}]"#,
            r#"[{"kind": "steer", "feature": 1, "value": 1, "more": 1}]"#,
        ] {
            assert!(
                n_entries(text.as_bytes()).is_err(),
                "{}",
                &text[..text.len().min(80)]
            );
            let inside = format!("{{\"interventions\": {text}}}");
            assert!(
                n_entries(inside.as_bytes()).is_err(),
                "{}",
                &text[..text.len().min(80)]
            );
        }
        assert!(n_entries(b"[\xc3\x28]").is_err(), "invalid UTF-8");
        // What is beside the list does not matter, however much it is.
        let long = format!(
            r#"{{"more": [{}0], "interventions": [{{"kind": "ablate", "feature": 1}}]}}"#,
            "0,".repeat(1 << 20)
        );
        assert_eq!(n_entries(long.as_bytes()).expect("a right set"), 1);
    }
}
