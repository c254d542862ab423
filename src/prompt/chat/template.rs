//! A model's chat template, a Jinja text: what it makes of messages.

use std::error::Error as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use minijinja::{Environment, Value, context};

use super::environment::{Raised, environment, plain_source};
use super::{ImageToken, Message, Part, Role};
use crate::{Error, ErrorKind, Result};

/// The longest template; those of models have some kilobytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// Stack for a template's work: as many values inside one another as its fuel allows are printed and freed one
/// in another.
const STACK_BYTES: usize = 256 << 20;

const NAME: &str = "chat template";

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(&'static str, String)>,
}

/// How messages are handed to a template. Some take a list of parts for a message, some a text, and some a list
/// in the user's turns alone.
#[derive(Clone, Copy)]
enum Form {
    /// A text as a text, anything else as a list of parts: as transformers' users write messages.
    AsWritten,
    /// Always a list of parts.
    Parts,
    /// Always a text.
    Text,
}

impl ChatTemplate {
    /// Reads a template. `special_tokens` are its variables, such as `bos_token`, with the tokens' texts.
    ///
    /// # Errors
    /// Jinja of a kind that cannot be run, with the construct and its line.
    pub fn new(source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(refused(format!(
                "the chat template has {} bytes, expected at most {MAX_TEMPLATE_BYTES}",
                source.len()
            )));
        }
        let mut environment = environment();
        on_large_stack(|| environment.add_template_owned(NAME, plain_source(source)))?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// Reads a template's file.
    ///
    /// # Errors
    /// A file that cannot be read, is too large, or is no text.
    pub fn read_file(path: &Path) -> Result<String> {
        let mut source = String::new();
        File::open(path)
            .and_then(|file| {
                file.take(MAX_TEMPLATE_BYTES as u64 + 1)
                    .read_to_string(&mut source)
            })
            .map_err(Error::io("read the chat template", path))?;
        Ok(source)
    }

    /// The texts around the images of these messages. The model's answer comes next, or where the last message is
    /// the assistant's, what continues that.
    ///
    /// # Errors
    /// What the template refuses, such as roles that do not alternate; a construct that cannot be run; a template
    /// that leaves out a text or an image, or takes more time or memory than one should; a text that holds the
    /// image's token.
    pub fn render(&self, messages: &[Message], image: ImageToken) -> Result<Vec<String>> {
        let (i, last) = match messages {
            [] => return Err(Error::invalid("a chat has at least one message")),
            [.., last] => (messages.len() - 1, last),
        };
        if last.role == Role::Assistant && !matches!(last.content.last(), Some(Part::Text(_))) {
            let what = format!("`messages[{i}]` is to be continued, and does not end with text");
            return Err(Error::invalid(what));
        }
        if let Some(i) = position(messages, |text| text.contains(image.text)) {
            let what = format!("`messages[{i}]` holds `{}` in a text", image.text);
            let hint = "leave it out: an image is a part of its own";
            return Err(Error::new(ErrorKind::ChatTemplate, what).with_hint(hint));
        }
        let form = self.form(messages, image)?;
        let text = self.run(messages, form, image)?;
        let text = match last.role {
            Role::Assistant => continued(&text, last)?,
            Role::System | Role::User => &text,
        };
        check_images(text, messages, image)?;
        Ok(text.split(image.text).map(str::to_owned).collect())
    }

    /// The first form in which the template shows all texts and images: it is tried with others in their place.
    fn form(&self, messages: &[Message], image: ImageToken) -> Result<Form> {
        let mut stand_ins = messages.to_vec();
        let contents = stand_ins
            .iter_mut()
            .flat_map(|message| &mut message.content);
        let texts = contents.filter_map(|part| match part {
            Part::Text(text) => Some(text),
            Part::Image => None,
        });
        for (i, text) in texts.enumerate() {
            *text = stand_in(i);
        }
        let mut furthest: Option<(u8, Error)> = None;
        for form in [Form::AsWritten, Form::Parts, Form::Text] {
            let (progress, error) = match self.run(&stand_ins, form, image) {
                Err(error) => (0, error),
                Ok(text) => match check_texts(&text, &stand_ins) {
                    Err(error) => (1, error),
                    Ok(()) => match check_images(&text, messages, image) {
                        Err(error) => (2, error),
                        Ok(()) => return Ok(form),
                    },
                },
            };
            if furthest
                .as_ref()
                .is_none_or(|(other, _)| progress >= *other)
            {
                furthest = Some((progress, error));
            }
        }
        Err(furthest.expect("there are forms").1)
    }

