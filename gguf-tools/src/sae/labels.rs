//! Neuronpedia's labels ("explanations"): a JSON array of objects, or JSON lines, plain or gzipped.
//!
//! ```text
//! {"modelId": "gemma-2b", "layer": "12-res-jb", "index": "4501", "description": "loyal companions"}
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use crate::{Error, Result, input_file};

/// What features stand for, and where that is from.
#[derive(Debug)]
pub(super) struct Labels {
    /// `[d_sae]`, empty where unknown; nothing at all without files.
    pub(super) texts: Vec<String>,
    /// `gemma-2b/12-res-jb`, or the first file's name where the labels do not say.
    pub(super) source: Option<String>,
}

#[derive(Deserialize)]
struct Explanation {
    #[serde(rename = "modelId")]
    model: Option<String>,
    layer: Option<String>,
    index: Index,
    description: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Index {
    Number(u64),
    Text(String),
}

/// Reads the labels of an SAE with `d_sae` features from `paths`. Where a feature has several, the
/// first one counts, in the files' order.
///
/// # Errors
/// Files that cannot be read or understood, a feature that the SAE does not have, labels of
/// different SAEs.
pub(super) fn read(paths: &[PathBuf], d_sae: usize) -> Result<Labels> {
    let mut labels = Labels {
        texts: if paths.is_empty() {
            Vec::new()
        } else {
            vec![String::new(); d_sae]
        },
        source: None,
    };
    let mut sae = None;
    for path in paths {
        for explanation in read_file(path)? {
            labels.insert(&explanation, path)?;
            check_same_sae(&mut sae, explanation, path)?;
        }
    }
    let file_name = paths.first().and_then(|path| path.file_name());
    labels.source = sae.or_else(|| Some(file_name?.to_string_lossy().into_owned()));
    Ok(labels)
}

impl Labels {
    fn insert(&mut self, explanation: &Explanation, path: &Path) -> Result<()> {
        let index = match &explanation.index {
            Index::Number(number) => number.to_string(),
            Index::Text(text) => text.clone(),
        };
        let d_sae = self.texts.len();
        let feature: Option<usize> = index.parse().ok();
        let Some(label) = feature.and_then(|feature| self.texts.get_mut(feature)) else {
            return Err(Error::invalid(format!(
                "`{}` labels feature `{index}`: this SAE has {d_sae} features",
                path.display()
            ))
            .with_hint("use the labels of this very SAE"));
        };
        if label.is_empty() {
            *label = one_line(explanation.description.as_deref().unwrap_or_default());
        }
        Ok(())
    }
}

/// A label is printed in tables, so it must not break lines or steer a terminal.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
        .trim()
        .to_owned()
}

fn check_same_sae(sae: &mut Option<String>, explanation: Explanation, path: &Path) -> Result<()> {
    let (Some(model), Some(layer)) = (explanation.model, explanation.layer) else {
        return Ok(());
    };
    let this = format!("{model}/{layer}");
    match sae {
        Some(first) if *first != this => Err(Error::invalid(format!(
            "`{}` holds labels of `{this}` beside those of `{first}`",
            path.display()
        ))
        .with_hint("use the labels of one SAE")),
        _ => {
            *sae = Some(this);
            Ok(())
        }
    }
}

/// How gzip files begin (RFC 1952), whatever their names.
const GZIP_START: [u8; 2] = [0x1f, 0x8b];

/// The mark that some programs begin a text file with.
const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

fn read_file(path: &Path) -> Result<Vec<Explanation>> {
    let malformed = |error: serde_json::Error| {
        Error::invalid(format!("cannot read `{}` as labels: {error}", path.display())).with_hint(
            "expected Neuronpedia's form: objects with `index` and `description`, as a JSON array or as JSON lines",
        )
    };
    let mut bytes = input_file::read(path)?;
    if bytes.starts_with(&GZIP_START) {
        let mut text = Vec::new();
        MultiGzDecoder::new(&bytes[..])
            .read_to_end(&mut text)
            .map_err(Error::io("unpack", path))?;
        bytes = text;
    }
    let text = bytes.strip_prefix(UTF8_BOM).unwrap_or(&bytes);
    if text.trim_ascii_start().starts_with(b"[") {
        return serde_json::from_slice(text).map_err(malformed);
    }
    let lines = serde_json::Deserializer::from_slice(text).into_iter();
    lines
        .map(|explanation| explanation.map_err(malformed))
        .collect()
}
