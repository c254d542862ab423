//! The Jinja environment that chat templates are written for: transformers'.
//!
//! Mirrors `_compile_jinja_template` in transformers 4.57.6, `utils/chat_template_utils.py`. Templates come from
//! strangers: what one may compute and write is bounded by fuel, a unit of which is an instruction or 64 bytes.
//! minijinja 3.1.0 does not count what a list holds by way of other lists, so that one that is added to itself again
//! and again takes memory without end: that is left to the trial of new files in a process of their own.

use std::fmt::Write;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Instructions, and 64 bytes each, that a template may take: enough for texts of some megabytes.
const FUEL: u64 = 1 << 20;

/// The longest JSON text that a template may write at a time.
const MAX_JSON_BYTES: usize = 1 << 20;

/// What a template said with `raise_exception`, as the source of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// An environment without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the delimiters are Jinja's"));
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// A template's source as Jinja reads it: line ends are `\n`, and the blocks that transformers adds to mark what
/// the assistant said are scopes.
pub(super) fn plain_source(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut plain = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, block) = rest.split_at(start + 2);
        plain.push_str(before);
        let inner = block.trim_start_matches(['-', '+']).trim_start();
        let space = &block[..block.len() - inner.len()];
        rest = block;
        for (theirs, ours) in [("generation", "with"), ("endgeneration", "endwith")] {
            if let Some(behind) = inner.strip_prefix(theirs)
                && behind
                    .trim_start()
                    .trim_start_matches(['-', '+'])
                    .starts_with("%}")
            {
                plain.push_str(space);
                plain.push_str(ours);
                rest = behind;
            }
        }
    }
    plain + rest
}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut now = String::new();
    write!(now, "{}", chrono::Local::now().format(format)).map_err(|_| {
        let what = format!("`strftime_now` does not know the format `{format}`");
        Error::new(ErrorKind::InvalidOperation, what)
    })?;
    Ok(now)
}

/// Jinja's test: what has a length and indices, texts and maps too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map
    )
}

/// Python's `json.dumps(x, ensure_ascii=False)`, with its `indent` and `sort_keys`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<u8> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut json = Bounded(Vec::new());
    let indent = indent.map(|n_spaces| " ".repeat(n_spaces.into()));
    let indent = indent.as_deref();
    let written = match sort_keys {
        // Its maps are sorted.
        Some(true) => {
            serde_json::to_value(value).and_then(|sorted| write_json(&sorted, indent, &mut json))
        }
        _ => write_json(value, indent, &mut json),
    };
    written
        .map_err(|error| Error::new(ErrorKind::BadSerialization, format!("`tojson`: {error}")))?;
    Ok(String::from_utf8(json.0).expect("JSON is UTF-8"))
}

fn write_json(
    value: &impl Serialize,
    indent: Option<&str>,
    json: &mut Bounded,
) -> serde_json::Result<()> {
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(json, OneLine)),
        Some(indent) => {
            let lines = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(json, lines))
        }
    }
}

/// Bytes, up to [`MAX_JSON_BYTES`]: a value may hold another many times.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_JSON_BYTES {
            return Err(io::Error::other("the text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Python's one line, with a space behind commas and colons.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        match is_first {
            true => Ok(()),
            false => writer.write_all(b", "),
        }
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        is_first: bool,
    ) -> io::Result<()> {
        self.begin_array_value(writer, is_first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