    fn run(&self, messages: &[Message], form: Form, image: ImageToken) -> Result<String> {
        let is_continued = messages
            .last()
            .is_some_and(|last| last.role == Role::Assistant);
        let values = messages.iter().enumerate().map(|(i, message)| {
            let mut content = message.content.clone();
            if is_continued
                && i + 1 == messages.len()
                && let Some(Part::Text(text)) = content.last_mut()
            {
                text.push_str(CONTINUED);
            }
            Value::from_pairs([
                ("role", Value::from(message.role.name())),
                ("content", form.content(&content, image)),
            ])
        });
        let tokens = self
            .special_tokens
            .iter()
            .map(|(name, text)| (*name, text.as_str()));
        let variables = context! {
            messages => values.collect::<Value>(),
            add_generation_prompt => !is_continued,
            tools => (),
            documents => (),
            ..Value::from_pairs(tokens),
        };
        on_large_stack(|| self.environment.get_template(NAME)?.render(variables))
    }
}

impl Form {
    fn content(self, content: &[Part], image: ImageToken) -> Value {
        match (self, content) {
            (Self::AsWritten, [Part::Text(text)]) => Value::from(text),
            (Self::AsWritten | Self::Parts, _) => content.iter().map(Part::value).collect(),
            (Self::Text, _) => Value::from(joined(content, image)),
        }
    }
}

impl Part {
    fn value(&self) -> Value {
        let kind = |kind| ("type", Value::from(kind));
        match self {
            Self::Text(text) => Value::from_pairs([kind("text"), ("text", Value::from(text))]),
            Self::Image => Value::from_pairs([kind("image")]),
        }
    }
}

/// One text of a message's parts: texts that follow one another are lines.
fn joined(content: &[Part], image: ImageToken) -> String {
    let mut text = String::new();
    for (i, part) in content.iter().enumerate() {
        match part {
            Part::Image => {
                text.push_str(image.text);
                text.push_str(image.behind);
            }
            Part::Text(line) => {
                if i > 0 && content[i - 1] != Part::Image {
                    text.push('\n');
                }
                text.push_str(line);
            }
        }
    }
    text
}

/// Stands for a text. Its line end is no longer one where a template prints a list as Python would.
fn stand_in(i: usize) -> String {
    format!("\u{e000}{i}\n\u{e000}")
}

/// Stands behind a message that is to be continued, as in transformers' `render_jinja_template`: the space at its
/// end is gone where the template trims what is said.
const CONTINUED: &str = "\u{e001}continued\u{e001} ";

/// The text up to what continues it.
fn continued<'a>(text: &'a str, last: &Message) -> Result<&'a str> {
    let said = last.texts().last().unwrap_or_default();
    let end = text
        .rfind(CONTINUED.trim_end())
        .filter(|_| text.contains(said.trim()));
    let end = end.ok_or_else(|| {
        refused("the chat template changes the assistant's message, which is to be continued")
    })?;
    Ok(match text[end..].starts_with(CONTINUED) {
        true => &text[..end],
        false => text[..end].trim_end(),
    })
}

fn check_texts(text: &str, messages: &[Message]) -> Result<()> {
    match position(messages, |said| !text.contains(said)) {
        None => Ok(()),
        Some(i) => {
            let role = messages[i].role.name();
            let what =
                format!("the chat template leaves out what `messages[{i}]` says, the {role}'s");
            Err(refused(what))
        }
    }
}

fn check_images(text: &str, messages: &[Message], image: ImageToken) -> Result<()> {
    let n_shown = text.matches(image.text).count();
    let n_images: usize = messages.iter().map(Message::n_images).sum();
    let does = match n_shown.cmp(&n_images) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => "drops images",
        std::cmp::Ordering::Greater => "repeats images",
    };
    Err(refused(format!(
        "the chat template {does}: it shows {n_shown} of {n_images} as `{}`",
        image.text
    )))
}

/// The message of the first text that is so.
fn position(messages: &[Message], is_so: impl Fn(&str) -> bool) -> Option<usize> {
    let mut messages = messages.iter();
    messages.position(|message| message.texts().any(&is_so))
}

/// Does a template's work where values inside one another, as many as there may be, do not end the process.
fn on_large_stack<T: Send>(
    work: impl FnOnce() -> std::result::Result<T, minijinja::Error> + Send,
) -> Result<T> {
    let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
    let outcome = std::thread::scope(|scope| {
        let worker = worker.spawn_scoped(scope, || work().map_err(|error| explain(&error)))?;
        Ok(worker.join())
    });
    let outcome = outcome.map_err(Error::io("start a thread for", NAME.as_ref()))?;
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn explain(error: &minijinja::Error) -> Error {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return refused(format!("the chat template refuses this chat: {message}"));
        }
        source = cause.source();
    }
    let what = match error.kind() {
        minijinja::ErrorKind::OutOfFuel => {
            "the chat template takes more time or memory than one should".to_owned()
        }
        _ => format!("the chat template cannot be run: {error}"),
    };
    refused(what)
}

pub(crate) fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::ChatTemplate, what).with_hint(
        "use a raw prompt, with `<image>` where the image goes, or another chat template",
    )
}
