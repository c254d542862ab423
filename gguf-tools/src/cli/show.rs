//! `show`: a GGUF file's metadata and tensors.

use std::io::{self, BufWriter, Write};

use gguf_tools::gguf::{Gguf, TensorInfo, Value};
use gguf_tools::terminal::one_line;
use gguf_tools::{Error, Result};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::arguments::ShowArguments;

/// Values of an array that the text form shows.
const SHOWN_VALUES: usize = 8;

/// Characters of a value that the text form shows.
const SHOWN_CHARACTERS: usize = 100;

/// Prints the file as text or JSON on stdout.
pub(super) fn show(arguments: &ShowArguments) -> Result<()> {
    let gguf = Gguf::open(&arguments.file)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if arguments.json {
        print_json(&gguf, &mut out)
    } else {
        print_text(&gguf, &mut out)
    };
    written
        .and_then(|()| out.flush())
        .map_err(Error::io("write to", "stdout".as_ref()))
}

fn print_text(gguf: &Gguf, out: &mut impl Write) -> io::Result<()> {
    let (metadata, tensors) = (gguf.metadata(), gguf.tensors());
    writeln!(
        out,
        "GGUF version {}, alignment {}",
        gguf.version(),
        gguf.alignment()
    )?;
    if let Ok(Some((shard_idx, n_shards))) = gguf.shard() {
        let number = u32::from(shard_idx) + 1;
        writeln!(out, "shard {number} of {n_shards} of a model")?;
    }
    writeln!(out, "\n{} keys", metadata.len())?;
    let width = column_width(metadata.iter().map(|(key, _)| key));
    for (key, value) in metadata {
        writeln!(out, "  {:width$}  {}", one_line(key), value_text(value))?;
    }

    let n_bytes: u64 = tensors.iter().map(|tensor| tensor.n_bytes).sum();
    writeln!(out, "\n{} tensors, {n_bytes} bytes", tensors.len())?;
    let width = column_width(tensors.iter().map(|tensor| &tensor.name));
    for tensor in tensors {
        let dims: Vec<_> = tensor.dims.iter().map(u64::to_string).collect();
        let (name, type_name) = (one_line(&tensor.name), tensor.tensor_type.name());
        writeln!(out, "  {name:width$}  {type_name:7}  {}", dims.join(" × "))?;
    }
    Ok(())
}

fn column_width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names
        .map(|name| one_line(name).chars().count())
        .max()
        .unwrap_or(0)
}

/// The value on one line: what is long is cut, and its length given.
fn value_text(value: &Value) -> String {
    let (text, length) = match value {
        Value::Array(array) => {
            let shown = json_text(&array.head(SHOWN_VALUES));
            (
                shown,
                (array.len() > SHOWN_VALUES).then(|| format!("{} values", array.len())),
            )
        }
        Value::String(string) => (json_text(string), None),
        scalar => return json_text(scalar),
    };
    let n_characters = text.chars().count();
    let cut = n_characters > SHOWN_CHARACTERS;
    let shown: String = text.chars().take(SHOWN_CHARACTERS).collect();
    match length {
        Some(length) => format!("{} … ({length})", one_line(&shown)),
        None if cut => format!("{} … ({n_characters} characters)", one_line(&shown)),
        None => one_line(&shown),
    }
}

fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values with text keys have a JSON form")
}

fn print_json(gguf: &Gguf, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(
        &mut *out,
        &FileJson {
            version: gguf.version(),
            alignment: gguf.alignment(),
            metadata: MetadataJson(gguf.metadata()),
            tensors: gguf.tensors().iter().map(TensorJson::from).collect(),
        },
    )
    .map_err(io::Error::from)?;
    writeln!(out)
}

#[derive(Serialize)]
struct FileJson<'a> {
    version: u32,
    alignment: u64,
    metadata: MetadataJson<'a>,
    tensors: Vec<TensorJson<'a>>,
}

/// One object, with the keys in the file's order.
struct MetadataJson<'a>(&'a [(String, Value)]);

impl Serialize for MetadataJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct TensorJson<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    type_name: &'static str,
    dims: &'a [u64],
    offset: u64,
    n_bytes: u64,
}

impl<'a> From<&'a TensorInfo> for TensorJson<'a> {
    fn from(tensor: &'a TensorInfo) -> Self {
        Self {
            name: &tensor.name,
            type_name: tensor.tensor_type.name(),
            dims: &tensor.dims,
            offset: tensor.offset,
            n_bytes: tensor.n_bytes,
        }
    }
}
