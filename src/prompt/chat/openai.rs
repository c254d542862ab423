//! Chats as OpenAI's requests write them (`messages` of `/v1/chat/completions`), from files or from a server's
//! clients.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gguf_tools::json_text;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::{Message, Part, Role};
use crate::{Error, Picture, Result};

/// The largest file, pictures in `data:` URLs included.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The most JSON values in a chat.
const MAX_VALUES: usize = 1 << 20;

/// Keys of a request that change neither the prompt nor what is computed.
const WITHOUT_EFFECT: [&str; 6] = ["messages", "metadata", "model", "store", "stream", "user"];

/// A chat and where its images come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    /// What was said.
    pub messages: Vec<Message>,
    /// Where the images in it come from, in order.
    pub images: Vec<ImageSource>,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// From whoever uses the chat: the next of their pictures.
    Given,
    /// A `data:` URL's contents.
    Bytes(Vec<u8>),
    /// A file.
    File(PathBuf),
}

/// Whether a chat may name files of this machine.
#[derive(Clone, Copy, Debug)]
pub enum LocalFiles<'a> {
    /// Yes; relative paths begin at this folder.
    From(&'a Path),
    /// No: it comes from someone else.
    Refused,
}

impl Chat {
    /// Reads a file: a list of messages, or a request with such a list under `messages`.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or of which [`Chat::parse`] says what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(Error::io("read", path))?;
        let in_file = |error: Error| {
            let what = format!("cannot read the chat `{}`: {error}", path.display());
            error.with_message(what)
        };
        if !metadata.is_file() {
            return Err(in_file(Error::invalid("it is not a file")));
        }
        if metadata.len() > MAX_FILE_BYTES {
            let what = format!("the file is larger than {MAX_FILE_BYTES} bytes");
            return Err(in_file(Error::invalid(what)));
        }
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, LocalFiles::From(folder)).map_err(in_file)
    }

    /// Reads a chat from JSON of that form.
    ///
    /// # Errors
    /// Another form, with the place; what is not done here, such as tools and web addresses; keys of a request that
    /// would change what is computed.
    pub fn parse(text: &[u8], files: LocalFiles) -> Result<Self> {
        if json_text::n_values(text) > MAX_VALUES {
            return Err(Error::invalid(format!(
                "it has more than {MAX_VALUES} values"
            )));
        }
        let text = json_text::plain(text);
        let json =
            serde_json::from_slice(&text).map_err(|error| Error::invalid(error.to_string()))?;
        let messages = match json {
            Value::Object(mut request) => {
                known_only(&request, "", &WITHOUT_EFFECT).map_err(|error| {
                    error.with_hint(
                        "leave it out: a chat's file has messages, and the rest is set outside",
                    )
                })?;
                request.remove("messages")
            }
            json => Some(json),
        };
        let Some(Value::Array(list)) = messages else {
            return Err(
                Error::invalid("expected a list of messages, or `messages` with one")
                    .with_hint(r#"such as [{"role": "user", "content": "Hello"}]"#),
            );
        };
        if list.is_empty() {
            return Err(Error::invalid("`messages` is empty"));
        }
        let mut images = Vec::new();
        let messages = list
            .into_iter()
            .enumerate()
            .map(|(i, json)| message(json, &format!("messages[{i}]"), files, &mut images));
        let messages = messages.collect::<Result<_>>()?;
        Ok(Self { messages, images })
    }

    /// Its pictures, in order; `given` are those that it leaves to whoever uses it.
    ///
    /// # Errors
    /// More or fewer of those than it has places for, a picture that cannot be read.
    pub fn pictures(&self, given: Vec<Picture>) -> Result<Vec<Picture>> {
        self.images(given, Ok)
    }

    /// The same as what `given` are, which `read` makes of those that the chat brings.
    ///
    /// # Errors
    /// As [`Chat::pictures`], and those of `read`.
    pub fn images<T>(&self, given: Vec<T>, read: impl Fn(Picture) -> Result<T>) -> Result<Vec<T>> {
        let n_places = self
            .images
            .iter()
            .filter(|&source| *source == ImageSource::Given);
        let (n_places, n_given) = (n_places.count(), given.len());
        if n_places != n_given {
            return Err(Error::invalid(format!(
                "pictures given: {n_given}, expected {n_places}, as many as the chat has images without an address"
            ))
            .with_hint(r#"a part {"type": "image"} takes the next picture that is given"#));
        }
        let mut given = given.into_iter();
        let image = |(i, source): (usize, &ImageSource)| match source {
            ImageSource::Given => Ok(given.next().expect("they were counted")),
            ImageSource::Bytes(bytes) => {
                Picture::from_bytes(bytes, &format!("image {} of the chat", i + 1)).and_then(&read)
            }
            ImageSource::File(path) => Picture::open(path).and_then(&read),
        };
        self.images.iter().enumerate().map(image).collect()
    }
}

fn message(
    json: Value,
    at: &str,
    files: LocalFiles,
    images: &mut Vec<ImageSource>,
) -> Result<Message> {
    let mut fields = object(json, at)?;
    known_only(&fields, at, &["role", "content"])?;
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some(other) => {
            return Err(wrong(&format!("{at}.role"), &format!("is `{other}`"))
                .with_hint("roles are `system`, `user` and `assistant`; tools are not run here"));
        }
        None => return Err(wrong(&format!("{at}.role"), "is missing, or is no text")),
    };
    let content = match fields.remove("content") {
        Some(Value::String(text)) => vec![Part::Text(text)],
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let parts =
                parts.map(|(i, json)| part(json, &format!("{at}.content[{i}]"), files, images));
            parts.collect::<Result<_>>()?
        }
        _ => {
            let what = "is neither a text nor a list of parts";
            return Err(wrong(&format!("{at}.content"), what));
        }
    };
    if content.is_empty() {
        return Err(wrong(&format!("{at}.content"), "is empty"));
    }
    Ok(Message { role, content })
}

