//! The chat template of a checkpoint, a Jinja text, wherever its transformers version kept it.

use std::path::Path;

use serde::Deserialize;

use crate::json_file::read_optional_json;
use crate::llava::config::Architecture;
use crate::{Error, Result, input_file};

/// Gemma's own, for a checkpoint that comes without one.
const GEMMA: &str = "{{ bos_token }}{% for message in messages %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' \
+ message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// Longest template that is read; those of models have some kilobytes.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct Holder {
    chat_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// The template of `chat_template.jinja`, `tokenizer_config.json` or `chat_template.json`; without one,
/// a Gemma up to the third has its own.
///
/// # Errors
/// A malformed file.
pub(super) fn read(dir: &Path, architecture: Architecture) -> Result<Option<String>> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.exists() {
        let text = input_file::read(&jinja, MAX_TEMPLATE_BYTES)?;
        return String::from_utf8(text)
            .map(Some)
            .map_err(|_| Error::invalid(format!("`{}` is not valid UTF-8", jinja.display())));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let holder: Option<Holder> = read_optional_json(&dir.join(file))?;
        match holder.and_then(|holder| holder.chat_template) {
            Some(Template::One(template)) => return Ok(Some(template)),
            Some(Template::Several(templates)) => {
                if let Some(named) = templates.into_iter().find(|named| named.name == "default") {
                    return Ok(Some(named.template));
                }
            }
            None => {}
        }
    }
    let is_gemma = matches!(architecture, Architecture::Gemma | Architecture::Gemma3);
    Ok(is_gemma.then(|| GEMMA.to_owned()))
}
