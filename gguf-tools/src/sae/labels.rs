//! Neuronpedia's labels ("explanations"): a JSON array of objects, or JSON lines, plain or gzipped.
//!
//! ```text
//! {"modelId": "gemma-2b", "layer": "12-res-jb", "index": "4501", "description": "loyal companions"}
//! ```

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::de::{IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};

use super::source::Source;
use crate::input_file::{LFS_POINTER_START, lfs_pointer_error};
use crate::json_file::for_each;
use crate::json_text::{JsonText, UTF8_BOM};
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
    /// In a record of the dump `activations`.
    tokens: Option<IgnoredAny>,
    /// In a record of the dump `features`.
    pos_str: Option<IgnoredAny>,
}

/// A feature's index: a number, or a text of one.
struct Index(String);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = Index;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a feature's index")
            }

            fn visit_u64<E>(self, number: u64) -> std::result::Result<Index, E> {
                Ok(Index(number.to_string()))
            }

            fn visit_str<E>(self, text: &str) -> std::result::Result<Index, E> {
                Ok(Index(text.to_owned()))
            }
        }
        json.deserialize_any(NumberOrText)
    }
}

/// Reads the labels of `sae` from `paths`. Where a feature has several, the first one counts, in the
/// files' order. In all they take fewer than `max_bytes`.
///
/// # Errors
/// Files that cannot be read or understood, or hold other things than labels; a feature that the SAE
/// does not have; labels of another layer, of different SAEs or of more bytes.
pub(super) fn read(paths: &[PathBuf], sae: &Source, max_bytes: u64) -> Result<Labels> {
    let mut labels = Labels {
        texts: if paths.is_empty() {
            Vec::new()
        } else {
            vec![String::new(); sae.d_sae]
        },
        source: None,
    };
    let mut said = None;
    let mut n_free = max_bytes;
    for path in paths {
        let mut n_described = None;
        for_each_in(path, |explanation| {
            let is_described = explanation.description.is_some();
            if !is_described && (explanation.tokens.is_some() || explanation.pos_str.is_some()) {
                return Err(no_labels(path));
            }
            *n_described.get_or_insert(0) += usize::from(is_described);
            check_same_sae(&mut said, &explanation, sae, path)?;
            let n_bytes = labels.insert(&explanation, path)?;
            n_free = n_free.checked_sub(n_bytes).ok_or_else(|| {
                let shown = path.display();
                Error::invalid(format!(
                    "the labels in `{shown}` take more than {max_bytes} bytes"
                ))
            })?;
            Ok(())
        })?;
        if n_described == Some(0) {
            return Err(no_labels(path));
        }
    }
    let file_name = paths.first().and_then(|path| path.file_name());
    labels.source = match said {
        Some(said) => Some(said.to_string()),
        None => file_name.map(|name| name.to_string_lossy().into_owned()),
    };
    Ok(labels)
}

fn no_labels(path: &Path) -> Error {
    Error::invalid(format!(
        "`{}` contains no labels: its records have no `description`",
        path.display()
    ))
    .with_hint("use the files of Neuronpedia's folder `explanations`; its `features` and `activations` are something else")
}

/// The SAE that labels are of, in Neuronpedia's words.
struct LabelledSae {
    /// `gemma-2b`.
    model: String,
    /// `12-res-jb`: the block, and what the SAE is called.
    layer: String,
}

impl fmt::Display for LabelledSae {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model, self.layer)
    }
}

impl LabelledSae {
    /// Refuses labels of another layer; warns of what looks like another model or place in the layer,
    /// whose names are less of one mind.
    fn check_belongs_to(&self, sae: &Source, path: &Path) -> Result<()> {
        let shown = path.display();
        let number = |text: &str| -> Option<usize> {
            let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        let layer_of_sae = sae.hook_name.split('.').find_map(number);
        let (Some(labelled), Some(expected)) = (number(&self.layer), layer_of_sae) else {
            return Ok(());
        };
        if labelled != expected {
            return Err(Error::invalid(format!(
                "`{shown}` contains labels of `{self}`, but the SAE belongs to `{}`",
                sae.hook_name
            ))
            .with_hint(format!(
                "use the labels of layer {expected}: Neuronpedia's folder `{}/{expected}-{}/explanations`",
                self.model,
                self.layer.split_once('-').map_or("…", |(_, set)| set)
            )));
        }
        let sites = [("res", "resid"), ("mlp", "mlp"), ("att", "attn")];
        let is_said = |word: &str| self.layer.split('-').any(|part| part == word);
        let said = sites.iter().find(|(word, _)| is_said(word));
        let of_sae = sites.iter().find(|(_, site)| sae.hook_name.contains(site));
        if let (Some(said), Some(of_sae)) = (said, of_sae)
            && said != of_sae
        {
            log::warn!(
                "`{shown}` contains labels of `{self}`, but the SAE belongs to `{}`",
                sae.hook_name
            );
        }
        if let Some(model) = &sae.model_name
            && bare_name(model) != bare_name(&self.model)
        {
            log::warn!(
                "`{shown}` contains labels of `{self}`, but the SAE was trained on `{model}`"
            );
        }
        Ok(())
    }
}

/// A model's name without its maker and punctuation: `meta-llama/Llama-3.1-8B` and `llama3.1-8b` are
/// one.
fn bare_name(model: &str) -> String {
    let name = model.rsplit('/').next().unwrap_or(model).to_lowercase();
    let name = name.strip_prefix("meta-").unwrap_or(&name);
    name.chars().filter(|c| c.is_alphanumeric()).collect()
}

impl Labels {
    /// Puts a label in its place, and returns what it takes in bytes.
    fn insert(&mut self, explanation: &Explanation, path: &Path) -> Result<u64> {
        let Index(index) = &explanation.index;
        let d_sae = self.texts.len();
        let feature: Option<usize> = index.parse().ok();
        let Some(label) = feature.and_then(|feature| self.texts.get_mut(feature)) else {
            return Err(Error::invalid(format!(
                "`{}` labels feature `{index}`: this SAE has {d_sae} features",
                path.display()
            ))
            .with_hint("use the labels of this SAE"));
        };
        if !label.is_empty() {
            return Ok(0);
        }
        *label = one_line(explanation.description.as_deref().unwrap_or_default());
        Ok(label.len() as u64)
    }
}

/// A label is printed in tables, so it must not break lines or steer a terminal.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
        .trim()
        .to_owned()
}