fn part(json: Value, at: &str, files: LocalFiles, images: &mut Vec<ImageSource>) -> Result<Part> {
    let mut fields = object(json, at)?;
    let kind = fields
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let known: &[_] = match kind {
        "text" => &["type", "text"],
        "image_url" => &["type", "image_url"],
        _ => &["type"],
    };
    let source = match kind {
        "text" => {
            known_only(&fields, at, known)?;
            return match fields.remove("text") {
                Some(Value::String(text)) => Ok(Part::Text(text)),
                _ => Err(wrong(&format!("{at}.text"), "is missing, or is no text")),
            };
        }
        "image" => ImageSource::Given,
        "image_url" => {
            let at = format!("{at}.image_url");
            let url = match fields.remove("image_url") {
                Some(Value::Object(mut image)) => {
                    // `detail` is about the tiles of OpenAI's own models.
                    known_only(&image, &at, &["url", "detail"])?;
                    image.remove("url")
                }
                url => url,
            };
            match url {
                Some(Value::String(url)) => address(&url, &at, files)?,
                _ => return Err(wrong(&at, "has no `url`")),
            }
        }
        other => {
            return Err(wrong(&format!("{at}.type"), &format!("is `{other}`"))
                .with_hint("parts are of type `text`, `image_url` or `image`"));
        }
    };
    known_only(&fields, at, known)?;
    images.push(source);
    Ok(Part::Image)
}

/// Where a picture's address leads.
fn address(url: &str, at: &str, files: LocalFiles) -> Result<ImageSource> {
    let scheme = url
        .split_once(':')
        .map(|(scheme, _)| scheme.to_ascii_lowercase());
    let rest = &url[scheme.as_ref().map_or(0, |scheme| scheme.len() + 1)..];
    let path = match scheme.as_deref() {
        Some("data") => return data(rest).map_err(|what| wrong(at, what)),
        Some("http" | "https") => {
            let hint = match files {
                LocalFiles::From(_) => "download the picture, and give its path",
                LocalFiles::Refused => "download the picture, and send it as a `data:` URL",
            };
            let what = "is a web address, and nothing is downloaded here";
            return Err(wrong(at, what).with_hint(hint));
        }
        Some("file") => {
            let path = rest
                .strip_prefix("//localhost")
                .or(rest.strip_prefix("//"))
                .unwrap_or(rest);
            let path = percent_decode_str(path).decode_utf8();
            path.map_err(|_| wrong(at, "is not UTF-8"))?.into_owned()
        }
        _ => url.to_owned(),
    };
    match files {
        LocalFiles::From(folder) => Ok(ImageSource::File(folder.join(path))),
        LocalFiles::Refused => Err(wrong(at, "is not a `data:` URL")
            .with_hint("send the picture itself: `data:image/png;base64,…`")),
    }
}

/// What a `data:` URL holds behind that word (RFC 2397).
fn data(rest: &str) -> std::result::Result<ImageSource, &'static str> {
    let (kind, text) = rest
        .split_once(',')
        .ok_or("is a `data:` URL without data")?;
    let kind = kind
        .strip_suffix(";base64")
        .ok_or("is a `data:` URL whose data are not base64")?;
    if !kind.starts_with("image/") {
        return Err("is a `data:` URL of no image");
    }
    let bytes = STANDARD.decode(text.trim_ascii());
    bytes
        .map(ImageSource::Bytes)
        .map_err(|_| "is a `data:` URL with malformed base64")
}

fn object(json: Value, at: &str) -> Result<Map<String, Value>> {
    match json {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong(at, "is no object")),
    }
}

/// Checks that there are no other keys, but for those that say nothing, as `"refusal": null` does in answers.
fn known_only(fields: &Map<String, Value>, at: &str, known: &[&str]) -> Result<()> {
    let says_nothing =
        |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let mut others = fields
        .iter()
        .filter(|(key, value)| !known.contains(&key.as_str()) && !says_nothing(value));
    match others.next() {
        None => Ok(()),
        Some((key, _)) => {
            let dot = if at.is_empty() { "" } else { "." };
            Err(wrong(&format!("{at}{dot}{key}"), "is not known here"))
        }
    }
}

fn wrong(at: &str, what: &str) -> Error {
    Error::invalid(format!("`{at}` {what}"))
}