/// Checks the first label's SAE against `sae`, and the others' against the first's.
fn check_same_sae(
    said: &mut Option<LabelledSae>,
    explanation: &Explanation,
    sae: &Source,
    path: &Path,
) -> Result<()> {
    let (Some(model), Some(layer)) = (&explanation.model, &explanation.layer) else {
        return Ok(());
    };
    match said {
        None => {
            let first = said.insert(LabelledSae {
                model: model.clone(),
                layer: layer.clone(),
            });
            first.check_belongs_to(sae, path)
        }
        Some(first) if (&first.model, &first.layer) != (model, layer) => {
            Err(Error::invalid(format!(
                "`{}` contains labels of `{model}/{layer}` as well as of `{first}`",
                path.display()
            ))
            .with_hint("use the labels of one SAE"))
        }
        Some(_) => Ok(()),
    }
}

/// How gzip files begin (RFC 1952), whatever their names.
const GZIP_START: [u8; 2] = [0x1f, 0x8b];

/// Longest object that is read; those with an embedding have some kilobytes.
const MAX_LABEL_BYTES: u64 = 1 << 20;

/// How far labels may shrink in a gzip file, besides some megabytes: text does so tenfold.
const MAX_RATIO: u64 = 100;
const FREE_BYTES: u64 = 16 << 20;

/// Hands out the labels of a file one by one, so that neither a long file nor what a short one unpacks
/// to is held in memory.
fn for_each_in(path: &Path, mut take: impl FnMut(Explanation) -> Result<()>) -> Result<()> {
    let malformed = |error: serde_json::Error| {
        Error::invalid(format!("cannot read `{}` as labels: {error}", path.display())).with_hint(
            "expected Neuronpedia's form: objects with `index` and `description`, as a JSON array or as JSON lines",
        )
    };
    let file = input_file::open(path)?;
    let n_file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
    let mut file = BufReader::new(file);
    let start = file.fill_buf().map_err(Error::io("read", path))?;
    if start.starts_with(&LFS_POINTER_START) {
        return Err(lfs_pointer_error(path));
    }
    let text: Box<dyn Read> = if start.starts_with(&GZIP_START) {
        Box::new(JsonText::new(BufReader::new(MultiGzDecoder::new(file))))
    } else {
        Box::new(JsonText::new(file))
    };
    let n_of_label = Cell::new(0);
    let mut text = Limited {
        text,
        n_of_label: &n_of_label,
        n_left: n_file_bytes
            .saturating_mul(MAX_RATIO)
            .saturating_add(FREE_BYTES),
    };
    let start = first_bytes(&mut text).map_err(Error::io("read", path))?;
    let mut json = serde_json::Deserializer::from_reader((&start[..]).chain(text));
    let mut take = |explanation| {
        n_of_label.set(0);
        take(explanation)
    };
    if start.starts_with(b"[") {
        for_each(&mut json, malformed, take)?;
        return json.end().map_err(malformed);
    }
    for explanation in json.into_iter() {
        take(explanation.map_err(malformed)?)?;
    }
    Ok(())
}

/// The first bytes of a text that are neither the mark nor white space.
fn first_bytes(text: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    text.take(UTF8_BOM.len() as u64).read_to_end(&mut start)?;
    if start == UTF8_BOM {
        start.clear();
    }
    loop {
        start.drain(..start.len() - start.trim_ascii_start().len());
        if !start.is_empty() || text.take(1).read_to_end(&mut start)? == 0 {
            return Ok(start);
        }
    }
}

/// A text of which neither one label nor the whole may be too long.
struct Limited<'a> {
    text: Box<dyn Read>,
    /// Bytes since the last label.
    n_of_label: &'a Cell<u64>,
    /// Bytes that may follow.
    n_left: u64,
}

impl Read for Limited<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n_read = self.text.read(bytes)?;
        let n_of_label = self.n_of_label.get() + n_read as u64;
        if n_of_label > MAX_LABEL_BYTES {
            let what = format!("a label has more than {MAX_LABEL_BYTES} bytes");
            return Err(io::Error::other(what));
        }
        self.n_of_label.set(n_of_label);
        self.n_left = self
            .n_left
            .checked_sub(n_read as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than labels need"))?;
        Ok(n_read)
    }
}
